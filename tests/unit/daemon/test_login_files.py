"""Logins of BMCs and PDUs lie in files that nobody else may read."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nuage.clock import SystemClock
from nuage.daemon.hardware import PduLogins, connect
from nuage.errors import Forbidden, InvalidRequest

BMC_LOGIN = '{"user": "nuage", "password": "not for others"}'
SNMP_LOGIN = '{"user": "nuage", "authentication_key": "not for others"}'


async def _use_bmc(file: Path) -> None:
    connect("https://192.0.2.1", file, SystemClock())


async def _use_redfish_pdu(file: Path) -> None:
    async with PduLogins(file, None).opener("https://192.0.2.1", SystemClock())():
        pass


async def _use_snmp_pdu(file: Path) -> None:
    async with PduLogins(None, file).opener("snmp://192.0.2.1", SystemClock())():
        pass


USES = ((_use_bmc, BMC_LOGIN), (_use_redfish_pdu, BMC_LOGIN), (_use_snmp_pdu, SNMP_LOGIN))


@pytest.mark.parametrize(("use", "login"), USES)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
async def test_a_login_that_others_may_read_is_refused_by_name_and_not_quoted(
    tmp_path: Path, use: Callable[[Path], Awaitable[None]], login: str, mode: int
) -> None:
    file = tmp_path / "login.json"
    file.write_text(login)
    file.chmod(mode)
    with pytest.raises(Forbidden, match=r"login\.json may be read by others") as refused:
        await use(file)
    assert refused.value.hint.startswith(f"chmod 600 {file}")
    assert "not for others" not in str(refused.value)


@pytest.mark.parametrize(
    ("use", "field"), [(_use_bmc, "bmc_login_file"), (_use_snmp_pdu, "energy.snmp_login_file")]
)
@pytest.mark.parametrize("held", [None, "not JSON"])
async def test_a_login_that_is_missing_or_unreadable_names_its_setting(
    tmp_path: Path, use: Callable[[Path], Awaitable[None]], field: str, held: str | None
) -> None:
    file = tmp_path / "login.json"
    if held is not None:
        file.write_text(held)
        file.chmod(0o600)
    with pytest.raises(InvalidRequest, match=str(file)) as refused:
        await use(file)
    assert refused.value.field == field


async def test_a_login_that_only_its_owner_may_read_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "login.json"
    file.write_text(BMC_LOGIN)
    file.chmod(0o600)
    await _use_bmc(file)
