"""The TLVs of IS-IS that TRILL uses (ISO 10589, RFC 5303, 5305, 5310, 7176, 7981).

Each TLV is a frozen value with its number; what we do not know becomes `UnknownTlv` and
survives a round trip untouched. Decoding is strict about lengths and says nothing about sense:
the machines judge that.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias, TypeVar

from nuage.network.forwarding import Label, Nickname
from nuage.network.wire import MalformedFrame, Reader

SystemId: TypeAlias = bytes  # 6 bytes; with the pseudonode byte behind it, 7
LspId: TypeAlias = bytes  # 8 bytes: system, pseudonode, fragment
TLV_VALUE_BYTES_MAX: Final = 255
NLPID_TRILL: Final = 0xC0
AREA_TRILL: Final = b"\x00"


@dataclass(frozen=True, slots=True)
class UnknownTlv:
    """A TLV (or sub-TLV) that we carry without understanding it."""

    number: int
    value: bytes


@dataclass(frozen=True, slots=True)
class AreaAddresses:
    """TLV 1. TRILL: one area, one zero byte."""

    number: ClassVar[int] = 1
    areas: tuple[bytes, ...] = (AREA_TRILL,)

    def encode(self) -> bytes:
        """Return the value."""
        return b"".join(bytes((len(area),)) + area for area in self.areas)

    @staticmethod
    def decode(reader: Reader) -> "AreaAddresses":
        """Parse the value."""
        areas = []
        while reader.remaining:
            areas.append(reader.take(reader.u8()))
        return AreaAddresses(tuple(areas))


@dataclass(frozen=True, slots=True)
class Padding:
    """TLV 8: zeros that make an MTU probe as long as it asks."""

    number: ClassVar[int] = 8
    size_bytes: int

    def encode(self) -> bytes:
        """Return the value."""
        return bytes(self.size_bytes)

    @staticmethod
    def decode(reader: Reader) -> "Padding":
        """Parse the value; what the padding holds does not matter."""
        return Padding(len(reader.rest()))


@dataclass(frozen=True, slots=True)
class LspSummary:
    """One line of TLV 9: an LSP by name, age and checksum."""

    lifetime_s: int
    lsp_id: LspId
    sequence: int
    checksum: int


@dataclass(frozen=True, slots=True)
class LspEntries:
    """TLV 9 of CSNP and PSNP; 15 lines at most."""

    number: ClassVar[int] = 9
    LINES_MAX: ClassVar[int] = 15
    lines: tuple[LspSummary, ...]

    def encode(self) -> bytes:
        """Return the value."""
        return b"".join(
            struct.pack(">H8sIH", line.lifetime_s, line.lsp_id, line.sequence, line.checksum)
            for line in self.lines
        )

    @staticmethod
    def decode(reader: Reader) -> "LspEntries":
        """Parse the value."""
        if reader.remaining % 16:
            raise MalformedFrame("tlv_length", "LSP entries")
        lines = (LspSummary(*fields) for fields in struct.iter_unpack(">H8sIH", reader.rest()))
        return LspEntries(tuple(lines))


@dataclass(frozen=True, slots=True)
class Authentication:
    """TLV 10. Type 3 is RFC 5310's: key id and digest. Others are kept as they came."""

    number: ClassVar[int] = 10
    GENERIC: ClassVar[int] = 3
    kind: int
    key_id: int
    digest: bytes

    def encode(self) -> bytes:
        """Return the value."""
        if self.kind == self.GENERIC:
            return struct.pack(">BH", self.kind, self.key_id) + self.digest
        return bytes((self.kind,)) + self.digest

    @staticmethod
    def decode(reader: Reader) -> "Authentication":
        """Parse the value."""
        kind = reader.u8()
        key_id = reader.u16() if kind == Authentication.GENERIC else 0
        return Authentication(kind, key_id, reader.rest())


@dataclass(frozen=True, slots=True)
class LspBufferSize:
    """TLV 14: the longest LSP the originator takes."""

    number: ClassVar[int] = 14
    size_bytes: int

    def encode(self) -> bytes:
        """Return the value."""
        return struct.pack(">H", self.size_bytes)

    @staticmethod
    def decode(reader: Reader) -> "LspBufferSize":
        """Parse the value."""
        size_bytes = reader.u16()
        reader.end("tlv_length")
        return LspBufferSize(size_bytes)


