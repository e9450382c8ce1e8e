from dataclasses import replace
from itertools import pairwise

import pytest

from nuage.energy.electrical import PowerLimit
from nuage.energy.power_curve import PowerCurve, line
from nuage.errors import InvalidRequest
from nuage.ids import IaasId, NodeId, SiteId, VmId
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
    all_violations,
)
from nuage.placement.planner.fleet import Fleet, PlannedNode, PlannedVm
from nuage.placement.planner.plan import Act, Plan, Reason
from nuage.placement.planner.schedule import Pace, schedule
from nuage.placement.planner.search import Target, consolidate, repair

CURVE = PowerCurve(
    watts=line(60, 200).watts, off_watts=5.0, boot_time_s=120.0, boot_joules=24_000.0,
    shutdown_joules=1_200.0,
)  # fmt: skip


def node(name: str, **changes: object) -> PlannedNode:
    base = PlannedNode(
        node_id=NodeId(name), site_id=SiteId("marne"), vcpu_count=8, memory_mib=8192, curve=CURVE
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def vm(name: str, on: str | None, **changes: object) -> PlannedVm:
    base = PlannedVm(
        vm_id=VmId(name), iaas_id=IaasId("i"), vcpu_count=1, memory_mib=1024,
        node_id=None if on is None else NodeId(on),
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def solve(fleet: Fleet, *constraints: Constraint) -> tuple[dict[str, str | None], Plan]:
    """Repair, schedule, and insist that the checker agrees."""
    target = repair(fleet, constraints)
    plan = schedule(fleet, target, constraints)
    assert check_plan(fleet, plan, constraints) == ()
    places = {
        str(vm.vm_id): None if place < 0 else str(fleet.nodes[place].node_id)
        for vm, place in zip(fleet.vms, target.placement.tolist(), strict=True)
    }
    return places, plan


def test_a_node_that_is_to_be_empty_is_drained_then_switched_off() -> None:
    fleet = Fleet([node("a", drain=True), node("b")], [vm("v1", "a"), vm("v2", "a"), vm("v3", "b")])
    places, plan = solve(fleet)
    assert places == {"v1": "b", "v2": "b", "v3": "b"}
    assert [(s.act, s.reason) for s in plan.steps] == [
        (Act.MIGRATE, Reason.DEFECTION),
        (Act.MIGRATE, Reason.DEFECTION),
        (Act.POWER_OFF, Reason.DEFECTION),
    ]
    assert plan.steps[-1].begin_s == plan.steps[1].end_s
    assert plan.migration_count == 2
    assert plan.joules == pytest.approx(2 * 1024 * 0.5 + 1_200)


def test_what_keeps_every_rule_stays_where_it_is() -> None:
    fleet = Fleet([node("a"), node("b")], [vm("v1", "a"), vm("v2", "b")])
    _, plan = solve(fleet, Spread((VmId("v1"), VmId("v2"))))
    assert plan.steps == ()
    assert plan.duration_s == 0.0
    assert plan.pays_after_s == float("inf")


def test_a_vm_that_grows_moves_the_smallest_that_makes_room() -> None:
    fleet = Fleet(
        [node("a"), node("b")],
        [vm("big", "a", memory_mib=6144), vm("mid", "a", memory_mib=2048),
         vm("small", "a", memory_mib=1024)],
    )  # fmt: skip
    places, plan = solve(fleet)
    assert places == {"big": "a", "mid": "a", "small": "b"}
    assert plan.steps[0].reason is Reason.PERFORMANCE


def test_room_is_made_by_moving_a_smaller_vm_aside() -> None:
    fleet = Fleet(
        [node("a", memory_mib=4096), node("b", memory_mib=4096), node("c", drain=True)],
        [vm("v1", "a", memory_mib=2048), vm("v2", "b", memory_mib=2048),
         vm("v3", "c", memory_mib=3072)],
    )  # fmt: skip
    places, plan = solve(fleet)
    assert {places["v1"], places["v2"]} in ({"a"}, {"b"})
    assert plan.migration_count == 2


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (Spread((VmId("v1"), VmId("v2"))), "v1"),
        (Ban((VmId("v2"),), (NodeId("a"),)), "v1"),
        (Fence((VmId("v2"),), (NodeId("b"),)), "v1"),
    ],
)
def test_each_constraint_moves_who_breaks_it(constraint: Constraint, expected: str) -> None:
    fleet = Fleet([node("a"), node("b")], [vm("v1", "a"), vm("v2", "a")])
    assert all_violations(fleet, [constraint], fleet.start) != []
    places, _ = solve(fleet, constraint)
    assert places[expected] == "a"
    assert places["v2"] == "b"


