"""A guest's serial console: attaching to it, and its log, bounded while QEMU appends to it.

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
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nuage.clock import Clock
from nuage.errors import TimedOut, Unavailable
from nuage.ids import VmId

TYPE_TIMEOUT_S: Final = 8.0  # a UART takes 11 bytes a millisecond; a guest that boots, none
TYPE_POLL_S: Final = 0.01
FOLLOW_BYTES: Final = 16 * 1024
FOLLOW_POLL_S: Final = 1.0  # looks at the log even when QEMU said nothing: a lost wake costs this
LOG_LAG_S: Final = 0.002
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


class ConsoleHub:
    """The consoles of a node's guests, each open while somebody is attached to it.

    QEMU serves one client of a console at a time, so all who are attached share one connection. It
    takes keys, and its bytes say *when* the guest wrote; *what* it wrote is read from the log, by
    each at its own offset: a slow one falls behind there and slows nobody.
    """

    def __init__(
        self,
        read: Callable[[VmId, int, int], Awaitable[bytes]],
        socket_of: Callable[[VmId], Path],
        clock: Clock,
    ) -> None:
        self._read = read
        self._socket_of = socket_of
        self._clock = clock
        self._lines: dict[VmId, _Line] = {}

    async def follow(self, vm_id: VmId, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield what the guest wrote from `offset_bytes` on, and writes, until its console ends.

        Raises:
            Unavailable: the console cannot be opened.
        """
        line = await self._attach(vm_id)
        try:
            while True:
                wrote, ended = line.wrote, line.ended
                data = await self._read(vm_id, offset_bytes, FOLLOW_BYTES)
                if data:
                    offset_bytes += len(data)
                    yield data
                elif ended:
                    return
                else:
                    await line.wait_after(wrote, self._clock)
        finally:
            self._detach(vm_id, line)

    async def type(self, vm_id: VmId, data: bytes) -> None:
        """Type `data`; return once the guest has taken it.

        QEMU takes no more than the guest's UART does.

        Raises:
            Unavailable: the console cannot be opened, or ended.
            TimedOut: the guest does not read.
        """
        line = await self._attach(vm_id)
        try:
            async with line.turn:
                await line.type(data, self._clock)
        finally:
            self._detach(vm_id, line)

    async def _attach(self, vm_id: VmId) -> "_Line":
        line = self._lines.get(vm_id)
        if line is None or line.ended:
            line = self._lines[vm_id] = _Line()
            line.opening = asyncio.ensure_future(line.open(self._socket_of(vm_id)))
        line.user_count += 1
        try:
            await asyncio.shield(line.opening)
        except BaseException:
            self._detach(vm_id, line)
            raise
        return line

    def _detach(self, vm_id: VmId, line: "_Line") -> None:
        line.user_count -= 1
        if line.user_count == 0:
            line.close()
            if self._lines.get(vm_id) is line:
                del self._lines[vm_id]


class _Line:
    """One connection to a console."""

    opening: "asyncio.Future[None]"

    def __init__(self) -> None:
        self.user_count = 0
        self.wrote = 0  # bytes that QEMU has sent: a count to wait on
        self.ended = False
        self.turn = asyncio.Lock()  # keys of one go in whole
        self._changed = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None

    async def open(self, socket: Path) -> None:
        """Connect.

        Raises:
            Unavailable: nobody listens.
        """
        try:
            reader, self._writer = await asyncio.open_unix_connection(str(socket))
        except OSError as error:
            self.ended = True
            raise Unavailable(
                f"the console cannot be opened: {error}", hint="is the VM running?"
            ) from error
        self._listening = asyncio.ensure_future(self._listen(reader))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(FOLLOW_BYTES):
                self.wrote += len(data)
                self._wake()
        except OSError:
            pass  # QEMU was killed: an end like any other
        finally:
            self.ended = True
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_after(self, wrote: int, clock: Clock) -> None:
        """Return when the log may hold more than it did at `wrote`."""
        if self.wrote == wrote and not self.ended:
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_POLL_S):
                    await self._changed.wait()
        await clock.sleep(LOG_LAG_S)  # QEMU writes to its log just after the socket

    async def type(self, data: bytes, clock: Clock) -> None:
        """Write `data` and wait until nothing of it is left in the kernel."""
        assert self._writer is not None, "opened before it is handed out"
        try:
            self._writer.write(data)
            await self._writer.drain()
            descriptor = self._writer.get_extra_info("socket").fileno()
            deadline_s = clock.monotonic_s() + TYPE_TIMEOUT_S
            while _unread_bytes(descriptor):
                if clock.monotonic_s() > deadline_s:
                    raise TimedOut("typing on a console", after_s=TYPE_TIMEOUT_S)
                await clock.sleep(TYPE_POLL_S)
        except OSError as error:
            raise Unavailable(f"the console ended: {error}") from error

    def close(self) -> None:
        """Let go of the console; the guest goes on."""
        self.opening.cancel()
        if self._listening is not None:
            self._listening.cancel()
        if self._writer is not None:
            self._writer.close()


def _unread_bytes(descriptor: int) -> int:
    """Return how many bytes the other end has not read yet (SIOCOUTQ, unix(7))."""
    answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0" * 4)
    return int.from_bytes(answer, sys.byteorder)
