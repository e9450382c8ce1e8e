"""The agent's loop over the fake hypervisor: what it keeps, what it survives, what it tells."""

import asyncio
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nuage.clock import SystemClock
from nuage.errors import Conflict, CorruptData
from nuage.ids import IaasId, NodeId, SiteId, VmId, VolumeId
from nuage.model.desired import (
    DiskWish,
    IncomingMigration,
    OutgoingMigration,
    VmReport,
    VmWish,
    VnodeWish,
)
from nuage.model.vm import PowerWish, VmShape, VmState
from nuage.vnode.agent import AgentOptions, VnodeAgent, slots_of
from nuage.vnode.fake import FakeFabric, FakeHypervisor
from nuage.vnode.hypervisor import Disk, GuestSeen, GuestSpec, IscsiDisk
from nuage.vnode.ports import NoPlug
from nuage.vnode.sed import NodeFacts, Sed

VM = VmId("vm-1")
SECRET = "a-secret-that-must-not-be-read"


def wish(power: PowerWish = PowerWish.RUNNING) -> VmWish:
    disk = DiskWish(
        volume_id=VolumeId("volume-1"), portal="10.0.0.9:3260", iqn="iqn.x:1", chap_user="u",
        chap_secret=SECRET, epoch=1, size_bytes=1 << 20,
    )  # fmt: skip
    return VmWish(
        vm_id=VM, iaas_id=IaasId("iaas-1"), name="web-1", shape=VmShape(), wish=power, epoch=1,
        disks=(disk,), ports=(),
    )  # fmt: skip


Maker = Callable[[str, FakeHypervisor], VnodeAgent]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Maker]:
    agents: list[VnodeAgent] = []

    def build(name: str, hypervisor: FakeHypervisor) -> VnodeAgent:
        node, site = NodeId(name), SiteId("marne")
        facts = NodeFacts(
            node_id=node, site_id=site, accelerator="fake", cpu_count=2, memory_mib=1024
        )
        clock = SystemClock()
        sed = Sed(facts, clock=clock, meter=lambda: None, cache=tmp_path / name / "flops.json")
        options = AgentOptions(
            node_id=node, site_id=site, state_dir=tmp_path / name, listen_host="10.0.0.2"
        )
        agent = VnodeAgent(options, hypervisor=hypervisor, plug=NoPlug(), sed=sed, clock=clock)
        agents.append(agent)
        return agent

    yield build
    for agent in agents:
        await agent.close()


async def report_when(agent: VnodeAgent, wanted: Callable[[VmReport], bool]) -> VmReport:
    """Follow the agent's reports until its only VM is as wanted."""
    async with asyncio.timeout(10):
        async for report in agent.reports():
            for vm in report.vms:
                if wanted(vm):
                    return vm
    raise AssertionError("the reports ended")


def is_state(state: VmState) -> Callable[[VmReport], bool]:
    return lambda vm: vm.state is state


async def test_a_vm_is_started_stopped_and_deleted_as_wished(make: Maker) -> None:
    agent = make("node-a", FakeHypervisor())
    await agent.open()
    await agent.take_wish(VnodeWish(revision=1, vms=(wish(),)))
    running = await report_when(agent, is_state(VmState.RUNNING))
    assert running.disk_slots == (VolumeId("volume-1"),)
    assert agent.report().estimate.running == (VM,)
    assert agent.report().estimate.requests_served == 0, "it has no meter, so no history"
    await agent.take_wish(VnodeWish(revision=2, vms=(wish(PowerWish.STOPPED),)))
    await report_when(agent, is_state(VmState.STOPPED))
    await agent.take_wish(VnodeWish(revision=3, vms=(wish(PowerWish.DELETED),)))
    await report_when(agent, is_state(VmState.DELETED))
    await agent.take_wish(VnodeWish(revision=4, vms=()))
    assert agent.report().vms == ()
    assert agent.report().wish_revision == 4


class SlowToLook(FakeHypervisor):
    """A start ends while the agent looks, and what it looked at was before."""

    def __init__(self) -> None:
        super().__init__(FakeFabric())
        self.starts = 0
        self._looks, self._started = asyncio.Event(), asyncio.Event()

    async def start(self, spec: GuestSpec) -> None:
        self.starts += 1
        await self._looks.wait()
        await super().start(spec)
        self._started.set()

    async def seen(self) -> tuple[GuestSeen, ...]:
        before = await super().seen()
        if self.starts:
            self._looks.set()
            await self._started.wait()
        return before


async def test_a_guest_that_comes_up_while_the_agent_looks_is_not_started_again(
    make: Maker,
) -> None:
    hypervisor = SlowToLook()
    agent = make("v1", hypervisor)
    await agent.open()
    await agent.take_wish(VnodeWish(revision=1, vms=(wish(),)))
    await agent.step()
    running = await report_when(agent, is_state(VmState.RUNNING))
    assert running.failure == ""
    assert hypervisor.starts == 1