@dataclass(frozen=True, slots=True)
class Reach:
    """One neighbour of TLV 22: 7-byte ID, metric, tested MTU (sub-TLV 28) when known.

    `link` tells one of parallel links by the port IDs of this end and of the other (sub-TLV 4,
    RFC 5307 §1.1).
    """

    neighbour: bytes
    metric: int
    mtu_bytes: int | None = None
    link: tuple[int, int] | None = None
    others: tuple[UnknownTlv, ...] = ()


@dataclass(frozen=True, slots=True)
class ExtendedReach:
    """TLV 22: who is adjacent (RFC 5305), only adjacencies in state Report."""

    number: ClassVar[int] = 22
    LINK: ClassVar[int] = 4
    MTU: ClassVar[int] = 28
    neighbours: tuple[Reach, ...]

    def encode(self) -> bytes:
        """Return the value."""
        parts = []
        for reach in self.neighbours:
            subs = b""
            if reach.link is not None:
                subs += struct.pack(">BBII", self.LINK, 8, *reach.link)
            if reach.mtu_bytes is not None:
                subs += struct.pack(">BBBH", self.MTU, 3, 0, reach.mtu_bytes)
            subs += b"".join(bytes((sub.number, len(sub.value))) + sub.value
                             for sub in reach.others)  # fmt: skip
            parts.append(
                reach.neighbour + reach.metric.to_bytes(3, "big") + bytes((len(subs),)) + subs
            )
        return b"".join(parts)

    @staticmethod
    def decode(reader: Reader) -> "ExtendedReach":
        """Parse the value."""
        neighbours = []
        while reader.remaining:
            neighbour, metric = reader.take(7), reader.u24()
            subs = reader.sub(reader.u8())
            mtu_bytes: int | None = None
            link: tuple[int, int] | None = None
            others = []
            while subs.remaining:
                number, value = subs.u8(), subs.take(subs.u8())
                if number == ExtendedReach.MTU and len(value) == 3 and value[0] == 0:
                    mtu_bytes = int.from_bytes(value[1:], "big")
                elif number == ExtendedReach.LINK and len(value) == 8:
                    link = (int.from_bytes(value[:4], "big"), int.from_bytes(value[4:], "big"))
                else:
                    others.append(UnknownTlv(number, value))
            neighbours.append(Reach(neighbour, metric, mtu_bytes, link, tuple(others)))
        return ExtendedReach(tuple(neighbours))


@dataclass(frozen=True, slots=True)
class ProtocolsSupported:
    """TLV 129. TRILL is NLPID 0xC0."""

    number: ClassVar[int] = 129
    nlpids: bytes = bytes((NLPID_TRILL,))

    def encode(self) -> bytes:
        """Return the value."""
        return self.nlpids

    @staticmethod
    def decode(reader: Reader) -> "ProtocolsSupported":
        """Parse the value."""
        return ProtocolsSupported(reader.rest())


@dataclass(frozen=True, slots=True)
class Hostname:
    """TLV 137 (RFC 5301): a name for people."""

    number: ClassVar[int] = 137
    name: str

    def encode(self) -> bytes:
        """Return the value."""
        return self.name.encode("ascii", "replace")[:TLV_VALUE_BYTES_MAX]

    @staticmethod
    def decode(reader: Reader) -> "Hostname":
        """Parse the value."""
        raw = reader.rest()
        if not raw.isascii():
            raise MalformedFrame("hostname")
        return Hostname(raw.decode("ascii"))


@dataclass(frozen=True, slots=True)
class SpecialVlans:
    """Sub-TLV 1 of 143: who sends this Hello from which port (RFC 7176 §2.2.1)."""

    number: ClassVar[int] = 1
    port: int
    nickname: Nickname
    outer_vlan: int = 1
    designated_vlan: int = 1

    def encode(self) -> bytes:
        """Return the value; no flag is set: no forwarder, no access port, no trunk filter."""
        return struct.pack(">HHHH", self.port, self.nickname, self.outer_vlan, self.designated_vlan)

    @staticmethod
    def decode(reader: Reader) -> "SpecialVlans":
        """Parse the value; the flag bits are not for point-to-point links."""
        port, nickname, outer, designated = (reader.u16() for _ in range(4))
        reader.end("tlv_length")
        return SpecialVlans(port, Nickname(nickname), outer & 0xFFF, designated & 0xFFF)


