"""A live migration under any sequence of cuts, crashes, restarts and delays: one copy, always.

Two nodes' decisions run on fakes that share a fabric; a model of the controller follows the
rules of docs/design/vnode.md. Hypothesis chooses what happens between any two steps.
"""

from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from nuage.ids import IaasId, NodeId, VmId
from nuage.model.desired import (
    IncomingMigration,
    OutgoingMigration,
    VmReport,
    VmWish,
    VnodeWish,
)
from nuage.model.vm import PowerWish, VmShape, VmState
from nuage.vnode import machine
from nuage.vnode.fake import FakeFabric, FakeHypervisor
from nuage.vnode.hypervisor import GuestSeen, GuestSpec, RunState
from nuage.vnode.memory import AgentMemory, forget, remember, take_wish
from nuage.vnode.reporting import vm_report

VM = VmId("vm-1")
Result = TypeVar("Result")
EVENTS = (
    "left", "left", "right", "control", "control", "sent", "sent", "cut", "swallow", "heal", "wait",
    "crash left", "crash right", "deafen left", "deafen right", "hear", "forget",
)  # fmt: skip


def finish(coroutine: Coroutine[None, None, Result]) -> Result:
    """Run a coroutine of the fake, which never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    raise AssertionError("the fake waited")


@dataclass(slots=True)
class Node:
    """One node: its fake, its memory as on disk, and whether it hears its controller."""

    hypervisor: FakeHypervisor
    memory: AgentMemory = field(default_factory=AgentMemory)
    hears: bool = True

    def guest(self) -> GuestSeen | None:
        return next((g for g in finish(self.hypervisor.seen()) if g.vm_id == VM), None)

    def take(self, wish: VnodeWish) -> None:
        if self.hears and wish.revision >= self.memory.revision:
            self.memory = take_wish(self.memory, wish)

    def all_sent(self) -> None:
        """Let the last of the memory go out, if there is a QEMU to send it."""
        guest = self.guest()
        if guest is not None and guest.state is not RunState.GONE:
            self.hypervisor.all_sent(VM)

    def forget_leave(self) -> None:
        """Let the agent begin anew: its driver knows of no leave."""
        if self.guest() is not None:
            self.hypervisor.forget_leave(VM)

    def report(self) -> VmReport | None:
        known = self.memory.guests.get(VM)
        return None if known is None or not self.hears else vm_report(known, self.guest())

    def step(self, now_s: float) -> None:
        known = self.memory.guests.get(VM)
        if known is None:
            return
        if not known.in_wish and self.guest() is None:
            self.memory = forget(self.memory, VM)
            return
        planned = machine.plan(known, self.guest(), now_s)
        self.memory = remember(self.memory, planned.memory)
        if planned.act is not None:
            self.perform(planned.act, now_s)

    def perform(self, act: machine.Act, now_s: float) -> None:
        wish = self.memory.guests[VM].wish
        spec = GuestSpec(
            vm_id=VM, iaas_id=wish.iaas_id, name="web", shape=wish.shape,
            qos_class=wish.qos_class, disks=(), nics=(), seed=b"",
        )  # fmt: skip
        node = self.hypervisor
        match act:
            case machine.Start():
                finish(node.start(spec))
            case machine.StartIncoming(secret=secret):
                finish(node.start_incoming(spec, "10.0.0.2", secret))
            case machine.Kill():
                finish(node.kill(VM))
            case machine.Forget():
                finish(node.forget(VM))
            case machine.Pause():
                finish(node.pause(VM))
            case machine.Resume():
                finish(node.resume(VM))
            case machine.Migrate(address=address, limits=limits, secret=secret):
                finish(node.migrate(VM, address, limits, secret))
            case machine.MigrateContinue():
                finish(node.migrate_continue(VM))
            case machine.MigrateCancel():
                finish(node.migrate_cancel(VM))
            case _:
                raise AssertionError(f"{act} has no place here")
        after = machine.after_act(self.memory.guests[VM], act, "", now_s)
        self.memory = remember(self.memory, after)


@dataclass(slots=True)
class Controller:
    """The home site and its rules: leave in advance, taken back by the source's word alone."""

    epoch: int = 1
    owner: str = "left"
    address: str = ""
    moving: bool = True
    back: int = 0  # the revision of the first wish that speaks of no leave any more
    revision: int = 0

    def hear(self, left: VmReport | None, left_revision: int, right: VmReport | None) -> None:
        if not self.moving:
            return
        if right is not None:
            self.address = right.migration_address or self.address
            if right.state is VmState.RUNNING:
                self._end("right")
                return
        did_not_arrive = right is not None and right.state is VmState.FAILED
        if left is None:
            return
        if left.is_lost or (left.migrated and did_not_arrive):
            self._end("right")
        elif self.back and left_revision >= self.back and left.state is not VmState.MIGRATING:
            self._end("left")
        elif (left.failure or did_not_arrive) and not self.back:
            self.back = self.revision + 1

    def _end(self, owner: str) -> None:
        self.moving, self.owner = False, owner
        if owner == "right":
            self.epoch += 1

    def wishes(self) -> tuple[VnodeWish, VnodeWish]:
        self.revision += 1
        base = VmWish(
            vm_id=VM, iaas_id=IaasId("i"), name="web", shape=VmShape(), wish=PowerWish.RUNNING,
            epoch=self.epoch, disks=(), ports=(),
        )  # fmt: skip
        left: tuple[VmWish, ...] = (base,) if self.owner == "left" else ()
        right: tuple[VmWish, ...] = (base,) if self.owner == "right" else ()
        if self.moving:
            incoming = IncomingMigration(
                source_node_id=NodeId("left"), source_epoch=self.epoch, secret="5e" * 32
            )
            right = (replace(base, epoch=self.epoch + 1, incoming=incoming),)
            if self.address and not self.back:
                target = NodeId("right")
                outgoing = OutgoingMigration(
                    target_node_id=target, address=self.address, may_switch=True, secret="5e" * 32
                )
                left = (replace(base, outgoing=outgoing),)
        return (
            VnodeWish(revision=self.revision, vms=left),
            VnodeWish(revision=self.revision, vms=right),
        )