def test_a_gathered_vm_joins_the_site_of_the_others() -> None:
    away = node("c", site_id=SiteId("lyon"))
    fleet = Fleet([node("a"), away], [vm("v1", "a"), vm("v2", "a"), vm("v3", "c")])
    places, _ = solve(fleet, Gather((VmId("v1"), VmId("v2"), VmId("v3"))))
    assert places["v3"] == "a"


def test_a_contract_keeps_vms_in_its_sites() -> None:
    fleet = Fleet(
        [node("a", drain=True), node("b", memory_mib=512), node("c", site_id=SiteId("lyon"))],
        [vm("v1", "a")],
    )
    contract = Contract(fleet, {IaasId("i"): [SiteId("marne")]})
    target = repair(fleet, [contract])
    assert [v.rule for v in target.unsolved] == ["drain"]
    elsewhere = Contract(fleet, {IaasId("i"): [SiteId("lyon")]})
    assert [v.rule for v in elsewhere.violations(fleet, fleet.start)] == ["contract"]
    places, plan = solve(fleet, elsewhere)
    assert places["v1"] == "c"
    assert plan.steps[0].end_s > 1024 * 1024 * 1024 * 8 / 1e9  # over the link between sites


def test_a_branch_over_its_limit_sheds_its_busiest_vm() -> None:
    fleet = Fleet(
        [node("a"), node("b")],
        [vm("calm", "a", load=0.1), vm("busy", "a", vcpu_count=4, load=1.0)],
    )
    limit = PowerLimit(name="branch a", limit_watts=100.0, node_ids=frozenset({NodeId("a")}))
    places, _ = solve(fleet, Electrical(fleet, [limit]))
    assert places == {"calm": "a", "busy": "b"}


def test_a_full_branch_takes_nobody() -> None:
    fleet = Fleet([node("a"), node("b", drain=True)], [vm("v1", "b", vcpu_count=8, load=1.0)])
    limit = PowerLimit(name="branch a", limit_watts=100.0, node_ids=frozenset({NodeId("a")}))
    target = repair(fleet, [Electrical(fleet, [limit])])
    assert [v.rule for v in target.unsolved] == ["drain"]
    assert (target.placement == fleet.start).all()


def test_preserved_vcpus_have_their_cores_alone() -> None:
    """Four cores sold four times each: three kept leave one, on which four vCPUs run."""
    two = [node(name, vcpu_count=16, core_count=4, memory_mib=65_536) for name in ("a", "b")]
    vms = [
        vm("kept", "a", vcpu_count=4, preserved_vcpus=3),
        vm("big", "a", vcpu_count=3), vm("small", "a", vcpu_count=1),
    ]  # fmt: skip
    fleet = Fleet(two, vms)
    found = Preserve(fleet).violations(fleet, fleet.start)
    assert [(v.rule, v.vm_ids, v.node_id) for v in found] == [("preserve", ("big",), "a")]
    places, _ = solve(fleet, Preserve(fleet))
    assert places == {"kept": "a", "small": "a", "big": "b"}
    alone = Fleet(two[:1], vms)
    assert [v.rule for v in repair(alone, [Preserve(alone)]).unsolved] == ["preserve"]


def test_a_node_that_sells_its_cores_four_times_draws_by_its_cores() -> None:
    fleet = Fleet(
        [node("a", vcpu_count=32, core_count=8)], [vm("v1", "a", vcpu_count=16, load=0.5)]
    )
    assert fleet.node_watts(fleet.start)[0] == pytest.approx(CURVE.peak_watts)


def test_a_sleeping_node_is_woken_before_its_first_vm() -> None:
    fleet = Fleet([node("a", drain=True), node("b", is_on=False)], [vm("v1", "a"), vm("new", None)])
    _, plan = solve(fleet)
    assert plan.steps[0].act is Act.POWER_ON
    assert {(s.act, s.begin_s) for s in plan.steps[1:3]} == {
        (Act.BOOT, 120.0),
        (Act.MIGRATE, 120.0),
    }


def test_a_cycle_is_broken_by_a_step_aside() -> None:
    """Two full nodes swap; a third has room for one VM at a time."""
    fleet = Fleet(
        [node("a", memory_mib=1024), node("b", memory_mib=1024), node("c", memory_mib=1024)],
        [vm("v1", "a"), vm("v2", "b")],
    )
    swapped = Target(fleet.start[::-1].copy(), ())
    plan = schedule(fleet, swapped)
    assert check_plan(fleet, plan) == ()
    assert [s.node_id for s in plan.steps] == ["c", "a", "b"]
    assert plan.steps[0].reason is Reason.WAY


