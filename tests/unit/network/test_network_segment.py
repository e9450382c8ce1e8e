"""Segments: what a guest may send, what it is answered, and that tenants do not meet."""

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from nuage.errors import InvalidRequest
from nuage.ids import PortId
from nuage.model.contract import QosClass
from nuage.network.dhcp import SERVER_MAC, DhcpType, Option, _options
from nuage.network.forwarding import Direction, Drop, Label, MacEntry, Nickname, PortNumber
from nuage.network.mtu import Wrapping, guest_mtu, trunk_mtu
from nuage.network.neighbour_answer import link_local
from nuage.network.router_answer import ROUTER
from nuage.network.security_group import ALL_OUT, SecurityRule, policy_entries
from nuage.network.segment import AccessPort, SegmentSwitch, Station
from nuage.network.software_plane import SoftwarePlane
from nuage.network.wire import Reader, internet_checksum, mac_bytes

RED, BLUE = Label(0x100), Label(0x200)
A, B, C = (f"06:00:00:00:00:0{n}" for n in "abc")
BROADCAST = b"\xff" * 6


def access(number: int, label: Label, mac: str, address: str, **more: object) -> AccessPort:
    fields: dict[str, object] = {
        "cidr": "10.0.0.0/24", "gateway": "10.0.0.254", "dns": ("10.0.0.253",),
        "hostname": f"vm{number}", "rules": None, **more,
    }  # fmt: skip
    return AccessPort(
        port=PortNumber(number),
        port_id=PortId(f"port-{number}"),
        label=label,
        mac=mac,
        addresses=(address, f"2001:db8::{number}"),
        **fields,  # type: ignore[arg-type]
    )


class Node:
    """A switch and a plane: two ports of a red segment, one of a blue with the same addresses."""

    def __init__(self, *ports: AccessPort, stations: tuple[Station, ...] = ()) -> None:
        self.switch = SegmentSwitch()
        self.plane = SoftwarePlane()
        self.ports = ports or (
            access(1, RED, A, "10.0.0.1"),
            access(2, RED, B, "10.0.0.2"),
            access(3, BLUE, C, "10.0.0.2"),
        )
        self.plane.apply(self.switch.update(self.ports, stations))
        self.now_s = 0.0

    def send(self, port: int, frame: bytes) -> dict[int, list[bytes]]:
        """Return who got what; answers of the switch go to the sender."""
        self.now_s += 0.01
        got: dict[int, list[bytes]] = {}
        for number, out in self.plane.receive(PortNumber(port), frame, self.now_s):
            got.setdefault(number, []).append(out)
        for punt in self.plane.punts:
            reply = self.switch.answer(punt.port, punt.frame, self.now_s)
            if reply is not None:
                got.setdefault(punt.port, []).append(reply)
        self.plane.punts.clear()
        return got

    def drops(self) -> dict[str, int]:
        return {cause.value: n for cause, n in self.plane.counters().drops.items() if n}


def udp(
    source_mac: str, target_mac: bytes, source: str, target: str, *, sport: int = 999,
    dport: int = 53, data: bytes = b"hi",
) -> bytes:  # fmt: skip
    body = struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0)
    addresses = IPv4Address(source).packed + IPv4Address(target).packed
    ip = head[:10] + struct.pack(">H", internet_checksum(head + addresses)) + addresses
    return target_mac + mac_bytes(source_mac) + b"\x08\x00" + ip + body


def arp(mac: str, source: str, target: str, operation: int = 1) -> bytes:
    return (
        BROADCAST + mac_bytes(mac) + b"\x08\x06"
        + struct.pack(">HHHH", 1, 0x0800, 0x0604, operation)
        + mac_bytes(mac) + IPv4Address(source).packed + bytes(6) + IPv4Address(target).packed
    )  # fmt: skip


