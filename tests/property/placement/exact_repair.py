"""Exact repair with CP-SAT, the fewest MiB moved that breaks nothing: the search is held to it."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from ortools.sat.python import cp_model

from nuage.placement.planner.constraints import Constraint, Preserve, Spread, all_violations
from nuage.placement.planner.fleet import NOWHERE, Fleet
from nuage.placement.planner.search import Searcher, Target

SOLVE_S_MAX: Final = 300.0  # on a busy machine; alone it takes a second
MOVE_FIXED_MIB: Final = 64  # a move costs something even for a tiny VM


def move_count(fleet: Fleet, target: Target) -> int:
    """Return how many VMs that run now would be elsewhere."""
    return int(((fleet.start >= 0) & (fleet.start != target.placement)).sum())


def repair_exactly(fleet: Fleet, constraints: Sequence[Constraint]) -> Target | None:
    """Return the cheapest placement that breaks nothing, or None when there is none (in time).

    Spread, contract, ban, fence and preserve are exact; gather and electrical limits are checked
    on the answer and told in `unsolved`.
    """
    model = cp_model.CpModel()
    searcher = Searcher(fleet, [c for c in constraints if not isinstance(c, Spread | Preserve)])
    preserves = any(isinstance(c, Preserve) for c in constraints)
    put: dict[tuple[int, int], cp_model.IntVar] = {}
    for vm in range(len(fleet.vms)):
        nodes = np.flatnonzero(searcher.allowed(vm, fleet.may_host.copy())).tolist()
        for node in nodes:
            put[vm, node] = model.new_bool_var(f"{vm}@{node}")
        model.add_exactly_one(put[vm, node] for node in nodes)
    for node in range(len(fleet.nodes)):
        here = [(vm, var) for (vm, place), var in put.items() if place == node]
        for sizes, room in ((fleet.vm_memory, fleet.memory), (fleet.vm_vcpu, fleet.vcpu)):
            model.add(sum(int(sizes[vm]) * var for vm, var in here) <= int(room[node]))
        if preserves:  # in cores times vCPUs, so that all is whole
            cores, vcpus = int(fleet.cores[node]), int(fleet.vcpu[node])
            model.add(
                sum(_units(fleet, vm, cores, vcpus) * var for vm, var in here) <= cores * vcpus
            )
    for constraint in constraints:
        if isinstance(constraint, Spread):
            members = fleet.numbers_of(constraint.vm_ids)
            for node in range(len(fleet.nodes)):
                model.add_at_most_one(put[vm, node] for vm in members if (vm, node) in put)
    model.minimize(
        sum(
            (int(fleet.vm_memory[vm]) + MOVE_FIXED_MIB) * var
            for (vm, node), var in put.items()
            if fleet.start[vm] not in {NOWHERE, node}
        )
    )
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = SOLVE_S_MAX
    solver.parameters.num_workers = 2
    solver.parameters.random_seed = 1
    if solver.solve(model) not in {cp_model.OPTIMAL, cp_model.FEASIBLE}:
        return None
    placement = fleet.start.copy()
    for (vm, node), var in put.items():
        if solver.value(var):
            placement[vm] = node
    return Target(placement, tuple(all_violations(fleet, constraints, placement)))


def _units(fleet: Fleet, vm: int, cores: int, vcpus: int) -> int:
    """Return what a VM takes of a node: a preserved vCPU a whole core, another its share of one."""
    kept = fleet.vms[vm].preserved_vcpus
    return kept * vcpus + (fleet.vms[vm].vcpu_count - kept) * cores
