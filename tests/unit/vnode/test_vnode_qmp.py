"""A monitor that fails while it is being opened, or hangs up, leaves no connection behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nuage.errors import NuageError
from nuage.vnode.guest import parse_migration
from nuage.vnode.hypervisor import MigrationStatus
from nuage.vnode.qmp import QmpClient

GREETING = b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}}}\n'
AGREED = b'{"return": {}, "id": 1}\n'
REFUSED = b'{"error": {"class": "GenericError", "desc": "no"}, "id": 1}\n'


@asynccontextmanager
async def monitor(folder: Path, answer: bytes, *, hangs_up: bool) -> AsyncIterator[asyncio.Event]:
    """Greet, and `answer` the first command; the event is set once the client has closed."""
    left = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.readline()
        writer.write(answer)
        if hangs_up:
            writer.write_eof()
        while await reader.read(4096):
            pass
        left.set()
        writer.close()

    server = await asyncio.start_unix_server(talk, folder / "qmp.sock")
    async with server:
        yield left


async def test_a_monitor_that_refuses_the_first_command_is_closed(tmp_path: Path) -> None:
    async with monitor(tmp_path, REFUSED, hangs_up=False) as left:
        with pytest.raises(NuageError, match="no"):
            await QmpClient(lambda _: None).connect(tmp_path / "qmp.sock")
        async with asyncio.timeout(5):
            await left.wait()


async def test_a_monitor_that_hangs_up_is_closed_at_our_end_too(tmp_path: Path) -> None:
    async with monitor(tmp_path, AGREED, hangs_up=True) as left:
        client = QmpClient(lambda _: None)
        await client.connect(tmp_path / "qmp.sock")
        async with asyncio.timeout(5):
            await client.closed.wait()
            await left.wait()


def test_a_move_is_completed_once_its_times_are_there() -> None:
    early = parse_migration({"status": "completed", "downtime": 0, "total-time": 0})
    assert early.status is MigrationStatus.DEVICE
    done = parse_migration({"status": "completed", "downtime": 41, "total-time": 900})
    assert (done.status, done.downtime_ms, done.progress) == (MigrationStatus.COMPLETED, 41.0, 1.0)