class SlowToRepoint(FakeHypervisor):
    """A disk changes its way only once it is led to where its volume is by then."""

    def __init__(self) -> None:
        super().__init__(FakeFabric())
        self.followed: list[str] = []
        self.begun = asyncio.Event()
        self._followed = asyncio.Event()

    async def repoint_disk(self, vm_id: VmId, slot: int, disk: Disk) -> None:
        self.begun.set()
        if not self.followed:
            async with asyncio.timeout(10):
                await self._followed.wait()
        await super().repoint_disk(vm_id, slot, disk)

    def is_at(self, portal: str) -> bool:
        (guest,) = self._guests.values()
        (disk,) = guest.seen.disks
        return isinstance(disk, IscsiDisk) and disk.portal == portal

    async def follow_disk(self, vm_id: VmId, slot: int, disk: Disk) -> None:
        await super().follow_disk(vm_id, slot, disk)
        assert isinstance(disk, IscsiDisk)
        self.followed.append(disk.portal)
        self._followed.set()


async def test_a_volume_that_moves_again_is_followed_before_the_first_move_ends(
    make: Maker,
) -> None:
    hypervisor = SlowToRepoint()
    agent = make("v1", hypervisor)
    await agent.open()
    disk = wish().disks[0]
    at = [replace(wish(), disks=(replace(disk, portal=f"10.0.0.{i}:1"),)) for i in "123"]
    await agent.take_wish(VnodeWish(revision=1, vms=(at[0],)))
    await report_when(agent, is_state(VmState.RUNNING))
    await agent.take_wish(VnodeWish(revision=2, vms=(at[1],)))
    await hypervisor.begun.wait()
    await agent.step()
    assert hypervisor.followed == []
    await agent.take_wish(VnodeWish(revision=3, vms=(at[2],)))
    await agent.step()
    assert hypervisor.followed == ["10.0.0.3:1"], "told once"
    arrived = asyncio.Event()

    def look(_vm_id: VmId) -> None:
        if hypervisor.is_at("10.0.0.3:1"):
            arrived.set()

    hypervisor.subscribe(look)
    look(VM)
    async with asyncio.timeout(10):
        await arrived.wait()


async def test_an_agent_goes_on_with_its_last_wish_after_a_restart(make: Maker) -> None:
    hypervisor = FakeHypervisor()
    first = make("node-a", hypervisor)
    await first.open()
    await first.take_wish(VnodeWish(revision=7, vms=(wish(),)))
    await report_when(first, is_state(VmState.RUNNING))
    await first.close()
    second = make("node-a", hypervisor)
    await second.open()
    assert second.report().wish_revision == 7
    assert hypervisor.acts == [("start", VM)]
    hypervisor.lose_disk(VM)
    await report_when(second, lambda _vm: hypervisor.acts == [("start", VM), ("resume", VM)])


async def test_an_agent_that_begins_starts_nothing_before_its_controller_has_spoken(
    make: Maker,
) -> None:
    """Its node may have been switched off for good, and its VMs be running elsewhere."""
    hypervisor = FakeHypervisor()
    first = make("node-a", hypervisor)
    await first.open()
    await first.take_wish(VnodeWish(revision=7, vms=(wish(),)))
    await report_when(first, is_state(VmState.RUNNING))
    await first.close()
    hypervisor.crash(VM)
    second = make("node-a", hypervisor)
    await second.open()
    await second.step()
    assert hypervisor.acts == [("start", VM)]
    await second.take_wish(VnodeWish(revision=7, vms=(wish(),)))
    await report_when(second, is_state(VmState.RUNNING))
    assert hypervisor.acts == [("start", VM), ("start", VM)]


async def test_the_memory_is_private_to_the_agent(make: Maker, tmp_path: Path) -> None:
    agent = make("node-a", FakeHypervisor())
    await agent.open()
    await agent.take_wish(VnodeWish(revision=1, vms=(wish(),)))
    path = tmp_path / "node-a/agent.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SECRET not in repr(agent.report())


async def test_an_older_wish_is_refused(make: Maker) -> None:
    agent = make("node-a", FakeHypervisor())
    await agent.open()
    await agent.take_wish(VnodeWish(revision=5, vms=(wish(),)))
    with pytest.raises(Conflict) as caught:
        await agent.take_wish(VnodeWish(revision=4, vms=()))
    assert caught.value.revision == 5


async def test_a_memory_that_does_not_parse_stops_the_agent_not_the_guests(
    make: Maker, tmp_path: Path
) -> None:
    (tmp_path / "node-a").mkdir()
    (tmp_path / "node-a/agent.json").write_text("{")
    hypervisor = FakeHypervisor()
    with pytest.raises(CorruptData, match="parse"):
        await make("node-a", hypervisor).open()
    assert hypervisor.acts == []