@dataclass(frozen=True, slots=True)
class PortTrillVersion:
    """Sub-TLV 7 of 143: version and hop-by-hop capabilities of the port."""

    number: ClassVar[int] = 7
    version_max: int = 0
    capabilities: int = 0

    def encode(self) -> bytes:
        """Return the value."""
        return struct.pack(">BI", self.version_max, self.capabilities)

    @staticmethod
    def decode(reader: Reader) -> "PortTrillVersion":
        """Parse the value."""
        version, capabilities = reader.u8(), reader.u32()
        reader.end("tlv_length")
        return PortTrillVersion(version, capabilities)


PortSubTlv: TypeAlias = SpecialVlans | PortTrillVersion | UnknownTlv


@dataclass(frozen=True, slots=True)
class PortCapability:
    """TLV 143, multi-topology aware port capability: 4 reserved bits, topology:12, sub-TLVs."""

    number: ClassVar[int] = 143
    subs: tuple[PortSubTlv, ...]
    topology: int = 0

    def encode(self) -> bytes:
        """Return the value."""
        return struct.pack(">H", self.topology) + encode_tlvs(self.subs)

    @staticmethod
    def decode(reader: Reader) -> "PortCapability":
        """Parse the value."""
        topology = reader.u16() & 0xFFF
        return PortCapability(_decode_each(reader, _PORT_SUBS), topology)


class ThreeWayState:
    """States of RFC 5303's option, as numbers on the wire."""

    UP: Final = 0
    INITIALIZING: Final = 1
    DOWN: Final = 2


@dataclass(frozen=True, slots=True)
class ThreeWay:
    """TLV 240: what I see of you. The neighbour's half is there once we heard it."""

    number: ClassVar[int] = 240
    state: int
    circuit: int
    neighbour: SystemId | None = None
    neighbour_circuit: int | None = None

    def encode(self) -> bytes:
        """Return the value."""
        head = struct.pack(">BI", self.state, self.circuit)
        if self.neighbour is None:
            return head
        return head + self.neighbour + struct.pack(">I", self.neighbour_circuit or 0)

    @staticmethod
    def decode(reader: Reader) -> "ThreeWay":
        """Parse the value: 5 or 15 bytes."""
        state, circuit = reader.u8(), reader.u32()
        if not reader.remaining:
            return ThreeWay(state, circuit)
        neighbour, neighbour_circuit = reader.take(6), reader.u32()
        reader.end("tlv_length")
        return ThreeWay(state, circuit, neighbour, neighbour_circuit)


@dataclass(frozen=True, slots=True)
class NicknameRecord:
    """A nickname, who may keep it, and who would be tree root."""

    priority: int
    root_priority: int
    nickname: Nickname


@dataclass(frozen=True, slots=True)
class Nicknames:
    """Sub-TLV 6 of 242: priority:1, root priority:2, nickname:2, repeated."""

    number: ClassVar[int] = 6
    records: tuple[NicknameRecord, ...]

    def encode(self) -> bytes:
        """Return the value."""
        return b"".join(
            struct.pack(">BHH", record.priority, record.root_priority, record.nickname)
            for record in self.records
        )

    @staticmethod
    def decode(reader: Reader) -> "Nicknames":
        """Parse the value."""
        if reader.remaining % 5:
            raise MalformedFrame("tlv_length", "nicknames")
        return Nicknames(
            tuple(
                NicknameRecord(priority, root, Nickname(nickname))
                for priority, root, nickname in struct.iter_unpack(">BHH", reader.rest())
            )
        )


@dataclass(frozen=True, slots=True)
class Trees:
    """Sub-TLV 7 of 242: how many trees to compute, the most I can, how many I use."""

    number: ClassVar[int] = 7
    compute: int = 1
    compute_max: int = 1
    use: int = 1

    def encode(self) -> bytes:
        """Return the value."""
        return struct.pack(">HHH", self.compute, self.compute_max, self.use)

    @staticmethod
    def decode(reader: Reader) -> "Trees":
        """Parse the value."""
        compute, compute_max, use = reader.u16(), reader.u16(), reader.u16()
        reader.end("tlv_length")
        return Trees(compute, compute_max, use)


def _decode_nickname_list(reader: Reader) -> tuple[int, tuple[Nickname, ...]]:
    start = reader.u16()
    if reader.remaining % 2:
        raise MalformedFrame("tlv_length", "tree nicknames")
    return start, tuple(Nickname(n) for (n,) in struct.iter_unpack(">H", reader.rest()))


