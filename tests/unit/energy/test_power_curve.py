import math

import pytest

from nuage.energy.power_curve import (
    ACER_AT350_F2,
    HUAWEI_RH2288_V2,
    CurveFit,
    PowerCurve,
    line,
)
from nuage.errors import InvalidRequest


def test_a_curve_is_straight_between_its_points_and_flat_outside() -> None:
    assert HUAWEI_RH2288_V2.at(0.05) == pytest.approx((56.2 + 78.3) / 2)
    assert HUAWEI_RH2288_V2.at(1.0) == HUAWEI_RH2288_V2.at(7.0) == 205
    assert HUAWEI_RH2288_V2.at(-1.0) == HUAWEI_RH2288_V2.idle_watts == 56.2
    assert ACER_AT350_F2.peak_watts == 323


def test_epsilon_is_the_draw_just_above_zero_load() -> None:
    curve = PowerCurve(watts=line(50, 150).watts, epsilon_watts=58.0)
    assert curve.at(0.0) == 50
    assert curve.at(1e-9) == pytest.approx(58.0)
    assert curve.at(0.05) == pytest.approx(59.0)


def test_a_node_that_is_off_has_to_idle_first() -> None:
    curve = PowerCurve(watts=line(50, 150).watts, off_watts=5.0)
    assert curve.marginal_watts(0.5, 0.1) == pytest.approx(10.0)
    assert curve.marginal_watts(0.0, 0.1, is_off=True) == pytest.approx(55.0)


def test_break_even_is_the_energy_of_going_over_the_watts_saved() -> None:
    curve = PowerCurve(
        watts=line(60, 200).watts, off_watts=10.0, boot_joules=20_000.0, shutdown_joules=5_000.0
    )
    assert curve.break_even_s() == 500.0
    assert PowerCurve(watts=line(10, 20).watts, off_watts=10.0).break_even_s() == math.inf


@pytest.mark.parametrize(
    ("watts", "epsilon"),
    [((1.0,) * 10, None), ((-1.0, *[2.0] * 10), None), ((5.0, 4.0, *[6.0] * 9), None),
     (line(50, 150).watts, 40.0)],
)  # fmt: skip
def test_an_impossible_curve_is_refused(watts: tuple[float, ...], epsilon: float | None) -> None:
    with pytest.raises(InvalidRequest):
        PowerCurve(watts=watts, epsilon_watts=epsilon)


def test_a_fit_finds_the_real_curve_from_readings() -> None:
    fit = CurveFit(line(80, 160))
    for turn in range(4000):
        load = (turn * 0.618) % 1.0
        fit.take(load, HUAWEI_RH2288_V2.at(load))
    found = fit.curve()
    assert fit.reading_count == 4000
    assert max(abs(a - b) for a, b in zip(found.watts, HUAWEI_RH2288_V2.watts, strict=True)) < 2.0
    with pytest.raises(InvalidRequest):
        CurveFit(line(80, 160), rate=0.0)