async def test_an_orphan_is_reported_and_runs_on(make: Maker) -> None:
    hypervisor = FakeHypervisor()
    first = make("node-a", hypervisor)
    await first.open()
    await first.take_wish(VnodeWish(revision=1, vms=(wish(),)))
    await report_when(first, is_state(VmState.RUNNING))
    await first.take_wish(VnodeWish(revision=2, vms=()))
    orphan = await report_when(first, lambda vm: vm.orphan)
    assert orphan.state is VmState.RUNNING
    stranger = make("node-b", hypervisor)  # an agent that lost its memory altogether
    await stranger.open()
    assert [vm.orphan for vm in stranger.report().vms] == [True]
    await stranger.take_wish(VnodeWish(revision=3, vms=(wish(),)))  # its record came back
    adopted = await report_when(stranger, lambda vm: not vm.orphan)
    assert adopted.state is VmState.RUNNING
    assert hypervisor.acts == [("start", VM)]


async def test_a_node_that_comes_back_keeps_nothing_of_a_vm_that_started_elsewhere(
    make: Maker,
) -> None:
    hypervisor = FakeHypervisor()
    agent = make("node-a", hypervisor)
    await agent.open()
    await agent.take_wish(VnodeWish(revision=1, vms=(wish(),)))
    await report_when(agent, is_state(VmState.RUNNING))
    await agent.close()
    hypervisor.crash(VM)  # as its node did
    again = make("node-a", hypervisor)
    await again.open()
    await again.take_wish(VnodeWish(revision=2, vms=(), withheld=()))
    async with asyncio.timeout(10):
        async for report in again.reports():
            if not report.vms:
                break
    assert await hypervisor.seen() == ()


async def test_what_ended_of_a_vm_that_nobody_remembers_goes_once_a_wish_says_it_is_none_here(
    make: Maker,
) -> None:
    hypervisor = FakeHypervisor()
    first = make("node-a", hypervisor)
    await first.open()
    await first.take_wish(VnodeWish(revision=1, vms=(wish(),)))
    await report_when(first, is_state(VmState.RUNNING))
    await first.close()
    stranger = make("node-b", hypervisor)  # an agent that lost its memory
    await stranger.open()
    await stranger.take_wish(VnodeWish(revision=2, vms=(), withheld=()))
    assert await hypervisor.seen(), "it runs"
    hypervisor.crash(VM)
    stranger = make("node-c", hypervisor)
    await stranger.open()
    for revision, withheld in enumerate((None, (VM,)), start=3):
        await stranger.take_wish(VnodeWish(revision=revision, vms=(), withheld=withheld))
        await stranger.step()
        assert await hypervisor.seen(), "nobody said that it is no VM of this node"
    await stranger.take_wish(VnodeWish(revision=5, vms=(), withheld=()))
    async with asyncio.timeout(10):
        async for report in stranger.reports():
            if not report.vms:
                break
    assert await hypervisor.seen() == ()


async def test_a_start_that_fails_says_why_and_is_tried_again(make: Maker) -> None:
    hypervisor = FakeHypervisor()
    hypervisor.refuses_to_start = "no such disk"
    agent = make("node-a", hypervisor)
    await agent.open()
    await agent.take_wish(VnodeWish(revision=1, vms=(wish(),)))
    failed = await report_when(agent, is_state(VmState.FAILED))
    assert "no such disk" in failed.failure
    hypervisor.refuses_to_start = ""
    await report_when(agent, is_state(VmState.RUNNING))


async def test_two_agents_move_a_vm_when_the_controller_lets_them(make: Maker) -> None:
    fabric = FakeFabric()
    source, target = FakeHypervisor(fabric), FakeHypervisor(fabric)
    left, right = make("node-a", source), make("node-b", target)
    for agent in (left, right):
        await agent.open()
    await left.take_wish(VnodeWish(revision=1, vms=(wish(),)))
    await report_when(left, is_state(VmState.RUNNING))
    incoming = IncomingMigration(source_node_id=NodeId("node-a"), source_epoch=1, secret=SECRET)
    arriving = replace(wish(), epoch=2, incoming=incoming)
    await right.take_wish(VnodeWish(revision=1, vms=(arriving,)))
    address = (await report_when(right, lambda vm: vm.migration_address != "")).migration_address
    outgoing = OutgoingMigration(target_node_id=NodeId("node-b"), address=address, secret=SECRET)
    await left.take_wish(VnodeWish(revision=2, vms=(replace(wish(), outgoing=outgoing),)))
    await report_when(left, lambda vm: vm.ready_to_switch)
    assert ("migrate_continue", VM) not in source.acts
    allowed = replace(outgoing, may_switch=True)
    await left.take_wish(VnodeWish(revision=3, vms=(replace(wish(), outgoing=allowed),)))
    gone = await report_when(left, lambda vm: vm.migrated)
    assert gone.downtime_ms > 0
    arrived = await report_when(right, is_state(VmState.RUNNING))
    assert arrived.epoch == 2
    await left.take_wish(VnodeWish(revision=4, vms=()))
    async with asyncio.timeout(10):
        async for report in left.reports():
            if report.vms == ():
                break


def test_an_arriving_vm_has_its_disks_where_its_source_has_them() -> None:
    incoming = IncomingMigration(
        source_node_id=NodeId("a"), source_epoch=1,
        disk_slots=(VolumeId(""), VolumeId("volume-1")),
    )  # fmt: skip
    arriving = replace(wish(), incoming=incoming)
    assert slots_of(arriving) == [None, wish().disks[0]]
