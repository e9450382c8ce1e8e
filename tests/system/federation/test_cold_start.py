"""The whole federation loses its power at once, and comes back by being started."""

from pathlib import Path

import pytest
from tests.system.federation.bare_federation import SITES, BareFederation, running, until

from nuage.errors import Unauthenticated
from nuage.trust.store import TrustStore

pytestmark = pytest.mark.system


def names(federation: BareFederation, site: str) -> set[str]:
    rows = federation.client(site).get("/v1/iaas")
    assert isinstance(rows, list)
    return {row["value"]["name"] for row in rows}


def holds_lease(federation: BareFederation, site: str) -> bool:
    text = federation.client(site).download("/metrics").decode()
    line = next(line for line in text.splitlines() if line.startswith("nuage_site_lease_seconds"))
    return float(line.rpartition(" ")[2]) > 0


def secrets_of(federation: BareFederation, site: str) -> dict[int, bytes]:
    return TrustStore(federation.configurations[site].trust_dir).shared_secrets().held()


def test_a_whole_federation_switched_off_at_once_comes_back_and_has_lost_nothing(
    tmp_path: Path,
) -> None:
    """Every process is killed; nobody is asked for anything but to start them again."""
    with running(tmp_path) as federation:
        for site in SITES:
            body = {"name": f"of-{site}", "contract": {}}
            federation.client(site).call("POST", "/v1/iaas", body)
            until(lambda site=site: holds_lease(federation, site), f"{site} holds its lease")  # type: ignore[misc]
        expected = {f"of-{site}" for site in SITES}
        for site in SITES:
            until(lambda site=site: names(federation, site) == expected, f"{site} knows all")  # type: ignore[misc]
        token = federation.client("lyon").token
        federation.kill_all()
        federation.start_all()
        for site in SITES:
            until(lambda site=site: federation.sees_everybody(site), f"{site} sees all again")  # type: ignore[misc]
            until(lambda site=site: holds_lease(federation, site), f"{site} holds its lease")  # type: ignore[misc]
            assert names(federation, site) == expected
        # What was given out before still counts, and every site takes writes.
        for site in SITES:
            client = federation.client(site)
            client.token = token
            client.call("POST", "/v1/iaas", {"name": f"new-at-{site}", "contract": {}})
        # A datacenter is revoked: the others close their channels, refuse its tokens and go on.
        of_rennes = federation.client("rennes").token
        shared = secrets_of(federation, "rennes")
        assert shared == secrets_of(federation, "lyon") == secrets_of(federation, "marne")
        federation.client("marne").call("POST", "/v1/sites/rennes/revoke", {})
        until(
            lambda: secrets_of(federation, "marne") == secrets_of(federation, "lyon") != shared,
            "the sites that stay share a new secret",
        )
        until(lambda: not reaches(federation, "lyon", "rennes"), "rennes is cut off")
        until(lambda: not reaches(federation, "marne", "rennes"), "rennes is cut off")
        # What it knew is replaced, by nobody's hand, and it is told nothing of what came after.
        assert secrets_of(federation, "rennes") == shared
        stranger = federation.client("lyon")
        stranger.token = of_rennes
        with pytest.raises(Unauthenticated):
            stranger.get("/v1/sites")
        for site in ("lyon", "marne"):
            until(lambda site=site: holds_lease(federation, site), f"{site} holds on")  # type: ignore[misc]


def reaches(federation: BareFederation, site: str, other: str) -> bool:
    rows = federation.client(site).get("/v1/sites")
    assert isinstance(rows, list)
    return any(row["reachable"] for row in rows if row["datacenter"]["site_id"] == other)
