"""Security groups at a port: what is allowed, and the flows that are open (stateful).

Theory of operation: a rule allows a flow to begin; both directions of a begun flow pass until
it is idle for its time. The table of flows is bounded per port: when it is full the oldest go.
Fragments but the first carry no ports: they pass when a flow between the two addresses with
that protocol is open.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from nuage.network.forwarding import Direction, PolicyEntry
from nuage.network.guest_frame import (
    ND_ADVERTISEMENT,
    ND_SOLICITATION,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    IpFlow,
)

FLOWS_PER_PORT_MAX: Final = 65_536
IDLE_S: Final = {PROTOCOL_TCP: 7440.0, PROTOCOL_UDP: 180.0}  # TCP: RFC 5382 §5, UDP: RFC 4787
IDLE_OTHER_S: Final = 60.0
ECHO_REPLIES: Final = {PROTOCOL_ICMP: (8, 0), PROTOCOL_ICMPV6: (128, 129)}  # request, reply
ERRORS: Final = {PROTOCOL_ICMP: (3, 11, 12), PROTOCOL_ICMPV6: (1, 2, 3, 4)}
Address: TypeAlias = IPv4Address | IPv6Address
FlowKey: TypeAlias = tuple[Address, Address, int, int, int]


@dataclass(slots=True)
class OpenFlow:
    """When a flow was last seen."""

    seen_s: float


class PortPolicy:
    """The rules and the open flows of one filtered port."""

    def __init__(self) -> None:
        self._rules: dict[int, PolicyEntry] = {}
        self._flows: OrderedDict[FlowKey, OpenFlow] = OrderedDict()

    def set_rule(self, rule: PolicyEntry) -> None:
        """Add or replace a rule. Open flows that it began stay open, as users expect."""
        self._rules[rule.index] = rule

    def remove_rule(self, index: int) -> None:
        """Take a rule away, and close all flows: what no rule allows any more must end."""
        self._rules.pop(index, None)
        self._flows.clear()

    def allows(self, flow: IpFlow | None, direction: Direction, now_s: float) -> bool:
        """Tell whether a frame of `flow` may pass, and note the flow when it may."""
        if flow is None:
            return False  # not IP, and ARP never comes here
        if flow.protocol == PROTOCOL_ICMPV6 and flow.source_port in (
            ND_SOLICITATION,
            ND_ADVERTISEMENT,
        ):
            return True  # the directory's business; guarded elsewhere
        key = _key(flow, direction)
        found = self._flows.get(key)
        if found is not None and now_s - found.seen_s < IDLE_S.get(flow.protocol, IDLE_OTHER_S):
            found.seen_s = now_s
            self._flows.move_to_end(key)
            return True
        if self._is_error_of_open(flow, direction):
            return True
        if not any(_matches(rule, flow, direction) for rule in self._rules.values()):
            return False
        if len(self._flows) >= FLOWS_PER_PORT_MAX:
            self._flows.popitem(last=False)
        self._flows[key] = OpenFlow(now_s)
        if flow.protocol in (PROTOCOL_TCP, PROTOCOL_UDP):
            whole = _key(IpFlow(flow.source, flow.destination, flow.protocol, 0, 0), direction)
            self._flows[whole] = OpenFlow(now_s)
        return True

    def _is_error_of_open(self, flow: IpFlow, direction: Direction) -> bool:
        """ICMP errors pass towards a guest that has any flow open: PMTU discovery needs them."""
        if direction is not Direction.INGRESS:
            return False
        return bool(self._flows) and flow.source_port in ERRORS.get(flow.protocol, ())


def _key(flow: IpFlow, direction: Direction) -> FlowKey:
    """Return one key for both directions: guest, remote, protocol, guest port, remote port."""
    source_port, destination_port = flow.source_port, flow.destination_port
    if flow.protocol in ECHO_REPLIES:
        echo = source_port in ECHO_REPLIES[flow.protocol]
        source_port = destination_port = destination_port if echo else source_port
    elif flow.fragment:
        source_port = destination_port = 0
    if direction is Direction.EGRESS:
        return (flow.source, flow.destination, flow.protocol, source_port, destination_port)
    return (flow.destination, flow.source, flow.protocol, destination_port, source_port)


def _matches(rule: PolicyEntry, flow: IpFlow, direction: Direction) -> bool:
    if rule.direction is not direction or flow.fragment:
        return False
    if rule.protocol not in (0, flow.protocol):
        return False
    remote = flow.source if direction is Direction.INGRESS else flow.destination
    if rule.remote is not None and (
        rule.remote.version != remote.version or remote not in rule.remote
    ):
        return False
    if (rule.first, rule.last) == (0, 65535):
        return True
    is_icmp = flow.protocol in (PROTOCOL_ICMP, PROTOCOL_ICMPV6)
    value = flow.source_port if is_icmp else flow.destination_port
    return rule.first <= value <= rule.last


def rules_of(entries: Iterable[PolicyEntry]) -> PortPolicy:
    """Return a policy with these rules and no open flow."""
    policy = PortPolicy()
    for entry in entries:
        policy.set_rule(entry)
    return policy
