"""What guests hear from us, and the frames that watch trunks: for `answers.pcap`."""

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from nuage.ids import PortId
from nuage.network.dhcp import DhcpType
from nuage.network.echo import ECHO_BYTES
from nuage.network.fabric_trace import ANSWER, PROBE, TraceMessage, trace_frame
from nuage.network.forwarding import (
    Label,
    Nickname,
    PortNumber,
    PruneEntry,
    SelfEntry,
    TreeEntry,
)
from nuage.network.gratuitous import announcement
from nuage.network.line_echo import LineEnd, LineForm
from nuage.network.neighbour_answer import link_local
from nuage.network.router_answer import advertisement
from nuage.network.segment import AccessPort, SegmentSwitch, Station
from nuage.network.trill_frame import (
    CHANNEL_ECHO,
    ChannelMessage,
    encode_trill,
    one_hop_channel_frame,
)
from nuage.network.wire import internet_checksum

LABEL = Label(0xABCDEF)
PORT = PortNumber(9)
GUEST = bytes.fromhex("060000000001")
OTHER = bytes.fromhex("060000000002")
MAC_A = bytes.fromhex("021000000001")
MAC_B = bytes.fromhex("021000010001")
NICKNAME, TREE = Nickname(0x1234), Nickname(0x4321)


def switch() -> SegmentSwitch:
    found = SegmentSwitch()
    port = AccessPort(
        port=PORT,
        port_id=PortId("port-1"),
        label=LABEL,
        mac=GUEST.hex(":"),
        addresses=("10.0.0.1", "2001:db8:77::1"),
        cidr="10.0.0.0/24",
        gateway="10.0.0.254",
        dns=("10.0.0.253",),
        hostname="vm1",
        routed6=True,
    )
    station = Station(
        label=LABEL, mac=OTHER.hex(":"), addresses=("10.0.0.2", "2001:db8::2"), nickname=NICKNAME
    )
    found.update([port], [station])
    return found


def arp_question() -> bytes:
    head = struct.pack(">HHHHH", 0x0806, 1, 0x0800, 0x0604, 1)
    addresses = GUEST + IPv4Address("10.0.0.1").packed + bytes(6) + IPv4Address("10.0.0.2").packed
    return b"\xff" * 6 + GUEST + head + addresses


def icmpv6_question(destination: IPv6Address, body: bytes) -> bytes:
    source = link_local(GUEST).packed
    pseudo = source + destination.packed + struct.pack(">II", len(body), 58)
    body = body[:2] + struct.pack(">H", internet_checksum(pseudo + body)) + body[4:]
    ip = struct.pack(">IHBB", 6 << 28, len(body), 58, 255) + source + destination.packed
    return b"\x33\x33" + destination.packed[12:] + GUEST + b"\x86\xdd" + ip + body


def neighbour_question() -> bytes:
    target = IPv6Address("2001:db8::2")
    group = IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + target.packed[13:])
    return icmpv6_question(group, struct.pack(">BBHI", 135, 0, 0, 0) + target.packed)


def router_question() -> bytes:
    return icmpv6_question(IPv6Address("ff02::2"), struct.pack(">BBHI", 133, 0, 0, 0))


def dhcp_question(kind: DhcpType, requested: str = "") -> bytes:
    body = struct.pack(">BBBB4sHH4s12x6s10x192x", 1, 1, 6, 0, b"xid!", 0, 0, bytes(4), GUEST)
    body += bytes.fromhex("63825363") + bytes((53, 1, kind))
    if requested:
        body += bytes((50, 4)) + IPv4Address(requested).packed
    body += b"\xff"
    udp = struct.pack(">HHHH", 68, 67, 8 + len(body), 0) + body
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    addresses = bytes(4) + b"\xff" * 4
    ip = head[:10] + struct.pack(">H", internet_checksum(head + addresses)) + addresses
    return b"\xff" * 6 + GUEST + b"\x08\x00" + ip + udp


def answers() -> list[bytes]:
    """Return what guests are answered: ARP, ND, a router, DHCP's three."""
    found, here = [], switch()
    for question in (
        arp_question(),
        neighbour_question(),
        router_question(),
        dhcp_question(DhcpType.DISCOVER),
        dhcp_question(DhcpType.REQUEST, "10.0.0.1"),
        dhcp_question(DhcpType.REQUEST, "10.0.0.9"),
    ):
        answer = here.answer(PORT, question, 0.0)
        assert answer is not None
        found.append(answer)
    return [*found, advertisement(1362)]


def line_echo() -> bytes:
    line = LineEnd(here="192.0.2.1", there="192.0.2.2", udp_port=51820, end=0)
    datagram = LineForm(line).datagram(bytes(range(ECHO_BYTES)))
    head = struct.pack(">BBHHHBBH", 0x45, 0xC0, 20 + len(datagram), 0, 0, 255, 17, 0)
    addresses = IPv4Address(line.here).packed + IPv4Address(line.there).packed
    ip = head[:10] + struct.pack(">H", internet_checksum(head + addresses)) + addresses
    return MAC_B + MAC_A + b"\x08\x00" + ip + datagram


def watching() -> list[bytes]:
    """Return echoes in a trunk and beside it, a trace and its answer, an announcement."""
    echo = ChannelMessage(CHANNEL_ECHO, bytes(range(ECHO_BYTES)))
    traces = [
        trace_frame(
            TraceMessage(kind, 2, 77, NICKNAME, PORT), hop_count=2, egress=TREE, ingress=NICKNAME,
            smac=MAC_A,
        )
        for kind in (PROBE, ANSWER)
    ]  # fmt: skip
    tables = (
        SelfEntry(NICKNAME, TREE),
        TreeEntry(TREE, (PORT,)),
        PruneEntry(TREE, LABEL, (PORT,)),
    )
    told = announcement(tables, LABEL, GUEST, {PORT: MAC_A})
    return [
        one_hop_channel_frame(echo, dmac=MAC_B, smac=MAC_A, ingress=NICKNAME),
        line_echo(),
        *(encode_trill(replace(each, outer_dmac=MAC_B, outer_smac=MAC_A)) for each in traces),
        *(frame for _, frame in told),
    ]
