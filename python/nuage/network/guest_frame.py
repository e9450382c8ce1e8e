"""What a guest's frame says: addresses, protocol, ports. For flows, guards and answers.

Only looks; a frame that does not parse as what its Ethertype promises is `MalformedFrame`.
A packet ends where its header says: what lies behind in the frame, its receiver does not read.
IPv4 options are stepped over; of IPv6 extension headers hop-by-hop, routing and destination
options are; a fragment but the first has no ports and says so with protocol only.
"""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from zlib import crc32

from nuage.network.wire import MalformedFrame, Reader

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IPV6: Final = 0x86DD
PROTOCOL_ICMP: Final = 1
PROTOCOL_TCP: Final = 6
PROTOCOL_UDP: Final = 17
PROTOCOL_ICMPV6: Final = 58
ECHOES: Final = {PROTOCOL_ICMP: (8, 0), PROTOCOL_ICMPV6: (128, 129)}  # request, reply
ERRORS: Final = {PROTOCOL_ICMP: (3, 11, 12), PROTOCOL_ICMPV6: (1, 2, 3, 4)}
TCP_SYN: Final = 0x02
TCP_ACK: Final = 0x10
ND_ROUTER_SOLICITATION: Final = 133
ND_SOLICITATION: Final = 135
ND_ADVERTISEMENT: Final = 136
ND_ROUTER_ADVERTISEMENT: Final = 134
ND_REDIRECT: Final = 137
DHCP_SERVER_PORT: Final = 67
DHCP_CLIENT_PORT: Final = 68
DHCPV6_SERVER_PORT: Final = 547
DHCPV6_CLIENT_PORT: Final = 546
ETHERNET_BYTES: Final = 14
IPV6_HEADER_BYTES: Final = 40
_IPV6_EXTENSIONS: Final = (0, 43, 60)  # hop-by-hop, routing, destination options
_IPV6_FRAGMENT: Final = 44
_EXTENSIONS_MAX: Final = 6


class Stage(Enum):
    """Whether a frame can be the first of its flow, as far as its protocol tells."""

    ANY = "any"
    FIRST = "first"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class IpFlow:
    """One direction of a flow. For ICMP `source_port` is the type, `destination_port` the id.

    `quoted` is of the packet that an ICMP error answers, if that can be read.
    """

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int
    source_port: int
    destination_port: int
    fragment: bool = False
    stage: Stage = Stage.ANY
    quoted: "IpFlow | None" = None

    @property
    def is_error(self) -> bool:
        """Tell whether it is an ICMP error."""
        return not self.fragment and self.source_port in ERRORS.get(self.protocol, ())


def parse_flow(frame: bytes) -> IpFlow | None:
    """Return the flow of an Ethernet frame, None when it is not IP.

    Raises:
        MalformedFrame: it says IP and is not.
    """
    reader = Reader(frame)
    reader.take(12)
    ethertype = reader.u16()
    if ethertype == ETHERTYPE_IPV4:
        return _ipv4(_packet(frame, 0))
    if ethertype == ETHERTYPE_IPV6:
        return _ipv6(_packet(frame, IPV6_HEADER_BYTES))
    return None


def _packet(frame: bytes, header_bytes: int) -> Reader:
    """Return a reader of the packet alone; its length field leaves `header_bytes` out."""
    reader = Reader(frame, ETHERNET_BYTES)
    reader.take(4 if header_bytes else 2)
    size_bytes = header_bytes + reader.u16()
    if ETHERNET_BYTES + size_bytes > len(frame):
        raise MalformedFrame("ip_length")
    return Reader(frame, ETHERNET_BYTES, ETHERNET_BYTES + size_bytes)


def _ipv4(reader: Reader, *, is_quote: bool = False) -> IpFlow:
    first = reader.u8()
    header_bytes = (first & 0xF) * 4
    if first >> 4 != 4 or header_bytes < 20:
        raise MalformedFrame("ipv4_header")
    reader.take(5)
    fragment_offset = reader.u16() & 0x1FFF
    reader.u8()
    protocol = reader.u8()
    reader.u16()
    source, destination = IPv4Address(reader.take(4)), IPv4Address(reader.take(4))
    reader.take(header_bytes - 20)
    if fragment_offset:
        return IpFlow(source, destination, protocol, 0, 0, fragment=True)
    return _with_ports(reader, source, destination, protocol, is_quote=is_quote)


