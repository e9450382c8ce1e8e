"""Hardware that exists in memory only: for tests and for what runs under a virtual clock.

It keeps the ports' promises (one contract suite runs on it and on the drivers): orders to a
machine in the wanted state do nothing, a silent device is unavailable by name, nonsense from
a meter is refused by rule.
"""

from dataclasses import dataclass, field

from nuage.clock import Clock
from nuage.energy.meters import MeterSource, Reading
from nuage.errors import NotFound
from nuage.facility.plausible import believable_kwh, believable_watts
from nuage.facility.ports import (
    BmcUnavailable,
    BootDevice,
    BranchState,
    OutletState,
    PduState,
    PowerOrder,
    PowerState,
)


@dataclass(slots=True)
class MemoryNode:
    """A machine: `PowerControl` and `Meter`."""

    url: str
    clock: Clock
    on_watts: float = 100.0
    off_watts: float = 4.0
    state: PowerState = PowerState.OFF
    boot_device: BootDevice = BootDevice.DEFAULT
    silent: bool = False
    cycles: int = 0

    async def power_state(self) -> PowerState:
        """Return the state now."""
        self._require("power state")
        return self.state

    async def power_on(self) -> None:
        """Switch on."""
        self._require("power on")
        self.state = PowerState.ON

    async def power_off(self, *, force: bool = False) -> None:
        """Switch off, at once either way."""
        self._require("power off by force" if force else "power off")
        self.state = PowerState.OFF

    async def power_cycle(self) -> None:
        """Switch off and on."""
        self._require("power cycle")
        self.cycles += 1
        self.state = PowerState.ON

    async def set_boot_device(self, device: BootDevice, *, once: bool = True) -> None:
        """Keep what to boot from."""
        self._require(f"boot device {'once' if once else 'always'}")
        self.boot_device = device

    async def read(self) -> Reading:
        """Return the power."""
        self._require("read power")
        watts = self.on_watts if self.state is PowerState.ON else self.off_watts
        return Reading(MeterSource.BMC, believable_watts(watts, self.url), self.clock.now_s())

    def _require(self, doing: str) -> None:
        if self.silent:
            raise BmcUnavailable(self.url, doing=doing)


@dataclass(slots=True)
class MemoryOutlet:
    """An outlet of a `MemoryPdu`."""

    label: str
    watts: float
    is_on: bool = True
    energy_kwh: float = 0.0


@dataclass(slots=True)
class MemoryPdu:
    """A PDU: `RackPdu`."""

    url: str
    clock: Clock
    outlet_by_id: dict[str, MemoryOutlet] = field(default_factory=dict)
    own_watts: float = 0.0
    rated_amps: float = 16.0
    inlet_celsius: float | None = None
    outside_celsius: float | None = None
    silent: bool = False

    async def state(self) -> PduState:
        """Return the whole PDU's reading."""
        self._require("read state")
        watts = self.own_watts + sum(o.watts for o in self.outlet_by_id.values() if o.is_on)
        return PduState(
            reading=self._reading(watts),
            energy_kwh=believable_kwh(
                sum(o.energy_kwh for o in self.outlet_by_id.values()), self.url
            ),
            inlet_celsius=self.inlet_celsius,
            outside_celsius=self.outside_celsius,
        )

    async def outlets(self) -> tuple[OutletState, ...]:
        """Return every outlet."""
        self._require("read outlets")
        return tuple(
            OutletState(
                outlet_id=outlet_id,
                label=outlet.label,
                is_on=outlet.is_on,
                reading=self._reading(outlet.watts if outlet.is_on else 0.0),
                energy_kwh=outlet.energy_kwh,
            )
            for outlet_id, outlet in self.outlet_by_id.items()
        )

    async def branches(self) -> tuple[BranchState, ...]:
        """Return one branch that feeds all."""
        self._require("read branches")
        watts = sum(o.watts for o in self.outlet_by_id.values() if o.is_on)
        branch = BranchState(
            branch_id="A", power_watts=watts, current_amps=watts / 230.0,
            rated_amps=self.rated_amps, outlet_ids=tuple(self.outlet_by_id),
        )  # fmt: skip
        return (branch,)

    async def switch_outlet(self, outlet_id: str, order: PowerOrder) -> None:
        """Switch one outlet, at once."""
        self._require(f"switch outlet {outlet_id}")
        try:
            outlet = self.outlet_by_id[outlet_id]
        except KeyError:
            raise NotFound("outlet", outlet_id) from None
        outlet.is_on = order is not PowerOrder.OFF

    def _reading(self, watts: float) -> Reading:
        return Reading(MeterSource.OUTLET, believable_watts(watts, self.url), self.clock.now_s())

    def _require(self, doing: str) -> None:
        if self.silent:
            raise BmcUnavailable(self.url, doing=doing)
