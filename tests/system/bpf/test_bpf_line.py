"""Echoes beside a tunnel: the far kernel sends ours back, ours notes them; both families."""

import socket
from contextlib import closing
from pathlib import Path

import pytest
from tests.system.bpf.bpf_netns import Bridge, Namespaces, inside, run, within

from nuage.network.forwarding import EchoSeen, PortEntry, PortNumber, PortRole
from nuage.network.line_echo import LineEnd, LineSocket

pytestmark = pytest.mark.system
TRUNK = PortNumber(1)
UDP_PORT = 51837
CONTENT = bytes(range(16))
FAMILIES = {
    "ipv4": ("192.0.2.1", "192.0.2.2", "24"),
    "ipv6": ("2001:db8::1", "2001:db8::2", "64"),
}
TRIES = 20  # the first waits for a neighbour, and is lost on a line that has none


class Ends:
    """Two edges on one line, each with a trunk whose tunnel is said to come in by it."""

    def __init__(self, net: Namespaces, pins: Path, family: str) -> None:
        low, high, self.bits = FAMILIES[family]
        names = [net.add("low"), net.add("high")]
        net.cable(names[0], "line", names[1], "line")
        net.cable(names[0], "trunk", names[1], "trunk")
        addresses = (low, high)
        for name, address in zip(names, addresses, strict=True):
            inside(name, "sysctl", "-qw", "net.ipv6.conf.line.disable_ipv6=0")
            nodad = ("nodad",) if family == "ipv6" else ()
            run("ip", "-n", name, "addr", "add", f"{address}/{self.bits}", "dev", "line", *nodad)
        self.lines = [LineEnd(low, high, UDP_PORT, 0), LineEnd(high, low, UDP_PORT, 1)]
        self.bridges = [Bridge(name, n + 1, pins / name) for n, name in enumerate(names)]
        for bridge in self.bridges:
            mac = bridge.mac("trunk")
            bridge.set(PortEntry(TRUNK, PortRole.TRUNK, mac, mtu_bytes=1390))
            bridge.bind(TRUNK, "trunk")

    def bind(self, end: int, line: LineEnd) -> None:
        """Let an edge's kernel answer and note what comes on the line."""
        bridge = self.bridges[end]
        within(bridge.namespace, lambda: bridge.plane.bind_line(TRUNK, "line", line))

    def ask(self, end: int) -> EchoSeen | None:
        """Send echoes until one comes back to the plane; None when none of them does."""
        bridge = self.bridges[end]
        asking = within(bridge.namespace, lambda: LineSocket(self.lines[end]))
        with closing(asking):
            for _ in range(TRIES):
                asking.send(CONTENT)
                # Answers come before `ping` has its own: nothing here waits for a clock.
                other = self.lines[end].there
                inside(bridge.namespace, "ping", "-c", "1", "-W", "1", other)
                seen = bridge.plane.take_echoes()
                if seen:
                    return seen[0]
        return None


@pytest.mark.parametrize("family", FAMILIES)
def test_an_echo_on_the_line_comes_back_to_the_end_that_sent_it(
    net: Namespaces, pins: Path, family: str
) -> None:
    ends = Ends(net, pins, family)
    for end, line in enumerate(ends.lines):
        ends.bind(end, line)
    for end in (0, 1):
        seen = ends.ask(end)
        assert seen is not None
        assert (seen.port, seen.content, seen.on_line) == (TRUNK, CONTENT, True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stranger_on_the_line_is_not_answered_and_the_tunnel_gets_its_own(
    net: Namespaces, pins: Path, family: str
) -> None:
    ends = Ends(net, pins, family)
    ends.bind(0, ends.lines[0])
    high = ends.lines[1]
    stranger = high.there.replace("2.1", "2.77") if family == "ipv4" else "2001:db8::77"
    ends.bind(1, LineEnd(high.here, stranger, UDP_PORT, 1))  # its peer is somebody else
    kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    name = ends.bridges[1].namespace
    tunnel = within(name, lambda: socket.socket(kind, socket.SOCK_DGRAM))
    with closing(tunnel):
        tunnel.bind((high.here, UDP_PORT))
        tunnel.settimeout(30.0)
        asking = within(ends.bridges[0].namespace, lambda: LineSocket(ends.lines[0]))
        with closing(asking):
            inside(ends.bridges[0].namespace, "ping", "-c", "1", "-W", "2", high.here)
            asking.send(CONTENT)
            assert CONTENT in tunnel.recv(200), "it passed untouched"
    assert ends.bridges[0].plane.take_echoes() == ()
