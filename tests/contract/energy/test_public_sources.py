"""A site asks the public sources over HTTP and prices by them; what goes wrong is shown."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from structlog.testing import capture_logs
from tests.contract.energy.public_sources import (
    CLIENT,
    TOKEN,
    Sources,
    a44,
    eco2mix,
    local,
    no_prices,
    open_meteo,
    public_sources,
    tempo,
)
from tests.unit.daemon.test_energy_keeper import HandClock
from tests.unit.placement.placement_builders import site

from nuage.catalogue.memory import MemoryCatalogue
from nuage.daemon.configuration import EnergyConfiguration, SourceConfiguration
from nuage.daemon.energy_public import PublicSources, SourceReader
from nuage.daemon.energy_sources import Carbon, Outside, Price
from nuage.errors import InvalidRequest
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import Site
from nuage.ids import SiteId
from nuage.model.energy import EnergySource

MARNE = SiteId("marne")
HOUR_S = 3600.0
NAMES = ("eco2mix", "day-ahead", "tempo", "weather")


@dataclass(slots=True)
class Desk:
    """A site that asks the sources, one turn at a time."""

    sources: Sources
    clock: HandClock
    index: FederationIndex
    asked: PublicSources
    configuration: EnergyConfiguration
    session: aiohttp.ClientSession
    stirred: list[float]

    def reader(self, name: str) -> SourceReader:
        return self.asked._readers[name]

    async def turn(self, name: str) -> float:
        return await self.reader(name).turn(self.session)

    def carbon(self) -> Carbon:
        return Carbon(self.configuration, self.asked.find)

    def outside(self) -> Outside:
        place = replace(site("marne"), latitude_deg=48.84, longitude_deg=2.64)
        return Outside(self.configuration, place, self.clock, self.asked.find)


def site_with(index: FederationIndex, catalogue: MemoryCatalogue, clock: HandClock) -> Site:
    nobody = cast(Any, None)
    return Site(
        site_id=MARNE, clock=clock, index=index, catalogue=catalogue, quorum=nobody,
        others=nobody, nodes=nobody, placer=nobody, announce=lambda *_: None,
        on_change=lambda _change: None, age_of=lambda _site: 0.0,
    )  # fmt: skip


def write_key(path: Path, key: str, mode: int = 0o600) -> Path:
    path.write_text(key + "\n")
    path.chmod(mode)
    return path


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with opened(tmp_path) as desk:
        yield desk


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Desk]:
    """Serve the sources and open a site that is configured for all of them."""
    clock = HandClock()
    clock.time_s = local(2026, 11, 26, 14, 10)
    async with public_sources() as sources, aiohttp.ClientSession() as session:
        asked = {
            name: SourceConfiguration(
                url=sources.url(name),
                token_url=sources.url("token") if name == "tempo" else "",
                key_file={
                    "day-ahead": write_key(folder / "entsoe.key", TOKEN),
                    "tempo": write_key(folder / "rte.key", CLIENT),
                }.get(name),
            )
            for name in NAMES
        }
        index = FederationIndex(MARNE)
        stirred: list[float] = []
        place = replace(site("marne"), latitude_deg=48.84, longitude_deg=2.64)
        desk_sources = PublicSources(
            asked, place, site_with(index, MemoryCatalogue(site=MARNE, clock=clock), clock),
            clock, lambda: stirred.append(clock.now_s()),
        )  # fmt: skip
        configuration = EnergyConfiguration(sources=asked, carbon_g_per_kwh=32.0)
        yield Desk(sources, clock, index, desk_sources, configuration, session, stirred)


async def test_carbon_comes_from_the_grid_and_is_asked_for_every_quarter_of_an_hour(
    desk: Desk,
) -> None:
    now_s = desk.clock.now_s()
    desk.sources.answers["eco2mix"] = eco2mix({now_s - 2400: 41, now_s - 1500: "44"})
    assert await desk.turn("eco2mix") == 900.0
    figure = desk.carbon().now(now_s)
    assert (figure.value, figure.source, figure.read_s) == (44.0, "éCO2mix", now_s - 1500)
    assert desk.index.value(EnergySource, "marne-eco2mix").values[-1].value == 44.0
    assert desk.stirred == [now_s]
    old = desk.carbon().now(now_s + 5 * HOUR_S)  # too old to be believed
    assert (old.value, old.source) == (32.0, "configured")


async def test_prices_of_tomorrow_are_asked_for_until_they_are_there(desk: Desk) -> None:
    today, tomorrow = date(2026, 11, 26), date(2026, 11, 27)
    desk.sources.answers["day-ahead"] = a44({today: {1: 80.0, 18: 240.0, 20: 95.0}})
    assert await desk.turn("day-ahead") == 900.0  # it is past one, and tomorrow is missing
    desk.sources.answers["day-ahead"] = a44({today: {1: 80.0, 18: 240.0, 20: 95.0},
                                             tomorrow: {1: 70.0}})  # fmt: skip
    desk.clock.time_s += 900.0
    wait_s = await desk.turn("day-ahead")
    assert desk.clock.now_s() + wait_s == local(2026, 11, 27, 13)
    price = Price(None, desk.asked.find)
    evening = price.now(local(2026, 11, 26, 18, 30))
    assert (evening.value, evening.source) == (240.0, "ENTSO-E day-ahead")
    assert evening.read_s == desk.clock.now_s()
    assert price.now(local(2026, 11, 27, 12)).value == 70.0


async def test_a_day_that_is_not_published_is_bridged_by_the_same_hour_of_the_day_before(
    desk: Desk,
) -> None:
    desk.sources.answers["day-ahead"] = a44({date(2026, 11, 26): {1: 80.0, 19: 240.0, 20: 95.0}})
    await desk.turn("day-ahead")
    desk.sources.answers["day-ahead"] = no_prices()
    desk.clock.time_s = local(2026, 11, 27, 18, 30)
    assert await desk.turn("day-ahead") == 60.0
    assert "No matching data found" in desk.reader("day-ahead").failure
    bridged = Price(None, desk.asked.find).now(desk.clock.now_s())
    assert bridged.value == 240.0
    assert bridged.source == "ENTSO-E day-ahead, same-hour-before"


@pytest.mark.parametrize(
    ("day", "hours", "at_three"), [((2026, 3, 29), 23, 3.0), ((2026, 10, 25), 25, 4.0)]
)
async def test_odd_days_come_whole(
    desk: Desk, day: tuple[int, int, int], hours: int, at_three: float
) -> None:
    desk.clock.time_s = local(*day, 9)
    desk.sources.answers["day-ahead"] = a44(
        {date(*day): {hour: float(hour) for hour in range(1, hours + 1)}}
    )
    await desk.turn("day-ahead")
    price = Price(None, desk.asked.find)
    assert price.now(local(*day, 0)).value == 1.0
    assert price.now(local(*day, 3)).value == at_three + (0.0 if hours == 23 else 1.0)
    assert price.now(local(*day, 23)).value == float(hours)
    # The day after has no prices yet: by the clock on the wall it is bridged, not by 24 hours.
    after = price.now(local(day[0], day[1], day[2] + 1, 23))
    assert (after.value, after.source.partition(", ")[2]) == (float(hours), "same-hour-before")


async def test_a_tempo_contract_follows_the_calendar(desk: Desk, tmp_path: Path) -> None:
    tariff = tmp_path / "tariff.toml"
    tariff.write_text(
        'name = "Tempo"\nday_begins_hour = 6\ncolours = "source"\n'
        "[[versions]]\nvalid_from = 2025-02-01\n"
        '[[versions.rules]]\neur_per_mwh = 706.0\nhours = [6, 22]\ncolour = "red"\n'
        '[[versions.rules]]\neur_per_mwh = 161.0\nhours = [6, 22]\ncolour = "blue"\n'
        "[[versions.rules]]\neur_per_mwh = 132.5\nhours = [22, 6]\n"
    )
    price = Price(tariff, desk.asked.find)
    unknown = price.now(desk.clock.now_s())
    assert unknown.value is None
    assert "colour" in unknown.source or "no rule" in unknown.source
    desk.sources.answers["tempo"] = tempo(
        {date(2026, 11, 25): "BLUE", date(2026, 11, 26): "RED", date(2026, 11, 27): "BLUE"}
    )
    wait_s = await desk.turn("tempo")
    assert desk.clock.now_s() + wait_s == local(2026, 11, 27, 10, 40)
    assert price.now(desk.clock.now_s()).value == 706.0
    assert price.now(local(2026, 11, 27, 5, 59)).value == 132.5
    assert price.now(local(2026, 11, 27, 6)).value == 161.0
    await desk.turn("tempo")
    assert desk.sources.tokens == 1  # it holds two hours
    desk.sources.status["tempo"] = 401
    await desk.turn("tempo")
    desk.sources.status["tempo"] = 200
    await desk.turn("tempo")
    assert desk.sources.tokens == 2  # one that was taken back is asked for anew


async def test_the_forecast_stands_between_the_probe_and_the_normal(desk: Desk) -> None:
    now_s = local(2026, 11, 26, 14)
    desk.clock.time_s = now_s + 600.0
    outside = desk.outside()
    assert outside.now(None).source.startswith("normal")
    desk.sources.answers["weather"] = open_meteo(
        {now_s + hour * HOUR_S: 20.0 + hour / 2 for hour in range(-14, 58)}, dew_point=17.5
    )
    assert await desk.turn("weather") == HOUR_S
    assert outside.now(None).value == 20.0
    assert outside.now(None).source == "Open-Meteo"
    assert outside.dew_point_c() == 17.5
    assert outside.foreseen(now_s + 5 * HOUR_S, 22.0) == 24.5  # warmer by two than was foreseen
    desk.clock.time_s = now_s + 80 * HOUR_S  # three days without an answer
    assert outside.now(None).source.startswith("normal")


@pytest.mark.parametrize(
    ("name", "answer", "told"),
    [
        ("eco2mix", b"<html>maintenance</html>", "not an éCO2mix answer"),
        ("eco2mix", eco2mix({local(2026, 11, 26, 14): -5}), "outside 0 to 1500"),
        ("eco2mix", eco2mix({local(2024, 1, 1, 14): 40}), "no figure of today"),
        ("day-ahead", a44({date(2026, 11, 26): {1: 99_999.0}}), "outside -1000 to 10000"),
        ("day-ahead", a44({date(2026, 11, 26): {1: 80.0}})[:-20], "not XML"),
        ("tempo", tempo({date(2026, 11, 26): "PINK"}), "not a Tempo calendar"),
        ("weather", open_meteo({local(2026, 11, 26, 14): 161.0}), "outside -60 to 60"),
    ],
)
async def test_an_answer_that_cannot_be_true_is_refused_whole_and_changes_nothing(
    desk: Desk, name: str, answer: bytes, told: str
) -> None:
    good = {
        "eco2mix": eco2mix({local(2026, 11, 26, 14): 40}),
        "day-ahead": a44({date(2026, 11, 26): {1: 80.0}}),
        "tempo": tempo({date(2026, 11, 26): "RED"}),
        "weather": open_meteo({local(2026, 11, 26, 14): 12.0}),
    }
    desk.sources.answers[name] = good[name]
    await desk.turn(name)
    before = desk.asked.find(name)
    desk.sources.answers[name] = answer
    assert await desk.turn(name) == 60.0
    health = next(h for h in desk.asked.health if h.address.endswith(name))
    assert health.failure.startswith("refused: ")
    assert told in health.failure
    assert desk.asked.find(name) == before
    assert health.fetched_s == desk.clock.now_s()
    desk.sources.answers[name] = good[name]
    await desk.turn(name)
    assert next(h for h in desk.asked.health if h.address.endswith(name)).failure == ""


async def test_a_source_that_fails_is_asked_ever_less_often(desk: Desk) -> None:
    desk.sources.status["eco2mix"] = 404
    waits = [await desk.turn("eco2mix") for _ in range(8)]
    assert waits == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]
    desk.sources.status["eco2mix"] = 503  # it asks to be left alone for a while
    desk.reader("eco2mix")._failure_count = 0
    assert await desk.turn("eco2mix") == 900.0


async def test_a_site_without_a_way_out_begins_with_what_its_catalogue_knows(
    desk: Desk, tmp_path: Path
) -> None:
    now_s = desk.clock.now_s()
    desk.sources.answers["eco2mix"] = eco2mix({now_s - 900: 41})
    await desk.turn("eco2mix")
    kept = desk.index.value(EnergySource, "marne-eco2mix")

    class NoTasks:
        def keep(self, _name: str, _run: object) -> None:
            """Start nothing: there is no way out."""

    again = PublicSources(
        {"eco2mix": SourceConfiguration(url="http://127.0.0.1:9/")}, site("marne"),
        site_with(desk.index, MemoryCatalogue(site=MARNE, clock=desk.clock), desk.clock),
        desk.clock, lambda: None,
    )  # fmt: skip
    again.start(cast(Any, NoTasks()))
    assert again.find("eco2mix") == kept
    assert Carbon(EnergyConfiguration(), again.find).now(now_s).value == 41.0
    async with aiohttp.ClientSession() as session:
        assert await again._readers["eco2mix"].turn(session) == 300.0
    assert "does not answer" in again.health[0].failure
    assert again.find("eco2mix") == kept


async def test_a_key_is_told_to_its_source_alone(desk: Desk, tmp_path: Path) -> None:
    with capture_logs() as logs:
        for status in (500, 401, 302, 200):
            desk.sources.status |= dict.fromkeys(NAMES, status)
            for name in NAMES:
                await desk.turn(name)
        told = repr([logs, desk.asked.health, desk.asked.find("tempo")])
    for secret in (TOKEN, CLIENT, *CLIENT.split(":")):
        assert secret not in told
    assert "securityToken" not in told
    assert "401" in repr(logs)
    client = base64.b64encode(CLIENT.encode()).decode()
    heard = desk.sources.heard
    assert {name for name, came in heard.items() if TOKEN in came} == {"day-ahead"}
    assert {name for name, came in heard.items() if client in came} == {"token"}
    assert {name for name, came in heard.items() if "Bearer" in came} == {"tempo"}


async def test_a_key_that_others_may_read_is_not_used(desk: Desk, tmp_path: Path) -> None:
    write_key(tmp_path / "entsoe.key", TOKEN, mode=0o644)
    await desk.turn("day-ahead")
    assert "readable by others" in desk.reader("day-ahead").failure
    assert desk.sources.asked == []


@pytest.mark.parametrize("name", ["day-ahead", "tempo", "ecomix"])
def test_a_source_without_its_key_or_of_no_name_is_refused_at_the_start(name: str) -> None:
    clock = HandClock()
    index = FederationIndex(MARNE)
    around = site_with(index, MemoryCatalogue(site=MARNE, clock=clock), clock)
    with pytest.raises(InvalidRequest):
        PublicSources({name: SourceConfiguration()}, site("marne"), around, clock, lambda: None)
