"""What was deleted is given up in the quorum: once it is seen to be gone, and until it is done."""

from typing import Any, cast

import pytest
from tests.unit.daemon.test_energy_keeper import HandClock
from tests.unit.iaas.iaas_makers import datacenter, record, vm, volume

from nuage.catalogue.store import CHANGES_PER_WRITE_MAX
from nuage.daemon.releases import FRESH_S, Releases
from nuage.errors import Unavailable
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import Site
from nuage.ids import IaasId, NodeId, RequestId, SiteId, VmId, VolumeId
from nuage.model.placement import Decision
from nuage.model.record import Noun
from nuage.model.status import Migration
from nuage.model.volume import Erasure, ReplicaPlace
from nuage.quorum.memory import MemoryHub, MemoryQuorum
from nuage.quorum.model import NOBODY, LeaseTiming, Ownership

MARNE, LYON = SiteId("marne"), SiteId("lyon")
VM, VOLUME = VmId("vm-1"), VolumeId("vol-1")


class Room:
    """Marne, which owns a VM and its volume, and Lyon, of which it has a replica."""

    def __init__(self) -> None:
        clock = HandClock()
        self.hub = MemoryHub(clock=clock, timing=LeaseTiming())
        self.quorum = MemoryQuorum(MARNE, self.hub)
        self.index = FederationIndex(MARNE)
        for site in ("marne", "lyon"):
            self.index.put(record(datacenter(site), home=site))
        self.age_s = 0.0
        self.whole = {LYON}
        self.revoked: set[SiteId] = set()
        self.released: list[VmId] = []
        self.site = SimpleSite(self.index, self.quorum, clock, lambda _site: self.age_s)
        self.releases = Releases(
            cast(Site, self.site),
            knows=lambda site_id: site_id in self.whole,
            is_revoked=lambda site_id: site_id in self.revoked,
            released=self.released.append,
        )

    def has(self, value: Noun, *, home: str = "marne", epoch: int = 1) -> None:
        self.index.put(record(value, home=home, epoch=epoch))

    async def own(self) -> None:
        await self.quorum.renew_site_lease("a")
        await self.quorum.claim("volume", VOLUME, MARNE, expected_epoch=0)
        await self.quorum.claim("vm", VM, MARNE, expected_epoch=0)

    async def look(self, times: int = 2) -> set[str]:
        """Look so often; return what is owned then."""
        for _ in range(times):
            await self.releases.look()
        return {owned.id for owned in await self.quorum.owners_of(MARNE)}


class SimpleSite:
    """What the releases ask of a site."""

    def __init__(self, index: FederationIndex, quorum: Any, clock: HandClock, age_of: Any) -> None:
        self.site_id, self.index, self.quorum, self.clock = MARNE, index, quorum, clock
        self.age_of = age_of
        self.deciding: set[VmId] = set()
        self.units: list[int] = []  # how many records were deleted at once

    async def delete(self, *values: Noun) -> None:
        self.units.append(len(values))
        for value in values:
            assert isinstance(value, Decision)
            self.index.remove("decision", value.vm_id, MARNE)


async def test_what_is_deleted_is_released_at_the_second_look_and_its_epoch_stays() -> None:
    room = Room()
    await room.own()
    assert await room.look(1) == {VM, VOLUME}
    assert await room.look(1) == set()
    assert room.released == [VM]
    kept = await room.quorum.owner("vm", VM)
    assert kept == Ownership(kind="vm", id=VM, owner=NOBODY, epoch=1)


async def test_what_any_site_has_a_record_of_stays_owned() -> None:
    """Also one taken over that found no place yet, and one that is only expected here."""
    room = Room()
    await room.own()
    room.has(vm(1, site="lyon", epoch=1), home="lyon")
    room.has(volume(1, epoch=1))
    assert await room.look(3) == {VM, VOLUME}
    room.index.remove("vm", VM, LYON)
    room.has(
        Migration(
            vm_id=VM, source_site=LYON, source_node=NodeId("lyon-v1"),
            target_node=NodeId("marne-v1"), source_epoch=1 << 20, target_epoch=2 << 20,
        )
    )  # fmt: skip
    assert await room.look(3) == {VM, VOLUME}


