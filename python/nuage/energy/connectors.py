"""Answers of the public sources of price and carbon, parsed; and the small act of asking.

======================  =====================================================================
éCO2mix (RTE, ODRE)     JSON, `results[]` (API 2.1) or `records[].fields` (API 1.0):
                        `date_heure`, `taux_co2` gCO2/kWh, some numbers as strings; forecasts
                        have no `taux_co2` and are left out
ENTSO-E day-ahead       XML `Publication_MarketDocument`, document type A44, EUR/MWh; with
                        curve type A03 a position that repeats the one before is left out
Tempo (RTE)             JSON `tempo_like_calendars.values[]`: `start_date`, `value` BLUE,
                        WHITE or RED; asked with an OAuth 2 token (`request_token`)
Open-Meteo              JSON `hourly`: columns `time` (epoch), `temperature_2m` and
                        `dew_point_2m` in °C by `hourly_units`; hours not known are null
======================  =====================================================================

Parsers take bytes and refuse what does not fit, naming where (`CorruptData`). A document with
a DOCTYPE is refused before it is parsed. `fetch` and `request_token` alone touch the network:
they follow no redirection, which could carry a key elsewhere, and no error of theirs holds a
query or a header.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from math import isfinite
from typing import Final
from urllib.parse import urlencode
from xml.etree import ElementTree as ET

import aiohttp
import msgspec

from nuage.energy.tariffs import PARIS, DayColour, Interval, PriceSeries
from nuage.errors import UNREADABLE, CorruptData, RemoteProtocolError, Unavailable

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024  # a week of quarter hours is 300 kB
FETCH_TIMEOUT_S: Final = 20.0
POSITIONS_MAX: Final = 366 * 96  # a year of quarter hours
FRANCE: Final = "10YFR-RTE------C"
_RESOLUTIONS: Final = {"PT60M": 3600, "PT30M": 1800, "PT15M": 900, "P1D": 86_400}


@dataclass(frozen=True, slots=True)
class CarbonRecord:
    """Carbon of the grid from `begin_s` on, in gCO2 per kWh (direct emissions, as RTE counts)."""

    begin_s: float
    carbon_g_per_kwh: float
    renewable_share: float | None = None


class _Fields(msgspec.Struct, frozen=True):
    date_heure: str
    taux_co2: float | str | None = None
    consommation: float | str | None = None
    eolien: float | str | None = None
    solaire: float | str | None = None
    hydraulique: float | str | None = None
    bioenergies: float | str | None = None


class _Record(msgspec.Struct, frozen=True):
    fields: _Fields


class _Eco2mix(msgspec.Struct, frozen=True):
    records: list[_Record] | None = None
    results: list[_Fields] | None = None


def parse_eco2mix(answer: bytes) -> tuple[CarbonRecord, ...]:
    """Return the measured records of an éCO2mix answer, by time.

    Raises:
        CorruptData: it is not such an answer, or a number is none.
    """
    try:
        document = msgspec.json.decode(answer, type=_Eco2mix)
    except UNREADABLE as error:
        raise CorruptData(f"not an éCO2mix answer: {error}", where="éCO2mix") from error
    if document.records is None and document.results is None:
        raise CorruptData("neither results nor records", where="éCO2mix")
    every = [*(document.results or ()), *(record.fields for record in document.records or ())]
    found = {}
    for fields in every:
        carbon = _number(fields.taux_co2, "taux_co2")
        if carbon is None:
            continue  # a forecast
        begin_s = _instant(fields.date_heure, "éCO2mix date_heure")
        consumption = _number(fields.consommation, "consommation")
        parts = [
            _number(getattr(fields, name), name)
            for name in ("eolien", "solaire", "hydraulique", "bioenergies")
        ]
        share = None
        if consumption and all(part is not None for part in parts):
            share = sum(max(part or 0.0, 0.0) for part in parts) / consumption
        found[begin_s] = CarbonRecord(begin_s, carbon, share)
    return tuple(found[begin_s] for begin_s in sorted(found))


def parse_a44(answer: bytes) -> PriceSeries:
    """Return the day-ahead prices of an ENTSO-E answer, in EUR/MWh.

    Raises:
        CorruptData: it is not such an answer; an acknowledgement's own reason is passed on.
    """
    if b"<!DOCTYPE" in answer or b"<!ENTITY" in answer:
        raise CorruptData("a DOCTYPE has no place here", where="ENTSO-E A44")
    try:
        root = ET.fromstring(answer)
    except ET.ParseError as error:
        raise CorruptData(f"not XML: {error}", where="ENTSO-E A44") from error
    if _tag(root) == "Acknowledgement_MarketDocument":
        reason = next((e.text for e in root.iter() if _tag(e) == "text"), "no reason given")
        raise CorruptData(f"ENTSO-E has no prices: {reason}", where="ENTSO-E A44")
    intervals: dict[float, Interval] = {}
    for series in (element for element in root if _tag(element) == "TimeSeries"):
        currency = _text(series, "currency_Unit.name", "EUR")
        unit = _text(series, "price_Measure_Unit.name", "MWH")
        if (currency, unit) != ("EUR", "MWH"):
            raise CorruptData(f"{currency}/{unit} instead of EUR/MWH", where="ENTSO-E A44")
        repeats = _text(series, "curveType", "A01") == "A03"
        for period in (element for element in series if _tag(element) == "Period"):
            for interval in _period(period, repeats=repeats):
                intervals[interval.begin_s] = interval
    return PriceSeries(intervals.values())


def _period(period: ET.Element, *, repeats: bool) -> list[Interval]:
    """Return a period's intervals; with `repeats`, a missing position repeats the last."""
    begin_s = _instant(_text(period, "start"), "timeInterval start")
    end_s = _instant(_text(period, "end"), "timeInterval end")
    resolution = _text(period, "resolution")
    step_s = _RESOLUTIONS.get(resolution)
    if step_s is None:
        raise CorruptData(f"resolution {resolution!r}", where="ENTSO-E A44")
    count = round((end_s - begin_s) / step_s)
    if not 0 < count <= POSITIONS_MAX:
        raise CorruptData(f"a period of {count} positions", where="ENTSO-E A44")
    prices: dict[int, float] = {}
    for point in (element for element in period if _tag(element) == "Point"):
        position = _number(_text(point, "position"), "position")
        price = _number(_text(point, "price.amount"), "price.amount")
        if position is None or price is None or not 1 <= position <= count:
            raise CorruptData(f"position {position} of {count}", where="ENTSO-E A44")
        prices[int(position)] = price
    found = []
    last: float | None = None
    for position in range(1, count + 1):
        last = prices.get(position, last if repeats else None)
        if last is not None:
            start_s = begin_s + (position - 1) * step_s
            found.append(Interval(start_s, start_s + step_s, last))
    return found


