"""A live migration between sites fails at each of its steps, in each way: the VM runs once then.

The steps are those of `iaas.movement`; each run is the same up to the step, then one thing fails,
is mended after a while, and what is left is looked at. That the VM never runs twice meanwhile is
checked at every change of a guest.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import structlog
from tests.simulation.federation.nodes import SimVnode
from tests.simulation.federation.unlucky_minutes import CONVERGE_TRIES, World

from nuage.errors import InvalidRequest
from nuage.iaas import movement
from nuage.iaas.epochs import next_local
from nuage.iaas.machines import CreateVm, MigrateVm
from nuage.iaas.observe import Departed, vnode_acts
from nuage.ids import SiteId, VmId
from nuage.model.desired import VmReport
from nuage.model.status import Migration
from nuage.model.vm import PowerWish, Vm, VmState
from nuage.model.volume import Volume
from nuage.simulation.virtual_time import run_virtually
from nuage.vnode.hypervisor import MigrationSeen, MigrationStatus, RunState

LYON, MARNE, RENNES = SiteId("lyon"), SiteId("marne"), SiteId("rennes")
LOOK_EVERY_S = 0.005
STEP_WITHIN_S = 60.0
LASTS_S = 18.0  # longer than a lease: a takeover may come between


class Move(World):
    """One VM, on its way from lyon to marne."""

    vm_id: VmId
    sending_s = 4.0  # leave comes well before all is sent
    ask = MigrateVm(iaas="copied", vm="web", site="marne")

    @property
    def vm(self) -> Vm:
        return self.sites[LYON].index.value(Vm, self.vm_id)

    async def begin(self) -> None:
        await self.build()
        for site in self.sites.values():
            for node in site.vnodes:
                node.sending_s = (self.sending_s, self.sending_s)
        lyon = self.sites[LYON]
        body = CreateVm(iaas="copied", name="web", image="guest", site="lyon")
        await lyon.perform("vm.create", body)
        self.iaas_of["web"], self.wanted["web"] = "copied", PowerWish.RUNNING
        self.vm_id = next(vm.vm_id for vm in lyon.index.values(Vm))
        await self.until(lambda: self.vm.state is VmState.RUNNING, "the VM runs")
        await asyncio.sleep(4.0)  # its claim in the quorum
        await self.before_it_is_asked()
        self.people.spawn(self._ask(lyon, "vm.migrate", self.ask, "migrate web"))

    async def before_it_is_asked(self) -> None:
        """Do nothing, but in a run where something is amiss from the first."""

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        for _ in range(int(STEP_WITHIN_S / LOOK_EVERY_S)):
            if holds():
                return
            await asyncio.sleep(LOOK_EVERY_S)
        raise AssertionError(f"it never came to this: {what}")

    # Where it is -----------------------------------------------------------------------------

    def vnodes(self, site_id: SiteId) -> list[SimVnode]:
        return self.sites[site_id].vnodes

    def guest_at(self, site_id: SiteId) -> SimVnode | None:
        """Return the node of a site that has the guest, running or expected."""
        holders = [n for n in self.vnodes(site_id) if self.vm_id in n.hypervisor._guests]
        return holders[0] if holders else None

    def waits_for_leave(self) -> bool:
        """Tell whether the guest stands still at its source, or has gone on from there."""
        node = self.guest_at(LYON)
        if node is None:
            return self.is_given()
        status = node.hypervisor._guests[self.vm_id].seen.migration.status
        return status in (MigrationStatus.SWITCHING, MigrationStatus.COMPLETED)

    def is_expected(self) -> bool:
        return self.sites[MARNE].index.find_value(Migration, self.vm_id) is not None

    def listens(self) -> bool:
        node = self.guest_at(MARNE)
        states = (RunState.INCOMING, RunState.RUNNING)
        return node is not None and node.hypervisor._guests[self.vm_id].seen.state in states

    def is_sent(self) -> bool:
        """Tell whether its memory is on its way."""
        return self.guest_at(LYON) is not None and (
            self.sending() is not None or self.waits_for_leave()
        )

    def sending(self) -> MigrationSeen | None:
        node = self.guest_at(LYON)
        if node is None:
            return None
        migration = node.hypervisor._guests[self.vm_id].seen.migration
        return migration if migration.status is MigrationStatus.ACTIVE else None

    def is_promised(self) -> bool:
        held = self.hub.state.owner("vm", self.vm_id)
        return held is not None and MARNE in (held.heir, held.owner)

    def has_leave(self) -> bool:
        """Tell whether its node lets it go by itself."""
        sending = self.sending()
        return self.is_given() or (sending is not None and sending.has_leave)

    def is_given(self) -> bool:
        held = self.hub.state.owner("vm", self.vm_id)
        return held is not None and held.owner == MARNE

    def runs_at_target(self) -> bool:
        return any(self.vm_id in node.running() for node in self.vnodes(MARNE))

    def is_home(self) -> bool:
        return self.sites[MARNE].index.home("vm", self.vm_id) == MARNE

    # What fails ------------------------------------------------------------------------------

    def source_dies(self) -> None:
        (self.guest_at(LYON) or self.vnodes(LYON)[0]).power_off()

    def target_dies(self) -> None:
        (self.guest_at(MARNE) or self.vnodes(MARNE)[0]).power_off()

    def quorum_is_away(self) -> None:
        for one, other in ((LYON, MARNE), (LYON, RENNES), (MARNE, RENNES)):
            self.wires.cut(one, other)

    def source_controller_restarts(self) -> None:
        self.restart(LYON)

    def target_controller_restarts(self) -> None:
        self.restart(MARNE)

    def restart(self, site_id: SiteId) -> None:
        self.sites[site_id].crash()
        self.people.spawn(self._boot_later(self.sites[site_id], 2.0))

    def cut_off(self, site_id: SiteId) -> None:
        for other in (LYON, MARNE, RENNES):
            if other != site_id:
                self.wires.cut(site_id, other)

    def link_is_cut(self) -> None:
        self.wires.cut(LYON, MARNE)

    # The end ---------------------------------------------------------------------------------

    async def end(self) -> list[str]:
        await asyncio.sleep(LASTS_S)
        self.heal_all()
        left = ["nothing was looked at"]
        for _ in range(CONVERGE_TRIES):
            await asyncio.sleep(3.0)
            left = self.differences()
            if len(self.runs_at.get(self.vm_id, ())) != 1:
                left.append(f"it runs on {self.runs_at.get(self.vm_id)}")
            if not left:
                break
        if self.bugs:
            raise self.bugs[0]
        return [*self.breaches, *left]


STEPS: dict[str, Callable[[Move], bool]] = {
    "decided": lambda move: move.vm.migrating_to is not None,
    "expected": Move.is_expected,
    "listening": Move.listens,
    "sent": Move.is_sent,
    "promised": Move.is_promised,
    "allowed": Move.has_leave,
    "switched": Move.runs_at_target,
    "given": Move.is_given,
    "home": Move.is_home,
}
FAILURES: dict[str, Callable[[Move], None]] = {
    "source dies": Move.source_dies,
    "target dies": Move.target_dies,
    "quorum away": Move.quorum_is_away,
    "source's controller restarts": Move.source_controller_restarts,
    "target's controller restarts": Move.target_controller_restarts,
    "link cut": Move.link_is_cut,
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


def run(
    step: str, fail: Callable[[Move], None], *, sending_s: float = Move.sending_s
) -> tuple[Move, list[str]]:
    async def main() -> tuple[Move, list[str]]:
        move = Move(7)
        move.sending_s = sending_s
        await move.begin()
        holds = STEPS.get(step, Move.waits_for_leave)
        await move.until(lambda: holds(move), step)
        move.tell(f"FAILS once {step}")
        fail(move)
        return move, await move.end()

    return run_virtually(main())


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("step", STEPS)
def test_a_vm_runs_once_whatever_fails_at_whatever_step_of_its_move(
    step: str, failure: str
) -> None:
    move, left = run(step, FAILURES[failure])
    assert left == [], "\n".join(move.log[-30:])


@pytest.mark.parametrize("failure", FAILURES)
def test_a_vm_runs_once_whatever_fails_while_it_stands_still_for_leave(failure: str) -> None:
    """All is sent at once, before leave can have come."""
    move, left = run("paused", FAILURES[failure], sending_s=0.0)
    assert left == [], "\n".join(move.log[-30:])


@pytest.mark.parametrize("step", ["sent", "promised", "allowed"])
def test_a_vm_runs_on_when_its_line_dies_while_it_is_sent(step: str) -> None:
    """Its leave is taken back: it is neither stopped nor started anew."""
    move, left = run(step, Move.link_is_cut)
    assert left == [], "\n".join(move.log[-30:])
    node = move.guest_at(LYON)
    assert node is not None
    assert [act for act, _ in node.hypervisor.acts].count("start") == 1
    assert not move.runs_at_target()


def test_nothing_fails_and_the_vm_is_at_its_target() -> None:
    move, left = run("home", lambda _move: None)
    assert left == []
    assert move.runs_at_target()
    node = move.guest_at(MARNE)
    assert node is not None
    assert [act for act, _ in node.hypervisor.acts] == ["start_incoming"]


def test_how_long_a_guest_stood_still_is_told_to_the_site_that_has_it() -> None:
    """The node's wish may be without the VM before its word of the hand-over is heard."""

    async def main() -> float:
        move = Move(7)
        await move.begin()
        await move.until(move.is_home, "it is its target's")
        site, (node, *_) = move.sites[LYON], move.vnodes(LYON)
        await move.until(lambda: site.index.home("vm", move.vm_id) == MARNE, "its source knows")
        seen = VmReport(
            vm_id=move.vm_id, state=VmState.MIGRATING, epoch=1, orphan=True, migrated=True,
            downtime_ms=33.0,
        )  # fmt: skip
        (act,) = vnode_acts(site.index, replace(node.report(), vms=(seen,)))
        assert isinstance(act, Departed)
        await site.movement.departed(act.vm_id, act.downtime_ms)
        await asyncio.sleep(2.0)
        return move.sites[MARNE].index.value(Vm, move.vm_id).downtime_ms

    assert run_virtually(main()) == 33.0


