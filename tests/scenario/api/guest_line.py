"""A guest's serial line as QEMU keeps it: a socket for one client, and a log of what is said."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from nuage.clock import SystemClock
from nuage.errors import Unavailable
from nuage.ids import NodeId, VmId
from nuage.model.console import FOLLOW_METHOD, TYPE_METHOD, FollowConsole, TypeOnConsole
from nuage.vnode.console import ConsoleHub, ConsoleLog

R = TypeVar("R")
VM = VmId("vm-1")


class GuestLine:
    """Says back what is typed; `say` has the guest write by itself."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "console.sock"
        self.log = ConsoleLog(folder / "console.log")
        self.client_count = 0
        self.joined = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.hub = ConsoleHub(self._read, lambda _vm_id: self.socket, SystemClock())

    async def _read(self, _vm_id: VmId, offset_bytes: int, size_bytes_max: int) -> bytes:
        return self.log.read(offset_bytes, size_bytes_max)

    def say(self, data: bytes) -> None:
        for writer in self._writers:
            writer.write(data)
        with self.log.path.open("ab") as file:
            file.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert not self._writers, "QEMU serves one client at a time"
        self.client_count += 1
        self.joined.set()
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        with suppress(ConnectionError):
            while keys := await reader.read(64):
                self.say(keys)
        self._writers.discard(writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def end(self) -> None:
        """The guest stops."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["GuestLine"]:
        server = await asyncio.start_unix_server(self._serve, self.socket)
        yield self
        server.close()
        self.end()
        await asyncio.gather(*self._serving)


class LineOnNode:
    """The door to a node whose only guest is at a line (`iaas.site.Nodes`)."""

    def __init__(self, line: GuestLine) -> None:
        self._line = line

    async def ask(
        self, node_id: NodeId, method: str, body: object, result: type[R], *, timeout_s: float
    ) -> Any:
        if method != TYPE_METHOD:
            raise Unavailable(f"{node_id} is not asked for {method}")
        assert isinstance(body, TypeOnConsole)
        await self._line.hub.type(body.vm_id, body.keys)

    def subscribe(
        self, node_id: NodeId, method: str, body: object, item_type: type[R]
    ) -> AsyncIterator[Any]:
        assert (method, isinstance(body, FollowConsole)) == (FOLLOW_METHOD, True)
        total = self._line.log.total_bytes()
        offset = body.after_bytes if body.after_bytes >= 0 else max(0, total + body.after_bytes)  # type: ignore[attr-defined]
        return self._line.hub.follow(body.vm_id, offset)  # type: ignore[attr-defined]
