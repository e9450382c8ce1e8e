from dataclasses import replace

import pytest
from tests.unit.placement.placement_builders import site, vector

from nuage.energy.electrical import PowerLimit
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.model.contract import Contract
from nuage.model.vm import PowerWish, Vm, VmShape
from nuage.placement.planner.constraints import Ban
from nuage.placement.planner.make import constraints_of, fleet_of, make_plan
from nuage.placement.planner.plan import Act, Reason

SITES = [site("lyon"), site("marne")]
CONTRACTS = {IaasId("i"): Contract(sites=(SiteId("marne"),))}


def vm(name: str, on: str | None) -> Vm:
    return Vm(
        vm_id=VmId(name),
        iaas_id=IaasId("i"),
        name=name,
        shape=VmShape(vcpu_count=2, memory_mib=2048),
        node_id=None if on is None else NodeId(on),
    )


def vectors(**first: bool) -> list[object]:
    used = {"vcpu_free": 8, "memory_free_mib": 16_384, "cpu_utilisation": 2 / 12}
    return [
        vector("marne-v1", **used, **first),
        vector("marne-v2", **used),
        vector("lyon-v1"),
    ]


VMS = [vm("a", "marne-v1"), vm("b", "marne-v1"), vm("c", "marne-v2"), vm("d", "marne-v2")]


def test_a_heat_event_drains_a_node_within_the_contract() -> None:
    fleet = fleet_of(vectors(), VMS, drain=[NodeId("marne-v1")])  # type: ignore[arg-type]
    constraints = constraints_of(fleet, VMS, contracts=CONTRACTS, sites=SITES)
    plan = make_plan(fleet, constraints)
    moves = [step for step in plan.steps if step.act is Act.MIGRATE]
    assert {step.node_id for step in moves} == {"marne-v2"}
    assert {step.reason for step in moves} == {Reason.DEFECTION}
    assert plan.steps[-1].act is Act.POWER_OFF
    assert plan.unsolved == ()


def test_what_moves_a_vm_to_where_its_owner_wants_it_is_quality_of_service() -> None:
    fleet = fleet_of(vectors(), VMS)  # type: ignore[arg-type]
    constraints = constraints_of(fleet, VMS, contracts=CONTRACTS, sites=SITES)
    plan = make_plan(fleet, [*constraints, Ban((VmId("a"),), (NodeId("marne-v1"),))])
    assert [(step.vm_id, step.node_id, step.reason) for step in plan.steps] == [
        ("a", "marne-v2", Reason.QOS)
    ]


def test_idle_nodes_are_emptied_when_that_pays() -> None:
    fleet = fleet_of(vectors(), VMS)  # type: ignore[arg-type]
    assert fleet.vms[0].load == 0.5
    constraints = constraints_of(fleet, VMS, contracts=CONTRACTS, sites=SITES)
    assert make_plan(fleet, constraints).steps == ()
    plan = make_plan(fleet, constraints, hold_s=3600.0)
    assert [step.reason for step in plan.steps] == [Reason.ENERGY] * 4
    off = {step.node_id for step in plan.steps if step.act is Act.POWER_OFF}
    assert off == {"marne-v1", "lyon-v1"}
    assert plan.saved_watts > 100.0


@pytest.mark.parametrize(("idle_for_s", "goes_off"), [(599.0, False), (601.0, True)])
def test_an_empty_node_goes_off_only_if_it_stays_idle_beyond_its_break_even_time(
    idle_for_s: float, *, goes_off: bool
) -> None:
    """400 J of shutdown (20 s) and 11.6 kJ of boot against 20 W of idling: 600 s."""
    idle = vector("lyon-v1", idle_watts=20.0, peak_watts=200.0, boot_energy_joules=11_600.0)
    (node,) = fleet_of([idle], []).nodes
    assert node.curve.break_even_s() == pytest.approx(600.0)
    off = [step.act for step in make_plan(fleet_of([idle], []), hold_s=idle_for_s).steps]
    assert off == ([Act.POWER_OFF] if goes_off else [])


def test_apart_and_near_and_limits_are_kept() -> None:
    vms = [replace(VMS[0], apart=(VmId("c"),)), VMS[1], replace(VMS[2], near=(VmId("d"),)), VMS[3]]
    fleet = fleet_of(vectors(maintenance=True), vms)  # type: ignore[arg-type]
    limit = PowerLimit(name="branch", limit_watts=1000.0, node_ids=frozenset({NodeId("marne-v2")}))
    constraints = constraints_of(fleet, vms, contracts=CONTRACTS, sites=SITES, limits=[limit])
    plan = make_plan(fleet, constraints)
    assert [(v.rule, v.node_id) for v in plan.unsolved] == [("drain", "marne-v1")]
    assert [step.vm_id for step in plan.steps] == ["b"]


def test_only_vms_that_should_run_and_nodes_that_report_count() -> None:
    vms = [*VMS, replace(vm("off", "marne-v1"), wish=PowerWish.STOPPED), vm("lost", "nice-v1")]
    fleet = fleet_of(vectors(), [*vms, vm("new", None)])  # type: ignore[arg-type]
    assert [planned.vm_id for planned in fleet.vms] == ["a", "b", "c", "d", "new"]
    assert fleet.nodes[0].vcpu_count == 12
