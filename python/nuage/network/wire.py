"""Bounded reading of bytes that a stranger sent, and the two checksums that need no library.

Every parser of this room reads through `Reader`, so that nothing can read past what arrived
and every failure is the one exception `MalformedFrame`, with a cause a counter can carry.
"""

import struct
from itertools import accumulate

from nuage.errors import RemoteProtocolError


class MalformedFrame(RemoteProtocolError):
    """What arrived does not parse; `cause` is a short stable word for the drop counter."""

    code = "malformed_frame"

    def __init__(self, cause: str, detail: str = "") -> None:
        self.cause = cause
        self.what = f"{cause}: {detail}" if detail else cause
        super().__init__(f"malformed frame: {self.what}")


class Reader:
    """A cursor over bytes that never leaves them."""

    __slots__ = ("_data", "_end", "_offset")

    def __init__(self, data: bytes, offset: int = 0, end: int | None = None) -> None:
        self._data = data
        self._offset = offset
        self._end = len(data) if end is None else end

    @property
    def remaining(self) -> int:
        """Return how many bytes are left."""
        return self._end - self._offset

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            MalformedFrame: fewer are left.
        """
        start, stop = self._offset, self._offset + count
        if count < 0 or stop > self._end:
            raise MalformedFrame("truncated", f"needed {count} bytes, {self.remaining} left")
        self._offset = stop
        return self._data[start:stop]

    def u8(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Return the next two bytes, big-endian."""
        return int.from_bytes(self.take(2), "big")

    def u24(self) -> int:
        """Return the next three bytes, big-endian."""
        return int.from_bytes(self.take(3), "big")

    def u32(self) -> int:
        """Return the next four bytes, big-endian."""
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        """Return the next eight bytes, big-endian."""
        return int.from_bytes(self.take(8), "big")

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(self.remaining)

    def sub(self, count: int) -> "Reader":
        """Return a reader over the next `count` bytes and step over them."""
        return Reader(self.take(count))

    def end(self, cause: str) -> None:
        """Raise MalformedFrame(`cause`) when bytes are left over."""
        if self.remaining:
            raise MalformedFrame(cause, f"{self.remaining} bytes left over")


def mac_bytes(text: str) -> bytes:
    """Return the six bytes of ``02:00:…``.

    Raises:
        ValueError: the text is not a MAC address.
    """
    parts = text.split(":")
    if len(parts) != 6:
        raise ValueError(f"{text!r} is not a MAC address such as 02:00:00:00:00:01")
    return bytes(int(part, 16) for part in parts)


def internet_checksum(data: bytes, start: int = 0) -> int:
    """Return the ones' complement checksum of RFC 1071 over `data`."""
    if len(data) % 2:
        data += b"\0"
    words: tuple[int, ...] = struct.unpack(f">{len(data) // 2}H", data)
    total = start + sum(words)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def fletcher_sums(data: bytes) -> tuple[int, int]:
    """Return Fletcher's (C0, C1) modulo 255 over `data` (ISO 10589 §7.3.11, ISO 8473 annex C)."""
    return sum(data) % 255, sum(accumulate(data)) % 255


def fletcher_checksum(data: bytes, position: int) -> int:
    """Return the checksum that, stored at `position` (0-based) of `data`, verifies.

    The two bytes at `position` are taken as zero whatever they hold.
    """
    zeroed = data[:position] + b"\0\0" + data[position + 2 :]
    c0, c1 = fletcher_sums(zeroed)
    x = ((len(data) - position - 1) * c0 - c1) % 255
    y = (c1 - (len(data) - position) * c0) % 255
    return ((x or 255) << 8) | (y or 255)


def fletcher_is_good(data: bytes) -> bool:
    """Tell whether `data`, its checksum included, verifies."""
    return fletcher_sums(data) == (0, 0)
