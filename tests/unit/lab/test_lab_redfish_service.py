"""The Redfish service behind a BMC or PDU, without HTTP."""

import base64
from collections.abc import Iterator
from itertools import count

import pytest

from nuage.lab.bmc_documents import install_bmc
from nuage.lab.description import DEFAULT_DESCRIPTION, load_description
from nuage.lab.machine import State
from nuage.lab.pdu_documents import install_pdu
from nuage.lab.redfish_service import (
    SESSION_TIMEOUT_S,
    SESSIONS_MAX,
    Accounts,
    Identity,
    Json,
    RedfishError,
    RedfishService,
)
from nuage.lab.rig import Rig

LAB = load_description(DEFAULT_DESCRIPTION.with_name("duo.toml"))
SYSTEM = "/redfish/v1/Systems/1"
RESET = f"{SYSTEM}/Actions/ComputerSystem.Reset"
OUTLET = "/redfish/v1/PowerEquipment/RackPDUs/1/Outlets/1"


class StillClock:
    now = 100.0

    def now_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        self.now += delay_s


def _accounts() -> Accounts:
    numbers = count()
    return Accounts("operator", "secret", lambda size: next(numbers).to_bytes(size, "big"))


@pytest.fixture
def rig() -> Rig:
    return Rig(LAB, StillClock(), cpu_seconds=lambda _: 0.0, perform=lambda _node, _effects: None)


def _service(rig: Rig, name: str) -> RedfishService:
    identity = Identity(name=name, address="10.0.0.1", port=443, mac="02::1", product="Lab")
    service = RedfishService(identity, _accounts(), rig.clock.now_s)
    (install_pdu if name in rig.pdus else install_bmc)(service, rig, name)
    return service


def _links(value: Json) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            if key in ("@odata.id", "DataSourceUri") and isinstance(each, str):
                yield each
            else:
                yield from _links(each)
    elif isinstance(value, list):
        for each in value:
            yield from _links(each)


@pytest.mark.parametrize("name", ["marne-v1", "marne-r1-pdu"])
def test_every_link_leads_somewhere(rig: Rig, name: str) -> None:
    service = _service(rig, name)
    seen: set[str] = set()
    ahead = ["/redfish/v1"]
    while ahead:
        path = ahead.pop()
        document = service.get(path)
        assert document["@odata.id"] == path
        found = {link.partition("#")[0].rstrip("/") for link in _links(document)}
        ahead += sorted(found - seen - {path})
        seen |= found | {path}
    assert len(seen) > 30


def test_a_refused_change_changes_nothing(rig: Rig) -> None:
    service = _service(rig, "marne-v1")
    with pytest.raises(RedfishError) as caught:
        service.patch(SYSTEM, {"Boot": {"BootSourceOverrideTarget": "Pxe"}, "SerialNumber": "mine"})
    assert caught.value.status == 400
    boot = service.get(SYSTEM)["Boot"]
    assert isinstance(boot, dict)
    assert boot["BootSourceOverrideTarget"] == "None"


@pytest.mark.parametrize("body", [{"ResetType": "Explode"}, {"ResetType": 7}, {"ResetType": None}])
def test_an_unknown_reset_is_refused(rig: Rig, body: dict[str, Json]) -> None:
    with pytest.raises(RedfishError) as caught:
        _service(rig, "marne-v1").post(RESET, body)
    assert caught.value.status == 400
    assert rig.machines["marne-v1"].state is State.OFF


def test_a_machine_that_is_off_cannot_be_restarted(rig: Rig) -> None:
    with pytest.raises(RedfishError) as caught:
        _service(rig, "marne-v1").post(RESET, {"ResetType": "ForceRestart"})
    assert caught.value.status == 409


@pytest.mark.parametrize("value", [-1, 301, True, "4"])
def test_an_outlets_delay_is_checked(rig: Rig, value: Json) -> None:
    with pytest.raises(RedfishError):
        _service(rig, "marne-r1-pdu").patch(OUTLET, {"PowerOnDelaySeconds": value})


def test_an_outlet_obeys_its_delays(rig: Rig) -> None:
    service = _service(rig, "marne-r1-pdu")
    service.patch(OUTLET, {"PowerOffDelaySeconds": 4})
    service.post(f"{OUTLET}/Actions/Outlet.PowerControl", {"PowerState": "Off"})
    assert service.get(OUTLET)["PowerStateInTransition"] is True
    assert rig.advance() == pytest.approx(4.0)
    StillClock.now += 4.0
    try:
        rig.advance()
        assert service.get(OUTLET)["PowerState"] == "Off"
        assert rig.machines["marne-v1"].state is State.DARK
    finally:
        StillClock.now -= 4.0


def test_the_log_keeps_what_was_ordered(rig: Rig) -> None:
    service = _service(rig, "marne-v1")
    service.post(RESET, {"ResetType": "On"})
    entries = service.get("/redfish/v1/Managers/1/LogServices/Log/Entries")
    assert "ComputerSystem.Reset" in str(entries)


def test_sessions_expire_and_are_bounded() -> None:
    accounts = _accounts()
    first = accounts.open(0.0)
    assert accounts.by_token(first.token, SESSION_TIMEOUT_S) is first
    assert accounts.by_token(first.token, 2 * SESSION_TIMEOUT_S + 1) is None
    for _ in range(SESSIONS_MAX + 5):
        accounts.open(10_000.0)
    assert len(accounts.sessions) == SESSIONS_MAX


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("Basic " + base64.b64encode(b"operator:secret").decode(), True),
        ("Basic " + base64.b64encode(b"operator:guess").decode(), False),
        ("Basic " + base64.b64encode(b"operator").decode(), False),
        ("Basic %%%", False),
        ("Bearer operator:secret", False),
        ("", False),
    ],
)
def test_basic_authentication_takes_the_right_password_only(header: str, accepted: bool) -> None:  # noqa: FBT001
    assert _accounts().basic(header) is accepted
