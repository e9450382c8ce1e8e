"""LISP on the wire: data header (RFC 9300 §5), control messages (RFC 9301 §5, 9437, 8060).

::

    data, UDP 4341     N L E V I R KK:2 | nonce:24 | instance-ID:24 | locator status bits:8
    control, UDP 4342  type:4 in the first byte
      1 Map-Request    A M P S p s R I | reserved:5.. L D IRC:5 | record count:8, nonce:64,
                       source EID, ITR-RLOC × (IRC + 1), {N:1 reserved:7 mask:8 EID} × count,
                       with I: xTR-ID:128 site-ID:64
      2 Map-Reply      P E S | record count:8, nonce:64, records
      3 Map-Register   P S I … M | record count:8, nonce:64, key ID:8, algorithm:8, length:16,
                       authentication data, records, with I: xTR-ID:128 site-ID:64
      4 Map-Notify     the same body without P, S, M      5 Map-Notify-Ack: the same again
      8 Encapsulated   header 4, IP, UDP, message
    record             TTL minutes:32, locators:8, mask:8, ACT:3 A:1 reserved:12,
                       reserved:4 map-version:12, EID, locators
    locator            priority, weight, multicast priority and weight:8 each, flags:16 (L p R),
                       AFI and address
    EID with instance  AFI 16387, 0, 0, type 2, mask 32, length:16, instance-ID:32, AFI, address

Authentication: HMAC over the whole message with the authentication data zero. Algorithm 1 is
HMAC-SHA-1 (20 bytes, as Open Overlay Router wants it; 12 are accepted), 2 is
HMAC-SHA-256-128 (16 bytes; 32 are accepted).
"""

import hmac
import struct
from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from typing import Final, TypeAlias

from nuage.network.forwarding import MapAction
from nuage.network.wire import MalformedFrame, Reader, internet_checksum

LISP_CONTROL_PORT: Final = 4342
AFI_IPV4: Final = 1
AFI_IPV6: Final = 2
AFI_LCAF: Final = 16387
LCAF_INSTANCE: Final = 2
RECORDS_MAX: Final = 64  # in one message; ours carry one or two
LOCATORS_MAX: Final = 32
ALGORITHMS: Final = {1: ("sha1", 20, (12, 20)), 2: ("sha256", 16, (16, 32))}

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Eid:
    """An EID prefix of an instance."""

    instance_id: int
    prefix: Prefix

    def covers(self, other: "Eid") -> bool:
        """Tell whether `other` lies within."""
        a, b = self.prefix, other.prefix
        if self.instance_id != other.instance_id:
            return False
        if isinstance(a, IPv4Network):
            return isinstance(b, IPv4Network) and b.subnet_of(a)
        return isinstance(b, IPv6Network) and b.subnet_of(a)


def host_eid(instance_id: int, address: Address) -> Eid:
    """Return the EID of one address (/32 or /128)."""
    return Eid(instance_id, ip_network(address))


@dataclass(frozen=True, slots=True)
class Locator:
    """One RLOC of a record. L: of the sender; p: probed; R: reachable."""

    address: Address
    priority: int = 1
    weight: int = 100
    local: bool = True
    probed: bool = False
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class MapRecord:
    """A mapping. Without locators `action` says what to do (a negative reply)."""

    eid: Eid
    locators: tuple[Locator, ...]
    ttl_minutes: int = 10
    action: MapAction = MapAction.NO_ACTION
    authoritative: bool = True
    version: int = 0


@dataclass(frozen=True, slots=True)
class XtrName:
    """Who sends: 128-bit xTR-ID and 64-bit site-ID."""

    xtr_id: bytes
    site_id: bytes = bytes(8)


@dataclass(frozen=True, slots=True)
class MapRequest:
    """Where is this EID? Also the probe, the SMR, and with `notify` the subscription."""

    nonce: int
    source_eid: Eid | None
    itr_rlocs: tuple[Address, ...]
    eids: tuple[Eid, ...]
    probe: bool = False
    smr: bool = False
    smr_invoked: bool = False
    notify: bool = False
    sender: XtrName | None = None


@dataclass(frozen=True, slots=True)
class MapReply:
    """The answer; its nonce is the request's."""

    nonce: int
    records: tuple[MapRecord, ...]
    probe: bool = False


