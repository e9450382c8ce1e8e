"""A lab's PDU through SNMP, as the vendors' MIBs lay it out; written from the MIBs, not the driver.

``apc``      PowerNet-MIB, rPDU2 (1.3.6.1.4.1.318.1.1.26): hundredths of kW for the device, watts
             for an outlet, tenths of kWh, tenths of A for a bank; an outlet is on (2) or off
             (1); commands on (1), off (2), reboot (3)
``raritan``  PDU2-MIB (1.3.6.1.4.1.13742.6): every sensor with its unit (volt 1, amp 2, watt 3,
             watt hour 5) and decimal digits; two breakers of one pole, to which outlets point; an
             outlet is on (7) or off (8); commands off (0), on (1), cycle (2)
"""

from collections.abc import Callable
from typing import Final

from nuage.errors import InvalidRequest
from nuage.lab.description import PduSpeech
from nuage.lab.pdu_documents import BRANCH_RATED_AMPS, BRANCHES, VOLTS, amps, branch_of
from nuage.lab.rig import Outlet, Rig
from nuage.lab.snmp_agent import SnmpAgent, Table

SYS_OBJECT_ID: Final = "1.3.6.1.2.1.1.2.0"
RPDU2: Final = "1.3.6.1.4.1.318.1.1.26"
PDU2: Final = "1.3.6.1.4.1.13742.6"
DIGITS: Final = 1  # this PX tells tenths of watts and of watt hours
AMP_DIGITS: Final = 3
VOLT: Final = 1
AMP: Final = 2
WATT: Final = 3
WATT_HOUR: Final = 5
_APC_ORDERS: Final = {1: "On", 2: "Off", 3: "PowerCycle"}
_RARITAN_ORDERS: Final = {0: "Off", 1: "On", 2: "PowerCycle"}


def snmp_pdu(rig: Rig, pdu: str, speech: PduSpeech, community: str) -> SnmpAgent:
    """Return the agent of a rack's PDU."""
    face: _Face
    match speech:
        case PduSpeech.APC:
            face = _Face(_apc_table, f"{RPDU2}.9.2.4.1.5.", _APC_ORDERS)
        case PduSpeech.RARITAN:
            face = _Face(_raritan_table, f"{PDU2}.4.1.2.1.2.1.", _RARITAN_ORDERS)
        case PduSpeech.REDFISH:
            raise InvalidRequest("a PDU that speaks Redfish has no SNMP agent", field="pdu")

    def obey(oid: str, value: int) -> None:
        number = oid.removeprefix(face.command)
        order = face.orders.get(value)
        for outlet in rig.outlets[pdu]:
            if str(outlet.index) == number and order is not None:
                rig.switch_outlet(pdu, outlet, order)

    return SnmpAgent(
        community, lambda: face.table(rig, pdu), obey, is_silent=lambda: rig.fault(pdu).silent
    )


class _Face:
    def __init__(
        self, table: Callable[[Rig, str], Table], command: str, orders: dict[int, str]
    ) -> None:
        self.table = table
        self.command = command
        self.orders = orders


def _apc_table(rig: Rig, pdu: str) -> Table:
    rig.advance()
    table: Table = {
        SYS_OBJECT_ID: (1, 3, 6, 1, 4, 1, 318, 1, 3, 4, 6),
        f"{RPDU2}.4.3.1.5.1": round(rig.pdu_watts(pdu) / 10.0),
        f"{RPDU2}.4.3.1.9.1": int(rig.pdu_kwh(pdu) * 10.0),
    }
    table[f"{RPDU2}.6.3.1.6.1"] = round(VOLTS)
    for bank, name in enumerate(BRANCHES, start=1):
        fed = [each for each in rig.outlets[pdu] if branch_of(each) == name]
        watts = sum(rig.outlet_watts(pdu, each) for each in fed)
        table |= {
            f"{RPDU2}.8.1.1.7.{bank}": round(BRANCH_RATED_AMPS),
            f"{RPDU2}.8.3.1.3.{bank}": bank,
            f"{RPDU2}.8.3.1.5.{bank}": round(amps(watts) * 10.0),
        } | {f"{RPDU2}.9.2.2.1.6.{each.index}": bank for each in fed}
    for outlet in rig.outlets[pdu]:
        table |= {
            f"{RPDU2}.9.2.3.1.5.{outlet.index}": 2 if outlet.on else 1,
            f"{RPDU2}.9.2.4.1.5.{outlet.index}": 2 if outlet.on else 1,
            f"{RPDU2}.9.4.3.1.3.{outlet.index}": outlet.label,
            f"{RPDU2}.9.4.3.1.7.{outlet.index}": round(rig.outlet_watts(pdu, outlet)),
            f"{RPDU2}.9.4.3.1.11.{outlet.index}": int(rig.outlet_kwh(pdu, outlet) * 10.0),
        }
    return table


