"""Where a site's figures come from: PDUs, weather, tariff, carbon. Reads in the background.

Whoever wants a figure takes the last one that is believed; nothing here waits on a device. Every
figure names its source; what cannot be had is None, and nothing is concluded from it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
import structlog

from nuage.clock import Clock
from nuage.daemon.configuration import EnergyConfiguration
from nuage.daemon.hardware import connect
from nuage.energy.connectors import CarbonRecord, eco2mix_url, fetch, parse_eco2mix
from nuage.energy.meters import Reading
from nuage.energy.tariff_file import SiteTariff, load_tariff
from nuage.energy.tariffs import PriceUnknown
from nuage.energy.weather import WeatherNormal, nearest_zone, weather_normal
from nuage.errors import NuageError
from nuage.facility.ports import BranchState
from nuage.facility.redfish_pdu import RedfishPdu
from nuage.model.infrastructure import Datacenter

PDU_EVERY_S: Final = 5.0
BRANCHES_EVERY: Final = 120  # readings: limits change when somebody re-plugs a rack
PDU_SILENT_S: Final = 30.0
OUTSIDE_FILE_AGE_S: Final = 7200.0
ECO2MIX_EVERY_S: Final = 900.0
ECO2MIX_AGE_S: Final = 4 * 3600.0
ECO2MIX_FILE: Final = "eco2mix.json"
log = structlog.get_logger("energy")


@dataclass(frozen=True, slots=True)
class OutletSeen:
    """An outlet as read last."""

    reading: Reading | None
    energy_kwh: float | None


@dataclass(slots=True)
class PduSeen:
    """A PDU as read last. Outlets by number, as `Node.outlets` names them after the rack."""

    rack: str
    read_s: float = 0.0
    watts: float = 0.0
    energy_kwh: float | None = None
    outside_celsius: float | None = None
    outlets: dict[str, OutletSeen] = field(default_factory=dict)
    branches: tuple[BranchState, ...] = ()
    failure: str = ""

    def is_silent(self, now_s: float) -> bool:
        """Tell whether it was not read for longer than a reading may be believed."""
        return now_s - self.read_s > PDU_SILENT_S


class PduReader:
    """Reads one PDU for ever; `on_read` hears of each reading."""

    def __init__(
        self,
        rack: str,
        url: str,
        login_file: Path,
        clock: Clock,
        on_read: Callable[[PduSeen], None],
    ) -> None:
        self.seen = PduSeen(rack)
        self._url = url
        self._login_file = login_file
        self._clock = clock
        self._on_read = on_read

    async def run(self) -> None:
        """Read; a PDU that is silent leaves the nodes' BMCs to speak."""
        async with connect(self._url, self._login_file, self._clock) as connection:
            pdu = RedfishPdu(connection, self._clock)
            round_number = 0
            while True:
                try:
                    await self._read(pdu, with_branches=round_number % BRANCHES_EVERY == 0)
                    round_number += 1
                except NuageError as error:
                    if self.seen.failure != error.message:
                        log.warning("PDU not read", pdu=self.seen.rack, error=error.message)
                    self.seen.failure = error.message
                await self._clock.sleep(PDU_EVERY_S)

    async def _read(self, pdu: RedfishPdu, *, with_branches: bool) -> None:
        seen = self.seen
        if with_branches or not seen.branches:
            seen.branches = await pdu.branches()
        outlets = await pdu.outlets()
        state = await pdu.state()
        seen.outlets = {
            outlet.outlet_id: OutletSeen(outlet.reading, outlet.energy_kwh) for outlet in outlets
        }
        seen.watts, seen.energy_kwh = state.reading.power_watts, state.energy_kwh
        seen.outside_celsius = state.outside_celsius
        seen.read_s = self._clock.now_s()
        seen.failure = ""
        self._on_read(seen)


@dataclass(frozen=True, slots=True)
class Figure:
    """A value and where it comes from."""

    value: float | None
    source: str = ""


