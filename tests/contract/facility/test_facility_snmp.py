"""PDUs by SNMP, over UDP on loopback, with tables of the form that the devices have."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.contract.facility.facility_bench import StepClock

from nuage.errors import NotFound, RemoteProtocolError
from nuage.facility.ports import BmcUnavailable, ImplausibleReading, PowerOrder
from nuage.facility.snmp import ApcPdu, open_snmp_pdu
from nuage.facility.snmp_raritan import RaritanPdu
from nuage.facility.snmp_transport import Community, PysnmpTransport
from nuage.lab.snmp_agent import SnmpAgent, Table

SYS_OBJECT_ID = "1.3.6.1.2.1.1.2.0"
RPDU2 = "1.3.6.1.4.1.318.1.1.26"
PDU2 = "1.3.6.1.4.1.13742.6"

APC: Table = {
    SYS_OBJECT_ID: (1, 3, 6, 1, 4, 1, 318, 1, 3, 4, 6),
    f"{RPDU2}.4.3.1.5.1": 123,  # 1.23 kW
    f"{RPDU2}.4.3.1.9.1": 4821,  # 482.1 kWh
    f"{RPDU2}.9.2.3.1.5.1": 2,
    f"{RPDU2}.9.2.3.1.5.2": 1,
    f"{RPDU2}.9.4.3.1.3.1": "marne-v1",
    f"{RPDU2}.9.4.3.1.3.2": "marne-v2",
    f"{RPDU2}.9.4.3.1.5.1": 2,
    f"{RPDU2}.9.4.3.1.5.2": 2,
    f"{RPDU2}.9.4.3.1.7.1": 187,
    f"{RPDU2}.9.4.3.1.7.2": -1,
    f"{RPDU2}.9.4.3.1.11.1": 305,
}

RARITAN: Table = {
    SYS_OBJECT_ID: (1, 3, 6, 1, 4, 1, 13742, 6),
    f"{PDU2}.5.2.3.1.4.1.1.5": 1385,
    f"{PDU2}.3.3.4.1.6.1.1.5": 3,
    f"{PDU2}.3.3.4.1.7.1.1.5": 1,
    f"{PDU2}.5.2.3.1.4.1.1.8": 56_438_000,
    f"{PDU2}.3.3.4.1.6.1.1.8": 5,
    f"{PDU2}.3.3.4.1.7.1.1.8": 0,
    f"{PDU2}.3.5.3.1.3.1.1": "marne-v1",
    f"{PDU2}.5.4.3.1.3.1.1.14": 7,
    f"{PDU2}.5.4.3.1.3.1.2.14": 8,
    f"{PDU2}.5.4.3.1.4.1.1.5": 97,
    f"{PDU2}.3.5.4.1.6.1.1.5": 3,
    f"{PDU2}.3.5.4.1.7.1.1.5": 0,
    f"{PDU2}.4.1.2.1.2.1.1": 1,
}


def _sensor(thing: str, index: int, kind: int, unit: int, digits: int, value: int) -> Table:
    """A sensor of PDU2-MIB: `thing` is the measurement table and that of its settings."""
    values, settings = thing.split("/")
    return {
        f"{PDU2}.{values}.1.4.1.{index}.{kind}": value,
        f"{PDU2}.{settings}.1.6.1.{index}.{kind}": unit,
        f"{PDU2}.{settings}.1.7.1.{index}.{kind}": digits,
    }


def _points_to(oid: str) -> tuple[int, ...]:
    return tuple(int(part) for part in f"{PDU2}.{oid}".split("."))


INLETS, PROTECTORS = "5.2.3/3.3.4", "5.3.3/3.4.4"
# Two three-phase inlets. The first feeds C1 (one pole), behind which is C2; the second C3 (three
# poles) and an outlet of its own. Currents in mA, centiamperes and tenths, as each sensor says.
WIRED: Table = (
    {SYS_OBJECT_ID: (1, 3, 6, 1, 4, 1, 13742, 6)}
    | {f"{PDU2}.3.3.3.1.2.1.{n}": f"I{n}" for n in (1, 2)}
    | {f"{PDU2}.3.3.3.1.7.1.{n}": "32A" for n in (1, 2)}
    | {f"{PDU2}.3.4.3.1.2.1.{n}": f"C{n}" for n in (1, 2, 3)}
    | {f"{PDU2}.3.4.3.1.5.1.{n}": amps for n, amps in ((1, "20 A"), (2, "10.5A"), (3, "16"))}
    | {f"{PDU2}.3.4.3.1.6.1.{n}": poles for n, poles in ((1, 1), (2, 1), (3, 3))}
    | {
        f"{PDU2}.3.4.3.1.10.1.1": _points_to("3.3.3.1.2.1.1"),
        f"{PDU2}.3.4.3.1.10.1.2": _points_to("3.4.3.1.2.1.1"),
        f"{PDU2}.3.4.3.1.10.1.3": _points_to("3.3.3.1.2.1.2"),
        f"{PDU2}.3.5.3.1.33.1.1": _points_to("3.4.3.1.2.1.1"),
        f"{PDU2}.3.5.3.1.33.1.2": _points_to("3.4.3.1.2.1.2"),
        f"{PDU2}.3.5.3.1.33.1.3": _points_to("3.4.3.1.2.1.3"),
        f"{PDU2}.3.5.3.1.33.1.10": _points_to("3.3.3.1.2.1.2"),
    }
    | _sensor(INLETS, 1, 5, 3, 0, 900)
    | _sensor(INLETS, 2, 5, 3, 1, 21_005)
    | _sensor(INLETS, 1, 8, 5, 0, 1_500)
    | _sensor(INLETS, 2, 8, 5, 1, 25_000)
    | _sensor(INLETS, 1, 1, 2, 3, 4_000)
    | _sensor(INLETS, 2, 1, 2, 3, 6_000)
    | _sensor(INLETS, 1, 4, 1, 0, 400)
    | _sensor(INLETS, 2, 4, 1, 0, 400)
    | _sensor(INLETS, 1, 25, 1, 0, 230)
    | _sensor(PROTECTORS, 1, 1, 2, 3, 4_000)
    | _sensor(PROTECTORS, 2, 1, 2, 2, 150)
    | _sensor(PROTECTORS, 3, 1, 2, 1, 30)
)


@asynccontextmanager
async def snmp_agent(table: Table) -> AsyncIterator[tuple[int, list[tuple[str, int]]]]:
    """Serve `table`; yields its port, and the orders that it got."""
    sets: list[tuple[str, int]] = []
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: SnmpAgent("secret", lambda: table, lambda oid, value: sets.append((oid, value))),
        local_addr=("127.0.0.1", 0),
    )
    try:
        yield transport.get_extra_info("sockname")[1], sets
    finally:
        transport.close()


@asynccontextmanager
async def _pdu(table: Table) -> AsyncIterator[tuple[ApcPdu | RaritanPdu, list[tuple[str, int]]]]:
    async with snmp_agent(table) as (port, sets):
        transport = PysnmpTransport(
            "127.0.0.1", Community(name="secret"), port=port, timeout_s=1.0, retries=0
        )
        try:
            yield await open_snmp_pdu(transport, StepClock()), sets
        finally:
            transport.close()


async def test_an_apc_is_read_in_its_mibs_units() -> None:
    async with _pdu(APC) as (pdu, _):
        state = await pdu.state()
        assert state.reading.power_watts == pytest.approx(1230.0)
        assert state.energy_kwh == pytest.approx(482.1)
        first, second = await pdu.outlets()
    assert first.reading is not None
    assert (first.label, first.is_on, first.reading.power_watts) == ("marne-v1", True, 187.0)
    assert first.energy_kwh == pytest.approx(30.5)
    assert (second.is_on, second.reading) == (False, None)


async def test_a_raritan_is_read_in_the_units_and_digits_that_it_tells() -> None:
    async with _pdu(RARITAN) as (pdu, _):
        state = await pdu.state()
        assert state.reading.power_watts == pytest.approx(138.5)
        assert state.energy_kwh == pytest.approx(56_438.0)
        first, second = await pdu.outlets()
    assert first.reading is not None
    assert (first.label, first.is_on, first.reading.power_watts) == ("marne-v1", True, 97.0)
    assert (second.is_on, second.reading) == (False, None)


async def test_a_raritan_in_other_units_is_refused_not_guessed() -> None:
    async with _pdu(RARITAN | {f"{PDU2}.3.3.4.1.6.1.1.5": 4}) as (pdu, _):
        with pytest.raises(RemoteProtocolError, match="unit 4"):
            await pdu.state()


async def test_a_raritans_inlets_add_up() -> None:
    async with _pdu(WIRED) as (pdu, _):
        state = await pdu.state()
    assert state.reading.power_watts == pytest.approx(3000.5)
    assert state.energy_kwh == pytest.approx(4.0)


async def test_a_raritans_protectors_and_inlets_name_the_outlets_behind_them() -> None:
    async with _pdu(WIRED) as (pdu, _):
        branches = {branch.branch_id: branch for branch in await pdu.branches()}
    fed = {name: branch.outlet_ids for name, branch in branches.items()}
    assert fed == {
        "C1": ("1", "2"), "C2": ("2",), "C3": ("3",), "I1": ("1", "2"), "I2": ("3", "10")
    }  # fmt: skip
    amps = {name: (branch.current_amps, branch.rated_amps) for name, branch in branches.items()}
    assert amps == {
        "C1": (4.0, 20.0), "C2": (1.5, 10.5), "C3": (3.0, 16.0), "I1": (4.0, 32.0),
        "I2": (6.0, 32.0),
    }  # fmt: skip
    assert branches["C2"].power_watts == pytest.approx(1.5 * 230)
    assert branches["C3"].power_watts == pytest.approx(3.0 * 400 * 3**0.5)


async def test_a_protector_in_another_unit_is_refused_not_guessed() -> None:
    async with _pdu(WIRED | {f"{PDU2}.3.4.4.1.6.1.2.1": 4}) as (pdu, _):
        with pytest.raises(RemoteProtocolError, match="unit 4"):
            await pdu.branches()


async def test_protectors_that_point_at_one_another_end_somewhere() -> None:
    circle: Table = {f"{PDU2}.3.4.3.1.10.1.1": _points_to("3.4.3.1.2.1.2")}
    async with _pdu(WIRED | circle) as (pdu, _):
        branches = {branch.branch_id: branch for branch in await pdu.branches()}
    assert branches["C1"].outlet_ids == branches["C2"].outlet_ids == ("1", "2")


async def test_a_negative_power_is_refused() -> None:
    async with _pdu(APC | {f"{RPDU2}.4.3.1.5.1": -40}) as (pdu, _):
        with pytest.raises(ImplausibleReading):
            await pdu.state()


@pytest.mark.parametrize(
    ("table", "order", "expected"),
    [
        (APC, PowerOrder.OFF, (f"{RPDU2}.9.2.4.1.5.1", 2)),
        (APC, PowerOrder.CYCLE, (f"{RPDU2}.9.2.4.1.5.1", 3)),
        (RARITAN, PowerOrder.ON, (f"{PDU2}.4.1.2.1.2.1.1", 1)),
        (RARITAN, PowerOrder.OFF, (f"{PDU2}.4.1.2.1.2.1.1", 0)),
    ],
)
async def test_an_outlet_is_switched_by_the_vendors_command(
    table: Table, order: PowerOrder, expected: tuple[str, int]
) -> None:
    async with _pdu(table) as (pdu, sets):
        await pdu.switch_outlet("1", order)
        with pytest.raises(NotFound):
            await pdu.switch_outlet("40", order)
    assert sets == [expected]


async def test_another_vendor_is_named() -> None:
    with pytest.raises(NotFound, match=r"1\.3\.6\.1\.4\.1\.9"):
        async with _pdu({SYS_OBJECT_ID: (1, 3, 6, 1, 4, 1, 9)}):
            pass


async def test_a_silent_pdu_is_unavailable_by_name() -> None:
    async with snmp_agent(APC) as (port, _):
        transport = PysnmpTransport(
            "127.0.0.1", Community(name="wrong"), port=port, timeout_s=0.2, retries=0
        )
        with pytest.raises(BmcUnavailable, match=str(port)):
            await open_snmp_pdu(transport, StepClock())
        transport.close()
