"""The adjacency of one trunk, when the neighbour comes back by another port."""

from random import Random

import pytest

from nuage.network.circuit import HOLDING_S, AdjacencyState, Circuit, Trunk
from nuage.network.forwarding import Nickname, PortNumber
from nuage.network.wire import MalformedFrame

OURS, THEIRS, NEW = (bytes((2, 0, 0, 0, 0, n)) for n in range(3))
NICKNAME = Nickname(0x22)


def circuit(mac: bytes, system: int, now_s: float = 0.0) -> Circuit:
    trunk = Trunk(PortNumber(1), mac, metric=1, mtu_bytes=1390)
    return Circuit(trunk, bytes((2, 0, 0, 0, 1, system)), Random(system), now_s)


class Line:
    """Ours and a neighbour whose plane answers echoes, as its kernel does without its daemon."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.ours = circuit(OURS, 1)
        far = circuit(THEIRS, 2)
        for _ in range(3):
            far.hello(self.ours.hello_pdu(NICKNAME), OURS, self.now_s)
            self.ours.hello(far.hello_pdu(NICKNAME), THEIRS, self.now_s)
        probe = self.ours.probe_due(self.now_s)
        assert probe is not None
        self.ours.mtu_ack(probe, 1390)
        assert self.ours.state is AdjacencyState.REPORT

    def pass_time(self, seconds: float) -> None:
        """Let time pass; nothing but echoes comes back."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            echo = self.ours.echo_due(self.now_s)
            if echo is not None:
                self.ours.echo(echo, self.now_s)
            self.ours.expire(self.now_s)
            self.now_s += 0.01


def test_a_neighbour_that_fell_silent_may_come_back_by_another_port() -> None:
    line = Line()
    line.pass_time(HOLDING_S + 1)
    assert line.ours.restarting
    again = circuit(NEW, 2, line.now_s)
    change = line.ours.hello(again.hello_pdu(NICKNAME), NEW, line.now_s)
    assert change is not None
    assert (change.after, change.reason) == (AdjacencyState.DOWN, "its port is another")
    line.ours.hello(again.hello_pdu(NICKNAME), NEW, line.now_s)
    assert (line.ours.state, line.ours.neighbour_mac) == (AdjacencyState.DETECT, NEW)


def test_a_second_port_beside_one_that_speaks_is_refused() -> None:
    line = Line()
    with pytest.raises(MalformedFrame, match="hello_second"):
        line.ours.hello(circuit(NEW, 2).hello_pdu(NICKNAME), NEW, line.now_s)
    assert line.ours.state is AdjacencyState.REPORT
