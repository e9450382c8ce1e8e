"""V-nodes and IO-nodes: the agents' machines on fake hypervisors and storage daemons."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from tests.simulation.federation.whole_sites import SimSite, Sites, stand_in

from nuage.daemon.agent import HeardLeases
from nuage.daemon.nodes import ReportTaken
from nuage.daemon.vnode import VnodeProcess
from nuage.errors import NuageError, Unavailable
from nuage.iaas import heads, past
from nuage.ids import IaasId, NodeId, RackId, SiteId, VmId, VolumeId
from nuage.ionode.copies import OriginMissing, make_copy
from nuage.ionode.fake import FakeDaemon
from nuage.ionode.plan import (
    Act,
    CloseHead,
    Create,
    EndStandby,
    Erase,
    Fill,
    OpenHead,
    Resize,
    StandBy,
    Tell,
    plan,
)
from nuage.model.contract import DiskClass
from nuage.model.desired import (
    CopyReport,
    DiskReport,
    HeadReport,
    HeadWish,
    IonodeReport,
    IonodeWish,
    ReplicaReport,
    VnodeReport,
    VnodeWish,
)
from nuage.model.history import IMAGE_MARK, AskMark, AskMoment
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.placement import EstimationVector
from nuage.model.status import OVERCOMMIT_RATIO
from nuage.simulation.virtual_time import SkewedClock
from nuage.units import GIB
from nuage.vnode import machine
from nuage.vnode.fake import FakeFabric, FakeHypervisor
from nuage.vnode.hypervisor import (
    GuestSeen,
    GuestSpec,
    IscsiDisk,
    MigrationStatus,
    RunState,
)
from nuage.vnode.memory import AgentMemory, GuestMemory, forget, remember, take_wish
from nuage.vnode.reporting import orphan_report, vm_report

if TYPE_CHECKING:
    from pathlib import Path

DISK = DiskReport(
    name="d0", disk_class=DiskClass.NVME, free_bytes=900 * GIB, total_bytes=1000 * GIB
)

AGENT_DOWN_S = 2.0
POLL_S = 0.8
VCPUS = 16
MEMORY_MIB = 16_384


@dataclass
class SimVnode:
    """A V-node: its agent's memory is its disk, its guests are its power's."""

    world: Sites
    site: SimSite
    node: Node
    clock: SkewedClock
    fabric: FakeFabric
    memory: AgentMemory = field(default_factory=AgentMemory)
    is_powered: bool = True
    bmc_answers: bool = True
    last_wish: VnodeWish | None = None
    _offered: VnodeWish | None = None  # what the stream of wishes told last
    boots: int = 0
    sending_s: tuple[float, float] = (0.0, 3.0)  # how long a guest's memory takes, from to

    def __post_init__(self) -> None:
        self._channel = stand_in(leases=HeardLeases())
        self._clock = self.clock
        self._new_hypervisor()

    def _new_hypervisor(self) -> None:
        self.hypervisor = FakeHypervisor(self.fabric)
        self.hypervisor.sends_slowly = True
        self.hypervisor.subscribe(self._changed)

    def _changed(self, vm_id: VmId) -> None:
        guest = self.hypervisor._guests.get(vm_id)
        runs = guest is not None and guest.seen.state is RunState.RUNNING
        cast("Watching", self.world).guest_changed(self, vm_id, runs=runs)

    def running(self) -> set[VmId]:
        return {
            vm_id
            for vm_id, guest in self.hypervisor._guests.items()
            if guest.seen.state is RunState.RUNNING
        }

    # Power ----------------------------------------------------------------------------------------

    def power_off(self) -> None:
        """Lose all guests at once; the disk keeps the agent's memory."""
        if not self.is_powered:
            return
        self.is_powered = False
        for vm_id in list(self.hypervisor._guests):
            self.hypervisor.crash(vm_id)
        for address, (owner, _) in list(self.fabric.listeners.items()):
            if owner is self.hypervisor:
                del self.fabric.listeners[address]
        self._new_hypervisor()
        self._channel.leases = HeardLeases()
        self.last_wish = self._offered = None
        self.memory = replace(self.memory, heard=False)  # as it is read from the disk
        self.boots += 1

    def power_on(self) -> None:
        self.is_powered = True

    def say_goodbye(self) -> None:
        """Tell the controller that the agent is stopped in order."""
        site, node_id = self.site, self.node.node_id
        is_there = site.machine.is_up and self.world.wires.is_up(node_id, site.site_id)
        if self.is_powered and is_there:
            site.sessions._heard(node_id)
            site.sessions.expect_back(node_id)
            site.reconciler.node_restarts(node_id)

    # The agent ------------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S * self.world.prng.uniform(0.9, 1.1))
            if self.is_powered:
                await self.step()
                await self._talk()

    async def _talk(self) -> None:
        node_id, site = self.node.node_id, self.site
        sent_s, report, boots = self.clock.monotonic_s(), self.report(), self.boots

        def tell() -> tuple[ReportTaken, bool]:
            site.greet(self.node)
            wish = site.sessions.slot(node_id).wish
            return site.take_vnode(report), wish is not None and wish is not self._offered

        def fetch() -> VnodeWish | None:
            return cast(VnodeWish | None, site.sessions.slot(node_id).wish)

        try:
            taken, is_news = await self.world.wires.exchange(
                node_id, site.machine, tell, timeout_s=3.0, doing="report"
            )
            if self.boots != boots:
                return
            if taken.lease_s > 0:
                self._channel.leases.hear(taken.lease_term, sent_s + taken.lease_s)
            if self.last_wish is not None and any(vm.lease_until_s for vm in self.last_wish.vms):
                await self._take(self.last_wish)
            if not is_news:  # a stream tells only what is new
                return
            wish = await self.world.wires.exchange(
                node_id, site.machine, fetch, timeout_s=3.0, doing="wishes"
            )
            if self.boots == boots:
                self._offered = wish
                await self._take(wish)
        except NuageError:
            if self.boots == boots:
                await self._take(self.last_wish)

    async def _take(self, wish: VnodeWish | None) -> None:
        if wish is not None and wish.revision >= self.memory.revision:
            self.last_wish = wish
            leased = VnodeProcess._with_lease(cast(VnodeProcess, self), wish)
            self.memory = take_wish(self.memory, leased)
        await self.step()

    async def step(self) -> None:
        """Plan and act until nothing is due."""
        for _ in range(12):
            if not await self._step_once():
                return

    async def _step_once(self) -> bool:
        acted = False
        for vm_id in list(self.memory.guests):
            held = self.hypervisor._guests.get(vm_id)
            self._lose_disks(None if held is None else held.seen)
            held = self.hypervisor._guests.get(vm_id)
            guest = self.memory.guests[vm_id]
            if not guest.in_wish and held is None:
                self.memory = forget(self.memory, vm_id)
                continue
            seen = None if held is None else held.seen
            now_s, heard = self.clock.now_s(), self.memory.heard
            planned = machine.plan(guest, seen, now_s, may_start=heard)
            if planned.memory is not guest:
                self.memory = remember(self.memory, planned.memory)
            if planned.act is None:
                continue
            acted = True
            fault = ""
            try:
                await self._act(planned.memory, planned.act)
            except NuageError as error:
                fault = error.message
            after = machine.after_act(
                self.memory.guests[vm_id], planned.act, fault, self.clock.now_s()
            )
            self.memory = remember(self.memory, after)
        return acted

    def _lose_disks(self, seen: GuestSeen | None) -> None:
        """A guest whose session was ended finds its disk gone."""
        if seen is not None and seen.state is RunState.RUNNING and not self._reaches(seen):
            self.hypervisor.lose_disk(seen.vm_id)

    def _reaches(self, seen: GuestSeen) -> bool:
        watching = cast("Watching", self.world)
        return all(
            watching.may_log_in(self.site.site_id, disk)
            for disk in seen.disks
            if isinstance(disk, IscsiDisk)
        )

    async def _act(self, guest: GuestMemory, act: machine.Act) -> None:
        hypervisor, vm_id = self.hypervisor, guest.wish.vm_id
        match act:
            case machine.Start():
                spec = self._spec(guest)
                for disk in spec.disks:
                    if isinstance(disk, IscsiDisk) and not cast("Watching", self.world).may_log_in(
                        self.site.site_id, disk
                    ):
                        raise Unavailable(f"no session to {disk.volume_id}")
                await hypervisor.start(spec)
            case machine.StartIncoming(secret=secret):
                spec = self._spec(guest)
                await hypervisor.start_incoming(spec, self.node.node_id, secret)
            case machine.PressPower():
                await hypervisor.press_power(vm_id)
            case machine.Kill():
                await hypervisor.kill(vm_id)
            case machine.Forget():
                await hypervisor.forget(vm_id)
            case machine.Pause():
                await hypervisor.pause(vm_id)
            case machine.Resume():
                await hypervisor.resume(vm_id)
            case machine.Attach(slot=slot, disk=disk_wish):
                await hypervisor.attach_disk(vm_id, slot, machine.iscsi_disk(disk_wish))
            case machine.Detach(slot=slot):
                await hypervisor.detach_disk(vm_id, slot)
            case machine.Repoint(slot=slot, disk=disk_wish):
                await hypervisor.repoint_disk(vm_id, slot, machine.iscsi_disk(disk_wish))
            case machine.Balloon(memory_mib=memory_mib):
                await hypervisor.set_balloon(vm_id, memory_mib)
            case machine.Migrate():
                await self._migrate(vm_id, act)
            case machine.MigrateContinue():
                self._look_at_line(vm_id)
                target, seen = hypervisor._guests[vm_id].target, hypervisor._guests[vm_id].seen
                if seen.state is not RunState.SWITCHING or target in self.fabric.listeners:
                    await hypervisor.migrate_continue(vm_id)
                else:
                    hypervisor.end_migration(vm_id, MigrationStatus.FAILED, "connection reset")
            case machine.MigrateCancel():
                self._drop_dead_listeners()
                await hypervisor.migrate_cancel(vm_id)

    async def _migrate(self, vm_id: VmId, act: machine.Migrate) -> None:
        self.fabric.is_cut = not self._line_to(act.address)
        hypervisor = self.hypervisor
        await hypervisor.migrate(vm_id, act.address, act.limits, act.secret)
        taking_s = self.world.prng.uniform(*self.sending_s)
        asyncio.get_running_loop().call_later(taking_s, self._all_sent, hypervisor, vm_id)

    def _all_sent(self, hypervisor: FakeHypervisor, vm_id: VmId) -> None:
        """Let a guest's memory have been sent, if the node has not lost its power meanwhile."""
        if hypervisor is self.hypervisor and vm_id in hypervisor._guests:
            self._look_at_line(vm_id)
            hypervisor.all_sent(vm_id)

    def _look_at_line(self, vm_id: VmId) -> None:
        self._drop_dead_listeners()
        self.fabric.is_cut = not self._line_to(self.hypervisor._guests[vm_id].target)

    def _drop_dead_listeners(self) -> None:
        """Whoever waited for a guest and was ended waits no more."""
        for address, (owner, vm_id) in list(self.fabric.listeners.items()):
            guest = owner._guests.get(vm_id)
            if guest is None or guest.seen.state is not RunState.INCOMING:
                del self.fabric.listeners[address]

    def _line_to(self, address: str) -> bool:
        site_id = address.partition("-")[0]
        return self.world.wires.is_up(self.site.site_id, site_id)

    def _spec(self, guest: GuestMemory) -> GuestSpec:
        wish = guest.wish
        return GuestSpec(
            vm_id=wish.vm_id, iaas_id=wish.iaas_id, name=wish.name, shape=wish.shape,
            qos_class=wish.qos_class, nics=(), seed=b"",
            disks=tuple(machine.iscsi_disk(disk) for disk in wish.disks),
        )  # fmt: skip

    def report(self) -> VnodeReport:
        seen = {vm_id: guest.seen for vm_id, guest in self.hypervisor._guests.items()}
        reports = [vm_report(g, seen.get(vm_id)) for vm_id, g in self.memory.guests.items()]
        reports += [
            orphan_report(s) for vm_id, s in seen.items() if vm_id not in self.memory.guests
        ]
        running = tuple(sorted(self.running()))
        vcpus = sum(seen[vm_id].shape.vcpu_count for vm_id in running)
        memory_mib = sum(seen[vm_id].shape.memory_mib for vm_id in running)
        estimate = EstimationVector(
            node_id=self.node.node_id, site_id=self.site.site_id, sent_s=self.clock.now_s(),
            cpu_count=VCPUS, vcpu_free=VCPUS - vcpus, memory_free_mib=MEMORY_MIB - memory_mib,
            flops=1e11, power_watts=100.0 + 10 * vcpus, power_source="model",
            power_read_s=self.clock.now_s(), idle_watts=100.0, peak_watts=300.0,
            cpu_utilisation=vcpus / VCPUS, vm_count=len(running), running=running,
        )  # fmt: skip
        return VnodeReport(
            node_id=self.node.node_id, site_id=self.site.site_id,
            wish_revision=self.memory.revision, vms=tuple(reports), estimate=estimate,
        )  # fmt: skip