@dataclass(frozen=True, slots=True)
class TreeRoots:
    """Sub-TLV 8 of 242: the roots this RBridge, when of highest priority, asks for."""

    number: ClassVar[int] = 8
    start: int
    roots: tuple[Nickname, ...]

    def encode(self) -> bytes:
        """Return the value."""
        return struct.pack(f">{1 + len(self.roots)}H", self.start, *self.roots)

    @staticmethod
    def decode(reader: Reader) -> "TreeRoots":
        """Parse the value."""
        return TreeRoots(*_decode_nickname_list(reader))


@dataclass(frozen=True, slots=True)
class TreesUsed:
    """Sub-TLV 9 of 242: the trees this RBridge uses as ingress."""

    number: ClassVar[int] = 9
    start: int
    roots: tuple[Nickname, ...]

    def encode(self) -> bytes:
        """Return the value."""
        return struct.pack(f">{1 + len(self.roots)}H", self.start, *self.roots)

    @staticmethod
    def decode(reader: Reader) -> "TreesUsed":
        """Parse the value."""
        return TreesUsed(*_decode_nickname_list(reader))


@dataclass(frozen=True, slots=True)
class InterestedVlans:
    """Sub-TLV 10 of 242: a range of VLANs behind a nickname, and who wants multicast."""

    number: ClassVar[int] = 10
    nickname: Nickname
    first: int
    last: int
    flags: int = 0xC  # M4, M6: IPv4 and IPv6 multicast routers may be here
    lost_counter: int = 0
    roots: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """Return the value."""
        head = struct.pack(
            ">HHHI", self.nickname, self.flags << 12 | self.first, self.last, self.lost_counter
        )
        return head + b"".join(self.roots)

    @staticmethod
    def decode(reader: Reader) -> "InterestedVlans":
        """Parse the value."""
        nickname, first, last, lost = reader.u16(), reader.u16(), reader.u16(), reader.u32()
        return InterestedVlans(
            Nickname(nickname), first & 0xFFF, last & 0xFFF, first >> 12, lost, _roots(reader)
        )


