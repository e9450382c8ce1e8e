"""What the product asks of hardware. Drivers: `redfish`, `snmp`; `memory` for tests.

One contract suite (`tests/contract/facility/`) runs on all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from nuage.energy.meters import Reading
from nuage.errors import Forbidden, RemoteProtocolError, Unavailable


class PowerState(Enum):
    """A machine's power as its BMC tells it."""

    ON = "on"
    OFF = "off"
    TURNING_ON = "turning-on"
    TURNING_OFF = "turning-off"


class BootDevice(Enum):
    """What a machine boots from."""

    DEFAULT = "default"
    NETWORK = "network"
    DISK = "disk"
    CD = "cd"
    HTTP = "http"


class PowerOrder(Enum):
    """What a machine or an outlet can be told."""

    ON = "on"
    OFF = "off"
    CYCLE = "cycle"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutletState:
    """An outlet of a PDU. `reading` is None where the PDU does not measure outlets."""

    outlet_id: str
    label: str
    is_on: bool | None
    reading: Reading | None
    energy_kwh: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchState:
    """A branch circuit: what it carries, what it may carry, whom it feeds."""

    branch_id: str
    power_watts: float
    current_amps: float
    rated_amps: float
    outlet_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PduState:
    """A whole PDU. Temperatures are of its probes, None where there are none."""

    reading: Reading
    energy_kwh: float | None
    inlet_celsius: float | None
    outside_celsius: float | None


class PowerControl(Protocol):
    """The button of a machine."""

    async def power_state(self) -> PowerState:
        """Return the state now."""
        ...

    async def power_on(self) -> None:
        """Switch on; nothing happens to a machine that is on."""
        ...

    async def power_off(self, *, force: bool = False) -> None:
        """Ask the operating system to end, or cut the power. Returns before it has ended."""
        ...

    async def power_cycle(self) -> None:
        """Cut the power and give it back."""
        ...

    async def set_boot_device(self, device: BootDevice, *, once: bool = True) -> None:
        """Say what to boot from, the next time or always."""
        ...


class Meter(Protocol):
    """Something that knows watts."""

    async def read(self) -> Reading:
        """Return the power now.

        Raises:
            ImplausibleReading: the meter said what cannot be true; use another source.
            BmcUnavailable: it did not answer.
        """
        ...


class RackPdu(Protocol):
    """A rack's PDU."""

    async def state(self) -> PduState:
        """Return the whole PDU's reading."""
        ...

    async def outlets(self) -> tuple[OutletState, ...]:
        """Return every outlet, in the order of the device."""
        ...

    async def branches(self) -> tuple[BranchState, ...]:
        """Return every branch circuit; empty where the PDU does not tell."""
        ...

    async def switch_outlet(self, outlet_id: str, order: PowerOrder) -> None:
        """Switch one outlet."""
        ...


SnmpValue: TypeAlias = int | str


class SnmpTransport(Protocol):
    """SNMP to one device."""

    @property
    def url(self) -> str:
        """Return what names the device in errors."""
        ...

    async def get(self, *oids: str) -> Mapping[str, SnmpValue]:
        """Return the values of those objects that exist."""
        ...

    async def walk(self, oid: str) -> Mapping[str, SnmpValue]:
        """Return all objects below `oid`."""
        ...

    async def set(self, oid: str, value: int) -> None:
        """Set an integer."""
        ...


class BmcUnavailable(Unavailable):
    """A BMC or PDU did not answer; `url` names it."""

    code = "bmc_unavailable"

    def __init__(self, url: str, *, doing: str, retry_after_s: float = 5.0) -> None:
        super().__init__(
            f"{url} does not answer ({doing})",
            retry_after_s=retry_after_s,
            hint="is the outlet of its machine on, and the management network up?",
        )
        self.url = url


class BmcNotTrusted(Forbidden):
    """A BMC or PDU shows another certificate than the one it is known by."""

    code = "bmc_not_trusted"

    def __init__(self, url: str, *, reason: str) -> None:
        super().__init__(
            f"{url} shows a certificate that is not trusted: {reason}",
            hint="pin its certificate again if it was replaced; else somebody is in between",
        )
        self.url = url


class BmcRefused(Forbidden):
    """A BMC or PDU does not accept our user and password, or forbids the order."""

    code = "bmc_refused"

    def __init__(self, url: str, *, doing: str) -> None:
        super().__init__(f"{url} refuses us ({doing})", hint="check its user and password")
        self.url = url


class ImplausibleReading(RemoteProtocolError):
    """A meter said what cannot be true. `rule` is one of `energy.meters`' rules."""

    code = "implausible_reading"

    def __init__(self, meter: str, *, rule: str, reason: str) -> None:
        super().__init__(
            f"{meter}: reading refused by rule {rule} ({reason})",
            hint="the next source serves meanwhile; look at the meter if it lasts",
        )
        self.meter = meter
        self.rule = rule
