"""The V-node agent's loop: feeds `machine` with what is seen, performs what it decides.

One step observes all guests, plans each one that has no act under way, writes the memory to disk
when it changed, and only then begins the acts: nothing is done that is not remembered. Acts on
different guests run side by side; on one guest, one after the other. The loop knows no transport:
the daemon hands wishes in and takes reports out.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, assert_never

import msgspec
import structlog

from nuage.clock import Clock
from nuage.errors import UNREADABLE, Conflict, CorruptData, NuageError
from nuage.ids import NodeId, SiteId, VmId
from nuage.model.desired import DiskWish, VmReport, VmWish, VnodeReport, VnodeWish
from nuage.model.vm import VmShape
from nuage.vnode import machine
from nuage.vnode.configdrive import SeedLayout, build_seed
from nuage.vnode.hypervisor import GuestSeen, GuestSpec, Hypervisor, Nic, RunState
from nuage.vnode.memory import (
    AgentMemory,
    GuestMemory,
    forget,
    is_no_vm_here,
    lasting,
    remember,
    take_wish,
)
from nuage.vnode.ports import PortPlug
from nuage.vnode.reporting import is_news, orphan_report, vm_report
from nuage.vnode.sed import Sed

LOOK_EVERY_S: Final = 2.0  # QEMU's events wake the loop; this catches what has no event
REPORT_EVERY_S: Final = 5.0  # figures only; news is reported at once
LEAST_WAIT_S: Final = 0.01

_log = structlog.get_logger("nuage.vnode")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What an agent is and where it keeps its memory; `listen_host` receives migrations."""

    node_id: NodeId
    site_id: SiteId
    state_dir: Path
    listen_host: str
    disk_of: machine.DiskOf = machine.iscsi_disk
    seed_layout: SeedLayout = SeedLayout.NO_CLOUD


@dataclass(slots=True)
class _Board:
    """What was seen and told last."""

    seen: dict[VmId, GuestSeen] = field(default_factory=dict)
    reports: dict[VmId, VmReport] = field(default_factory=dict)
    news_count: int = 0