class World:
    """Two nodes, a fabric between them, a controller above."""

    def __init__(self) -> None:
        self.fabric = FakeFabric()
        self.left = Node(FakeHypervisor(self.fabric))
        self.right = Node(FakeHypervisor(self.fabric))
        self.left.hypervisor.sends_slowly = True
        self.controller = Controller()
        self.now_s = 1_000_000.0
        self.happen("control")
        self.happen("left")

    def happen(self, event: str) -> None:
        self.now_s += 0.1
        match event.split():
            case ["left"]:
                self.left.step(self.now_s)
            case ["right"]:
                self.right.step(self.now_s)
            case ["control"]:
                left = self.left.report(), self.left.memory.revision
                self.controller.hear(*left, self.right.report())
                for node, wish in zip(
                    (self.left, self.right), self.controller.wishes(), strict=True
                ):
                    node.take(wish)
            case ["cut" | "swallow" | "heal" as how]:
                self.fabric.is_cut = how == "cut"
                self.fabric.swallows = how == "swallow"
            case ["sent"]:
                self.left.all_sent()
            case ["forget"]:
                self.left.forget_leave()
            case ["wait"]:
                self.now_s += 20.0
            case ["crash", side]:
                self.crash(self.left if side == "left" else self.right)
            case ["deafen", side]:
                (self.left if side == "left" else self.right).hears = False
            case _:
                self.left.hears = self.right.hears = True
        self.check()

    def crash(self, node: Node) -> None:
        guest = node.guest()
        if guest is not None and guest.state in {RunState.RUNNING, RunState.INCOMING}:
            node.hypervisor.crash(VM)

    def check(self) -> None:
        running = [
            name
            for name, node in (("left", self.left), ("right", self.right))
            if (guest := node.guest()) is not None and guest.state is RunState.RUNNING
        ]
        assert len(running) <= 1, "the VM runs twice"


# An undisturbed move up to the switch, and what both agents see of it.
MOVE = ("control", "right", "control", "left", "left", "sent", "left", "right")


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(MOVE)), st.lists(st.sampled_from(EVENTS), max_size=40))
def test_a_moving_vm_never_runs_twice_and_ends_up_running_once(
    begun: int, events: list[str]
) -> None:
    world = World()
    for event in (*MOVE[:begun], *events):
        world.happen(event)
    world.happen("heal")
    world.happen("hear")
    for _ in range(20):
        for event in ("control", "left", "sent", "right", "wait"):
            world.happen(event)
    states = [
        guest.state for node in (world.left, world.right) if (guest := node.guest()) is not None
    ]
    assert states.count(RunState.RUNNING) == 1, states


def test_a_guest_with_leave_is_taken_back_while_it_is_sent() -> None:
    world = World()
    for event in ("control", "right", "control", "left", "left"):
        world.happen(event)
    source = world.left.guest()
    assert source is not None
    assert source.migration.has_leave
    world.controller.back = world.controller.revision + 1
    for event in ("control", "left", "control", "left", "sent", "control", "right"):
        world.happen(event)
    assert world.controller.owner == "left"
    assert world.left.guest() is not None
    target = world.right.guest()
    assert target is None or target.state is not RunState.RUNNING


def test_a_source_that_looks_again_after_the_switch_stays_handed_over() -> None:
    world = World()
    for event in (*MOVE, "deafen left", "left", "wait", "left"):
        world.happen(event)
    source, target = world.left.guest(), world.right.guest()
    assert source is not None
    assert target is not None
    assert (source.state, target.state) == (RunState.HANDED_OVER, RunState.RUNNING)


def test_an_undisturbed_migration_ends_on_the_right() -> None:
    world = World()
    for _ in range(12):
        for event in ("control", "left", "sent", "right"):
            world.happen(event)
    guest = world.right.guest()
    assert guest is not None
    assert guest.state is RunState.RUNNING
    assert world.left.guest() is None
