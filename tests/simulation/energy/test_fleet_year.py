import pytest

from nuage.errors import InvalidRequest
from nuage.simulation.fleet_year import (
    FleetScenario,
    HourRow,
    Weighting,
    run,
    to_csv,
    to_svg,
)


def rows_of(scenario: FleetScenario) -> list[HourRow]:
    return [row for hour in run(scenario) for row in hour]


SMALL = FleetScenario(node_count=60, hours=48, vm_hours_mean=6.0)


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two = rows_of(SMALL), rows_of(SMALL)
    assert to_csv(one) == to_csv(two)
    assert to_svg(one, title="x") == to_svg(two, title="x")
    other = rows_of(FleetScenario(node_count=60, hours=48, vm_hours_mean=6.0, seed=2))
    assert to_csv(one) != to_csv(other)


def test_the_table_has_an_hour_of_each_site_and_its_sums_hold() -> None:
    rows = rows_of(SMALL)
    assert len(rows) == 48 * 4
    assert to_csv(rows).splitlines()[0].startswith("hour,site,vms,nodes_on,it_kwh,pue")
    for row in rows:
        assert row.facility_kwh == pytest.approx(row.it_kwh * row.pue)
        assert row.nodes_on <= row.vms
        assert row.refused == 0
    assert max(row.vms for row in rows) > 0


def test_weighing_by_the_facility_costs_less_than_not_weighing() -> None:
    def spent(weighting: Weighting) -> float:
        scenario = FleetScenario(
            node_count=60, hours=72, weighting=weighting, vm_hours_mean=6.0, set_point_c=20.0,
            target_share=0.3, zones=("H1a", "H3"),
        )  # fmt: skip
        return sum(row.cost_eur for row in rows_of(scenario))

    assert spent(Weighting.COST) <= spent(Weighting.NONE)
    assert spent(Weighting.POWER) <= spent(Weighting.NONE)


@pytest.mark.parametrize(
    "wrong",
    [{"node_count": 0}, {"zones": ()}, {"zones": ("H9",)}, {"target_share": 1.0},
     {"prices": (1.0,)}],
)  # fmt: skip
def test_an_impossible_scenario_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        FleetScenario(**wrong)  # type: ignore[arg-type]