def solicitation(mac: str, source: IPv6Address, target: str) -> bytes:
    address = IPv6Address(target)
    body = struct.pack(">BBHI", 135, 0, 0, 0) + address.packed
    group = IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + address.packed[13:])
    pseudo = source.packed + group.packed + struct.pack(">II", len(body), 58)
    body = body[:2] + struct.pack(">H", internet_checksum(pseudo + body)) + body[4:]
    ip = struct.pack(">IHBB", 6 << 28, len(body), 58, 255) + source.packed + group.packed
    return b"\x33\x33\xff" + address.packed[13:] + mac_bytes(mac) + b"\x86\xdd" + ip + body


def router_solicitation(mac: str, source: IPv6Address) -> bytes:
    body, group = struct.pack(">BBHI", 133, 0, 0, 0), IPv6Address("ff02::2")
    pseudo = source.packed + group.packed + struct.pack(">II", len(body), 58)
    body = body[:2] + struct.pack(">H", internet_checksum(pseudo + body)) + body[4:]
    ip = struct.pack(">IHBB", 6 << 28, len(body), 58, 255) + source.packed + group.packed
    return bytes.fromhex("333300000002") + mac_bytes(mac) + b"\x86\xdd" + ip + body


def dhcp(mac: str, kind: DhcpType, *options: bytes, client: str = "0.0.0.0") -> bytes:
    body = struct.pack(
        ">BBBB4sHH4s12x6s10x192x", 1, 1, 6, 0, b"xid!", 0, 0, IPv4Address(client).packed,
        mac_bytes(mac),
    )  # fmt: skip
    body += bytes.fromhex("63825363") + bytes((53, 1, kind)) + b"".join(options) + b"\xff"
    return udp(mac, BROADCAST, client, "255.255.255.255", sport=68, dport=67, data=body)


def dhcp_options(frame: bytes) -> dict[int, bytes]:
    return _options(Reader(frame, 14 + 20 + 8 + 240))


def test_the_mtu_of_each_way_to_carry_a_guest() -> None:
    """The reference's figures: 1426, 1422, 1366 and 1362."""
    clear, secret = Wrapping(encrypted=False), Wrapping()
    assert guest_mtu(trunk_mtu(1500, clear), fine_grained=False) == 1426
    assert guest_mtu(trunk_mtu(1500, clear)) == 1422
    assert guest_mtu(trunk_mtu(1500, secret), fine_grained=False) == 1366
    assert guest_mtu(trunk_mtu(1500, secret)) == 1362
    assert trunk_mtu(1500, secret) == 1390
    assert guest_mtu(trunk_mtu(1500, Wrapping(underlay_ipv6=True))) == 1342
    assert guest_mtu(trunk_mtu(9000, Wrapping(bare=True))) == 8972


def test_guests_of_one_segment_reach_each_other() -> None:
    node = Node()
    frame = udp(A, mac_bytes(B), "10.0.0.1", "10.0.0.2")
    assert node.send(1, frame) == {2: [frame]}


def test_two_tenants_with_the_same_addresses_never_meet() -> None:
    """Unicast, broadcast and every group address of a red guest stay red."""
    node = Node()
    for target in (mac_bytes(C), BROADCAST, bytes.fromhex("01005e000001"), b"\x07" * 6):
        got = node.send(1, udp(A, target, "10.0.0.1", "10.0.0.2"))
        assert 3 not in got


@pytest.mark.parametrize(
    "frame",
    [
        udp(B, mac_bytes(B), "10.0.0.1", "10.0.0.2"),
        udp(A, mac_bytes(B), "10.0.0.9", "10.0.0.2"),
        udp(A, mac_bytes(B), "10.0.0.1", "10.0.0.2", sport=67, dport=68),
        BROADCAST + mac_bytes(A) + b"\x88\xb5" + bytes(46),
        BROADCAST + mac_bytes(A) + b"\x08\x00" + b"\x45",
        mac_bytes(B) + mac_bytes(A) + b"\x81\x00\x00\x0a\x08\x00" + bytes(46),
        mac_bytes(B) + b"\x01\x00\x00\x00\x00\x01" + b"\x08\x00" + bytes(46),
    ],
    ids=["mac", "address", "dhcp-server", "ethertype", "short-ip", "vlan-tag", "group-source"],
)
def test_a_guarded_guest_speaks_only_as_itself(frame: bytes) -> None:
    node = Node()
    assert node.send(1, frame) == {}
    assert node.drops() == {"spoofed": 1}


