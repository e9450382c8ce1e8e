"""Larger pieces of a volume than a storage daemon takes in one line."""

from nuage.ids import VolumeId
from nuage.ionode.port import PIECE_BYTES_MAX, StorageDaemon


async def read_piece(daemon: StorageDaemon, view: str, offset: int, length: int) -> bytes:
    """Return `length` bytes of a view."""
    parts = []
    for at in range(offset, offset + length, PIECE_BYTES_MAX):
        part = min(PIECE_BYTES_MAX, offset + length - at)
        parts.append(await daemon.read_view(view, at, part))
    return b"".join(parts)


async def write_piece(daemon: StorageDaemon, volume_id: VolumeId, offset: int, data: bytes) -> None:
    """Write `data` through the head here."""
    for at in range(0, len(data), PIECE_BYTES_MAX):
        await daemon.write(volume_id, offset + at, data[at : at + PIECE_BYTES_MAX])
