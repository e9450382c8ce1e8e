"""The Redfish drivers against the lab's emulator, beyond what every driver promises."""

import asyncio
import ssl
from pathlib import Path

import pytest
from tests.contract.facility.facility_bench import LOGIN, NODE, PDU, StepClock, running_bench

from nuage.energy.meters import NodeMeters
from nuage.errors import NotFound, RemoteProtocolError, TimedOut
from nuage.facility.ports import (
    BmcNotTrusted,
    BmcRefused,
    BmcUnavailable,
    BootDevice,
    PowerOrder,
    PowerState,
)
from nuage.facility.redfish import Login, RedfishConnection, Trust
from nuage.facility.redfish_node import RedfishNode
from nuage.facility.redfish_pdu import RedfishPdu
from nuage.lab.certificate import make_certificate
from nuage.lab.machine import Effect, State
from nuage.lab.rig import Fault


async def until_on(node: RedfishNode, clock: StepClock) -> None:
    for _ in range(10):
        if await node.power_state() is PowerState.ON:
            return
        await clock.sleep(1.0)
    raise AssertionError("the machine does not come on")


async def test_watts_follow_the_cpu_that_a_node_uses() -> None:
    async with running_bench() as bench, bench.connect(bench.node_url) as connection:
        node = RedfishNode(connection, bench.clock)
        await node.power_on()
        await until_on(node, bench.clock)
        await bench.clock.sleep(10.0)
        assert (await node.read()).power_watts == pytest.approx(50.0)
        await bench.clock.sleep(10.0)
        bench.cpu_s[NODE] = 10.0  # half of two CPUs for ten seconds
        assert (await node.read()).power_watts == pytest.approx(100.0)


async def outlet_watts(pdu: RedfishPdu) -> float | None:
    reading = (await pdu.outlet("1")).reading
    return None if reading is None else reading.power_watts


async def test_an_outlet_reads_the_machine_and_its_supply_and_takes_it_down_when_off() -> None:
    async with (
        running_bench() as bench,
        bench.connect(bench.node_url, timeout_s=0.2) as at_node,
        bench.connect(bench.pdu_url) as at_pdu,
    ):
        node, pdu = RedfishNode(at_node, bench.clock), RedfishPdu(at_pdu, bench.clock)
        await node.power_on()
        await until_on(node, bench.clock)
        await bench.clock.sleep(2.0)
        assert await outlet_watts(pdu) == pytest.approx(50.0 / 0.94, abs=0.01)
        await pdu.switch_outlet("1", PowerOrder.OFF)
        assert bench.rig.machines[NODE].state is State.DARK
        assert bench.performed[-1] == (NODE, (Effect.KILL,))
        assert await outlet_watts(pdu) == 0.0
        with pytest.raises(BmcUnavailable):
            await node.power_state()


async def test_a_machine_comes_back_as_it_was_when_its_outlet_does() -> None:
    async with (
        running_bench() as bench,
        bench.connect(bench.node_url) as at_node,
        bench.connect(bench.pdu_url) as at_pdu,
    ):
        node, pdu = RedfishNode(at_node, bench.clock), RedfishPdu(at_pdu, bench.clock)
        await node.power_on()
        await until_on(node, bench.clock)
        await pdu.switch_outlet("1", PowerOrder.CYCLE)
        await bench.clock.sleep(2.0)
        await pdu.outlets()
        await until_on(node, bench.clock)
        assert bench.rig.machines[NODE].boots == 2


async def test_a_boot_device_for_once_is_used_up_by_one_boot() -> None:
    async with running_bench() as bench, bench.connect(bench.node_url) as connection:
        node = RedfishNode(connection, bench.clock)
        await node.set_boot_device(BootDevice.NETWORK)

        def boot() -> object:
            return bench.services[NODE].get("/redfish/v1/Systems/1")["Boot"]

        assert "Pxe" in str(boot())
        await node.power_on()
        assert "'BootSourceOverrideEnabled': 'Disabled'" in str(boot())


async def test_a_wrong_password_is_refused_by_name() -> None:
    async with running_bench() as bench:
        wrong = Login(user="operator", password="guess")
        async with RedfishConnection(bench.node_url, wrong, bench.clock) as connection:
            with pytest.raises(BmcRefused) as caught:
                await RedfishNode(connection, bench.clock).power_state()
    assert bench.node_url in caught.value.message
    assert "guess" not in repr(wrong)


async def test_an_expired_session_is_renewed_unseen() -> None:
    async with running_bench() as bench, bench.connect(bench.node_url) as connection:
        node = RedfishNode(connection, bench.clock)
        await node.power_state()
        bench.services[NODE].accounts.sessions.clear()
        assert await node.power_state() is PowerState.OFF