async def test_a_volume_is_released_once_its_last_copy_is_erased() -> None:
    room = Room()
    await room.own()
    room.has(vm(1, site="marne", epoch=1))
    place = ReplicaPlace(node_id=NodeId("lyon-io1"), site_id=LYON)
    room.has(
        Erasure(
            volume_id=VOLUME, iaas_id=IaasId("iaas-1"), name="disk", label=1, places=(place,),
            is_deleted=True, volume_epoch=1,
        )
    )  # fmt: skip
    assert await room.look(3) == {VM, VOLUME}
    room.index.remove("erasure", VOLUME, MARNE)
    assert await room.look(2) == {VM}


async def test_nothing_is_released_while_a_site_is_not_seen() -> None:
    """What it has a record of, nobody here knows; a site that was revoked is not waited for."""
    room = Room()
    await room.own()
    room.age_s = FRESH_S + 1.0
    assert await room.look(3) == {VM, VOLUME}
    room.age_s, room.whole = 0.0, set()
    assert await room.look(3) == {VM, VOLUME}
    room.revoked = {LYON}
    assert await room.look(1) == set()


async def test_a_site_that_holds_a_lease_and_is_not_known_here_is_waited_for() -> None:
    room = Room()
    await room.own()
    await MemoryQuorum(SiteId("rennes"), room.hub).renew_site_lease("b")
    assert await room.look(3) == {VM, VOLUME}


async def test_a_release_that_no_majority_hears_is_asked_again() -> None:
    room = Room()
    await room.own()
    await room.look(1)
    room.hub.cut.add(MARNE)
    with pytest.raises(Unavailable):
        await room.releases.look()
    room.hub.cut.clear()
    assert await room.look(1) == set()


async def test_what_has_gone_to_another_site_meanwhile_is_left_to_it() -> None:
    room = Room()
    await room.own()
    await MemoryQuorum(LYON, room.hub).renew_site_lease("b")
    await room.look(1)
    await room.quorum.transfer(
        "vm", VM, from_site=MARNE, to_site=LYON, expected_epoch=1
    )  # fmt: skip
    assert await room.look(2) == set()
    assert await room.quorum.owner("vm", VM) == Ownership(kind="vm", id=VM, owner=LYON, epoch=2)


def decision(number: int) -> Decision:
    return Decision(
        request_id=RequestId(f"req-{number}"), vm_id=VmId(f"vm-{number}"), policy="power",
        decided_s=0.0, asked_sites=(LYON,), silent_sites=(), ranked=(), refusals=(),
        elected=NodeId("lyon-v1"), elected_site=LYON,
    )  # fmt: skip


def decided(room: Room) -> set[str]:
    return {record.id for record in room.index.own_copies("decision")}


async def test_decisions_on_vms_that_are_gone_go_at_the_second_look() -> None:
    """This site's own, also where another site's later one hides it."""
    room = Room()
    await room.own()
    room.has(vm(1, site="marne", epoch=1))
    for number in (1, 2, 3, 4):
        room.has(decision(number))
    room.has(decision(2), home="lyon", epoch=7)
    room.site.deciding.add(VmId("vm-4"))
    await room.look(1)
    assert decided(room) == {"vm-1", "vm-2", "vm-3", "vm-4"}
    await room.look(1)
    assert decided(room) == {"vm-1", "vm-4"}
    assert room.index.find("decision", "vm-2") is not None  # lyon's, which lyon deletes


async def test_no_decision_goes_while_a_site_is_not_seen() -> None:
    """It may have the VM."""
    room = Room()
    await room.quorum.renew_site_lease("a")
    room.has(decision(2))
    room.age_s = FRESH_S + 1.0
    await room.look(3)
    assert decided(room) == {"vm-2"}


async def test_what_earlier_versions_left_is_deleted_by_and_by() -> None:
    room = Room()
    await room.quorum.renew_site_lease("a")
    for number in range(CHANGES_PER_WRITE_MAX + 3):
        room.has(decision(number))
    await room.look(2)
    assert room.site.units == [CHANGES_PER_WRITE_MAX, 3]
    assert decided(room) == set()
