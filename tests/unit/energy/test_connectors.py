import json
from datetime import date, datetime

import aiohttp
import pytest
from aiohttp import web

from nuage.energy.connectors import (
    ANSWER_BYTES_MAX,
    a44_query,
    fetch,
    parse_a44,
    parse_eco2mix,
    parse_open_meteo,
    parse_tempo,
    request_token,
    tempo_query,
)
from nuage.energy.tariffs import DayColour, PriceUnknown
from nuage.errors import CorruptData, RemoteProtocolError, Unavailable


def eco2mix(*fields: dict[str, object]) -> bytes:
    records = [{"datasetid": "eco2mix-national-tr", "fields": each} for each in fields]
    return json.dumps({"nhits": len(records), "parameters": {}, "records": records}).encode()


def test_eco2mix_numbers_may_be_strings_and_forecasts_are_left_out() -> None:
    measured = {
        "date_heure": "2023-09-05T10:15:00+00:00", "taux_co2": 31, "consommation": 48000,
        "eolien": "4800", "solaire": 9600.0, "hydraulique": 4000, "bioenergies": "800",
    }  # fmt: skip
    earlier = {"date_heure": "2023-09-05T12:00:00+02:00", "taux_co2": "30", "nucleaire": 1}
    forecast = {"date_heure": "2023-09-05T23:45:00+00:00", "prevision_j": 41000}
    first, second = parse_eco2mix(eco2mix(measured, forecast, earlier))
    newer = json.dumps({"total_count": 3, "results": [measured, forecast, earlier]}).encode()
    assert parse_eco2mix(newer) == (first, second)
    assert (first.carbon_g_per_kwh, first.renewable_share) == (30.0, None)
    assert first.begin_s == datetime.fromisoformat("2023-09-05T10:00:00+00:00").timestamp()
    assert second.carbon_g_per_kwh == 31.0
    assert second.renewable_share == pytest.approx(19_200 / 48_000)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>maintenance</html>",
        b"[]",
        b"{}",
        eco2mix({"date_heure": "2023-09-05T10:15:00+00:00", "taux_co2": "nan"}),
        eco2mix({"date_heure": "2023-09-05T10:15:00+00:00", "taux_co2": "much"}),
        eco2mix({"date_heure": "2023-09-05T10:15:00", "taux_co2": 31}),
        eco2mix({"date_heure": "today", "taux_co2": 31}),
    ],
)
def test_an_answer_that_is_not_eco2mix_is_refused(answer: bytes) -> None:
    with pytest.raises(CorruptData):
        parse_eco2mix(answer)


def a44(points: dict[int, float], *, begin: str, end: str, resolution: str = "PT60M",
        curve: str = "A03", unit: str = "MWH") -> bytes:  # fmt: skip
    told = "".join(
        f"<Point><position>{position}</position><price.amount>{price}</price.amount></Point>"
        for position, price in points.items()
    )
    return f"""<?xml version="1.0" encoding="utf-8"?>
<Publication_MarketDocument xmlns="urn:iec62325.351:tc57wg16:451-3:publicationdocument:7:3">
  <mRID>1</mRID><type>A44</type>
  <TimeSeries>
    <mRID>1</mRID><businessType>A62</businessType>
    <in_Domain.mRID codingScheme="A01">10YFR-RTE------C</in_Domain.mRID>
    <currency_Unit.name>EUR</currency_Unit.name>
    <price_Measure_Unit.name>{unit}</price_Measure_Unit.name>
    <curveType>{curve}</curveType>
    <Period>
      <timeInterval><start>{begin}</start><end>{end}</end></timeInterval>
      <resolution>{resolution}</resolution>{told}
    </Period>
  </TimeSeries>
</Publication_MarketDocument>""".encode()


def at(series: object, text: str) -> float:
    from nuage.energy.tariffs import PriceSeries

    assert isinstance(series, PriceSeries)
    return series.at(datetime.fromisoformat(text).timestamp()).eur_per_mwh