async def test_a_session_is_given_back_at_the_end() -> None:
    async with running_bench() as bench:
        async with bench.connect(bench.node_url) as connection:
            await RedfishNode(connection, bench.clock).power_state()
            assert len(bench.services[NODE].accounts.sessions) == 1
        assert not bench.services[NODE].accounts.sessions


async def test_an_order_whose_answer_is_late_is_not_given_twice() -> None:
    async with running_bench() as bench, bench.connect(bench.node_url, timeout_s=0.3) as connection:
        node = RedfishNode(connection, bench.clock)
        await node.power_state()
        target = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"
        bench.rig.set_fault(NODE, Fault(slow_s=0.6))
        with pytest.raises(TimedOut):
            await connection.post(target, {"ResetType": "On"})
        bench.rig.set_fault(NODE, Fault())
        assert len(bench.performed) <= 1


async def test_a_slow_bmc_within_the_limit_is_waited_for() -> None:
    async with running_bench() as bench, bench.connect(bench.node_url) as connection:
        bench.rig.set_fault(NODE, Fault(slow_s=0.05))
        assert await RedfishNode(connection, bench.clock).power_state() is PowerState.OFF


async def test_a_meter_that_jumps_is_believed_when_it_says_so_again() -> None:
    async with running_bench() as bench, bench.connect(bench.node_url) as connection:
        node, meters = RedfishNode(connection, bench.clock), NodeMeters(nameplate_watts=600.0)
        assert meters.take(await node.read()) is None
        bench.rig.set_fault(NODE, Fault(jump_watts=400.0))
        await bench.clock.sleep(5.0)
        refused = meters.take(await node.read())
        assert refused is not None
        assert refused.rule == "jump"
        await bench.clock.sleep(5.0)
        again = await node.read()
        assert meters.take(again) is None
        assert again.power_watts == pytest.approx(404.0)


async def test_the_weather_outside_is_read_from_the_pdus_probe() -> None:
    async with running_bench() as bench, bench.connect(bench.pdu_url) as connection:
        bench.rig.set_weather("marne", 31.0)
        state = await RedfishPdu(connection, bench.clock).state()
        assert state.outside_celsius == 31.0
        assert state.inlet_celsius == 20.0


async def test_a_bmc_is_not_a_pdu() -> None:
    async with running_bench() as bench, bench.connect(bench.node_url) as connection:
        with pytest.raises(NotFound, match="PDU"):
            await RedfishPdu(connection, bench.clock).state()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 201 OK\r\nContent-Length: 2\r\n\r\n{}", RemoteProtocolError),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", BmcUnavailable),
        (b"SSH-2.0-OpenSSH_9\r\n", (BmcUnavailable, TimedOut)),
        (b"", (BmcUnavailable, TimedOut)),
    ],
)
async def test_whatever_a_device_answers_is_a_typed_error(
    answer: bytes, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with RedfishConnection(url, LOGIN, StepClock(), timeout_s=1.0) as connection:
            with pytest.raises(error):
                await RedfishNode(connection, StepClock()).power_state()


async def test_a_device_with_another_certificate_is_not_trusted(tmp_path: Path) -> None:
    for name in ("its", "other"):
        make_certificate(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", ["127.0.0.1"])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "its.pem", tmp_path / "its.key")

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for trust, error in (
            (Trust(certificate=tmp_path / "other.pem"), BmcNotTrusted),
            (Trust(fingerprint="ab" * 32), BmcNotTrusted),
            (Trust(certificate=tmp_path / "its.pem"), BmcUnavailable),
        ):
            connection = RedfishConnection(url, LOGIN, StepClock(), trust=trust, timeout_s=1.0)
            async with connection:
                with pytest.raises(error):
                    await RedfishNode(connection, StepClock()).power_state()


async def test_a_closed_port_is_unavailable_after_the_tries_allowed() -> None:
    clock = StepClock()
    began_s = clock.now_s()
    async with RedfishConnection("http://127.0.0.1:1", LOGIN, clock) as connection:
        with pytest.raises(BmcUnavailable, match="tried 3 times"):
            await RedfishNode(connection, clock).power_state()
    assert clock.now_s() - began_s == pytest.approx(0.6)


async def test_the_pdu_of_the_bench_is_found_by_its_id() -> None:
    async with running_bench() as bench, bench.connect(bench.pdu_url) as connection:
        outlets = await RedfishPdu(connection, bench.clock, pdu_id="1").outlets()
        assert [each.label for each in outlets] == list(bench.rig.pdus[PDU].outlets)
        with pytest.raises(NotFound):
            await RedfishPdu(connection, bench.clock, pdu_id="2").state()
