"""IS-IS PDUs as TRILL carries them: Ethertype 0x22F4, no LLC (ISO 10589 §9, RFC 7176 §3–4).

::

    0x83 | header length | 1 | 0 (6-byte IDs) | type:5 | 1 | 0 | 0 (3 areas)      8 bytes
    17 P2P Hello   circuit type:8  source:48  holding time:16  length:16  circuit ID:8
    18 LSP         length:16  lifetime:16  LSP ID:64  sequence:32  checksum:16  P ATT OL type:8
    24 CSNP        length:16  source:56  first LSP ID:64  last LSP ID:64
    26 PSNP        length:16  source:56
    23 MTU probe   length:16  probe ID:48  probe source:48  ack source:48
    28 MTU ack     the same

then TLVs. The LSP checksum covers the LSP ID to the end; lifetime and what stands before it
may change on the way. Level 1 only; LAN Hellos (15) are not spoken: point-to-point trunks.
"""

import struct
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from nuage.network.isis_tlv import LspId, SystemId, Tlv, decode_tlvs, encode_tlvs
from nuage.network.trill_frame import ALL_ISIS_RBRIDGES, ETHERTYPE_L2_ISIS
from nuage.network.wire import MalformedFrame, Reader, fletcher_checksum, fletcher_is_good

IRPD: Final = 0x83
KIND_AT: Final = 4
HELLO: Final = 17
LSP: Final = 18
MTU_PROBE: Final = 23
CSNP: Final = 24
PSNP: Final = 26
MTU_ACK: Final = 28
HEADER_BYTES: Final = {HELLO: 20, LSP: 27, MTU_PROBE: 28, CSNP: 33, PSNP: 17, MTU_ACK: 28}
PDU_BYTES_MAX: Final = 1470  # Sz of RFC 6325 §4.3: what every link of a campus must carry
CHECKSUM_OFFSET: Final = 24
LIFETIME_OFFSET: Final = 10
CHECKED_FROM: Final = 12  # the LSP ID
SEQUENCE_MAX: Final = 0xFFFFFFFF
LSP_FLAG_OVERLOAD: Final = 0x04
LSP_LEVEL_1: Final = 0x01


@dataclass(frozen=True, slots=True)
class Hello:
    """A point-to-point Hello: I am here, this is what I see."""

    source: SystemId
    holding_s: int
    tlvs: tuple[Tlv, ...]
    circuit_id: int = 0
    circuit_type: int = 1


@dataclass(frozen=True, slots=True)
class Lsp:
    """One fragment of what a RBridge says of itself. `checksum` 0: to be computed."""

    lsp_id: LspId
    sequence: int
    lifetime_s: int
    tlvs: tuple[Tlv, ...]
    flags: int = LSP_LEVEL_1
    checksum: int = 0

    @property
    def overload(self) -> bool:
        """Tell whether the originator asks not to be used for transit."""
        return bool(self.flags & LSP_FLAG_OVERLOAD)


@dataclass(frozen=True, slots=True)
class Csnp:
    """All LSPs the sender has between two LSP IDs."""

    source: bytes
    first: LspId
    last: LspId
    tlvs: tuple[Tlv, ...]


@dataclass(frozen=True, slots=True)
class Psnp:
    """Some LSPs: acknowledged (as held) or asked for (sequence 0)."""

    source: bytes
    tlvs: tuple[Tlv, ...]


@dataclass(frozen=True, slots=True)
class MtuPdu:
    """An MTU probe (RFC 7176 §3), or its acknowledgement of the same length."""

    is_ack: bool
    probe_id: bytes
    probe_source: SystemId
    ack_source: SystemId
    tlvs: tuple[Tlv, ...]


Pdu: TypeAlias = Hello | Lsp | Csnp | Psnp | MtuPdu


def _assemble(kind: int, fixed: bytes, tlvs: bytes, *, length_at: int) -> bytes:
    """Return the PDU; the length goes at `length_at` of the bytes after the common header."""
    header = HEADER_BYTES[kind]
    length = header + len(tlvs)
    body = fixed[:length_at] + struct.pack(">H", length) + fixed[length_at:]
    return bytes((IRPD, header, 1, 0, kind, 1, 0, 0)) + body + tlvs


