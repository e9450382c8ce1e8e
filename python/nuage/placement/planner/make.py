"""The planner's door: from what the product knows to a plan that was checked.

`fleet_of` and `constraints_of` translate vectors, VMs and contracts; `make_plan` searches,
times and checks. A plan that its checker objects to is our bug and is never returned.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from nuage.energy.electrical import PowerLimit
from nuage.energy.power_curve import PowerCurve, line
from nuage.errors import LocalProtocolError
from nuage.ids import IaasId, NodeId, VmId
from nuage.model.contract import Contract as ContractTerms
from nuage.model.contract import refusal_of_site
from nuage.model.infrastructure import Datacenter
from nuage.model.placement import EstimationVector
from nuage.model.vm import PowerWish, Vm
from nuage.placement.planner.check import check_plan
from nuage.placement.planner.constraints import (
    Ban,
    Constraint,
    Contract,
    Electrical,
    Fence,
    Gather,
    Preserve,
    Spread,
)
from nuage.placement.planner.fleet import Fleet, PlannedNode, PlannedVm
from nuage.placement.planner.plan import Plan, Reason
from nuage.placement.planner.schedule import Pace, schedule
from nuage.placement.planner.search import consolidate, repair

NodesAt: TypeAlias = Callable[[Sequence[str]], tuple[NodeId, ...]]
SHUTDOWN_S: Final = 20.0  # at idle draw, where no curve says better


def fleet_of(
    vectors: Iterable[EstimationVector],
    vms: Iterable[Vm],
    *,
    curves: Mapping[NodeId, PowerCurve] | None = None,
    drain: Collection[NodeId] = (),
    cores_of: Mapping[VmId, float] | None = None,
) -> Fleet:
    """Return the fleet that the last vectors and the VMs wanted running describe.

    Nodes to `drain`, under maintenance or out of service are to be empty. A VM's load is what it
    was seen to keep busy (`cores_of`), else its share of what its node is busy with.
    """
    nodes = list(vectors)
    known = {vector.node_id for vector in nodes}
    wanted = [
        vm
        for vm in vms
        if vm.wish is PowerWish.RUNNING and (vm.node_id is None or vm.node_id in known)
    ]
    vcpu_used: dict[NodeId, int] = {}
    memory_used: dict[NodeId, int] = {}
    preserved: dict[NodeId, int] = {}
    for vm in wanted:
        if vm.node_id is not None:
            vcpu_used[vm.node_id] = vcpu_used.get(vm.node_id, 0) + vm.shape.vcpu_count
            memory_used[vm.node_id] = memory_used.get(vm.node_id, 0) + vm.shape.memory_mib
            preserved[vm.node_id] = preserved.get(vm.node_id, 0) + vm.shape.preserved_vcpus
    planned = []
    load_of: dict[NodeId, float] = {}
    for vector in nodes:
        node_id = vector.node_id
        used = vcpu_used.get(node_id, 0)
        kept = preserved.get(node_id, 0) * (vector.vcpu_overcommit - 1.0)
        busy = vector.cpu_utilisation * vector.cpu_count
        load_of[node_id] = min(busy / used, 1.0) if used else 0.0
        planned.append(
            PlannedNode(
                node_id=node_id,
                site_id=vector.site_id,
                vcpu_count=vector.vcpu_free + used + round(kept),
                core_count=vector.cpu_count,
                memory_mib=vector.memory_free_mib + memory_used.get(node_id, 0),
                curve=(curves or {}).get(node_id) or curve_of(vector),
                is_on=vector.booted,
                drain=node_id in drain or vector.maintenance or not vector.in_service,
            )
        )
    return Fleet(
        planned,
        [
            PlannedVm(
                vm_id=vm.vm_id,
                iaas_id=vm.iaas_id,
                vcpu_count=vm.shape.vcpu_count,
                memory_mib=vm.shape.memory_mib,
                node_id=vm.node_id,
                load=_load(vm, load_of, cores_of or {}),
                preserved_vcpus=vm.shape.preserved_vcpus,
            )
            for vm in wanted
        ],
    )


def _load(vm: Vm, load_of: Mapping[NodeId, float], cores_of: Mapping[VmId, float]) -> float:
    if vm.vm_id in cores_of:
        return min(cores_of[vm.vm_id] / vm.shape.vcpu_count, 1.0)
    return 1.0 if vm.node_id is None else load_of[vm.node_id]


def constraints_of(
    fleet: Fleet,
    vms: Iterable[Vm],
    *,
    contracts: Mapping[IaasId, ContractTerms],
    sites: Sequence[Datacenter],
    limits: Sequence[PowerLimit] = (),
    nodes_at: NodesAt | None = None,
) -> tuple[Constraint, ...]:
    """Return what contracts, owners' rules and electrical paths ask of placements of `fleet`.

    `nodes_at` tells which nodes the places are that fences and bans name.
    """
    allowed = {
        iaas_id: [site.site_id for site in sites if refusal_of_site(terms, site) is None]
        for iaas_id, terms in contracts.items()
    }
    found: list[Constraint] = [Contract(fleet, allowed)]
    if limits:
        found.append(Electrical(fleet, limits))
    if any(vm.preserved_vcpus for vm in fleet.vms):
        found.append(Preserve(fleet))
    for vm in vms:
        if vm.vm_id not in fleet.vm_number:
            continue
        near = tuple(other for other in vm.near if other in fleet.vm_number)
        if near:
            found.append(Gather((vm.vm_id, *near)))
        found += [Spread((vm.vm_id, other)) for other in vm.apart if other in fleet.vm_number]
        if nodes_at is not None:
            found += _places(fleet, vm, nodes_at)
    return tuple(found)


def _places(fleet: Fleet, vm: Vm, nodes_at: NodesAt) -> list[Constraint]:
    """Return a VM's fence and ban, on the nodes that are planned over."""
    found: list[Constraint] = []
    fenced, banned = (
        tuple(node for node in nodes_at(names) if node in fleet.node_number)
        for names in (vm.fence, vm.ban)
    )
    if vm.fence:
        found.append(Fence((vm.vm_id,), fenced))
    if banned:
        found.append(Ban((vm.vm_id,), banned))
    return found