def test_a_cycle_without_room_anywhere_is_told() -> None:
    fleet = Fleet(
        [node("a", memory_mib=1024), node("b", memory_mib=1024)], [vm("v1", "a"), vm("v2", "b")]
    )
    plan = schedule(fleet, Target(fleet.start[::-1].copy(), ()))
    assert plan.steps == ()
    assert {v.rule for v in plan.unsolved} == {"cycle"}


def test_the_pace_is_kept() -> None:
    vms = [vm(f"v{n}", "a") for n in range(8)]
    fleet = Fleet([node("a", drain=True), node("b", site_id=SiteId("lyon")), node("c")], vms)
    pace = Pace(migrations_per_node=1)
    target = repair(fleet)
    plan = schedule(fleet, target, pace=pace)
    assert check_plan(fleet, plan, pace=pace) == ()
    moves = [s for s in plan.steps if s.act is Act.MIGRATE]
    assert all(b.begin_s >= a.end_s for a, b in pairwise(moves))


def test_a_line_between_sites_carries_what_it_can_and_the_checker_adds_it_up() -> None:
    there = [node(f"b{n}", site_id=SiteId("lyon")) for n in range(4)]
    fleet = Fleet(
        [*(node(f"a{n}", drain=True) for n in range(4)), *there],
        [vm(f"v{n}", f"a{n}", memory_mib=5_000) for n in range(4)],
    )
    slow = Pace(link_bits_of={frozenset((SiteId("marne"), SiteId("lyon"))): 100e6})
    plan = schedule(fleet, repair(fleet), (), pace=slow)
    moves = [step for step in plan.steps if step.act is Act.MIGRATE]
    assert len(moves) == 4
    for step in moves:  # all at once, each at a quarter of the line
        assert step.end_s - step.begin_s == pytest.approx(5_000 * 8 * 1.048576 / 25 + slow.fixed_s)
    assert check_plan(fleet, plan, (), pace=slow) == ()
    slower = Pace(link_bits_of={frozenset((SiteId("marne"), SiteId("lyon"))): 90e6})
    assert {v.rule for v in check_plan(fleet, plan, (), pace=slower)} == {"bandwidth"}


def test_a_node_is_emptied_when_that_pays_and_not_before() -> None:
    fleet = Fleet([node("a"), node("b")], [vm("v1", "a"), vm("v2", "b"), vm("v3", "b")])
    pays = consolidate(fleet, hold_s=3600.0)
    plan = schedule(fleet, pays, reasons={0: Reason.ENERGY})
    assert check_plan(fleet, plan) == ()
    assert [(s.act, s.node_id, s.reason) for s in plan.steps] == [
        (Act.MIGRATE, "b", Reason.ENERGY),
        (Act.POWER_OFF, "a", Reason.ENERGY),
    ]
    assert plan.saved_watts == pytest.approx(55.0)
    assert plan.pays_after_s < 3600.0
    too_short = consolidate(fleet, hold_s=CURVE.break_even_s() * 0.9)
    assert (too_short.placement == fleet.start).all()


def test_the_checker_objects_to_a_plan_that_is_wrong() -> None:
    fleet = Fleet(
        [node("a", drain=True), node("b", memory_mib=1024), node("c", is_on=False)],
        [vm("v1", "a"), vm("v2", "a")],
    )
    good = schedule(
        Fleet([node("a", drain=True), node("b")], [vm("v1", "a"), vm("v2", "a")]),
        Target(fleet.start * 0 + 1, ()),
    )
    rules = {violation.rule for violation in check_plan(fleet, good)}
    assert {"capacity", "memory"} <= rules
    dark = Plan(steps=tuple(replace(s, node_id=NodeId("c")) for s in good.steps))
    rules = {violation.rule for violation in check_plan(fleet, dark)}
    assert "power" in rules
    lost = Plan(steps=tuple(replace(s, from_node=NodeId("b")) for s in good.steps[:1]))
    rules = {violation.rule for violation in check_plan(fleet, lost)}
    assert {"origin", "drain"} <= rules
    narrow = Pace(migrations_per_node=1)
    assert "parallel" in {v.rule for v in check_plan(fleet, good, pace=narrow)}
    fence = Fence((VmId("v1"),), (NodeId("a"),))
    assert "fence" in {v.rule for v in check_plan(fleet, good, [fence])}


def test_a_fleet_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        Fleet([node("a"), node("a")], [])
    with pytest.raises(InvalidRequest):
        Fleet([node("a")], [vm("v1", "z")])
