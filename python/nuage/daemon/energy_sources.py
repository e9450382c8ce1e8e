"""Where a site's figures come from: the air outside, the price, the carbon of the grid.

Whoever wants a figure takes the best that is known; nothing here waits. Every figure names its
source and, where it ages, when it was read; what cannot be had is None, and nothing is concluded
from it.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from nuage.clock import Clock
from nuage.daemon.configuration import EnergyConfiguration
from nuage.energy.public_sources import colours_of, series_of, value_at
from nuage.energy.tariff_file import LiveFigures, SiteTariff, load_tariff
from nuage.energy.tariffs import PriceUnknown
from nuage.energy.weather import WeatherNormal, nearest_zone, weather_normal
from nuage.errors import NuageError
from nuage.model.energy import EnergySource
from nuage.model.infrastructure import Datacenter

OUTSIDE_FILE_AGE_S: Final = 7200.0
CARBON_AGE_S: Final = 4 * 3600.0  # the mix of a grid turns within hours
FindSource = Callable[[str], EnergySource | None]
log = structlog.get_logger("energy")


@dataclass(frozen=True, slots=True)
class Figure:
    """A value, where it comes from, and when it was read (None: it does not age)."""

    value: float | None
    source: str = ""
    read_s: float | None = None


class Outside:
    """The air outside a site, now and as it is foreseen."""

    def __init__(
        self,
        configuration: EnergyConfiguration,
        datacenter: Datacenter,
        clock: Clock,
        find_source: FindSource,
    ) -> None:
        self._file = configuration.outside_file
        self._clock = clock
        self._find_source = find_source
        zone = configuration.climate_zone
        if not zone and (datacenter.latitude_deg or datacenter.longitude_deg):
            zone = nearest_zone(datacenter.latitude_deg, datacenter.longitude_deg)
        self._normal: WeatherNormal | None = weather_normal(zone) if zone else None

    def now(self, probe: Figure | None) -> Figure:
        """Return the best that is known."""
        if probe is not None:
            return probe
        now_s = self._clock.now_s()
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                read_s = self._file.stat().st_mtime
                if now_s - read_s <= OUTSIDE_FILE_AGE_S:
                    return Figure(float(self._file.read_text()), "file", read_s)
        kept = self._find_source("weather")
        hour = value_at(kept, now_s)
        if kept is not None and hour is not None:
            return Figure(hour.value, kept.source, kept.fetched_s)
        normal = self.normal_at(now_s)
        if normal is None or self._normal is None:
            return Figure(None)
        return Figure(normal, f"normal of {self._normal.zone}")

    def dew_point_c(self) -> float | None:
        """Return the dew point now, which only a forecast tells."""
        hour = value_at(self._find_source("weather"), self._clock.now_s())
        return None if hour is None else hour.dew_point_c

    def normal_at(self, at_s: float) -> float | None:
        """Return the typical temperature of a month and hour (solar time, as the data)."""
        if self._normal is None:
            return None
        moment = time.gmtime(at_s)
        return self._normal.mean_dry_bulb_c[moment.tm_mon - 1][moment.tm_hour]

    def foreseen(self, at_s: float, now_celsius: float | None) -> float | None:
        """Return what is to be expected.

        A forecast where there is one, else the normal; today's difference from it goes on.
        """
        there, here = (self._expected(moment) for moment in (at_s, self._clock.now_s()))
        if there is None or here is None:
            return now_celsius
        return there if now_celsius is None else there + now_celsius - here

    def _expected(self, at_s: float) -> float | None:
        hour = value_at(self._find_source("weather"), at_s)
        return self.normal_at(at_s) if hour is None else hour.value


class Price:
    """The site's contract, read anew when its file or what it is indexed on changes."""

    def __init__(self, path: Path | None, find_source: FindSource) -> None:
        self._path = path
        self._find_source = find_source
        self._seen: tuple[float | None, ...] = ()
        self.tariff: SiteTariff | None = None
        self.failure = ""

    def now(self, at_s: float) -> Figure:
        """Return the price of an instant."""
        self._load()
        if self.tariff is None:
            return Figure(None, self.failure)
        try:
            price = self.tariff.at(at_s)
        except PriceUnknown as error:
            return Figure(None, error.message)
        note = f", {price.bridged_by}" if price.bridged_by else ""
        return Figure(price.eur_per_mwh, f"{self.tariff.name}{note}", self.tariff.read_s)

    def index(self, at_s: float) -> float | None:
        """Return how dear an instant is within its day."""
        return None if self.tariff is None else self.tariff.index(at_s)

    def next_change_s(self, at_s: float, within_s: float) -> float | None:
        """Return when the price changes next."""
        return None if self.tariff is None else self.tariff.next_change_s(at_s, within_s)

    def _load(self) -> None:
        prices, calendar = self._find_source("day-ahead"), self._find_source("tempo")
        fetched_s = [None if kept is None else kept.fetched_s for kept in (prices, calendar)]
        try:
            changed_s = None if self._path is None else self._path.stat().st_mtime
            if (changed_s, *fetched_s) == self._seen:
                return
            self._seen = (changed_s, *fetched_s)
            live = LiveFigures(
                series=None if prices is None else series_of(prices),
                series_read_s=None if prices is None else prices.fetched_s,
                colours={} if calendar is None else colours_of(calendar),
                colours_read_s=None if calendar is None else calendar.fetched_s,
            )
            if self._path is not None:
                self.tariff = load_tariff(self._path, live)
            elif prices is not None:
                self.tariff = live.market(prices.source)
            self.failure = ""
        except (OSError, NuageError) as error:
            # What was read before holds on; a file that is being written is read next time.
            self.failure = getattr(error, "message", str(error))
            log.warning("tariff not read", path=str(self._path), error=self.failure)


class Carbon:
    """Carbon of the grid: RTE's éCO2mix if it is asked for, else the figure configured."""

    def __init__(self, configuration: EnergyConfiguration, find_source: FindSource) -> None:
        self._constant = configuration.carbon_g_per_kwh
        self._find_source = find_source

    def now(self, at_s: float) -> Figure:
        """Return the last quarter hour that is not too old, else the constant."""
        kept = self._find_source("eco2mix")
        if kept is not None:
            past = [value for value in kept.values if value.begin_s <= at_s]
            if past and at_s - past[-1].begin_s <= CARBON_AGE_S:
                return Figure(past[-1].value, kept.source, past[-1].begin_s)
        return Figure(self._constant, "" if self._constant is None else "configured")
