"""An edge's gate between public addresses and the internet: a cable that leads back into itself.

::

    providers' lines ── the host's own routes ── nlisp0 ══ nlisp1 ── tunnel router ── V-nodes

What arrives for a pool the host routes into `nlisp0`; it comes out of `nlisp1`, an access port of
the plane, where the tunnel router encapsulates it (proxy ITR, RFC 9300 §13). The other way round,
what V-nodes send to no address of ours is decapsulated into `nlisp1`, and the host routes it on
(proxy ETR). Both legs use the same programs as guests' packets do.

Packet filter: out of `nlisp0` comes only what has a source of the pools, and it goes out by a
provider's line only: no guest reaches this host or its site's network this way.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from nuage.daemon.fabric_trunks import interface_exists
from nuage.network.dhcp import SERVER_MAC
from nuage.network.forwarding import Label
from nuage.network.trunk_wireguard import run
from nuage.network.wire import mac_bytes

OUTSIDE: Final = "nlisp0"
INSIDE: Final = "nlisp1"
LABEL: Final = Label(1)  # below those of tenants (`building.LABEL_MIN`)
NEXT_HOP: Final = "169.254.77.1"  # of the pools' routes; its MAC is the tunnel router's
TABLE: Final = "nuage_lisp"
METRIC: Final = 50
MTU_BYTES: Final = 1362  # a guest's: the host tells those outside when a packet is too big


async def open_gate(lines: Iterable[str]) -> bytes:
    """Make the cable and the filter, once; return the MAC that decapsulated packets go to."""
    if not interface_exists(OUTSIDE):
        await run(("ip", "link", "add", OUTSIDE, "type", "veth", "peer", "name", INSIDE))
    for name in (OUTSIDE, INSIDE):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        await run(("ip", "link", "set", name, "mtu", str(MTU_BYTES), "up"))
    neighbour = ("lladdr", SERVER_MAC.hex(":"), "dev", OUTSIDE, "nud", "permanent")
    await run(("ip", "neigh", "replace", NEXT_HOP, *neighbour))
    await run(("nft", ruleset((), lines)))
    return mac_bytes(Path(f"/sys/class/net/{OUTSIDE}/address").read_text().strip())


async def lead(pools: Iterable[str], before: Iterable[str], lines: Iterable[str]) -> None:
    """Route the pools into the gate, and no longer those of `before` that are gone."""
    wanted, old = tuple(pools), set(before)
    await run(("nft", ruleset(wanted, lines)))
    way = ("via", NEXT_HOP, "dev", OUTSIDE, "onlink", "metric", str(METRIC))
    for pool in wanted:
        await run(("ip", "route", "replace", pool, *way))
    for pool in old - set(wanted):
        await run(("ip", "route", "del", pool, *way))


def ruleset(pools: Iterable[str], lines: Iterable[str]) -> str:
    """Return the packet filter of the gate."""
    listed, out = ", ".join(sorted(pools)), ", ".join(f'"{line}"' for line in sorted(lines))
    rules = [f'iifname "{OUTSIDE}" oifname != {{ {out} }} drop'] if out else []
    rules.append(
        f'iifname "{OUTSIDE}" ip saddr != {{ {listed} }} drop' if listed
        else f'iifname "{OUTSIDE}" drop'
    )  # fmt: skip
    return "\n".join(
        (
            f"table ip {TABLE}",
            f"delete table ip {TABLE}",
            f"table ip {TABLE} {{",
            "chain forward { type filter hook forward priority 0; policy accept;",
            *rules,
            "}",
            "chain input { type filter hook input priority 0; policy accept;",
            f'iifname "{OUTSIDE}" drop',
            "}",
            "}",
        )
    )


def outside_of(pools: Iterable[str]) -> tuple[IPv4Network, ...]:
    """Return the prefixes that together are every address but those of the pools."""
    left = [IPv4Network("0.0.0.0/0")]
    for pool in map(IPv4Network, pools):
        left = [
            part
            for each in left
            for part in (each.address_exclude(pool) if pool.subnet_of(each) else (each,))
        ]
    return tuple(sorted(left))