def _ipv6(reader: Reader, *, is_quote: bool = False) -> IpFlow:
    if reader.u32() >> 28 != 6:
        raise MalformedFrame("ipv6_header")
    reader.u16()
    following = reader.u8()
    reader.u8()
    source, destination = IPv6Address(reader.take(16)), IPv6Address(reader.take(16))
    for _ in range(_EXTENSIONS_MAX):
        if following in _IPV6_EXTENSIONS:
            following, length = reader.u8(), reader.u8()
            reader.take(length * 8 + 6)
        elif following == _IPV6_FRAGMENT:
            following = reader.u8()
            reader.u8()
            offset = reader.u16() >> 3
            reader.u32()
            if offset:
                return IpFlow(source, destination, following, 0, 0, fragment=True)
        else:
            return _with_ports(reader, source, destination, following, is_quote=is_quote)
    raise MalformedFrame("ipv6_extensions")


def _with_ports(
    reader: Reader,
    source: IPv4Address | IPv6Address,
    destination: IPv4Address | IPv6Address,
    protocol: int,
    *,
    is_quote: bool,
) -> IpFlow:
    first, second, stage, quoted = 0, 0, Stage.ANY, None
    if protocol == PROTOCOL_TCP and not is_quote:
        first, second = reader.u16(), reader.u16()
        reader.take(9)
        is_first = reader.u8() & (TCP_SYN | TCP_ACK) == TCP_SYN
        stage = Stage.FIRST if is_first else Stage.LATER
    elif protocol in (PROTOCOL_UDP, PROTOCOL_TCP):
        first, second = reader.u16(), reader.u16()
    elif protocol in ECHOES:
        first = reader.u8()
        reader.take(3)
        second = reader.u16() if reader.remaining >= 2 else 0
        if first in ECHOES[protocol]:
            stage = Stage.FIRST if first == ECHOES[protocol][0] else Stage.LATER
        elif first in ERRORS[protocol] and not is_quote:
            quoted = _quoted(reader, source.version)
    return IpFlow(source, destination, protocol, first, second, stage=stage, quoted=quoted)


def _quoted(reader: Reader, version: int) -> IpFlow | None:
    """Return the flow of the packet behind an ICMP error's eight bytes, of which six are read.

    It is seldom whole: of TCP it has the ports at least (RFC 792).
    """
    try:
        reader.take(2)
        return (_ipv4 if version == 4 else _ipv6)(reader, is_quote=True)
    except MalformedFrame:
        return None


def flow_hash(frame: bytes, label: int) -> int:
    """Return what spreads flows over equal paths: the same for every frame of one flow."""
    try:
        flow = parse_flow(frame)
    except MalformedFrame:
        flow = None
    if flow is None:
        return crc32(frame[:12], label)
    ports = (flow.source_port << 16 | flow.destination_port).to_bytes(4, "big")
    if flow.protocol not in (PROTOCOL_TCP, PROTOCOL_UDP):
        ports = b""
    return crc32(flow.source.packed + flow.destination.packed + ports, label)


def is_for_control(frame: bytes) -> bool:
    """Tell whether a guest's frame is answered by us instead of forwarded: ARP, ND, DHCP."""
    ethertype = frame[12:14]
    if ethertype == b"\x08\x06":
        return True
    if ethertype not in (b"\x08\x00", b"\x86\xdd"):
        return False
    try:
        flow = parse_flow(frame)
    except MalformedFrame:
        return False
    if flow is None or flow.fragment:
        return False
    if flow.protocol == PROTOCOL_UDP and isinstance(flow.source, IPv4Address):
        return flow.destination_port == DHCP_SERVER_PORT
    return flow.protocol == PROTOCOL_ICMPV6 and flow.source_port in (
        ND_ROUTER_SOLICITATION,
        ND_SOLICITATION,
        ND_ADVERTISEMENT,
    )


def is_rogue(frame: bytes) -> bool:
    """Tell whether a guest plays router or DHCP server: never let out of a guarded port.

    There are clients that do not look whether an answer comes from a server's port.
    """
    try:
        flow = parse_flow(frame)
    except MalformedFrame:
        return True
    if flow is None:
        return False
    if flow.protocol == PROTOCOL_ICMPV6:
        return flow.source_port in (ND_ROUTER_ADVERTISEMENT, ND_REDIRECT)
    return flow.protocol == PROTOCOL_UDP and (
        flow.source_port in (DHCP_SERVER_PORT, DHCPV6_SERVER_PORT)
        or flow.destination_port in (DHCP_CLIENT_PORT, DHCPV6_CLIENT_PORT)
    )
