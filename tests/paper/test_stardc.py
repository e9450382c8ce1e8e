"""The paper's numbers: PUE of the StarDC (§V), its cooling (§IV-B), its tiers (table II)."""

import numpy as np
import pytest

from nuage.energy.cooling import CoolingControl, CoolingModel
from nuage.energy.tier import TIER_AVAILABILITY
from nuage.energy.weather import ZONES, weather_normal

# zone: hours < 23 °C; A/C hours and PUE at 20 °C, +2 K; PUE 23 °C +0; 23 °C +2; 27 °C +2;
# proportional 20 °C +2; 23 °C +2 — computed apart from the hourly files.
TABLE = {
    "H1a": (0.947, 0.191, 1.234, 1.181, 1.197, 1.171, 1.187, 1.172),
    "H1b": (0.929, 0.221, 1.246, 1.188, 1.207, 1.177, 1.195, 1.177),
    "H1c": (0.897, 0.258, 1.261, 1.200, 1.218, 1.187, 1.206, 1.185),
    "H2a": (0.937, 0.174, 1.228, 1.184, 1.197, 1.175, 1.189, 1.175),
    "H2b": (0.927, 0.231, 1.250, 1.188, 1.208, 1.176, 1.195, 1.176),
    "H2c": (0.899, 0.266, 1.264, 1.199, 1.220, 1.184, 1.205, 1.183),
    "H2d": (0.836, 0.350, 1.297, 1.224, 1.249, 1.204, 1.230, 1.202),
    "H3": (0.824, 0.405, 1.318, 1.229, 1.264, 1.197, 1.233, 1.194),
}


def test_the_pue_of_nuage_is_1_238_and_is_told_as_1_24() -> None:
    (pue,) = CoolingModel().pue_of(np.array([0.2])).tolist()  # 0.8 × 1.16 + 0.2 × 1.55
    assert pue == pytest.approx(1.238, abs=1e-9)
    assert f"{pue:.2f}" == "1.24"


def test_at_20_degrees_air_conditioning_runs_a_fifth_of_the_year_near_paris() -> None:
    year = CoolingModel(set_point_c=20.0, supply_rise_k=2.0).year(weather_normal("H1a"))
    assert year.conditioned_hours_share == pytest.approx(0.191, abs=0.0005)
    assert year.pue == pytest.approx(1.234, abs=0.005)


def test_25_degrees_and_more_need_less_air_conditioning() -> None:
    """Paper §IV-B: a value up to 25 °C and more results in less air conditioning."""
    normal = weather_normal("H1a")
    pues = [CoolingModel(set_point_c=t).year(normal).pue for t in (18.0, 20.0, 23.0, 25.0, 27.0)]
    assert pues == sorted(pues, reverse=True)


def test_the_pue_stays_under_1_30_near_paris_in_both_modes() -> None:
    for control in CoolingControl:
        year = CoolingModel(control=control).year(weather_normal("H1a"))
        assert year.pue < 1.30


@pytest.mark.parametrize("zone", ZONES)
def test_the_table_of_the_eight_zones(zone: str) -> None:
    normal = weather_normal(zone)
    below, hours, pue_20, pue_23_0, pue_23, pue_27, prop_20, prop_23 = TABLE[zone]
    assert normal.hour_count.sum() == 8760
    assert normal.share[normal.dry_bulb_c < 23.0].sum() == pytest.approx(below, abs=0.001)

    def year(set_point_c: float, rise_k: float, control: CoolingControl) -> float:
        model = CoolingModel(set_point_c=set_point_c, supply_rise_k=rise_k, control=control)
        return model.year(normal).pue

    bang, trim = CoolingControl.BANG_BANG, CoolingControl.PROPORTIONAL
    assert CoolingModel().year(normal).conditioned_hours_share == pytest.approx(hours, abs=0.001)
    assert year(20.0, 2.0, bang) == pytest.approx(pue_20, abs=0.001)
    assert year(23.0, 0.0, bang) == pytest.approx(pue_23_0, abs=0.001)
    assert year(23.0, 2.0, bang) == pytest.approx(pue_23, abs=0.001)
    assert year(27.0, 2.0, bang) == pytest.approx(pue_27, abs=0.001)
    assert year(20.0, 2.0, trim) == pytest.approx(prop_20, abs=0.001)
    assert year(23.0, 2.0, trim) == pytest.approx(prop_23, abs=0.001)


def test_the_tiers_are_table_two_s() -> None:
    assert TIER_AVAILABILITY == {1: 0.99671, 2: 0.99741, 3: 0.99982, 4: 0.99995}
