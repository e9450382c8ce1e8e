"""A federation without hypervisors, for benchmarks: real controllers, synthetic nodes.

Four sites on loopback, joined by the product's own single-use tokens: each a controller process with
its catalogue on disk, its channels to the others, its API on a Unix socket and on TLS, and one
process of synthetic nodes. No root, no namespaces; the quorum is left out (contracts that fail over
are the only users of it). Used as::

    with BareFederation() as federation: ...
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from keep_alive import Connection
from machine import blocks_written_of, cpu_seconds, go_first, switches_of
from synthetic_nodes import Places

from nuage.daemon.configuration import AgentConfiguration, ControllerConfiguration, render
from nuage.daemon.joining import found, invite_node, invite_site, join_as_node, join_as_site
from nuage.ids import FederationId, NodeId, RackId, SiteId
from nuage.model.infrastructure import Datacenter, Node, NodeRole, Operator

PLACES = (
    ("marne", "Marne-la-Vallée", 48.84, 2.63),
    ("lyon", "Lyon", 45.76, 4.84),
    ("rennes", "Rennes", 48.11, -1.68),
    ("toulouse", "Toulouse", 43.60, 1.44),
)
CHANNEL_PORT = 17401
JOIN_PORT = 17402
API_PORT = 17400
START_TIMEOUT_S = 90.0
HERE = Path(__file__).parent
QUOTA = {
    "vm_count": 10**6, "vcpu_count": 10**7, "memory_mib": 10**10, "volume_bytes": 10**18,
}  # fmt: skip


@dataclass(frozen=True)
class Tenant:
    """What a creator of VMs needs to know."""

    iaas: str
    image: str
    user: str
    secret: str


class BareFederation:
    """Starts on entry, is gone on exit."""

    def __init__(
        self,
        *,
        site_count: int = 4,
        vnode_count: int = 8,
        ionode_count: int = 2,
        acting: bool = False,
        profile: str = "",
    ) -> None:
        self.sites = [SiteId(name) for name, *_ in PLACES[:site_count]]
        self.directory = Path(tempfile.mkdtemp(prefix="nuage-bench-", dir="/var/tmp"))
        self._vnode_count = vnode_count
        self._ionode_count = ionode_count
        self._acting = acting
        self._profile = profile
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._configurations: dict[SiteId, ControllerConfiguration] = {}
        self.admin_name = ""
        self.admin_secret = ""

    def __enter__(self) -> "BareFederation":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a killed run leaves nothing behind
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def endpoint(self, site: SiteId, *, tls: bool = False) -> str:
        """Return where a site's API listens."""
        configuration = self._configurations[site]
        return f"https://{configuration.api_listen[1]}" if tls else configuration.api_listen[0]

    def ca_file(self, site: SiteId) -> str:
        """Return the certificate that vouches for a site's API."""
        return str(self._configurations[site].trust_dir / "root.pem")

    def log_file(self, name: str) -> Path:
        """Return what a process wrote."""
        return self.directory / f"{name}.log"

    def go_first(self) -> None:
        """Let all of this, the caller included, run before what else the machine does (root)."""
        for pid in (os.getpid(), *(process.pid for process in self._processes.values())):
            go_first(pid)

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time that each process has used."""
        return {name: cpu_seconds(process.pid) for name, process in self._processes.items()}

    def events(self) -> tuple[int, int]:
        """Return the wake-ups of all processes, and the 4 KiB blocks that they have written."""
        pids = [process.pid for process in self._processes.values()]
        return sum(map(switches_of, pids)), sum(map(blocks_written_of, pids))

    async def connect(
        self, site: SiteId, *, tenant: Tenant | None = None, tls: bool = False, token: str = ""
    ) -> Connection:
        """Return an open connection of the administrator, or of a tenant's user."""
        connection = Connection(self.endpoint(site, tls=tls), ca_file=self.ca_file(site))
        await connection.open()
        if token:
            connection.token = token
        elif tenant is not None:
            await connection.log_in(tenant.user, tenant.secret)
        else:
            await connection.log_in(self.admin_name, self.admin_secret)
        return connection

    # Start ------------------------------------------------------------------------------------

    def _start(self) -> None:
        for number, (name, place, latitude, longitude) in enumerate(PLACES[: len(self.sites)]):
            self._configurations[SiteId(name)] = self._configuration(
                number, SiteId(name), place, (latitude, longitude)
            )
        first = self._configurations[self.sites[0]]
        founded = found(first, FederationId("bench"))
        self.admin_name, self.admin_secret = founded.admin_name, founded.admin_secret
        self._start_controller(self.sites[0])
        for site in self.sites[1:]:
            asyncio.run(join_as_site(self._configurations[site], invite_site(first, site)))
            self._start_controller(site)
        for site in self.sites:
            self._start_nodes(site)
        asyncio.run(self._wait_whole())

    def _configuration(
        self, number: int, site: SiteId, place: str, where: tuple[float, float]
    ) -> ControllerConfiguration:
        address = f"127.77.{number + 1}.1"
        home = self.directory / site
        return ControllerConfiguration(
            state_dir=home / "controller",
            trust_dir=home / "trust",
            datacenter=Datacenter(
                site_id=site,
                place=place,
                country="FR",
                operator=Operator(f"{place} SAS", "FR"),
                tier=2,
                power_capacity_watts=1e9,
                latitude_deg=where[0],
                longitude_deg=where[1],
                addresses=(f"{address}:{CHANNEL_PORT}",),
            ),
            channel_listen=f"{address}:{CHANNEL_PORT}",
            join_listen=f"{address}:{JOIN_PORT}",
            api_listen=(f"unix:{home}/api.sock", f"{address}:{API_PORT}"),
        )

    def _start_controller(self, site: SiteId) -> None:
        configuration = self._configurations[site]
        file = self.directory / site / "controller.toml"
        file.write_text(render(configuration))
        command = [sys.executable, "-m", "nuage.cli.main"]
        if self._profile:
            command = [sys.executable, str(HERE / "profiled.py"), f"{self._profile}-{site}.prof"]
        self._spawn(site, [*command, "controller", "--config", str(file)])
        socket = Path(configuration.api_listen[0].removeprefix("unix:"))
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not socket.exists():
            if time.monotonic() > deadline_s or self._processes[site].poll() is not None:
                raise SystemExit(f"{site}: {self.log_file(site).read_text()}")
            time.sleep(0.05)

    def _start_nodes(self, site: SiteId) -> None:
        configuration = self._configurations[site]
        nodes = []
        roles = [NodeRole.VNODE] * self._vnode_count + [NodeRole.IONODE] * self._ionode_count
        for index, role in enumerate(roles):
            node_id = NodeId(f"{site}-{role.value[0]}{index}")
            home = self.directory / site / node_id
            node = Node(
                node_id=node_id,
                site_id=site,
                rack_id=RackId(f"{site}-r1"),
                name=node_id,
                roles=(role,),
                address=f"127.77.200.{index + 1}",
            )
            agent = AgentConfiguration(
                node=node,
                state_dir=home,
                trust_dir=home / "trust",
                controller=configuration.channel_listen,
            )
            token = invite_node(configuration, node_id, (role,))
            asyncio.run(join_as_node(agent, role, token))
            nodes.append(Places(node, str(home), str(agent.trust_dir), agent.controller))
        file = self.directory / f"{site}-nodes.json"
        file.write_bytes(msgspec.json.encode(nodes))
        acting = ["--acting"] if self._acting else []
        self._spawn(
            f"{site} nodes", [sys.executable, str(HERE / "synthetic_nodes.py"), str(file), *acting]
        )

    def _spawn(self, name: str, command: list[str]) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        with self.log_file(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    async def _wait_whole(self) -> None:
        wanted = len(self.sites) * (self._vnode_count + self._ionode_count)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        for site in self.sites:
            connection = await self.connect(site) if site == self.sites[0] else None
            while connection is None or await _connected_count(connection) < wanted:
                if time.monotonic() > deadline_s:
                    raise SystemExit(f"{site} does not see {wanted} nodes")
                await asyncio.sleep(0.1)
                if connection is None:
                    try:
                        connection = await self.connect(site)
                    except (KeyError, AssertionError):
                        continue  # the administrator's record is still on its way here
            await connection.close()

    # What load needs --------------------------------------------------------------------------

    async def add_tenant(self, name: str) -> Tenant:
        """Build an IaaS with room for all, and an image for it; wait until all sites know both."""
        connection = await self.connect(self.sites[0])
        contract = {"quota": QUOTA, "copies": 2, "copy_sites": 2, "ack_policy": "all"}
        body = {"name": name, "contract": contract, "cidr": "10.0.0.0/8"}
        built = await connection.ask("POST", "/v1/iaas", body)
        assert built.status == 201, built
        secret = os.urandom(16).hex()
        user = {"name": f"{name}-user", "secret": secret, "grants": [f"iaas-admin@{name}"]}
        made = await connection.ask("POST", "/v1/users", user)
        assert made.status == 201, made
        await connection.close()
        tenant = Tenant(name, f"{name}-image", f"{name}-user", secret)
        connection = await self.connect(self.sites[0], tenant=tenant)
        announced = await connection.ask("POST", "/v1/images", {"name": tenant.image, "iaas": name})
        assert announced.status == 201, announced
        image = announced.document["result"]
        assert isinstance(image, dict)
        path = f"/v1/images/{image['id']}/data"
        sent = await connection.send("PUT", path, os.urandom(1024 * 1024))
        assert sent.status == 200, sent
        await connection.close()
        for site in self.sites[1:]:
            other = await self.connect(site, tenant=tenant)
            while not await _has_ready_image(other, name):
                await asyncio.sleep(0.02)
            await other.close()
        return tenant

    # End --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop every process and remove what they wrote."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(15.0)
            except subprocess.TimeoutExpired:
                process.kill()
        if not os.environ.get("NUAGE_BENCH_KEEP"):
            shutil.rmtree(self.directory, ignore_errors=True)


async def _connected_count(connection: Connection) -> int:
    answer = await connection.ask("GET", "/v1/nodes")
    views = answer.document["result"]
    assert isinstance(views, list)
    return sum(bool(view["status"] and view["status"]["connected"]) for view in views)


async def _has_ready_image(connection: Connection, iaas: str) -> bool:
    shown = await connection.ask("GET", f"/v1/images?iaas={iaas}")
    images = shown.document.get("result")
    return isinstance(images, list) and any(i["value"]["state"] == "ready" for i in images)
