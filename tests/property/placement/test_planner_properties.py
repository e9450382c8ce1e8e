"""Plans over random fleets: the independent checker never objects."""

from dataclasses import replace
from random import Random

from benchmarks.planner_instances import Instance, instance
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.placement.exact_repair import move_count, repair_exactly

from nuage.placement.planner.check import check_plan
from nuage.placement.planner.fleet import Fleet
from nuage.placement.planner.schedule import schedule
from nuage.placement.planner.search import Target, consolidate, repair


def small(seed: int) -> Instance:
    prng = Random(seed)
    return instance(
        seed,
        node_count=prng.randrange(60, 90),
        vms_per_node=prng.randrange(1, 6),
        drain_count=prng.randrange(0, 12),
        boot_share=prng.choice((0.0, 0.1)),
        grow_share=prng.choice((0.0, 0.1)),
        constrained_share=prng.choice((0.0, 0.5, 1.0)),
        node_memory_mib=prng.choice((16_384, 28_672)),
    )


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_repair_plan_may_always_be_carried_out(seed: int) -> None:
    made = small(seed)
    target = repair(made.fleet, made.constraints)
    plan = schedule(made.fleet, target, made.constraints)
    assert check_plan(made.fleet, plan, made.constraints) == ()


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_consolidation_saves_watts_and_breaks_nothing(seed: int) -> None:
    made = small(seed)
    first = repair(made.fleet, made.constraints)
    if first.unsolved:
        return
    settled = Fleet(
        made.fleet.nodes,
        [
            replace(vm, node_id=made.fleet.nodes[place].node_id)
            for vm, place in zip(made.fleet.vms, first.placement.tolist(), strict=True)
        ],
    )
    target = consolidate(settled, made.constraints)
    assert target.unsolved == ()
    plan = schedule(settled, target, made.constraints)
    assert check_plan(settled, plan, made.constraints) == ()
    assert plan.saved_watts >= -1e-6
    assert plan.migration_count == 0 or plan.pays_after_s <= 3600.0


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_shuffle_of_everything_is_reached_or_its_cycles_are_told(seed: int) -> None:
    made = small(seed)
    prng = Random(seed)
    other = list(range(len(made.fleet.nodes)))
    prng.shuffle(other)
    placement = made.fleet.start.copy()
    for vm, place in enumerate(placement.tolist()):
        placement[vm] = other[place] if place >= 0 else other[0]
    target = Target(placement, ())
    plan = schedule(made.fleet, target)
    assert check_plan(made.fleet, plan) == ()


@given(st.integers(0, 10_000))
@settings(max_examples=6, deadline=None)
def test_the_fast_search_solves_what_the_exact_one_solves(seed: int) -> None:
    made = instance(
        seed, node_count=60, vms_per_node=2, drain_count=3, boot_share=0.0,
        constrained_share=0.5, node_memory_mib=16_384,
    )  # fmt: skip
    exact = repair_exactly(made.fleet, made.constraints)
    fast = repair(made.fleet, made.constraints)
    assert exact is not None
    if not exact.unsolved:
        assert fast.unsolved == ()
        assert move_count(made.fleet, fast) <= 2 * move_count(made.fleet, exact) + 2
