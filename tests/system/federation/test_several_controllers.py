"""A site with two controllers: one serves, and when it dies the other goes on where it stopped."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.etcd.etcd_process import etcd_cluster, free_port
from tests.system.federation.bare_federation import until

from nuage.api.client import Client
from nuage.channel import ChannelClient, Expected, Handlers
from nuage.clock import SystemClock
from nuage.daemon.configuration import ControllerConfiguration, render
from nuage.daemon.joining import found
from nuage.ids import FederationId, SiteId
from nuage.model.infrastructure import Datacenter, NodeRole, Operator
from nuage.trust.store import TrustStore
from nuage.trust.verify import load_keys, verify_audit

pytestmark = pytest.mark.system
SITE = SiteId("lyon")
NAMES = ("left", "right")


def configurations(root: Path, etcd_url: str) -> dict[str, ControllerConfiguration]:
    """Return both controllers': apart in where they listen only."""
    channels = {name: f"127.0.0.1:{free_port()}" for name in NAMES}
    datacenter = Datacenter(
        site_id=SITE, place="Lyon", country="FR", operator=Operator("Lyon", "FR"), tier=3,
        power_capacity_watts=18_000.0, latitude_deg=45.8, longitude_deg=4.8,
        addresses=tuple(channels.values()),
    )  # fmt: skip
    return {
        name: ControllerConfiguration(
            state_dir=root / "state", trust_dir=root / "trust", datacenter=datacenter,
            channel_listen=channel, join_listen=f"127.0.0.1:{free_port()}",
            api_listen=(f"unix:{root / name}.sock",), catalogue=etcd_url,
        )
        for name, channel in channels.items()
    }  # fmt: skip


class Pair:
    """Two controllers of one site, as processes."""

    def __init__(self, root: Path, etcd_url: str) -> None:
        self.root = root
        self.configurations = configurations(root, etcd_url)
        self.secret = found(self.configurations["left"], FederationId("pair")).admin_secret
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        config = self.root / f"{name}.toml"
        config.write_text(render(self.configurations[name]))
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "nuage.cli.main", "controller", "--config", str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip

    def client(self, name: str) -> Client:
        client = Client(f"unix:{self.root / name}.sock")
        client.log_in("admin", self.secret)
        return client

    def answers(self, name: str) -> bool:
        self.client(name)
        return True

    def stands_by(self, name: str) -> bool:
        return b"standing by" in (self.root / f"{name}.log").read_bytes()

    def end(self, name: str, number: signal.Signals) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait()


@contextmanager
def pair(root: Path, etcd_url: str) -> Iterator[Pair]:
    both = Pair(root, etcd_url)
    try:
        yield both
    finally:
        for name in list(both.processes):
            both.end(name, signal.SIGKILL)


async def channel_opens(both: Pair, trust_dir: Path) -> None:
    """Reach whoever serves, as agents and other sites do: by all addresses of the site."""
    addresses = both.configurations["left"].datacenter.addresses
    expected = Expected(FederationId("pair"), site_id=SITE, role=NodeRole.CONTROLLER)
    store = TrustStore(trust_dir)
    async with ChannelClient(
        ",".join(addresses), store.client_context(), Handlers(), SystemClock(), expected=expected
    ) as client:
        await client.wait_ready(60.0)


def names_of(client: Client) -> set[str]:
    rows = client.get("/v1/iaas")
    assert isinstance(rows, list)
    return {row["value"]["name"] for row in rows}


def check_a_death(both: Pair) -> None:
    both.start("left")
    until(lambda: both.answers("left"), "the first controller answers")
    both.start("right")
    until(lambda: both.stands_by("right"), "the second stands by")
    assert not (both.root / "right.sock").exists()
    both.client("left").call("POST", "/v1/iaas", {"name": "before", "contract": {}})
    both.end("left", signal.SIGKILL)
    until(lambda: both.answers("right"), "the second serves")
    client = both.client("right")
    assert names_of(client) == {"before"}
    client.call("POST", "/v1/iaas", {"name": "after", "contract": {}})
    asyncio.run(channel_opens(both, both.root / "trust"))
    # The first is started again, stands by, and is stopped in that state without ado.
    (both.root / "left.log").write_bytes(b"")
    both.start("left")
    until(lambda: both.stands_by("left"), "the first stands by")
    assert both.end("left", signal.SIGTERM) == 0
    assert names_of(client) == {"before", "after"}
    assert both.end("right", signal.SIGTERM) == 0


async def test_the_second_controller_of_a_site_goes_on_where_the_first_died(tmp_path: Path) -> None:
    """Catalogue in the site's etcd; the audit log is one unbroken chain over both."""
    async with etcd_cluster(tmp_path / "etcd") as (member,):
        with pair(tmp_path, member.client_url) as both:
            await asyncio.to_thread(check_a_death, both)
    keys = tmp_path / "keys.json"
    keys.write_bytes(keys_of(tmp_path / "trust"))
    report = verify_audit(tmp_path / "state" / "audit", load_keys(keys))
    assert not report.problems
    assert report.record_count >= 2


def keys_of(trust_dir: Path) -> bytes:
    from nuage.trust.book import TrustBook, keys_document

    store = TrustStore(trust_dir)
    book = TrustBook(store.root())
    book.take(replace(store.site_trust(), audit_seal=""))
    return keys_document(book.public_keys())