class VnodeAgent:
    """Works towards the last wish it took, with or without its controller."""

    def __init__(
        self, options: AgentOptions, *, hypervisor: Hypervisor, plug: PortPlug, sed: Sed,
        clock: Clock,
    ) -> None:  # fmt: skip
        self._options = options
        self._hypervisor = hypervisor
        self._plug = plug
        self._sed = sed
        self._clock = clock
        self._memory = AgentMemory()
        self._board = _Board()
        self._busy: dict[VmId, asyncio.Task[None]] = {}
        self._repointing: dict[VmId, machine.Repoint] = {}
        self._wake = asyncio.Event()
        self._news = asyncio.Condition()
        self._stepping = asyncio.Lock()
        self._loop: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read the memory, find the guests that run, and begin to work."""
        self._memory = _load(self._options.state_dir / "agent.json")
        self._hypervisor.subscribe(lambda _vm_id: self._wake.set())
        await self.step()
        self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop working; guests run on. An act under way is finished first."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def take_wish(self, wish: VnodeWish) -> None:
        """Take desired state; it is on disk when this returns.

        Raises:
            Conflict: its revision is older than the one taken last.
        """
        if wish.revision < self._memory.revision:
            raise Conflict(
                f"wish {wish.revision} is older than {self._memory.revision}, taken before",
                revision=self._memory.revision,
            )
        async with self._stepping:
            before = self._memory
            self._memory = take_wish(before, wish)
            await self._step(before)

    async def reports(self, every_s: float = REPORT_EVERY_S) -> AsyncIterator[VnodeReport]:
        """Yield a report now, whenever there is news, and every `every_s` seconds."""
        known = -1
        while True:
            if known == self._board.news_count:
                await self._wait_for_news(known, every_s)
            known = self._board.news_count
            yield self.report()

    async def _wait_for_news(self, known: int, every_s: float) -> None:
        async def changed() -> None:
            async with self._news:
                await self._news.wait_for(lambda: self._board.news_count != known)

        waiting = {
            asyncio.ensure_future(changed()), asyncio.ensure_future(self._clock.sleep(every_s)),
        }  # fmt: skip
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def report(self) -> VnodeReport:
        """Return this node's facts as seen last."""
        running: list[tuple[VmId, VmShape]] = [
            (vm_id, seen.shape)
            for vm_id, seen in sorted(self._board.seen.items())
            if seen.state not in {RunState.SHUT_DOWN, RunState.GONE, RunState.HANDED_OVER}
        ]
        return VnodeReport(
            node_id=self._options.node_id,
            site_id=self._options.site_id,
            wish_revision=self._memory.revision,
            vms=tuple(report for _, report in sorted(self._board.reports.items())),
            estimate=self._sed.estimation_vector(running),
            unreadable=self._hypervisor.unreadable,
        )

    async def _run(self) -> None:
        wait_s = LEAST_WAIT_S
        while True:
            sleeping = asyncio.ensure_future(self._clock.sleep(wait_s))
            waking = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeping.cancel()
                waking.cancel()
            self._wake.clear()
            wait_s = await self.step()

    async def step(self) -> float:
        """Observe, plan, remember, begin; return how long nothing is due at most."""
        async with self._stepping:
            return await self._step(self._memory)

    async def _step(self, stored: AgentMemory) -> float:
        """Do one step; `stored` is the memory as it is on disk."""
        for vm_id in list(self._repointing):
            await self._follow(self._memory.guests[vm_id])
        under_way = set(self._busy)  # what is seen may be how a guest was before such an act ended
        seen = {guest.vm_id: guest for guest in await self._hypervisor.seen()}
        now_s = self._clock.now_s()
        look_s = now_s + LOOK_EVERY_S
        acts: list[tuple[VmId, machine.Act]] = []
        for vm_id, guest in list(self._memory.guests.items()):
            if vm_id in self._busy or vm_id in under_way:
                continue
            if not guest.in_wish and vm_id not in seen:
                self._memory = forget(self._memory, vm_id)
                continue
            planned = machine.plan(
                guest, seen.get(vm_id), now_s, self._options.disk_of, may_start=self._memory.heard
            )
            self._memory = remember(self._memory, planned.memory)
            if planned.act is not None:
                acts.append((vm_id, planned.act))
            if planned.look_again_s:
                look_s = min(look_s, planned.look_again_s)
        if lasting(self._memory) != lasting(stored):
            _store(self._options.state_dir / "agent.json", self._memory)
        for vm_id, act in acts:
            self._busy[vm_id] = asyncio.create_task(self._perform(vm_id, act))
        for vm_id, left_over in seen.items():
            is_unknown = vm_id not in under_way and is_no_vm_here(self._memory, vm_id)
            if is_unknown and machine.has_ended(left_over.state):
                self._busy[vm_id] = asyncio.create_task(self._clear_away(vm_id))
        await self._tell(seen)
        return max(look_s - now_s, LEAST_WAIT_S)

    async def _follow(self, guest: GuestMemory) -> None:
        """Have a repointing under way follow a volume that has moved again."""
        vm_id = guest.wish.vm_id
        moved = machine.moved_again(guest, self._repointing.get(vm_id))
        if moved is not None:
            self._repointing[vm_id] = moved
            disk = self._options.disk_of(moved.disk)
            await self._hypervisor.follow_disk(vm_id, moved.slot, disk)

    async def _tell(self, seen: dict[VmId, GuestSeen]) -> None:
        reports = {
            vm_id: vm_report(guest, seen.get(vm_id)) for vm_id, guest in self._memory.guests.items()
        }
        for vm_id, guest_seen in seen.items():
            if vm_id not in reports:
                reports[vm_id] = orphan_report(guest_seen)
        before = self._board.reports
        news = before.keys() != reports.keys() or any(
            is_news(before.get(vm_id), report) for vm_id, report in reports.items()
        )
        self._board.seen, self._board.reports = seen, reports
        if news:
            async with self._news:
                self._board.news_count += 1
                self._news.notify_all()

    async def _perform(self, vm_id: VmId, act: machine.Act) -> None:
        guest = self._memory.guests[vm_id]
        log = _log.bind(vm=vm_id, act=type(act).__name__)
        fault = f"{type(act).__name__} was interrupted"
        try:
            await self._act(guest, act)
            fault = ""
            log.info("done")
        except NuageError as error:
            fault = error.message
            log.warning("failed", fault=fault)
        finally:
            del self._busy[vm_id]
            known = self._memory.guests.get(vm_id)
            if known is not None:
                after = machine.after_act(known, act, fault, self._clock.now_s())
                self._memory = remember(self._memory, after)
            self._wake.set()

    async def _clear_away(self, vm_id: VmId) -> None:
        """Forget what ended of a VM that is not in the memory, and is no VM of this node."""
        try:
            await self._plug.unplug(vm_id)
            await self._hypervisor.forget(vm_id)
            _log.info("cleared away", vm=vm_id)
            self._wake.set()
        except NuageError as error:  # tried again at the next look
            _log.warning("not cleared away", vm=vm_id, fault=error.message)
        finally:
            del self._busy[vm_id]

    async def _act(self, guest: GuestMemory, act: machine.Act) -> None:
        hypervisor, vm_id = self._hypervisor, guest.wish.vm_id
        match act:
            case machine.Start():
                await hypervisor.start(await self._spec(guest.wish))
            case machine.StartIncoming(secret=secret, source_address=source):
                spec, here = await self._spec(guest.wish), self._options.listen_host
                await hypervisor.start_incoming(spec, here, secret, source_host=source)
            case machine.PressPower():
                await hypervisor.press_power(vm_id)
            case machine.Kill():
                await hypervisor.kill(vm_id)
            case machine.Forget():
                await hypervisor.forget(vm_id)
                await self._plug.unplug(vm_id, [port.port_id for port in guest.wish.ports])
            case machine.Pause():
                await hypervisor.pause(vm_id)
            case machine.Resume():
                await hypervisor.resume(vm_id)
            case machine.Attach(slot=slot, disk=disk):
                await hypervisor.attach_disk(vm_id, slot, self._options.disk_of(disk))
            case machine.Detach(slot=slot):
                await hypervisor.detach_disk(vm_id, slot)
            case machine.Repoint(slot=slot, disk=disk):
                self._repointing[vm_id] = act
                try:
                    await hypervisor.repoint_disk(vm_id, slot, self._options.disk_of(disk))
                finally:
                    del self._repointing[vm_id]
            case machine.Balloon(memory_mib=memory_mib):
                await hypervisor.set_balloon(vm_id, memory_mib)
            case machine.Migrate(address=address, limits=limits, secret=secret):
                await hypervisor.migrate(vm_id, address, limits, secret)
            case machine.MigrateContinue():
                await hypervisor.migrate_continue(vm_id)
            case machine.MigrateCancel():
                await hypervisor.migrate_cancel(vm_id)
            case _:
                assert_never(act)

    async def _spec(self, wish: VmWish) -> GuestSpec:
        nics = [
            Nic(port_id=port.port_id, mac=port.mac, tap=await self._plug.plug(wish.vm_id, port))
            for port in wish.ports
        ]
        return GuestSpec(
            vm_id=wish.vm_id,
            iaas_id=wish.iaas_id,
            name=wish.name,
            shape=wish.shape,
            qos_class=wish.qos_class,
            disks=tuple(
                None if disk is None else self._options.disk_of(disk) for disk in slots_of(wish)
            ),
            nics=tuple(nics),
            seed=build_seed(wish, self._options.seed_layout),
        )


def slots_of(wish: VmWish) -> list[DiskWish | None]:
    """Return the VM's disks by slot: as its source has them when it arrives, else in order."""
    slots = wish.incoming.disk_slots if wish.incoming is not None else ()
    if not slots:
        return list(wish.disks)
    by_volume = {disk.volume_id: disk for disk in wish.disks}
    return [by_volume.get(volume_id) for volume_id in slots]


def _load(path: Path) -> AgentMemory:
    try:
        return msgspec.json.decode(path.read_bytes(), type=AgentMemory)
    except FileNotFoundError:
        return AgentMemory()
    except UNREADABLE as error:
        raise CorruptData(
            f"{path} does not parse: {error}", where=str(path),
            hint="move it aside: guests run on and are reported as orphans until a wish comes",
        ) from error  # fmt: skip


def _store(path: Path, memory: AgentMemory) -> None:
    """Write the memory so that a crash leaves the old one or the new one; it holds secrets."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(replace(memory, heard=False, withheld=None)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
