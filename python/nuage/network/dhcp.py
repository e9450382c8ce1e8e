"""DHCPv4 answered from the catalogue (RFC 2131, 2132): every lease is known beforehand.

No state: the same question gets the same answer on every node, so a VM that moved renews
where it is. Server identifier and source of the answers is the segment's gateway (or the first
address of the prefix when it has none), under a MAC that all nodes share.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Interface
from typing import Final

from nuage.network.guest_frame import DHCP_CLIENT_PORT, DHCP_SERVER_PORT
from nuage.network.wire import MalformedFrame, Reader, internet_checksum

SERVER_MAC: Final = bytes.fromhex("02e000000067")  # ours on every node: answers survive a move
MAGIC: Final = bytes.fromhex("63825363")
LEASE_S: Final = 86_400
BOOTREQUEST: Final = 1
BOOTREPLY: Final = 2
FLAG_BROADCAST: Final = 0x8000


class DhcpType(IntEnum):
    """Message types (option 53)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(IntEnum):
    """The options we read and write."""

    MASK = 1
    ROUTER = 3
    DNS = 6
    HOSTNAME = 12
    MTU = 26
    REQUESTED = 50
    LEASE = 51
    TYPE = 53
    SERVER = 54
    RENEW = 58
    REBIND = 59
    END = 255


@dataclass(frozen=True, slots=True)
class Lease:
    """What the catalogue knows of a port."""

    mac: bytes
    address: IPv4Interface
    mtu_bytes: int
    router: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = ()
    hostname: str = ""

    @property
    def server(self) -> IPv4Address:
        """Return the address that answers come from."""
        return self.router or self.address.network.network_address + 1


@dataclass(frozen=True, slots=True)
class DhcpRequest:
    """What a client asks."""

    kind: DhcpType
    transaction: bytes
    flags: int
    client: IPv4Address
    mac: bytes
    requested: IPv4Address | None = None
    server: IPv4Address | None = None


def decode_request(frame: bytes) -> DhcpRequest:
    """Take a client's Ethernet frame to UDP port 67 apart.

    Raises:
        MalformedFrame: not BOOTP over Ethernet, or options that run out of the packet.
    """
    reader = Reader(frame, 14)
    first = reader.u8()
    reader.take((first & 0xF) * 4 - 1 + 8)
    operation, hardware, length = reader.u8(), reader.u8(), reader.u8()
    if (operation, hardware, length) != (BOOTREQUEST, 1, 6):
        raise MalformedFrame("dhcp_form")
    reader.u8()
    transaction = reader.take(4)
    reader.u16()
    flags, client = reader.u16(), IPv4Address(reader.take(4))
    reader.take(12)
    mac = reader.take(6)
    reader.take(10 + 64 + 128)
    if reader.take(4) != MAGIC:
        raise MalformedFrame("dhcp_magic")
    options = _options(reader)
    kind = options.get(Option.TYPE, b"")
    if len(kind) != 1 or kind[0] not in {*DhcpType}:
        raise MalformedFrame("dhcp_type")
    return DhcpRequest(
        DhcpType(kind[0]),
        transaction,
        flags,
        client,
        mac,
        _address(options.get(Option.REQUESTED)),
        _address(options.get(Option.SERVER)),
    )


def _options(reader: Reader) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while reader.remaining:
        number = reader.u8()
        if number == Option.END:
            break
        if number:
            found[number] = reader.take(reader.u8())
    return found


def _address(value: bytes | None) -> IPv4Address | None:
    return IPv4Address(value) if value is not None and len(value) == 4 else None


def answer_dhcp(request: DhcpRequest, lease: Lease) -> bytes | None:
    """Return the Ethernet frame that answers, or None when nothing is to be said."""
    if request.mac != lease.mac:
        return None
    if request.server not in (None, lease.server):
        return None  # it took another server's offer
    match request.kind:
        case DhcpType.DISCOVER:
            return _reply(request, lease, DhcpType.OFFER)
        case DhcpType.REQUEST:
            asked = request.requested or request.client
            right = asked == lease.address.ip
            return _reply(request, lease, DhcpType.ACK if right else DhcpType.NAK)
        case DhcpType.INFORM:
            return _reply(request, lease, DhcpType.ACK)
        case _:
            return None


def _option(number: Option, value: bytes) -> bytes:
    return bytes((number, len(value))) + value


def _lease_options(request: DhcpRequest, lease: Lease) -> bytes:
    parts = [_option(Option.MASK, lease.address.netmask.packed)]
    if lease.router is not None:
        parts.append(_option(Option.ROUTER, lease.router.packed))
    if lease.dns:
        parts.append(_option(Option.DNS, b"".join(a.packed for a in lease.dns[:8])))
    if lease.hostname:
        parts.append(_option(Option.HOSTNAME, lease.hostname.encode("ascii", "replace")[:63]))
    parts.append(_option(Option.MTU, struct.pack(">H", lease.mtu_bytes)))
    if request.kind is not DhcpType.INFORM:
        parts.append(_option(Option.LEASE, struct.pack(">I", LEASE_S)))
        parts.append(_option(Option.RENEW, struct.pack(">I", LEASE_S // 2)))
        parts.append(_option(Option.REBIND, struct.pack(">I", LEASE_S * 7 // 8)))
    return b"".join(parts)


def _reply(request: DhcpRequest, lease: Lease, kind: DhcpType) -> bytes:
    yours = IPv4Address(0) if kind is DhcpType.NAK else lease.address.ip
    if request.kind is DhcpType.INFORM:
        yours = IPv4Address(0)
    options = _option(Option.TYPE, bytes((kind,))) + _option(Option.SERVER, lease.server.packed)
    if kind is not DhcpType.NAK:
        options += _lease_options(request, lease)
    client = IPv4Address(0) if kind is DhcpType.NAK else request.client
    body = struct.pack(
        ">BBBB4sHH4s4s4s4s16s192x",
        BOOTREPLY,
        1,
        6,
        0,
        request.transaction,
        0,
        request.flags,
        client.packed,
        yours.packed,
        lease.server.packed,
        bytes(4),
        request.mac,
    )
    body += MAGIC + options + bytes((Option.END,))
    body = body.ljust(300, b"\0")  # some clients drop shorter BOOTP
    return _wrap(request, lease, body, broadcast=kind is DhcpType.NAK)


def _wrap(request: DhcpRequest, lease: Lease, body: bytes, *, broadcast: bool) -> bytes:
    """Return the frame; to the broadcast address unless the client already has its own."""
    to_all = broadcast or bool(request.flags & FLAG_BROADCAST)
    if to_all:
        dmac, destination = b"\xff" * 6, IPv4Address("255.255.255.255")
    elif request.client != IPv4Address(0):
        dmac, destination = request.mac, request.client
    else:
        dmac, destination = request.mac, lease.address.ip
    source = lease.server
    udp = struct.pack(">HHHH", DHCP_SERVER_PORT, DHCP_CLIENT_PORT, 8 + len(body), 0)
    pseudo = source.packed + destination.packed + struct.pack(">HH", 17, 8 + len(body))
    udp = udp[:6] + struct.pack(">H", internet_checksum(pseudo + udp + body) or 0xFFFF)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(body), 0, 0, 64, 17, 0)
    addresses = source.packed + destination.packed
    ip = head[:10] + struct.pack(">H", internet_checksum(head + addresses)) + addresses
    return dmac + SERVER_MAC + b"\x08\x00" + ip + udp + body
