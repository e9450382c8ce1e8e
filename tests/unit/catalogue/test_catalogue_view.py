"""Following in one process, and the merged view over it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.catalogue.catalogue_makers import LYON, MARNE, RENNES, HandClock, vm

from nuage.catalogue.feed import FeedMessage, FeedRequest
from nuage.catalogue.follow import FeedFollower, serve_feed
from nuage.catalogue.memory import MemoryCatalogue
from nuage.catalogue.replica import MemoryReplicas, Replicas, SqliteReplicas
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import Delete, Put
from nuage.catalogue.view import AmbiguousName, FederationView
from nuage.clock import SystemClock
from nuage.errors import NotFound, SiteUnreachable
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


async def test_the_view_merges_all_sites_and_names_each() -> None:
    lyon, marne, rennes = (
        MemoryCatalogue(site, clock=HandClock()) for site in (LYON, MARNE, RENNES)
    )
    replicas = MemoryReplicas()
    async with following(Wires(marne, rennes), replicas, MARNE, RENNES):
        await lyon.write([Put(value=vm(1, name="db"))])
        await marne.write([Put(value=vm(2, name="db", iaas="iaas-2")), Put(value=vm(3))])
        await rennes.write([Put(value=vm(4))])
        await until_equal(marne, replicas)
        await until_equal(rennes, replicas)
    view = FederationView(lyon, replicas, age_of={MARNE: 4.0, RENNES: None}.get)
    assert [(s.record.id, s.site, s.age_s) for s in await view.list("vm")] == [
        ("vm-1", LYON, 0.0),
        ("vm-2", MARNE, 4.0),
        ("vm-3", MARNE, 4.0),
        ("vm-4", RENNES, None),
    ]
    assert [s.record.id for s in await view.list("vm", site=RENNES)] == ["vm-4"]
    assert (await view.lookup("vm", "vm-3")).site == MARNE
    assert (await view.lookup("vm", "web-4")).record.id == "vm-4"
    assert (await view.lookup("vm", "db", iaas_id="iaas-2")).record.id == "vm-2"
    with pytest.raises(AmbiguousName) as caught:
        await view.lookup("vm", "db")
    assert [candidate[:2] for candidate in caught.value.candidates] == [
        ("vm-1", LYON),
        ("vm-2", MARNE),
    ]
    with pytest.raises(NotFound):
        await view.lookup("vm", "nowhere")
    with pytest.raises(NotFound):
        await view.get("vm", "nowhere")
    assert view.ages() == {LYON: 0.0, MARNE: 4.0, RENNES: None}


async def test_the_higher_epoch_shadows_and_deletes_nothing() -> None:
    lyon, marne = (MemoryCatalogue(site, clock=HandClock()) for site in (LYON, MARNE))
    replicas = MemoryReplicas()
    async with following(Wires(marne), replicas, MARNE):
        await lyon.write([Put(value=vm(1, epoch=1)), Put(value=vm(2, epoch=5))])
        await marne.write([Put(value=vm(1, epoch=2)), Put(value=vm(2, epoch=4))])
        await until_equal(marne, replicas)
    view = FederationView(lyon, replicas, age_of=lambda _site: 1.0)
    assert [(s.record.id, s.site) for s in await view.list("vm")] == [
        ("vm-1", MARNE),
        ("vm-2", LYON),
    ]
    (lost,) = await view.shadowed()
    assert (lost.record.id, lost.site, lost.shadowed_by) == ("vm-1", LYON, MARNE)
    both = await view.claims("vm", "vm-1")
    assert [(s.site, s.shadowed_by) for s in both] == [(MARNE, ""), (LYON, MARNE)]
    assert len(await lyon.list("vm")) == 2
    # A site that overstates its epoch does not win against the quorum's word.
    words = {("vm", "vm-1"): (LYON, 1), ("vm", "vm-2"): (RENNES, 9)}
    judged = FederationView(
        lyon, replicas, age_of=lambda _site: 1.0, arbiter=lambda kind, id: words.get((kind, id))
    )
    assert (await judged.get("vm", "vm-1")).site == LYON
    assert (await judged.get("vm", "vm-2")).record == replace(await lyon.get("vm", "vm-2"))
