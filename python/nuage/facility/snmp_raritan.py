"""A PDU of Raritan's PX line by SNMP (PDU2-MIB): outlets, overcurrent protectors, inlets.

Units. The MIB keeps a table of units and decimal digits beside each sensor; both are read from
the device, since firmwares differ. A unit that is not the expected one is refused, never guessed.

Wiring. Each outlet points to the overcurrent protector that feeds it, that to the next one, and
the last to an inlet, by the OIDs of their labels.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Final

from nuage.clock import Clock
from nuage.energy.meters import MeterSource, Reading
from nuage.errors import NotFound, RemoteProtocolError
from nuage.facility.plausible import believable_kwh, believable_outlet, believable_watts
from nuage.facility.ports import (
    BranchState,
    OutletState,
    PduState,
    PowerOrder,
    SnmpTransport,
    SnmpValue,
)

RARITAN: Final = "1.3.6.1.4.1.13742"

# PDU2-MIB (1.3.6.1.4.1.13742.6) of pdu 1; a sensor's last number is its kind.
_PDU2: Final = f"{RARITAN}.6"
_PDU2_INLET_LABEL: Final = f"{_PDU2}.3.3.3.1.2.1"
_PDU2_INLET_RATING: Final = f"{_PDU2}.3.3.3.1.7.1"
_PDU2_PROTECTOR_LABEL: Final = f"{_PDU2}.3.4.3.1.2.1"
_PDU2_PROTECTOR_RATING: Final = f"{_PDU2}.3.4.3.1.5.1"
_PDU2_PROTECTOR_POLES: Final = f"{_PDU2}.3.4.3.1.6.1"
_PDU2_PROTECTOR_SOURCE: Final = f"{_PDU2}.3.4.3.1.10.1"
_PDU2_OUTLET_NAME: Final = f"{_PDU2}.3.5.3.1.3.1"
_PDU2_OUTLET_SOURCE: Final = f"{_PDU2}.3.5.3.1.33.1"
_PDU2_OUTLET_STATE: Final = f"{_PDU2}.5.4.3.1.3.1"
_PDU2_SWITCH: Final = f"{_PDU2}.4.1.2.1.2.1"
_RMS_CURRENT: Final = 1
_RMS_VOLTAGE: Final = 4
_ACTIVE_POWER: Final = 5
_ACTIVE_ENERGY: Final = 8
_ON_OFF: Final = 14
_RMS_VOLTAGE_LN: Final = 25
_PDU2_STATE_ON: Final = 7
_PDU2_UNITS: Final = {  # volt, amp, watt, wattHour of SensorUnitsEnumeration
    _RMS_VOLTAGE: 1, _RMS_VOLTAGE_LN: 1, _RMS_CURRENT: 2, _ACTIVE_POWER: 3, _ACTIVE_ENERGY: 5,
}  # fmt: skip
_PDU2_ORDERS: Final = {PowerOrder.ON: 1, PowerOrder.OFF: 0, PowerOrder.CYCLE: 2}
_THREE_PHASES: Final = 3
_DIGITS_MAX: Final = 9


@dataclass(frozen=True, slots=True)
class _Sensors:
    """Where PDU2-MIB keeps the sensors of one kind of thing, by its index and theirs."""

    value: str
    units: str
    digits: str


_PDU2_INLETS: Final = _Sensors(
    f"{_PDU2}.5.2.3.1.4.1", f"{_PDU2}.3.3.4.1.6.1", f"{_PDU2}.3.3.4.1.7.1"
)
_PDU2_PROTECTORS: Final = _Sensors(
    f"{_PDU2}.5.3.3.1.4.1", f"{_PDU2}.3.4.4.1.6.1", f"{_PDU2}.3.4.4.1.7.1"
)
_PDU2_OUTLETS: Final = _Sensors(
    f"{_PDU2}.5.4.3.1.4.1", f"{_PDU2}.3.5.4.1.6.1", f"{_PDU2}.3.5.4.1.7.1"
)


class RaritanPdu:
    """`RackPdu` of a Raritan PX (PDU2-MIB)."""

    def __init__(self, transport: SnmpTransport, clock: Clock) -> None:
        self._snmp = transport
        self._clock = clock

    async def state(self) -> PduState:
        """Return the whole PDU's reading: all inlets together."""
        values = await self._walk(_PDU2_INLETS.value, _PDU2_INLETS.units, _PDU2_INLETS.digits)
        inlets = _indexes(values, _PDU2_INLETS.value)
        powers, energies = (
            [
                sensed
                for inlet in inlets
                if (sensed := self._sensed(_PDU2_INLETS, inlet, kind, values)) is not None
            ]
            for kind in (_ACTIVE_POWER, _ACTIVE_ENERGY)
        )
        if not powers:
            raise NotFound("power reading", self._snmp.url)
        watts = sum(believable_watts(power, self._snmp.url) for power in powers)
        energy_kwh = sum(energies) / 1000.0 if energies else None
        return PduState(
            reading=Reading(MeterSource.OUTLET, watts, self._clock.now_s()),
            energy_kwh=believable_kwh(energy_kwh, self._snmp.url),
            inlet_celsius=None,
            outside_celsius=None,
        )

    async def outlets(self) -> tuple[OutletState, ...]:
        """Return every outlet."""
        values = await self._walk(
            _PDU2_OUTLET_NAME, _PDU2_OUTLET_STATE, _PDU2_OUTLETS.value, _PDU2_OUTLETS.units,
            _PDU2_OUTLETS.digits,
        )  # fmt: skip
        return tuple(self._outlet(index, values) for index in _indexes(values, _PDU2_OUTLET_STATE))

    def _outlet(self, index: int, values: Mapping[str, SnmpValue]) -> OutletState:
        watts, watt_hours = (
            self._sensed(_PDU2_OUTLETS, index, kind, values)
            for kind in (_ACTIVE_POWER, _ACTIVE_ENERGY)
        )
        state = values.get(f"{_PDU2_OUTLET_STATE}.{index}.{_ON_OFF}")
        return believable_outlet(
            self._snmp.url,
            str(index),
            label=str(values.get(f"{_PDU2_OUTLET_NAME}.{index}", "")),
            is_on=None if state is None else state == _PDU2_STATE_ON,
            watts=watts,
            energy_kwh=None if watt_hours is None else watt_hours / 1000.0,
            read_s=self._clock.now_s(),
        )

    async def branches(self) -> tuple[BranchState, ...]:
        """Return its overcurrent protectors, and its inlets where it has several.

        Each names every outlet behind it, also those behind another protector in between; an
        outlet that points to no protector hangs on its inlet. The volt-amperes stand for the
        watts: no branch draws more.
        """
        values = await self._walk(
            _PDU2_INLET_LABEL, _PDU2_INLET_RATING, _PDU2_INLETS.value, _PDU2_INLETS.units,
            _PDU2_INLETS.digits, _PDU2_PROTECTOR_LABEL, _PDU2_PROTECTOR_RATING,
            _PDU2_PROTECTOR_POLES, _PDU2_PROTECTOR_SOURCE, _PDU2_PROTECTORS.value,
            _PDU2_PROTECTORS.units, _PDU2_PROTECTORS.digits, _PDU2_OUTLET_SOURCE,
        )  # fmt: skip
        behind = _wiring(values)
        found = [
            self._branch(_PDU2_PROTECTORS, _PDU2_PROTECTOR_LABEL, _PDU2_PROTECTOR_RATING,
                         index, values, behind)
            for index in _indexes(values, _PDU2_PROTECTOR_LABEL)
        ]  # fmt: skip
        inlets = _indexes(values, _PDU2_INLET_LABEL)
        if len(inlets) > 1:
            found += [
                self._branch(_PDU2_INLETS, _PDU2_INLET_LABEL, _PDU2_INLET_RATING,
                             index, values, behind)
                for index in inlets
            ]  # fmt: skip
        return tuple(branch for branch in found if branch is not None)

    def _branch(
        self, sensors: _Sensors, label: str, rating: str, index: int,
        values: Mapping[str, SnmpValue], behind: Mapping[str, "_Behind"],
    ) -> BranchState | None:  # fmt: skip
        """Return one branch; None where the device does not measure its current."""
        amps = self._sensed(sensors, index, _RMS_CURRENT, values)
        if amps is None:
            return None
        wired = behind.get(f"{label}.{index}", _Behind())
        poles = values.get(f"{_PDU2_PROTECTOR_POLES}.{index}", 1)
        volts = self._volts(wired.inlet, 1 if sensors is _PDU2_INLETS else poles, values)
        name = str(values[f"{label}.{index}"])
        return BranchState(
            branch_id=name,
            power_watts=believable_watts(amps * volts, f"{self._snmp.url} {name}"),
            current_amps=amps,
            rated_amps=_amps(values.get(f"{rating}.{index}")),
            outlet_ids=tuple(sorted(wired.outlets, key=int)),
        )

    def _volts(self, inlet: int, poles: SnmpValue, values: Mapping[str, SnmpValue]) -> float:
        """Return what an ampere through a branch is multiplied by: one phase, two, or three."""
        between = self._sensed(_PDU2_INLETS, inlet, _RMS_VOLTAGE, values) or 0.0
        to_neutral = self._sensed(_PDU2_INLETS, inlet, _RMS_VOLTAGE_LN, values)
        if poles == 1:
            return between if to_neutral is None else to_neutral
        return between * (sqrt(_THREE_PHASES) if poles == _THREE_PHASES else 1.0)

    async def switch_outlet(self, outlet_id: str, order: PowerOrder) -> None:
        """Switch one outlet."""
        switch = f"{_PDU2_SWITCH}.{outlet_id}"
        if switch not in await self._snmp.get(switch):
            raise NotFound("switched outlet", outlet_id, hint=f"of {self._snmp.url}")
        await self._snmp.set(switch, _PDU2_ORDERS[order])

    async def _walk(self, *tables: str) -> dict[str, SnmpValue]:
        values: dict[str, SnmpValue] = {}
        for table in tables:
            values |= await self._snmp.walk(table)
        return values

    def _sensed(
        self, sensors: _Sensors, index: int, kind: int, values: Mapping[str, SnmpValue]
    ) -> float | None:
        """Return a sensor's value in volts, amperes, watts or watt-hours; None: it has none."""
        value = values.get(f"{sensors.value}.{index}.{kind}")
        units = values.get(f"{sensors.units}.{index}.{kind}")
        digits = values.get(f"{sensors.digits}.{index}.{kind}")
        if value is None:
            return None
        expected = _PDU2_UNITS[kind]
        if units != expected:
            raise RemoteProtocolError(
                f"{self._snmp.url}: sensor {kind} is in unit {units}, not {expected} (PDU2-MIB)"
            )
        if not isinstance(digits, int) or not 0 <= digits <= _DIGITS_MAX:
            raise RemoteProtocolError(
                f"{self._snmp.url}: sensor {kind} has {digits!r} decimal digits"
            )
        if not isinstance(value, int):
            raise RemoteProtocolError(f"{self._snmp.url}: sensor {kind} reads {value!r}")
        return float(value / 10**digits)