@dataclass(frozen=True, slots=True)
class MapRegister:
    """An ETR tells the map-server what it has."""

    nonce: int
    records: tuple[MapRecord, ...]
    proxy_reply: bool = True
    want_notify: bool = True
    sender: XtrName | None = None


@dataclass(frozen=True, slots=True)
class MapNotify:
    """The map-server confirms, or tells what moved. `ack` is the receiver's thanks."""

    nonce: int
    records: tuple[MapRecord, ...]
    ack: bool = False
    sender: XtrName | None = None


Signed: TypeAlias = MapRegister | MapNotify
Message: TypeAlias = MapRequest | MapReply | MapRegister | MapNotify


@dataclass(frozen=True, slots=True)
class LispKey:
    """A shared secret and its algorithm (1 or 2).

    `old`, secrets behind their key IDs, are accepted besides while keys roll.
    """

    secret: bytes
    algorithm: int = 2
    key_id: int = 0
    old: tuple[tuple[int, bytes], ...] = ()

    def __repr__(self) -> str:
        return f"LispKey(algorithm={self.algorithm}, key_id={self.key_id})"


@dataclass(frozen=True, slots=True)
class Encapsulated:
    """A Map-Request on its way through resolver and server; the inner addresses."""

    source: Address
    destination: Address
    source_port: int
    message: bytes


# ---- addresses ----


def _encode_address(address: Address) -> bytes:
    afi = AFI_IPV4 if isinstance(address, IPv4Address) else AFI_IPV6
    return struct.pack(">H", afi) + address.packed


def _encode_eid(eid: Eid) -> bytes:
    plain = _encode_address(eid.prefix.network_address)
    if eid.instance_id == 0:
        return plain
    head = struct.pack(">HBBBBH", AFI_LCAF, 0, 0, LCAF_INSTANCE, 32, 4 + len(plain))
    return head + struct.pack(">I", eid.instance_id) + plain


def _decode_address(reader: Reader, afi: int) -> Address:
    if afi == AFI_IPV4:
        return IPv4Address(reader.take(4))
    if afi == AFI_IPV6:
        return IPv6Address(reader.take(16))
    raise MalformedFrame("lisp_afi", str(afi))


def _decode_eid(reader: Reader, mask: int | None) -> Eid | None:
    """Return an EID; None for AFI 0 (no EID). `mask` None: a single address."""
    afi, instance_id = reader.u16(), 0
    if afi == 0:
        return None
    if afi == AFI_LCAF:
        reader.take(2)
        kind, _, length = reader.u8(), reader.u8(), reader.u16()
        if kind != LCAF_INSTANCE:
            raise MalformedFrame("lisp_lcaf", f"type {kind}")
        inner = reader.sub(length)
        instance_id, afi = inner.u32(), inner.u16()
        address = _decode_address(inner, afi)
        inner.end("lisp_lcaf")
    else:
        address = _decode_address(reader, afi)
    bits = address.max_prefixlen if mask is None else mask
    if bits > address.max_prefixlen or instance_id > 0xFFFFFF:
        raise MalformedFrame("lisp_eid", f"/{bits} of instance {instance_id}")
    return Eid(instance_id, ip_network((address, bits), strict=False))


# ---- records ----


def _encode_record(record: MapRecord) -> bytes:
    head = struct.pack(
        ">IBBHH",
        record.ttl_minutes,
        len(record.locators),
        record.eid.prefix.prefixlen,
        record.action.value << 13 | record.authoritative << 12,
        record.version & 0xFFF,
    )
    locators = b"".join(
        struct.pack(
            ">BBBBH",
            locator.priority,
            locator.weight,
            255,
            0,
            locator.local << 2 | locator.probed << 1 | locator.reachable,
        )
        + _encode_address(locator.address)
        for locator in record.locators
    )
    return head + _encode_eid(record.eid) + locators


