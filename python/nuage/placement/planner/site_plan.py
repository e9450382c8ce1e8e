"""One site's plan: drain what is to be empty, empty what need not be on, by the site's own terms.

VMs stay at their site as long as it has room for them: a disk is near its VM there, and no line
between sites is used. Only what finds no room is planned again with the nodes of the other
sites, whose own VMs stay where they are and whose nodes are not switched.

Watts are of the site's meter: each node's curve times its site's PUE, so a plan that moves a VM
to another site weighs the weather there.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nuage.energy.electrical import PowerLimit
from nuage.energy.power_curve import PowerCurve
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.model.contract import Contract
from nuage.model.infrastructure import Datacenter
from nuage.model.placement import EstimationVector
from nuage.model.vm import Vm
from nuage.placement.planner.constraints import Constraint, Fence
from nuage.placement.planner.fleet import Fleet
from nuage.placement.planner.make import NodesAt, constraints_of, curve_of, fleet_of, make_plan
from nuage.placement.planner.plan import Act, Plan, Reason, Step
from nuage.placement.planner.schedule import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """What is planned over. `vectors` and `vms` are of all sites that answered.

    `pue_of` and `cores_of` (cores that a VM keeps busy) may have gaps. `busy_until` names nodes
    that are not to be switched off: woken a moment ago, or under maintenance. `ruled_out` are
    those of `drain` that a rule takes out of service to save energy: nothing ails them.
    """

    site_id: SiteId
    vectors: Sequence[EstimationVector]
    vms: Sequence[Vm]
    contracts: Mapping[IaasId, Contract]
    sites: Sequence[Datacenter]
    limits: Sequence[PowerLimit] = ()
    pue_of: Mapping[SiteId, float] = field(default_factory=dict)
    curve_of: Mapping[NodeId, Sequence[float]] = field(default_factory=dict)
    cores_of: Mapping[VmId, float] = field(default_factory=dict)
    drain: Collection[NodeId] = ()
    ruled_out: Collection[NodeId] = ()
    kept_on: Collection[NodeId] = ()
    nodes_kept_on: int = 1
    nodes_at: NodesAt | None = None
    link_bits_of: Mapping[frozenset[SiteId], float] = field(default_factory=dict)


def plan_site(view: SiteView, *, hold_s: float | None = None, pace: Pace | None = None) -> Plan:
    """Return a checked plan for a site; with `hold_s` it also empties nodes where that pays."""
    own = [vector for vector in view.vectors if vector.site_id == view.site_id]
    plan = _plan(view, own, hold_s, pace)
    if plan.unsolved and len(own) < len(view.vectors):
        wider = _plan(view, view.vectors, hold_s, pace)
        if len(wider.unsolved) < len(plan.unsolved):
            plan = wider
    return _with_nodes_kept(view, own, _with_reasons(view, plan))


def _with_reasons(view: SiteView, plan: Plan) -> Plan:
    """Tell a node that is emptied by an energy rule from one with a defect."""
    steps = tuple(
        replace(step, reason=Reason.ENERGY)
        if step.reason is Reason.DEFECTION and (step.from_node or step.node_id) in view.ruled_out
        else step
        for step in plan.steps
    )
    return replace(plan, steps=steps)


def _plan(
    view: SiteView, vectors: Sequence[EstimationVector], hold_s: float | None, pace: Pace | None
) -> Plan:
    curves = {vector.node_id: _curve(view, vector) for vector in vectors}
    fleet = fleet_of(vectors, view.vms, curves=curves, drain=view.drain, cores_of=view.cores_of)
    constraints: list[Constraint] = list(
        constraints_of(
            fleet, view.vms, contracts=view.contracts, sites=view.sites,
            limits=_known(view, fleet), nodes_at=view.nodes_at,
        )
    )  # fmt: skip
    constraints += _stay_where_they_are(view, fleet)
    pace = replace(pace or Pace(), link_bits_of=view.link_bits_of)
    return make_plan(fleet, constraints, hold_s=hold_s, pace=pace)


def _curve(view: SiteView, vector: EstimationVector) -> PowerCurve:
    """Return a node's curve at the site's meter; other sites' nodes are never worth switching."""
    curve = curve_of(vector)
    watts = tuple(view.curve_of.get(vector.node_id, curve.watts))
    pue = view.pue_of.get(vector.site_id, 1.0)
    is_own = vector.site_id == view.site_id
    return replace(
        curve,
        watts=tuple(value * pue for value in watts),
        off_watts=0.0 if is_own else watts[0] * pue,
        boot_joules=curve.boot_joules * pue,
        shutdown_joules=curve.shutdown_joules * pue,
    )


