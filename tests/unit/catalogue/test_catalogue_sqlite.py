"""What only the SQLite driver promises: it comes back, it locks, it refuses clearly."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tests.contract.catalogue.catalogue_makers import MARNE, RENNES, HandClock, user, vm

from nuage.catalogue.schema import UPGRADES
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import Compacted, Delete, Put
from nuage.errors import Conflict, CorruptData, InvalidRequest, NuageError, Unavailable
from nuage.ids import SiteId
from nuage.model.vm import Vm


@asynccontextmanager
async def opened(
    path: Path, *, site: SiteId = MARNE, size_bytes_max: int | None = None
) -> AsyncIterator[SqliteCatalogue]:
    catalogue = await SqliteCatalogue.open(
        path, site=site, clock=HandClock(), size_bytes_max=size_bytes_max
    )
    try:
        yield catalogue
    finally:
        await catalogue.close()


async def fill(path: Path, count: int) -> None:
    async with opened(path) as catalogue:
        for number in range(count):
            await catalogue.write([Put(value=vm(number))])


async def test_a_reopened_file_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with opened(path) as catalogue:
        await catalogue.write([Put(value=vm(1, epoch=2)), Put(value=user(1))])
        await catalogue.write([Delete(kind="user", id="user-1")])
        await catalogue.compact(keep_count=1, keep_age_s=1e9)
        before = (catalogue.all_records(), catalogue.incarnation, catalogue.compacted_revision)
    async with opened(path) as catalogue:
        assert (
            catalogue.all_records(),
            catalogue.incarnation,
            catalogue.compacted_revision,
        ) == before
        (event,) = await catalogue.changes_after(2)
        assert event.record is None
        with pytest.raises(Compacted):
            await catalogue.changes_after(1)


async def test_the_revision_survives_when_all_history_is_compacted(tmp_path: Path) -> None:
    async with opened(tmp_path / "c.db") as catalogue:
        await catalogue.write([Put(value=vm(1))])
        await catalogue.write([Delete(kind="vm", id="vm-1")])
        await catalogue.compact(keep_count=0, keep_age_s=0.0)
    async with opened(tmp_path / "c.db") as catalogue:
        assert catalogue.revision == 2
        (record,) = await catalogue.write([Put(value=vm(1))])
        assert record.revision == 3


async def test_concurrent_writes_share_commits_and_fail_alone(tmp_path: Path) -> None:
    async with opened(tmp_path / "c.db") as catalogue:
        results = await asyncio.gather(
            *(
                catalogue.write([Put(value=vm(i % 150), expected=0), Put(value=user(i))])
                for i in range(200)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(result, Conflict) for result in results) == 50
        assert len(await catalogue.list("user")) == 150
        assert catalogue.revision == 300
        assert catalogue.commit_count < 200


async def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    async with opened(tmp_path / "c.db") as catalogue:
        with pytest.raises(Unavailable, match=r"another process \(pid \d+\)"):
            await SqliteCatalogue.open(tmp_path / "c.db", site=MARNE, clock=HandClock())
        await catalogue.write([Put(value=vm(1))])


async def test_a_file_of_another_site_is_refused(tmp_path: Path) -> None:
    await fill(tmp_path / "c.db", 1)
    with pytest.raises(InvalidRequest, match="marne"):
        async with opened(tmp_path / "c.db", site=RENNES):
            pass
    async with opened(tmp_path / "c.db"):
        pass


async def test_a_full_disk_refuses_writes_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.db"

    async def write_until_refused(catalogue: SqliteCatalogue) -> None:
        for number in range(10_000):
            await catalogue.write([Put(value=vm(number))])

    async with opened(path, size_bytes_max=256 * 1024) as catalogue:
        with pytest.raises(Unavailable, match="full"):
            await write_until_refused(catalogue)
        stored = catalogue.revision
        assert len(await catalogue.list("vm")) == stored
        assert stored > 100
        await catalogue.compact(keep_count=1, keep_age_s=1e9)
        (record,) = await catalogue.write([Put(value=vm(stored))])
        assert record.revision == stored + 1
    async with opened(path) as catalogue:
        assert len(await catalogue.list("vm")) == stored + 1


async def test_a_file_that_is_no_catalogue_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    path.write_bytes(b"not a database at all" * 1000)
    with pytest.raises(CorruptData) as caught:
        async with opened(path):
            pass
    assert str(path) in caught.value.where
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    with pytest.raises(CorruptData):
        async with opened(path):
            pass


async def test_flipped_bytes_are_found_and_named(tmp_path: Path) -> None:
    """A changed byte is refused at the next start, or lies in a part without content."""
    path = tmp_path / "c.db"
    await fill(path, 200)
    whole = path.read_bytes()
    needle = b'"name":"web-77"'
    assert needle in whole
    path.write_bytes(whole.replace(needle, b'"name":"wob-77"'))
    with pytest.raises(CorruptData, match="vm-77"):
        async with opened(path):
            pass
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptData):
        async with opened(path):
            pass
    for offset in range(4096, len(whole), 4096):
        path.write_bytes(whole[:offset] + bytes(512) + whole[offset + 512 :])
        with suppress(CorruptData):
            async with opened(path) as catalogue:
                assert len(await catalogue.list("vm")) == 200
    schema = whole.index(b"CREATE TABLE")
    for offset in range(schema, 4096, 61):  # SQLite's complaint repeats what is no text any more
        path.write_bytes(whole[:offset] + bytes((whole[offset] ^ 0x80,)) + whole[offset + 1 :])
        with suppress(CorruptData):
            async with opened(path) as catalogue:
                assert len(await catalogue.list("vm")) == 200


@pytest.mark.parametrize("version", range(1, len(UPGRADES)))
async def test_an_older_schema_is_lifted(tmp_path: Path, version: int) -> None:
    path = tmp_path / "c.db"
    await fill(path, 3)
    with sqlite3.connect(path) as connection:
        for later in UPGRADES[version:]:
            for line in later.split(";"):
                words = line.split()
                if words[:1] == ["CREATE"]:
                    connection.execute(f"DROP {words[1]} {words[2]}")
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    async with opened(path) as catalogue:
        assert len(await catalogue.list("vm")) == 3
        await catalogue.write([Put(value=vm(3))])
        assert len(await catalogue.history("vm", "vm-3")) == 1


async def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await fill(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(UPGRADES) + 1}")
    connection.close()
    with pytest.raises(InvalidRequest, match="newer"):
        async with opened(path):
            pass


async def test_a_job_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    def act(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO meta VALUES ('trace', 'left')")
        raise Conflict("no")

    def look(connection: sqlite3.Connection) -> int:
        (count,) = connection.execute("SELECT count(*) FROM meta WHERE key = 'trace'").fetchone()
        assert isinstance(count, int)
        return count

    async with opened(tmp_path / "c.db") as catalogue:
        refused, written = await asyncio.gather(
            catalogue.run(act), catalogue.write([Put(value=vm(1))]), return_exceptions=True
        )
        assert isinstance(refused, NuageError)
        assert not isinstance(written, BaseException)
        assert await catalogue.run(look) == 0


async def test_history_is_compacted_by_itself(tmp_path: Path) -> None:
    catalogue = await SqliteCatalogue.open(
        tmp_path / "c.db", site=MARNE, clock=HandClock(), history_count=100
    )
    for _ in range(100):
        await catalogue.write([Put(value=vm(number)) for number in range(50)])
    assert 4000 <= catalogue.compacted_revision <= 5000
    assert all(isinstance(record.value, Vm) for record in await catalogue.list("vm"))
    await catalogue.close()


async def test_a_cancelled_caller_does_not_undo_its_write(tmp_path: Path) -> None:
    async with opened(tmp_path / "c.db") as catalogue:
        task = asyncio.create_task(catalogue.write([Put(value=vm(1))]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await catalogue.write([Put(value=vm(2))])
        assert [record.id for record in await catalogue.list("vm")] == ["vm-1", "vm-2"]


async def test_a_failed_writer_tells_everybody(tmp_path: Path) -> None:
    def act(connection: sqlite3.Connection) -> None:
        raise ZeroDivisionError("a bug of ours")

    async with opened(tmp_path / "c.db") as catalogue:
        await catalogue.write([Put(value=vm(1))])
        first, second = await asyncio.gather(
            catalogue.write([Put(value=vm(2))]), catalogue.run(act), return_exceptions=True
        )
        assert isinstance(second, Unavailable)
        assert isinstance(first, Unavailable) or await catalogue.find("vm", "vm-2") is not None
        with pytest.raises(Unavailable, match="ZeroDivisionError"):
            await catalogue.write([Put(value=vm(3))])
        assert await catalogue.find("vm", "vm-1") is not None
