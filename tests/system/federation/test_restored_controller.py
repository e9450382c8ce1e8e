"""The machine of the founding site's controller is lost, with all its disks."""

import asyncio
import shutil
from pathlib import Path

import pytest
from tests.system.federation.bare_federation import SITES, BareFederation, running, until

from nuage.clock import SystemClock
from nuage.daemon.backup import make_backup
from nuage.daemon.quorum import open_etcd
from nuage.daemon.restore import Restored, restore

pytestmark = pytest.mark.system
LOST = SITES[0]


def names(federation: BareFederation, site: str) -> set[str]:
    rows = federation.client(site).get("/v1/iaas")
    assert isinstance(rows, list)
    return {row["value"]["name"] for row in rows}


async def members(federation: BareFederation, site: str) -> dict[str, int]:
    client = open_etcd(federation.configurations[site])
    try:
        return {member.name: member.id for member in (await client.member_list()).members}
    finally:
        await client.close()


def test_a_controller_whose_machine_is_lost_comes_back_from_an_old_backup(tmp_path: Path) -> None:
    """What was written since the back-up is told by the others; there is one quorum, as before."""
    with running(tmp_path) as federation:
        backup, configuration = tmp_path / "backup", federation.configurations[LOST]
        federation.client(LOST).call("POST", "/v1/iaas", {"name": "before", "contract": {}})
        asyncio.run(make_backup(configuration, backup, SystemClock()))  # while it runs
        federation.client(LOST).call("POST", "/v1/iaas", {"name": "after", "contract": {}})
        until(lambda: names(federation, "marne") == {"before", "after"}, "marne knows both")
        until(lambda: names(federation, "rennes") == {"before", "after"}, "rennes knows both")
        until(
            lambda: set(asyncio.run(members(federation, "marne"))) == set(SITES),
            "every site's member has started",
        )
        before = asyncio.run(members(federation, "marne"))

        federation.kill_site(LOST)
        for part in ("controller", "trust", "etcd"):
            shutil.rmtree(federation.root / LOST / part)
        restored: Restored = asyncio.run(restore(configuration, backup, SystemClock()))
        assert (restored.source in ("marne", "rennes"), restored.is_sure) == (True, True)
        federation.start(LOST)

        until(lambda: federation.sees_everybody(LOST), "it sees all again")
        assert names(federation, LOST) == {"before", "after"}
        federation.client(LOST).call("POST", "/v1/iaas", {"name": "new", "contract": {}})
        for site in SITES:
            until(lambda site=site: "new" in names(federation, site), f"{site} follows it again")  # type: ignore[misc]
        # Its member is another, for it never promises twice under one id; and there is one quorum.
        until(lambda: has_replaced(federation, before), "its member is back")


def has_replaced(federation: BareFederation, before: dict[str, int]) -> bool:
    of_all = [asyncio.run(members(federation, site)) for site in SITES]
    is_one = all(found == of_all[0] for found in of_all)
    return is_one and set(of_all[0]) == set(SITES) and of_all[0][LOST] != before[LOST]