def encode_pdu(pdu: Pdu) -> bytes:
    """Return the bytes of `pdu`, checksum included."""
    tlvs = encode_tlvs(pdu.tlvs)
    match pdu:
        case Hello():
            fixed = struct.pack(
                ">B6sHB", pdu.circuit_type, pdu.source, pdu.holding_s, pdu.circuit_id
            )
            return _assemble(17, fixed, tlvs, length_at=9)
        case Lsp():
            fixed = struct.pack(
                ">H8sIHB", pdu.lifetime_s, pdu.lsp_id, pdu.sequence, pdu.checksum, pdu.flags
            )
            raw = _assemble(18, fixed, tlvs, length_at=0)
            return raw if pdu.checksum else with_checksum(raw)
        case Csnp():
            return _assemble(24, pdu.source + pdu.first + pdu.last, tlvs, length_at=0)
        case Psnp():
            return _assemble(26, pdu.source, tlvs, length_at=0)
        case MtuPdu():
            fixed = pdu.probe_id + pdu.probe_source + pdu.ack_source
            return _assemble(28 if pdu.is_ack else 23, fixed, tlvs, length_at=0)


def with_checksum(raw: bytes) -> bytes:
    """Return the LSP `raw` with its checksum put in."""
    checksum = fletcher_checksum(raw[CHECKED_FROM:], CHECKSUM_OFFSET - CHECKED_FROM)
    return raw[:CHECKSUM_OFFSET] + struct.pack(">H", checksum) + raw[CHECKSUM_OFFSET + 2 :]


def with_lifetime(raw: bytes, lifetime_s: int) -> bytes:
    """Return the LSP `raw` with another remaining lifetime; nothing else may change in transit."""
    return raw[:LIFETIME_OFFSET] + struct.pack(">H", lifetime_s) + raw[LIFETIME_OFFSET + 2 :]


def decode_pdu(data: bytes) -> tuple[Pdu, bytes]:
    """Return the PDU at the start of `data` and its exact bytes, Ethernet padding cut off.

    Raises:
        MalformedFrame: not IS-IS for TRILL, lengths that contradict, a bad LSP checksum.
    """
    raw = whole_pdu(data)
    return read_pdu(raw), raw


def whole_pdu(data: bytes) -> bytes:
    """Return the exact bytes of the PDU at the start of `data`, of which only the header was read.

    Raises:
        MalformedFrame: not IS-IS for TRILL, or its length is not that of what came.
    """
    if len(data) < 8:
        raise MalformedFrame("truncated")
    irpd, header, version, id_length, kind, version2, _, areas = data[:8]
    kind &= 0x1F
    if irpd != IRPD or version != 1 or version2 != 1:
        raise MalformedFrame("isis_header")
    if id_length not in (0, 6) or areas not in (0, 3):
        raise MalformedFrame("isis_header", "ID length or area count")
    if HEADER_BYTES.get(kind) != header:
        raise MalformedFrame("pdu_type", f"type {kind}, header length {header}")
    if len(data) < header:
        raise MalformedFrame("truncated")
    length_at = 17 if kind == 17 else 8
    length = int.from_bytes(data[length_at : length_at + 2], "big")
    if not header <= length <= len(data):
        raise MalformedFrame("pdu_length")
    return data[:length]


def kind_of(raw: bytes) -> int:
    """Return the type of a whole PDU."""
    return raw[KIND_AT] & 0x1F


def read_pdu(raw: bytes) -> Pdu:
    """Return what a whole PDU says.

    Raises:
        MalformedFrame: TLVs that contradict their lengths, a bad LSP checksum.
    """
    kind, tlvs = kind_of(raw), decode_tlvs(Reader(raw, raw[1]))
    if kind == 17:
        circuit_type, source, holding_s, _, circuit_id = struct.unpack_from(">B6sHHB", raw, 8)
        return Hello(source, holding_s, tlvs, circuit_id, circuit_type & 3)
    if kind == 18:
        lifetime_s, lsp_id, sequence, checksum, flags = struct.unpack_from(">H8sIHB", raw, 10)
        # A purge may carry any checksum (ISO 10589 §7.3.15.1); all others must verify.
        if lifetime_s and (checksum == 0 or not fletcher_is_good(raw[CHECKED_FROM:])):
            raise MalformedFrame("lsp_checksum")
        return Lsp(lsp_id, sequence, lifetime_s, tlvs, flags, checksum)
    if kind == 24:
        source, first, last = struct.unpack_from(">7s8s8s", raw, 10)
        return Csnp(source, first, last, tlvs)
    if kind == 26:
        return Psnp(raw[10:17], tlvs)
    probe_id, probe_source, ack_source = struct.unpack_from(">6s6s6s", raw, 10)
    return MtuPdu(kind == 28, probe_id, probe_source, ack_source, tlvs)


def isis_frame(raw: bytes, *, smac: bytes, dmac: bytes = ALL_ISIS_RBRIDGES) -> bytes:
    """Return the Ethernet frame around a PDU."""
    return dmac + smac + struct.pack(">H", ETHERTYPE_L2_ISIS) + raw


def purge_of(lsp: Lsp) -> Lsp:
    """Return the purge of `lsp`: its header, no lifetime, no content (RFC 5304 §2)."""
    return replace(lsp, lifetime_s=0, tlvs=(), checksum=0)
