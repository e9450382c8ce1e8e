"""Reads a site's PDUs in the background, by Redfish or SNMP; nobody waits on a device."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from nuage.clock import Clock
from nuage.daemon.hardware import OpenPdu
from nuage.energy.meters import Reading
from nuage.errors import NuageError
from nuage.facility.ports import BranchState, RackPdu

PDU_EVERY_S: Final = 5.0
PDU_RETRY_S_MAX: Final = 60.0
BRANCHES_EVERY: Final = 120  # readings: limits change when somebody re-plugs a rack
PDU_SILENT_S: Final = 30.0
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
        self, rack: str, open_pdu: OpenPdu, clock: Clock, on_read: Callable[[PduSeen], None]
    ) -> None:
        self.seen = PduSeen(rack)
        self._open = open_pdu
        self._clock = clock
        self._on_read = on_read

    async def run(self) -> None:
        """Read; a PDU that is silent leaves the nodes' BMCs to speak."""
        wait_s = PDU_EVERY_S
        while True:
            try:
                async with self._open() as pdu:
                    wait_s = PDU_EVERY_S
                    await self._read_on(pdu)
            except NuageError as error:  # it could not be opened
                self._tell(error)
            await self._clock.sleep(wait_s)
            wait_s = min(2 * wait_s, PDU_RETRY_S_MAX)

    async def _read_on(self, pdu: RackPdu) -> None:
        round_number = 0
        while True:
            try:
                await self._read(pdu, with_branches=round_number % BRANCHES_EVERY == 0)
                round_number += 1
            except NuageError as error:
                self._tell(error)
            await self._clock.sleep(PDU_EVERY_S)

    def _tell(self, error: NuageError) -> None:
        if self.seen.failure != error.message:
            log.warning("PDU not read", pdu=self.seen.rack, error=error.message)
        self.seen.failure = error.message

    async def _read(self, pdu: RackPdu, *, with_branches: bool) -> None:
        seen = self.seen
        if with_branches:
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
