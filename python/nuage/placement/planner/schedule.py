"""From a target to a plan: what waits for what, how long it takes, what may run at once.

Theory of operation. A migration holds room on its destination from its begin and on its
source until its end, so it waits until the destination has room: that is the dependency
graph, never built, only tried again whenever a step ends nearby. At most
`migrations_per_node` and, between two sites, `migrations_per_link` run at once; a link's
bandwidth is shared evenly. A node that sleeps is woken before its first VM; one that is to be
empty and off is switched off after its last. When nothing runs and something waits, the rest
is a cycle: one VM steps aside to a pivot node that has room (and that its constraints allow),
and goes home later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

import numpy as np

from nuage.ids import SiteId
from nuage.placement.planner.constraints import Constraint, Violation, all_violations
from nuage.placement.planner.fleet import NOWHERE, Fleet, Placement
from nuage.placement.planner.plan import Act, Plan, Reason, Step
from nuage.placement.planner.search import MIGRATION_JOULES_PER_MIB, Searcher, Target
from nuage.placement.table import watts_at
from nuage.units import MIB

PIVOTS_MAX: Final = 1000  # steps aside per plan; a plan that needs more is not one
WATTS_NOISE: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast things go. Bandwidths are of a node's port, and of the line between two sites.

    `link_bits_of` has the lines that are known; any other carries `link_bits_per_s`.
    """

    site_bits_per_s: float = 10e9
    link_bits_per_s: float = 1e9
    link_bits_of: Mapping[frozenset[SiteId], float] = field(default_factory=dict)
    migrations_per_node: int = 2
    migrations_per_link: int = 4
    fixed_s: float = 2.0  # handshake, last round, switch-over
    vm_boot_s: float = 10.0
    power_off_s: float = 20.0
    joules_per_mib: float = MIGRATION_JOULES_PER_MIB

    def between(self, one: SiteId, other: SiteId) -> float:
        """Return what the line between two sites carries, in bit/s."""
        return self.link_bits_of.get(frozenset((one, other)), self.link_bits_per_s)


@dataclass(slots=True)
class _Move:
    vm: int
    to: int
    reason: Reason


@dataclass(slots=True)
class _Yard:
    """The state while the plan is being timed."""

    fleet: Fleet
    pace: Pace
    place: list[int]
    memory_left: list[float]
    vcpu_left: list[float]
    busy_node: list[int]
    busy_link: dict[tuple[int, int], int] = field(default_factory=dict)
    awake_at: dict[int, float] = field(default_factory=dict)
    now_s: float = 0.0

    def link(self, one: int, two: int) -> tuple[int, int] | None:
        """Return the link between two nodes' sites, or None inside a site."""
        a, b = int(self.fleet.site_of[one]), int(self.fleet.site_of[two])
        return None if a == b else (min(a, b), max(a, b))

    def may_begin(self, vm: int, to: int) -> bool:
        """Tell whether there is room, and a hand free at both ends and on the link."""
        if (
            self.memory_left[to] < self.fleet.vm_memory[vm]
            or self.vcpu_left[to] < self.fleet.vm_vcpu[vm]
            or self.busy_node[to] >= self.pace.migrations_per_node
        ):
            return False
        came_from = self.place[vm]
        if came_from < 0:
            return True
        link = self.link(came_from, to)
        return self.busy_node[came_from] < self.pace.migrations_per_node and (
            link is None or self.busy_link.get(link, 0) < self.pace.migrations_per_link
        )

    def duration_s(self, vm: int, to: int) -> float:
        """Return how long a migration, or a VM's boot, takes."""
        came_from = self.place[vm]
        if came_from < 0:
            return self.pace.vm_boot_s
        bits = float(self.fleet.vm_memory[vm]) * MIB * 8
        rate = self.pace.site_bits_per_s / self.pace.migrations_per_node
        if self.link(came_from, to) is not None:
            nodes = self.fleet.nodes
            line = self.pace.between(nodes[came_from].site_id, nodes[to].site_id)
            rate = min(rate, line / self.pace.migrations_per_link)
        return bits / rate + self.pace.fixed_s

    def hold(self, vm: int, to: int, sign: int) -> None:
        """Take (1) or free (-1) the hands that a move needs."""
        came_from = self.place[vm]
        self.busy_node[to] += sign
        if came_from >= 0:
            self.busy_node[came_from] += sign
            link = self.link(came_from, to)
            if link is not None:
                self.busy_link[link] = self.busy_link.get(link, 0) + sign

    def room(self, vm: int, node: int, sign: int) -> None:
        """Free (1) or take (-1) a VM's room on a node."""
        self.memory_left[node] += sign * float(self.fleet.vm_memory[vm])
        self.vcpu_left[node] += sign * float(self.fleet.vm_vcpu[vm])