class _TempoDay(msgspec.Struct, frozen=True):
    start_date: str
    value: str


class _TempoCalendars(msgspec.Struct, frozen=True):
    values: list[_TempoDay]


class _Tempo(msgspec.Struct, frozen=True):
    tempo_like_calendars: _TempoCalendars


def parse_tempo(answer: bytes) -> dict[date, DayColour]:
    """Return the colour of each day of a Tempo calendar.

    Raises:
        CorruptData: it is not such a calendar, or a colour is none.
    """
    try:
        document = msgspec.json.decode(answer, type=_Tempo)
        return {
            datetime.fromisoformat(day.start_date).date(): DayColour(day.value.lower())
            for day in document.tempo_like_calendars.values
        }
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"not a Tempo calendar: {error}", where="Tempo") from error


class _Units(msgspec.Struct, frozen=True):
    time: str
    temperature_2m: str
    dew_point_2m: str = ""


class _Hourly(msgspec.Struct, frozen=True):
    time: list[float]
    temperature_2m: list[float | None]
    dew_point_2m: list[float | None] = []


class _OpenMeteo(msgspec.Struct, frozen=True):
    hourly_units: _Units
    hourly: _Hourly


@dataclass(frozen=True, slots=True)
class WeatherHour:
    """Air outside over the hour that begins at `begin_s`."""

    begin_s: float
    dry_bulb_c: float
    dew_point_c: float | None


def parse_open_meteo(answer: bytes) -> tuple[WeatherHour, ...]:
    """Return the hours of a forecast by time; those without a temperature are left out.

    Raises:
        CorruptData: it is not such an answer, in other units, or its columns differ in length.
    """
    try:
        document = msgspec.json.decode(answer, type=_OpenMeteo)
    except UNREADABLE as error:
        raise CorruptData(f"not an Open-Meteo answer: {error}", where="Open-Meteo") from error
    units, hourly = document.hourly_units, document.hourly
    if units.time != "unixtime" or {units.temperature_2m, units.dew_point_2m} - {"°C", ""}:
        raise CorruptData(f"units {units}, not epoch and °C", where="Open-Meteo")
    dew_points: Sequence[float | None] = hourly.dew_point_2m or [None] * len(hourly.time)
    if not len(hourly.time) == len(hourly.temperature_2m) == len(dew_points):
        raise CorruptData("columns of different lengths", where="Open-Meteo")
    hours = {
        begin_s: WeatherHour(begin_s, dry_bulb_c, dew_point_c)
        for begin_s, dry_bulb_c, dew_point_c in zip(
            hourly.time, hourly.temperature_2m, dew_points, strict=True
        )
        if dry_bulb_c is not None
    }
    return tuple(hours[begin_s] for begin_s in sorted(hours))


def eco2mix_query(rows: int = 100) -> dict[str, str]:
    """Return what asks for the last measured quarter hours of the French grid, at most 100."""
    return {"limit": str(rows), "order_by": "date_heure desc", "where": "taux_co2 is not null"}


def a44_query(first: date, last: date, *, token: str, domain: str = FRANCE) -> dict[str, str]:
    """Return what asks ENTSO-E for the prices of whole local days; `token` is the site's."""
    begin, end = _local_midnight(first), _local_midnight(last + timedelta(days=1))
    return {
        "securityToken": token,
        "documentType": "A44",
        "in_Domain": domain,
        "out_Domain": domain,
        "periodStart": f"{begin.astimezone(UTC):%Y%m%d%H%M}",
        "periodEnd": f"{end.astimezone(UTC):%Y%m%d%H%M}",
    }


