from datetime import datetime

import pytest

from nuage.cli.energy import _dated, _rule, _supposed, moment, seconds
from nuage.cli.main import main
from nuage.errors import InvalidRequest


def test_durations_are_read_with_their_units() -> None:
    assert [seconds(text) for text in ("90", "90s", "15min", "2h", "1d")] == [
        90.0, 90.0, 900.0, 7200.0, 86_400.0,
    ]  # fmt: skip
    with pytest.raises(InvalidRequest):
        seconds("soon")


def test_a_rule_is_one_word() -> None:
    rule = _rule("temperature_c>25=20%!", 1.0)
    assert (rule["figure"], rule["above"], rule["share"]) == ("temperature_c", 25.0, 0.2)
    assert rule["urgent"] is True
    assert _rule("price_index>0.8=0.4", 0.0)["urgent"] is False
    with pytest.raises(InvalidRequest):
        _rule("temperature_c=20", 0.0)


def test_a_plan_has_local_dates() -> None:
    plan = _dated("peak,2026-12-01T18:00,2026-12-01T20:00,50%")
    begin = datetime(2026, 12, 1, 18).astimezone().timestamp()
    assert (plan["begin_s"], plan["share"]) == (begin, 0.5)
    with pytest.raises(InvalidRequest):
        moment("tomorrow")


def test_figures_supposed_are_named() -> None:
    assert _supposed(["temperature_c=32", "grid_alert=2"]) == {
        "temperature_c": 32.0, "grid_alert": 2.0,
    }  # fmt: skip
    with pytest.raises(InvalidRequest):
        _supposed(["32"])


def test_energy_and_simulate_are_commands() -> None:
    assert {"energy", "simulate"} <= set(main.commands)