class Scheduler:
    """Times the way from the fleet's placement to a target."""

    def __init__(
        self,
        fleet: Fleet,
        target: Target,
        constraints: Sequence[Constraint],
        pace: Pace,
        reasons: Mapping[int, Reason],
        idle_off_s: float | None,
    ) -> None:
        self.fleet = fleet
        self.target = target
        self.constraints = constraints
        self.idle_off_s = idle_off_s
        self.off: list[int] = []
        start = fleet.start
        # A VM that grows holds its new size from the start; its node may be overfull until
        # somebody leaves, so what is left may begin below zero.
        self.yard = _Yard(
            fleet,
            pace,
            start.tolist(),
            (fleet.memory - fleet.used(fleet.vm_memory, start)).tolist(),
            (fleet.vcpu - fleet.used(fleet.vm_vcpu, start)).tolist(),
            [0] * len(fleet.nodes),
        )
        self.steps: list[Step] = []
        self.unsolved: list[Violation] = []
        self.running: list[tuple[float, int, _Move]] = []
        self.order = 0
        self.waiting_for: dict[int, dict[int, _Move]] = {}  # by node at either end, by VM
        self.waiting: dict[int, _Move] = {}
        self.waiting_on: dict[tuple[int, int], dict[int, _Move]] = {}  # by link, by VM
        self.home: dict[int, _Move] = {}
        self.pivot_count = 0
        for vm in np.flatnonzero((target.placement != start) & (target.placement >= 0)).tolist():
            self._wait(_Move(vm, int(target.placement[vm]), self._reason(vm, reasons)))

    def run(self) -> Plan:
        """Return the plan."""
        self._begin_what_may(list(self.waiting.values()))
        while self.running or self.waiting:
            if not self.running and not self._step_aside():
                break
            self._finish_one()
        self._power_off()
        steps = tuple(sorted(self.steps, key=lambda step: (step.begin_s, step.end_s)))
        reached = np.array(self.yard.place, np.int64)
        saved = self._watts(self.fleet.start, ()) - self._watts(reached, self.off)
        left = all_violations(self.fleet, self.constraints, reached)
        # Sums of equal watts in another order differ in their last digits.
        saved_watts = 0.0 if abs(saved) < WATTS_NOISE else saved
        return Plan(steps=steps, unsolved=(*self.unsolved, *left), saved_watts=saved_watts)

    def _reason(self, vm: int, reasons: Mapping[int, Reason]) -> Reason:
        if vm in reasons:
            return reasons[vm]
        came_from = int(self.fleet.start[vm])
        if came_from == NOWHERE:
            return Reason.REQUEST
        return Reason.DEFECTION if self.fleet.nodes[came_from].drain else Reason.PERFORMANCE

    def _wait(self, move: _Move) -> None:
        self.waiting[move.vm] = move
        for node in (move.to, self.yard.place[move.vm]):
            if node >= 0:
                self.waiting_for.setdefault(node, {})[move.vm] = move
        link = self._link_of(move)
        if link is not None:
            self.waiting_on.setdefault(link, {})[move.vm] = move

    def _unwait(self, move: _Move) -> None:
        del self.waiting[move.vm]
        for node in (move.to, self.yard.place[move.vm]):
            if node >= 0:
                self.waiting_for[node].pop(move.vm, None)
        link = self._link_of(move)
        if link is not None:
            self.waiting_on[link].pop(move.vm, None)

    def _link_of(self, move: _Move) -> tuple[int, int] | None:
        came_from = self.yard.place[move.vm]
        return None if came_from < 0 else self.yard.link(came_from, move.to)

    def _begin_what_may(self, moves: Sequence[_Move]) -> None:
        for move in moves:
            if move.vm in self.waiting and self.yard.may_begin(move.vm, move.to):
                self._begin(move)

    def _begin(self, move: _Move) -> None:
        self._unwait(move)
        yard, fleet = self.yard, self.fleet
        begin_s = max(yard.now_s, self._awake(move.to))
        end_s = begin_s + yard.duration_s(move.vm, move.to)
        yard.hold(move.vm, move.to, 1)
        yard.room(move.vm, move.to, -1)
        came_from = yard.place[move.vm]
        runs = came_from >= 0
        self.steps.append(
            Step(
                act=Act.MIGRATE if runs else Act.BOOT,
                begin_s=begin_s,
                end_s=end_s,
                node_id=fleet.nodes[move.to].node_id,
                vm_id=fleet.vms[move.vm].vm_id,
                from_node=fleet.nodes[came_from].node_id if runs else None,
                reason=move.reason,
                joules=yard.pace.joules_per_mib * float(fleet.vm_memory[move.vm]) * runs,
            )
        )
        self.order += 1
        heappush(self.running, (end_s, self.order, move))

    def _awake(self, number: int) -> float:
        """Return when a node is up; wake it if it sleeps."""
        node = self.fleet.nodes[number]
        if node.is_on:
            return 0.0
        if number not in self.yard.awake_at:
            up_s = self.yard.now_s + node.curve.boot_time_s
            self.yard.awake_at[number] = up_s
            self.steps.append(
                Step(
                    act=Act.POWER_ON,
                    begin_s=self.yard.now_s,
                    end_s=up_s,
                    node_id=node.node_id,
                    reason=Reason.WAY,
                    joules=node.curve.boot_joules,
                )
            )
        return self.yard.awake_at[number]

    def _finish_one(self) -> None:
        end_s, _, move = heappop(self.running)
        yard = self.yard
        yard.now_s = end_s
        came_from = yard.place[move.vm]
        yard.hold(move.vm, move.to, -1)
        if came_from >= 0:
            yard.room(move.vm, came_from, 1)
        yard.place[move.vm] = move.to
        again = self.home.pop(move.vm, None)
        if again is not None:
            self._wait(again)
        near = dict(self.waiting_for.get(move.to, {}))
        if came_from >= 0:
            near |= self.waiting_for.get(came_from, {})
            link = yard.link(came_from, move.to)
            near |= self.waiting_on.get(link, {}) if link is not None else {}
        self._begin_what_may(list(near.values()))

    def _step_aside(self) -> bool:
        """Break a cycle: send one waiting VM to a pivot. False when no pivot has room."""
        if self.pivot_count < PIVOTS_MAX:
            searcher = Searcher(self.fleet, self.constraints)
            trial = searcher.trial
            trial.place = np.array(self.yard.place, np.int64)
            trial.memory_left = np.array(self.yard.memory_left)
            trial.vcpu_left = np.array(self.yard.vcpu_left)
            asleep = ~(
                self.fleet.is_on | np.isin(np.arange(len(trial.cores)), [*self.yard.awake_at])
            )
            for move in sorted(
                self.waiting.values(), key=lambda m: (self.fleet.vm_memory[m.vm], m.vm)
            ):
                if self.yard.place[move.vm] < 0:
                    continue
                pivot = searcher.best_node(move.vm, asleep)
                if pivot in {NOWHERE, move.to, self.yard.place[move.vm]}:
                    continue
                self.pivot_count += 1
                self._unwait(move)
                self.home[move.vm] = move
                aside = _Move(move.vm, pivot, Reason.WAY)
                self._wait(aside)
                self._begin(aside)
                return True
        for move in self.waiting.values():
            told = "waits in a cycle, and no node has room to step aside to"
            self.unsolved.append(Violation("cycle", told, (self.fleet.vms[move.vm].vm_id,)))
        self.waiting.clear()
        return False

    def _power_off(self) -> None:
        """Switch off what the target leaves empty and was on, after its last VM has gone."""
        fleet = self.fleet
        reached = np.array(self.yard.place, np.int64)
        held = np.bincount(reached[reached >= 0], minlength=len(fleet.nodes))
        was = np.bincount(fleet.start[fleet.start >= 0], minlength=len(fleet.nodes))
        left = (held == 0) & (was > 0)
        if self.idle_off_s is not None:  # and what idles already, where staying off pays
            pays = np.array([n.curve.break_even_s() < self.idle_off_s for n in fleet.nodes])
            left |= (held == 0) & fleet.is_on & pays
        self.off = np.flatnonzero(left).tolist()
        last_s: dict[str, float] = {}
        for step in self.steps:
            for node_id in (step.node_id, step.from_node):
                if node_id is not None:
                    last_s[node_id] = max(last_s.get(node_id, 0.0), step.end_s)
        for number in self.off:
            node = fleet.nodes[number]
            begin_s = last_s.get(node.node_id, 0.0)
            self.steps.append(
                Step(
                    act=Act.POWER_OFF,
                    begin_s=begin_s,
                    end_s=begin_s + self.yard.pace.power_off_s,
                    node_id=node.node_id,
                    reason=Reason.DEFECTION if node.drain else Reason.ENERGY,
                    joules=node.curve.shutdown_joules,
                )
            )

    def _watts(self, placement: Placement, off: Sequence[int]) -> float:
        """Return what a placement draws with these nodes off.

        Unlike the search's view, a node that is to be drained draws until it is switched off.
        """
        fleet = self.fleet
        load = fleet.used(fleet.vm_busy, placement) / np.maximum(fleet.cores, 1.0)
        held = np.bincount(placement[placement >= 0], minlength=len(fleet.nodes)) > 0
        watts = watts_at(fleet.curves, load) * (held | fleet.is_on)
        for number in off:
            watts[number] = fleet.nodes[number].curve.off_watts
        return float(watts.sum())


def schedule(
    fleet: Fleet,
    target: Target,
    constraints: Sequence[Constraint] = (),
    *,
    pace: Pace | None = None,
    reasons: Mapping[int, Reason] | None = None,
    idle_off_s: float | None = None,
) -> Plan:
    """Return the ordered, timed plan that leads to `target`; `reasons` by VM number.

    Nodes that the plan empties are switched off. With `idle_off_s` so are those that are
    empty already, if being off for that long pays (break-even).
    """
    ready = pace or Pace()
    return Scheduler(fleet, target, constraints, ready, reasons or {}, idle_off_s).run()
