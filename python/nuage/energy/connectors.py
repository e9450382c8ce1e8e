"""Answers of the public sources of price and carbon, parsed; and the small act of asking.

======================  =====================================================================
éCO2mix (RTE, ODRE)     JSON, `records[].fields`: `date_heure`, `taux_co2` gCO2/kWh, some
                        numbers as strings; forecasts have no `taux_co2` and are left out
ENTSO-E day-ahead       XML `Publication_MarketDocument`, document type A44, EUR/MWh; with
                        curve type A03 a position that repeats the one before is left out
Tempo (RTE)             JSON `tempo_like_calendars.values[]`: `start_date`, `value` BLUE,
                        WHITE or RED
======================  =====================================================================

Parsers take bytes and refuse what does not fit, naming where (`CorruptData`). A document with
a DOCTYPE is refused before it is parsed. `fetch` alone touches the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from urllib.parse import urlencode
from xml.etree import ElementTree as ET

import aiohttp
import msgspec

from nuage.energy.tariffs import PARIS, DayColour, Interval, PriceSeries
from nuage.errors import CorruptData, RemoteProtocolError, Unavailable

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024  # a week of quarter hours is 300 kB
FETCH_TIMEOUT_S: Final = 20.0
FRANCE: Final = "10YFR-RTE------C"
_RESOLUTIONS: Final = {"PT60M": 3600, "PT30M": 1800, "PT15M": 900, "P1D": 86_400}


@dataclass(frozen=True, slots=True)
class CarbonRecord:
    """Carbon of the grid from `begin_s` on, in gCO2 per kWh (direct emissions, as RTE counts)."""

    begin_s: float
    carbon_g_per_kwh: float
    consumption_mw: float | None = None
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
    records: list[_Record]


def parse_eco2mix(answer: bytes) -> tuple[CarbonRecord, ...]:
    """Return the measured records of an éCO2mix answer, by time.

    Raises:
        CorruptData: it is not such an answer, or a number is none.
    """
    try:
        document = msgspec.json.decode(answer, type=_Eco2mix)
    except msgspec.DecodeError as error:
        raise CorruptData(f"not an éCO2mix answer: {error}", where="éCO2mix") from error
    found = {}
    for record in document.records:
        fields = record.fields
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
        found[begin_s] = CarbonRecord(begin_s, carbon, consumption, share)
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
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptData(f"not a Tempo calendar: {error}", where="Tempo") from error


def eco2mix_url(rows: int = 192) -> str:
    """Return where the last `rows` quarter hours of the French grid are published."""
    query = {"dataset": "eco2mix-national-tr", "rows": rows, "sort": "date_heure"}
    return f"https://opendata.reseaux-energies.fr/api/records/1.0/search/?{urlencode(query)}"


def a44_url(day: date, *, token: str, domain: str = FRANCE) -> str:
    """Return where ENTSO-E publishes the day-ahead prices of one day; `token` is the site's."""
    begin = _local_midnight(day)
    end = _local_midnight(day + timedelta(days=1))
    query = {
        "securityToken": token,
        "documentType": "A44",
        "in_Domain": domain,
        "out_Domain": domain,
        "periodStart": f"{begin:%Y%m%d%H%M}",
        "periodEnd": f"{end:%Y%m%d%H%M}",
    }
    return f"https://web-api.tp.entsoe.eu/api?{urlencode(query)}"


def tempo_url(begin: date, end: date) -> str:
    """Return where RTE publishes the Tempo colours from `begin` up to `end` (OAuth2 bearer)."""
    query = {"start_date": f"{begin}T00:00:00+01:00", "end_date": f"{end}T00:00:00+01:00"}
    base = "https://digital.iservices.rte-france.com/open_api/tempo_like_supply_contract/v1"
    return f"{base}/tempo_like_calendars?{urlencode(query)}"


async def fetch(
    session: aiohttp.ClientSession, url: str, *, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return the body of an answer.

    Raises:
        Unavailable: no answer, or the source asks to come back later.
        RemoteProtocolError: an answer that is an error, or larger than any real one.
    """
    timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
    where = url.partition("?")[0]  # the query may carry the site's token
    try:
        async with session.get(url, headers=headers, timeout=timeout) as answer:
            body = await answer.content.read(ANSWER_BYTES_MAX + 1)
            while len(body) <= ANSWER_BYTES_MAX and not answer.content.at_eof():
                body += await answer.content.read(ANSWER_BYTES_MAX + 1 - len(body))
            status = answer.status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"{where} does not answer: {error}", retry_after_s=300.0) from error
    if status == 429 or status >= 500:
        raise Unavailable(f"{where} answers {status}", retry_after_s=900.0)
    if status != 200:
        raise RemoteProtocolError(
            f"{where} answers {status}", hint="check the site's token for this source"
        )
    if len(body) > ANSWER_BYTES_MAX:
        raise RemoteProtocolError(f"{where} sent more than {ANSWER_BYTES_MAX} bytes")
    return body


def _local_midnight(day: date) -> datetime:
    """Return when a market day begins, in UTC: local midnight, so that odd days come whole."""
    return datetime(day.year, day.month, day.day, tzinfo=PARIS).astimezone(UTC)


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
        return float(value)
    except ValueError as error:
        raise CorruptData(f"{value!r} is not a number", where=where) from error


def _instant(text: str, where: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise CorruptData(f"{text!r} is not an instant", where=where) from error
    if moment.tzinfo is None:
        raise CorruptData(f"{text!r} has no offset from UTC", where=where)
    return moment.timestamp()
