"""What is lost and brought back: a controller's machine with all its disks; the quorum's majority.

One federation for both, in this order: the second leaves two of its three sites dead.
"""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.federation.bare_federation import SITES, BareFederation, running, until

from nuage.clock import SystemClock
from nuage.daemon.backup import make_backup
from nuage.daemon.recovery import recover_quorum
from nuage.daemon.restore import Restored, restore
from nuage.errors import Conflict, InvalidRequest, Unavailable
from nuage.ids import SiteId

pytestmark = pytest.mark.system
LOST = SITES[0]
LEFT = SITES[1]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareFederation]:
    with running(tmp_path_factory.mktemp("bare")) as federation:
        yield federation


def names(federation: BareFederation, site: str) -> set[str]:
    rows = federation.client(site).get("/v1/iaas")
    assert isinstance(rows, list)
    return {row["value"]["name"] for row in rows}


def test_a_controller_whose_machine_is_lost_comes_back_from_an_old_backup(
    federation: BareFederation, tmp_path: Path
) -> None:
    """What was written since the back-up is told by the others; there is one quorum, as before."""
    backup, configuration = tmp_path / "backup", federation.configurations[LOST]
    federation.client(LOST).call("POST", "/v1/iaas", {"name": "before", "contract": {}})
    asyncio.run(make_backup(configuration, backup, SystemClock()))  # while it runs
    federation.client(LOST).call("POST", "/v1/iaas", {"name": "after", "contract": {}})
    until(lambda: names(federation, "marne") == {"before", "after"}, "marne knows both")
    until(lambda: names(federation, "rennes") == {"before", "after"}, "rennes knows both")
    until(lambda: federation.have_all_members("marne"), "every site's member has started")
    before = federation.members("marne")

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
    of_all = [federation.members(site) for site in SITES]
    is_one = all(found == of_all[0] for found in of_all)
    return is_one and set(of_all[0]) == set(SITES) and of_all[0][LOST] != before[LOST]


def recover(federation: BareFederation, *given_up: str) -> None:
    configuration = federation.configurations[LEFT]
    sites = [SiteId(site) for site in given_up]
    asyncio.run(recover_quorum(configuration, SystemClock(), given_up=sites))


def holds_its_lease(federation: BareFederation) -> bool:
    rows = federation.client(LEFT).get("/v1/leases")
    assert isinstance(rows, list)
    return LEFT in {row["site_id"] for row in rows if row["remaining_s"] is not None}


def test_one_site_goes_on_once_the_majority_is_lost_for_good(federation: BareFederation) -> None:
    """It is refused while anything answers that may be a quorum, or take part in one."""
    others = [site for site in SITES if site != LEFT]
    until(lambda: federation.have_all_members(LEFT), "all members run")
    with pytest.raises(Unavailable, match="open"):
        recover(federation, *others)
    federation.kill_site(LEFT)
    federation.kill_site(others[0])
    with pytest.raises(Conflict, match="answers"):
        recover(federation, *others)
    federation.kill_site(others[1])
    with pytest.raises(InvalidRequest, match="the other members are lyon, rennes"):
        recover(federation, others[0])

    recover(federation, *others)
    federation.start(LEFT)
    until(lambda: holds_its_lease(federation), "it holds its lease by itself")
    assert set(federation.members(LEFT)) == {LEFT}
    (log,) = (federation.root / LEFT / "controller" / "audit").glob("audit-*.log")
    assert "site.recover-quorum" in log.read_text()
