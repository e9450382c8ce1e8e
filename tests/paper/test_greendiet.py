"""GreenDIET's claim (paper §II-E, [5]): energy saved by placement at no cost in time."""

from dataclasses import replace
from functools import cache

from benchmarks.greendiet import LYON, PAPER, Result, bound_joules, replay, verdict


@cache
def _runs(*, power_off: bool) -> dict[str, Result]:
    policies = ("random", "performance", "power", "green")
    return {p: replay(p, task_s=60.0, power_off=power_off) for p in policies}


def test_with_idle_nodes_off_a_quarter_of_the_energy_is_saved_at_no_longer_makespan() -> None:
    runs = _runs(power_off=True)
    for policy in ("power", "green"):
        assert runs[policy].joules <= 0.75 * runs["random"].joules
        assert runs[policy].makespan_s <= 1.01 * runs["random"].makespan_s
        assert runs[policy].joules <= runs["performance"].joules


def test_with_all_nodes_on_the_idle_floor_leaves_less_to_save_and_the_order_stays() -> None:
    runs = _runs(power_off=False)
    for policy in ("power", "green"):
        assert runs[policy].joules < runs["random"].joules
        assert runs[policy].joules <= runs["performance"].joules
        assert runs[policy].makespan_s <= 1.01 * runs["random"].makespan_s


def test_with_all_nodes_on_no_policy_can_save_a_quarter_and_power_comes_near_what_one_can() -> None:
    """Nodes idle at 27 to 83 % of their peak: most of what is drawn is drawn anyway."""
    runs = _runs(power_off=False)
    random = runs["random"]
    least = bound_joules(PAPER, task_s=60.0, power_off=False, makespan_s_max=random.makespan_s)
    assert 0.75 * random.joules < least <= runs["power"].joules <= 1.01 * least
    assert verdict(runs, least).startswith("a quarter saved: out of reach of any policy")


def test_the_bound_is_what_a_policy_draws_that_has_no_choice() -> None:
    """One kind of node under a load that is whole tenths: the hull is its curve."""
    alone = replace(LYON, counts={"nova": 1}, tasks_per_core=1, span_s=0.0)
    one = replay("power", task_s=60.0, power_off=False, experiment=alone)
    least = bound_joules(alone, task_s=60.0, power_off=False, makespan_s_max=one.makespan_s)
    assert least <= one.joules


def test_a_crowded_cluster_saves_a_quarter_by_the_providers_preference() -> None:
    """Four fifths full, its first wave wakes the slowest machines, which draw for ten minutes."""
    random = replay("random", task_s=160.0, power_off=True)
    preferred = {
        p: replay(p, task_s=160.0, power_off=True, share=2 / 3) for p in ("random", "green")
    }
    for run in preferred.values():
        assert run.tasks["sagittaire"] == 0
        assert run.joules <= 0.75 * random.joules
        assert run.makespan_s <= random.makespan_s
    assert preferred["green"].joules <= 1.03 * preferred["random"].joules  # the preference's doing


def test_green_explores_at_no_cost_what_its_calibration_knows() -> None:
    """Machines of three kinds, the fastest also the thriftiest: nobody tries the others."""
    small = replace(LYON, counts={"taurus": 3, "sagittaire": 3, "nova": 5}, span_s=1100.0)
    for power_off in (False, True):
        green, performance = (
            replay(p, task_s=60.0, power_off=power_off, experiment=small)
            for p in ("green", "performance")
        )
        assert green.tasks == performance.tasks
        assert green.joules <= performance.joules
