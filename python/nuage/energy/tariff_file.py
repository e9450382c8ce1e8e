"""A site's contract for electricity as a file: dated versions in TOML, read anew when it changes.

::

    name = "two rates"
    day_begins_hour = 0             # 6 for Tempo
    colours = "source"                # Tempo only: the site's source `tempo`, or a file beside this
                                    # one that holds an answer of RTE's calendar

    [[versions]]
    valid_from = 2025-02-01
    [[versions.rules]]              # the first rule that matches an hour is its price
    eur_per_mwh = 206.8
    hours = [6, 22]                 # local, [from, to), may cross midnight
    months = [11, 12, 1, 2, 3]      # optional, as are weekdays (Monday is 0) and colour

Instead of versions, `day_ahead = "source"` takes the site's source `day-ahead`, any other name is a
file with an answer of ENTSO-E (A44) beside this one. A day-ahead price that is missing is bridged
by the same hour of the day before, else of the week before, and says so.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Final

import msgspec

from nuage.energy.connectors import parse_a44, parse_tempo
from nuage.energy.tariffs import (
    CalendarRule,
    DayColour,
    HoleRule,
    Price,
    PriceSeries,
    PriceUnknown,
    Tariff,
    TariffVersion,
)
from nuage.errors import InvalidRequest

HOUR_S: Final = 3600.0
INDEX_HOURS: Final = 24  # a price is dear against the day that it is part of
LIVE: Final = "source"  # what is asked for live, in place of a file's name


class _Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    eur_per_mwh: float
    hours: tuple[int, int] | None = None
    months: tuple[int, ...] = ()
    weekdays: tuple[int, ...] = ()
    colour: DayColour | None = None


class _Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    valid_from: date
    rules: tuple[_Rule, ...]
    valid_until: date | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    versions: tuple[_Version, ...] = ()
    day_begins_hour: int = 0
    colours: str = ""
    day_ahead: str = ""


@dataclass(frozen=True, slots=True)
class SiteTariff:
    """What a site pays when: a contract, or a market's series.

    `read_s` is when what it depends on was fetched; a contract alone does not age.
    """

    name: str
    tariff: Tariff | None
    colours: Mapping[date, DayColour]
    series: PriceSeries | None
    read_s: float | None = None

    def at(self, instant_s: float) -> Price:
        """Return the price of an instant; one that was bridged names its rule.

        Raises:
            PriceUnknown: nothing covers the instant.
        """
        if self.series is not None:
            return self.series.at(instant_s, hole=HoleRule.SAME_HOUR_BEFORE)
        assert self.tariff is not None
        return self.tariff.at(instant_s, self.colours)

    def index(self, instant_s: float) -> float | None:
        """Return how dear an instant is within its 24 hours: 0 the cheapest, 1 the dearest.

        Rules on `price_index` hold whatever the tariff's level is. None where all hours cost
        the same, or the price is not known.
        """
        begin_s = instant_s - instant_s % HOUR_S
        prices = []
        for hour in range(INDEX_HOURS):
            try:
                prices.append(self.at(begin_s + hour * HOUR_S).eur_per_mwh)
            except PriceUnknown:
                continue
        try:
            now = self.at(instant_s).eur_per_mwh
        except PriceUnknown:
            return None
        low, high = min(prices, default=now), max(prices, default=now)
        return (now - low) / (high - low) if high > low else None

    def next_change_s(self, instant_s: float, within_s: float) -> float | None:
        """Return the next full hour at which the price changes, or None within that time."""
        try:
            now = self.at(instant_s).eur_per_mwh
        except PriceUnknown:
            now = None
        at_s = instant_s - instant_s % HOUR_S + HOUR_S
        while at_s <= instant_s + within_s:
            try:
                later = self.at(at_s).eur_per_mwh
            except PriceUnknown:
                later = None
            if later != now:
                return at_s
            at_s += HOUR_S
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFigures:
    """What public sources told the site: prices and Tempo's colours, and when they came."""

    series: PriceSeries | None = None
    series_read_s: float | None = None
    colours: Mapping[date, DayColour] = field(default_factory=dict)
    colours_read_s: float | None = None

    def market(self, name: str) -> SiteTariff:
        """Return the tariff of who pays the market's price; before an answer, none is known."""
        return SiteTariff(name, None, {}, self.series or PriceSeries(()), self.series_read_s)


def load_tariff(path: Path, live: LiveFigures | None = None) -> SiteTariff:
    """Read a tariff file; `live` stands for what it takes from public sources.

    Raises:
        InvalidRequest: there is none, or it is not as the module says; the message names where.
        CorruptData: the calendar or prices that it names are not what they should be.
    """
    try:
        document = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidRequest(f"tariff {path}: {error}", field="tariff_file") from error
    if bool(document.versions) == bool(document.day_ahead):
        raise InvalidRequest(f"tariff {path} has either versions or day_ahead", field="tariff_file")
    live = live or LiveFigures()
    if document.day_ahead == LIVE:
        return live.market(document.name)
    if document.day_ahead:
        series = parse_a44((path.parent / document.day_ahead).read_bytes())
        return SiteTariff(document.name, None, {}, series)
    colours: Mapping[date, DayColour] = {}
    read_s = None
    if document.colours == LIVE:
        colours, read_s = live.colours, live.colours_read_s
    elif document.colours:
        colours = parse_tempo((path.parent / document.colours).read_bytes())
    versions = tuple(
        TariffVersion(
            valid_from=version.valid_from,
            valid_until=version.valid_until,
            rules=tuple(_rule(rule) for rule in version.rules),
        )
        for version in sorted(document.versions, key=lambda v: v.valid_from, reverse=True)
    )
    tariff = Tariff(name=document.name, versions=versions, day_begins_hour=document.day_begins_hour)
    return SiteTariff(document.name, tariff, colours, None, read_s)


def _rule(rule: _Rule) -> CalendarRule:
    return CalendarRule(
        eur_per_mwh=rule.eur_per_mwh,
        months=frozenset(rule.months),
        weekdays=frozenset(rule.weekdays),
        hours=rule.hours,
        colour=rule.colour,
    )
