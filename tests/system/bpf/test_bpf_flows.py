"""Flows at a filtered port of the kernel plane while its rules change."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from random import Random
from typing import Final

import pytest
from tests.system.bpf.bpf_netns import Bridge, Entered, Namespaces, Wire, run

from nuage.network.forwarding import (
    Direction,
    Drop,
    Entry,
    FloodEntry,
    ForwardingDelta,
    GuardEntry,
    Label,
    MacEntry,
    Nickname,
    PolicyEntry,
    PortEntry,
    PortNumber,
    PortRole,
    SelfEntry,
)
from nuage.network.guest_frame import parse_flow
from nuage.network.software_plane import SoftwarePlane

pytestmark = pytest.mark.system
LABEL: Final = Label(0x10)
GUEST, REMOTE = PortNumber(1), PortNumber(2)
MACS: Final = {number: bytes((6, 0, 0, 0, 0, number)) for number in (GUEST, REMOTE)}
V4: Final = {number: IPv4Address(f"10.0.0.{number}") for number in (GUEST, REMOTE)}
V6: Final = {number: IPv6Address(f"fd00::{number}") for number in (GUEST, REMOTE)}
ALL_OUT: Final = PolicyEntry(GUEST, 0, Direction.EGRESS)
QUIET_S: Final = 0.5  # what the rules no longer let begin has ended by then


def entries() -> tuple[Entry, ...]:
    """Return a node with a filtered guest and one that is not."""
    ports = tuple(
        PortEntry(n, PortRole.ACCESS, MACS[n], LABEL, 1400, guarded=True, filtered=n == GUEST)
        for n in MACS
    )
    return (
        SelfEntry(Nickname(1), Nickname(0)), FloodEntry(LABEL, tuple(MACS)), *ports,
        *(MacEntry(LABEL, mac, port=number) for number, mac in MACS.items()),
        *(GuardEntry(n, address) for table in (V4, V6) for n, address in table.items()),
    )  # fmt: skip


@dataclass
class Node:
    """The node in the kernel, its guests each in a namespace."""

    bridge: Bridge
    hosts: dict[PortNumber, str]


@pytest.fixture
def node(net: Namespaces, pins: Path) -> Node:
    here = net.add("p")
    bridge = Bridge(here, 1, pins / "p")
    bridge.set(*entries())
    hosts = {}
    for number, name in ((GUEST, "q"), (REMOTE, "r")):
        hosts[number] = net.add(name)
        net.cable(here, f"p{number}", hosts[number], "eth0")
        bridge.bind(number, f"p{number}")
    return Node(bridge, hosts)


class Frames:
    """Random frames of few flows, so that each is met in many states."""

    def __init__(self, prng: Random) -> None:
        self._prng = prng

    def frame(self, source: PortNumber) -> bytes:
        target = REMOTE if source == GUEST else GUEST
        is_v6, packet = self._packet(source, target)
        ethertype = b"\x86\xdd" if is_v6 else b"\x08\0"
        return (MACS[target] + MACS[source] + ethertype + packet).ljust(80, b"\0")

    def _packet(self, source: PortNumber, target: PortNumber) -> tuple[bool, bytes]:
        prng = self._prng
        kind, body = self._transport(is_v6=prng.random() < 0.3)
        if kind in (1, 58) and body[0] in (1, 3):
            body += self._quote(source, target)
        if kind == 58 or prng.random() < 0.2:
            return True, self._ipv6(source, target, kind, body)
        return False, self._ipv4(source, target, kind, body)

    def _quote(self, source: PortNumber, target: PortNumber) -> bytes:
        """Return what an error quotes: mostly what the other sent, mostly enough of it."""
        prng = self._prng
        ends = (target, source) if prng.random() < 0.8 else (source, target)
        _, packet = self._packet(*ends)
        return packet if prng.random() < 0.7 else packet[: prng.randrange(len(packet) + 1)]

    def _transport(self, *, is_v6: bool) -> tuple[int, bytes]:
        prng = self._prng
        kind = prng.choice((6, 6, 17, 17, 58 if is_v6 else 1, 47))
        ports = struct.pack(">HH", prng.choice((0, 80, 81)), prng.choice((0, 80, 81)))
        if kind == 6:
            flags = prng.choice((0x02, 0x12, 0x10, 0x18, 0x04, 0x11))
            return kind, ports + bytes(8) + bytes((0x50, flags)) + bytes(6)
        if kind == 17:
            return kind, ports + struct.pack(">HH", 8, 0)
        types = (128, 129, 1, 3) if kind == 58 else (8, 0, 3, 3, 13)
        return kind, bytes((prng.choice(types), 0, 0, 0, 0, prng.randrange(2), 0, 1))

    def _ipv4(self, source: PortNumber, target: PortNumber, kind: int, body: bytes) -> bytes:
        fragment = self._prng.choice((0, 0, 0, 0, 0, 0x2000, 0x2010))
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, fragment, 64, kind, 0)
        return head + V4[source].packed + V4[target].packed + body

    def _ipv6(self, source: PortNumber, target: PortNumber, kind: int, body: bytes) -> bytes:
        if self._prng.random() < 0.2:
            offset = self._prng.choice((0, 1, 16))
            kind, body = 44, struct.pack(">BBHI", kind, 0, offset, 0) + body
        head = struct.pack(">IHBB", 6 << 28, len(body), kind, 64)
        return head + V6[source].packed + V6[target].packed + body

    def rules(self) -> tuple[PolicyEntry, ...]:
        """Return some set of rules."""
        prng = self._prng
        choices: tuple[PolicyEntry, ...] = (
            ALL_OUT,
            PolicyEntry(GUEST, 0, Direction.EGRESS, 6, None, 80, 80),
            PolicyEntry(GUEST, 0, Direction.EGRESS, 17),
            PolicyEntry(GUEST, 0, Direction.EGRESS, 58, None, 128, 128),
            PolicyEntry(GUEST, 0, Direction.INGRESS, 6, None, 80, 80),
            PolicyEntry(GUEST, 0, Direction.INGRESS, 17, ip_network("10.0.0.0/30"), 81, 81),
            PolicyEntry(GUEST, 0, Direction.INGRESS, 1, None, 8, 8),
            PolicyEntry(GUEST, 0, Direction.INGRESS, 0, ip_network("fd00::/64")),
        )
        chosen = prng.sample(choices, prng.randrange(len(choices)))
        return tuple(replace(rule, index=index) for index, rule in enumerate(chosen))


@pytest.mark.parametrize("seed", [1, 2])
def test_both_planes_agree_on_flows_while_rules_change(node: Node, seed: int) -> None:
    prng = Random(seed)
    frames, software = Frames(prng), SoftwarePlane()
    software.apply(ForwardingDelta(entries()))
    wires = {number: Wire(name, "eth0") for number, name in node.hosts.items()}
    held: tuple[PolicyEntry, ...] = ()
    errors = 0
    for count in range(3000):
        if count % 12 == 0:
            rules = frames.rules()
            gone = tuple(old for old in held if all(old.index != new.index for new in rules))
            delta = ForwardingDelta(rules, gone)
            software.apply(delta)
            node.bridge.set(*rules)
            node.bridge.drop(*gone)
            held = rules
        source = prng.choice((GUEST, REMOTE))
        frame = frames.frame(source)
        sent = software.receive(source, frame, time.monotonic())
        wires[source].send(frame)
        flow = parse_flow(frame)
        errors += flow is not None and flow.is_error and bool(sent)
        got = [
            (number, data)
            for number, wire in wires.items()
            for data in wire.frames(0.2 if any(one.port == number for one in sent) else 0.0, 1)
        ]
        assert got == [(one.port, one.frame) for one in sent], f"{count} {source} {frame.hex()}"
    assert errors > 10
    drops = node.bridge.plane.counters().drops
    assert drops[Drop.POLICY] == software.counters().drops[Drop.POLICY] > 500


def test_what_is_known_of_flows_outlives_the_daemon(node: Node) -> None:
    """A plane taken up by another process goes on counting the rules' changes."""
    wires = {number: Wire(name, "eth0") for number, name in node.hosts.items()}
    syn, answer = tcp(REMOTE, 999, 80, 0x02), tcp(GUEST, 80, 999, 0x10)
    web = PolicyEntry(GUEST, 1, Direction.INGRESS, 6, None, 80, 80)
    node.bridge.set(ALL_OUT, web)
    wires[REMOTE].send(syn)
    assert wires[GUEST].frames(0.2, 1)
    again = Bridge(node.bridge.namespace, 1, node.bridge.pins)
    again.drop(web)
    wires[GUEST].send(answer)
    assert not wires[REMOTE].frames(0.1, 1)
    again = Bridge(node.bridge.namespace, 1, node.bridge.pins)
    again.set(web)
    wires[GUEST].send(answer)
    assert wires[REMOTE].frames(0.2, 1)


