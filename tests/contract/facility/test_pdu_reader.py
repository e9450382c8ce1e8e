"""The controller's meter loop, on PDUs of both kinds, as an inventory names them."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.contract.facility.facility_bench import (
    COMMUNITY,
    LOGIN,
    PDU,
    Bench,
    StepClock,
    running_bench,
)
from tests.contract.facility.snmp_v3_device import USER

from nuage.daemon.energy_pdus import PduReader, PduSeen
from nuage.daemon.hardware import PduLogins
from nuage.errors import InvalidRequest
from nuage.facility.ports import BmcRefused, PowerOrder
from nuage.lab.description import PduSpeech
from nuage.lab.rig import Fault


@dataclass(slots=True)
class Wired:
    """A PDU as the inventory names it, and the logins of the site."""

    bench: Bench
    url: str
    logins: PduLogins


@pytest.fixture(params=["redfish", "apc", "raritan"])
async def wired(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Wired]:
    redfish, snmp = tmp_path / "bmc.json", tmp_path / "snmp.json"
    _keep(redfish, {"user": LOGIN.user, "password": LOGIN.password})
    _keep(snmp, {"community": COMMUNITY})
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(running_bench())
        url = bench.pdu_url
        if request.param != "redfish":
            port = await stack.enter_async_context(bench.snmp(PduSpeech(request.param)))
            url = f"snmp://127.0.0.1:{port}"
        yield Wired(bench, url, PduLogins(redfish, snmp))


def _keep(path: Path, login: Mapping[str, str]) -> None:
    """Write a login as its owner must: nobody else may read it."""
    path.touch(mode=0o600)
    path.write_text(json.dumps(login))


async def _first_reading(wired: Wired) -> PduSeen:
    heard: asyncio.Queue[PduSeen] = asyncio.Queue()
    opener = wired.logins.opener(wired.url, wired.bench.clock)
    reader = PduReader("r1", opener, wired.bench.clock, heard.put_nowait)
    running = asyncio.create_task(reader.run())
    try:
        async with asyncio.timeout(30):
            return await heard.get()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_the_loop_reads_what_the_rack_draws_whatever_its_pdu_speaks(wired: Wired) -> None:
    seen = await _first_reading(wired)
    assert seen.failure == ""
    assert seen.watts == pytest.approx(wired.bench.rig.pdu_watts(PDU), abs=10.0)
    assert seen.energy_kwh is not None
    outlet = seen.outlets["1"].reading
    assert outlet is not None
    feeding = wired.bench.rig.outlets[PDU][0]
    assert outlet.power_watts == pytest.approx(wired.bench.rig.outlet_watts(PDU, feeding), abs=1.0)


async def test_a_pdu_is_read_and_switched_by_snmp_3_with_keys_from_a_file(tmp_path: Path) -> None:
    """One PDU for all of it: an engine and its keys take a second to make."""
    login = {"user": USER.name, "privacy_key": USER.privacy_key}
    right, wrong = tmp_path / "snmp.json", tmp_path / "wrong.json"
    _keep(right, login | {"authentication_key": USER.authentication_key})
    _keep(wrong, login | {"authentication_key": "not this one"})
    async with running_bench() as bench, bench.snmp_v3(PduSpeech.APC) as port:
        url = f"snmp://127.0.0.1:{port}"
        async with PduLogins(None, right).opener(url, bench.clock)() as pdu:
            first, *others = await pdu.outlets()
            assert first.is_on is True
            fed = sorted(n for branch in await pdu.branches() for n in branch.outlet_ids)
            assert fed == sorted(each.outlet_id for each in (first, *others))
            whole = (await pdu.state()).reading.power_watts
            assert whole == pytest.approx(bench.rig.pdu_watts(PDU), abs=10.0)
            await pdu.switch_outlet(first.outlet_id, PowerOrder.OFF)
            assert (await pdu.outlets())[0].is_on is False
        with pytest.raises(BmcRefused):
            async with PduLogins(None, wrong).opener(url, bench.clock)():
                pass


async def test_a_pdu_that_comes_back_is_read_again(wired: Wired) -> None:
    wired.bench.rig.set_fault(PDU, Fault(jump_watts=-100_000.0))
    heard: asyncio.Queue[PduSeen] = asyncio.Queue()
    opener = wired.logins.opener(wired.url, wired.bench.clock)
    reader = PduReader("r1", opener, wired.bench.clock, heard.put_nowait)
    running = asyncio.create_task(reader.run())
    try:
        async with asyncio.timeout(30):
            while "negative" not in reader.seen.failure:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
            wired.bench.rig.set_fault(PDU, Fault())
            seen = await heard.get()
        assert seen.failure == ""
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_a_pdu_without_its_login_or_of_no_kind_is_refused() -> None:
    clock = StepClock()
    with pytest.raises(InvalidRequest, match="needs a login"):
        PduLogins(None, None).opener("https://10.1.1.240", clock)
    with pytest.raises(InvalidRequest, match="needs a login"):
        PduLogins(Path("bmc.json"), None).opener("snmp://10.1.1.240", clock)
    with pytest.raises(InvalidRequest, match="no address of a PDU"):
        PduLogins(Path("bmc.json"), Path("snmp.json")).opener("modbus://10.1.1.240", clock)
