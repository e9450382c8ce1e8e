import re
from dataclasses import replace
from math import inf
from pathlib import Path
from random import Random

import pytest

from nuage.errors import InvalidRequest
from nuage.simulation.fleet_year import (
    FleetScenario,
    HourRow,
    Weighting,
    made_up_trace,
    run,
    to_csv,
)
from nuage.simulation.load_trace import VmSpan, read_trace
from nuage.simulation.load_trace import to_csv as trace_csv


def rows_of(scenario: FleetScenario) -> list[HourRow]:
    return [row for hour in run(scenario) for row in hour]


SMALL = FleetScenario(node_count=60, hours=48, vm_hours_mean=6.0)


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two = rows_of(SMALL), rows_of(SMALL)
    assert to_csv(one) == to_csv(two)
    other = rows_of(FleetScenario(node_count=60, hours=48, vm_hours_mean=6.0, seed=2))
    assert to_csv(one) != to_csv(other)


def test_the_table_has_an_hour_of_each_site_and_its_sums_hold() -> None:
    rows = rows_of(SMALL)
    assert len(rows) == 48 * 4
    assert to_csv(rows).splitlines()[0].startswith("hour,site,vms,nodes_on,it_kwh,pue")
    for row in rows:
        assert row.facility_kwh == pytest.approx(row.it_kwh * row.pue)
        assert row.nodes_on <= row.vms
        assert 0 <= row.switching_kwh <= row.it_kwh
        assert row.refused == 0
    assert max(row.vms for row in rows) > 0


def test_what_was_made_up_and_written_down_gives_the_same_table(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    path.write_text(trace_csv(made_up_trace(SMALL)))
    recorded = replace(SMALL, trace=read_trace(path), seed=99)
    assert to_csv(rows_of(recorded)) == to_csv(rows_of(SMALL))


def test_a_vm_without_an_end_stays(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    path.write_text("begin_h,end_h,vcpu_count,memory_mib\n0,,2,2048\n1.5,3.25,4,8192\n")
    rows = rows_of(FleetScenario(node_count=10, hours=6, trace=read_trace(path)))
    assert [sum(row.vms for row in rows if row.hour == hour) for hour in range(6)] == [
        1, 2, 2, 2, 1, 1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("begin,end\n1,2\n", "begins with"),
        ("begin_h,end_h,vcpu_count,memory_mib\n5,4,1,512\n", ":2: a VM ends after it begins"),
        ("begin_h,end_h,vcpu_count,memory_mib\n0,1,1,512\n0,1,x,512\n", ":3: invalid literal"),
        ("begin_h,end_h,vcpu_count,memory_mib\nnan,1,1,512\n", ":2: a VM ends"),
        ("begin_h,end_h,vcpu_count,memory_mib\n0,1,0,512\n", ":2: not the size of a VM"),
        ("begin_h,end_h,vcpu_count,memory_mib\n", "holds no VM"),
    ],
)
def test_a_trace_that_is_none_is_refused_by_line(tmp_path: Path, lines: str, told: str) -> None:
    path = tmp_path / "load.csv"
    path.write_text(lines)
    with pytest.raises(InvalidRequest, match=re.escape(told)):
        read_trace(path)


def test_weighing_by_the_facility_costs_less_than_not_weighing() -> None:
    def euros(weighting: Weighting) -> float:
        scenario = FleetScenario(
            node_count=60, hours=72, weighting=weighting, vm_hours_mean=6.0, set_point_c=20.0,
            target_share=0.3, zones=("H1a", "H3"),
        )  # fmt: skip
        return sum(row.cost_eur for row in rows_of(scenario))

    assert euros(Weighting.COST) <= euros(Weighting.NONE)
    assert euros(Weighting.POWER) <= euros(Weighting.NONE)


def spent(rows: list[HourRow]) -> float:
    return sum(row.facility_kwh for row in rows)


def test_the_planner_gathers_what_is_left_when_most_vms_have_ended() -> None:
    """300 VMs fill nodes, six in seven end: the rest is spread thin until somebody migrates it."""
    prng = Random(3)
    sizes = ((1, 1024), (2, 4096), (4, 8192))
    trace = tuple(
        VmSpan(0.0, inf if prng.random() < 0.15 else 2.0, *prng.choice(sizes)) for _ in range(300)
    )
    alone = FleetScenario(node_count=60, hours=24, trace=trace, zones=("H1a",))
    planned = replace(alone, planner_every_h=4)
    rows, without = rows_of(planned), rows_of(alone)
    assert to_csv(rows) == to_csv(rows_of(planned))
    assert spent(rows) < 0.7 * spent(without)
    assert sum(row.migrations for row in rows) > 0
    assert rows[-1].vms == without[-1].vms, "nobody is lost on the way"
    assert rows[-1].nodes_on < without[-1].nodes_on / 3


def test_a_node_stays_on_through_a_pause_that_is_shorter_than_its_break_even_time() -> None:
    """Twenty nodes are used every other hour, and a boot of 2,000 s costs two hours of idling.

    Counted through, those that stay on through the hour between spend less than those that do
    not; with a boot of 120 s it is the other way round.
    """
    trace = tuple(
        VmSpan(float(hour), hour + 1.0, 24, 4096) for hour in range(0, 24, 2) for _ in range(20)
    )
    often = FleetScenario(node_count=60, hours=24, trace=trace, zones=("H1a",))
    slow = replace(often, boot_s=2000.0)
    kept, switched = rows_of(slow), rows_of(replace(slow, hold_h=24.0))
    assert sum(row.boots for row in kept) == 20
    assert sum(row.boots for row in switched) > 20
    assert spent(kept) < 0.95 * spent(switched)
    quick, never = rows_of(often), rows_of(replace(often, hold_h=0.0))
    assert sum(row.boots for row in quick) == 240
    assert spent(quick) < 0.85 * spent(never)


@pytest.mark.parametrize(
    "wrong",
    [{"node_count": 0}, {"zones": ()}, {"zones": ("H9",)}, {"target_share": 1.0},
     {"prices": (1.0,)}, {"planner_every_h": 500}, {"hold_h": -1.0}],
)  # fmt: skip
def test_an_impossible_scenario_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        FleetScenario(**wrong)  # type: ignore[arg-type]
