from importlib.resources import files

import pytest

from nuage.energy.cooling import AshraeClass, CoolingControl, CoolingMode, CoolingModel
from nuage.energy.electrical import CONTAINER_WATTS, PathElement, PathKind, PowerPath
from nuage.energy.kpi import Category, EnergyPeriod, kpis
from nuage.energy.tier import Component, Subsystem, at_least, check_tier
from nuage.energy.weather import nearest_zone, weather_normal
from nuage.errors import CorruptData, InvalidRequest, NotFound
from nuage.ids import NodeId
from nuage.units import JOULES_PER_KWH


def test_cooling_tells_its_mode_and_why() -> None:
    model = CoolingModel(ashrae=AshraeClass.A1)
    free = model.state(18.0, 10.0)
    assert (free.mode, free.pue) == (CoolingMode.FREE, 1.16)
    warm = model.state(18.1, 10.0)
    assert (warm.mode, warm.pue) == (CoolingMode.CONDITIONED, 1.55)
    assert "supply air of 20.1 °C" in warm.reason
    damp = model.state(17.9, 17.5)
    assert (damp.mode, damp.reason) == (
        CoolingMode.CONDITIONED,
        "dew point 17.5 °C is above 17 °C",
    )
    mixed = CoolingModel(control=CoolingControl.PROPORTIONAL).state(23.0)
    assert mixed.mode is CoolingMode.MIXED
    assert mixed.pue == pytest.approx(1.16 + 0.39 * 0.5)


def test_a_dew_point_gate_costs_hours_of_the_year() -> None:
    normal = weather_normal("H3")
    open_year = CoolingModel(set_point_c=27.0).year(normal)
    gated = CoolingModel(set_point_c=27.0, ashrae=AshraeClass.A1).year(normal)
    assert gated.conditioned_hours_share > open_year.conditioned_hours_share


@pytest.mark.parametrize(
    "wrong",
    [
        {"pue_free": 0.9}, {"server_rise_k": 0.0},
        {"set_point_c": 33.0, "ashrae": AshraeClass.A1},
    ],
)  # fmt: skip
def test_impossible_cooling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        CoolingModel(**wrong)  # type: ignore[arg-type]


def test_the_weather_normals_ship_with_their_source_and_licence() -> None:
    told = (files("nuage.energy") / "data" / "LICENSE-rt2012.txt").read_text()
    assert "BuildSysPro" in told
    assert "Redistribution and use in source and binary forms" in told


def test_zones_are_found_by_place() -> None:
    assert nearest_zone(48.84, 2.64) == "H1a"  # Marne-la-Vallée
    assert nearest_zone(43.3, 5.37) == "H2d"
    assert [len(hours) for hours in weather_normal("H1c").mean_dry_bulb_c] == [24] * 12
    with pytest.raises(NotFound):
        weather_normal("H9")


def period(**changes: float) -> EnergyPeriod:
    values: dict[str, float] = {
        "begin_s": 0.0, "end_s": 3600.0, "it_joules": JOULES_PER_KWH,
        "facility_joules": 1.2 * JOULES_PER_KWH, "renewable_joules": 0.3 * JOULES_PER_KWH,
        "reused_joules": 0.12 * JOULES_PER_KWH, "carbon_g": 36.0,
    }  # fmt: skip
    return EnergyPeriod(
        **(values | changes), boundary="servers, air and conditioning", category=Category.ADVANCED
    )


def test_key_figures_carry_their_boundary_and_category() -> None:
    by_name = {kpi.name: kpi for kpi in kpis(period())}
    assert by_name["PUE"].value == pytest.approx(1.2)
    assert by_name["CUE"].value == pytest.approx(36.0)
    assert by_name["REF"].value == pytest.approx(0.25)
    assert by_name["ERF"].value == pytest.approx(0.1)
    assert {kpi.boundary for kpi in by_name.values()} == {"servers, air and conditioning"}


