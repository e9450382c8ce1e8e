"""A volume's past moment as a stream: whole, or what changed since an earlier one.

::

    header   JSON object and LF: format, volume_id, name, size_bytes, sequence, since;
             sector_bytes where it is not 512
    frame    kind u8 | offset u64 | length u32 | data (kind 1 only) | chain 32     big-endian
    kinds    1 data   2 zeros   3 end (length 0)

    chain = SHA-256(chain before | kind | offset | length | data); the first is SHA-256(header line)

Any part of a file can be checked from its beginning, so that an export or import that broke off
goes on after the last whole frame; and nothing is written to a volume before its frame is checked.
The end frame tells a whole stream from a part. This module reads and writes bytes; who moves them
is elsewhere.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import msgspec

from nuage.errors import UNREADABLE, CorruptData
from nuage.ids import VolumeId
from nuage.units import SECTOR_BYTES

FORMAT: Final = "nuage-export/1"
HEADER_BYTES_MAX: Final = 4096
PIECE_BYTES_MAX: Final = 512 * 1024  # in base64 it fits in one request of the API
KIND_DATA: Final = 1
KIND_ZEROS: Final = 2
KIND_END: Final = 3
_FRAME: Final = struct.Struct(">BQI")
CHAIN_BYTES: Final = 32


class ExportHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What an export is of: the state after write `sequence`, since write `since` (0: all)."""

    volume_id: VolumeId
    name: str
    size_bytes: int
    sequence: int
    since: int = 0
    format: str = FORMAT
    sector_bytes: int = SECTOR_BYTES

    def line(self) -> bytes:
        """Return the header as it stands in the file."""
        fields = msgspec.structs.asdict(self)
        if self.sector_bytes == SECTOR_BYTES:  # as ever, so that who knows no other reads it
            del fields["sector_bytes"]
        return msgspec.json.encode(fields) + b"\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a volume; `data` None: zeros."""

    offset: int
    length: int
    data: bytes | None


@dataclass(slots=True)
class ExportState:
    """How far a file is whole: its header, the chain there, where the next frame goes."""

    header: ExportHeader
    chain: bytes
    end_bytes: int
    next_offset: int = 0  # of the volume: all before it is in the file
    is_complete: bool = False


def begin(header: ExportHeader) -> ExportState:
    """Return the state of a file that has only its header."""
    line = header.line()
    return ExportState(header, hashlib.sha256(line).digest(), len(line))


def frame(state: ExportState, piece: Piece | None) -> bytes:
    """Return the next frame, and move `state` past it; None ends the stream."""
    if piece is None:
        head, data = _FRAME.pack(KIND_END, state.header.size_bytes, 0), b""
    elif piece.data is None or not any(piece.data):
        head, data = _FRAME.pack(KIND_ZEROS, piece.offset, piece.length), b""
    else:
        head, data = _FRAME.pack(KIND_DATA, piece.offset, piece.length), piece.data
    _advance(state, head, data)
    return head + data + state.chain


def _advance(state: ExportState, head: bytes, data: bytes) -> None:
    kind, offset, length = _FRAME.unpack(head)
    state.chain = hashlib.sha256(state.chain + head + data).digest()
    state.end_bytes += len(head) + len(data) + CHAIN_BYTES
    state.next_offset = offset + length
    state.is_complete = kind == KIND_END


def read_header(file: BinaryIO, where: str) -> ExportState:
    """Read a file's header.

    Raises:
        CorruptData: it is no export of ours.
    """
    line = file.readline(HEADER_BYTES_MAX)
    try:
        header = msgspec.json.decode(line, type=ExportHeader)
    except UNREADABLE as error:
        raise CorruptData(f"not an export of a volume: {error}", where=where) from None
    if not line.endswith(b"\n") or header.format != FORMAT or header.line() != line:
        raise CorruptData(f"not an export of the form {FORMAT}", where=where)
    return begin(header)


def read_pieces(file: BinaryIO, state: ExportState, where: str) -> Iterator[Piece]:
    """Yield the pieces that are whole and in their place, moving `state` past each.

    It ends at the end frame (`state.is_complete`) or where the file breaks off.

    Raises:
        CorruptData: a whole frame does not fit the chain, or lies outside the volume.
    """
    while not state.is_complete:
        head = file.read(_FRAME.size)
        if len(head) < _FRAME.size:
            return
        kind, offset, length = _FRAME.unpack(head)
        is_sound = (
            kind in (KIND_DATA, KIND_ZEROS, KIND_END)
            and offset >= state.next_offset
            and offset + length <= state.header.size_bytes
            and (kind != KIND_DATA or length <= PIECE_BYTES_MAX)
            and (kind != KIND_END or length == 0)
        )
        if not is_sound:
            raise CorruptData(f"a frame at byte {state.end_bytes} makes no sense", where=where)
        data = file.read(length) if kind == KIND_DATA else b""
        chain = file.read(CHAIN_BYTES)
        if len(chain) < CHAIN_BYTES:
            return
        if hashlib.sha256(state.chain + head + data).digest() != chain:
            raise CorruptData(f"the chain breaks at byte {state.end_bytes}", where=where)
        _advance(state, head, data)
        if kind != KIND_END:
            yield Piece(offset, length, data if kind == KIND_DATA else None)


def pieces_of(runs: tuple[tuple[int, int], ...], after: int) -> Iterator[tuple[int, int]]:
    """Cut runs (offset, length) into pieces of at most `PIECE_BYTES_MAX`, from `after` on."""
    for offset, length in runs:
        end = offset + length
        at = max(offset, after)
        while at < end:
            part = min(PIECE_BYTES_MAX, end - at)
            yield at, part
            at += part
