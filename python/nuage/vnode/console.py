"""A guest's serial console: typing on it, and its log, bounded while QEMU appends to it.

QEMU opens the log for appending and never reopens it, so the file is copied and cut, not moved.
A few lines may be lost between the two when the guest writes at that moment. Offsets count all
bytes the guest ever wrote: `base_bytes` of them lie before the two files that are kept.
"""

import asyncio
import fcntl
import os
import shutil
import sys
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nuage.clock import Clock
from nuage.errors import TimedOut, Unavailable

TYPE_TIMEOUT_S: Final = 8.0  # a UART takes 11 bytes a millisecond; a guest that boots, none
TYPE_POLL_S: Final = 0.01
CONSOLE_BYTES_MAX: Final = 1024 * 1024  # each of the two files; a boot writes some 20 KiB


@dataclass(slots=True)
class ConsoleLog:
    """The log file at `path` and its predecessor ``<path>.1``."""

    path: Path
    base_bytes: int = 0

    def _sizes(self) -> tuple[int, int]:
        older = self.path.with_name(self.path.name + ".1")
        return (
            older.stat().st_size if older.exists() else 0,
            self.path.stat().st_size if self.path.exists() else 0,
        )

    def total_bytes(self) -> int:
        """Return how much the guest has written since it was created."""
        return self.base_bytes + sum(self._sizes())

    def rotate(self, bytes_max: int = CONSOLE_BYTES_MAX) -> bool:
        """Cut the log when it has outgrown its bound; tell whether it was cut."""
        older_bytes, newer_bytes = self._sizes()
        if newer_bytes <= bytes_max:
            return False
        shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
        os.truncate(self.path, 0)
        self.base_bytes += older_bytes
        return True

    def read(self, offset_bytes: int, size_bytes_max: int) -> bytes:
        """Return what was written from `offset_bytes` on, from the oldest kept when it is gone."""
        older_bytes, _ = self._sizes()
        start = max(offset_bytes - self.base_bytes, 0)
        data = b""
        if start < older_bytes:
            with self.path.with_name(self.path.name + ".1").open("rb") as file:
                file.seek(start)
                data = file.read(size_bytes_max)
            start = older_bytes
        if len(data) < size_bytes_max and self.path.exists():
            with self.path.open("rb") as file:
                file.seek(start - older_bytes)
                data += file.read(size_bytes_max - len(data))
        return data


async def type_on(console: Path, data: bytes, clock: Clock) -> None:
    """Type `data` on the console whose socket is `console`; return once the guest has taken it.

    QEMU takes no more than the guest's UART does; what is unread when the connection closes
    is lost, so it stays open until the kernel says that nothing is left.

    Raises:
        Unavailable: somebody else holds the console.
        TimedOut: the guest does not read.
    """
    try:
        _, writer = await asyncio.open_unix_connection(str(console))
    except OSError as error:
        raise Unavailable(f"the console cannot be opened: {error}") from error
    try:
        writer.write(data)
        await writer.drain()
        descriptor = writer.get_extra_info("socket").fileno()
        deadline_s = clock.monotonic_s() + TYPE_TIMEOUT_S
        while _unread_bytes(descriptor):
            if clock.monotonic_s() > deadline_s:
                raise TimedOut("typing on a console", after_s=TYPE_TIMEOUT_S)
            await clock.sleep(TYPE_POLL_S)
    finally:
        writer.close()


def _unread_bytes(descriptor: int) -> int:
    """Return how many bytes the other end has not read yet (SIOCOUTQ, unix(7))."""
    answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0" * 4)
    return int.from_bytes(answer, sys.byteorder)
