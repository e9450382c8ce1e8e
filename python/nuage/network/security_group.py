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