class DiskOpens(Move):
    """The head of the VM's disk opens under a new epoch, and its node is in no hurry."""

    async def before_it_is_asked(self) -> None:
        for ionode in self.sites[LYON].ionodes:
            ionode.down_until_s = math.inf
        (disk,) = (self.sites[LYON].index.value(Volume, v) for v in self.vm.volumes)
        await self.sites[LYON].site.save(replace(disk, epoch=next_local(disk.epoch)))

    def head_opens(self) -> None:
        for ionode in self.sites[LYON].ionodes:
            ionode.down_until_s = 0.0

    def waits(self) -> bool:
        return self.vm.failure.startswith("waits for ")


def test_a_move_waits_for_a_disk_that_nobody_reaches_and_says_so() -> None:
    async def main() -> DiskOpens:
        move = DiskOpens(7)
        await move.begin()
        await move.until(move.waits, "the VM says what it waits for")
        await asyncio.sleep(movement.READY_WITHIN_S * 1.5)
        assert move.waits()
        assert move.guest_at(MARNE) is None
        move.head_opens()
        await move.until(move.runs_at_target, "the VM is at its target")
        return move

    move = run_virtually(main())
    assert not move.breaches
    node = move.guest_at(MARNE)
    assert node is not None
    assert [act for act, _ in node.hypervisor.acts] == ["start_incoming"]