def tempo_query(first: date, last: date) -> dict[str, str]:
    """Return what asks RTE for the colours of whole local days."""
    begin, end = _local_midnight(first), _local_midnight(last + timedelta(days=1))
    return {"start_date": begin.isoformat(), "end_date": end.isoformat()}


def open_meteo_query(latitude_deg: float, longitude_deg: float) -> dict[str, str]:
    """Return what asks for yesterday's hours and those of the next three days."""
    return {
        "latitude": f"{latitude_deg:.3f}",
        "longitude": f"{longitude_deg:.3f}",
        "hourly": "temperature_2m,dew_point_2m",
        "timeformat": "unixtime",
        "timezone": "GMT",
        "past_days": "1",
        "forecast_days": "3",
    }


def with_query(address: str, query: Mapping[str, str]) -> str:
    """Return an address with a query."""
    return f"{address}?{urlencode(query)}"


async def fetch(
    session: aiohttp.ClientSession, url: str, *, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return the body of an answer.

    Raises:
        Unavailable: no answer, or the source asks to come back later.
        RemoteProtocolError: an answer that is an error, or larger than any real one.
    """
    return await _ask(session, "GET", url, headers=headers)


class _Token(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: float = 3600.0


async def request_token(
    session: aiohttp.ClientSession, address: str, client: str
) -> tuple[str, float]:
    """Return an OAuth 2 token for `client` (``id:secret``) and how many seconds it holds.

    Raises:
        Unavailable, RemoteProtocolError: as `fetch`.
        CorruptData: the answer holds no token.
    """
    basic = base64.b64encode(client.encode()).decode()
    headers = {
        "Authorization": f"Basic {basic}", "Content-Type": "application/x-www-form-urlencoded",
    }  # fmt: skip
    body = await _ask(
        session, "POST", address, headers=headers, data=b"grant_type=client_credentials"
    )
    try:
        token = msgspec.json.decode(body, type=_Token)
    except UNREADABLE:
        # Neither the answer nor the parser's words are passed on: they may hold the token.
        raise CorruptData("the answer holds no access_token", where=address) from None
    return token.access_token, token.expires_in


async def _ask(
    session: aiohttp.ClientSession, method: str, url: str, *,
    headers: Mapping[str, str] | None = None, data: bytes | None = None,
) -> bytes:  # fmt: skip
    timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
    where = url.partition("?")[0]  # the query may carry the site's token
    try:
        async with session.request(
            method, url, headers=headers, data=data, timeout=timeout, allow_redirects=False
        ) as answer:
            body = await answer.content.read(ANSWER_BYTES_MAX + 1)
            while len(body) <= ANSWER_BYTES_MAX and not answer.content.at_eof():
                body += await answer.content.read(ANSWER_BYTES_MAX + 1 - len(body))
            status = answer.status
    except TimeoutError as error:
        raise Unavailable(
            f"{where} does not answer within {FETCH_TIMEOUT_S:.0f} s", retry_after_s=300.0
        ) from error
    except aiohttp.ClientConnectorError as error:
        raise Unavailable(
            f"{where} does not answer: {error.os_error}", retry_after_s=300.0
        ) from error
    except aiohttp.ClientError as error:
        # Other errors of aiohttp quote the whole address.
        told = type(error).__name__
        raise Unavailable(f"{where} does not answer: {told}", retry_after_s=300.0) from None
    if status == 429 or status >= 500:
        raise Unavailable(f"{where} answers {status}", retry_after_s=900.0)
    if 300 <= status < 400:
        raise RemoteProtocolError(
            f"{where} answers {status}", hint="the source has moved: set its new address"
        )
    if status != 200:
        raise RemoteProtocolError(
            f"{where} answers {status}", hint="check the site's key for this source"
        )
    if len(body) > ANSWER_BYTES_MAX:
        raise RemoteProtocolError(f"{where} sent more than {ANSWER_BYTES_MAX} bytes")
    return body


def _local_midnight(day: date) -> datetime:
    """Return when a market day begins: local midnight, so that odd days come whole."""
    return datetime(day.year, day.month, day.day, tzinfo=PARIS)


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(element: ET.Element, name: str, default: str | None = None) -> str:
    for child in element.iter():
        if _tag(child) == name and child.text is not None:
            return child.text.strip()
    if default is None:
        raise CorruptData(f"no {name}", where="ENTSO-E A44")
    return default


def _number(value: float | str | None, where: str) -> float | None:
    if value is None or value in {"", "-", "ND"}:
        return None
    try:
        number = float(value)
    except ValueError as error:
        raise CorruptData(f"{value!r} is not a number", where=where) from error
    if not isfinite(number):
        raise CorruptData(f"{value!r} is not a number", where=where)
    return number


def _instant(text: str, where: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise CorruptData(f"{text!r} is not an instant", where=where) from error
    if moment.tzinfo is None:
        raise CorruptData(f"{text!r} has no offset from UTC", where=where)
    return moment.timestamp()
