"""A machine through its BMC: power, boot device, watts.

Paths are discovered once (DSP0266: from the service root, never guessed). Power is read
from `EnvironmentMetrics` and, on servers older than 2021, from `Power`'s first control.
"""

from typing import Final

import msgspec

from nuage.clock import Clock
from nuage.energy.meters import MeterSource, Reading
from nuage.errors import NotFound, RemoteProtocolError
from nuage.facility.plausible import believable_watts
from nuage.facility.ports import BootDevice, PowerState
from nuage.facility.redfish import ROOT, Link, Members, RedfishConnection

_STATES: Final = {
    "On": PowerState.ON, "Off": PowerState.OFF, "Paused": PowerState.ON,
    "PoweringOn": PowerState.TURNING_ON, "PoweringOff": PowerState.TURNING_OFF,
}  # fmt: skip
_TARGETS: Final = {
    BootDevice.DEFAULT: "None", BootDevice.NETWORK: "Pxe", BootDevice.DISK: "Hdd",
    BootDevice.CD: "Cd", BootDevice.HTTP: "UefiHttp",
}  # fmt: skip
_OFF: Final = (PowerState.OFF, PowerState.TURNING_OFF)


class _Root(msgspec.Struct, frozen=True):
    systems: Link | None = msgspec.field(name="Systems", default=None)


class _Action(msgspec.Struct, frozen=True):
    target: str
    allowed: tuple[str, ...] = msgspec.field(name="ResetType@Redfish.AllowableValues", default=())


class _Actions(msgspec.Struct, frozen=True):
    reset: _Action | None = msgspec.field(name="#ComputerSystem.Reset", default=None)


class _SystemLinks(msgspec.Struct, frozen=True):
    chassis: tuple[Link, ...] = msgspec.field(name="Chassis", default=())


class _System(msgspec.Struct, frozen=True):
    power_state: str = msgspec.field(name="PowerState", default="")
    actions: _Actions = msgspec.field(name="Actions", default_factory=_Actions)
    links: _SystemLinks = msgspec.field(name="Links", default_factory=_SystemLinks)


class _Chassis(msgspec.Struct, frozen=True):
    environment: Link | None = msgspec.field(name="EnvironmentMetrics", default=None)
    power: Link | None = msgspec.field(name="Power", default=None)


class Excerpt(msgspec.Struct, frozen=True):
    """A sensor's value where another resource shows it."""

    reading: float | None = msgspec.field(name="Reading", default=None)


class Environment(msgspec.Struct, frozen=True):
    """`EnvironmentMetrics` and `PowerDistributionMetrics`, what we read of them."""

    power: Excerpt | None = msgspec.field(name="PowerWatts", default=None)
    energy: Excerpt | None = msgspec.field(name="EnergykWh", default=None)
    temperature: Excerpt | None = msgspec.field(name="TemperatureCelsius", default=None)


class _Control(msgspec.Struct, frozen=True):
    watts: float | None = msgspec.field(name="PowerConsumedWatts", default=None)


class _Power(msgspec.Struct, frozen=True):
    controls: tuple[_Control, ...] = msgspec.field(name="PowerControl", default=())


class RedfishNode:
    """`PowerControl` and `Meter` of one machine."""

    def __init__(self, connection: RedfishConnection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._system_path = ""
        self._chassis: _Chassis | None = None

    @property
    def url(self) -> str:
        """Return the BMC's URL, which names it in errors."""
        return self._connection.url

    async def power_state(self) -> PowerState:
        """Return the state now."""
        said = (await self._system()).power_state
        try:
            return _STATES[said]
        except KeyError:
            raise RemoteProtocolError(f"{self.url} tells PowerState {said!r}") from None

    async def power_on(self) -> None:
        """Switch on, unless it is on."""
        system = await self._system()
        if _STATES.get(system.power_state) is not PowerState.ON:
            await self._reset(system, ("On", "ForceOn"))

    async def power_off(self, *, force: bool = False) -> None:
        """Shut down, or cut the power; nothing for a machine that is off."""
        system = await self._system()
        state = _STATES.get(system.power_state)
        if state is PowerState.OFF or (state is PowerState.TURNING_OFF and not force):
            return
        await self._reset(system, ("ForceOff",) if force else ("GracefulShutdown",))

    async def power_cycle(self) -> None:
        """Cut the power and give it back; a machine that is off is switched on."""
        system = await self._system()
        if _STATES.get(system.power_state) in _OFF:
            await self._reset(system, ("On", "ForceOn"))
        else:
            await self._reset(system, ("PowerCycle", "ForceRestart"))

    async def set_boot_device(self, device: BootDevice, *, once: bool = True) -> None:
        """Say what to boot from."""
        await self._system()
        override = {
            "BootSourceOverrideTarget": _TARGETS[device],
            "BootSourceOverrideEnabled": "Once" if once else "Continuous",
        }
        if device is BootDevice.DEFAULT:
            override["BootSourceOverrideEnabled"] = "Disabled"
        await self._connection.patch(self._system_path, {"Boot": override})

    async def read(self) -> Reading:
        """Return the machine's power as its BMC measures it."""
        watts = await self._watts()
        return Reading(MeterSource.BMC, believable_watts(watts, self.url), self._clock.now_s())

    async def _system(self) -> _System:
        if not self._system_path:
            root = await self._connection.get(f"{ROOT}/", _Root)
            if root.systems is None:
                raise NotFound("machine", self.url, hint="this Redfish service has no Systems")
            systems = await self._connection.get(root.systems.path, Members)
            if not systems.members:
                raise NotFound("machine", self.url, hint="its list of Systems is empty")
            self._system_path = systems.members[0].path
        return await self._connection.get(self._system_path, _System)

    async def _find_chassis(self) -> _Chassis:
        if self._chassis is None:
            chassis = (await self._system()).links.chassis
            if not chassis:
                raise NotFound("chassis", self.url)
            self._chassis = await self._connection.get(chassis[0].path, _Chassis)
        return self._chassis

    async def _watts(self) -> float:
        chassis = await self._find_chassis()
        if chassis.environment is not None:
            metrics = await self._connection.get(chassis.environment.path, Environment)
            if metrics.power is not None and metrics.power.reading is not None:
                return metrics.power.reading
        if chassis.power is not None:
            controls = (await self._connection.get(chassis.power.path, _Power)).controls
            if controls and controls[0].watts is not None:
                return controls[0].watts
        raise NotFound("power reading", self.url, hint="this BMC does not measure power")

    async def _reset(self, system: _System, orders: tuple[str, ...]) -> None:
        """Send the first of `orders` that the BMC knows."""
        reset = system.actions.reset
        if reset is None:
            raise NotFound("reset action", self.url)
        known = [order for order in orders if not reset.allowed or order in reset.allowed]
        if not known:
            raise NotFound(
                "reset type", " or ".join(orders), hint=f"{self.url} has {', '.join(reset.allowed)}"
            )
        await self._connection.post(reset.target, {"ResetType": known[0]})