def test_a_position_left_out_repeats_the_one_before_with_curve_type_a03() -> None:
    series = parse_a44(
        a44({1: 50.5, 4: -2.0, 24: 80.0}, begin="2025-01-14T23:00Z", end="2025-01-15T23:00Z")
    )
    assert len(series.intervals) == 24
    assert at(series, "2025-01-15T01:30+00:00") == 50.5
    assert at(series, "2025-01-15T02:00+00:00") == -2.0
    assert at(series, "2025-01-15T22:59+00:00") == 80.0


def test_without_a03_a_position_left_out_is_a_hole() -> None:
    series = parse_a44(
        a44({1: 1.0, 3: 3.0}, begin="2025-01-14T23:00Z", end="2025-01-15T02:00Z", curve="A01")
    )
    with pytest.raises(PriceUnknown):
        at(series, "2025-01-15T00:30+00:00")


@pytest.mark.parametrize(
    ("begin", "end", "count"),
    [
        ("2025-03-29T23:00Z", "2025-03-30T22:00Z", 23),
        ("2025-10-25T22:00Z", "2025-10-26T23:00Z", 25),
        ("2025-01-14T23:00Z", "2025-01-15T23:00Z", 24),
    ],
)
def test_odd_days_have_their_own_number_of_hours(begin: str, end: str, count: int) -> None:
    assert len(parse_a44(a44({1: 1.0}, begin=begin, end=end)).intervals) == count
    quarters = parse_a44(a44({1: 1.0}, begin=begin, end=end, resolution="PT15M"))
    assert len(quarters.intervals) == 4 * count


@pytest.mark.parametrize(
    "answer",
    [
        b"not xml",
        b'<!DOCTYPE x [<!ENTITY a "b">]><x/>',
        a44({25: 1.0}, begin="2025-01-14T23:00Z", end="2025-01-15T23:00Z"),
        a44({1: 1.0}, begin="2025-01-14T23:00Z", end="2025-01-15T23:00Z", resolution="P1Y"),
        a44({1: 1.0}, begin="2025-01-14T23:00Z", end="2025-01-15T23:00Z", unit="KWH"),
        a44({1: 1.0}, begin="1970-01-01T00:00Z", end="9999-01-01T00:00Z"),
        a44({1: 1.0}, begin="yesterday", end="2025-01-15T23:00Z"),
        b"<Publication_MarketDocument><TimeSeries><Period/></TimeSeries>"
        b"</Publication_MarketDocument>",
    ],
)
def test_an_answer_that_is_not_a44_is_refused(answer: bytes) -> None:
    with pytest.raises(CorruptData):
        parse_a44(answer)


def test_an_acknowledgement_passes_its_reason_on() -> None:
    answer = (
        b'<Acknowledgement_MarketDocument xmlns="urn:x"><Reason><code>999</code>'
        b"<text>No matching data found</text></Reason></Acknowledgement_MarketDocument>"
    )
    with pytest.raises(CorruptData, match="No matching data found"):
        parse_a44(answer)


def test_tempo_colours_by_day() -> None:
    values = [
        {"start_date": "2025-01-14T00:00:00+01:00", "end_date": "2025-01-15T00:00:00+01:00",
         "value": "RED", "updated_date": "2025-01-13T10:20:00+01:00"},
        {"start_date": "2025-01-13T00:00:00+01:00", "end_date": "2025-01-14T00:00:00+01:00",
         "value": "BLUE"},
    ]  # fmt: skip
    answer = json.dumps({"tempo_like_calendars": {"values": values}}).encode()
    assert parse_tempo(answer) == {
        date(2025, 1, 14): DayColour.RED,
        date(2025, 1, 13): DayColour.BLUE,
    }
    with pytest.raises(CorruptData):
        parse_tempo(answer.replace(b"RED", b"PINK"))
    with pytest.raises(CorruptData):
        parse_tempo(b"{}")


