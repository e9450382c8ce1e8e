"""GreenDIET's claim (paper §II-E, [5]): energy saved by placement at no cost in time."""

from benchmarks.greendiet import Result, replay


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
