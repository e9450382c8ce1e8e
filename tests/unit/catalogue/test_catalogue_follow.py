"""Following in one process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.contract.catalogue.catalogue_makers import LYON, MARNE, HandClock, vm

from nuage.catalogue.feed import FeedMessage, FeedRequest
from nuage.catalogue.follow import FeedFollower, serve_feed
from nuage.catalogue.memory import MemoryCatalogue
from nuage.catalogue.replica import MemoryReplicas, Replicas, SqliteReplicas
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import Delete, Put
from nuage.clock import SystemClock
from nuage.errors import SiteUnreachable
from nuage.ids import SiteId


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
    stored = await SqliteReplicas.open(lyon)
    async with following(wires, stored, MARNE):
        for _ in range(1000):
            if stored.cursor(MARNE).revision == 5:
                break
            await SystemClock().sleep(0.001)
    await lyon.close()
    await marne.write([Delete(kind="vm", id="vm-1")])
    lyon = await SqliteCatalogue.open(tmp_path / "c.db", site=LYON, clock=HandClock())
    stored = await SqliteReplicas.open(lyon)
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
    assert (await SqliteReplicas.open(lyon)).sites() == ()
    await lyon.close()
