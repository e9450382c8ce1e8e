import time
from datetime import datetime
from typing import cast

import msgspec
import pytest
from click.testing import CliRunner

from nuage.api.client import Client
from nuage.cli.energy import _dated, _rule, _supposed, moment, seconds, show_energy
from nuage.cli.energy_facility import availability_command, facility_command
from nuage.cli.main import main
from nuage.cli.session import Session
from nuage.errors import InvalidRequest
from nuage.ids import SiteId
from nuage.model.energy import SiteEnergy, SourceHealth, TierSeen


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
        public_sources=(
            SourceHealth(
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


class _Federation:
    """Two sites as the API tells them: one with modelled paths and accounts, one without."""

    def get(self, path: str, **_query: object) -> object:
        sites = [
            SiteEnergy(
                site_id=SiteId("marne"), read_s=0.0, it_watts=1.0, pue=1.2, pue_boundary="all",
                pue_category=2, cooling="", renewable_share=0.5,
                tier=TierSeen(supported=2, availability=0.999,
                              findings=("tier 3: power has one path only",)),
            ),
            SiteEnergy(
                site_id=SiteId("lyon"), read_s=0.0, it_watts=1.0, pue=1.2, pue_boundary="all",
                pue_category=2, cooling="",
            ),
        ]  # fmt: skip
        if path == "/v1/energy":
            return [{"value": msgspec.to_builtins(site), "age_s": 0.0} for site in sites]
        if path == "/v1/sites":
            return [{"datacenter": {"site_id": name, "tier": 3}} for name in ("marne", "lyon")]
        if path.endswith("/volumes"):
            places = [{"site_id": "marne"}, {"site_id": "lyon"}]
            return [
                {"value": {"replicas": places}},
                {"value": {"replicas": [*places, {"site_id": "rennes"}]}},
            ]
        if path == "/v1/energy/marne/report":
            return [
                {"it_kwh": 2.0, "facility_kwh": 2.5, "carbon_g": 60.0},
                {"it_kwh": 2.0, "facility_kwh": 2.5, "carbon_g": 100.0},
            ]
        assert path == "/v1/energy/lyon/report"
        return []


def test_a_site_shows_the_tier_that_its_paths_support_and_its_key_figures() -> None:
    session = Session(_client=cast(Client, _Federation()))
    shown = CliRunner().invoke(facility_command, ["--month", "2026-10"], obj=session)
    assert shown.exception is None
    marne = next(line for line in shown.output.splitlines() if line.startswith("marne "))
    assert marne.split() == [
        "marne", "3", "2", "99.9000%", "(its", "paths)", "1.250", "40.000", "0.500", "0.000",
    ]  # fmt: skip
    lyon = next(line for line in shown.output.splitlines() if line.startswith("lyon "))
    assert "not modelled" in lyon
    assert "99.9820% (as tier 3 claims)" in lyon
    assert "marne: for tier 3: power has one path only" in shown.output


def test_an_iaas_is_as_available_as_the_sites_that_hold_all_its_data() -> None:
    session = Session(_client=cast(Client, _Federation()))
    one = CliRunner().invoke(availability_command, ["shop"], obj=session)
    assert one.exception is None
    whole = 1.0 - (1.0 - 0.999) * (1.0 - 0.99982)
    assert f"1 of 2 sites needed: {whole:.6%}" in one.output
    both = CliRunner().invoke(availability_command, ["shop", "--needed", "2"], obj=session)
    assert f"{0.999 * 0.99982:.6%}" in both.output
    with pytest.raises(InvalidRequest, match="2 sites hold all of shop: lyon, marne"):
        CliRunner().invoke(
            availability_command, ["shop", "--needed", "3"], obj=session, catch_exceptions=False
        )
