"""Following in one process."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from tests.contract.catalogue.catalogue_makers import LYON, MARNE, HandClock, vm

from nuage.catalogue.codec import encode_value
from nuage.catalogue.feed import (
    ApplyBatch,
    Cursor,
    FeedMessage,
    FeedReader,
    FeedRequest,
    ReplaceReplica,
)
from nuage.catalogue.follow import FeedFollower, serve_feed, serve_replica
from nuage.catalogue.memory import MemoryCatalogue
from nuage.catalogue.replica import MemoryReplicas, Replicas, SqliteReplicas
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import Delete, Put
from nuage.clock import SystemClock
from nuage.errors import SiteUnreachable, Unavailable
from nuage.ids import SiteId, UserId
from nuage.model.identity import User
from nuage.model.record import Record

T = TypeVar("T")


class Wires:
    """Feeds in one process; a cut site raises, as the channel would."""

    def __init__(self, *catalogues: MemoryCatalogue | SqliteCatalogue) -> None:
        self.catalogues = {catalogue.site: catalogue for catalogue in catalogues}
        self.cut: set[SiteId] = set()

    async def subscribe(self, site: SiteId, request: FeedRequest) -> AsyncIterator[FeedMessage]:
        if site in self.cut:
            raise SiteUnreachable(site, doing="feed")
        async for message in serve_feed(self.catalogues[site], request, clock=HandClock()):
            if site in self.cut:
                raise SiteUnreachable(site, doing="feed")
            yield message


@asynccontextmanager
async def following(
    wires: Wires, replicas: Replicas, *sites: SiteId
) -> AsyncIterator[FeedFollower]:
    follower = FeedFollower(replicas, reader=LYON, subscribe=wires.subscribe, clock=HandClock())
    tasks = [asyncio.create_task(follower.follow(site)) for site in sites]
    try:
        yield follower
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_equal(catalogue: MemoryCatalogue, replicas: Replicas) -> None:
    """Let the loops run until the replica holds what the catalogue does."""
    for _ in range(10_000):
        table = replicas.table(catalogue.site)
        if table is not None and table.revision == catalogue.revision:
            break
        await asyncio.sleep(0)
    assert table is not None
    assert set(table.all_records()) == set(catalogue.all_records()[1])


async def test_a_replica_follows_resumes_and_survives_compaction() -> None:
    marne = MemoryCatalogue(MARNE, clock=HandClock())
    wires, replicas = Wires(marne), MemoryReplicas()
    await marne.write([Put(value=vm(1)), Put(value=vm(2))])
    async with following(wires, replicas, MARNE) as follower:
        await until_equal(marne, replicas)
        await marne.write([Delete(kind="vm", id="vm-1")])
        await until_equal(marne, replicas)
        wires.cut.add(MARNE)
        for number in range(20):
            await marne.write([Put(value=vm(number % 7))])
        wires.cut.clear()
        await until_equal(marne, replicas)
        wires.cut.add(MARNE)
        await marne.write([Delete(kind="vm", id="vm-2")])
        for _ in range(50):
            await asyncio.sleep(0)
        await marne.write([Put(value=vm(9))])
        await marne.compact(keep_count=0, keep_age_s=0.0)
        wires.cut.clear()
        await until_equal(marne, replicas)
        (status,) = follower.statuses()
        assert status.snapshot_count == 2
        assert status.age_s is not None


async def test_a_stored_replica_goes_on_where_it_stood(tmp_path: Path) -> None:
    marne = MemoryCatalogue(MARNE, clock=HandClock())
    wires = Wires(marne)
    for number in range(5):
        await marne.write([Put(value=vm(number))])
    lyon = await SqliteCatalogue.open(tmp_path / "c.db", site=LYON, clock=HandClock())
    stored = await SqliteReplicas.open(lyon, HandClock())
    async with following(wires, stored, MARNE):
        for _ in range(1000):
            if stored.cursor(MARNE).revision == 5:
                break
            await SystemClock().sleep(0.001)
    await stored.close()
    await lyon.close()
    await marne.write([Delete(kind="vm", id="vm-1")])
    lyon = await SqliteCatalogue.open(tmp_path / "c.db", site=LYON, clock=HandClock())
    stored = await SqliteReplicas.open(lyon, HandClock())
    assert stored.sites() == (MARNE,)
    assert stored.cursor(MARNE).revision == 5
    async with following(wires, stored, MARNE) as follower:
        for _ in range(1000):
            if stored.cursor(MARNE).revision == 6:
                break
            await SystemClock().sleep(0.001)
        assert [status.snapshot_count for status in follower.statuses()] == [0]
    table = stored.table(MARNE)
    assert table is not None
    assert set(table.all_records()) == set(marne.all_records()[1])
    assert lyon.all_records() == (0, ())
    await stored.forget(MARNE)
    await lyon.close()
    lyon = await SqliteCatalogue.open(tmp_path / "c.db", site=LYON, clock=HandClock())
    assert (await SqliteReplicas.open(lyon, HandClock())).sites() == ()
    await lyon.close()


class Refusing(SqliteCatalogue):
    """A catalogue whose disk is full for a while."""

    is_full = False

    async def run(self, act: Callable[[sqlite3.Connection], T]) -> T:
        if self.is_full:
            raise Unavailable("no room")
        return await super().run(act)


def news(revision: int, *records: Record, dropped: tuple[str, ...] = ()) -> ApplyBatch:
    return ApplyBatch(
        site=MARNE, cursor=Cursor("first", revision, 0.0), records=records,
        bodies=tuple(encode_value(record.value) for record in records),
        deleted=tuple(("vm", id) for id in dropped),
    )  # fmt: skip


def entered(number: int, revision: int) -> Record:
    return Record(
        kind="vm", id=f"vm-{number}", home=MARNE, revision=revision, epoch=0, changed_s=0.0,
        value=vm(number),
    )  # fmt: skip


async def test_a_replica_is_shown_at_once_and_what_a_crash_takes_of_it_is_whole(
    tmp_path: Path,
) -> None:
    lyon = await SqliteCatalogue.open(tmp_path / "c.db", site=LYON, clock=HandClock())
    stored = await SqliteReplicas.open(lyon, HandClock())
    await stored.apply(news(2, entered(1, 1), entered(2, 2)))
    await stored.flush()
    await stored.apply(news(4, entered(3, 3), dropped=("vm-1",)))
    table = stored.table(MARNE)
    assert table is not None
    assert {record.id for record in table.all_records()} == {"vm-2", "vm-3"}
    crashed = await SqliteReplicas.open(lyon, HandClock())  # as the disk is now
    before = crashed.table(MARNE)
    assert before is not None
    assert crashed.cursor(MARNE).revision == before.revision == 2
    assert {record.id for record in before.all_records()} == {"vm-1", "vm-2"}
    await stored.close()
    reopened = await SqliteReplicas.open(lyon, HandClock())
    after = reopened.table(MARNE)
    assert after is not None
    assert reopened.cursor(MARNE).revision == 4
    assert set(after.all_records()) == set(table.all_records())
    await lyon.close()


async def test_what_a_full_disk_refuses_of_a_replica_is_stored_later(tmp_path: Path) -> None:
    lyon = await Refusing.open(tmp_path / "c.db", site=LYON, clock=HandClock())
    assert isinstance(lyon, Refusing)
    stored = await SqliteReplicas.open(lyon, HandClock())
    lyon.is_full = True
    await stored.apply(news(1, entered(1, 1)))
    with pytest.raises(Unavailable):
        await stored.flush()
    await stored.apply(news(3, entered(2, 3), dropped=("vm-1",)))
    lyon.is_full = False
    await stored.close()
    reopened = await SqliteReplicas.open(lyon, HandClock())
    table = reopened.table(MARNE)
    assert table is not None
    assert reopened.cursor(MARNE).revision == 3
    assert {record.id for record in table.all_records()} == {"vm-2"}
    await lyon.close()


async def test_a_revocation_is_stored_before_the_feed_goes_on(tmp_path: Path) -> None:
    lyon = await SqliteCatalogue.open(tmp_path / "c.db", site=LYON, clock=HandClock())
    stored = await SqliteReplicas.open(lyon, SystemClock())
    await stored.apply(news(1, entered(1, 1)))
    user = User(user_id=UserId("ada"), name="ada", grants=(), disabled=True)
    revoked = Record(
        kind="user", id="ada", home=MARNE, revision=2, epoch=0, changed_s=0.0, value=user
    )
    await stored.apply(news(2, revoked))
    crashed = await SqliteReplicas.open(lyon, SystemClock())  # as the disk is now
    assert crashed.cursor(MARNE).revision == 2
    table = crashed.table(MARNE)
    assert table is not None
    assert table.find("user", "ada") == revoked
    assert table.find("vm", "vm-1") is not None
    await stored.close()
    await lyon.close()


async def test_a_site_that_lost_its_catalogue_is_told_what_others_know_of_it() -> None:
    lyon, marne = MemoryCatalogue(LYON, clock=HandClock()), MemoryReplicas()
    await lyon.write([Put(value=vm(1)), Put(value=vm(2))])
    assert [m async for m in serve_replica(marne, LYON, clock=HandClock())] == []
    wires = Wires(lyon)
    async with following(wires, marne, LYON):
        await until_equal(lyon, marne)
    reader = FeedReader(LYON, reader=LYON, cursor=Cursor())
    effects = [
        effect
        async for message in serve_replica(marne, LYON, clock=HandClock())
        for effect in reader.receive(message, now_s=1.0, monotonic_s=1.0)
    ]
    (known,) = effects
    assert isinstance(known, ReplaceReplica)
    assert known.cursor.incarnation == lyon.incarnation
    assert (known.cursor.revision, set(known.records)) == (
        lyon.revision,
        set(lyon.all_records()[1]),
    )
