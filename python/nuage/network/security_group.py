"""Security groups: what a tenant allows at a port, as rules for a plane and as nftables text.

Pure. Default: everything out, nothing in, as the tenant's tools (OpenStack) expect of a
group without rules of its own; what is allowed is answered statefully. A rule may name another
group: then it means the addresses of that group's ports, and is worked out anew when they
change.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from nuage.errors import InvalidRequest
from nuage.network.forwarding import Direction, PolicyEntry, PortNumber

PROTOCOLS: Final[Mapping[str, int]] = {"any": 0, "icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
RULES_PER_PORT_MAX: Final = 256  # a bound of the kernel plane's map, and of everybody's patience
NFT_TABLE: Final = "nuage"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityRule:
    """One allowance. `remote` is a prefix, `remote_group` a group's name; neither: anybody."""

    direction: Direction
    protocol: str = "any"
    remote: str = ""
    remote_group: str = ""
    port_first: int = 0
    port_last: int = 65535

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise InvalidRequest(
                f"{self.protocol!r} is none of {', '.join(PROTOCOLS)}", field="protocol"
            )
        if not 0 <= self.port_first <= self.port_last <= 65535:
            raise InvalidRequest("ports are first ≤ last, 0 to 65535", field="port_first")
        if self.remote and self.remote_group:
            raise InvalidRequest("a rule has a remote or a remote_group", field="remote_group")
        if self.remote:
            try:
                ip_network(self.remote)
            except ValueError as error:
                raise InvalidRequest(str(error), field="remote") from error


ALL_OUT: Final = SecurityRule(direction=Direction.EGRESS)


def policy_entries(
    port: PortNumber,
    rules: Iterable[SecurityRule],
    groups: Mapping[str, Sequence[str]],
) -> tuple[PolicyEntry, ...]:
    """Return the rules of one port; `groups` maps a group to its ports' addresses.

    Raises:
        InvalidRequest: more than RULES_PER_PORT_MAX after groups are worked out.
    """
    entries: list[PolicyEntry] = []
    for rule in rules:
        for remote in _remotes(rule, groups):
            entries.append(
                PolicyEntry(
                    port=port,
                    index=len(entries),
                    direction=rule.direction,
                    protocol=PROTOCOLS[rule.protocol],
                    remote=remote,
                    first=rule.port_first,
                    last=rule.port_last,
                )
            )
    if len(entries) > RULES_PER_PORT_MAX:
        raise InvalidRequest(
            f"{len(entries)} rules at one port, {RULES_PER_PORT_MAX} at most",
            field="security_groups",
            hint="use a prefix instead of a large remote group",
        )
    return tuple(entries)


def _remotes(
    rule: SecurityRule, groups: Mapping[str, Sequence[str]]
) -> list[IPv4Network | IPv6Network | None]:
    if rule.remote_group:
        return [ip_network(address) for address in groups.get(rule.remote_group, ())]
    return [ip_network(rule.remote) if rule.remote else None]


def render_nft(interface: str, entries: Sequence[PolicyEntry]) -> str:
    """Return an atomic nftables transaction for a tap on a kernel bridge (family bridge).

    For sites that run the kernel's own bridge below a segment instead of our plane: the same
    entries, the same meaning. Needs nf_conntrack_bridge.
    """
    name = f"{NFT_TABLE}_{interface.replace('-', '_')}"
    lines = [
        f"table bridge {name} {{",
        "  chain to_guest {",
        *(
            f"    {_match(e)} accept".replace("     ", "    ")
            for e in _of(entries, Direction.INGRESS)
        ),
        "  }",
        "  chain from_guest {",
        *(
            f"    {_match(e)} accept".replace("     ", "    ")
            for e in _of(entries, Direction.EGRESS)
        ),
        "  }",
        "  chain forward {",
        "    type filter hook forward priority 0; policy accept;",
        f'    iifname != "{interface}" oifname != "{interface}" accept',
        "    ct state established,related accept",
        "    ether type arp accept",
        f'    oifname "{interface}" jump to_guest',
        f'    iifname "{interface}" jump from_guest',
        "    drop",
        "  }",
        "}",
    ]
    head = [f"add table bridge {name}", f"delete table bridge {name}"]
    return "\n".join([*head, *lines, ""])


def _of(entries: Sequence[PolicyEntry], direction: Direction) -> list[PolicyEntry]:
    return [entry for entry in entries if entry.direction is direction]


def _match(entry: PolicyEntry) -> str:
    parts = []
    if entry.remote is not None:
        family = "ip" if entry.remote.version == 4 else "ip6"
        side = "saddr" if entry.direction is Direction.INGRESS else "daddr"
        parts.append(f"{family} {side} {entry.remote}")
    names = {number: name for name, number in PROTOCOLS.items()}
    if entry.protocol:
        parts.append(f"meta l4proto {names.get(entry.protocol, entry.protocol)}")
    if entry.protocol and (entry.first, entry.last) != (0, 65535):
        what = {6: "tcp dport", 17: "udp dport", 1: "icmp type", 58: "icmpv6 type"}
        parts.append(f"{what.get(entry.protocol, 'th dport')} {entry.first}-{entry.last}")
    return " ".join(parts)
