"""Units, spelled. Sizes are bytes unless the name says `mib`; power watts; energy joules."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB
SECTOR_BYTES: Final = 512  # of a disk whose maker says nothing else (512e)
SECTORS_BYTES: Final = (SECTOR_BYTES, 4096)
JOULES_PER_KWH: Final = 3_600_000

_SUFFIXES: Final = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": GIB, "gib": GIB, "t": TIB, "tib": TIB,
    "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
}  # fmt: skip


def parse_size(text: str) -> int:
    """Return the bytes that ``10G``, ``512MiB`` or ``4096`` stand for.

    A bare letter is binary (``G`` = GiB), as `qemu-img` reads it; ``GB`` is decimal.

    Raises:
        ValueError: the text is not a size; the message says what would be.
    """
    stripped = text.strip().lower()
    digits = stripped.rstrip("abcdefghijklmnopqrstuvwxyz ")
    suffix = stripped[len(digits) :].strip()
    try:
        factor = _SUFFIXES[suffix]
        size_bytes = float(digits) * factor
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not a size; write for instance 512M, 10G or 4096") from None
    if size_bytes < 0 or size_bytes != int(size_bytes):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size_bytes)


def format_size(size_bytes: int) -> str:
    """Return `size_bytes` in the largest binary unit that keeps it readable (``1.5 GiB``)."""
    value = float(size_bytes)
    for suffix in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.4g} {suffix}"
        value /= 1024
    return f"{value:.4g} TiB"