def test_a_move_ends_when_its_disk_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movement, "DISKS_WITHIN_S", 20.0)

    async def main() -> DiskOpens:
        move = DiskOpens(7)
        await move.begin()
        await move.until(lambda: move.vm.migrating_to is not None, "it is decided")
        await move.until(lambda: move.vm.migrating_to is None, "it is given up")
        return move

    move = run_virtually(main())
    assert "waits for" in move.vm.failure
    assert move.vm.state is VmState.RUNNING
    assert not move.runs_at_target()


class Hurried(Move):
    """Its memory takes longer than its owner gives it."""

    sending_s = 30.0
    ask = MigrateVm(iaas="copied", vm="web", site="marne", within_s=5.0)


def test_a_vm_whose_memory_has_not_gone_in_time_stays_and_says_so() -> None:
    async def story() -> None:
        move = Hurried(5)
        await move.begin()
        await move.until(move.has_leave, "it may switch")
        await move.until(lambda: move.vm.state is VmState.RUNNING, "it stays")
        assert "its memory has not all gone within 5 s" in move.vm.failure
        assert move.guest_at(LYON) is not None
        assert await move.end() == []
        with pytest.raises(InvalidRequest, match="0 or more seconds"):
            await move.sites[LYON].perform("vm.migrate", replace(move.ask, within_s=-1.0))

    run_virtually(story())
