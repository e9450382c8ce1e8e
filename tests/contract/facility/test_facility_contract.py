"""What every driver of hardware promises: on memory, and on the lab's emulators.

Machines through Redfish; PDUs through Redfish and through both vendors' SNMP.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from tests.contract.facility.facility_bench import (
    COMMUNITY,
    NODE,
    PDU,
    StepClock,
    running_bench,
)

from nuage.energy.meters import MeterSource
from nuage.errors import NotFound
from nuage.facility.memory import MemoryNode, MemoryOutlet, MemoryPdu
from nuage.facility.ports import (
    BmcUnavailable,
    BootDevice,
    ImplausibleReading,
    Meter,
    PowerControl,
    PowerOrder,
    PowerState,
    RackPdu,
)
from nuage.facility.redfish_node import RedfishNode
from nuage.facility.redfish_pdu import RedfishPdu
from nuage.facility.snmp import open_snmp_pdu
from nuage.facility.snmp_transport import Community, PysnmpTransport
from nuage.lab.description import PduSpeech
from nuage.lab.rig import Fault


@dataclass(slots=True)
class Subject:
    """A machine, and ways to break it."""

    control: PowerControl
    meter: Meter
    url: str
    clock: StepClock
    silence: Callable[[], None]
    lie: Callable[[], None]


@pytest.fixture(params=["memory", "emulator"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        clock = StepClock()
        node = MemoryNode("mem://node", clock)

        def silence() -> None:
            node.silent = True

        def lie() -> None:
            node.on_watts = node.off_watts = -2000.0

        yield Subject(node, node, node.url, clock, silence, lie)
        return
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(running_bench())
        node_connection = bench.connect(bench.node_url, timeout_s=0.5)
        await stack.enter_async_context(node_connection)
        machine = RedfishNode(node_connection, bench.clock)
        yield Subject(
            machine, machine, bench.node_url, bench.clock,
            lambda: bench.rig.set_fault(NODE, Fault(silent=True)),
            lambda: bench.rig.set_fault(NODE, Fault(jump_watts=-2000.0)),
        )  # fmt: skip


@dataclass(slots=True)
class Rack:
    """A PDU, and ways to break it. `step_watts` is the coarsest that it tells."""

    pdu: RackPdu
    clock: StepClock
    step_watts: float
    silence: Callable[[], None]


@pytest.fixture(params=["memory", "redfish", "apc", "raritan"])
async def rack(request: pytest.FixtureRequest) -> AsyncIterator[Rack]:
    if request.param == "memory":
        clock = StepClock()
        memory = MemoryPdu("mem://pdu", clock, own_watts=6.0)
        memory.outlet_by_id["1"] = MemoryOutlet("marne-v1", watts=53.0)

        def silence() -> None:
            memory.silent = True

        yield Rack(memory, clock, 0.0, silence)
        return
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(running_bench())
        pdu: RackPdu
        step_watts = 0.1
        if request.param == "redfish":
            connection = bench.connect(bench.pdu_url, timeout_s=0.5)
            await stack.enter_async_context(connection)
            pdu = RedfishPdu(connection, bench.clock)
        else:
            speech = PduSpeech(request.param)
            port = await stack.enter_async_context(bench.snmp(speech))
            transport = PysnmpTransport(
                "127.0.0.1", Community(name=COMMUNITY), port=port, timeout_s=0.5, retries=0
            )
            stack.callback(transport.close)
            pdu = await open_snmp_pdu(transport, bench.clock)
            step_watts = 10.0 if speech is PduSpeech.APC else 0.1
        yield Rack(
            pdu, bench.clock, step_watts, lambda: bench.rig.set_fault(PDU, Fault(silent=True))
        )


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


async def test_a_pdu_reads_as_much_as_its_outlets_together(rack: Rack) -> None:
    outlets = await rack.pdu.outlets()
    whole = await rack.pdu.state()
    parts = sum(outlet.reading.power_watts for outlet in outlets if outlet.reading is not None)
    assert whole.reading.power_watts == pytest.approx(
        parts + 6.0, abs=0.1 + rack.step_watts * len(outlets)
    )
    assert whole.reading.source is MeterSource.OUTLET


async def test_branches_name_the_outlets_they_feed(rack: Rack) -> None:
    branches = await rack.pdu.branches()
    fed = sorted(outlet for branch in branches for outlet in branch.outlet_ids)
    assert fed == sorted(outlet.outlet_id for outlet in await rack.pdu.outlets())
    assert all(0 <= branch.current_amps <= branch.rated_amps for branch in branches)
    watts = {o.outlet_id: o.reading.power_watts for o in await rack.pdu.outlets() if o.reading}
    for branch in branches:
        drawn = sum(watts[outlet] for outlet in branch.outlet_ids)
        assert drawn - rack.step_watts * len(watts) <= branch.power_watts <= 1.1 * drawn + 24.0


async def test_an_outlet_is_switched(rack: Rack) -> None:
    async def first() -> bool | None:
        return (await rack.pdu.outlets())[0].is_on

    assert await first() is True
    await rack.pdu.switch_outlet("1", PowerOrder.OFF)
    await rack.clock.sleep(1.0)
    assert await first() is False
    await rack.pdu.switch_outlet("1", PowerOrder.ON)
    await rack.clock.sleep(1.0)
    assert await first() is True


async def test_an_outlet_that_is_not_there_is_not_found(rack: Rack) -> None:
    with pytest.raises(NotFound):
        await rack.pdu.switch_outlet("99", PowerOrder.OFF)


async def test_outlets_name_what_they_feed(rack: Rack) -> None:
    first = (await rack.pdu.outlets())[0]
    assert (first.outlet_id, first.label) == ("1", "marne-v1")
    assert first.energy_kwh is not None


async def test_what_flows_is_counted(rack: Rack) -> None:
    before = await rack.pdu.state()
    await rack.clock.sleep(24 * 3600.0)
    after = await rack.pdu.state()
    assert before.energy_kwh is not None
    assert after.energy_kwh is not None
    assert after.energy_kwh >= before.energy_kwh
    assert after.reading.read_s > before.reading.read_s


async def test_a_silent_pdu_is_unavailable(rack: Rack) -> None:
    rack.silence()
    with pytest.raises(BmcUnavailable):
        await rack.pdu.state()


async def test_the_names_of_the_bench_are_those_of_the_lab() -> None:
    async with running_bench() as bench:
        assert {NODE, PDU} == set(bench.services)
