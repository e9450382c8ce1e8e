"""Reads a site's PDUs in the background, by Redfish or SNMP; nobody waits on a device."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import structlog

from nuage.clock import Clock
from nuage.daemon.hardware import connect, read_login
from nuage.energy.meters import Reading
from nuage.errors import InvalidRequest, NuageError
from nuage.facility.ports import BranchState, RackPdu
from nuage.facility.redfish_pdu import RedfishPdu
from nuage.facility.snmp import open_snmp_pdu
from nuage.facility.snmp_transport import SNMP_PORT, Community, PysnmpTransport, User
from nuage.model.infrastructure import PduKind, pdu_kind

PDU_EVERY_S: Final = 5.0
PDU_RETRY_S_MAX: Final = 60.0
BRANCHES_EVERY: Final = 120  # readings: limits change when somebody re-plugs a rack
PDU_SILENT_S: Final = 30.0
log = structlog.get_logger("energy")

OpenPdu = Callable[[], AbstractAsyncContextManager[RackPdu]]


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


class SnmpLogin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``snmp_login_file`` holds: version 3's user, or version 2c's community.

    The file is refused unless it is 0600, and never logged.
    """

    user: str = ""
    authentication_key: str = ""
    privacy_key: str = ""
    community: str = ""

    @property
    def credentials(self) -> Community | User:
        """Return them as the driver takes them."""
        if self.community:
            return Community(name=self.community)
        return User(
            name=self.user,
            authentication_key=self.authentication_key,
            privacy_key=self.privacy_key,
        )


@dataclass(frozen=True, slots=True)
class PduLogins:
    """Where the secrets of a site's PDUs lie."""

    redfish_file: Path | None
    snmp_file: Path | None

    def opener(self, url: str, clock: Clock) -> OpenPdu:
        """Return what opens the PDU at `url`, of whichever kind.

        Raises:
            InvalidRequest: the address is of no kind, or there is no login for its kind.
        """
        kind = pdu_kind(url)
        file = self.snmp_file if kind is PduKind.SNMP else self.redfish_file
        if file is None:
            needed = "energy.snmp_login_file" if kind is PduKind.SNMP else "bmc_login_file"
            raise InvalidRequest(f"{url} needs a login", field=needed)
        if kind is PduKind.SNMP:
            return lambda: _open_snmp(url, file, clock)
        return lambda: _open_redfish(url, file, clock)


@contextlib.asynccontextmanager
async def _open_redfish(url: str, login_file: Path, clock: Clock) -> AsyncIterator[RackPdu]:
    async with connect(url, login_file, clock) as connection:
        yield RedfishPdu(connection, clock)


@contextlib.asynccontextmanager
async def _open_snmp(url: str, login_file: Path, clock: Clock) -> AsyncIterator[RackPdu]:
    login = read_login(login_file, SnmpLogin, field="energy.snmp_login_file")
    place = urlsplit(url)
    transport = PysnmpTransport(
        place.hostname or "", login.credentials, port=place.port or SNMP_PORT
    )
    try:
        yield await open_snmp_pdu(transport, clock)
    finally:
        transport.close()


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
