"""What a guest sends to play router, neighbour or DHCP server, in each disguise that we know.

Each frame is the guest's own by MAC and address, so that nothing but its role can stop it.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from nuage.network.neighbour_answer import link_local
from nuage.network.wire import internet_checksum

ALL_NODES = IPv6Address("ff02::1")
ALL_NODES_MAC = bytes.fromhex("333300000001")
BROADCAST = b"\xff" * 6
NO_NEXT, HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, ICMPV6, UDP = 59, 0, 43, 44, 60, 58, 17
ADVERTISEMENT, NEIGHBOUR_ADVERTISEMENT, REDIRECT, ECHO = 134, 136, 137, 128
OPTIONS = b"\x01\x04" + bytes(4)  # PadN, of an extension header that is 8 bytes long
FRAME_BYTES_MIN = 60


@dataclass(frozen=True)
class Sender:
    """The guest: its MAC, its IPv4 address."""

    mac: bytes
    address: IPv4Address

    def ipv4(self, protocol: int, body: bytes, *, fragment: int = 0) -> bytes:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 7, fragment, 64, protocol, 0)
        packet = head + self.address.packed + b"\xff" * 4 + body
        return self._padded(BROADCAST, b"\x08\0", packet)

    def ipv6(self, following: int, body: bytes, *, trailer: bytes = b"") -> bytes:
        """Return a packet to all nodes; `trailer` lies behind it in the frame."""
        head = struct.pack(">IHBB", 6 << 28, len(body), following, 255)
        packet = head + link_local(self.mac).packed + ALL_NODES.packed + body
        return self._padded(ALL_NODES_MAC, b"\x86\xdd", packet + trailer)

    def icmpv6(self, kind: int) -> bytes:
        """Return a message with its checksum, 24 bytes long as the shortest that we forge."""
        body = struct.pack(">BBHI", kind, 0, 0, 0x40000708) + bytes(16)
        source = link_local(self.mac).packed
        pseudo = source + ALL_NODES.packed + struct.pack(">II", len(body), ICMPV6)
        return body[:2] + struct.pack(">H", internet_checksum(pseudo + body)) + body[4:]

    def _padded(self, dmac: bytes, ethertype: bytes, packet: bytes) -> bytes:
        return (dmac + self.mac + ethertype + packet).ljust(FRAME_BYTES_MIN, b"\0")


def udp(source: int, target: int) -> bytes:
    return struct.pack(">HHHH", source, target, 8 + 20, 0) + bytes(20)


def fragment_header(following: int, offset_bytes: int, *, more: bool) -> bytes:
    return struct.pack(">BBHI", following, 0, offset_bytes | more, 0xBEEF)


def rogue(sender: Sender) -> Mapping[str, bytes]:
    """Return what no guarded guest may send, by name."""
    advertisement = sender.icmpv6(ADVERTISEMENT)
    last, chained = bytes((ICMPV6, 0)) + OPTIONS, bytes((DESTINATION, 0)) + OPTIONS
    split = fragment_header(DESTINATION, 0, more=True) + last
    servers_port = struct.pack(">HHHH", 1067, 1068, 8, 0)
    return {
        "DHCP server": sender.ipv4(UDP, udp(67, 68)),
        "DHCP server under another port": sender.ipv4(UDP, udp(1067, 68)),
        "DHCP server, first fragment": sender.ipv4(UDP, udp(67, 68), fragment=0x2000),
        "DHCPv6 server": sender.ipv6(UDP, udp(547, 546)),
        "DHCPv6 server under another port": sender.ipv6(UDP, udp(1547, 546)),
        "DHCPv6 server, its ports behind the packet": sender.ipv6(
            FRAGMENT, fragment_header(DESTINATION, 0, more=True) + bytes((UDP, 0)) + OPTIONS,
            trailer=servers_port,
        ),
        "router": sender.ipv6(ICMPV6, advertisement),
        "redirect": sender.ipv6(ICMPV6, sender.icmpv6(REDIRECT)),
        "router behind hop-by-hop options": sender.ipv6(HOP_BY_HOP, last + advertisement),
        "router behind a routing header": sender.ipv6(ROUTING, last + advertisement),
        "router behind destination options": sender.ipv6(DESTINATION, last + advertisement),
        "router behind a long chain": sender.ipv6(
            DESTINATION, chained * 7 + last + advertisement
        ),
        "router in an atomic fragment": sender.ipv6(
            FRAGMENT, fragment_header(ICMPV6, 0, more=False) + advertisement
        ),
        "router in a first fragment": sender.ipv6(
            FRAGMENT, fragment_header(ICMPV6, 0, more=True) + advertisement
        ),
        "router whose header is in the second fragment": sender.ipv6(FRAGMENT, split),
        "router whose header is said behind the packet": sender.ipv6(
            FRAGMENT, split, trailer=sender.icmpv6(ECHO)
        ),
        "router in a fragment within a fragment": sender.ipv6(
            FRAGMENT,
            fragment_header(FRAGMENT, 0, more=False) + fragment_header(ICMPV6, 0, more=True)
            + advertisement,
        ),
    }  # fmt: skip