def _decode_record(reader: Reader) -> MapRecord:
    ttl, count, mask, action, version = (
        reader.u32(), reader.u8(), reader.u8(), reader.u16(), reader.u16(),
    )  # fmt: skip
    if count > LOCATORS_MAX:
        raise MalformedFrame("lisp_locators", str(count))
    eid = _decode_eid(reader, mask)
    if eid is None:
        raise MalformedFrame("lisp_eid", "a record without EID")
    locators = []
    for _ in range(count):
        priority, weight, _, _, flags = (
            reader.u8(), reader.u8(), reader.u8(), reader.u8(), reader.u16(),
        )  # fmt: skip
        address = _decode_address(reader, reader.u16())
        locators.append(
            Locator(address, priority, weight, bool(flags & 4), bool(flags & 2), bool(flags & 1))
        )
    try:
        what = MapAction(action >> 13)
    except ValueError:
        what = MapAction.NO_ACTION
    return MapRecord(eid, tuple(locators), ttl, what, bool(action & 0x1000), version & 0xFFF)


def _decode_records(reader: Reader, count: int) -> tuple[MapRecord, ...]:
    if count > RECORDS_MAX:
        raise MalformedFrame("lisp_records", str(count))
    return tuple(_decode_record(reader) for _ in range(count))


# ---- messages ----


def encode_request(request: MapRequest) -> bytes:
    """Return the bytes of a Map-Request."""
    first = (
        1 << 28
        | request.probe << 25
        | request.smr << 24
        | request.smr_invoked << 22
        | (request.sender is not None) << 20
        | (len(request.itr_rlocs) - 1) << 8
        | len(request.eids)
    )
    parts = [struct.pack(">IQ", first, request.nonce)]
    if request.source_eid is None:
        parts.append(b"\0\0")
    else:
        parts.append(_encode_eid(request.source_eid))
    parts.extend(_encode_address(rloc) for rloc in request.itr_rlocs)
    parts.extend(
        bytes((request.notify << 7, eid.prefix.prefixlen)) + _encode_eid(eid)
        for eid in request.eids
    )
    if request.sender is not None:
        parts.append(request.sender.xtr_id + request.sender.site_id)
    return b"".join(parts)


def encode_reply(reply: MapReply) -> bytes:
    """Return the bytes of a Map-Reply."""
    first = 2 << 28 | reply.probe << 27 | len(reply.records)
    return struct.pack(">IQ", first, reply.nonce) + b"".join(map(_encode_record, reply.records))


def encode_signed(message: Signed, key: LispKey) -> bytes:
    """Return the bytes of a Map-Register, Map-Notify or its acknowledgement, authenticated."""
    if isinstance(message, MapRegister):
        first = (
            3 << 28
            | message.proxy_reply << 27
            | (message.sender is not None) << 25
            | message.want_notify << 8
        )
    else:
        first = (5 if message.ack else 4) << 28 | (message.sender is not None) << 27
    name, length, _ = ALGORITHMS[key.algorithm]
    head = struct.pack(
        ">IQBBH", first | len(message.records), message.nonce, key.key_id, key.algorithm, length
    )
    body = b"".join(map(_encode_record, message.records))
    if message.sender is not None:
        body += message.sender.xtr_id + message.sender.site_id
    digest = hmac.digest(key.secret, head + bytes(length) + body, name)[:length]
    return head + digest + body


def verify_signed(data: bytes, key: LispKey) -> None:
    """Check the authentication of a decoded Map-Register or Map-Notify.

    Raises:
        MalformedFrame: cause ``lisp_auth``.
    """
    reader = Reader(data)
    reader.take(12)
    key_id, algorithm, length = reader.u8(), reader.u8(), reader.u16()
    name, _, lengths = ALGORITHMS.get(algorithm, ("", 0, ()))
    secret = {**dict(key.old), key.key_id: key.secret}.get(key_id)
    if algorithm != key.algorithm or secret is None or length not in lengths:
        raise MalformedFrame("lisp_auth", "another key or algorithm")
    digest = reader.take(length)
    blank = data[:16] + bytes(length) + data[16 + length :]
    if not hmac.compare_digest(hmac.digest(secret, blank, name)[:length], digest):
        raise MalformedFrame("lisp_auth", "wrong digest")


def with_algorithm_of(data: bytes, key: LispKey) -> LispKey:
    """Return `key` with the algorithm that a decoded, signed message names, if we know it."""
    algorithm = data[13]
    return replace(key, algorithm=algorithm) if algorithm in ALGORITHMS else key


