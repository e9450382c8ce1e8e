"""Public sources that a site asks by itself: what to ask, when, and what is kept of an answer.

========== ============================ ======================= ==============================
name       source                       asked                   kept
========== ============================ ======================= ==============================
eco2mix    RTE's éCO2mix (ODRE)         every 15 min            gCO2/kWh of the last day
day-ahead  ENTSO-E A44                  until tomorrow is known EUR/MWh of 8 days, so that
                                        (from 13:00), then not  `HoleRule` finds the week before
tempo      RTE's Tempo calendar         until tomorrow is known colours of 8 days
                                        (from 10:40), then not
weather    Open-Meteo                   every hour              °C, yesterday to three days on
========== ============================ ======================= ==============================

Synchronous: `due_s` says when to ask, `take` makes of an answer what is kept, the rest is the
daemon's. Rules for bad data: an answer that cannot be read, holds nothing, or holds one figure
outside `RANGES` is refused whole, and what was kept before stays, ageing in sight. A figure that
is published anew replaces the one before; a hole stays a hole, and whoever reads bridges it by a
rule of its own (`tariffs.HoleRule`) or does without.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import Enum
from typing import Final, Protocol

from nuage.energy.connectors import (
    a44_query,
    eco2mix_query,
    open_meteo_query,
    parse_a44,
    parse_eco2mix,
    parse_open_meteo,
    parse_tempo,
    tempo_query,
    with_query,
)
from nuage.energy.tariffs import PARIS, DayColour, Interval, PriceSeries
from nuage.errors import CorruptData, InvalidRequest
from nuage.ids import EnergySourceId, SiteId
from nuage.model.energy import DatedValue, EnergySource

HOUR_S: Final = 3600.0
DAY_S: Final = 86_400.0
QUARTER_S: Final = 900.0
POLL_S: Final = 900.0  # while something is late: sources publish within an hour of their time
RETRY_S: Final = 60.0
RETRY_S_MAX: Final = 3600.0
KEPT_DAYS: Final = 8  # a hole is bridged by the day before, then the week before
VALUES_MAX: Final = 1200  # 8 days and two to come, in quarter hours, with room
PRICES_OUT: Final = (13, 0)  # local; the market's results come at about 12:45
COLOUR_OUT: Final = (10, 40)  # local; RTE says 10:30
# What can be true. Wider than any record so far, narrower than a misplaced unit.
RANGES: Final = {
    "gCO2/kWh": (0.0, 1500.0),
    "EUR/MWh": (-1000.0, 10_000.0),  # the market's own limits are -500 and 5,000
    "°C": (-60.0, 60.0),
}


class KeyUse(Enum):
    """How a source wants a site's key."""

    NONE = "none"
    QUERY = "query"
    TOKEN = "token"  # the key is a client's id:secret, changed for an OAuth 2 token first