@dataclass(slots=True)
class _Behind:
    """What hangs on a protector or an inlet, and the inlet that it hangs on itself."""

    outlets: set[str] = field(default_factory=set)
    inlet: int = 1


def _wiring(values: Mapping[str, SnmpValue]) -> dict[str, _Behind]:
    """Follow each outlet's power source up to its inlet; by the OIDs of labels, as rows point."""
    behind: dict[str, _Behind] = {}
    for outlet in _indexes(values, _PDU2_OUTLET_SOURCE):
        way: list[str] = []
        source = str(values[f"{_PDU2_OUTLET_SOURCE}.{outlet}"]).lstrip(".")
        while source.startswith(_PDU2_PROTECTOR_LABEL + ".") and source not in way:
            way.append(source)
            above = values.get(f"{_PDU2_PROTECTOR_SOURCE}.{_last(source)}", "")
            source = str(above).lstrip(".")
        inlet = _last(source) if source.startswith(_PDU2_INLET_LABEL + ".") else 1
        for name in (*way, f"{_PDU2_INLET_LABEL}.{inlet}"):
            found = behind.setdefault(name, _Behind(inlet=inlet))
            found.outlets.add(str(outlet))
    return behind


def _indexes(values: Mapping[str, SnmpValue], table: str) -> list[int]:
    """Return the first index of the objects of a table, in order."""
    beginning = table + "."
    return sorted(
        {int(o.removeprefix(beginning).split(".")[0]) for o in values if o.startswith(beginning)}
    )


def _amps(rating: SnmpValue | None) -> float:
    """Return a rating that is told as text (`16A`, `16.0`); 0.0 where none is told."""
    number = re.match(r"\d{1,4}(\.\d{1,3})?", str(rating or "").strip())
    return float(number.group()) if number else 0.0


def _last(oid: str) -> int:
    return int(oid.rpartition(".")[2])
