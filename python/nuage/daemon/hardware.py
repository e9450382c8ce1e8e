"""A controller's and an agent's way to BMCs: fencing and a node's own meter."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import structlog

from nuage.clock import Clock
from nuage.errors import UNREADABLE, InvalidRequest, NuageError, TimedOut
from nuage.facility.ports import PowerControl, PowerState
from nuage.facility.redfish import Login, RedfishConnection, Trust
from nuage.facility.redfish_node import RedfishNode
from nuage.ids import NodeId
from nuage.model.infrastructure import Node
from nuage.trust.files import require_private
from nuage.vnode.sed import PowerReading

METER_EVERY_S: Final = 5.0
OFF_TIMEOUT_S: Final = 20.0
OFF_POLL_S: Final = 1.0
LoginKind = TypeVar("LoginKind", bound=msgspec.Struct)
OpenBmc = Callable[[Node], AbstractAsyncContextManager[PowerControl]]
log = structlog.get_logger("hardware")


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


class RedfishFence:
    """Switches nodes off through their BMCs, and on again (`guardian.Fence`, `SwitchOn`)."""

    def __init__(self, open_bmc: OpenBmc, clock: Clock) -> None:
        self._open_bmc = open_bmc
        self._clock = clock
        self._switched_off: set[NodeId] = set()

    async def __call__(self, node: Node) -> bool:
        """Switch a node off and return whether its BMC confirms it."""
        async with self._open_bmc(node) as machine:
            if await machine.power_state() is PowerState.OFF:
                return True
            self._switched_off.add(node.node_id)
            await machine.power_off(force=True)
            deadline_s = self._clock.monotonic_s() + OFF_TIMEOUT_S
            while await machine.power_state() is not PowerState.OFF:
                if self._clock.monotonic_s() >= deadline_s:
                    raise TimedOut(f"{node.name} to be off", after_s=OFF_TIMEOUT_S)
                await self._clock.sleep(OFF_POLL_S)
            return True

    async def switch_on(self, node: Node) -> bool:
        """Switch a node on that was switched off here; return False for one that was off before."""
        if node.node_id not in self._switched_off:
            return False
        async with self._open_bmc(node) as machine:
            await machine.power_on()
        self._switched_off.discard(node.node_id)
        return True


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
