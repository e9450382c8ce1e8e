"""What a guest tries with raw frames: other labels, other addresses, other roles."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from time import monotonic

import pytest
from tests.system.bpf.bpf_netns import Bridge, Entered, Namespaces, Wire, run
from tests.unit.network.rogue_frames import (
    DESTINATION,
    ECHO,
    FRAGMENT,
    ICMPV6,
    NEIGHBOUR_ADVERTISEMENT,
    OPTIONS,
    Sender,
    fragment_header,
    rogue,
)

from nuage.network.dhcp import SERVER_MAC
from nuage.network.forwarding import (
    Direction,
    Drop,
    FloodEntry,
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
from nuage.network.kernel_plane import Neighbour
from nuage.network.neighbour_answer import answer_nd, link_local
from nuage.network.router_answer import ROUTER
from nuage.network.trill_frame import TrillFrame, encode_trill
from nuage.network.wire import internet_checksum

pytestmark = pytest.mark.system
RED, BLUE = Label(0x10), Label(0x20)
BROADCAST = b"\xff" * 6
UDP_SEGMENT = 103
# port -> label, MAC, address: two red guests, one blue with a red one's addresses
GUESTS = {
    1: (RED, bytes.fromhex("060000000001"), "10.0.0.1"),
    2: (RED, bytes.fromhex("060000000002"), "10.0.0.2"),
    3: (BLUE, bytes.fromhex("060000000002"), "10.0.0.2"),
}


class Switch:
    """One node with three guarded guests."""

    def __init__(self, net: Namespaces, pins: Path) -> None:
        here, there = net.add("p"), net.add("q")
        self.outside = there
        for number in GUESTS:
            net.cable(here, f"p{number}", there, f"q{number}")
        self.bridge = Bridge(here, 1, pins / "p")
        self.bridge.set(SelfEntry(Nickname(1), Nickname(0)))
        for label in (RED, BLUE):
            ports = [PortNumber(n) for n, guest in GUESTS.items() if guest[0] == label]
            self.bridge.set(FloodEntry(label, tuple(ports)))
        for number, (label, mac, address) in GUESTS.items():
            port = PortNumber(number)
            self.bridge.set(
                self.port(number),
                MacEntry(label, mac, port=port),
                GuardEntry(port, IPv4Address(address)),
            )
            self.bridge.bind(number, f"p{number}")
        self.wires = {number: Wire(there, f"q{number}") for number in GUESTS}

    @staticmethod
    def port(number: int, *, filtered: bool = False, rate: int = 0) -> PortEntry:
        label, mac, _ = GUESTS[number]
        return PortEntry(
            PortNumber(number), PortRole.ACCESS, mac, label, 1400, guarded=True,
            filtered=filtered, rate_bits_per_s=rate,
        )  # fmt: skip

    def heard(self, timeout_s: float = 0.15) -> dict[int, int]:
        """Return how many frames came to each guest."""
        first = next(iter(self.wires.values()))
        return {
            number: len(wire.frames(timeout_s if wire is first else 0.02))
            for number, wire in self.wires.items()
        }

    def drops(self, cause: Drop) -> int:
        return self.bridge.plane.counters().drops[cause]


@pytest.fixture
def switch(net: Namespaces, pins: Path) -> Switch:
    return Switch(net, pins)


def ipv4(
    source: str, target: str, *, protocol: int = 17, ports: tuple[int, int] = (1000, 2000),
    body: bytes = b"",
) -> bytes:  # fmt: skip
    payload = struct.pack(">HHHH", *ports, 8 + len(body), 0) + body
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    return head + IPv4Address(source).packed + IPv4Address(target).packed + payload


def framed(source: int, dmac: bytes, packet: bytes, ethertype: int = 0x0800) -> bytes:
    return (dmac + GUESTS[source][1] + struct.pack(">H", ethertype) + packet).ljust(60, b"\0")


def arp(source: int, target: str, sender: str | None = None) -> bytes:
    _, mac, own = GUESTS[source]
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + mac + IPv4Address(sender or own).packed
    return framed(source, BROADCAST, body + bytes(6) + IPv4Address(target).packed, 0x0806)


def test_a_broadcast_stays_in_its_label(switch: Switch) -> None:
    switch.wires[1].send(framed(1, BROADCAST, ipv4("10.0.0.1", "10.0.0.255")))
    assert switch.heard() == {1: 0, 2: 1, 3: 0}
    switch.wires[3].send(framed(3, BROADCAST, ipv4("10.0.0.2", "10.0.0.255")))
    assert switch.heard() == {1: 0, 2: 0, 3: 0}


def test_equal_addresses_in_two_labels_do_not_mix(switch: Switch) -> None:
    switch.wires[1].send(framed(1, GUESTS[2][1], ipv4("10.0.0.1", "10.0.0.2")))
    assert switch.heard() == {1: 0, 2: 1, 3: 0}
    switch.wires[3].send(framed(3, GUESTS[1][1], ipv4("10.0.0.2", "10.0.0.1")))
    assert switch.heard() == {1: 0, 2: 0, 3: 0}


def test_a_guest_cannot_use_what_is_not_its_own(switch: Switch) -> None:
    mine, other = GUESTS[1][1], GUESTS[2][1]
    good = ipv4("10.0.0.1", "10.0.0.2")
    for frame in (
        other + b"\x06\0\0\0\0\x09" + b"\x08\0" + good,  # another MAC
        framed(1, other, ipv4("10.0.0.9", "10.0.0.2")),  # another address
        framed(1, other, ipv4("10.0.0.1", "10.0.0.2", ports=(67, 68))),  # DHCP server
        framed(1, other, b"\x60" + bytes(5) + b"\x3b\x40" + bytes(32), 0x86DD),  # IPv6, no guard
        framed(1, other, b"\0\x05\x08\0" + good, 0x8100),  # tagged
        framed(1, other, b"\x88\xb5", 0x88B5),  # not IP
        other + b"\x01" + mine[1:] + b"\x08\0" + good,  # group source
    ):
        switch.wires[1].send(frame.ljust(60, b"\0"))
    assert switch.heard() == {1: 0, 2: 0, 3: 0}
    assert switch.drops(Drop.SPOOFED) == 7


def test_a_guest_cannot_speak_to_the_fabric_as_an_rbridge(switch: Switch) -> None:
    forged = encode_trill(
        TrillFrame(
            outer_dmac=switch.bridge.mac("p1"), outer_smac=GUESTS[1][1], multi=False, hop_count=9,
            egress=Nickname(1), ingress=Nickname(2), inner_dmac=GUESTS[3][1],
            inner_smac=b"\x06\0\0\0\0\x07", label=BLUE, vlan=0, priority=0, ethertype=0x88B5,
            payload=bytes(46),
        )
    )  # fmt: skip
    switch.wires[1].send(forged)
    switch.wires[1].send(framed(1, bytes.fromhex("0180c2000041"), bytes(50), 0x22F4))
    switch.wires[1].send(framed(1, bytes.fromhex("0180c2000000"), bytes(50), 0x0026))
    switch.wires[1].send(framed(1, GUESTS[2][1], bytes(50), 0x8946))
    assert switch.heard() == {1: 0, 2: 0, 3: 0}
    assert switch.drops(Drop.BRIDGE_CONTROL) == 4


def test_a_guest_plays_neither_router_nor_dhcp_server_in_any_disguise(switch: Switch) -> None:
    _, mac, address = GUESTS[1]
    switch.bridge.set(GuardEntry(PortNumber(1), link_local(mac)))
    me = Sender(mac, IPv4Address(address))
    passed = []
    for name, frame in rogue(me).items():
        switch.wires[1].send(frame)
        passed += [name] if switch.wires[2].frames(0.03) else []
    assert passed == []
    assert switch.drops(Drop.SPOOFED) == len(rogue(me))
    switch.wires[1].send(me.ipv6(ICMPV6, me.icmpv6(ECHO)))
    assert switch.heard() == {1: 0, 2: 1, 3: 0}, "its own address, and no rogue"
    for name, frame in claims_to_be_another(me).items():
        switch.wires[1].send(frame)
        passed += [name] if switch.wires[2].frames(0.03) else []
    assert passed == []


def claims_to_be_another(me: Sender) -> dict[str, bytes]:
    """Return what is taken from the wire and answered or not, but never forwarded."""
    neighbour = me.icmpv6(NEIGHBOUR_ADVERTISEMENT)
    gateway = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + me.mac + IPv4Address("10.0.0.254").packed
    gateway += bytes(10)
    inner = b"\x08\0" + ipv4("10.0.0.1", "10.0.0.2")
    return {
        "neighbour": me.ipv6(ICMPV6, neighbour),
        "neighbour behind options": me.ipv6(DESTINATION, bytes((ICMPV6, 0)) + OPTIONS + neighbour),
        "neighbour in a first fragment": me.ipv6(
            FRAGMENT, fragment_header(ICMPV6, 0, more=True) + neighbour
        ),
        "ARP for the gateway": framed(1, BROADCAST, gateway, 0x0806),
        "ARP for the gateway, tagged": framed(1, BROADCAST, b"\0\x05\x08\x06" + gateway, 0x8100),
        "reverse ARP": framed(1, BROADCAST, gateway, 0x8035),
        "ARP in 802.3": framed(1, BROADCAST, b"\xaa\xaa\x03\0\0\0\x08\x06" + gateway, 36),
        "two tags": framed(1, BROADCAST, b"\0\x05\x81\0\0\x06" + inner, 0x8100),
        "a service tag": framed(1, BROADCAST, b"\0\x05" + inner, 0x88A8),
        "longer than the segment": framed(1, BROADCAST, bytes(1401)),
    }


def test_a_port_that_changes_its_label_gets_nothing_of_the_old_one(switch: Switch) -> None:
    moved = PortEntry(
        PortNumber(2), PortRole.ACCESS, GUESTS[2][1], BLUE, 1400, guarded=True
    )  # the directory and the flood list still name it in RED
    switch.bridge.set(moved)
    switch.wires[1].send(framed(1, GUESTS[2][1], ipv4("10.0.0.1", "10.0.0.2")))
    switch.wires[1].send(framed(1, BROADCAST, ipv4("10.0.0.1", "10.0.0.255")))
    assert switch.heard() == {1: 0, 2: 0, 3: 0}
    assert switch.drops(Drop.LABEL) == 2


def test_arp_is_answered_in_the_kernel_within_a_label(switch: Switch) -> None:
    switch.bridge.plane.set_neighbours(
        Neighbour(label, IPv4Address(address), mac) for label, mac, address in GUESTS.values()
    )
    switch.wires[1].send(arp(1, "10.0.0.2"))
    (reply,) = switch.wires[1].frames(0.3, 1)
    expected = GUESTS[1][1] + GUESTS[2][1] + b"\x08\x06\0\1\x08\0\6\4\0\2" + GUESTS[2][1]
    expected += IPv4Address("10.0.0.2").packed + GUESTS[1][1] + IPv4Address("10.0.0.1").packed
    assert reply[:42] == expected
    switch.wires[3].send(arp(3, "10.0.0.1"))  # nobody in BLUE: the daemon may know
    switch.wires[1].send(arp(1, "10.0.0.2", sender="10.0.0.2"))  # not its own to ask from
    assert switch.heard() == {1: 0, 2: 0, 3: 0}
    assert switch.bridge.plane.sums()["answered"] == 1
    assert switch.bridge.plane.sums()["punted"] == 2


def solicitation(source: int, sender: IPv6Address, target: IPv6Address, *, option: bool) -> bytes:
    mac = GUESTS[source][1]
    body = struct.pack(">BBHI", 135, 0, 0, 0) + target.packed + (b"\1\1" + mac if option else b"")
    pseudo = sender.packed + target.packed + struct.pack(">II", len(body), 58)
    body = body[:2] + struct.pack(">H", internet_checksum(pseudo + body)) + body[4:]
    ip = struct.pack(">IHBB", 6 << 28, len(body), 58, 255) + sender.packed + target.packed
    return framed(source, GUESTS[2][1], ip + body, 0x86DD)


def test_nd_is_answered_in_the_kernel_as_the_daemon_would(switch: Switch) -> None:
    mac, asker, other = GUESTS[1][1], link_local(GUESTS[1][1]), link_local(GUESTS[2][1])
    for number in (1, 3):
        switch.bridge.set(GuardEntry(PortNumber(number), link_local(GUESTS[number][1])))
    switch.bridge.plane.set_neighbours([Neighbour(RED, other, GUESTS[2][1])])
    question = solicitation(1, asker, other, option=True)
    switch.wires[1].send(question)
    (reply,) = switch.wires[1].frames(1.0, 1)
    listed: dict[IPv4Address | IPv6Address, bytes] = {other: GUESTS[2][1]}
    assert reply == answer_nd(question, mac, frozenset(), listed.get)
    switch.bridge.plane.set_neighbours([Neighbour(RED, ROUTER, SERVER_MAC)])
    asked = solicitation(1, asker, ROUTER, option=True)
    switch.wires[1].send(asked)
    (reply,) = switch.wires[1].frames(1.0, 1)
    listed[ROUTER] = SERVER_MAC
    assert reply == answer_nd(asked, mac, frozenset(), listed.get)
    assert reply[58] == 0xE0, "a router, or guests drop their default route"
    switch.bridge.plane.set_neighbours([Neighbour(RED, other, GUESTS[2][1])])
    switch.wires[1].send(solicitation(1, other, other, option=True))  # not its own to ask from
    switch.wires[1].send(solicitation(1, asker, asker, option=True))  # nobody else's
    switch.wires[1].send(solicitation(1, IPv6Address("::"), other, option=False))  # by the daemon
    switch.wires[3].send(solicitation(3, other, asker, option=True))  # nobody in BLUE
    assert switch.heard() == {1: 0, 2: 0, 3: 0}
    assert switch.bridge.plane.sums()["answered"] == 2
    assert switch.bridge.plane.sums()["punted"] == 4


def test_the_host_does_not_answer_what_a_guest_asks(switch: Switch) -> None:
    """A guest that asks ARP for an address of the host itself gets silence from its kernel."""
    net = switch.bridge.namespace
    run("ip", "-n", net, "addr", "add", "10.0.0.77/24", "dev", "lo")
    switch.wires[1].send(arp(1, "10.0.0.77"))
    assert switch.heard() == {1: 0, 2: 0, 3: 0}


def test_a_group_lets_in_what_it_allows_and_answers_to_what_went_out(switch: Switch) -> None:
    port = PortNumber(2)
    allowed = PolicyEntry(port, 0, Direction.INGRESS, 17, ip_network("10.0.0.1/32"), 53, 53)
    out = PolicyEntry(port, 1, Direction.EGRESS)
    switch.bridge.set(switch.port(2, filtered=True), allowed, out)
    mac = GUESTS[2][1]
    switch.wires[1].send(framed(1, mac, ipv4("10.0.0.1", "10.0.0.2", ports=(9, 54))))
    assert switch.heard()[2] == 0
    switch.wires[1].send(framed(1, mac, ipv4("10.0.0.1", "10.0.0.2", ports=(9, 53))))
    assert switch.heard()[2] == 1
    back = framed(2, GUESTS[1][1], ipv4("10.0.0.2", "10.0.0.1", ports=(54, 9)))
    switch.wires[2].send(back)
    assert switch.heard()[1] == 1
    switch.wires[1].send(framed(1, mac, ipv4("10.0.0.1", "10.0.0.2", ports=(9, 54))))
    assert switch.heard()[2] == 1
    switch.bridge.drop(allowed)  # what no rule allows any more ends, open flows with it
    switch.wires[1].send(framed(1, mac, ipv4("10.0.0.1", "10.0.0.2", ports=(9, 53))))
    assert switch.heard()[2] == 0
    switch.wires[1].send(framed(1, mac, ipv4("10.0.0.1", "10.0.0.2", ports=(9, 54))))
    assert switch.heard()[2] == 1, "the guest began that one"
    switch.bridge.drop(out)
    switch.wires[1].send(framed(1, mac, ipv4("10.0.0.1", "10.0.0.2", ports=(9, 54))))
    assert switch.heard()[2] == 0
    assert switch.drops(Drop.POLICY) == 3


def test_a_rate_lets_through_about_what_it_says(switch: Switch) -> None:
    """16 Mb/s: a bucket of 100 kB at once, then two megabytes a second."""
    switch.bridge.set(switch.port(1, rate=16_000_000))
    frame = framed(1, GUESTS[2][1], ipv4("10.0.0.1", "10.0.0.2", body=bytes(972)))
    started_s = monotonic()
    for _ in range(200):
        switch.wires[1].send(frame)
    passed, took_s = switch.heard()[2], monotonic() - started_s
    assert 98 <= passed <= 99 + 2_000_000 * took_s / len(frame)
    assert switch.drops(Drop.RATE) == 200 - passed


def test_a_rate_holds_for_super_frames_that_are_larger_than_what_it_gives_at_once(
    switch: Switch,
) -> None:
    """A guest that sends 60 kB whole, a hundred times in a second, has no more than 1 Mb/s."""
    switch.bridge.set(switch.port(1, rate=1_000_000))
    _, mac, address = GUESTS[1]
    run("ip", "-n", switch.outside, "link", "set", "q1", "address", mac.hex(":"), "mtu", "1400")
    run("ip", "-n", switch.outside, "addr", "add", f"{address}/24", "dev", "q1")
    run("ip", "-n", switch.outside, "neigh", "add", "10.0.0.2", "lladdr", GUESTS[2][1].hex(":"),
        "dev", "q1")  # fmt: skip
    with Entered(switch.outside):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        started_s = monotonic()
        for _ in range(100):
            sender.sendto(bytes(60_000), ("10.0.0.2", 9))
            switch.wires[3].frames(0.01)  # nothing comes there: a pause
    size_bytes = sum(map(len, switch.wires[2].frames(0.15)))
    assert 60_000 <= size_bytes <= 66_000 + 125_000 * (monotonic() - started_s)


def test_a_port_that_is_removed_is_silent_and_forgotten(switch: Switch) -> None:
    switch.bridge.drop(switch.port(1), MacEntry(RED, GUESTS[1][1], port=PortNumber(1)))
    switch.wires[1].send(framed(1, GUESTS[2][1], ipv4("10.0.0.1", "10.0.0.2")))
    assert switch.heard() == {1: 0, 2: 0, 3: 0}
    assert PortNumber(1) not in switch.bridge.plane.bound()
