"""A site that falls silent stops before the others take over, on three real members."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from tests.contract.catalogue.catalogue_makers import MARNE, RENNES
from tests.contract.etcd.etcd_process import EtcdMember, etcd_cluster

from nuage.clock import SystemClock
from nuage.etcd.client import EtcdClient
from nuage.ids import SiteId
from nuage.quorum.etcd import EtcdQuorum
from nuage.quorum.lease import LeaseHolder
from nuage.quorum.model import LeaseHeld, LeaseTiming, Ownership

pytestmark = pytest.mark.system

# A hold of 4 s: an election after a member's death takes up to 2 s.
TIMING = LeaseTiming(ttl_s=6.0, stop_s=0.5, election_s=1.0)


class Door:
    """A site's quorum and the loop that holds its lease, at its own member first."""

    def __init__(self, site: SiteId, members: list[EtcdMember]) -> None:
        self.clock = SystemClock()
        self.client = EtcdClient([member.client_url for member in members])
        self.quorum = EtcdQuorum(site, self.client, timing=TIMING)
        self.told: list[tuple[Ownership, ...]] = []
        self.holder = LeaseHolder(
            self.quorum, site, clock=self.clock, timing=TIMING, acquired=self.told.append
        )
        self.task = asyncio.create_task(self.holder.hold())

    async def until_held(self) -> None:
        while not self.holder.view.is_held(self.clock.monotonic_s()):
            await self.clock.sleep(0.05)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.client.close()


async def take(door: Door, number: int) -> float:
    """Try to take a VM over until it succeeds; return when that was."""
    while True:
        try:
            await door.quorum.takeover(
                "vm", f"vm-{number}", from_site=MARNE, by_site=RENNES, expected_epoch=1
            )
        except LeaseHeld:
            await door.clock.sleep(0.02)
        else:
            return door.clock.monotonic_s()


async def test_a_silent_site_has_stopped_before_it_is_taken_over(tmp_path: Path) -> None:
    async with etcd_cluster(tmp_path, size=3) as members, contextlib.AsyncExitStack() as open_doors:
        marne = Door(MARNE, members)
        open_doors.push_async_callback(marne.close)
        rennes = Door(RENNES, [*members[1:], members[0]])
        open_doors.push_async_callback(rennes.close)
        await marne.until_held()
        await rennes.until_held()
        for number in (1, 2):
            await marne.quorum.claim("vm", f"vm-{number}", MARNE, expected_epoch=0)
        await marne.clock.sleep(TIMING.hold_s)
        assert marne.holder.view.is_held(marne.clock.monotonic_s()), "renewed meanwhile"
        marne.task.cancel()
        held_until_s = marne.holder.view.held_until_s
        taken_s = await take(rennes, 1)
        assert held_until_s + TIMING.stop_s <= taken_s
        assert taken_s <= held_until_s + 2 * TIMING.ttl_s, "and not much later"
        # Back again: what was taken is not told as ours, what was not, is.
        marne.task = asyncio.create_task(marne.holder.hold())
        await marne.until_held()
        assert [ownership.id for ownership in marne.told[-1]] == ["vm-2"]
        assert marne.holder.view.generation == 2
        # A member that dies costs neither site its lease.
        await members[0].kill()
        await marne.clock.sleep(TIMING.hold_s)
        assert rennes.holder.view.is_held(rennes.clock.monotonic_s())
        await marne.until_held()
        assert (await rennes.quorum.owner("vm", "vm-2")) == Ownership(
            kind="vm", id="vm-2", owner=MARNE, epoch=1
        )
