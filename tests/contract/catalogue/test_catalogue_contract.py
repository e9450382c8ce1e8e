"""One suite for every driver of the catalogue."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from tests.contract.catalogue.catalogue_makers import (
    MARNE,
    HandClock,
    decision,
    port,
    rack,
    segment,
    user,
    vm,
)
from tests.contract.etcd.etcd_process import etcd_cluster, patient_client

from nuage.catalogue.etcd import EtcdCatalogue
from nuage.catalogue.memory import MemoryCatalogue
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import (
    ABSENT,
    CHANGES_PER_WRITE_MAX,
    Catalogue,
    Compacted,
    Delete,
    Event,
    NameTaken,
    Put,
)
from nuage.errors import Conflict, InvalidRequest, NotFound, StaleEpoch, Unavailable
from nuage.ids import UserId
from nuage.model.identity import Grant, Role, User

Opener = Callable[[Path, HandClock], AbstractAsyncContextManager[Catalogue]]


@asynccontextmanager
async def open_memory(folder: Path, clock: HandClock) -> AsyncIterator[Catalogue]:
    catalogue = MemoryCatalogue(MARNE, clock=clock)
    yield catalogue
    await catalogue.close()


@asynccontextmanager
async def open_sqlite(folder: Path, clock: HandClock) -> AsyncIterator[Catalogue]:
    catalogue = await SqliteCatalogue.open(folder / "c.db", site=MARNE, clock=clock)
    yield catalogue
    await catalogue.close()


@asynccontextmanager
async def open_sqlite_without_tail(folder: Path, clock: HandClock) -> AsyncIterator[Catalogue]:
    """Every watch reads from the file."""
    catalogue = await SqliteCatalogue.open(
        folder / "c.db", site=MARNE, clock=clock, tail_events_max=0
    )
    yield catalogue
    await catalogue.close()


@asynccontextmanager
async def open_etcd(folder: Path, clock: HandClock) -> AsyncIterator[Catalogue]:
    async with etcd_cluster(folder) as (member,):
        client = patient_client(member.client_url)
        catalogue = await EtcdCatalogue.open(client, site=MARNE, clock=clock)
        yield catalogue
        await catalogue.close()
        await client.close()


DRIVERS: dict[str, Opener] = {
    "memory": open_memory,
    "sqlite": open_sqlite,
    "sqlite_without_tail": open_sqlite_without_tail,
    "etcd": open_etcd,
}


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(params=DRIVERS)
async def catalogue(
    request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock
) -> AsyncIterator[Catalogue]:
    async with DRIVERS[request.param](tmp_path, clock) as opened:
        yield opened


async def take(catalogue: Catalogue, after_revision: int, count: int) -> list[Event]:
    """Return the next `count` events of a watch."""
    events: list[Event] = []
    async for event in catalogue.watch(after_revision):
        events.append(event)
        if len(events) == count:
            break
    return events


async def test_what_is_put_is_read_back(catalogue: Catalogue, clock: HandClock) -> None:
    (record,) = await catalogue.write([Put(value=vm(1))])
    assert record == await catalogue.get("vm", "vm-1")
    assert (record.kind, record.id, record.home, record.revision) == ("vm", "vm-1", MARNE, 1)
    assert (record.epoch, record.changed_s) == (0, clock.time_s)
    assert record.value == vm(1)


async def test_what_is_absent_is_named(catalogue: Catalogue) -> None:
    assert await catalogue.find("vm", "vm-1") is None
    with pytest.raises(NotFound, match="vm-1"):
        await catalogue.get("vm", "vm-1")
    with pytest.raises(InvalidRequest, match="server"):
        await catalogue.get("server", "vm-1")


async def test_each_changed_object_raises_the_revision_by_one(catalogue: Catalogue) -> None:
    first = await catalogue.write([Put(value=vm(1)), Put(value=decision(1)), Put(value=user(1))])
    second = await catalogue.write([Put(value=vm(1, name="db"))])
    assert [record.revision for record in first + second] == [1, 2, 3, 4]
    assert catalogue.revision == 4


async def test_a_write_is_all_or_nothing(catalogue: Catalogue) -> None:
    await catalogue.write([Put(value=user(1))])
    with pytest.raises(Conflict) as caught:
        await catalogue.write(
            [Put(value=vm(1)), Delete(kind="user", id="user-1"), Put(value=user(2), expected=7)]
        )
    assert caught.value.revision == 0
    assert catalogue.revision == 1
    assert await catalogue.find("vm", "vm-1") is None
    assert await catalogue.find("user", "user-1") is not None
    (record,) = await catalogue.write([Put(value=user(2))])
    assert record.revision == 2


async def test_a_stale_write_is_refused_with_the_revision_stored_now(catalogue: Catalogue) -> None:
    await catalogue.write([Put(value=vm(1), expected=ABSENT)])
    with pytest.raises(Conflict) as caught:
        await catalogue.write([Put(value=vm(1), expected=ABSENT)])
    assert caught.value.revision == 1
    await catalogue.write([Put(value=vm(1, name="db"), expected=1)])
    with pytest.raises(Conflict) as caught:
        await catalogue.write([Delete(kind="vm", id="vm-1", expected=1)])
    assert caught.value.revision == 2


async def test_of_many_writers_that_expect_one_revision_one_wins(catalogue: Catalogue) -> None:
    await catalogue.write([Put(value=vm(1))])
    results = await asyncio.gather(
        *(catalogue.write([Put(value=vm(1, name=f"n{i}"), expected=1)]) for i in range(20)),
        return_exceptions=True,
    )
    won = [result for result in results if not isinstance(result, BaseException)]
    assert len(won) == 1
    assert all(isinstance(r, Conflict) for r in results if isinstance(r, BaseException))
    assert await catalogue.get("vm", "vm-1") == won[0][0]
    assert catalogue.revision == 2


async def test_a_deleted_object_is_gone_and_may_come_back(catalogue: Catalogue) -> None:
    await catalogue.write([Put(value=vm(1))])
    assert await catalogue.write([Delete(kind="vm", id="vm-1", expected=1)]) == ()
    assert await catalogue.find("vm", "vm-1") is None
    with pytest.raises(NotFound):
        await catalogue.write([Delete(kind="vm", id="vm-1")])
    (record,) = await catalogue.write([Put(value=vm(1), expected=ABSENT)])
    assert record.revision == 3


async def test_objects_are_listed_by_iaas_and_by_name(catalogue: Catalogue) -> None:
    await catalogue.write([Put(value=vm(i, iaas=f"iaas-{i % 2}")) for i in range(6)])
    await catalogue.write([Put(value=segment(1, iaas="iaas-0"))])

    async def ids(**query: str) -> list[str]:
        return [r.id for r in await catalogue.list("vm", **query)]  # type: ignore[arg-type]

    assert await ids() == [f"vm-{i}" for i in range(6)]
    assert await ids(iaas_id="iaas-0") == ["vm-0", "vm-2", "vm-4"]
    assert await ids(name="web-3") == ["vm-3"]
    assert await ids(name="web-3", iaas_id="iaas-0") == []
    odd = await catalogue.list("vm", where=lambda record: record.id.endswith(("1", "3")))
    assert [record.id for record in odd] == ["vm-1", "vm-3"]
    await catalogue.write([Put(value=vm(3, name="db", iaas="iaas-0"))])
    assert await ids(name="web-3") == []
    assert await ids(iaas_id="iaas-0") == ["vm-0", "vm-2", "vm-3", "vm-4"]


async def test_a_name_is_unique_in_its_iaas_when_the_write_says_so(catalogue: Catalogue) -> None:
    await catalogue.write([Put(value=vm(1, name="db"), unique_name=True)])
    with pytest.raises(NameTaken) as caught:
        await catalogue.write([Put(value=vm(2, name="db"), unique_name=True)])
    assert caught.value.holder_id == "vm-1"
    await catalogue.write([Put(value=vm(2, name="db", iaas="iaas-2"), unique_name=True)])
    await catalogue.write([Put(value=vm(1, name="db", epoch=1), unique_name=True)])
    await catalogue.write([Delete(kind="vm", id="vm-1")])
    await catalogue.write([Put(value=vm(3, name="db"), unique_name=True)])


async def test_what_has_no_name_takes_none(catalogue: Catalogue) -> None:
    """Ports go by their id: any number of them fits into one IaaS."""
    await catalogue.write([Put(value=port(1), unique_name=True)])
    await catalogue.write([Put(value=port(2), unique_name=True)])
    assert [record.id for record in await catalogue.list("port")] == ["port-1", "port-2"]


async def test_an_older_epoch_is_refused(catalogue: Catalogue) -> None:
    await catalogue.write([Put(value=vm(1, epoch=3))])
    with pytest.raises(StaleEpoch) as caught:
        await catalogue.write([Put(value=vm(1, epoch=2))])
    assert caught.value.epoch == 3
    (record,) = await catalogue.write([Put(value=segment(1), epoch=5)])
    assert record.epoch == 5


async def test_a_unit_has_its_limits(catalogue: Catalogue) -> None:
    with pytest.raises(InvalidRequest):
        await catalogue.write([])
    with pytest.raises(InvalidRequest):
        await catalogue.write([Put(value=vm(i)) for i in range(CHANGES_PER_WRITE_MAX + 1)])
    grants = tuple(Grant(Role.AUDITOR, "x" * 1000) for _ in range(1000))
    with pytest.raises(InvalidRequest):
        await catalogue.write([Put(value=User(user_id=UserId("u"), name="u", grants=grants))])
    records = await catalogue.write([Put(value=vm(i)) for i in range(CHANGES_PER_WRITE_MAX)])
    assert len(records) == CHANGES_PER_WRITE_MAX


async def test_a_watch_resumes_from_any_kept_revision(catalogue: Catalogue) -> None:
    for number in range(1, 6):
        await catalogue.write([Put(value=vm(number)), Put(value=decision(number))])
    await catalogue.write([Delete(kind="vm", id="vm-2")])
    for start in range(11):
        events = await take(catalogue, start, 11 - start)
        assert [event.revision for event in events] == list(range(start + 1, 12))
    assert events[-1].record is None
    assert (events[-1].kind, events[-1].id) == ("vm", "vm-2")
    record = (await take(catalogue, 1, 1))[0].record
    assert record is not None
    assert record.value == decision(1)


async def test_a_watch_sees_what_is_written_later(catalogue: Catalogue) -> None:
    watching = asyncio.create_task(take(catalogue, 0, 3))
    await catalogue.write([Put(value=vm(1))])
    await catalogue.write([Put(value=vm(2)), Put(value=vm(3))])
    assert [event.id for event in await watching] == ["vm-1", "vm-2", "vm-3"]


async def test_a_watch_that_cannot_resume_says_compacted(
    catalogue: Catalogue, clock: HandClock
) -> None:
    for number in range(10):
        await catalogue.write([Put(value=vm(number))])
    assert await catalogue.compact(keep_count=4, keep_age_s=1e9) == 6
    assert catalogue.compacted_revision == 6
    with pytest.raises(Compacted) as caught:
        await take(catalogue, 5, 1)
    assert caught.value.revision == 6
    assert [event.revision for event in await take(catalogue, 6, 4)] == [7, 8, 9, 10]
    with pytest.raises(Compacted):
        await take(catalogue, 11, 1)
    assert len(await catalogue.list("vm")) == 10
    clock.time_s += 100.0
    await catalogue.write([Put(value=vm(11))])
    assert await catalogue.compact(keep_count=100, keep_age_s=50.0) == 10
    assert await catalogue.compact(keep_count=0, keep_age_s=0.0) == 11
    (record,) = await catalogue.write([Put(value=vm(12))])
    assert record.revision == 12
    assert [event.revision for event in await take(catalogue, 11, 1)] == [12]


async def test_history_tells_what_an_object_was(catalogue: Catalogue) -> None:
    await catalogue.write([Put(value=rack(1)), Put(value=vm(1, name="a"))])
    await catalogue.write([Put(value=vm(1, name="b"))])
    await catalogue.write([Delete(kind="vm", id="vm-1")])
    past = await catalogue.history("vm", "vm-1")
    assert [event.revision for event in past] == [2, 3, 4]
    values = [event.record.value for event in past if event.record is not None]
    assert values == [vm(1, name="a"), vm(1, name="b")]
    assert past[-1].record is None


async def test_a_snapshot_is_consistent(catalogue: Catalogue) -> None:
    await catalogue.write([Put(value=vm(1)), Put(value=user(1))])
    await catalogue.write([Delete(kind="vm", id="vm-1")])
    revision, records = catalogue.all_records()
    assert revision == 3
    assert [record.id for record in records] == ["user-1"]


async def test_a_closed_catalogue_refuses(catalogue: Catalogue) -> None:
    waiting = asyncio.create_task(catalogue.wait_beyond(0))
    await asyncio.sleep(0)
    await catalogue.close()
    with pytest.raises(Unavailable):
        await catalogue.write([Put(value=vm(1))])
    with pytest.raises(Unavailable):
        await waiting