@pytest.mark.parametrize(
    ("day", "begin", "end"),
    [
        (date(2025, 3, 30), "202503292300", "202503302200"),  # 23 hours
        (date(2025, 10, 26), "202510252200", "202510262300"),  # 25 hours
    ],
)
def test_a_market_day_is_asked_for_from_local_midnight_to_the_next(
    day: date, begin: str, end: str
) -> None:
    query = a44_query(day, day, token="secret")
    assert (query["documentType"], query["periodStart"], query["periodEnd"]) == ("A44", begin, end)


def test_a_tempo_calendar_is_asked_for_with_the_offset_of_each_day() -> None:
    query = tempo_query(date(2025, 3, 29), date(2025, 3, 30))
    assert query["start_date"] == "2025-03-29T00:00:00+01:00"
    assert query["end_date"] == "2025-03-31T00:00:00+02:00"


def open_meteo(**changes: object) -> bytes:
    document: dict[str, object] = {
        "latitude": 48.84, "longitude": 2.62, "utc_offset_seconds": 0, "timezone": "GMT",
        "hourly_units": {"time": "unixtime", "temperature_2m": "°C", "dew_point_2m": "°C"},
        "hourly": {
            "time": [1764032400, 1764036000, 1764039600],
            "temperature_2m": [5.4, 5.1, None],
            "dew_point_2m": [2.0, None, None],
        },
    }  # fmt: skip
    return json.dumps(document | changes).encode()


def test_hours_without_a_temperature_are_left_out_of_a_forecast() -> None:
    first, second = parse_open_meteo(open_meteo())
    assert (first.begin_s, first.dry_bulb_c, first.dew_point_c) == (1764032400.0, 5.4, 2.0)
    assert (second.dry_bulb_c, second.dew_point_c) == (5.1, None)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"error":true,"reason":"Latitude must be in range"}',
        open_meteo(hourly_units={"time": "iso8601", "temperature_2m": "°C"}),
        open_meteo(hourly_units={"time": "unixtime", "temperature_2m": "°F"}),
        open_meteo(hourly={"time": [1], "temperature_2m": [1.0, 2.0]}),
    ],
)
def test_an_answer_that_is_no_forecast_is_refused(answer: bytes) -> None:
    with pytest.raises(CorruptData):
        parse_open_meteo(answer)


async def test_fetching_tells_a_source_that_is_down_from_one_that_refuses() -> None:
    async def answer(request: web.Request) -> web.Response:
        status = int(request.match_info["status"])
        body = b"x" * (ANSWER_BYTES_MAX + 1) if status == 201 else b"here"
        return web.Response(status=200 if status == 201 else status, body=body)

    app = web.Application()

    async def token(_request: web.Request) -> web.Response:
        return web.Response(text='{"access_secret": 1}')

    app.router.add_get("/{status}", answer)
    app.router.add_post("/token", token)
    runner = web.AppRunner(app)
    await runner.setup()
    door = web.TCPSite(runner, "127.0.0.1", 0)
    await door.start()
    host, port = runner.addresses[0][:2]
    try:
        async with aiohttp.ClientSession() as session:
            base = f"http://{host}:{port}"
            assert await fetch(session, f"{base}/200") == b"here"
            with pytest.raises(Unavailable):
                await fetch(session, f"{base}/503")
            for status in (401, 302):  # a redirection could carry the key elsewhere
                with pytest.raises(RemoteProtocolError) as caught:
                    await fetch(session, f"{base}/{status}?securityToken=secret")
                assert "secret" not in caught.value.message
            with pytest.raises(CorruptData) as no_token:
                await request_token(session, f"{base}/token", "id:secret")
            assert "secret" not in str(no_token.value)
            with pytest.raises(RemoteProtocolError):
                await fetch(session, f"{base}/201")
    finally:
        await runner.cleanup()
