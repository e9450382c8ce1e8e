"""A site's contract for electricity as a file: dated versions in TOML, read anew when it changes.

::

    name = "two rates"
    day_begins_hour = 0             # 6 for Tempo
    colours = "tempo.json"          # Tempo only: an answer of RTE's calendar, beside this file

    [[versions]]
    valid_from = 2025-02-01
    [[versions.rules]]              # the first rule that matches an hour is its price
    eur_per_mwh = 206.8
    hours = [6, 22]                 # local, [from, to), may cross midnight
    months = [11, 12, 1, 2, 3]      # optional, as are weekdays (Monday is 0) and colour

Instead of versions, `day_ahead = "prices.xml"` names an answer of ENTSO-E (A44) beside the file.
A day-ahead price that is missing is bridged by the same hour of the day before, and says so.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
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
    """What a site pays when: a contract, or a market's series."""

    name: str
    tariff: Tariff | None
    colours: Mapping[date, DayColour]
    series: PriceSeries | None

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


def load_tariff(path: Path) -> SiteTariff:
    """Read a tariff file.

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
    if document.day_ahead:
        series = parse_a44((path.parent / document.day_ahead).read_bytes())
        return SiteTariff(document.name, None, {}, series)
    colours = {}
    if document.colours:
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
    return SiteTariff(document.name, tariff, colours, None)


def _rule(rule: _Rule) -> CalendarRule:
    return CalendarRule(
        eur_per_mwh=rule.eur_per_mwh,
        months=frozenset(rule.months),
        weekdays=frozenset(rule.weekdays),
        hours=rule.hours,
        colour=rule.colour,
    )
