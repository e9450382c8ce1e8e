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

from collections.abc import Collection, Iterable
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, TypeVar

from nuage.daemon.fabric_trunks import interface_exists
from nuage.network.dhcp import SERVER_MAC
from nuage.network.forwarding import Label
from nuage.network.wire import mac_bytes
from nuage.tool import run_tool

OUTSIDE: Final = "nlisp0"
INSIDE: Final = "nlisp1"
LABEL: Final = Label(1)  # below those of tenants (`building.LABEL_MIN`)
# Of the pools' routes; its MAC is the tunnel router's.
NEXT_HOPS: Final = {4: "169.254.77.1", 6: "fe80::77:1"}
TABLE: Final = "nuage_lisp"
METRIC: Final = 50
_Network = TypeVar("_Network", IPv4Network, IPv6Network)
MTU_BYTES: Final = 1362  # a guest's: the host tells those outside when a packet is too big


async def open_gate(lines: Iterable[str]) -> bytes:
    """Make the cable and the filter, once; return the MAC that decapsulated packets go to."""
    if not interface_exists(OUTSIDE):
        await run_tool(("ip", "link", "add", OUTSIDE, "type", "veth", "peer", "name", INSIDE))
    for name, silent in ((OUTSIDE, "0"), (INSIDE, "1")):
        with suppress(OSError):  # no IPv6 here at all
            Path(f"/proc/sys/net/ipv6/conf/{name}/accept_ra").write_text("0")
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text(silent)
        await run_tool(("ip", "link", "set", name, "mtu", str(MTU_BYTES), "up"))
    await run_tool(("nft", ruleset((), lines)))
    return mac_bytes(Path(f"/sys/class/net/{OUTSIDE}/address").read_text().strip())


async def lead(pools: Iterable[str], before: Iterable[str], lines: Iterable[str]) -> None:
    """Route the pools into the gate, and no longer those of `before` that are gone."""
    wanted, old = tuple(pools), set(before)
    await run_tool(("nft", ruleset(wanted, lines)))
    for version in sorted({ip_network(pool).version for pool in wanted}):
        neighbour = ("lladdr", SERVER_MAC.hex(":"), "dev", OUTSIDE, "nud", "permanent")
        await run_tool(("ip", "neigh", "replace", NEXT_HOPS[version], *neighbour))
    for pool in wanted:
        await run_tool(_route("replace", pool))
    for pool in old - set(wanted):
        await run_tool(_route("del", pool))


def _route(verb: str, pool: str) -> tuple[str, ...]:
    version = ip_network(pool).version
    way = ("via", NEXT_HOPS[version], "dev", OUTSIDE, "onlink", "metric", str(METRIC))
    return ("ip", f"-{version}", "route", verb, pool, *way)


def ruleset(pools: Collection[str], lines: Iterable[str]) -> str:
    """Return the packet filter of the gate."""
    out = ", ".join(f'"{line}"' for line in sorted(lines))
    rules = [f'iifname "{OUTSIDE}" oifname != {{ {out} }} drop'] if out else []
    for version, word in ((4, "ip"), (6, "ip6")):
        listed = ", ".join(sorted(pool for pool in pools if ip_network(pool).version == version))
        wrong = f"{word} saddr != {{ {listed} }}" if listed else f"meta nfproto ipv{version}"
        rules.append(f'iifname "{OUTSIDE}" {wrong} drop')
    return "\n".join(
        (
            f"table ip {TABLE}",  # of releases that knew IPv4 alone
            f"delete table ip {TABLE}",
            f"table inet {TABLE}",
            f"delete table inet {TABLE}",
            f"table inet {TABLE} {{",
            "chain forward { type filter hook forward priority 0; policy accept;",
            *rules,
            "}",
            "chain input { type filter hook input priority 0; policy accept;",
            f'iifname "{OUTSIDE}" drop',
            "}",
            "}",
        )
    )


def outside_of(pools: Iterable[str]) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the prefixes that together are every address but those of the pools.

    Of IPv6 only what a pool is cut out of: without a pool nobody has an address to send from.
    """
    every = [ip_network(pool) for pool in pools]
    four = [pool for pool in every if isinstance(pool, IPv4Network)]
    six = [pool for pool in every if isinstance(pool, IPv6Network)]
    rest = _without(IPv4Network("0.0.0.0/0"), four)
    return (*rest, *_without(IPv6Network("::/0"), six)) if six else tuple(rest)


def _without(whole: _Network, pools: Iterable[_Network]) -> list[_Network]:
    left = [whole]
    for pool in pools:
        left = [
            part
            for each in left
            for part in (each.address_exclude(pool) if pool.subnet_of(each) else (each,))
        ]
    return sorted(left)