def tcp(source: PortNumber, source_port: int, target_port: int, flags: int) -> bytes:
    target = REMOTE if source == GUEST else GUEST
    segment = struct.pack(">HHIIBBHHH", source_port, target_port, 0, 0, 0x50, flags, 0, 0, 0)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0)
    packet = head + V4[source].packed + V4[target].packed + segment
    return (MACS[target] + MACS[source] + b"\x08\0" + packet).ljust(60, b"\0")


class Streams:
    """Two TCP connections in which both ends send all the time."""

    def __init__(self, node: Node) -> None:
        self.received = {"from outside": [0, 0], "of the guest": [0, 0]}  # by end: guest, remote
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        for number, host in node.hosts.items():
            other = REMOTE if number == GUEST else GUEST
            for words in (
                ("link", "set", "eth0", "address", MACS[number].hex(":"), "mtu", "1400"),
                ("addr", "add", f"{V4[number]}/24", "dev", "eth0"),
                ("neigh", "add", str(V4[other]), "lladdr", MACS[other].hex(":"), "dev", "eth0"),
            ):
                run("ip", "-n", host, *words)
        self._connect("from outside", node, REMOTE, 80)
        self._connect("of the guest", node, GUEST, 443)

    def _connect(self, name: str, node: Node, client: PortNumber, port: int) -> None:
        server = REMOTE if client == GUEST else GUEST
        with Entered(node.hosts[server]):
            listening = socket.create_server((str(V4[server]), port))
        with Entered(node.hosts[client]):
            made = socket.create_connection((str(V4[server]), port), timeout=5.0)
        taken, _ = listening.accept()
        listening.close()
        guest, remote = (made, taken) if client == GUEST else (taken, made)
        for end, one in enumerate((guest, remote)):
            self._sockets.append(one)
            for work in (self._send, self._receive):
                thread = threading.Thread(target=work, args=(one, name, end), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _send(self, one: socket.socket, _name: str, _end: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                one.sendall(bytes(1000))
                time.sleep(0.005)  # noqa: TID251 - a stream in the real time of the kernel

    def _receive(self, one: socket.socket, name: str, end: int) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                self.received[name][end] += len(data)

    def within(self, seconds: float) -> dict[str, list[int]]:
        """Return what came to each end in that time."""
        before = {name: list(ends) for name, ends in self.received.items()}
        time.sleep(seconds)  # noqa: TID251 - as above
        return {
            name: [now - then for now, then in zip(ends, before[name], strict=True)]
            for name, ends in self.received.items()
        }

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(5.0)


@pytest.fixture
def streams(node: Node) -> Iterator[Streams]:
    node.bridge.set(ALL_OUT, PolicyEntry(GUEST, 1, Direction.INGRESS, 6, None, 80, 80))
    made = Streams(node)
    yield made
    made.close()


def test_a_live_stream_ends_with_the_rule_that_let_it_begin_and_no_other_does(
    node: Node, streams: Streams
) -> None:
    """Both ends go on sending; the guest's own connection does not notice."""
    assert all(min(ends) > 0 for ends in streams.within(QUIET_S).values())
    web = PolicyEntry(GUEST, 1, Direction.INGRESS, 6, None, 80, 80)
    node.bridge.drop(web)
    streams.within(0.05)  # what was on its way
    after = streams.within(2 * QUIET_S)
    assert after["from outside"] == [0, 0]
    assert min(after["of the guest"]) > 0
    node.bridge.set(web)
    assert min(streams.within(6 * QUIET_S)["from outside"]) > 0, "TCP tries again"
    node.bridge.set(replace(ALL_OUT, protocol=17))
    streams.within(0.05)
    after = streams.within(2 * QUIET_S)
    assert after["of the guest"] == [0, 0]
    assert min(after["from outside"]) > 0


PATH_MTU_BYTES: Final = 1280


def test_a_path_s_mtu_is_found_and_errors_about_other_flows_stay_out(
    node: Node, net: Namespaces
) -> None:
    """The guest's peer is a router; behind it is a narrower line to a server."""
    router_port = PortEntry(REMOTE, PortRole.ACCESS, MACS[REMOTE], LABEL, 1400)
    node.bridge.set(ALL_OUT, router_port)  # unguarded: it passes on what others send
    far, guest, router = net.add("s"), node.hosts[GUEST], node.hosts[REMOTE]
    net.cable(router, "narrow", far, "eth0")
    for host, name, mtu, address in (
        (guest, "eth0", 1400, "10.0.0.1/24"), (router, "eth0", 1400, "10.0.0.2/24"),
        (router, "narrow", PATH_MTU_BYTES, "10.9.0.2/24"), (far, "eth0", 1400, "10.9.0.1/24"),
    ):  # fmt: skip
        run("ip", "-n", host, "link", "set", name, "mtu", str(mtu))
        run("ip", "-n", host, "addr", "add", address, "dev", name)
    for number in MACS:
        run("ip", "-n", node.hosts[number], "link", "set", "eth0", "address", MACS[number].hex(":"))
    for host, other in ((guest, REMOTE), (router, GUEST)):
        run("ip", "-n", host, "neigh", "add", str(V4[other]), "lladdr", MACS[other].hex(":"),
            "dev", "eth0")  # fmt: skip
    run("ip", "-n", guest, "route", "add", "10.9.0.0/24", "via", "10.0.0.2")
    run("ip", "-n", far, "route", "add", "10.0.0.0/24", "via", "10.9.0.2")
    run("ip", "netns", "exec", router, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    _upload(guest, far, 200_000)
    assert f"mtu {PATH_MTU_BYTES}" in run("ip", "-n", guest, "route", "get", "10.9.0.1")

    wire = Wire(guest, "eth0", 0x0800)
    router_wire = Wire(router, "eth0")
    for port in range(2000, 2020):
        router_wire.send(too_big(source_port=port, mtu_bytes=600))
    assert not [frame for frame in wire.frames(0.2) if frame[23] == 1]


def _upload(client: str, server: str, size_bytes: int) -> None:
    """Send by TCP; fail unless all comes within some seconds."""
    with Entered(server):
        listening = socket.create_server(("10.9.0.1", 80))
    with Entered(client):
        made = socket.create_connection(("10.9.0.1", 80), timeout=5.0)
    taken, _ = listening.accept()
    taken.settimeout(5.0)
    sender = threading.Thread(target=made.sendall, args=(bytes(size_bytes),), daemon=True)
    sender.start()
    while size_bytes > 0:
        got = taken.recv(65536)
        assert got, "the connection ended"
        size_bytes -= len(got)
    for one in (listening, made, taken):
        one.close()


def too_big(*, source_port: int, mtu_bytes: int) -> bytes:
    """Return a router's word about a segment that the guest never sent."""
    quoted = struct.pack(">BBHHHBBH", 0x45, 0, 1400, 0, 0x4000, 63, 6, 0)
    quoted += V4[GUEST].packed + IPv4Address("10.9.0.1").packed
    quoted += struct.pack(">HHI", source_port, 80, 1)
    body = struct.pack(">BBHHH", 3, 4, 0, 0, mtu_bytes) + quoted
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 1, 0)
    packet = head + V4[REMOTE].packed + V4[GUEST].packed + body
    return MACS[GUEST] + MACS[REMOTE] + b"\x08\0" + packet