def _roots(reader: Reader) -> tuple[bytes, ...]:
    """Return the 6-byte spanning tree root IDs that end sub-TLVs 10 and 15."""
    if reader.remaining % 6:
        raise MalformedFrame("tlv_length", "spanning tree roots")
    return tuple(reader.take(6) for _ in range(reader.remaining // 6))


@dataclass(frozen=True, slots=True)
class TrillVersion:
    """Sub-TLV 13 of 242: maximum version and capabilities; bit 1 is FGL-safe."""

    number: ClassVar[int] = 13
    FGL_SAFE: ClassVar[int] = 0x40000000
    version_max: int = 0
    capabilities: int = FGL_SAFE

    def encode(self) -> bytes:
        """Return the value."""
        return struct.pack(">BI", self.version_max, self.capabilities)

    @staticmethod
    def decode(reader: Reader) -> "TrillVersion":
        """Parse the value."""
        version, capabilities = reader.u8(), reader.u32()
        reader.end("tlv_length")
        return TrillVersion(version, capabilities)


@dataclass(frozen=True, slots=True)
class InterestedLabels:
    """Sub-TLV 15 of 242: fine-grained labels behind a nickname (RFC 7176 §2.3.8).

    ::

        nickname:16 | M4 M6 BM R:5 | label start:24 | label end or bitmap:24
        appointed forwarder lost counter:32 | spanning tree roots, 6 bytes each
    """

    number: ClassVar[int] = 15
    BITMAP: ClassVar[int] = 0x20
    nickname: Nickname
    first: Label
    last: int
    flags: int = 0xC0
    lost_counter: int = 0
    roots: tuple[bytes, ...] = ()

    def labels(self) -> tuple[tuple[int, int], ...]:
        """Return the inclusive ranges of labels that are meant."""
        if not self.flags & self.BITMAP:
            return ((self.first, self.last),) if self.first <= self.last else ()
        return tuple(
            (self.first + bit, self.first + bit) for bit in range(24) if self.last & 0x800000 >> bit
        )

    def encode(self) -> bytes:
        """Return the value."""
        return (
            struct.pack(">HI", self.nickname, self.flags << 24 | self.first)
            + self.last.to_bytes(3, "big")
            + self.lost_counter.to_bytes(4, "big")
            + b"".join(self.roots)
        )

    @staticmethod
    def decode(reader: Reader) -> "InterestedLabels":
        """Parse the value."""
        nickname, first, last, lost = reader.u16(), reader.u32(), reader.u24(), reader.u32()
        return InterestedLabels(
            Nickname(nickname), Label(first & 0xFFFFFF), last, first >> 24, lost, _roots(reader)
        )


CapabilitySubTlv: TypeAlias = (
    Nicknames
    | Trees
    | TreeRoots
    | TreesUsed
    | InterestedVlans
    | TrillVersion
    | InterestedLabels
    | UnknownTlv
)


@dataclass(frozen=True, slots=True)
class RouterCapability:
    """TLV 242: router ID:4, flags:1, sub-TLVs. TRILL clears the flags (area scope)."""

    number: ClassVar[int] = 242
    subs: tuple[CapabilitySubTlv, ...]
    router_id: int = 0
    flags: int = 0

    def encode(self) -> bytes:
        """Return the value."""
        return struct.pack(">IB", self.router_id, self.flags) + encode_tlvs(self.subs)

    @staticmethod
    def decode(reader: Reader) -> "RouterCapability":
        """Parse the value."""
        router_id, flags = reader.u32(), reader.u8()
        return RouterCapability(_decode_each(reader, _CAPABILITY_SUBS), router_id, flags)


Tlv: TypeAlias = (
    AreaAddresses
    | Padding
    | LspEntries
    | Authentication
    | LspBufferSize
    | ExtendedReach
    | ProtocolsSupported
    | Hostname
    | PortCapability
    | ThreeWay
    | RouterCapability
    | UnknownTlv
)
_T = TypeVar("_T")
_Decoders: TypeAlias = dict[int, Callable[[Reader], _T]]

_PORT_SUBS: Final[_Decoders[PortSubTlv]] = {
    SpecialVlans.number: SpecialVlans.decode,
    PortTrillVersion.number: PortTrillVersion.decode,
}
_CAPABILITY_SUBS: Final[_Decoders[CapabilitySubTlv]] = {
    cls.number: cls.decode
    for cls in (
        Nicknames, Trees, TreeRoots, TreesUsed, InterestedVlans, TrillVersion, InterestedLabels,
    )
}  # fmt: skip
_TLVS: Final[_Decoders[Tlv]] = {
    cls.number: cls.decode
    for cls in (
        AreaAddresses, Padding, LspEntries, Authentication, LspBufferSize, ExtendedReach,
        ProtocolsSupported, Hostname, PortCapability, ThreeWay, RouterCapability,
    )
}  # fmt: skip


def _decode_each(reader: Reader, decoders: _Decoders[_T]) -> tuple[_T | UnknownTlv, ...]:
    found: list[_T | UnknownTlv] = []
    while reader.remaining:
        number = reader.u8()
        value = reader.sub(reader.u8())
        decode = decoders.get(number)
        found.append(UnknownTlv(number, value.rest()) if decode is None else decode(value))
    return tuple(found)


def decode_tlvs(reader: Reader) -> tuple[Tlv, ...]:
    """Return all TLVs up to the end of `reader`.

    Raises:
        MalformedFrame: a length leads out of the PDU, or a known TLV has a wrong form.
    """
    return _decode_each(reader, _TLVS)


def encode_tlvs(tlvs: Iterable[Tlv | PortSubTlv | CapabilitySubTlv]) -> bytes:
    """Return the bytes of `tlvs`; a value longer than 255 bytes is a bug of ours."""
    parts = []
    for tlv in tlvs:
        value = tlv.value if isinstance(tlv, UnknownTlv) else tlv.encode()
        assert len(value) <= TLV_VALUE_BYTES_MAX, f"TLV {tlv.number} is {len(value)} bytes long"
        parts.append(bytes((tlv.number, len(value))) + value)
    return b"".join(parts)


def find_all(tlvs: Sequence[object], kind: type[_T]) -> list[_T]:
    """Return the TLVs of one kind, in order."""
    return [tlv for tlv in tlvs if isinstance(tlv, kind)]


def find_one(tlvs: Sequence[object], kind: type[_T]) -> _T | None:
    """Return the only TLV of a kind, or None.

    Raises:
        MalformedFrame: there are several where one is meant: contradictory, so nothing is taken.
    """
    found = find_all(tlvs, kind)
    if len(found) > 1:
        raise MalformedFrame("duplicate_tlv", kind.__name__)
    return found[0] if found else None