class Watching(Sites):
    """What nodes ask of the world."""

    def guest_changed(self, node: SimVnode, vm_id: VmId, *, runs: bool) -> None:
        """Hear that a guest started or stopped."""

    def may_log_in(self, from_site: SiteId, disk: IscsiDisk) -> bool:
        """Tell whether an initiator at a site has a session to a disk now."""
        for site in self.sites.values():
            for ionode in site.ionodes:
                if disk.portal == f"{ionode.node.node_id}:21000":
                    linked = self.wires.is_up(from_site, site.site_id)
                    return linked and ionode.may_log_in(disk.volume_id, disk.chap_user)
        return False


@dataclass
class SimIonode:
    """An IO-node with a fake daemon per IaaS; the daemons outlive agent and controller."""

    world: Sites
    site: SimSite
    node: Node
    clock: SkewedClock
    daemons: dict[IaasId, FakeDaemon] = field(default_factory=dict)
    told: dict[VolumeId, HeadWish] = field(default_factory=dict)
    filled: set[VolumeId] = field(default_factory=set)
    lacking: set[VolumeId] = field(default_factory=set)
    released: set[tuple[VolumeId, int]] = field(default_factory=set)
    dies_before_act: int = 0  # 1: the next one; 0: it lives on
    down_until_s: float = 0.0
    overcommit_ratio: float = OVERCOMMIT_RATIO
    wish: IonodeWish = field(default_factory=lambda: IonodeWish(revision=0, daemons=()))

    def may_log_in(self, volume_id: VolumeId, user: str) -> bool:
        return any(daemon.may_log_in(volume_id, user) for daemon in self.daemons.values())

    def kept(self) -> set[VolumeId]:
        """Return the volumes that have a copy here."""
        return {volume_id for daemon in self.daemons.values() for volume_id in daemon._copies}

    def lose_power(self, *, until_s: float) -> None:
        """Close every head at one stroke; the disks keep the copies."""
        for daemon in self.daemons.values():
            daemon._heads.clear()
        self.told, self.released = {}, set()
        self.down_until_s = until_s

    async def run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S * self.world.prng.uniform(0.9, 1.1))
            await self._talk()

    async def asked(self, method: str, body: object) -> object:
        """Answer a controller, as `daemon.ionode` does."""
        match method, body:
            case heads.RELEASE_METHOD, heads.ReleaseHead():
                released = (body.volume_id, body.epoch)
                if body.reopen:
                    self.released.discard(released)
                else:
                    self.released.add(released)
                    await self.daemons[body.iaas_id].close_head(body.volume_id)
                return None
            case past.MOMENT_METHOD, AskMoment():
                return await self.daemons[body.iaas_id].find_moment(body)
        raise AssertionError(f"nobody asks {method} here")

    def _is_down(self) -> bool:
        """Tell whether the agent is dead; at an act that it dies before, it dies."""
        now_s = asyncio.get_running_loop().time()
        if self.dies_before_act == 1:
            self.told, self.released = {}, set()
            self.dies_before_act, self.down_until_s = 0, now_s + AGENT_DOWN_S
        self.dies_before_act = max(0, self.dies_before_act - 1)
        return now_s < self.down_until_s

    async def _talk(self) -> None:
        if asyncio.get_running_loop().time() < self.down_until_s:
            return
        node_id, site, report = self.node.node_id, self.site, await self.report()

        def exchange() -> IonodeWish | None:
            site.greet(self.node)
            site.take_ionode(report)
            return cast(IonodeWish | None, site.sessions.slot(node_id).wish)

        try:
            wish = await self.world.wires.exchange(
                node_id, site.machine, exchange, timeout_s=3.0, doing="report"
            )
        except NuageError:
            return
        if wish is not None and wish.revision >= self.wish.revision:
            self.wish = wish
        await self.step()

    async def step(self) -> None:
        for wish in self.wish.daemons:
            daemon = self.daemons.setdefault(wish.iaas_id, FakeDaemon(address=self.node.node_id))
            for _ in range(4):
                acts = plan(
                    wish, await daemon.seen(), filled=self.filled, told=self.told,
                    shown=daemon.paths, released=self.released,
                )  # fmt: skip
                if not acts:
                    break
                for act in acts:
                    if self._is_down():
                        return
                    await self._act(daemon, act)

    async def _act(
        self,
        daemon: FakeDaemon,
        act: Act,
    ) -> None:
        try:
            match act:
                case Create(wish=replica):
                    self.lacking.discard(replica.volume_id)
                    await make_copy(daemon, replica, DISK.name)
                case Resize(volume_id=volume_id, size_bytes=size_bytes):
                    await daemon.resize(volume_id, size_bytes)
                case OpenHead(wish=head):
                    await daemon.open_head(head)
                    self.told[head.volume_id] = replace(head, groups=())
                case Tell(wish=head):
                    await daemon.set_initiators(head)
                    self.told[head.volume_id] = head
                case Fill(volume_id=volume_id):
                    await daemon.fill(volume_id, cast("Path", stand_in(exists=lambda: False)))
                    ask = AskMark(iaas_id=IaasId(""), volume_ids=(volume_id,), name=IMAGE_MARK)
                    await daemon.mark(ask)
                    self.filled.add(volume_id)
                case CloseHead(volume_id=volume_id):
                    await daemon.close_head(volume_id)
                    self.told.pop(volume_id, None)
                case StandBy(wish=path):
                    await daemon.stand_by(path)
                case EndStandby(volume_id=volume_id):
                    await daemon.end_standby(volume_id)
                case Erase(volume_id=volume_id):
                    await daemon.erase(volume_id)
        except OriginMissing:
            assert isinstance(act, Create)
            self.lacking.add(act.wish.volume_id)
        except NuageError:
            return  # told by the next report, tried again with the next step

    async def report(self) -> IonodeReport:
        replicas, heads = [], []
        for iaas_id, daemon in self.daemons.items():
            seen = await daemon.seen()
            replicas += [
                ReplicaReport(volume_id=v.volume_id, iaas_id=iaas_id, state="ready")
                for v in seen.volumes
            ]
            heads += [
                HeadReport(
                    volume_id=h.volume_id, iaas_id=iaas_id, state="ready", epoch=h.epoch,
                    portal=h.portal,
                    copies=tuple(
                        CopyReport(
                            node_id=c.node_id, is_connected=c.is_connected, is_live=c.is_live,
                            is_failed=c.is_failed,
                        )
                        for c in h.copies
                    ),
                )
                for h in seen.heads
            ]  # fmt: skip
        heads += [
            HeadReport(
                volume_id=h.volume_id, iaas_id=h.iaas_id, state="failed", epoch=h.epoch,
                failure="no past", lacks_origin=True,
            )
            for daemon in self.wish.daemons for h in daemon.heads if h.volume_id in self.lacking
        ]  # fmt: skip
        return IonodeReport(
            node_id=self.node.node_id, site_id=self.site.site_id,
            wish_revision=self.wish.revision, replicas=tuple(replicas), heads=tuple(heads),
            replica_addresses={
                daemon.iaas_id: f"{self.node.node_id}:21001" for daemon in self.wish.daemons
            },
            portals={
                daemon.iaas_id: f"{self.node.node_id}:21000" for daemon in self.wish.daemons
            },
            disks=(DISK,), overcommit_ratio=self.overcommit_ratio,
            erased=tuple(
                volume_id
                for wish in self.wish.daemons
                for volume_id in wish.erased
                if volume_id not in self.kept()
            ),
        )  # fmt: skip


def make_node(site_id: SiteId, role: NodeRole, number: int) -> Node:
    return Node(
        node_id=NodeId(f"{site_id}-{role.value}-{number}"), site_id=site_id,
        rack_id=RackId(f"{site_id}-rack"), name=f"{site_id}-{role.value}-{number}", roles=(role,),
        cpu_count=VCPUS, memory_mib=MEMORY_MIB,
    )  # fmt: skip
