"""Security groups at a port: what is allowed, and the flows that are open (stateful).

Theory of operation: a rule allows a flow to begin; both directions of a begun flow pass until
it is idle for its time. A flow remembers who began it. When the rules have changed, its next
frame is judged by whether they would let it begin from there; what they would not is closed, and
stays so for both directions until it is idle, is begun anew (`_can_begin`), or rules allow it
again. The table of flows is bounded per port: when it is full the oldest go.

Who began a flow cannot be seen where the table is younger than the flow (a guest has moved, a
plane was made anew). There a guest's frame that may be an answer to what the rules let outsiders
begin is taken for one, so that the flow ends with those rules.

Fragments but the first carry no ports: they pass when a flow between the two addresses with
that protocol is open.

An ICMP error passes when the packet that it quotes went the other way in an open flow, from
whom the error goes to; path MTU discovery needs no rule, and no rule lets another error pass
(RFC 5927; whether a quoted sequence number is in the window is the guest's own to see).
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from nuage.network.forwarding import Direction, PolicyEntry
from nuage.network.guest_frame import (
    ECHOES,
    ND_ADVERTISEMENT,
    ND_SOLICITATION,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    IpFlow,
    Stage,
)

FLOWS_PER_PORT_MAX: Final = 65_536
IDLE_S: Final = {PROTOCOL_TCP: 7440.0, PROTOCOL_UDP: 180.0}  # TCP: RFC 5382 §5, UDP: RFC 4787
IDLE_OTHER_S: Final = 60.0
Address: TypeAlias = IPv4Address | IPv6Address
FlowKey: TypeAlias = tuple[Address, Address, int, int, int, bool]


@dataclass(slots=True)
class KnownFlow:
    """When a flow was last seen, who began it, and what the rules of a generation say of it."""

    seen_s: float
    opener: Direction
    generation: int
    closed: bool = False


class PortPolicy:
    """The rules and the known flows of one filtered port."""

    def __init__(self) -> None:
        self._rules: dict[int, PolicyEntry] = {}
        self._flows: OrderedDict[FlowKey, KnownFlow] = OrderedDict()
        self._generation = 0  # of the rules
        self._since_s: float | None = None  # when the first flow was noted

    def set_rule(self, rule: PolicyEntry) -> None:
        """Add or replace a rule."""
        self._rules[rule.index] = rule
        self._changed()

    def remove_rule(self, index: int) -> None:
        """Take a rule away."""
        self._rules.pop(index, None)
        self._changed()

    def _changed(self) -> None:
        self._generation += 1

    def allows(self, flow: IpFlow | None, direction: Direction, now_s: float) -> bool:
        """Tell whether a frame of `flow` may pass, and note the flow when it may."""
        if flow is None:
            return False  # not IP, and ARP never comes here
        if flow.protocol == PROTOCOL_ICMPV6 and flow.source_port in (
            ND_SOLICITATION,
            ND_ADVERTISEMENT,
        ):
            return True  # the directory's business; guarded elsewhere
        if flow.is_error:
            return self._is_error_of_open(flow, direction, now_s)
        key = _key(flow, direction)
        known, opener = self._flows.get(key), direction
        if known is not None and now_s - known.seen_s < IDLE_S.get(flow.protocol, IDLE_OTHER_S):
            if known.generation != self._generation and flow.fragment:
                return False  # its first one is judged
            self._see(known, flow, direction, now_s)
            if not _can_begin(known, flow, direction) or not self._lets_begin(
                flow, direction, opener
            ):
                return not known.closed
        elif self._answers_unseen(flow, direction, now_s) and self._lets_begin(
            flow, direction, Direction.INGRESS
        ):
            opener = Direction.INGRESS
        elif not self._lets_begin(flow, direction, opener):
            return False
        self._note(key, KnownFlow(now_s, opener, self._generation))
        return True

    def _see(self, known: KnownFlow, flow: IpFlow, direction: Direction, now_s: float) -> None:
        """Take notice of a frame of a known flow; judge the flow where the rules are others."""
        key = _key(flow, direction)
        known.seen_s = now_s
        self._flows.move_to_end(key)
        self._judge_anew(known, flow, direction)
        if not known.closed and not flow.fragment:
            self._note_fragments(key, known)

    def _judge_anew(self, known: KnownFlow, flow: IpFlow, direction: Direction) -> None:
        """Judge a flow that was begun under other rules than now hold."""
        if known.generation != self._generation:
            known.generation = self._generation
            known.closed = not self._lets_begin(flow, direction, known.opener)

    def _note(self, key: FlowKey, known: KnownFlow) -> None:
        if len(self._flows) >= FLOWS_PER_PORT_MAX:
            self._flows.popitem(last=False)
        self._flows[key] = known
        self._note_fragments(key, known)
        if self._since_s is None:
            self._since_s = known.seen_s

    def _note_fragments(self, key: FlowKey, known: KnownFlow) -> None:
        guest, remote, protocol, *_ = key
        if protocol in (PROTOCOL_TCP, PROTOCOL_UDP):
            self._flows[guest, remote, protocol, 0, 0, True] = replace(known)

    def _lets_begin(self, flow: IpFlow, direction: Direction, opener: Direction) -> bool:
        """Tell whether a rule lets `opener` begin the flow of a frame that goes `direction`."""
        first = flow if opener is direction else _the_other_way(flow)
        return any(_matches(rule, first, opener) for rule in self._rules.values())

    def _answers_unseen(self, flow: IpFlow, direction: Direction, now_s: float) -> bool:
        """Tell whether a guest's frame may be an answer in a flow that is older than the table."""
        if direction is Direction.INGRESS:
            return False
        if flow.stage is not Stage.ANY:
            return flow.stage is Stage.LATER
        return self._since_s is None or now_s - self._since_s < IDLE_S[PROTOCOL_UDP]

    def _is_error_of_open(self, flow: IpFlow, direction: Direction, now_s: float) -> bool:
        """Tell whether an ICMP error answers a packet of an open flow. It keeps none alive."""
        quoted, other = flow.quoted, Direction.INGRESS
        if direction is Direction.INGRESS:
            other = Direction.EGRESS
        if quoted is None or quoted.source != flow.destination:
            return False
        known = self._flows.get(_key(quoted, other))
        if known is None or now_s - known.seen_s >= IDLE_S.get(quoted.protocol, IDLE_OTHER_S):
            return False
        if known.generation != self._generation and quoted.fragment:
            return False
        self._judge_anew(known, quoted, other)
        return not known.closed


