"""PDUs that speak SNMP: what each vendor's numbers mean. The wire is `snmp_transport`.

APC (PowerNet-MIB rPDU2) fixes its units in the MIB: power in hundredths of kW for the device and
in watts for an outlet, energy in tenths of kWh, a bank's current in tenths of A; -1 stands for
"this model does not measure it". Raritan tells them itself: `snmp_raritan`.

The vendor is told by `sysObjectID`.
"""

from collections.abc import Mapping
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
from nuage.facility.snmp_raritan import RARITAN, RaritanPdu

SYS_OBJECT_ID: Final = "1.3.6.1.2.1.1.2.0"
APC: Final = "1.3.6.1.4.1.318"

# PowerNet-MIB, rPDU2 (1.3.6.1.4.1.318.1.1.26)
_APC_DEVICE_POWER: Final = f"{APC}.1.1.26.4.3.1.5.1"
_APC_DEVICE_ENERGY: Final = f"{APC}.1.1.26.4.3.1.9.1"
_APC_METERED: Final = f"{APC}.1.1.26.9.4.3.1"
_APC_METERED_NAME: Final = f"{_APC_METERED}.3"
_APC_METERED_POWER: Final = f"{_APC_METERED}.7"
_APC_METERED_ENERGY: Final = f"{_APC_METERED}.11"
_APC_SWITCHED_STATE: Final = f"{APC}.1.1.26.9.2.3.1.5"
_APC_SWITCHED_COMMAND: Final = f"{APC}.1.1.26.9.2.4.1.5"
_APC_OUTLET_BANK: Final = f"{APC}.1.1.26.9.2.2.1.6"
_APC_BANK_LIMIT: Final = f"{APC}.1.1.26.8.1.1.7"  # the overload threshold, in A
_APC_BANK_NUMBER: Final = f"{APC}.1.1.26.8.3.1.3"
_APC_BANK_CURRENT: Final = f"{APC}.1.1.26.8.3.1.5"
_APC_VOLTAGE: Final = f"{APC}.1.1.26.6.3.1.6.1"  # of phase 1
_APC_ON: Final = 2
_APC_ORDERS: Final = {PowerOrder.ON: 1, PowerOrder.OFF: 2, PowerOrder.CYCLE: 3}
_APC_UNSUPPORTED: Final = -1


async def open_snmp_pdu(transport: SnmpTransport, clock: Clock) -> "ApcPdu | RaritanPdu":
    """Return the driver for whatever answers.

    Raises:
        NotFound: it is neither an APC nor a Raritan; its `sysObjectID` is named.
    """
    found = (await transport.get(SYS_OBJECT_ID)).get(SYS_OBJECT_ID, "")
    vendor = str(found).lstrip(".")
    if (vendor + ".").startswith(APC + "."):
        return ApcPdu(transport, clock)
    if (vendor + ".").startswith(RARITAN + "."):
        return RaritanPdu(transport, clock)
    raise NotFound(
        "SNMP PDU driver", vendor or "no sysObjectID", hint=f"{transport.url}: APC and Raritan are"
    )


class ApcPdu:
    """`RackPdu` of an APC rPDU2 (AP8xxx and the like)."""

    def __init__(self, transport: SnmpTransport, clock: Clock) -> None:
        self._snmp = transport
        self._clock = clock

    async def state(self) -> PduState:
        """Return the whole PDU's reading."""
        values = await self._snmp.get(_APC_DEVICE_POWER, _APC_DEVICE_ENERGY)
        power = _apc(values.get(_APC_DEVICE_POWER))
        if power is None:
            raise NotFound("power reading", self._snmp.url)
        energy = _apc(values.get(_APC_DEVICE_ENERGY))
        watts = believable_watts(power * 10.0, self._snmp.url)
        return PduState(
            reading=Reading(MeterSource.OUTLET, watts, self._clock.now_s()),
            energy_kwh=believable_kwh(None if energy is None else energy / 10.0, self._snmp.url),
            inlet_celsius=None,
            outside_celsius=None,
        )

    async def outlets(self) -> tuple[OutletState, ...]:
        """Return every outlet; switched models tell states, metered ones watts."""
        metered = await self._snmp.walk(_APC_METERED)
        switched = await self._snmp.walk(_APC_SWITCHED_STATE)
        indexes = {_last(oid) for oid in switched}
        indexes |= {_last(oid) for oid in metered if oid.startswith(_APC_METERED_POWER + ".")}
        return tuple(self._outlet(index, metered, switched) for index in sorted(indexes))

    def _outlet(
        self, index: int, metered: Mapping[str, SnmpValue], switched: Mapping[str, SnmpValue]
    ) -> OutletState:
        watts = _apc(metered.get(f"{_APC_METERED_POWER}.{index}"))
        energy = _apc(metered.get(f"{_APC_METERED_ENERGY}.{index}"))
        state = switched.get(f"{_APC_SWITCHED_STATE}.{index}")
        return believable_outlet(
            self._snmp.url,
            str(index),
            label=str(metered.get(f"{_APC_METERED_NAME}.{index}", "")),
            is_on=None if state is None else state == _APC_ON,
            watts=None if watts is None else float(watts),
            energy_kwh=None if energy is None else energy / 10.0,
            read_s=self._clock.now_s(),
        )

    async def branches(self) -> tuple[BranchState, ...]:
        """Return its banks, with the volt-amperes that they carry: no bank draws more watts."""
        values: dict[str, SnmpValue] = dict(await self._snmp.get(_APC_VOLTAGE))
        for table in (_APC_BANK_NUMBER, _APC_BANK_CURRENT, _APC_BANK_LIMIT, _APC_OUTLET_BANK):
            values |= await self._snmp.walk(table)
        outlets: dict[int, list[str]] = {}
        for oid, bank in values.items():
            if oid.startswith(_APC_OUTLET_BANK + "."):
                outlets.setdefault(_apc(bank) or 0, []).append(str(_last(oid)))
        volts = float(_apc(values.get(_APC_VOLTAGE)) or 0)
        found = []
        for oid, number in values.items():
            index = _last(oid)
            tenths = _apc(values.get(f"{_APC_BANK_CURRENT}.{index}"))
            if not oid.startswith(_APC_BANK_NUMBER + ".") or tenths is None:
                continue
            name = f"{self._snmp.url} bank {number}"
            found.append(
                BranchState(
                    branch_id=str(number),
                    power_watts=believable_watts(tenths / 10.0 * volts, name),
                    current_amps=tenths / 10.0,
                    rated_amps=float(_apc(values.get(f"{_APC_BANK_LIMIT}.{index}")) or 0),
                    outlet_ids=tuple(sorted(outlets.get(_apc(number) or 0, ()), key=int)),
                )
            )
        return tuple(found)

    async def switch_outlet(self, outlet_id: str, order: PowerOrder) -> None:
        """Switch one outlet."""
        state = f"{_APC_SWITCHED_STATE}.{outlet_id}"
        if state not in await self._snmp.get(state):
            raise NotFound("switched outlet", outlet_id, hint=f"of {self._snmp.url}")
        await self._snmp.set(f"{_APC_SWITCHED_COMMAND}.{outlet_id}", _APC_ORDERS[order])


def _apc(value: SnmpValue | None) -> int | None:
    """Return a number of rPDU2, None for what the model does not measure."""
    if value is None or value == _APC_UNSUPPORTED:
        return None
    if not isinstance(value, int):
        raise RemoteProtocolError(f"an rPDU2 reading is {value!r}, not a number")
    return value


def _last(oid: str) -> int:
    return int(oid.rpartition(".")[2])