def _known(view: SiteView, fleet: Fleet) -> list[PowerLimit]:
    """Return the limits in watts of the site's meter, of nodes that are planned over."""
    pue = view.pue_of.get(view.site_id, 1.0)
    return [
        replace(limit, limit_watts=limit.limit_watts * pue)
        for limit in view.limits
        if any(node_id in fleet.node_number for node_id in limit.node_ids)
    ]


def _stay_where_they_are(view: SiteView, fleet: Fleet) -> list[Constraint]:
    """Keep VMs that are not this site's to move where they are, and those that move already."""
    return [
        Fence((vm.vm_id,), (vm.node_id,))
        for vm in view.vms
        if vm.vm_id in fleet.vm_number
        and vm.node_id is not None
        and (vm.site_id != view.site_id or vm.migrating_to is not None)
    ]


def _with_nodes_kept(view: SiteView, own: Iterable[EstimationVector], plan: Plan) -> Plan:
    """Leave out switching that the site's terms forbid: some nodes stay on, some are kept."""
    vectors = {vector.node_id: vector for vector in own}
    woken = {step.node_id for step in plan.steps if step.act is Act.POWER_ON}
    on = {node_id for node_id, vector in vectors.items() if vector.booted} | woken
    on -= {node_id for node_id, vector in vectors.items() if vector.maintenance}
    saved_watts = plan.saved_watts
    offs = [step for step in plan.steps if step.act is Act.POWER_OFF]
    # The site keeps its most efficient nodes: the first to go is the one that idles highest.
    offs.sort(key=lambda step: (-_idle_watts(view, vectors, step), step.node_id))
    allowed = set()
    for step in offs:
        is_spare = len(on - {step.node_id}) >= view.nodes_kept_on
        if step.node_id in vectors and step.node_id not in view.kept_on and is_spare:
            on.discard(step.node_id)
            allowed.add(step.node_id)
        else:
            saved_watts -= _idle_watts(view, vectors, step)
    kept = [s for s in plan.steps if s.act is not Act.POWER_OFF or s.node_id in allowed]
    return replace(plan, steps=tuple(kept), saved_watts=saved_watts)


def _idle_watts(view: SiteView, vectors: Mapping[NodeId, EstimationVector], step: Step) -> float:
    vector = vectors.get(step.node_id)
    return 0.0 if vector is None else _curve(view, vector).watts[0]


def waits_for(plan: Plan) -> tuple[frozenset[int], ...]:
    """Return for each step the numbers of the steps that must have ended before it begins.

    Steps wait for what ended before them on the same node or with the same VM: times are
    estimates, this order is not.
    """
    needs = []
    for number, step in enumerate(plan.steps):
        touched = _touched(step)
        needs.append(
            frozenset(
                earlier
                for earlier, other in enumerate(plan.steps)
                if earlier != number
                and other.end_s <= step.begin_s
                and (other.end_s, earlier) < (step.end_s, number)
                and touched & _touched(other)
            )
        )
    return tuple(needs)


def _touched(step: Step) -> set[str]:
    return {str(name) for name in (step.node_id, step.from_node, step.vm_id) if name is not None}