class PublicSource(Protocol):
    """A public source."""

    @property
    def name(self) -> str:
        """What a configuration calls it."""
        ...

    @property
    def source(self) -> str:
        """What people call it."""
        ...

    @property
    def address(self) -> str:
        """Where it is asked, without query."""
        ...

    @property
    def key_use(self) -> KeyUse:
        """How it wants the site's key."""
        ...

    def url(self, now_s: float, key: str) -> str:
        """Return what to ask now; some sources want the key within."""
        ...

    def take(self, answer: bytes, now_s: float) -> EnergySource:
        """Return what an answer tells.

        Raises:
            CorruptData: it is refused; the message names the rule or the place.
        """
        ...

    def due_s(self, kept: EnergySource | None, now_s: float) -> float:
        """Return when to ask next, after an answer that was kept or before the first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    site_id: SiteId
    address: str

    def _kept(self, name: str, source: str, unit: str, now_s: float) -> EnergySource:
        return EnergySource(
            source_id=EnergySourceId(f"{self.site_id}-{name}"),
            site_id=self.site_id,
            source=source,
            unit=unit,
            fetched_s=now_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Eco2mix(_Base):
    """Carbon of the French grid now."""

    name: str = "eco2mix"
    source: str = "éCO2mix"
    key_use: KeyUse = KeyUse.NONE
    address: str = (
        "https://odre.opendatasoft.com/api/explore/v2.1/catalog/datasets/"
        "eco2mix-national-tr/records"
    )

    def url(self, now_s: float, key: str) -> str:
        """Return what to ask."""
        del now_s, key
        return with_query(self.address, eco2mix_query())

    def take(self, answer: bytes, now_s: float) -> EnergySource:
        """Return the last day's quarter hours."""
        records = parse_eco2mix(answer)
        values = [
            DatedValue(record.begin_s, record.begin_s + QUARTER_S, record.carbon_g_per_kwh)
            for record in records
            if record.begin_s > now_s - DAY_S
        ]
        return _checked(self._kept(self.name, self.source, "gCO2/kWh", now_s), values)

    def due_s(self, kept: EnergySource | None, now_s: float) -> float:
        """Return when to ask next."""
        return now_s if kept is None else max(kept.fetched_s + QUARTER_S, now_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather(_Base):
    """The air outside a site, foreseen by the hour."""

    latitude_deg: float
    longitude_deg: float
    name: str = "weather"
    source: str = "Open-Meteo"
    key_use: KeyUse = KeyUse.NONE
    address: str = "https://api.open-meteo.com/v1/forecast"

    def url(self, now_s: float, key: str) -> str:
        """Return what to ask."""
        del now_s, key
        return with_query(self.address, open_meteo_query(self.latitude_deg, self.longitude_deg))

    def take(self, answer: bytes, now_s: float) -> EnergySource:
        """Return the hours of the forecast."""
        hours = parse_open_meteo(answer)
        values = [
            DatedValue(hour.begin_s, hour.begin_s + HOUR_S, hour.dry_bulb_c, hour.dew_point_c)
            for hour in hours
        ]
        return _checked(self._kept(self.name, self.source, "°C", now_s), values)

    def due_s(self, kept: EnergySource | None, now_s: float) -> float:
        """Return when to ask next."""
        return now_s if kept is None else max(kept.fetched_s + HOUR_S, now_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class DayAhead(_Base):
    """The day-ahead market's prices."""

    name: str = "day-ahead"
    source: str = "ENTSO-E day-ahead"
    key_use: KeyUse = KeyUse.QUERY
    address: str = "https://web-api.tp.entsoe.eu/api"

    def url(self, now_s: float, key: str) -> str:
        """Return what asks for yesterday to tomorrow, so that a hole may be filled late."""
        today = _local_day(now_s)
        query = a44_query(today - timedelta(days=1), today + timedelta(days=1), token=key)
        return with_query(self.address, query)

    def take(self, answer: bytes, now_s: float) -> EnergySource:
        """Return the answer's prices; neighbours that are equal are one."""
        values: list[DatedValue] = []
        for each in parse_a44(answer).intervals:
            before = values[-1] if values else None
            if before and before.end_s == each.begin_s and before.value == each.eur_per_mwh:
                values[-1] = replace(before, end_s=each.end_s)
            else:
                values.append(DatedValue(each.begin_s, each.end_s, each.eur_per_mwh))
        return _checked(self._kept(self.name, self.source, "EUR/MWh", now_s), values)

    def due_s(self, kept: EnergySource | None, now_s: float) -> float:
        """Return when to ask next."""
        reaches_s = reaches(kept) if kept is not None else None
        return _due_daily(kept, reaches_s, now_s, PRICES_OUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class TempoCalendar(_Base):
    """The colours of Tempo days."""

    name: str = "tempo"
    source: str = "Tempo calendar"
    key_use: KeyUse = KeyUse.TOKEN
    address: str = (
        "https://digital.iservices.rte-france.com/open_api/"
        "tempo_like_supply_contract/v1/tempo_like_calendars"
    )

    def url(self, now_s: float, key: str) -> str:
        """Return what asks for the days before and tomorrow."""
        del key  # it goes into a header
        today = _local_day(now_s)
        query = tempo_query(today - timedelta(days=2), today + timedelta(days=1))
        return with_query(self.address, query)

    def take(self, answer: bytes, now_s: float) -> EnergySource:
        """Return the answer's colours."""
        colours = parse_tempo(answer)
        if not colours or len(colours) > VALUES_MAX:
            raise CorruptData(f"a calendar of {len(colours)} days", where=self.source)
        kept = self._kept(self.name, self.source, "colour", now_s)
        return replace(kept, colours={d.isoformat(): colours[d].value for d in sorted(colours)})

    def due_s(self, kept: EnergySource | None, now_s: float) -> float:
        """Return when to ask next."""
        reaches_s = reaches(kept) if kept is not None else None
        return _due_daily(kept, reaches_s, now_s, COLOUR_OUT)


def make_source(
    name: str, site_id: SiteId, *, address: str, latitude_deg: float, longitude_deg: float
) -> PublicSource:
    """Return the source that a configuration names; `address` "" is the public one.

    Raises:
        InvalidRequest: there is no such source, or the weather of nowhere is asked for.
    """
    source: Eco2mix | DayAhead | TempoCalendar | Weather
    match name:
        case "eco2mix":
            source = Eco2mix(site_id=site_id)
        case "day-ahead":
            source = DayAhead(site_id=site_id)
        case "tempo":
            source = TempoCalendar(site_id=site_id)
        case "weather":
            if not (latitude_deg or longitude_deg):
                raise InvalidRequest(
                    "the weather of a site needs its latitude and longitude",
                    field="sources.weather",
                )
            source = Weather(
                site_id=site_id, latitude_deg=latitude_deg, longitude_deg=longitude_deg
            )
        case _:
            raise InvalidRequest(
                f"no source {name!r}; there are eco2mix, day-ahead, tempo, weather", field="sources"
            )
    return replace(source, address=address) if address else source


def merged(before: EnergySource | None, fresh: EnergySource) -> EnergySource:
    """Return `fresh` with what `before` knows of other times, as far back as is of use."""
    if before is None:
        return fresh
    oldest_s = fresh.fetched_s - KEPT_DAYS * DAY_S
    covered = sorted((value.begin_s, value.end_s) for value in fresh.values)
    begins = [begin_s for begin_s, _ in covered]

    def is_free(value: DatedValue) -> bool:
        """Tell whether nothing fresh overlaps a value."""
        index = bisect_right(begins, value.end_s - 1e-6) - 1
        return index < 0 or covered[index][1] <= value.begin_s

    old = [value for value in before.values if value.end_s > oldest_s and is_free(value)]
    values = sorted((*old, *fresh.values), key=lambda value: value.begin_s)[-VALUES_MAX:]
    oldest_day = _local_day(oldest_s).isoformat()
    colours = {d: c for d, c in (before.colours | fresh.colours).items() if d >= oldest_day}
    return replace(fresh, values=tuple(values), colours=dict(sorted(colours.items())))


def value_at(kept: EnergySource | None, at_s: float) -> DatedValue | None:
    """Return what covers an instant."""
    if kept is None:
        return None
    index = bisect_right(kept.values, at_s, key=lambda value: value.begin_s) - 1
    if index < 0 or at_s >= kept.values[index].end_s:
        return None
    return kept.values[index]


def series_of(kept: EnergySource) -> PriceSeries:
    """Return prices as a market's series."""
    return PriceSeries(Interval(v.begin_s, v.end_s, v.value) for v in kept.values)


def colours_of(kept: EnergySource) -> Mapping[date, DayColour]:
    """Return a calendar's colours."""
    return {date.fromisoformat(d): DayColour(c) for d, c in kept.colours.items()}


def reaches(kept: EnergySource) -> float | None:
    """Return until when a source's figures reach."""
    if kept.colours:
        day = date.fromisoformat(max(kept.colours))
        return _midnight_s(day + timedelta(days=1))
    return kept.values[-1].end_s if kept.values else None


def retry_s(failure_count: int, asked_s: float | None) -> float:
    """Return how long to wait after failures in a row; `asked_s` is what the source asks for."""
    doubled_s = RETRY_S * 2.0 ** min(failure_count - 1, 10)
    return min(max(doubled_s, asked_s or 0.0), RETRY_S_MAX)


def _checked(kept: EnergySource, values: Iterable[DatedValue]) -> EnergySource:
    """Return `kept` with values that can all be true."""
    low, high = RANGES[kept.unit]
    found = tuple(values)
    if not found:
        raise CorruptData("the answer holds no figure of today", where=kept.source)
    if len(found) > VALUES_MAX:
        raise CorruptData(f"the answer holds {len(found)} figures", where=kept.source)
    for value in found:
        for number in (value.value, value.dew_point_c):
            if number is not None and not low <= number <= high:
                raise CorruptData(
                    f"{number:g} {kept.unit} at {_shown(value.begin_s)} is outside "
                    f"{low:g} to {high:g}",
                    where=kept.source,
                )
    return replace(kept, values=found)


def _due_daily(
    kept: EnergySource | None, reaches_s: float | None, now_s: float, out: tuple[int, int]
) -> float:
    """Return when to ask a source that publishes tomorrow at a local time of today."""
    if kept is None or reaches_s is None:
        return now_s
    today = _local_day(now_s)
    out_s = datetime(today.year, today.month, today.day, *out, tzinfo=PARIS).timestamp()
    is_out = now_s >= out_s
    wanted_s = _midnight_s(today + timedelta(days=2 if is_out else 1))
    if reaches_s < wanted_s:
        return max(kept.fetched_s + POLL_S, now_s)
    tomorrow = today + timedelta(days=1)
    next_out = datetime(tomorrow.year, tomorrow.month, tomorrow.day, *out, tzinfo=PARIS)
    return next_out.timestamp() if is_out else out_s


def _local_day(at_s: float) -> date:
    return datetime.fromtimestamp(at_s, PARIS).date()


def _midnight_s(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=PARIS).timestamp()


def _shown(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, PARIS).isoformat(timespec="minutes")
