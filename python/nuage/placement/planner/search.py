"""Finding a target placement: repair what is broken with few moves, or empty nodes.

Repair. Every VM that must move is taken off (drained, unplaced, in breach of a constraint,
or the largest of an overfull node), and put back largest first on the node that adds the
fewest watts. Where none has room, one smaller VM makes room and is put elsewhere itself
(an ejection, at most `EJECTIONS_MAX` tried per VM). Rounds repeat until no checker objects.

Consolidation. Nodes are emptied one after another, those first that save most per MiB moved,
as long as all their VMs find room on nodes that stay on, and what is saved over `hold_s`
outweighs the migrations and the switching (break-even).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from nuage.placement.columns import BoolArray
from nuage.placement.planner.constraints import Constraint, Violation, all_violations
from nuage.placement.planner.fleet import NOWHERE, Fleet, Placement, Trial

ROUNDS_MAX: Final = 8  # constraints that pull at one another settle in two or three
EJECTIONS_MAX: Final = 40  # nodes tried per VM that has no room anywhere
# Energy of a live migration per MiB sent, both ends: the order of magnitude of published
# measurements (0.5 J/MB); sites calibrate their own.
MIGRATION_JOULES_PER_MIB: Final = 0.5


@dataclass(frozen=True, slots=True)
class Target:
    """A placement found, and what it still breaks (empty: nothing)."""

    placement: Placement
    unsolved: tuple[Violation, ...]


class Searcher:
    """A trial placement and the constraints that concern each VM."""

    def __init__(self, fleet: Fleet, constraints: Sequence[Constraint]) -> None:
        self.fleet = fleet
        self.constraints = tuple(constraints)
        self.trial = Trial(fleet, fleet.start)
        self._of_all = [c for c in self.constraints if c.concerned is None]
        self._of_vm: dict[int, list[Constraint]] = {}
        for constraint in self.constraints:
            for vm_id in constraint.concerned or ():
                self._of_vm.setdefault(fleet.vm_number[vm_id], []).append(constraint)

    def allowed(self, vm: int, able: BoolArray) -> BoolArray:
        """Narrow `able` by every constraint that concerns the VM."""
        for constraint in (*self._of_vm.get(vm, ()), *self._of_all):
            constraint.bar(self.trial, vm, able)
        return able

    def best_node(self, vm: int, barred: BoolArray | None = None) -> int:
        """Return the able node that adds the fewest watts (then the fullest), or NOWHERE."""
        able = self.trial.room(vm)
        if barred is not None:
            able &= ~barred
        nodes = np.flatnonzero(self.allowed(vm, able))
        if not len(nodes):
            return NOWHERE
        added = self.trial.added_watts(vm, nodes).round(6)
        order = np.lexsort((nodes, self.trial.memory_left[nodes], added))
        return int(nodes[order[0]])

    def put(self, vm: int, barred: BoolArray | None = None) -> bool:
        """Put a VM on its best node; False when there is none."""
        node = self.best_node(vm, barred)
        if node != NOWHERE:
            self.trial.move(vm, node)
        return node != NOWHERE

    def put_by_ejection(self, vm: int) -> bool:
        """Make room: move one smaller VM away from a node that lacks it, and take its place."""
        trial, fleet = self.trial, self.fleet
        able = self.allowed(vm, fleet.may_host.copy())
        nodes = np.flatnonzero(able)
        short = np.maximum(
            (fleet.vm_memory[vm] - trial.memory_left[nodes]) / fleet.memory[nodes],
            (fleet.vm_vcpu[vm] - trial.vcpu_left[nodes]) / np.maximum(fleet.vcpu[nodes], 1.0),
        )
        for node in nodes[np.argsort(short, kind="stable")][:EJECTIONS_MAX].tolist():
            for other in sorted(trial.members[node], key=lambda v: (fleet.vm_memory[v], v)):
                fits = (
                    fleet.vm_memory[vm] <= trial.memory_left[node] + fleet.vm_memory[other]
                    and fleet.vm_vcpu[vm] <= trial.vcpu_left[node] + fleet.vm_vcpu[other]
                )
                if not fits or fleet.vm_memory[other] >= fleet.vm_memory[vm]:
                    continue
                trial.move(other, NOWHERE)
                trial.move(vm, node)
                if self.put(other):
                    return True
                trial.move(vm, NOWHERE)
                trial.move(other, node)
        return False


def repair(fleet: Fleet, constraints: Sequence[Constraint] = ()) -> Target:
    """Return a placement that breaks nothing, near the one that is, or says what it breaks."""
    searcher = Searcher(fleet, constraints)
    trial = searcher.trial
    for _ in range(ROUNDS_MAX):
        displaced = _take_off(searcher)
        if not displaced:
            break
        size = np.maximum(
            fleet.vm_memory / fleet.memory.max(initial=1.0),
            fleet.vm_vcpu / fleet.vcpu.max(initial=1.0),
        )
        failed = [
            vm
            for vm in sorted(displaced, key=lambda vm: (-size[vm], vm))
            if not searcher.put(vm) and not searcher.put_by_ejection(vm)
        ]
        for vm in failed:
            _leave_where_it_runs(searcher, vm)
        if failed:
            break
    found = all_violations(fleet, constraints, trial.place)
    return Target(trial.place, tuple(found))


def _leave_where_it_runs(searcher: Searcher, vm: int) -> None:
    """Put a VM that found no node back: it runs on, and what it breaks is told.

    If its room was given away meanwhile it stays off the target; the plan then keeps it
    running too, and whoever was to take its room waits.
    """
    fleet, trial = searcher.fleet, searcher.trial
    node = int(fleet.start[vm])
    has_room = (
        node >= 0
        and trial.memory_left[node] >= fleet.vm_memory[vm]
        and trial.vcpu_left[node] >= fleet.vm_vcpu[vm]
    )
    if has_room:
        trial.move(vm, node)


def _take_off(searcher: Searcher) -> list[int]:
    """Take every VM off that cannot stay where it is; return them."""
    fleet, trial = searcher.fleet, searcher.trial
    displaced: set[int] = set(np.flatnonzero(trial.place < 0).tolist())
    for node in np.flatnonzero(~fleet.may_host).tolist():
        displaced |= trial.members[node]
    for constraint in searcher.constraints:
        for violation in constraint.violations(fleet, trial.place):
            displaced |= set(fleet.numbers_of(violation.vm_ids))
    for vm in displaced:
        trial.move(vm, NOWHERE)
    for node in np.flatnonzero((trial.memory_left < 0) | (trial.vcpu_left < 0)).tolist():
        while trial.memory_left[node] < 0 or trial.vcpu_left[node] < 0:
            vm = _smallest_that_suffices(trial, node)
            trial.move(vm, NOWHERE)
            displaced.add(vm)
    return sorted(displaced)


def _smallest_that_suffices(trial: Trial, node: int) -> int:
    """Return the smallest VM whose leaving cures the node, or its largest if none does."""
    fleet = trial.fleet
    members = sorted(trial.members[node], key=lambda vm: (fleet.vm_memory[vm], vm))
    for vm in members:
        if (
            trial.memory_left[node] + fleet.vm_memory[vm] >= 0
            and trial.vcpu_left[node] + fleet.vm_vcpu[vm] >= 0
        ):
            return vm
    return members[-1]


def consolidate(
    fleet: Fleet,
    constraints: Sequence[Constraint] = (),
    *,
    hold_s: float = 3600.0,
    migration_joules_per_mib: float = MIGRATION_JOULES_PER_MIB,
) -> Target:
    """Return a placement with as few nodes on as pays within `hold_s`; it breaks nothing new."""
    searcher = Searcher(fleet, constraints)
    trial = searcher.trial
    # Nodes that take no VM: asleep, emptied, or idle and better switched off than filled.
    closed = ~(trial.awake & fleet.may_host)
    for number, node in enumerate(fleet.nodes):
        if not trial.members[number] and node.curve.break_even_s() < hold_s:
            closed[number] = True
            trial.awake[number] = False
    memory_used = fleet.memory - trial.memory_left
    idle = fleet.curves[:, 0]
    order = np.lexsort((np.arange(len(fleet.nodes)), memory_used / np.maximum(idle, 1.0)))
    for node in order.tolist():
        members = sorted(trial.members[node], key=lambda vm: (-fleet.vm_memory[vm], vm))
        if closed[node] or not members:
            continue
        if all(fleet.start[vm] != node for vm in members):
            continue  # only newcomers: others were emptied into it
        before = float((trial.watts * trial.awake).sum())
        closed[node] = True
        moved = []
        for vm in members:
            if not searcher.put(vm, closed):
                break
            moved.append(vm)
        after = float((trial.watts * trial.awake).sum()) - float(trial.watts[node])
        curve = fleet.nodes[node].curve
        spent = migration_joules_per_mib * float(fleet.vm_memory[members].sum())
        spent += curve.shutdown_joules + curve.boot_joules + curve.off_watts * hold_s
        if len(moved) == len(members) and (before - after) * hold_s > spent:
            trial.awake[node] = False
            continue
        for vm in moved:
            trial.move(vm, node)
        closed[node] = False
    return Target(trial.place, tuple(all_violations(fleet, constraints, trial.place)))
