"""A lab's PDU through SNMP, as the vendors' MIBs lay it out; written from the MIBs, not the driver.

``apc``      PowerNet-MIB, rPDU2 (1.3.6.1.4.1.318.1.1.26): hundredths of kW for the device, watts
             for an outlet, tenths of kWh, tenths of A for a bank; an outlet is on (2) or off
             (1); commands on (1), off (2), reboot (3)
``raritan``  PDU2-MIB (1.3.6.1.4.1.13742.6): every sensor with its unit (watt 3, watt hour 5) and
             decimal digits; an outlet is on (7) or off (8); commands off (0), on (1), cycle (2)
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
    table: Table = {SYS_OBJECT_ID: (1, 3, 6, 1, 4, 1, 13742, 6)}
    watts, watt_hours = rig.pdu_watts(pdu), rig.pdu_kwh(pdu) * 1000.0
    for kind, unit, value in ((5, WATT, watts), (8, WATT_HOUR, watt_hours)):
        table |= {
            f"{PDU2}.5.2.3.1.4.1.1.{kind}": round(value * 10**DIGITS),
            f"{PDU2}.3.3.4.1.6.1.1.{kind}": unit,
            f"{PDU2}.3.3.4.1.7.1.1.{kind}": DIGITS,
        }
    for outlet in rig.outlets[pdu]:
        table |= _raritan_outlet(rig, pdu, outlet)
    return table


def _raritan_outlet(rig: Rig, pdu: str, outlet: Outlet) -> Table:
    index = outlet.index
    table: Table = {
        f"{PDU2}.3.5.3.1.3.1.{index}": outlet.label,
        f"{PDU2}.5.4.3.1.3.1.{index}.14": 7 if outlet.on else 8,
        f"{PDU2}.4.1.2.1.2.1.{index}": 1 if outlet.on else 0,
    }
    watts, watt_hours = rig.outlet_watts(pdu, outlet), rig.outlet_kwh(pdu, outlet) * 1000.0
    for kind, unit, value in ((5, WATT, watts), (8, WATT_HOUR, watt_hours)):
        table |= {
            f"{PDU2}.5.4.3.1.4.1.{index}.{kind}": round(value * 10**DIGITS),
            f"{PDU2}.3.5.4.1.6.1.{index}.{kind}": unit,
            f"{PDU2}.3.5.4.1.7.1.{index}.{kind}": DIGITS,
        }
    return table
