"""One suite for both drivers of the quorum."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pytest
from tests.contract.catalogue.catalogue_makers import LYON, MARNE, RENNES, HandClock
from tests.contract.etcd.etcd_process import etcd_cluster, patient_client

from nuage.clock import SystemClock
from nuage.errors import Conflict, StaleEpoch, TimedOut, Unavailable
from nuage.etcd.client import EtcdClient
from nuage.ids import SiteId
from nuage.quorum.etcd import EtcdQuorum
from nuage.quorum.memory import MemoryHub, MemoryQuorum
from nuage.quorum.model import (
    NOBODY,
    LeaseHeld,
    LeaseLost,
    LeaseTiming,
    Ownership,
    Quorum,
    QuorumEvent,
)

TIMING = LeaseTiming(ttl_s=60.0)


class World(Protocol):
    """Three sites on one quorum, and the end of a lease at will."""

    def door(self, site: SiteId) -> Quorum: ...

    async def expire(self, site: SiteId) -> None: ...


@dataclass
class MemoryWorld:
    hub: MemoryHub
    clock: HandClock

    def door(self, site: SiteId) -> Quorum:
        return MemoryQuorum(site, self.hub)

    async def expire(self, site: SiteId) -> None:
        """Let time pass in which everybody else renews."""
        leases = self.hub.state.leases(self.clock.monotonic_s())
        self.clock.time_s += TIMING.ttl_s / 2
        for lease in leases:
            if lease.site != site:
                self.hub.state.renew(lease.site, lease.session, self.clock.monotonic_s())
        self.clock.time_s += TIMING.ttl_s / 2
        self.hub.state.expire(self.clock.monotonic_s())
        self.hub.notify()


@dataclass
class EtcdWorld:
    client: EtcdClient

    def door(self, site: SiteId) -> Quorum:
        return EtcdQuorum(site, self.client, timing=TIMING)

    async def expire(self, site: SiteId) -> None:
        """End the lease as etcd would when its time is over."""
        found = await self.client.range(b"/nuage/quorum/lease/" + site.encode())
        await self.client.lease_revoke(found.kvs[0].lease)


@asynccontextmanager
async def memory_world(folder: Path) -> AsyncIterator[World]:
    clock = HandClock()
    yield MemoryWorld(MemoryHub(clock=clock, timing=TIMING), clock)


@asynccontextmanager
async def etcd_world(folder: Path) -> AsyncIterator[World]:
    async with etcd_cluster(folder) as (member,):
        client = patient_client(member.client_url)
        yield EtcdWorld(client)
        await client.close()


@pytest.fixture(params=[memory_world, etcd_world], ids=["memory", "etcd"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with request.param(tmp_path) as opened:
        yield opened


def owned(owner: SiteId, epoch: int, id: str = "vm-1") -> Ownership:
    return Ownership(kind="vm", id=id, owner=owner, epoch=epoch)


async def test_a_lease_is_held_and_renewed(world: World) -> None:
    marne, rennes = world.door(MARNE), world.door(RENNES)
    assert await marne.site_leases() == ()
    assert await marne.renew_site_lease("a") == 60.0
    assert await marne.renew_site_lease("a") == 60.0
    await rennes.renew_site_lease("b")
    leases = await rennes.site_leases()
    assert [(lease.site, lease.session) for lease in leases] == [(MARNE, "a"), (RENNES, "b")]
    assert await rennes.holders() == {MARNE, RENNES}
    assert all(55.0 < lease.remaining_s <= 60.0 for lease in leases)


async def test_a_restarted_controller_carries_on_and_a_stranger_waits(world: World) -> None:
    await world.door(MARNE).renew_site_lease("a")
    assert await world.door(MARNE).renew_site_lease("a") == 60.0
    with pytest.raises(LeaseHeld):
        await world.door(MARNE).renew_site_lease("b")
    await world.expire(MARNE)
    assert await world.door(MARNE).renew_site_lease("b") == 60.0


async def test_an_expired_lease_is_taken_anew(world: World) -> None:
    marne = world.door(MARNE)
    await marne.renew_site_lease("a")
    await world.expire(MARNE)
    assert await marne.site_leases() == ()
    assert await marne.holders() == frozenset()
    assert await marne.renew_site_lease("a") == 60.0
    assert len(await marne.site_leases()) == 1


async def test_a_claim_makes_an_owner_once(world: World) -> None:
    marne, rennes = world.door(MARNE), world.door(RENNES)
    await marne.renew_site_lease("a")
    await rennes.renew_site_lease("b")
    assert await marne.owner("vm", "vm-1") is None
    assert await marne.claim("vm", "vm-1", MARNE, expected_epoch=0) == owned(MARNE, 1)
    assert await rennes.owner("vm", "vm-1") == owned(MARNE, 1)
    assert await marne.claim("vm", "vm-1", MARNE, expected_epoch=0) == owned(MARNE, 1)
    with pytest.raises(StaleEpoch) as caught:
        await rennes.claim("vm", "vm-1", RENNES, expected_epoch=0)
    assert caught.value.epoch == 1
    with pytest.raises(Conflict, match="marne"):
        await rennes.claim("vm", "vm-1", RENNES, expected_epoch=1)


async def test_a_site_without_a_lease_owns_nothing_new(world: World) -> None:
    marne, rennes = world.door(MARNE), world.door(RENNES)
    with pytest.raises(LeaseLost):
        await marne.claim("vm", "vm-1", MARNE, expected_epoch=0)
    await marne.renew_site_lease("a")
    await marne.claim("vm", "vm-1", MARNE, expected_epoch=0)
    with pytest.raises(LeaseLost):
        await marne.transfer("vm", "vm-1", from_site=MARNE, to_site=RENNES, expected_epoch=1)
    await world.expire(MARNE)
    with pytest.raises(LeaseLost):
        await rennes.takeover("vm", "vm-1", from_site=MARNE, by_site=RENNES, expected_epoch=1)
    assert await rennes.owner("vm", "vm-1") == owned(MARNE, 1)


async def test_a_transfer_moves_the_epoch(world: World) -> None:
    marne, rennes = world.door(MARNE), world.door(RENNES)
    await marne.renew_site_lease("a")
    await rennes.renew_site_lease("b")
    await marne.claim("vm", "vm-1", MARNE, expected_epoch=0)
    moved = await marne.transfer("vm", "vm-1", from_site=MARNE, to_site=RENNES, expected_epoch=1)
    assert moved == owned(RENNES, 2)
    with pytest.raises(StaleEpoch):
        await marne.transfer("vm", "vm-1", from_site=MARNE, to_site=LYON, expected_epoch=1)
    with pytest.raises(Conflict, match="rennes"):
        await marne.transfer("vm", "vm-1", from_site=MARNE, to_site=MARNE, expected_epoch=2)
    assert await marne.owners_of(MARNE) == ()
    assert await marne.owners_of(RENNES) == (owned(RENNES, 2),)


async def test_a_takeover_waits_for_the_lease_to_expire(world: World) -> None:
    marne, rennes = world.door(MARNE), world.door(RENNES)
    await marne.renew_site_lease("a")
    await rennes.renew_site_lease("b")
    for id in ("vm-1", "vm-2"):
        await marne.claim("vm", id, MARNE, expected_epoch=0)
    with pytest.raises(LeaseHeld):
        await rennes.takeover("vm", "vm-1", from_site=MARNE, by_site=RENNES, expected_epoch=1)
    await world.expire(MARNE)
    taken = await rennes.takeover("vm", "vm-1", from_site=MARNE, by_site=RENNES, expected_epoch=1)
    assert taken == owned(RENNES, 2)
    with pytest.raises(StaleEpoch):
        await rennes.takeover("vm", "vm-1", from_site=MARNE, by_site=LYON, expected_epoch=1)
    await marne.renew_site_lease("a")
    assert await marne.owners_of(MARNE) == (owned(MARNE, 1, "vm-2"),)


async def test_what_is_promised_is_inherited_once_and_by_its_heir_alone(world: World) -> None:
    marne, rennes = world.door(MARNE), world.door(RENNES)
    await marne.renew_site_lease("a")
    await rennes.renew_site_lease("b")
    await marne.claim("vm", "vm-1", MARNE, expected_epoch=0)
    with pytest.raises(LeaseLost):
        await marne.promise("vm", "vm-1", owner=MARNE, heir=LYON, expected_epoch=1)
    with pytest.raises(Conflict, match="nobody"):
        await rennes.inherit("vm", "vm-1", owner=MARNE, heir=RENNES, expected_epoch=1)
    promised = replace(owned(MARNE, 1), heir=RENNES)
    for _ in range(2):
        told = await marne.promise("vm", "vm-1", owner=MARNE, heir=RENNES, expected_epoch=1)
        assert told == promised
    assert await rennes.owner("vm", "vm-1") == promised
    assert await rennes.owners_of(MARNE) == (promised,)
    with pytest.raises(StaleEpoch):
        await marne.promise("vm", "vm-1", owner=MARNE, heir=RENNES, expected_epoch=2)
    for _ in range(2):
        had = await rennes.inherit("vm", "vm-1", owner=MARNE, heir=RENNES, expected_epoch=1)
        assert had == owned(RENNES, 2)
    with pytest.raises(StaleEpoch):
        await marne.promise("vm", "vm-1", owner=MARNE, heir=NOBODY, expected_epoch=1)


async def test_a_promise_is_taken_back(world: World) -> None:
    marne, rennes = world.door(MARNE), world.door(RENNES)
    await marne.renew_site_lease("a")
    await rennes.renew_site_lease("b")
    await marne.claim("vm", "vm-1", MARNE, expected_epoch=0)
    await marne.promise("vm", "vm-1", owner=MARNE, heir=RENNES, expected_epoch=1)
    for _ in range(2):
        kept = await marne.promise("vm", "vm-1", owner=MARNE, heir=NOBODY, expected_epoch=1)
        assert kept == owned(MARNE, 1)
    with pytest.raises(Conflict, match="nobody"):
        await rennes.inherit("vm", "vm-1", owner=MARNE, heir=RENNES, expected_epoch=1)


async def test_a_takeover_waits_for_the_heirs_lease_too_but_the_heir_does_not(world: World) -> None:
    marne, rennes, lyon = world.door(MARNE), world.door(RENNES), world.door(LYON)
    for site, door in ((MARNE, marne), (RENNES, rennes), (LYON, lyon)):
        await door.renew_site_lease(site)
    for id in ("vm-1", "vm-2"):
        await marne.claim("vm", id, MARNE, expected_epoch=0)
        await marne.promise("vm", id, owner=MARNE, heir=RENNES, expected_epoch=1)
    with pytest.raises(LeaseHeld):
        await rennes.takeover("vm", "vm-1", from_site=MARNE, by_site=RENNES, expected_epoch=1)
    await world.expire(MARNE)
    with pytest.raises(LeaseHeld, match="rennes"):
        await lyon.takeover("vm", "vm-1", from_site=MARNE, by_site=LYON, expected_epoch=1)
    taken = await rennes.takeover("vm", "vm-1", from_site=MARNE, by_site=RENNES, expected_epoch=1)
    assert taken == owned(RENNES, 2)
    await world.expire(RENNES)
    other = await lyon.takeover("vm", "vm-2", from_site=MARNE, by_site=LYON, expected_epoch=1)
    assert other == owned(LYON, 2, "vm-2")


async def test_of_many_takers_one_wins(world: World) -> None:
    marne = world.door(MARNE)
    await marne.renew_site_lease("a")
    await marne.claim("vm", "vm-1", MARNE, expected_epoch=0)
    takers = {SiteId(f"site-{i}"): world.door(SiteId(f"site-{i}")) for i in range(6)}
    for site, door in takers.items():
        await door.renew_site_lease(site)
    await world.expire(MARNE)
    results = await asyncio.gather(
        *(
            door.takeover("vm", "vm-1", from_site=MARNE, by_site=site, expected_epoch=1)
            for site, door in takers.items()
        ),
        return_exceptions=True,
    )
    won = [result for result in results if isinstance(result, Ownership)]
    # A disk that stalls lets a taker go without an answer; then the quorum says who it was.
    untold = [result for result in results if isinstance(result, TimedOut | Unavailable)]
    lost = [result for result in results if isinstance(result, Conflict)]
    assert len(won) + len(untold) + len(lost) == len(takers), results
    owner = await marne.owner("vm", "vm-1")
    assert won == [owner] or (untold and not won)


async def test_a_released_object_keeps_its_epoch(world: World) -> None:
    marne = world.door(MARNE)
    await marne.renew_site_lease("a")
    await marne.claim("vm", "vm-1", MARNE, expected_epoch=0)
    with pytest.raises(StaleEpoch):
        await marne.release("vm", "vm-1", owner=MARNE, expected_epoch=2)
    with pytest.raises(Conflict):
        await marne.release("vm", "vm-1", owner=RENNES, expected_epoch=1)
    await marne.release("vm", "vm-1", owner=MARNE, expected_epoch=1)
    await marne.release("vm", "vm-1", owner=MARNE, expected_epoch=1)
    assert await marne.owners_of(MARNE) == ()
    with pytest.raises(StaleEpoch):
        await marne.claim("vm", "vm-1", MARNE, expected_epoch=0)
    assert await marne.claim("vm", "vm-1", MARNE, expected_epoch=1) == owned(MARNE, 2)


async def test_what_was_released_is_nobodys_to_take_over_or_to_inherit(world: World) -> None:
    """Whoever expected it, and a site that returns, hears that it is gone."""
    marne, rennes = world.door(MARNE), world.door(RENNES)
    await marne.renew_site_lease("a")
    await rennes.renew_site_lease("b")
    await marne.claim("vm", "vm-1", MARNE, expected_epoch=0)
    await marne.promise("vm", "vm-1", owner=MARNE, heir=RENNES, expected_epoch=1)
    await marne.release("vm", "vm-1", owner=MARNE, expected_epoch=1)
    released = owned(NOBODY, 1)
    assert await rennes.owner("vm", "vm-1") == released
    with pytest.raises(Conflict):
        await rennes.inherit("vm", "vm-1", owner=MARNE, heir=RENNES, expected_epoch=1)
    with pytest.raises(Conflict):
        await marne.transfer("vm", "vm-1", from_site=MARNE, to_site=RENNES, expected_epoch=1)
    await world.expire(MARNE)
    with pytest.raises(Conflict):
        await rennes.takeover("vm", "vm-1", from_site=MARNE, by_site=RENNES, expected_epoch=1)
    assert await rennes.owner("vm", "vm-1") == released


async def test_a_watch_tells_of_leases_and_owners(world: World) -> None:
    marne = world.door(MARNE)
    await marne.renew_site_lease("a")
    seen: list[QuorumEvent] = []
    started = asyncio.Event()

    async def look() -> None:
        async for event in world.door(RENNES).watch():
            seen.append(event)
            started.set()
            if len(seen) >= 3 and seen[-1] == QuorumEvent(site=MARNE):
                return

    looking = asyncio.create_task(look())
    number = 0
    while not started.is_set():  # the watch begins when it begins
        number += 1
        await marne.claim("vm", f"vm-{number}", MARNE, expected_epoch=0)
        await SystemClock().sleep(0.005)
    await marne.claim("gateway", "gw-1", MARNE, expected_epoch=0)
    await marne.release("gateway", "gw-1", owner=MARNE, expected_epoch=1)
    await world.expire(MARNE)
    await looking
    assert any(event.ownership is not None for event in seen)
