"""What every driver of hardware promises, on memory and on the lab's emulator over HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from tests.contract.facility.facility_bench import NODE, PDU, StepClock, running_bench

from nuage.energy.meters import MeterSource
from nuage.errors import NotFound
from nuage.facility.memory import MemoryNode, MemoryOutlet, MemoryPdu
from nuage.facility.ports import (
    BmcUnavailable,
    BootDevice,
    ImplausibleReading,
    Meter,
    OutletOrder,
    PowerControl,
    PowerState,
    RackPdu,
)
from nuage.facility.redfish_node import RedfishNode
from nuage.facility.redfish_pdu import RedfishPdu
from nuage.lab.rig import Fault


@dataclass(slots=True)
class Subject:
    """A machine and the PDU that feeds it, and ways to break them."""

    control: PowerControl
    meter: Meter
    pdu: RackPdu
    url: str
    clock: StepClock
    silence: Callable[[], None]
    lie: Callable[[], None]


@pytest.fixture(params=["memory", "emulator"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        clock = StepClock()
        node = MemoryNode("mem://node", clock)
        pdu = MemoryPdu("mem://pdu", clock, own_watts=6.0)
        pdu.outlet_by_id["1"] = MemoryOutlet("marne-v1", watts=53.0)

        def silence() -> None:
            node.silent = True

        def lie() -> None:
            node.on_watts = node.off_watts = -2000.0

        yield Subject(node, node, pdu, node.url, clock, silence, lie)
        return
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(running_bench())
        node_connection = bench.connect(bench.node_url, timeout_s=0.5)
        pdu_connection = bench.connect(bench.pdu_url)
        for connection in (node_connection, pdu_connection):
            await stack.enter_async_context(connection)
        machine = RedfishNode(node_connection, bench.clock)
        yield Subject(
            machine, machine, RedfishPdu(pdu_connection, bench.clock), bench.node_url, bench.clock,
            lambda: bench.rig.set_fault(NODE, Fault(silent=True)),
            lambda: bench.rig.set_fault(NODE, Fault(jump_watts=-2000.0)),
        )  # fmt: skip


async def _settle(subject: Subject, wanted: PowerState) -> None:
    for _ in range(100):
        if await subject.control.power_state() is wanted:
            return
        await subject.clock.sleep(1.0)
    pytest.fail(f"never {wanted}")


async def test_a_machine_switches_on_and_off(subject: Subject) -> None:
    assert await subject.control.power_state() is PowerState.OFF
    await subject.control.power_on()
    await _settle(subject, PowerState.ON)
    await subject.control.power_off(force=True)
    await _settle(subject, PowerState.OFF)


async def test_an_order_that_is_fulfilled_already_does_nothing(subject: Subject) -> None:
    await subject.control.power_off(force=True)
    await subject.control.power_off()
    await subject.control.power_on()
    await _settle(subject, PowerState.ON)
    await subject.control.power_on()
    assert await subject.control.power_state() is PowerState.ON


async def test_a_power_cycle_ends_in_on(subject: Subject) -> None:
    await subject.control.power_cycle()
    await _settle(subject, PowerState.ON)
    await subject.control.power_cycle()
    await _settle(subject, PowerState.ON)


async def test_a_machine_that_runs_draws_more_than_one_that_is_off(subject: Subject) -> None:
    off = await subject.meter.read()
    await subject.control.power_on()
    await _settle(subject, PowerState.ON)
    await subject.clock.sleep(1.0)
    running = await subject.meter.read()
    assert 0 < off.power_watts < running.power_watts
    assert running.source is MeterSource.BMC
    assert running.read_s > off.read_s


async def test_a_boot_device_can_be_chosen(subject: Subject) -> None:
    await subject.control.set_boot_device(BootDevice.NETWORK)
    await subject.control.set_boot_device(BootDevice.DEFAULT)


async def test_a_silent_bmc_is_unavailable_by_name(subject: Subject) -> None:
    subject.silence()
    with pytest.raises(BmcUnavailable) as caught:
        await subject.control.power_state()
    assert caught.value.url == subject.url
    assert subject.url in caught.value.message


async def test_a_meter_that_reads_below_zero_is_not_believed(subject: Subject) -> None:
    subject.lie()
    with pytest.raises(ImplausibleReading) as caught:
        await subject.meter.read()
    assert caught.value.rule == "negative"


async def test_a_pdu_reads_as_much_as_its_outlets_together(subject: Subject) -> None:
    outlets = await subject.pdu.outlets()
    whole = await subject.pdu.state()
    parts = sum(outlet.reading.power_watts for outlet in outlets if outlet.reading is not None)
    assert whole.reading.power_watts == pytest.approx(parts + 6.0, abs=0.1)
    assert whole.reading.source is MeterSource.OUTLET


async def test_branches_name_the_outlets_they_feed(subject: Subject) -> None:
    branches = await subject.pdu.branches()
    fed = sorted(outlet for branch in branches for outlet in branch.outlet_ids)
    assert fed == sorted(outlet.outlet_id for outlet in await subject.pdu.outlets())
    assert all(branch.current_amps <= branch.rated_amps for branch in branches)


async def test_an_outlet_is_switched(subject: Subject) -> None:
    async def first() -> bool | None:
        return (await subject.pdu.outlets())[0].is_on

    assert await first() is True
    await subject.pdu.switch_outlet("1", OutletOrder.OFF)
    await subject.clock.sleep(1.0)
    assert await first() is False
    await subject.pdu.switch_outlet("1", OutletOrder.ON)
    await subject.clock.sleep(1.0)
    assert await first() is True


async def test_an_outlet_that_is_not_there_is_not_found(subject: Subject) -> None:
    with pytest.raises(NotFound):
        await subject.pdu.switch_outlet("99", OutletOrder.OFF)


async def test_the_names_of_the_bench_are_those_of_the_lab() -> None:
    async with running_bench() as bench:
        assert {NODE, PDU} == set(bench.services)
