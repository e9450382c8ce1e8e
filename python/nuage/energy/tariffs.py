"""What a kilowatt-hour costs when: dated data, never constants.

Two kinds. A `Tariff` is a contract: dated versions, each a list of calendar expressions
(months, weekdays, hours, colour of the day) with a price, the first that matches wins.
A `PriceSeries` is a market: intervals with a price. Both answer in EUR per MWh for an
instant in seconds since the epoch; local time and its two odd days a year (23 and 25 hours)
are left to the time-zone database.

Holes: an instant that nothing covers is refused, or bridged by a rule the caller names; a
bridged price says so.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from enum import Enum
from typing import Final
from zoneinfo import ZoneInfo

from nuage.errors import CorruptData, InvalidRequest

PARIS: Final = ZoneInfo("Europe/Paris")
HOLD_S_MAX: Final = 2 * 3600.0  # how long a market's last price may stand for a missing one


class PriceUnknown(CorruptData):
    """No price covers the instant, and no rule allowed to bridge it."""

    code = "price_unknown"


class HoleRule(Enum):
    """What to do where a series has a hole."""

    REFUSE = "refuse"
    HOLD_LAST = "hold-last"  # the price before, for at most HOLD_S_MAX
    SAME_HOUR_BEFORE = "same-hour-before"  # the day before, then the week before


@dataclass(frozen=True, slots=True)
class Price:
    """A price at an instant; `bridged_by` names the hole rule that made it, or is empty."""

    eur_per_mwh: float
    bridged_by: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """A market's price over [begin, end)."""

    begin_s: float
    end_s: float
    eur_per_mwh: float


class PriceSeries:
    """Intervals of a market, sorted. Overlaps are refused; holes are allowed and known."""

    def __init__(self, intervals: Iterable[Interval]) -> None:
        self.intervals = tuple(sorted(intervals, key=lambda interval: interval.begin_s))
        for before, after in zip(self.intervals, self.intervals[1:], strict=False):
            if after.begin_s < before.end_s:
                raise CorruptData("two prices for the same instant", where=f"{after.begin_s:.0f}")
        self._begins = [interval.begin_s for interval in self.intervals]

    def at(self, instant_s: float, *, hole: HoleRule = HoleRule.REFUSE) -> Price:
        """Return the price at an instant.

        Raises:
            PriceUnknown: a hole that `hole` cannot bridge.
        """
        found = self._covering(instant_s)
        if found is not None:
            return Price(found.eur_per_mwh)
        if hole is HoleRule.HOLD_LAST:
            index = bisect_right(self._begins, instant_s) - 1
            if index >= 0 and instant_s - self.intervals[index].end_s < HOLD_S_MAX:
                return Price(self.intervals[index].eur_per_mwh, hole.value)
        if hole is HoleRule.SAME_HOUR_BEFORE:
            local = datetime.fromtimestamp(instant_s, PARIS)
            for days in (1, 7):  # by the clock on the wall, so an odd day shifts nothing
                before = self._covering((local - timedelta(days=days)).timestamp())
                if before is not None:
                    return Price(before.eur_per_mwh, hole.value)
        raise PriceUnknown(
            f"no price for {instant_s:.0f}",
            where="price series",
            hint="the market has not published it, or a download failed",
        )

    def _covering(self, instant_s: float) -> Interval | None:
        index = bisect_right(self._begins, instant_s) - 1
        if index < 0 or instant_s >= self.intervals[index].end_s:
            return None
        return self.intervals[index]


class DayColour(Enum):
    """Tempo's colours: 300 blue, 43 white and 22 red days a year."""

    BLUE = "blue"
    WHITE = "white"
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalendarRule:
    """When a price holds; empty means any. Hours are local, [from, to), and may cross midnight."""

    eur_per_mwh: float
    months: frozenset[int] = frozenset()
    weekdays: frozenset[int] = frozenset()  # Monday is 0
    hours: tuple[int, int] | None = None
    colour: DayColour | None = None

    def matches(self, local: datetime, colour: DayColour | None) -> bool:
        """Tell whether the rule holds at a local time on a day of that colour."""
        if self.months and local.month not in self.months:
            return False
        if self.weekdays and local.weekday() not in self.weekdays:
            return False
        if self.colour is not None and self.colour is not colour:
            return False
        if self.hours is None:
            return True
        begin, end = self.hours
        if begin <= end:
            return begin <= local.hour < end
        return local.hour >= begin or local.hour < end


@dataclass(frozen=True, slots=True, kw_only=True)
class TariffVersion:
    """The rules of a tariff from one day (local) up to, not including, another."""

    valid_from: date
    rules: tuple[CalendarRule, ...]
    valid_until: date | None = None

    def covers(self, day: date) -> bool:
        """Tell whether the version holds on a day."""
        return self.valid_from <= day and (self.valid_until is None or day < self.valid_until)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """A contract's prices over the years. `day_begins_hour` is when a colour's day begins."""

    name: str
    versions: tuple[TariffVersion, ...]
    zone: tzinfo = PARIS
    day_begins_hour: int = 0

    def __post_init__(self) -> None:
        if not self.versions:
            raise InvalidRequest("a tariff has a version", field="versions")

    def at(self, instant_s: float, colours: Mapping[date, DayColour] | None = None) -> Price:
        """Return the price at an instant; `colours` names the days that have one.

        Raises:
            PriceUnknown: no version holds that day, or no rule matches; the message says which.
        """
        local = datetime.fromtimestamp(instant_s, self.zone)
        version = next((v for v in self.versions if v.covers(local.date())), None)
        if version is None:
            raise PriceUnknown(
                f"tariff {self.name} has no version for {local.date()}", where=self.name
            )
        colour = (colours or {}).get(self.colour_day(instant_s))
        for rule in version.rules:
            if rule.matches(local, colour):
                return Price(rule.eur_per_mwh)
        told = "" if colour is None else f", a {colour.value} day"
        raise PriceUnknown(
            f"no rule of {self.name} holds at {local.isoformat()}{told}",
            where=self.name,
            hint="a Tempo tariff needs the colour of the day; fetch the calendar",
        )

    def colour_day(self, instant_s: float) -> date:
        """Return the day whose colour holds at an instant."""
        local = datetime.fromtimestamp(instant_s, self.zone)
        day = local.date()
        return day - timedelta(days=1) if local.hour < self.day_begins_hour else day