def test_figures_that_cannot_be_are_refused() -> None:
    with pytest.raises(CorruptData):
        period(facility_joules=JOULES_PER_KWH - 1)
    with pytest.raises(CorruptData):
        period(it_joules=0.0)
    with pytest.raises(InvalidRequest):
        period(end_s=0.0)
    with pytest.raises(InvalidRequest):
        EnergyPeriod(
            begin_s=0, end_s=1, it_joules=1, facility_joules=1, boundary="",
            category=Category.BASIC,
        )  # fmt: skip


def path() -> PowerPath:
    elements = [
        PathElement(name="box", kind=PathKind.CONTAINER, limit_watts=CONTAINER_WATTS),
        *(
            PathElement(name=feed, kind=PathKind.FEED, limit_watts=1000.0, parent="box")
            for feed in ("feed-a", "feed-b")
        ),
        *(
            PathElement(name=f"{side}{n}", kind=PathKind.OUTLET, limit_watts=600.0,
                        parent=f"feed-{side}")
            for side in ("a", "b") for n in (1, 2, 3)
        ),
    ]  # fmt: skip
    outlets = {
        NodeId("dual1"): ("a1", "b1"),
        NodeId("dual2"): ("a2", "b2"),
        NodeId("single"): ("a3",),
    }
    return PowerPath(elements, outlets)


def test_limits_leave_room_for_the_other_feed_to_fail() -> None:
    limits = {limit.name: limit for limit in path().limits()}
    assert limits["feed feed-a"].node_ids == {"dual1", "dual2", "single"}
    assert limits["feed feed-b"].node_ids == {"dual1", "dual2"}
    assert limits["container box"].limit_watts == 18_000.0


@pytest.mark.parametrize(
    ("elements", "outlets", "error"),
    [
        ([("a", "b"), ("b", "a")], {}, InvalidRequest),
        ([("a", "c")], {}, NotFound),
        ([("a", "")], {NodeId("n"): ("z",)}, NotFound),
    ],
)
def test_a_path_that_cannot_be_is_refused(
    elements: list[tuple[str, str]], outlets: dict[NodeId, tuple[str, ...]], error: type[Exception]
) -> None:
    built = [
        PathElement(name=name, kind=PathKind.FEED, limit_watts=1.0, parent=parent)
        for name, parent in elements
    ]
    with pytest.raises(error):
        PowerPath(built, outlets)
    with pytest.raises(InvalidRequest):
        PowerPath([PathElement(name="a", kind=PathKind.FEED, limit_watts=0.0)], {})


UPS = Component("ups", mtbf_h=200_000.0, mttr_h=8.0)
CHILLER = Component("chiller", mtbf_h=20_000.0, mttr_h=24.0)


def subsystem(path_count: int, active: int = 1, spare: int = 0) -> Subsystem:
    stage = ((UPS,) * (1 + spare), 1)
    return Subsystem(name="power", paths=((stage,),) * path_count, active_paths=active)


def test_a_tier_follows_from_paths_and_availability() -> None:
    assert check_tier(1, [subsystem(1)]).supported == 1
    assert check_tier(2, [subsystem(1, spare=1)]).supported == 2
    assert check_tier(3, [subsystem(2)]).supported == 3
    assert check_tier(4, [subsystem(2, active=2)]).holds


def test_a_claim_that_is_not_met_says_what_is_missing() -> None:
    cooling = Subsystem(name="cooling", paths=((((CHILLER,), 1),),))
    check = check_tier(3, [subsystem(2), cooling])
    assert not check.holds
    assert check.supported == 1
    assert "tier 2: cooling has a component without a spare" in check.findings
    poor = Subsystem(name="power", paths=((((Component("grid", 100.0, 10.0),), 1),),))
    assert "availability" in check_tier(1, [poor]).findings[0]
    with pytest.raises(InvalidRequest):
        check_tier(5, [])
    with pytest.raises(InvalidRequest):
        Component("x", 0.0, 1.0)


def test_sites_together_are_more_available_than_each() -> None:
    assert at_least([0.99, 0.98], 1) == pytest.approx(1 - 0.01 * 0.02)
    assert at_least([0.99, 0.98], 2) == pytest.approx(0.99 * 0.98)
    assert at_least([0.9] * 3, 2) == pytest.approx(0.972)
    assert at_least([], 0) == 1.0