def _raritan_table(rig: Rig, pdu: str) -> Table:
    rig.advance()
    table: Table = {
        SYS_OBJECT_ID: (1, 3, 6, 1, 4, 1, 13742, 6),
        f"{PDU2}.3.3.3.1.2.1.1": "I1",
        f"{PDU2}.3.3.3.1.7.1.1": f"{rig.pdus[pdu].rated_amps:.0f}A",
    }
    watts, watt_hours = rig.pdu_watts(pdu), rig.pdu_kwh(pdu) * 1000.0
    table |= _sensor("5.2.3.1.4.1.1", "3.3.4.1.{}.1.1", 1, AMP, amps(watts), AMP_DIGITS)
    table |= _sensor("5.2.3.1.4.1.1", "3.3.4.1.{}.1.1", 4, VOLT, VOLTS, 0)
    table |= _sensor("5.2.3.1.4.1.1", "3.3.4.1.{}.1.1", 5, WATT, watts, DIGITS)
    table |= _sensor("5.2.3.1.4.1.1", "3.3.4.1.{}.1.1", 8, WATT_HOUR, watt_hours, DIGITS)
    for number, name in enumerate(BRANCHES, start=1):
        fed = [each for each in rig.outlets[pdu] if branch_of(each) == name]
        current = amps(sum(rig.outlet_watts(pdu, each) for each in fed))
        settings: Table = {
            f"{PDU2}.3.4.3.1.2.1.{number}": f"C{number}",
            f"{PDU2}.3.4.3.1.5.1.{number}": f"{BRANCH_RATED_AMPS:.0f}A",
            f"{PDU2}.3.4.3.1.6.1.{number}": 1,
            f"{PDU2}.3.4.3.1.10.1.{number}": _row("3.3.3.1.2.1.1"),
        }
        values, kinds = f"5.3.3.1.4.1.{number}", f"3.4.4.1.{{}}.1.{number}"
        table |= settings | _sensor(values, kinds, 1, AMP, current, AMP_DIGITS)
        table |= {
            f"{PDU2}.3.5.3.1.33.1.{each.index}": _row(f"3.4.3.1.2.1.{number}") for each in fed
        }
    for outlet in rig.outlets[pdu]:
        table |= _raritan_outlet(rig, pdu, outlet)
    return table


def _raritan_outlet(rig: Rig, pdu: str, outlet: Outlet) -> Table:
    index = outlet.index
    watts, watt_hours = rig.outlet_watts(pdu, outlet), rig.outlet_kwh(pdu, outlet) * 1000.0
    values, settings = f"5.4.3.1.4.1.{index}", f"3.5.4.1.{{}}.1.{index}"
    return {
        f"{PDU2}.3.5.3.1.3.1.{index}": outlet.label,
        f"{PDU2}.5.4.3.1.3.1.{index}.14": 7 if outlet.on else 8,
        f"{PDU2}.4.1.2.1.2.1.{index}": 1 if outlet.on else 0,
        **_sensor(values, settings, 5, WATT, watts, DIGITS),
        **_sensor(values, settings, 8, WATT_HOUR, watt_hours, DIGITS),
    }


def _sensor(values: str, settings: str, kind: int, unit: int, value: float, digits: int) -> Table:
    """Return a sensor's reading, unit and decimal digits: columns 6 and 7 of its settings."""
    return {
        f"{PDU2}.{values}.{kind}": round(value * 10**digits),
        f"{PDU2}.{settings.format(6)}.{kind}": unit,
        f"{PDU2}.{settings.format(7)}.{kind}": digits,
    }


def _row(oid: str) -> tuple[int, ...]:
    """Return a row pointer: the number of the object that it points to."""
    return tuple(int(part) for part in f"{PDU2}.{oid}".split("."))
