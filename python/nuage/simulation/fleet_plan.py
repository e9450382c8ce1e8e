"""The planner's part of `fleet_year`: the product's own, over one container at a time.

A container's nodes and VMs become a `Fleet`; `make_plan` searches, times and checks, and what
comes back is the plan that a site's controller would carry out: migrations in order, then the
nodes that they empty go off. Every vCPU counts as busy, as in the engine.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nuage.energy.electrical import PowerLimit
from nuage.energy.power_curve import PowerCurve
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.placement.planner.constraints import Electrical
from nuage.placement.planner.fleet import Fleet, PlannedNode, PlannedVm
from nuage.placement.planner.make import make_plan
from nuage.placement.planner.plan import Act, Plan, Step

FLEET: Final = IaasId("fleet")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """A container as the planner sees it; nodes and VMs are the simulation's numbers."""

    site: str
    nodes: Sequence[int]
    curve_of: Mapping[int, PowerCurve]
    on: Sequence[bool]
    vcpu_count: int
    memory_mib: int
    limit_watts: float
    vms: Iterable[tuple[int, int, tuple[int, int]]]  # (VM, node, (vCPUs, MiB))


def plan_container(view: ContainerView, *, hold_s: float) -> Plan:
    """Return the checked plan that empties nodes where that pays within `hold_s`."""
    nodes = [
        PlannedNode(
            node_id=NodeId(str(number)),
            site_id=SiteId(view.site),
            vcpu_count=view.vcpu_count,
            memory_mib=view.memory_mib,
            curve=view.curve_of[number],
            is_on=on,
        )
        for number, on in zip(view.nodes, view.on, strict=True)
    ]
    vms = [
        PlannedVm(
            vm_id=VmId(str(number)),
            iaas_id=FLEET,
            vcpu_count=vcpu_count,
            memory_mib=memory_mib,
            node_id=NodeId(str(node)),
            load=1.0,
        )
        for number, node, (vcpu_count, memory_mib) in view.vms
    ]
    fleet = Fleet(nodes, vms)
    limit = PowerLimit(
        name="container",
        limit_watts=view.limit_watts,
        node_ids=frozenset(node.node_id for node in nodes),
    )
    return make_plan(fleet, [Electrical(fleet, [limit])], hold_s=hold_s)


def moves_of(plan: Plan) -> list[tuple[int, int, Step]]:
    """Return a plan's migrations in order: (VM, its new node, the step)."""
    return [
        (int(str(step.vm_id)), int(step.node_id), step)
        for step in plan.steps
        if step.act is Act.MIGRATE
    ]


def emptied_by(plan: Plan) -> list[int]:
    """Return the nodes that a plan switches off."""
    return [int(step.node_id) for step in plan.steps if step.act is Act.POWER_OFF]
