"""A controller's and an agent's way to BMCs: fencing and a node's own meter."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.clock import Clock, SystemClock
from nuage.errors import InvalidRequest, NuageError
from nuage.facility.ports import PowerState
from nuage.facility.redfish import Login, RedfishConnection, Trust
from nuage.facility.redfish_node import RedfishNode
from nuage.model.infrastructure import Node
from nuage.vnode.sed import PowerReading

METER_EVERY_S: Final = 5.0
OFF_TIMEOUT_S: Final = 20.0
log = structlog.get_logger("hardware")


class BmcLogin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``bmc_login_file`` holds; the file is 0600 and never logged."""

    user: str
    password: str
    certificate: str = ""
    fingerprint: str = ""


def connect(url: str, login_file: Path, clock: Clock) -> RedfishConnection:
    """Return a connection to a BMC with the login in `login_file`.

    Raises:
        InvalidRequest: the file is missing or not as `BmcLogin` says.
    """
    try:
        login = msgspec.json.decode(login_file.read_bytes(), type=BmcLogin)
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidRequest(f"{login_file}: {error}", field="bmc_login_file") from None
    trust = Trust(
        certificate=Path(login.certificate) if login.certificate else None,
        fingerprint=login.fingerprint,
    )
    credentials = Login(user=login.user, password=login.password)
    return RedfishConnection(url, credentials, clock, trust=trust)


def redfish_fence(
    login_file: Path | None, clock: Clock | None = None
) -> Callable[[Node], Awaitable[bool]]:
    """Return what switches a node off and says whether its BMC confirms it."""
    used = clock or SystemClock()

    async def fence(node: Node) -> bool:
        if login_file is None or not node.bmc_url:
            return False
        async with connect(node.bmc_url, login_file, used) as connection:
            machine = RedfishNode(connection, used)
            if await machine.power_state() is PowerState.OFF:
                return True
            await machine.power_off(force=True)
            await machine.wait_for(PowerState.OFF, timeout_s=OFF_TIMEOUT_S)
            return True

    return fence


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
