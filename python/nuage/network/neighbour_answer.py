"""ARP and neighbour discovery answered from a directory: no question crosses the fabric.

(RFC 826, 4861, 8302.) The directory says which MAC has an address in a segment. A question
from an address that is not the asker's is not answered: it would poison nobody else, but we
do not help. Duplicate address detection is answered only when somebody else has the address.
"""

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from nuage.network.dhcp import SERVER_MAC
from nuage.network.guest_frame import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV6,
    ND_ADVERTISEMENT,
    ND_SOLICITATION,
    PROTOCOL_ICMPV6,
)
from nuage.network.wire import MalformedFrame, Reader, internet_checksum

Address: TypeAlias = IPv4Address | IPv6Address
Lookup: TypeAlias = Callable[[Address], bytes | None]
ARP_REQUEST: Final = 1
ARP_REPLY: Final = 2
ALL_NODES: Final = IPv6Address("ff02::1")
ALL_NODES_MAC: Final = bytes.fromhex("333300000001")
UNSPECIFIED: Final = IPv6Address("::")
NA_ROUTER: Final = 0x80000000
NA_SOLICITED: Final = 0x40000000
NA_OVERRIDE: Final = 0x20000000


def link_local(mac: bytes) -> IPv6Address:
    """Return the link-local address that a guest makes of its MAC (RFC 4291, EUI-64)."""
    eui = bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + eui)


def answer_arp(frame: bytes, mac: bytes, mine: frozenset[Address], lookup: Lookup) -> bytes | None:
    """Return the ARP reply to a guest's request, or None when there is nothing to say.

    Raises:
        MalformedFrame: not ARP for IPv4 over Ethernet.
    """
    reader = Reader(frame, 14)
    kind, protocol, sizes, operation = reader.u16(), reader.u16(), reader.u16(), reader.u16()
    if (kind, protocol, sizes) != (1, 0x0800, 0x0604):
        raise MalformedFrame("arp_form")
    asker_mac, asker = reader.take(6), IPv4Address(reader.take(4))
    reader.take(6)
    target = IPv4Address(reader.take(4))
    is_probe = asker == IPv4Address(0)
    if operation != ARP_REQUEST or asker_mac != mac or not (is_probe or asker in mine):
        return None
    found = lookup(target)
    if found is None or found == mac:
        return None
    head = mac + found + struct.pack(">HHHHH", ETHERTYPE_ARP, 1, 0x0800, 0x0604, ARP_REPLY)
    return head + found + target.packed + mac + asker.packed


def answer_nd(frame: bytes, mac: bytes, mine: frozenset[Address], lookup: Lookup) -> bytes | None:
    """Return the neighbour advertisement for a guest's solicitation, or None.

    Raises:
        MalformedFrame: truncated, or extension headers where none belong.
    """
    reader, hop_limit, asker = nd_question(frame)
    kind = reader.u8()
    reader.take(7)
    target = IPv6Address(reader.take(16))
    if kind != ND_SOLICITATION or hop_limit != 255 or target.is_multicast:
        return None
    if asker not in (UNSPECIFIED, link_local(mac)) and asker not in mine:
        return None
    found = lookup(target)
    if found is None or found == mac:
        return None
    return _advertisement(mac, found, asker, target)


def _advertisement(mac: bytes, found: bytes, asker: IPv6Address, target: IPv6Address) -> bytes:
    is_probe = asker == UNSPECIFIED
    destination = ALL_NODES if is_probe else asker
    flags = NA_OVERRIDE | (0 if is_probe else NA_SOLICITED)
    if found == SERVER_MAC:  # or the guest drops its default route (RFC 4861 §7.2.5)
        flags |= NA_ROUTER
    option = b"\x02\x01" + found
    body = struct.pack(">BBHI", ND_ADVERTISEMENT, 0, 0, flags) + target.packed + option
    return nd_frame(ALL_NODES_MAC if is_probe else mac, found, target, destination, body)


def nd_question(frame: bytes) -> tuple[Reader, int, IPv6Address]:
    """Return a reader at the ICMPv6 message of an IPv6 frame, its hop limit, and who asks.

    Raises:
        MalformedFrame: truncated, or extension headers where none belong.
    """
    reader = Reader(frame, 14)
    reader.take(6)
    following, hop_limit = reader.u8(), reader.u8()
    asker = IPv6Address(reader.take(16))
    reader.take(16)
    if following != PROTOCOL_ICMPV6:
        raise MalformedFrame("nd_form")
    return reader, hop_limit, asker


def nd_frame(
    dmac: bytes, smac: bytes, source: IPv6Address, destination: IPv6Address, body: bytes
) -> bytes:
    """Return a frame with an ND message (RFC 4861), whose checksum is put in."""
    between = source.packed + destination.packed
    pseudo = between + struct.pack(">II", len(body), PROTOCOL_ICMPV6)
    checksum = internet_checksum(pseudo + body)
    body = body[:2] + struct.pack(">H", checksum) + body[4:]
    ethernet = dmac + smac + struct.pack(">H", ETHERTYPE_IPV6)
    ip = struct.pack(">IHBB", 6 << 28, len(body), PROTOCOL_ICMPV6, 255)
    return ethernet + ip + between + body
