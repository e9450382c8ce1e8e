import time
from datetime import datetime
from typing import cast

import msgspec
import pytest
from click.testing import CliRunner

from nuage.api.client import Client
from nuage.cli.energy import _dated, _rule, _supposed, moment, seconds, show_energy
from nuage.cli.main import main
from nuage.cli.session import Session
from nuage.errors import InvalidRequest
from nuage.ids import SiteId
from nuage.model.energy import FeedHealth, SiteEnergy


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


def test_the_table_shows_where_a_figure_comes_from_how_old_it_is_and_what_went_wrong() -> None:
    energy = SiteEnergy(
        site_id=SiteId("marne"), read_s=0.0, it_watts=512.0, pue=1.16, pue_boundary="the container",
        pue_category=2, cooling="", outside_celsius=12.5, outside_source="Open-Meteo",
        outside_read_s=time.time() - 600.0, price_eur_per_mwh=240.0, price_source="two rates",
        carbon_g_per_kwh=44.0, carbon_source="éCO2mix", carbon_read_s=time.time() - 1200.0,
        refused_readings=("marne-v1 outlet: -40 W (rule negative)",),
        feeds=(
            FeedHealth(
                source="éCO2mix", address="https://odre.example/records", fetched_s=None,
                reaches_s=None, failure="refused: not an éCO2mix answer",
            ),
        ),
    )  # fmt: skip

    class Answers:
        def get(self, _path: str) -> object:
            return [{"value": msgspec.to_builtins(energy), "age_s": 0.0}]

    session = Session(_client=cast(Client, Answers()))
    shown = CliRunner().invoke(show_energy, ["--no-nodes"], obj=session, terminal_width=240)
    assert shown.exception is None
    assert "12.5 (Open-Meteo, 10 min)" in shown.output
    assert "240.0 (two rates)" in shown.output  # a contract does not age
    assert "44 (éCO2mix, 20 min)" in shown.output
    assert "not believed: marne-v1 outlet: -40 W (rule negative)" in shown.output
    assert "never" in shown.output
    assert "refused: not an éCO2mix answer" in shown.output
