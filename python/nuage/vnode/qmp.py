"""QEMU's machine protocol (QMP): a parser without I/O and a client on a Unix socket.

The wire is a stream of JSON objects, one a line as QEMU writes them: a greeting
``{"QMP": …}``, answers ``{"return": …, "id": n}`` or ``{"error": …, "id": n}``, and events
``{"event": …, "data": …}`` at any moment. Our ids are integers counted from 1.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from nuage.errors import NuageError, RemoteProtocolError, TimedOut, Unavailable

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

LINE_BYTES_MAX: Final = 4 * 1024 * 1024  # the longest answer we ask for is some 100 KiB
COMMAND_TIMEOUT_S: Final = 30.0  # QEMU answers in ms; opening a slow iSCSI disk may take seconds


class QmpError(NuageError):
    """QEMU refused a command; `kind` is its error class, `message` its own words."""

    code = "qmp_error"

    def __init__(self, kind: str, message: str, *, command: str = "") -> None:
        super().__init__(f"QEMU refused {command or 'a command'}: {message}")
        self.kind = kind
        self.command = command


@dataclass(frozen=True, slots=True)
class Greeting:
    """QEMU's first words; `version` is (major, minor, micro)."""

    version: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of command `command_id`; `error` is (class, description) when it failed."""

    command_id: int
    value: Json
    error: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in the guest or in QEMU."""

    name: str
    data: Mapping[str, Json]
    at_s: float = 0.0  # by the host's clock; 0 when QEMU does not know


Message: TypeAlias = Greeting | Answer | Event


class QmpReader:
    """Split a byte stream into QMP messages. Knows no socket."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> list[Message]:
        """Return the messages that `data` completes and keep the rest.

        Raises:
            RemoteProtocolError: no JSON object, or a line without end; close the connection.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            raise RemoteProtocolError(f"QEMU sent a line longer than {LINE_BYTES_MAX} bytes")
        return [_message(line) for line in lines if line.strip()]


def _message(line: bytes) -> Message:
    try:
        document: Json = json.loads(line)
    except ValueError as error:
        raise RemoteProtocolError(f"QEMU sent no JSON: {line[:80]!r}") from error
    if not isinstance(document, Mapping):
        raise RemoteProtocolError(f"QEMU sent no QMP message: {line[:80]!r}")
    match document:
        case {"QMP": {"version": {"qemu": {"major": int(a), "minor": int(b), "micro": int(c)}}}}:
            return Greeting((a, b, c))
        case {"error": {"class": str(kind), "desc": str(text)}}:
            return Answer(_command_id(document), None, (kind, text))
        case {"return": value}:
            return Answer(_command_id(document), value, None)
        case {"event": str(name)}:
            data = document.get("data")
            known = data if isinstance(data, Mapping) else {}
            return Event(name, known, _time_of(document.get("timestamp")))
        case _:
            raise RemoteProtocolError(f"QEMU sent no QMP message: {line[:80]!r}")


def _time_of(stamp: Json) -> float:
    match stamp:
        case {"seconds": int(seconds), "microseconds": int(microseconds)} if seconds > 0:
            return seconds + microseconds / 1e6
        case _:
            return 0.0


def _command_id(rest: Mapping[str, Json]) -> int:
    found = rest.get("id")
    return found if isinstance(found, int) else 0


def encode_command(command_id: int, name: str, arguments: Mapping[str, Json]) -> bytes:
    """Return the bytes of a command."""
    document: dict[str, Json] = {"execute": name, "id": command_id}
    if arguments:
        document["arguments"] = dict(arguments)
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


class QmpClient:
    """One QMP connection. `on_event` is called on the loop, in order; `closed` tells its end."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._parser = QmpReader()
        self._waiting: dict[int, tuple[str, asyncio.Future[Json]]] = {}
        self._last_id = 0
        self._writer: asyncio.StreamWriter | None = None
        self._pump: asyncio.Task[None] | None = None
        self._greeted: asyncio.Future[Greeting] | None = None
        self.closed = asyncio.Event()

    async def connect(self, path: Path, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Connect to the socket at `path` (of any length), and negotiate.

        Raises:
            Unavailable: nobody listens there.
            TimedOut: somebody listens and does not greet (another client holds the monitor).
        """
        self._greeted = asyncio.get_running_loop().create_future()
        try:
            reader, self._writer = await open_unix(path)
        except OSError as error:
            raise Unavailable(f"no QEMU listens at {path}: {error.strerror}") from error
        self._pump = asyncio.create_task(self._read(reader))
        try:
            async with asyncio.timeout(timeout_s):
                await self._greeted
                await self.execute("qmp_capabilities")
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                waited_for = f"waiting for QEMU's greeting at {path}"
                raise TimedOut(waited_for, after_s=timeout_s) from error
            raise

    async def execute(
        self, name: str, arguments: Mapping[str, Json] | None = None, *,
        timeout_s: float = COMMAND_TIMEOUT_S, descriptor: int | None = None,
    ) -> Json:  # fmt: skip
        """Run a command and return its value; QEMU gets a copy of `descriptor` with it.

        Raises:
            QmpError: QEMU refused it.
            Unavailable: the connection is gone.
            TimedOut: no answer; whether it took effect is unknown.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self.begin(name, arguments, descriptor)
        except TimeoutError as error:
            raise TimedOut(f"QEMU command {name}", after_s=timeout_s) from error

    def begin(
        self, name: str, arguments: Mapping[str, Json] | None = None, descriptor: int | None = None
    ) -> asyncio.Future[Json]:
        """Send a command at once; the future has its value.

        Raises:
            Unavailable: the connection is gone.
        """
        if self._writer is None or self.closed.is_set():
            raise Unavailable(f"QEMU is gone; {name} was not asked")
        self._last_id += 1
        future: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._waiting[self._last_id] = (name, future)
        command = encode_command(self._last_id, name, arguments or {})
        if descriptor is None:
            self._writer.write(command)
        else:
            own = os.dup(self._writer.get_extra_info("socket").fileno())
            with socket.socket(fileno=own) as line:
                socket.send_fds(line, [command], [descriptor])
        return future

    async def close(self) -> None:
        """Close the connection; QEMU and its guest go on."""
        if self._pump is not None:
            self._pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pump
        self._end()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(65536):
                for message in self._parser.receive(data):
                    self._take(message)
        except (OSError, RemoteProtocolError):
            pass  # the same to us as an end: `closed` tells, and whoever waits is told
        finally:
            self._end()

    def _take(self, message: Message) -> None:
        match message:
            case Greeting():
                if self._greeted is not None and not self._greeted.done():
                    self._greeted.set_result(message)
            case Event():
                self._on_event(message)
            case Answer(command_id=command_id, value=value, error=error):
                name, future = self._waiting.pop(command_id, ("", None))
                if future is None or future.done():
                    return
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(QmpError(*error, command=name))

    def _end(self) -> None:
        self.closed.set()
        if self._writer is not None:
            self._writer.close()  # a stream whose other end is gone does not close itself
        gone = Unavailable("QEMU closed its monitor")
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(gone)
            self._greeted.exception()  # nobody may be waiting; that is no accident
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(gone)
                future.exception()
        self._waiting.clear()


async def open_unix(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a Unix socket whose path may be longer than the kernel's 108 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        return await asyncio.open_unix_connection(
            f"/proc/self/fd/{folder}/{path.name}", limit=LINE_BYTES_MAX
        )
    finally:
        os.close(folder)