@pytest.mark.parametrize(
    "frame",
    [
        bytes.fromhex("0180c2000000") + mac_bytes(A) + b"\x00\x26" + bytes(46),
        bytes.fromhex("0180c2000041") + mac_bytes(A) + b"\x22\xf4" + bytes(46),
        mac_bytes(B) + mac_bytes(A) + b"\x22\xf3" + bytes(60),
    ],
    ids=["bpdu", "is-is", "trill"],
)
def test_a_guest_cannot_speak_to_the_fabric(frame: bytes) -> None:
    node = Node()
    assert node.send(1, frame) == {}
    assert node.drops() == {"bridge_control": 1}


def test_arp_is_answered_from_the_directory_of_the_segment() -> None:
    node = Node(stations=(Station(label=RED, mac="06:00:00:00:00:99", addresses=("10.0.0.99",),
                                  nickname=Nickname(5)),))  # fmt: skip
    for target, mac in (("10.0.0.2", B), ("10.0.0.99", "06:00:00:00:00:99")):
        ((reply,),) = node.send(1, arp(A, "10.0.0.1", target)).values()
        assert reply[:14] == mac_bytes(A) + mac_bytes(mac) + b"\x08\x06"
        assert reply[20:32] == b"\x00\x02" + mac_bytes(mac) + IPv4Address(target).packed
    ((blue,),) = node.send(3, arp(C, "10.0.0.2", "10.0.0.254")).values() or ((b"",),)
    assert blue[6:12] in (SERVER_MAC, b"")


@pytest.mark.parametrize(
    "frame",
    [
        arp(A, "10.0.0.2", "10.0.0.99"),
        arp(A, "10.0.0.1", "10.0.0.200"),
        arp(A, "10.0.0.1", "10.0.0.1"),
        arp(A, "10.0.0.1", "10.0.0.2", operation=2),
        arp(A, "10.0.0.1", "10.0.0.2")[:30],
    ],
    ids=["another's address", "nobody", "itself", "reply", "cut"],
)
def test_a_wrong_arp_gets_no_answer_and_reaches_nobody(frame: bytes) -> None:
    node = Node()
    assert node.send(1, frame) == {}


def test_duplicate_address_detection_finds_only_others() -> None:
    node = Node()
    assert node.send(1, arp(A, "0.0.0.0", "10.0.0.2")) != {}
    assert node.send(1, arp(A, "0.0.0.0", "10.0.0.1")) == {}
    nobody = IPv6Address("::")
    assert node.send(1, solicitation(A, nobody, "2001:db8::2")) != {}
    assert node.send(1, solicitation(A, nobody, "2001:db8::1")) == {}


def test_neighbour_solicitations_are_answered_and_verify() -> None:
    node = Node()
    source = link_local(mac_bytes(A))
    ((reply,),) = node.send(1, solicitation(A, source, "2001:db8::2")).values()
    assert reply[:12] == mac_bytes(A) + mac_bytes(B)
    pseudo = reply[22:54] + struct.pack(">II", len(reply) - 54, 58)
    assert internet_checksum(pseudo + reply[54:]) == 0
    assert reply[-6:] == mac_bytes(B)
    assert node.send(1, solicitation(A, IPv6Address("2001:db8::2"), "2001:db8::3")) == {}