def make_plan(
    fleet: Fleet,
    constraints: Sequence[Constraint] = (),
    *,
    hold_s: float | None = None,
    pace: Pace | None = None,
) -> Plan:
    """Return a checked plan that cures what is broken; with `hold_s`, that also empties nodes.

    Nodes are emptied and switched off where that pays within `hold_s` seconds.
    """
    target = repair(fleet, constraints)
    reasons = _owed(fleet, constraints)
    if hold_s is not None and not target.unsolved:
        settled = Fleet(
            fleet.nodes,
            [
                replace(vm, node_id=fleet.nodes[place].node_id)
                for vm, place in zip(fleet.vms, target.placement.tolist(), strict=True)
            ],
        )
        fewer = consolidate(settled, constraints, hold_s=hold_s)
        moved = (fewer.placement != target.placement).nonzero()[0].tolist()
        reasons |= {vm: Reason.ENERGY for vm in moved if target.placement[vm] == fleet.start[vm]}
        target = fewer
    plan = schedule(fleet, target, constraints, pace=pace, reasons=reasons, idle_off_s=hold_s)
    objections = check_plan(fleet, plan, constraints, pace=pace)
    if objections:
        told = "; ".join(f"{v.rule}: {v.reason}" for v in objections[:3])
        raise LocalProtocolError(f"the planner made a plan that its checker refuses: {told}")
    return plan


def _owed(fleet: Fleet, constraints: Sequence[Constraint]) -> dict[int, Reason]:
    """Return the VMs that are not where their owner was promised: what moves them is QoS."""
    return {
        number: Reason.QOS
        for constraint in constraints
        for violation in constraint.violations(fleet, fleet.start)
        for number in (fleet.vm_number[vm_id] for vm_id in violation.vm_ids)
        if violation.rule != Electrical.rule and not fleet.nodes[fleet.start[number]].drain
    }


def curve_of(vector: EstimationVector) -> PowerCurve:
    """Return the straight curve of a node that tells its idle and peak watts."""
    straight = line(vector.idle_watts, max(vector.peak_watts, vector.idle_watts))
    return replace(
        straight,
        boot_time_s=vector.boot_time_s,
        boot_joules=vector.boot_energy_joules,
        shutdown_joules=SHUTDOWN_S * vector.idle_watts,
    )
