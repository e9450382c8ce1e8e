"""A controller's and an agent's way to BMCs and PDUs: their logins, and a node's own meter."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from nuage.clock import Clock
from nuage.errors import UNREADABLE, InvalidRequest, NuageError
from nuage.facility.ports import PowerControl, PowerState, RackPdu
from nuage.facility.redfish import Login, RedfishConnection, Trust
from nuage.facility.redfish_node import RedfishNode
from nuage.facility.redfish_pdu import RedfishPdu
from nuage.facility.snmp import open_snmp_pdu
from nuage.facility.snmp_transport import SNMP_PORT, Community, PysnmpTransport, User
from nuage.model.infrastructure import Node, PduKind, pdu_kind
from nuage.trust.files import require_private
from nuage.vnode.sed import PowerReading

METER_EVERY_S: Final = 5.0
POLL_S: Final = 1.0  # a BMC or PDU changes its mind no faster
LoginKind = TypeVar("LoginKind", bound=msgspec.Struct)
OpenBmc = Callable[[Node], AbstractAsyncContextManager[PowerControl]]
OpenPdu = Callable[[], AbstractAsyncContextManager[RackPdu]]


class BmcLogin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``bmc_login_file`` holds; the file is refused unless it is 0600, and never logged."""

    user: str
    password: str
    certificate: str = ""
    fingerprint: str = ""


def read_login(path: Path, kind: type[LoginKind], *, field: str) -> LoginKind:
    """Return the login in `path`, read anew each time: it may be changed without a restart.

    Raises:
        Forbidden: others may read the file.
        InvalidRequest: the file is missing or not as `kind` says; names `field`.
    """
    try:
        require_private(path)
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, *UNREADABLE) as error:
        raise InvalidRequest(f"{path}: {error}", field=field) from None


def connect(url: str, login_file: Path, clock: Clock) -> RedfishConnection:
    """Return a connection to a BMC with the login in `login_file`.

    Raises:
        Forbidden: others may read the file.
        InvalidRequest: the file is missing or not as `BmcLogin` says.
    """
    login = read_login(login_file, BmcLogin, field="bmc_login_file")
    trust = Trust(
        certificate=Path(login.certificate) if login.certificate else None,
        fingerprint=login.fingerprint,
    )
    credentials = Login(user=login.user, password=login.password)
    return RedfishConnection(url, credentials, clock, trust=trust)


def redfish_bmcs(login_file: Path | None, clock: Clock) -> OpenBmc:
    """Return what opens the BMC of a node."""

    @contextlib.asynccontextmanager
    async def open_bmc(node: Node) -> AsyncIterator[PowerControl]:
        if login_file is None or not node.bmc_url:
            raise InvalidRequest(
                f"node {node.name} has no BMC that this site may use", field="bmc_login_file"
            )
        async with connect(node.bmc_url, login_file, clock) as connection:
            yield RedfishNode(connection, clock)

    return open_bmc


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


async def comes_true(ask: Callable[[], Awaitable[bool]], clock: Clock, *, within_s: float) -> bool:
    """Tell whether a device gets there in time; it is asked each second."""
    deadline_s = clock.monotonic_s() + within_s
    while not await ask():
        if clock.monotonic_s() >= deadline_s:
            return False
        await clock.sleep(POLL_S)
    return True


async def is_off(machine: PowerControl) -> bool:
    """Tell whether a machine is off by its BMC."""
    return await machine.power_state() is PowerState.OFF


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


class BmcMeter:
    """The node's own draw, read from its BMC in the background (`vnode.sed.Meter`)."""

    def __init__(self, url: str, login_file: Path, clock: Clock) -> None:
        self._url = url
        self._login_file = login_file
        self._clock = clock
        self._last: PowerReading | None = None

    def __call__(self) -> PowerReading | None:
        """Return the last reading; None before the first, or once it is stale."""
        last = self._last
        if last is None or self._clock.now_s() - last.read_s > 4 * METER_EVERY_S:
            return None
        return last

    async def run(self) -> None:
        """Read for ever; a silent BMC leaves the model to speak."""
        async with connect(self._url, self._login_file, self._clock) as connection:
            machine = RedfishNode(connection, self._clock)
            while True:
                with contextlib.suppress(NuageError):
                    reading = await machine.read()
                    self._last = PowerReading(
                        watts=reading.power_watts, source="bmc", read_s=self._clock.now_s()
                    )
                await asyncio.sleep(METER_EVERY_S)
