"""Whoever works on a volume dies at each step of each operation: it ends whole or undone.

A step is a write to a catalogue or a transfer in the quorum, before or after which the controller
that does it dies, or an act on a storage daemon, before which the IO-node's agent dies. Both come
back. Then nothing may dangle: sites agree, records and disks name the same copies, a volume and a
VM name each other or do not, and the same call made again leads to what was asked for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import pytest
import structlog
from tests.simulation.federation.test_moves_step_by_step import LYON, Move
from tests.simulation.federation.whole_sites import SimSite

from nuage.catalogue.store import Change, Delete
from nuage.errors import Conflict, InvalidRequest, NotFound, NuageError
from nuage.iaas.copies import MoveVolume
from nuage.iaas.machines import CreateVm
from nuage.iaas.past import CloneVolume
from nuage.iaas.volumes import AttachVolume, CreateVolume, GrowVolume, NameVolume
from nuage.ids import SiteId
from nuage.model.record import KIND_OF, Record
from nuage.model.vm import Vm, VmState
from nuage.model.volume import Erasure, Volume
from nuage.simulation.virtual_time import run_virtually
from nuage.storage.heads import is_settled
from nuage.units import MIB

R = TypeVar("R")
COUNTED = {"volume", "vm", "erasure"}
SIZE_BYTES, GROWN_BYTES = 16 * MIB, 32 * MIB
STEPS_MAX = 12
DOWN_S = 1.5
SETTLES_WITHIN_S = 60.0
REFUSED_AS_DONE = (Conflict, NotFound, InvalidRequest)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


class Storage(Move):
    """A federation with one VM, and a hand that ends processes at their steps."""

    keeps_heads = True

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.dies_at = 0  # this step from now on; 0: nobody dies
        self.dies_after = False
        self.died = False

    async def begin(self) -> None:
        await self.build()
        for site in self.sites.values():
            self._watch_writes(site)
        body = CreateVm(iaas="copied", name="web", image="guest", site="lyon")
        await self.sites[LYON].perform("vm.create", body)
        self.vm_id = next(vm.vm_id for vm in self.sites[LYON].index.values(Vm))
        await self.until(lambda: self.vm.state is VmState.RUNNING, "the VM runs")
        await self.settle("the VM runs")

    # Dying ----------------------------------------------------------------------------------------

    def _watch_writes(self, site: SimSite) -> None:
        write = site.catalogue.write

        async def watched(changes: Sequence[Change]) -> tuple[Record, ...]:
            if not any(_kind(change) in COUNTED for change in changes):
                return await write(changes)
            return await self.step(site, lambda: write(changes))

        site.catalogue.write = watched  # type: ignore[method-assign]

    async def transferring(self, site_id: SiteId, act: Callable[[], Awaitable[R]]) -> R:
        return await self.step(self.sites[site_id], act)

    async def step(self, site: SimSite, act: Callable[[], Awaitable[R]]) -> R:
        is_last = self.dies_at == 1
        self.dies_at = max(0, self.dies_at - 1)
        if is_last and not self.dies_after:
            await self._die(site)
        done = await act()
        if is_last:
            await self._die(site)
        return done

    async def _die(self, site: SimSite) -> None:
        self.died = True
        self.people.spawn(self._boot_later(site, DOWN_S))
        asyncio.get_running_loop().call_soon(site.crash)
        await asyncio.sleep(3600.0)  # ended by the crash

    # Looking --------------------------------------------------------------------------------------

    def volumes(self) -> list[Volume]:
        return list(self.sites[LYON].index.values(Volume))

    def named(self, name: str) -> Volume | None:
        return next((volume for volume in self.volumes() if volume.name == name), None)

    def dangling(self) -> list[str]:
        """Return what does not fit together."""
        left = [f"{s.site_id} is down" for s in self.sites.values() if not s.machine.is_up]
        left += self.differences()
        left += [f"{v.name} is {v.state.value}: {v.failure}" for v in self.volumes() if not _ok(v)]
        left += [
            f"{v.name} has {size} bytes on its disk, not {v.size_bytes}"
            for v in self.volumes()
            if (size := self.size_on_disk(v)) != v.size_bytes
        ]
        left += [f"erasure of {e.name}" for e in self.sites[LYON].index.values(Erasure)]
        attached = {v.volume_id for v in self.volumes() if v.vm_id is not None}
        used = {volume_id for vm in self.sites[LYON].index.values(Vm) for volume_id in vm.volumes}
        if attached != used:
            left.append(f"volumes {attached} say that they are used, VMs use {used}")
        for site in self.sites.values():
            for ionode in site.ionodes:
                node_id = ionode.node.node_id
                named = {
                    v.volume_id
                    for v in self.volumes()
                    if any(p.node_id == node_id for p in v.replicas)
                }
                if ionode.kept() != named:
                    left.append(f"{node_id} keeps {ionode.kept()}, not {named}")
        return left

    async def settle(self, what: str) -> None:
        for _ in range(int(SETTLES_WITHIN_S)):
            await asyncio.sleep(1.0)
            if not self.dangling():
                return
        raise AssertionError(f"{what}: {self.dangling()}")

    def size_on_disk(self, volume: Volume) -> int:
        for site in self.sites.values():
            for ionode in site.ionodes:
                daemon = ionode.daemons.get(volume.iaas_id)
                copy = None if daemon is None else daemon._copies.get(volume.volume_id)
                if ionode.node.node_id == volume.head and copy is not None:
                    return copy.size_bytes
        return 0


def _kind(change: Change) -> str:
    return change.kind if isinstance(change, Delete) else KIND_OF[type(change.value)]


def _ok(volume: Volume) -> bool:
    return is_settled(volume) and not volume.failure and bool(volume.portal)


# Operations -------------------------------------------------------------------------------------

Ask = Callable[[str], tuple[str, object]]
ASKS: dict[str, Ask] = {
    "create": lambda name: (
        "volume.create", CreateVolume(iaas="copied", name=name, size_bytes=SIZE_BYTES)
    ),
    "grow": lambda name: (
        "volume.grow", GrowVolume(iaas="copied", volume=name, size_bytes=GROWN_BYTES)
    ),
    "clone": lambda name: (
        "volume.clone", CloneVolume(iaas="copied", volume=name, name=f"{name}-clone")
    ),
    "attach": lambda name: ("volume.attach", AttachVolume("copied", name, "web")),
    "detach": lambda name: ("volume.detach", NameVolume("copied", name)),
    "move": lambda name: ("volume.move", MoveVolume(iaas="copied", volume=name, to="elsewhere")),
    "delete": lambda name: ("volume.delete", NameVolume("copied", name)),
}  # fmt: skip


def is_done(storage: Storage, what: str, name: str, before: Volume | None) -> bool:
    """Tell whether an operation has come to its end."""
    volume = storage.named(name)
    match what:
        case "delete":
            return volume is None
        case "clone":
            return storage.named(f"{name}-clone") is not None
        case "grow":
            return volume is not None and storage.size_on_disk(volume) == GROWN_BYTES
        case "attach":
            return volume is not None and volume.vm_id == storage.vm_id
        case "detach":
            return volume is not None and volume.vm_id is None
        case "move":
            assert before is not None
            return volume is not None and volume.head != before.head
        case _:
            return volume is not None


async def prepare(storage: Storage, what: str, name: str) -> Volume | None:
    if what == "create":
        return None
    lyon = storage.sites[LYON]
    await lyon.perform(*ASKS["create"](name))
    await storage.settle(f"{name} is made")
    if what == "detach":
        await lyon.perform(*ASKS["attach"](name))
        await storage.settle(f"{name} is attached")
    volume = storage.named(name)
    assert volume is not None
    return volume


async def ask(storage: Storage, what: str, name: str, before: Volume | None) -> None:
    operation, body = ASKS[what](name)
    if isinstance(body, MoveVolume):
        assert before is not None
        to = next(p.node_id for p in before.replicas if p.node_id != before.head)
        body = MoveVolume(iaas="copied", volume=name, to=to)
    await storage.sites[LYON].perform(operation, body)


async def play(storage: Storage, what: str, number: int, arm: Callable[[int], None]) -> bool:
    """Have one operation broken off at step `number`; return whether it had so many."""
    name = f"d{number}-{'after' if storage.dies_after else 'before'}"
    before = await prepare(storage, what, name)
    storage.died = False
    arm(number)
    with suppress(NuageError, asyncio.CancelledError):
        await ask(storage, what, name, before)
    await asyncio.sleep(3.0)  # acts of agents come later
    arm(0)
    await storage.settle(f"{what} was broken off at step {number}")
    if not is_done(storage, what, name, before):
        with suppress(*REFUSED_AS_DONE):
            await ask(storage, what, name, before)
        await storage.settle(f"{what} was asked for again")
    assert is_done(storage, what, name, before), f"{what}, broken off at step {number}"
    await remove_all(storage)
    return storage.died


async def remove_all(storage: Storage) -> None:
    lyon = storage.sites[LYON]
    for volume in storage.volumes():
        if volume.image_id is None and volume.vm_id is not None:
            await lyon.perform("volume.detach", NameVolume("copied", volume.name))
    for volume in storage.volumes():
        if volume.image_id is None:
            await lyon.perform("volume.delete", NameVolume("copied", volume.name))
    await storage.settle("all is removed")


def run(story: Callable[[Storage], Awaitable[int]]) -> int:
    async def main() -> int:
        storage = Storage(5)
        await storage.begin()
        steps = await story(storage)
        assert storage.bugs == []
        assert storage.breaches == []
        return steps

    return run_virtually(main())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ASKS)
def test_a_controller_dies_at_each_step_and_nothing_dangles(what: str, when: str) -> None:
    async def story(storage: Storage) -> int:
        storage.dies_after = when == "after"

        def arm(number: int) -> None:
            storage.dies_at = number

        for number in range(1, STEPS_MAX):
            if not await play(storage, what, number, arm):
                return number - 1
        return STEPS_MAX

    assert 1 <= run(story) < STEPS_MAX


@pytest.mark.parametrize("what", ["create", "grow", "clone", "move", "delete"])
def test_an_agent_dies_before_each_act_and_nothing_dangles(what: str) -> None:
    async def story(storage: Storage) -> int:
        agents = [node for site in storage.sites.values() for node in site.ionodes]

        def arm(number: int) -> None:
            storage.died = storage.died or any(a.down_until_s > begun_s for a in agents)
            for agent in agents:
                agent.dies_before_act = number

        for number in range(1, STEPS_MAX):
            begun_s = storage.now_s()
            if not await play(storage, what, number, arm):
                return number - 1
        return STEPS_MAX

    assert 1 <= run(story) < STEPS_MAX
