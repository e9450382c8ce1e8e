"""The independent checker of plans: replays the steps, second by second, and objects.

It shares nothing with the scheduler but the plan. What it wants: every VM leaves from where it
is; nodes are up while they hold or receive a VM; no node ever holds more memory or vCPUs than
it has because of an arrival; no more migrations at once than the pace allows, and no more bits a
second between two sites than their line carries; contracts, bans and fences hold at every stop,
pivots included; every constraint holds at the end.
"""

from collections.abc import Sequence

import numpy as np

from nuage.ids import SiteId
from nuage.placement.planner.constraints import (
    Ban,
    Constraint,
    Contract,
    Fence,
    Violation,
    all_violations,
)
from nuage.placement.planner.fleet import Fleet
from nuage.placement.planner.plan import Act, Plan, Step
from nuage.placement.planner.schedule import Pace
from nuage.units import MIB

_TINY = 1e-6


def check_plan(
    fleet: Fleet,
    plan: Plan,
    constraints: Sequence[Constraint] = (),
    *,
    pace: Pace | None = None,
) -> tuple[Violation, ...]:
    """Return everything that is wrong with a plan; () when it may be carried out."""
    replay = _Replay(fleet, pace or Pace())
    events = [(step.begin_s, 1, n, step) for n, step in enumerate(plan.steps)]
    events += [(step.end_s, 0, n, step) for n, step in enumerate(plan.steps)]
    for _, is_begin, _, step in sorted(events, key=lambda event: event[:3]):
        if is_begin:
            replay.begin(step)
        else:
            replay.end(step)
    found = replay.found
    found += _stops(fleet, plan, constraints)
    told = set(plan.unsolved)
    found += [v for v in all_violations(fleet, constraints, replay.place) if v not in told]
    return tuple(found)


def _stops(fleet: Fleet, plan: Plan, constraints: Sequence[Constraint]) -> list[Violation]:
    """Look at where each migration ends, as if the VM stayed there."""
    strict = [c for c in constraints if isinstance(c, Contract | Ban | Fence)]
    if not strict:
        return []
    found = []
    place = np.full(len(fleet.vms), -1, np.int64)
    for step in plan.steps:
        if step.vm_id is None:
            continue
        vm = fleet.vm_number[step.vm_id]
        place[vm] = fleet.node_number[step.node_id]
    for constraint in strict:
        found += constraint.violations(fleet, place)
    return found


class _Replay:
    """Room, power and hands while the steps run."""

    def __init__(self, fleet: Fleet, pace: Pace) -> None:
        self.fleet = fleet
        self.pace = pace
        self.place = fleet.start.copy()
        self.memory = fleet.memory - fleet.used(fleet.vm_memory, fleet.start)
        self.vcpu = fleet.vcpu - fleet.used(fleet.vm_vcpu, fleet.start)
        self.up = fleet.is_on.copy()
        self.hands = np.zeros(len(fleet.nodes), np.int64)
        self.links: dict[frozenset[int], int] = {}
        self.bits: dict[frozenset[SiteId], float] = {}  # per second, by line
        self.found: list[Violation] = []

    def object(self, rule: str, reason: str, step: Step) -> None:
        """Keep an objection."""
        vm_ids = () if step.vm_id is None else (step.vm_id,)
        self.found.append(
            Violation(rule, f"{reason} at {step.begin_s:.1f} s", vm_ids, step.node_id)
        )

    def begin(self, step: Step) -> None:
        """A step takes its room and its hands."""
        node = self.fleet.node_number[step.node_id]
        if step.vm_id is None:
            if step.act is Act.POWER_OFF:
                if (self.place == node).any() or self.hands[node]:
                    self.object("power", "switched off with a VM", step)
                self.up[node] = False
            return
        vm = self.fleet.vm_number[step.vm_id]
        came_from = -1 if step.from_node is None else self.fleet.node_number[step.from_node]
        if int(self.place[vm]) != came_from:
            self.object("origin", f"the VM is not on {step.from_node}", step)
        if not self.up[node]:
            self.object("power", "the node is off", step)
        self.memory[node] -= self.fleet.vm_memory[vm]
        self.vcpu[node] -= self.fleet.vm_vcpu[vm]
        if self.memory[node] < -_TINY or self.vcpu[node] < -_TINY:
            self.object("capacity", "no room", step)
        self._hands(came_from, node, 1, step)

    def end(self, step: Step) -> None:
        """A step gives its hands back; a migration frees its source."""
        node = self.fleet.node_number[step.node_id]
        if step.act is Act.POWER_ON:
            self.up[node] = True
        if step.vm_id is None:
            return
        vm = self.fleet.vm_number[step.vm_id]
        came_from = int(self.place[vm])
        if came_from >= 0:
            self.memory[came_from] += self.fleet.vm_memory[vm]
            self.vcpu[came_from] += self.fleet.vm_vcpu[vm]
        self.place[vm] = node
        self._hands(came_from, node, -1, step)

    def _hands(self, came_from: int, to: int, sign: int, step: Step) -> None:
        for node in (came_from, to):
            if node >= 0:
                self.hands[node] += sign
                if self.hands[node] > self.pace.migrations_per_node:
                    self.object("parallel", "too many migrations on a node", step)
        if came_from >= 0 and self.fleet.site_of[came_from] != self.fleet.site_of[to]:
            self._bandwidth(came_from, to, sign, step)
            link = frozenset((int(self.fleet.site_of[came_from]), int(self.fleet.site_of[to])))
            self.links[link] = self.links.get(link, 0) + sign
            if self.links[link] > self.pace.migrations_per_link:
                self.object("bandwidth", "too many migrations on a link", step)

    def _bandwidth(self, came_from: int, to: int, sign: int, step: Step) -> None:
        """What the migrations on a line send in their time is at most what it carries."""
        assert step.vm_id is not None
        nodes = self.fleet.nodes
        line = frozenset((nodes[came_from].site_id, nodes[to].site_id))
        bits = float(self.fleet.vm_memory[self.fleet.vm_number[step.vm_id]]) * MIB * 8
        sending_s = max(step.end_s - step.begin_s - self.pace.fixed_s, _TINY)
        self.bits[line] = self.bits.get(line, 0.0) + sign * bits / sending_s
        carries = self.pace.between(*line)
        if self.bits[line] > carries * (1.0 + _TINY):
            told = f"{self.bits[line] / 1e6:.0f} Mbit/s on a line of {carries / 1e6:.0f}"
            self.object("bandwidth", told, step)
