"""Three datacenters as real processes on loopback: controllers and their etcd, no nodes."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.contract.etcd.etcd_process import free_port

from nuage.api.client import Client
from nuage.daemon.configuration import ControllerConfiguration, QuorumConfiguration, render
from nuage.daemon.joining import found, invite_site, join_as_site
from nuage.daemon.quorum import open_etcd
from nuage.errors import NuageError
from nuage.ids import FederationId, SiteId
from nuage.model.infrastructure import Datacenter, Operator

SITES = ("lyon", "marne", "rennes")
WITHIN_S = 240.0  # a loaded machine starts six processes
POLL_S = 0.2


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until `holds`; errors of the API count as not yet."""
    deadline_s = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline_s:
        try:
            if holds():
                return
        except NuageError:
            pass
        time.sleep(POLL_S)  # noqa: TID251 - waits for processes
    raise AssertionError(f"not within {WITHIN_S:g} s: {what}")


@dataclass
class BareFederation:
    """What is on its disks, and its processes while they run."""

    root: Path
    configurations: dict[str, ControllerConfiguration] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    admin_secret: str = ""

    def configure(self, name: str, number: int) -> ControllerConfiguration:
        home = self.root / name
        channel, join, api, client, peer = (free_port() for _ in range(5))
        configuration = ControllerConfiguration(
            state_dir=home / "controller", trust_dir=home / "trust",
            datacenter=Datacenter(
                site_id=SiteId(name), place=name.title(), country="FR",
                operator=Operator(name.title(), "FR"), tier=3, power_capacity_watts=18_000.0,
                latitude_deg=45.0 + number, longitude_deg=4.0,
                addresses=(f"127.0.0.1:{channel}",),
            ),
            channel_listen=f"127.0.0.1:{channel}", join_listen=f"127.0.0.1:{join}",
            api_listen=(f"unix:{home / 'api.sock'}", f"127.0.0.1:{api}"),
            quorum=QuorumConfiguration(
                data_dir=home / "etcd", client_url=f"https://127.0.0.1:{client}",
                peer_url=f"https://127.0.0.1:{peer}",
            ),
        )  # fmt: skip
        home.mkdir(parents=True)
        (home / "controller.toml").write_text(render(configuration))
        self.configurations[name] = configuration
        return configuration

    def start(self, name: str) -> None:
        """Start a site's two daemons, as its init would."""
        for command in ("quorum-member", "controller"):
            with (self.root / name / f"{command}.log").open("ab") as log:
                self.processes[f"{name} {command}"] = subprocess.Popen(
                    [sys.executable, "-m", "nuage.cli.main", command, "--config",
                     str(self.root / name / "controller.toml")],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                )  # fmt: skip

    def start_all(self) -> None:
        for name in SITES:
            self.start(name)

    def kill_all(self) -> None:
        """Take the power of everything at once."""
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        self.processes.clear()

    def kill_site(self, name: str) -> None:
        """Take the power of one site."""
        for key in [key for key in self.processes if key.startswith(f"{name} ")]:
            process = self.processes.pop(key)
            process.send_signal(signal.SIGKILL)
            process.wait()

    def members(self, name: str) -> dict[str, int]:
        """Return the ids of the quorum's members that have started, as asked at a site."""
        return asyncio.run(self._members(name))

    async def _members(self, name: str) -> dict[str, int]:
        client = open_etcd(self.configurations[name])
        try:
            return {member.name: member.id for member in (await client.member_list()).members}
        finally:
            await client.close()

    def have_all_members(self, name: str) -> bool:
        """Tell whether every site's member has started; a site whose etcd ended is started anew.

        It ends where another was taken in at the same instant; its init would start it again.
        """
        for site in SITES:
            if self.processes[f"{site} quorum-member"].poll() is not None:
                self.kill_site(site)
                self.start(site)
        return set(self.members(name)) == set(SITES)

    def client(self, name: str) -> Client:
        client = Client(f"unix:{self.root / name / 'api.sock'}")
        client.log_in("admin", self.admin_secret)
        return client

    def answers(self, name: str) -> bool:
        self.client(name)
        return True

    def sees_everybody(self, name: str) -> bool:
        rows = self.client(name).get("/v1/sites")
        assert isinstance(rows, list)
        return sum(bool(row["reachable"]) for row in rows) == len(SITES)

    def build(self) -> None:
        """Found, invite, join, start: as the README says."""
        for number, name in enumerate(SITES):
            self.configure(name, number)
        first = self.configurations[SITES[0]]
        founded = found(first, FederationId("bare"))
        self.admin_secret = founded.admin_secret
        self.start(SITES[0])
        until(lambda: self.answers(SITES[0]), "the first site answers")
        for name in SITES[1:]:  # at once: the quorum takes their members in by turns
            token = invite_site(first, SiteId(name))
            asyncio.run(join_as_site(self.configurations[name], token))
            self.start(name)
        for name in SITES:
            until(lambda name=name: self.sees_everybody(name), f"{name} sees all")  # type: ignore[misc]


@contextmanager
def running(root: Path) -> Iterator[BareFederation]:
    """Build a federation, and leave nothing of it running."""
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed")
    federation = BareFederation(root)
    try:
        federation.build()
        yield federation
    finally:
        federation.kill_all()
