"""Exports: read back what was written, go on after any break, and let no changed byte pass."""

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuage.errors import CorruptData
from nuage.ids import VolumeId
from nuage.storage.exports import (
    PIECE_BYTES_MAX,
    ExportHeader,
    ExportState,
    Piece,
    begin,
    frame,
    pieces_of,
    read_header,
    read_pieces,
)

BLOCK = 512
BLOCK_COUNT = 16
HEADER = ExportHeader(
    volume_id=VolumeId("vol-0123456789abcdef"),
    name="v",
    size_bytes=BLOCK_COUNT * BLOCK,
    sequence=9,
    since=3,
)
# A byte a block: 0 is not exported, 1 is zeros, others are data. Cheap to draw on a busy machine.
BLOCKS = st.binary(min_size=BLOCK_COUNT, max_size=BLOCK_COUNT)


def test_only_an_export_of_other_sectors_than_512_bytes_names_them() -> None:
    assert b"sector" not in HEADER.line()
    native = begin(msgspec.structs.replace(HEADER, sector_bytes=4096))
    file = io.BytesIO(native.header.line() + frame(native, None))
    assert read_header(file, "file").header.sector_bytes == 4096
    assert read_header(io.BytesIO(HEADER.line()), "file").header == HEADER


def pieces(blocks: bytes) -> list[Piece]:
    found = []
    for number, content in enumerate(blocks):
        if content:
            data = bytes([content - 1]) * BLOCK
            found.append(Piece(number * BLOCK, BLOCK, data))
    return found


def export(blocks: bytes) -> bytes:
    state = begin(HEADER)
    parts = [HEADER.line()] + [frame(state, piece) for piece in pieces(blocks)]
    return b"".join([*parts, frame(state, None)])


def read(data: bytes) -> tuple[list[Piece], ExportState]:
    file = io.BytesIO(data)
    state = read_header(file, "test")
    return list(read_pieces(file, state, "test")), state


def meaning(found: list[Piece]) -> dict[int, bytes]:
    return {p.offset: bytes(p.length) if p.data is None else p.data for p in found}


@given(BLOCKS)
def test_what_was_exported_is_read_back(blocks: bytes) -> None:
    found, state = read(export(blocks))
    assert state.is_complete
    assert state.header == HEADER
    assert meaning(found) == meaning(pieces(blocks))


@given(BLOCKS, st.integers(min_value=0))
def test_a_file_that_broke_off_goes_on_to_the_same_bytes(blocks: bytes, cut: int) -> None:
    whole = export(blocks)
    cut = len(HEADER.line()) + cut % (len(whole) - len(HEADER.line()) + 1)
    kept, state = read(whole[:cut])
    held = whole[: state.end_bytes]
    rest = [piece for piece in pieces(blocks) if piece.offset >= state.next_offset]
    again = [frame(state, piece) for piece in rest]
    if not state.is_complete:
        again.append(frame(state, None))
    assert held + b"".join(again) == whole
    assert len(kept) + len(rest) == len(pieces(blocks))


@given(BLOCKS, st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_no_changed_byte_passes(blocks: bytes, at: int, flip: int) -> None:
    whole = bytearray(export(blocks))
    at %= len(whole)
    whole[at] ^= flip
    try:
        found, state = read(bytes(whole))
    except CorruptData:
        return
    # A length that became too long looks like a break: then it is not complete.
    assert not state.is_complete
    assert meaning(found).items() <= meaning(pieces(blocks)).items()


@given(
    st.lists(st.integers(min_value=1, max_value=3 * PIECE_BYTES_MAX // BLOCK), max_size=6),
    st.integers(min_value=0, max_value=2 * PIECE_BYTES_MAX),
)
def test_pieces_cover_their_runs_from_a_place_on(lengths: list[int], after: int) -> None:
    runs, at = [], 0
    for length in lengths:
        runs.append((at, length * BLOCK))
        at += length * BLOCK + BLOCK
    cut = list(pieces_of(tuple(runs), after))
    assert all(0 < length <= PIECE_BYTES_MAX for _, length in cut)
    covered = sum(length for _, length in cut)
    assert covered == sum(max(0, o + n - max(o, after)) for o, n in runs)


def test_another_files_bytes_are_no_export() -> None:
    for data in (b"", b"{}\n", b"QFI\xfb" * 100, HEADER.line().replace(b"/1", b"/2")):
        with pytest.raises(CorruptData):
            read(data)
