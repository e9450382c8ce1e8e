"""Flows at a filtered port while its rules change: who began them decides what becomes of them."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_network

import pytest

from nuage.network.forwarding import Direction, PolicyEntry, PortNumber
from nuage.network.guest_frame import (
    PROTOCOL_ICMP,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    IpFlow,
    Stage,
)
from nuage.network.policy import PortPolicy, rules_of

IN, OUT = Direction.INGRESS, Direction.EGRESS
PORT = PortNumber(1)
GUEST, REMOTE, ROUTER = (IPv4Address(f"10.0.0.{number}") for number in (1, 2, 3))
ALL_OUT = PolicyEntry(PORT, 0, OUT)
OUT_443 = PolicyEntry(PORT, 0, OUT, 6, None, 443, 443)
TCP_IN = PolicyEntry(PORT, 1, IN, 6, None, 80, 80)
UDP_IN = PolicyEntry(PORT, 1, IN, 17, ip_network("10.0.0.0/30"), 53, 53)
PING_IN = PolicyEntry(PORT, 1, IN, 1)
HOUR_S = 3600.0


def tcp(guest_port: int, remote_port: int, stage: Stage = Stage.LATER) -> IpFlow:
    """Return a segment from the guest."""
    return IpFlow(GUEST, REMOTE, PROTOCOL_TCP, guest_port, remote_port, stage=stage)


def udp(guest_port: int, remote_port: int) -> IpFlow:
    return IpFlow(GUEST, REMOTE, PROTOCOL_UDP, guest_port, remote_port)


def back(flow: IpFlow, **more: object) -> IpFlow:
    """Return a frame of the same flow to the guest."""
    turned = replace(
        flow, source=flow.destination, destination=flow.source,
        source_port=flow.destination_port, destination_port=flow.source_port,
    )  # fmt: skip
    return replace(turned, **more)  # type: ignore[arg-type]


class Port:
    """A port whose clock stands still unless told."""

    def __init__(self, *rules: PolicyEntry) -> None:
        self.policy: PortPolicy = rules_of(rules)
        self.now_s = 0.0

    def sends(self, flow: IpFlow) -> bool:
        return self.policy.allows(flow, OUT, self.now_s)

    def gets(self, flow: IpFlow) -> bool:
        return self.policy.allows(flow, IN, self.now_s)


SYN_IN = back(tcp(80, 999), stage=Stage.FIRST)
PING = IpFlow(REMOTE, GUEST, PROTOCOL_ICMP, 8, 7, stage=Stage.FIRST)
PONG = IpFlow(GUEST, REMOTE, PROTOCOL_ICMP, 0, 7, stage=Stage.LATER)


@pytest.mark.parametrize(
    ("rule", "first", "answer"),
    [
        (TCP_IN, SYN_IN, tcp(80, 999)),
        (UDP_IN, back(udp(53, 999)), udp(53, 999)),
        (PING_IN, PING, PONG),
    ],
    ids=["tcp", "udp", "icmp"],
)
def test_what_an_outsider_began_ends_with_its_rule_though_the_guest_goes_on(
    rule: PolicyEntry, first: IpFlow, answer: IpFlow
) -> None:
    port = Port(ALL_OUT, rule)
    assert port.gets(first)
    assert port.sends(answer)
    port.policy.remove_rule(rule.index)
    for _ in range(10):
        port.now_s += 20.0
        assert not port.sends(answer), "an answer begins nothing"
        assert not port.gets(first)
    port.policy.set_rule(rule)
    assert port.sends(answer), "what is allowed again goes on"
    assert port.gets(first)


@pytest.mark.parametrize(
    ("first", "answer"),
    [
        (tcp(999, 80, Stage.FIRST), back(tcp(999, 80))),
        (udp(999, 53), back(udp(999, 53))),
        (
            IpFlow(GUEST, REMOTE, PROTOCOL_ICMP, 8, 7, stage=Stage.FIRST),
            IpFlow(REMOTE, GUEST, PROTOCOL_ICMP, 0, 7, stage=Stage.LATER),
        ),
    ],
    ids=["tcp", "udp", "icmp"],
)
def test_what_the_guest_began_lives_by_rules_for_what_goes_out(
    first: IpFlow, answer: IpFlow
) -> None:
    port = Port(ALL_OUT, TCP_IN)
    assert port.sends(first)
    assert port.gets(answer)
    port.policy.remove_rule(TCP_IN.index)
    assert port.gets(answer), "no rule for what comes in let it begin"
    port.policy.set_rule(OUT_443)  # in place of the other, under its number
    assert not port.gets(answer)
    assert not port.sends(first)


def test_a_rule_that_another_replaces_ends_what_it_allowed() -> None:
    port = Port(ALL_OUT, TCP_IN)
    assert port.gets(SYN_IN)
    port.policy.set_rule(replace(TCP_IN, first=81, last=81))
    assert not port.sends(tcp(80, 999))


def test_a_rule_that_only_gets_another_number_ends_nothing() -> None:
    port = Port(ALL_OUT, TCP_IN)
    assert port.gets(SYN_IN)
    port.policy.remove_rule(TCP_IN.index)
    port.policy.set_rule(replace(TCP_IN, index=5))
    assert port.sends(tcp(80, 999))
    assert port.gets(back(tcp(80, 999)))


def test_a_connection_begun_anew_is_whose_begins_it() -> None:
    port = Port(ALL_OUT, TCP_IN)
    assert port.gets(SYN_IN)
    port.policy.remove_rule(TCP_IN.index)
    assert not port.sends(tcp(80, 999))
    assert port.sends(tcp(80, 999, Stage.FIRST))
    assert port.gets(back(tcp(80, 999)))


def test_a_closed_flow_is_forgotten_once_it_is_idle() -> None:
    port = Port(ALL_OUT, UDP_IN)
    assert port.gets(back(udp(53, 999)))
    port.policy.remove_rule(UDP_IN.index)
    assert not port.sends(udp(53, 999))
    port.now_s += 181.0
    assert port.sends(udp(53, 999))


def test_an_outsider_whom_a_rule_lets_in_is_not_held_to_a_closed_flow_of_the_guest() -> None:
    port = Port(ALL_OUT, UDP_IN)
    port.now_s += 1.0
    assert port.sends(udp(7, 7))  # any flow: the table is not new any more
    port.now_s += 200.0
    assert port.sends(udp(53, 53))
    port.policy.set_rule(OUT_443)
    assert not port.sends(udp(53, 53))
    assert port.gets(back(udp(53, 53)))
    assert port.sends(udp(53, 53))


@pytest.mark.parametrize(
    ("rule", "answer"),
    [(TCP_IN, tcp(80, 999)), (UDP_IN, udp(53, 999)), (PING_IN, PONG)],
    ids=["tcp", "udp", "icmp"],
)
def test_after_a_move_an_answer_is_not_taken_for_a_beginning(
    rule: PolicyEntry, answer: IpFlow
) -> None:
    """The target's port knows no flow, and hears the guest in the middle of one."""
    port = Port(ALL_OUT, rule)
    assert port.sends(answer)
    port.policy.remove_rule(rule.index)
    assert not port.sends(answer)