def test_a_port_with_a_public_ipv6_address_is_told_its_router_and_no_other_is() -> None:
    node = Node()
    source = link_local(mac_bytes(A))
    asked = router_solicitation(A, source)
    assert node.send(1, asked) == {}, "no public IPv6 address: no router"
    node = Node(access(1, RED, A, "10.0.0.1", routed6=True), access(2, RED, B, "10.0.0.2"))
    ((told,),) = node.send(1, asked).values()
    assert told[:12] == mac_bytes(A) + SERVER_MAC
    assert told[22:54] == ROUTER.packed + source.packed
    pseudo = told[22:54] + struct.pack(">II", len(told) - 54, 58)
    assert internet_checksum(pseudo + told[54:]) == 0
    assert (told[54], told[60:62]) == (134, (9000).to_bytes(2, "big"))
    assert told[-4:] == (1362).to_bytes(4, "big")
    ((reply,),) = node.send(1, solicitation(A, source, str(ROUTER))).values()
    assert (reply[-6:], reply[58]) == (SERVER_MAC, 0xE0), "where it is, and that it is a router"
    assert node.send(1, router_solicitation(A, link_local(mac_bytes(B)))) == {}
    ((every,),) = node.send(1, router_solicitation(A, IPv6Address("::"))).values()
    assert every[:6] == bytes.fromhex("333300000001")


def test_dhcp_offers_and_acknowledges_what_the_catalogue_says() -> None:
    node = Node()
    ((offer,),) = node.send(1, dhcp(A, DhcpType.DISCOVER)).values()
    options = dhcp_options(offer)
    assert offer[42 + 16 : 42 + 20] == IPv4Address("10.0.0.1").packed
    assert options[Option.TYPE] == bytes((DhcpType.OFFER,))
    assert options[Option.MTU] == (1362).to_bytes(2, "big")
    assert options[Option.ROUTER] == IPv4Address("10.0.0.254").packed
    assert options[Option.DNS] == IPv4Address("10.0.0.253").packed
    assert options[Option.HOSTNAME] == b"vm1"
    assert int.from_bytes(options[Option.LEASE], "big") == 86_400
    asked = bytes((50, 4)) + IPv4Address("10.0.0.1").packed
    server = bytes((54, 4)) + options[Option.SERVER]
    ((ack,),) = node.send(1, dhcp(A, DhcpType.REQUEST, asked, server)).values()
    assert dhcp_options(ack)[Option.TYPE] == bytes((DhcpType.ACK,))
    assert internet_checksum(ack[14:34]) == 0


def test_dhcp_refuses_another_address_and_ignores_another_server() -> None:
    node = Node()
    asked = bytes((50, 4)) + IPv4Address("10.0.0.2").packed
    ((nak,),) = node.send(1, dhcp(A, DhcpType.REQUEST, asked)).values()
    assert dhcp_options(nak)[Option.TYPE] == bytes((DhcpType.NAK,))
    elsewhere = bytes((54, 4)) + IPv4Address("10.9.9.9").packed
    assert node.send(1, dhcp(A, DhcpType.REQUEST, asked, elsewhere)) == {}
    assert node.send(1, dhcp(B, DhcpType.DISCOVER)) == {}


def test_a_guest_that_asks_too_much_is_not_heard() -> None:
    node = Node()
    answered = sum(
        node.switch.answer(PortNumber(1), arp(A, "10.0.0.1", "10.0.0.2"), 0.0) is not None
        for _ in range(1000)
    )
    assert answered == 400


def test_a_port_is_held_to_the_rate_of_its_class() -> None:
    node = Node(
        access(1, RED, A, "10.0.0.1", qos_class=QosClass.BRONZE), access(2, RED, B, "10.0.0.2")
    )
    frame = udp(A, mac_bytes(B), "10.0.0.1", "10.0.0.2", data=bytes(1300))
    passed = sum(len(node.plane.receive(PortNumber(1), frame, 1.0)) for _ in range(5000))
    assert passed == pytest.approx(500e6 / 8 * 0.05 / len(frame), rel=0.02)
    assert node.plane.counters().drops[Drop.RATE] == 5000 - passed


def test_a_frame_longer_than_the_segment_allows_is_dropped() -> None:
    node = Node()
    long = udp(A, mac_bytes(B), "10.0.0.1", "10.0.0.2", data=bytes(1362))
    assert node.send(1, long) == {}


INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS


def filtered(*rules: SecurityRule) -> Node:
    return Node(
        access(1, RED, A, "10.0.0.1", rules=rules), access(2, RED, B, "10.0.0.2", rules=None)
    )


