from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.placement.placement_builders import site, vector

from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.model.contract import Contract
from nuage.model.placement import EstimationVector
from nuage.model.vm import Vm, VmShape
from nuage.placement.planner.plan import Act, Reason
from nuage.placement.planner.site_plan import SiteView, plan_site, waits_for

MARNE, LYON = SiteId("marne"), SiteId("lyon")
SITES = (site("marne"), site("lyon"))
USED = {"vcpu_free": 10, "memory_free_mib": 30_720, "vm_count": 1}


def vm(name: str, on: str) -> Vm:
    return Vm(
        vm_id=VmId(name), iaas_id=IaasId("i"), name=name,
        shape=VmShape(vcpu_count=2, memory_mib=2048), node_id=NodeId(on),
        site_id=SiteId(on.split("-", maxsplit=1)[0]),
    )  # fmt: skip


def view(vectors: list[EstimationVector], vms: list[Vm], **changes: Any) -> SiteView:
    values: dict[str, Any] = {
        "site_id": MARNE, "vectors": vectors, "vms": vms, "sites": SITES,
        "contracts": {IaasId("i"): Contract()},
    }  # fmt: skip
    return SiteView(**(values | changes))


def test_vms_are_packed_and_idle_nodes_go_off_but_one_stays_on() -> None:
    vectors = [vector("marne-v1", **USED), vector("marne-v2", **USED), vector("marne-v3")]
    seen = view(vectors, [vm("a", "marne-v1"), vm("b", "marne-v2")])
    plan = plan_site(seen, hold_s=3600.0)
    off = [step.node_id for step in plan.steps if step.act is Act.POWER_OFF]
    assert len(off) == 2
    assert plan.migration_count == 1
    none = plan_site(replace(seen, nodes_kept_on=3), hold_s=3600.0)
    assert not [step for step in none.steps if step.act is Act.POWER_OFF]


def test_an_empty_site_keeps_a_node_on() -> None:
    plan = plan_site(view([vector("marne-v1"), vector("marne-v2")], []), hold_s=3600.0)
    assert [step.act for step in plan.steps] == [Act.POWER_OFF]
    assert 50.0 < plan.saved_watts < 60.0


def test_a_drained_node_empties_within_the_site_and_only_else_elsewhere() -> None:
    vectors = [vector("marne-v1", **USED), vector("marne-v2"), vector("lyon-v1")]
    seen = view(vectors, [vm("a", "marne-v1")], drain=[NodeId("marne-v1")])
    assert [s.node_id for s in plan_site(seen).steps if s.vm_id] == ["marne-v2"]
    full = replace(seen, vectors=[vectors[0], vector("marne-v2", vcpu_free=0), vectors[2]])
    assert [s.node_id for s in plan_site(full).steps if s.vm_id] == ["lyon-v1"]


def test_a_node_that_was_emptied_for_heat_is_worth_switching_off() -> None:
    vectors = [vector("marne-v1", **USED), vector("marne-v2")]
    seen = view(vectors, [vm("a", "marne-v1")], drain=[NodeId("marne-v2")])
    plan = plan_site(seen, hold_s=3600.0)
    assert [(step.act, step.node_id) for step in plan.steps] == [(Act.POWER_OFF, "marne-v2")]
    assert plan.saved_watts > 0
    assert plan.pays_after_s < 3600.0


@pytest.mark.parametrize("rule", ["fence", "ban"])
def test_a_vm_leaves_where_its_owner_forbids_it_to_be(rule: str) -> None:
    """Racks are places: r1 is the first node, r2 the second, and the third is in none."""
    racks = {"r1": (NodeId("marne-v1"),), "r2": (NodeId("marne-v2"),)}
    rules = {"fence": {"fence": ("r2",)}, "ban": {"ban": ("r1", "marne-v3")}}[rule]
    vectors = [vector("marne-v1", **USED), vector("marne-v2"), vector("marne-v3")]
    ruled = replace(vm("a", "marne-v1"), **rules)  # type: ignore[arg-type]

    def nodes_at(places: Sequence[str]) -> tuple[NodeId, ...]:
        return tuple(n for place in places for n in racks.get(place, (NodeId(place),)))

    plan = plan_site(view(vectors, [ruled], nodes_at=nodes_at))
    assert [(s.act, s.node_id) for s in plan.steps if s.vm_id] == [(Act.MIGRATE, "marne-v2")]
    away = replace(vm("a", "marne-v1"), fence=("r9",))
    told = plan_site(view(vectors, [away], nodes_at=nodes_at)).unsolved
    assert {violation.rule for violation in told} == {"fence"}


def test_other_sites_vms_and_nodes_are_left_alone() -> None:
    vectors = [vector("marne-v1", **USED), vector("lyon-v1", **USED), vector("lyon-v2")]
    vms = [vm("a", "marne-v1"), vm("z", "lyon-v1")]
    plan = plan_site(view(vectors, vms, drain=[NodeId("marne-v1")]), hold_s=3600.0)
    assert {step.vm_id for step in plan.steps if step.vm_id} == {"a"}
    assert all(step.node_id.startswith("marne") for step in plan.steps if step.vm_id is None)


def test_a_node_under_maintenance_is_emptied_and_kept_on() -> None:
    vectors = [vector("marne-v1", **USED, maintenance=True), vector("marne-v2")]
    seen = view(vectors, [vm("a", "marne-v1")], kept_on=[NodeId("marne-v1")])
    plan = plan_site(seen)
    assert [(step.act, step.reason) for step in plan.steps] == [(Act.MIGRATE, Reason.DEFECTION)]


def test_a_sleeping_node_is_woken_before_its_vm_comes() -> None:
    vectors = [
        vector("marne-v1", **USED),
        vector("marne-v2", booted=False, boot_time_s=30.0, boot_energy_joules=3000.0),
    ]
    plan = plan_site(view(vectors, [vm("a", "marne-v1")], drain=[NodeId("marne-v1")]))
    assert [step.act for step in plan.steps] == [Act.POWER_ON, Act.MIGRATE, Act.POWER_OFF]
    assert waits_for(plan) == (frozenset(), frozenset({0}), frozenset({1}))