@pytest.mark.parametrize("moved", [False, True])
def test_a_served_udp_flow_that_was_silent_too_long_is_the_guests_to_begin(*, moved: bool) -> None:
    """Flows live for three minutes without a frame; so long a new place waits for those it has."""
    port = Port(ALL_OUT, UDP_IN)
    assert port.sends(udp(7, 7)) if moved else port.gets(back(udp(53, 999)))
    port.now_s += 181.0
    assert port.sends(udp(53, 999))
    port.policy.remove_rule(UDP_IN.index)
    assert port.sends(udp(53, 999)), "it was no answer"
    assert port.gets(back(udp(53, 999)))


def test_after_a_move_what_the_guest_began_goes_on() -> None:
    port = Port(ALL_OUT, TCP_IN)
    assert port.sends(tcp(999, 443))
    assert port.gets(back(tcp(999, 443)))
    port.policy.remove_rule(TCP_IN.index)
    assert port.gets(back(tcp(999, 443)))


def test_fragments_pass_while_a_flow_between_the_two_is_open() -> None:
    port = Port(ALL_OUT, UDP_IN)
    fragment = IpFlow(REMOTE, GUEST, PROTOCOL_UDP, 0, 0, fragment=True)
    assert not port.gets(fragment)
    assert port.gets(back(udp(53, 999)))
    assert port.gets(fragment)
    for _ in range(3):
        port.now_s += 100.0
        assert port.gets(back(udp(53, 999)))
    assert port.gets(fragment), "the flow was never idle"
    assert not port.gets(back(udp(0, 0))), "ports of 0 are no fragment"
    port.policy.remove_rule(UDP_IN.index)
    assert not port.gets(fragment)


def error(quoted: IpFlow | None, *, kind: int = 3) -> IpFlow:
    """Return an error that a router sends to whom the quoted packet came from."""
    to = GUEST if quoted is None else quoted.source
    return IpFlow(ROUTER, to, PROTOCOL_ICMP, kind, 0, quoted=quoted)


def test_an_error_comes_in_only_for_what_the_guest_sent_in_an_open_flow() -> None:
    port = Port(ALL_OUT, TCP_IN)
    assert not port.gets(error(tcp(80, 999)))
    assert port.gets(SYN_IN)
    assert port.sends(udp(7, 53))
    assert port.gets(error(tcp(80, 999))), "path MTU discovery of what somebody else began"
    assert port.gets(error(udp(7, 53)))
    for quoted in (tcp(80, 998), tcp(81, 999), udp(80, 999), back(tcp(80, 999)), None):
        assert not port.gets(error(quoted))
    assert not port.gets(replace(error(tcp(80, 999)), destination=ROUTER)), "it went to another"
    port.policy.remove_rule(TCP_IN.index)
    assert not port.gets(error(tcp(80, 999))), "the flow is closed"
    assert port.gets(error(udp(7, 53)))


def test_no_rule_lets_an_error_in_that_answers_nothing() -> None:
    port = Port(ALL_OUT, replace(TCP_IN, protocol=0, first=0, last=65535))
    for _ in range(2):
        assert not port.gets(error(udp(7, 53)))
        assert not port.gets(error(None, kind=11))


def test_a_guest_sends_an_error_about_what_came_in() -> None:
    port = Port(OUT_443, UDP_IN)
    refused = replace(error(back(udp(53, 999))), source=GUEST)
    assert not port.sends(refused)
    assert port.gets(back(udp(53, 999)))
    assert port.sends(refused), "whatever may go out else"
    assert not port.gets(error(back(udp(53, 999)))), "the guest did not send it"


def test_errors_keep_no_flow_alive() -> None:
    port = Port(ALL_OUT)
    assert port.sends(udp(7, 53))
    for _ in range(9):
        port.now_s += 20.0
        passes = port.gets(error(udp(7, 53)))
    assert not passes


def test_an_idle_flow_is_gone() -> None:
    port = Port(TCP_IN)
    assert port.gets(SYN_IN)
    port.now_s += 2 * HOUR_S
    assert port.sends(tcp(80, 999))
    port.now_s += 3 * HOUR_S
    assert not port.gets(back(tcp(81, 999)))