class Outside:
    """The air outside a site, now and as it is foreseen."""

    def __init__(
        self, configuration: EnergyConfiguration, datacenter: Datacenter, clock: Clock
    ) -> None:
        self._file = configuration.outside_file
        self._clock = clock
        zone = configuration.climate_zone
        if not zone and (datacenter.latitude_deg or datacenter.longitude_deg):
            zone = nearest_zone(datacenter.latitude_deg, datacenter.longitude_deg)
        self._normal: WeatherNormal | None = weather_normal(zone) if zone else None

    def now(self, probe_celsius: float | None) -> Figure:
        """Return the best that is known."""
        if probe_celsius is not None:
            return Figure(probe_celsius, "PDU probe")
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                age_s = self._clock.now_s() - self._file.stat().st_mtime
                if age_s <= OUTSIDE_FILE_AGE_S:
                    return Figure(float(self._file.read_text()), "file")
        normal = self.normal_at(self._clock.now_s())
        if normal is None or self._normal is None:
            return Figure(None)
        return Figure(normal, f"normal of {self._normal.zone}")

    def normal_at(self, at_s: float) -> float | None:
        """Return the typical temperature of a month and hour (solar time, as the data)."""
        if self._normal is None:
            return None
        moment = time.gmtime(at_s)
        return self._normal.mean_dry_bulb_c[moment.tm_mon - 1][moment.tm_hour]

    def foreseen(self, at_s: float, now_celsius: float | None) -> float | None:
        """Return what is to be expected: today's difference from the normal goes on."""
        there, here = self.normal_at(at_s), self.normal_at(self._clock.now_s())
        if there is None or here is None:
            return now_celsius
        return there if now_celsius is None else there + now_celsius - here


class Price:
    """The site's contract, read anew when its file changes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._changed_s = -1.0
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
        return Figure(price.eur_per_mwh, f"{self.tariff.name}{note}")

    def index(self, at_s: float) -> float | None:
        """Return how dear an instant is within its day."""
        return None if self.tariff is None else self.tariff.index(at_s)

    def next_change_s(self, at_s: float, within_s: float) -> float | None:
        """Return when the price changes next."""
        return None if self.tariff is None else self.tariff.next_change_s(at_s, within_s)

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            changed_s = self._path.stat().st_mtime
            if changed_s == self._changed_s:
                return
            self._changed_s = changed_s
            self.tariff, self.failure = load_tariff(self._path), ""
        except (OSError, NuageError) as error:
            # What was read before holds on; a file that is being written is read next time.
            self.failure = getattr(error, "message", str(error))
            log.warning("tariff not read", path=str(self._path), error=self.failure)


class Carbon:
    """Carbon of the grid: RTE's éCO2mix if it is asked for, else the figure configured."""

    def __init__(self, configuration: EnergyConfiguration, state_dir: Path, clock: Clock) -> None:
        self._constant = configuration.carbon_g_per_kwh
        self._file = state_dir / ECO2MIX_FILE
        self._clock = clock
        self._records: tuple[CarbonRecord, ...] = ()
        with contextlib.suppress(OSError, NuageError):
            self._records = parse_eco2mix(self._file.read_bytes())

    def now(self, at_s: float) -> Figure:
        """Return the last record that is not too old, else the constant."""
        past = [record for record in self._records if record.begin_s <= at_s]
        if past and at_s - past[-1].begin_s <= ECO2MIX_AGE_S:
            return Figure(past[-1].carbon_g_per_kwh, "éCO2mix")
        return Figure(self._constant, "" if self._constant is None else "configured")

    async def run(self, on_change: Callable[[], None]) -> None:
        """Ask RTE for ever; the last answer is kept on disk for the next start."""
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    answer = await fetch(session, eco2mix_url())
                    self._records = parse_eco2mix(answer)
                    await asyncio.to_thread(self._file.write_bytes, answer)
                    on_change()
                except NuageError as error:
                    log.warning("éCO2mix not read", error=error.message)
                await self._clock.sleep(ECO2MIX_EVERY_S)
