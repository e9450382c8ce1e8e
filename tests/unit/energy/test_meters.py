import math

import pytest

from nuage.energy.meters import (
    EnergyCounter,
    EnergyIntegral,
    MeterSource,
    NodeMeters,
    Reading,
)
from nuage.energy.request_power import RequestPower

OUTLET, BMC, RAPL, MODEL = MeterSource


def meters() -> NodeMeters:
    return NodeMeters(nameplate_watts=500.0)


def test_the_best_source_that_speaks_is_believed() -> None:
    node = meters()
    for source, watts in ((MODEL, 90.0), (RAPL, 60.0), (BMC, 100.0), (OUTLET, 110.0)):
        assert node.take(Reading(source, watts, 0.0)) is None
    best = node.best(10.0)
    assert best is not None
    assert (best.source, best.power_watts, best.age_s(10.0)) == (OUTLET, 110.0, 10.0)


def test_a_silent_meter_is_passed_over_and_named() -> None:
    node = meters()
    node.take(Reading(OUTLET, 110.0, 0.0))
    node.take(Reading(BMC, 100.0, 25.0))
    best = node.best(31.0)
    assert best is not None
    assert best.source is BMC
    assert node.silent(31.0) == (OUTLET,)
    assert node.best(100.0) is None


@pytest.mark.parametrize(
    ("watts", "read_s", "rule"),
    [
        (math.nan, 2.0, "not_a_number"),
        (math.inf, 2.0, "not_a_number"),
        (-1.0, 2.0, "negative"),
        (501.0, 2.0, "above_nameplate"),
        (110.0, 1.0, "out_of_order"),
        (480.0, 2.0, "jump"),
    ],
)
def test_bad_data_is_refused_by_a_rule(watts: float, read_s: float, rule: str) -> None:
    node = meters()
    node.take(Reading(OUTLET, 100.0, 1.0))
    refused = node.take(Reading(OUTLET, watts, read_s))
    assert refused is not None
    assert refused.rule == rule
    best = node.best(2.0)
    assert best is not None
    assert best.power_watts == 100.0


def test_a_real_step_confirms_itself_and_a_spike_does_not() -> None:
    node = meters()
    node.take(Reading(OUTLET, 100.0, 0.0))
    assert node.take(Reading(OUTLET, 450.0, 1.0)) is not None
    assert node.take(Reading(OUTLET, 440.0, 2.0)) is None
    assert node.take(Reading(OUTLET, 20.0, 3.0)) is not None
    assert node.take(Reading(OUTLET, 430.0, 4.0)) is None


def test_a_counter_that_wraps_keeps_counting_and_one_that_resets_adds_nothing() -> None:
    counter = EnergyCounter(range_uj=1_000_000_000, power_watts_max=400.0)
    counter.look(900_000_000, 0.0)
    assert counter.look(950_000_000, 1.0) == pytest.approx(50.0)
    assert counter.look(10_000_000, 2.0) == pytest.approx(60.000001)
    assert counter.look(9_000_000, 3.0) == 0.0
    assert (counter.wrap_count, counter.reset_count) == (1, 1)
    assert counter.joules == pytest.approx(110.000001)


def test_energy_is_the_area_under_the_readings_and_gaps_are_counted_apart() -> None:
    integral = EnergyIntegral(gap_s_max=60.0)
    assert integral.take(Reading(OUTLET, 100.0, 0.0)) == 0.0
    assert integral.take(Reading(OUTLET, 200.0, 10.0)) == 1500.0
    assert integral.take(Reading(OUTLET, 1.0, 5.0)) == 0.0
    integral.take(Reading(OUTLET, 100.0, 110.0))
    assert (integral.measured_joules, integral.bridged_joules) == (1500.0, 15_000.0)
    assert integral.joules == 16_500.0


def test_the_dynamic_metric_is_power_over_the_windows_weighted_by_time() -> None:
    """A task from 10 to 25 s and one from 20 s on; what is drawn between them is nobody's."""
    power = RequestPower()
    assert (power.means(), power.requests_served) == ((0.0, 1.0), 0)
    power.observe(0.0, 50.0, 0.25, ())
    power.observe(10.0, 100.0, 0.5, ("a",))
    assert (power.means(), power.requests_served) == ((0.0, 1.0), 0), "nothing is measured yet"
    power.observe(20.0, 200.0, 1.0, ("a", "b"))
    assert power.means() == (100.0, 0.5)
    power.observe(25.0, 60.0, 0.3, ("b",))
    power.observe(30.0, 50.0, 0.25, ())
    power.observe(99.0, 50.0, 0.25, ())
    joules = 10 * 100 + 2 * 5 * 200 + 5 * 60
    busy_s = 10 * 0.5 + 2 * 5 * 1.0 + 5 * 0.3
    assert power.means() == pytest.approx((joules / 25, busy_s / 25))
    assert power.requests_served == 2


def test_what_no_meter_saw_is_not_counted_nor_is_time_that_runs_backwards() -> None:
    power = RequestPower()
    power.observe(0.0, 100.0, 1.0, ("a",))
    power.observe(10.0, None, 0.0, ("a",))
    power.observe(500.0, 300.0, 1.0, ("a",))
    power.observe(400.0, 300.0, 1.0, ("a",))
    power.observe(410.0, 100.0, 1.0, ())
    assert power.means()[0] == 200.0


def test_the_dynamic_metric_forgets_all_but_the_last_windows() -> None:
    power = RequestPower(windows_kept=1)
    power.observe(0.0, 50.0, 1.0, ("a",))
    power.observe(10.0, 90.0, 1.0, ("b",))
    power.observe(20.0, 10.0, 1.0, ())
    assert power.means() == (90.0, 1.0)
    assert power.requests_served == 2


def test_a_vm_that_stays_for_days_does_not_hold_the_metric_to_what_was() -> None:
    """Its windows are an hour long: a fan that fails shows after as many as are kept."""
    power = RequestPower(windows_kept=3)
    for hour in range(20):
        power.observe(hour * 3600.0, 100.0 if hour < 15 else 130.0, 0.5, ("a",))
    assert power.means() == pytest.approx((130.0, 0.5))
    assert power.requests_served == 1