def test_without_a_rule_a_guest_is_not_reached_but_its_own_flows_are_answered() -> None:
    node = filtered(ALL_OUT)
    assert node.send(2, udp(B, mac_bytes(A), "10.0.0.2", "10.0.0.1", sport=53, dport=999)) == {}
    assert node.send(1, udp(A, mac_bytes(B), "10.0.0.1", "10.0.0.2")) != {}
    assert node.send(2, udp(B, mac_bytes(A), "10.0.0.2", "10.0.0.1", sport=53, dport=999)) != {}
    assert node.send(2, udp(B, mac_bytes(A), "10.0.0.2", "10.0.0.1", sport=54, dport=999)) == {}
    node.now_s += 300
    assert node.send(2, udp(B, mac_bytes(A), "10.0.0.2", "10.0.0.1", sport=53, dport=999)) == {}


def test_an_allowed_port_and_prefix_is_reached_and_no_other() -> None:
    node = filtered(
        SecurityRule(direction=INGRESS, protocol="udp", remote="10.0.0.0/30", port_first=80,
                     port_last=90)
    )  # fmt: skip
    assert node.send(2, udp(B, mac_bytes(A), "10.0.0.2", "10.0.0.1", dport=85)) != {}
    assert node.send(2, udp(B, mac_bytes(A), "10.0.0.2", "10.0.0.1", dport=91)) == {}
    assert node.send(1, udp(A, mac_bytes(B), "10.0.0.1", "10.0.0.2", sport=85, dport=999)) != {}
    assert node.send(1, udp(A, mac_bytes(B), "10.0.0.1", "10.0.0.2", sport=5, dport=999)) == {}


def test_a_remote_group_means_the_addresses_of_its_ports() -> None:
    rule = SecurityRule(direction=INGRESS, protocol="tcp", remote_group="web")
    entries = policy_entries(PortNumber(1), [rule], {"web": ["10.0.0.2", "2001:db8::2"]})
    assert [str(entry.remote) for entry in entries] == ["10.0.0.2/32", "2001:db8::2/128"]
    assert policy_entries(PortNumber(1), [rule], {}) == ()


def test_taking_a_rule_away_ends_what_it_allowed() -> None:
    rule = SecurityRule(direction=INGRESS)
    node = filtered(rule)
    frame = udp(B, mac_bytes(A), "10.0.0.2", "10.0.0.1")
    assert node.send(2, frame) != {}
    closed = (
        access(1, RED, A, "10.0.0.1", rules=()), access(2, RED, B, "10.0.0.2", rules=None)
    )  # fmt: skip
    node.plane.apply(node.switch.update(closed, ()))
    assert node.send(2, frame) == {}


def test_a_wrong_rule_is_refused_by_field() -> None:
    with pytest.raises(InvalidRequest) as error:
        SecurityRule(direction=INGRESS, protocol="sctp")
    assert error.value.field == "protocol"
    with pytest.raises(InvalidRequest):
        SecurityRule(direction=INGRESS, remote="10.0.0.1/8")
    with pytest.raises(InvalidRequest):
        SecurityRule(direction=INGRESS, port_first=9, port_last=1)


def test_the_directory_gives_the_plane_only_segments_that_are_here() -> None:
    switch = SegmentSwitch()
    far = Station(label=RED, mac=B, addresses=("10.0.0.2",), nickname=Nickname(7))
    other = Station(label=BLUE, mac=C, addresses=("10.0.0.2",), nickname=Nickname(8))
    delta = switch.update([access(1, RED, A, "10.0.0.1")], [far, other])
    macs = [entry for entry in delta.set if isinstance(entry, MacEntry)]
    assert {(entry.label, entry.nickname, entry.port) for entry in macs} == {
        (RED, 0, 1), (RED, 7, 0),
    }  # fmt: skip
    assert switch.labels == {RED}
    assert not switch.update([access(1, RED, A, "10.0.0.1")], [far, other])