def decode_message(data: bytes) -> Message:
    """Take a control message apart; authentication is `verify_signed`'s business.

    Raises:
        MalformedFrame: anything but a whole message of types 1 to 5.
    """
    reader = Reader(data)
    first = reader.u32()
    kind = first >> 28
    nonce = reader.u64()
    if kind == 1:
        return _decode_request(reader, first, nonce)
    if kind == 2:
        return MapReply(nonce, _decode_records(reader, first & 0xFF), bool(first & 1 << 27))
    if kind not in (3, 4, 5):
        raise MalformedFrame("lisp_type", str(kind))
    reader.take(2)
    reader.take(reader.u16())
    records = _decode_records(reader, first & 0xFF)
    has_sender = first & (1 << 25 if kind == 3 else 1 << 27)
    sender = XtrName(reader.take(16), reader.take(8)) if has_sender else None
    if kind == 3:
        return MapRegister(nonce, records, bool(first & 1 << 27), bool(first & 0x100), sender)
    return MapNotify(nonce, records, kind == 5, sender)


def _decode_request(reader: Reader, first: int, nonce: int) -> MapRequest:
    source = _decode_eid(reader, None)
    rlocs = tuple(_decode_address(reader, reader.u16()) for _ in range((first >> 8 & 0x1F) + 1))
    count = first & 0xFF
    if not 0 < count <= RECORDS_MAX:
        raise MalformedFrame("lisp_records", str(count))
    eids, notify = [], False
    for _ in range(count):
        notify = bool(reader.u8() & 0x80) or notify
        eid = _decode_eid(reader, reader.u8())
        if eid is None:
            raise MalformedFrame("lisp_eid", "asks for no EID")
        eids.append(eid)
    sender = XtrName(reader.take(16), reader.take(8)) if first & 1 << 20 else None
    return MapRequest(
        nonce=nonce,
        source_eid=source,
        itr_rlocs=rlocs,
        eids=tuple(eids),
        probe=bool(first & 1 << 25),
        smr=bool(first & 1 << 24),
        smr_invoked=bool(first & 1 << 22),
        notify=notify,
        sender=sender,
    )


# ---- encapsulation ----


def encode_encapsulated(inner: Encapsulated) -> bytes:
    """Return an Encapsulated Control Message around a Map-Request."""
    udp_bytes = 8 + len(inner.message)
    source, destination = inner.source.packed, inner.destination.packed
    udp = struct.pack(">HHHH", inner.source_port, LISP_CONTROL_PORT, udp_bytes, 0)
    pseudo = source + destination + struct.pack(">II", udp_bytes, 17)
    checksum = internet_checksum(pseudo + udp + inner.message) or 0xFFFF
    udp = udp[:6] + struct.pack(">H", checksum)
    if isinstance(inner.source, IPv4Address):
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + udp_bytes, 0, 0, 64, 17, 0)
        ip = head[:10] + struct.pack(">H", internet_checksum(head + source + destination))
        ip += source + destination
    else:
        ip = struct.pack(">IHBB", 6 << 28, udp_bytes, 17, 64) + source + destination
    return struct.pack(">I", 8 << 28) + ip + udp + inner.message


def decode_encapsulated(data: bytes) -> Encapsulated:
    """Take an Encapsulated Control Message apart.

    Raises:
        MalformedFrame: not one, or not UDP in plain IP.
    """
    reader = Reader(data)
    if reader.u32() >> 28 != 8:
        raise MalformedFrame("lisp_type")
    version = reader.u8()
    source: Address
    destination: Address
    if version >> 4 == 4:
        reader.take(8)
        protocol = reader.u8()
        reader.take(2)
        source, destination = IPv4Address(reader.take(4)), IPv4Address(reader.take(4))
        reader.take((version & 0xF) * 4 - 20)
    elif version >> 4 == 6:
        reader.take(5)
        protocol = reader.u8()
        reader.u8()
        source, destination = IPv6Address(reader.take(16)), IPv6Address(reader.take(16))
    else:
        raise MalformedFrame("lisp_ecm", "neither IPv4 nor IPv6")
    if protocol != 17:
        raise MalformedFrame("lisp_ecm", "not UDP")
    source_port = reader.u16()
    reader.u16()
    length = reader.u16()
    reader.u16()
    return Encapsulated(source, destination, source_port, reader.take(length - 8))


def with_probed(record: MapRecord, address: Address) -> MapRecord:
    """Return `record` with the locator that was probed marked (p bit)."""
    return replace(
        record,
        locators=tuple(
            replace(locator, probed=locator.address == address) for locator in record.locators
        ),
    )