def _can_begin(known: KnownFlow, flow: IpFlow, direction: Direction) -> bool:
    """Tell whether a frame can begin its flow anew: from the other side than who began it.

    Where the protocol does not say, a guest's frame in a closed flow is an answer, an outsider's
    is what rules allow.
    """
    if known.opener is direction or flow.stage is Stage.LATER:
        return False
    return flow.stage is Stage.FIRST or (known.closed and direction is Direction.INGRESS)


def _the_other_way(flow: IpFlow) -> IpFlow:
    """Return the first frame of a flow, of which `flow` is a frame the other way."""
    if flow.protocol not in ECHOES:
        return replace(
            flow, source=flow.destination, destination=flow.source,
            source_port=flow.destination_port, destination_port=flow.source_port,
        )  # fmt: skip
    kind = ECHOES[flow.protocol][0] if flow.source_port in ECHOES[flow.protocol] else None
    return replace(
        flow, source=flow.destination, destination=flow.source,
        source_port=flow.source_port if kind is None else kind,
    )  # fmt: skip


def _key(flow: IpFlow, direction: Direction) -> FlowKey:
    """Return one key for both directions: guest, remote, protocol, their ports, if a fragment."""
    source_port, destination_port = flow.source_port, flow.destination_port
    if flow.protocol in ECHOES:
        echo = source_port in ECHOES[flow.protocol]
        source_port = destination_port = destination_port if echo else source_port
    ends = (flow.source, flow.destination, flow.protocol, source_port, destination_port)
    if direction is Direction.INGRESS:
        ends = (flow.destination, flow.source, flow.protocol, destination_port, source_port)
    return (*ends, flow.fragment)


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
