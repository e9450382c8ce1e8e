"""Gives the lab's nodes their daemons, the way an operator would: found, invite, join, start.

Nothing here is done for the product that its own commands do not do: each site and each node joins
by a single-use token over its own network. What is the lab's own is only where files lie and that
one process walks through all namespaces.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from nuage.api.client import Client
from nuage.api.profile import Profile, forget_profiles, keep_profile
from nuage.clock import SystemClock
from nuage.daemon.configuration import (
    AgentConfiguration,
    ControllerConfiguration,
    DiskConfiguration,
    EdgeConfiguration,
    EnergyConfiguration,
    IonodeConfiguration,
    QuorumConfiguration,
    VnodeConfiguration,
    render,
)
from nuage.daemon.hardware import BmcLogin, SnmpLogin
from nuage.daemon.joining import found, invite_node, invite_site, join_as_node, join_as_site
from nuage.errors import TimedOut
from nuage.ids import FederationId, NodeId, RackId, SiteId
from nuage.lab import kernel
from nuage.lab.control import Service
from nuage.lab.description import NodeDescription, SiteDescription
from nuage.lab.lab import Lab
from nuage.model.infrastructure import Datacenter, Node, NodeRole, Operator
from nuage.network.mtu import PATH_BYTES
from nuage.trust.files import write_atomically
from nuage.trust.store import TrustStore
from nuage.vnode.probe import probe_accelerator

CHANNEL_PORT: Final = 7401
JOIN_PORT: Final = 7402
API_PORT: Final = 7400
ETCD_CLIENT_PORT: Final = 2379
ETCD_PEER_PORT: Final = 2380
METRICS_PORT: Final = 9400
START_TIMEOUT_S: Final = 60.0
ASK_TIMEOUT_S: Final = 2.0
POLL_S: Final = 0.05
ADMIN_FILE: Final = "admin.json"
UNSHAPED_MBIT: Final = 1000
OVERCOMMIT_RATIO: Final = 100.0  # its disks have 1 GiB, and volumes the sizes of real ones
NODE_CPU_STAT: Final = Path("/sys/fs/cgroup/cpu.stat")  # as a node's processes see it
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # systemd's
TARIFFS: Final = Path(__file__).with_name("tariffs")

R = TypeVar("R")
Report = Callable[[str], None]


class AdminSecret(msgspec.Struct, frozen=True):
    """The first administrator of a lab's federation; the file is 0600."""

    name: str
    secret: str


def api_socket(lab: Lab, site: str) -> Path:
    """Return the Unix socket of a site's API."""
    return lab.state.path / "api" / f"{site}.sock"


def admin_of(lab: Lab) -> AdminSecret:
    """Return the lab's first administrator."""
    return msgspec.json.decode((lab.state.path / ADMIN_FILE).read_bytes(), type=AdminSecret)


def profile_name(lab: Lab, site: str) -> str:
    """Return the name under which a lab's site is kept among the profiles."""
    return f"lab-{lab.description.name}-{site}"


def disband(lab_name: str) -> None:
    """Forget what assembling left outside the lab's state: its profiles."""
    forget_profiles(f"lab-{lab_name}-")


def assemble(lab: Lab, report: Report) -> None:
    """Bring the product up on the lab's nodes; repeated, it finishes what is not done."""
    _Assembly(lab, report).run()


class _Assembly:
    def __init__(self, lab: Lab, report: Report) -> None:
        self._lab = lab
        self._report = report
        self._login_file = lab.state.path / "bmc-login.json"
        self._snmp_login_file = lab.state.path / "snmp-login.json"
        self._by_role: dict[tuple[str, NodeRole], list[NodeDescription]] = {}
        for node in lab.description.nodes():
            self._by_role.setdefault((node.site, node.role), []).append(node)

    def run(self) -> None:
        credentials = self._lab.description.credentials
        login = BmcLogin(
            user=credentials.user,
            password=credentials.password,
            certificate=str(self._lab.certificate),
        )
        write_atomically(self._login_file, msgspec.json.encode(login), secret=True)
        community = SnmpLogin(community=credentials.community)
        write_atomically(self._snmp_login_file, msgspec.json.encode(community), secret=True)
        sites = list(self._lab.description.sites)
        configurations = {site.id: self._controller_configuration(site) for site in sites}
        first = configurations[sites[0].id]
        with ThreadPoolExecutor(len(sites) + 1) as pool:
            accelerator = pool.submit(self._accelerator)
            self._report("nodes get power")
            self._lab.order_all(
                [node.name for node in self._lab.description.nodes()], "on", wait=False
            )
            self._found(first)
            settling = []
            for site in sites:
                configuration = configurations[site.id]
                self._lab.power_on(self._controller(site.id).name)
                self._join_site(first, configuration)
                self._start_controller(site)
                if configuration is first:
                    self._wait_for_controller(site)
                settling.append(pool.submit(self._settle, site, configuration, accelerator))
            self._report("nodes join their sites")
            for each in settling:
                each.result()
        self._wait_for_nodes(configurations)
        self._report("the quorum takes its members in")
        for site in sites:
            self._wait(f"the quorum's member at {site.id}", partial(self._is_in_quorum, site))

    def _accelerator(self) -> str:
        cache = self._lab.state.path / "accelerator.json"
        return asyncio.run(probe_accelerator(cache, SystemClock())).accelerator

    # Sites ----------------------------------------------------------------------------------------

    def _controller(self, site: str) -> NodeDescription:
        return self._by_role[site, NodeRole.CONTROLLER][0]

    def _controller_configuration(self, site: SiteDescription) -> ControllerConfiguration:
        node = self._controller(site.id)
        address = self._lab.address(node.name)
        home = self._lab.state.node(node.name)
        return ControllerConfiguration(
            state_dir=home / "controller",
            trust_dir=home / "trust",
            datacenter=Datacenter(
                site_id=SiteId(site.id),
                place=site.place,
                country=site.country,
                operator=Operator(site.operator.name, site.operator.country),
                tier=site.tier,
                power_capacity_watts=site.power_capacity_watts,
                latitude_deg=site.latitude_deg,
                longitude_deg=site.longitude_deg,
                addresses=(f"{address}:{CHANNEL_PORT}",),
            ),
            channel_listen=f"{address}:{CHANNEL_PORT}",
            join_listen=f"{address}:{JOIN_PORT}",
            api_listen=(f"unix:{api_socket(self._lab, site.id)}", f"{address}:{API_PORT}"),
            quorum=QuorumConfiguration(
                data_dir=home / "etcd",
                client_url=f"https://{address}:{ETCD_CLIENT_PORT}",
                peer_url=f"https://{address}:{ETCD_PEER_PORT}",
                metrics_listen=f"{address}:{METRICS_PORT}",
            ),
            bmc_login_file=self._login_file,
            fence_by_outlets=True,
            energy=self._energy(site),
        )

    def _energy(self, site: SiteDescription) -> EnergyConfiguration:
        return EnergyConfiguration(
            pdus={
                pdu.rack: self._lab.pdu_url(pdu.name)
                for pdu in self._lab.description.pdus()
                if pdu.site == site.id
            },
            snmp_login_file=self._snmp_login_file,
            climate_zone=site.climate_zone,
            tariff_file=TARIFFS / f"{site.tariff}.toml",
            carbon_g_per_kwh=site.carbon_g_per_kwh,
        )

    def _found(self, configuration: ControllerConfiguration) -> None:
        if TrustStore(configuration.trust_dir).is_joined:
            return
        self._report(f"{configuration.datacenter.place} founds the federation")
        founded = found(configuration, FederationId(self._lab.description.name))
        admin = AdminSecret(name=founded.admin_name, secret=founded.admin_secret)
        write_atomically(self._lab.state.path / ADMIN_FILE, msgspec.json.encode(admin), secret=True)

    def _join_site(
        self, first: ControllerConfiguration, configuration: ControllerConfiguration
    ) -> None:
        if TrustStore(configuration.trust_dir).is_joined:
            return
        site_id = configuration.datacenter.site_id
        self._report(f"{configuration.datacenter.place} joins")
        token = invite_site(first, site_id)
        self._in_node(self._controller(site_id), partial(_join_site, configuration, token))

    def _start_controller(self, site: SiteDescription) -> None:
        node = self._controller(site.id)
        path = self._write(node, "controller", self._controller_configuration(site))
        self._lab.set_services(
            node.name,
            [
                daemon_service("quorum", "quorum-member", path),
                daemon_service("controller", "controller", path),
            ],
        )

    def _wait_for_controller(self, site: SiteDescription) -> None:
        self._wait(f"the controller of {site.id}", partial(listens, api_socket(self._lab, site.id)))

    def _is_in_quorum(self, site: SiteDescription) -> bool:
        """Tell whether a site's member says that it follows a leader, or is one."""

        def healthy() -> bool:
            asked = HTTPConnection(
                self._lab.address(node.name), METRICS_PORT, timeout=ASK_TIMEOUT_S
            )
            try:
                asked.request("GET", "/health")
                return asked.getresponse().status == HTTPStatus.OK
            except OSError:  # it does not run yet
                return False
            finally:
                asked.close()

        node = self._controller(site.id)
        return self._in_node(node, healthy)

    # Nodes ----------------------------------------------------------------------------------------

    def _settle(
        self, site: SiteDescription, controller: ControllerConfiguration, accelerator: Future[str]
    ) -> None:
        """Have a site's nodes join it, once its controller is up."""
        self._wait_for_controller(site)
        for role in (NodeRole.IONODE, NodeRole.EDGE, NodeRole.VNODE):
            for node in self._by_role.get((site.id, role), ()):
                common = self._agent_fields(node, controller)
                configuration: AgentConfiguration
                if role is NodeRole.VNODE:
                    configuration = self._vnode(node, common, accelerator.result())
                elif role is NodeRole.IONODE:
                    configuration = self._ionode(node, common)
                else:
                    configuration = self._edge(node, common)
                self._join_node(controller, node, role, configuration)

    def _join_node(
        self,
        controller: ControllerConfiguration,
        node: NodeDescription,
        role: NodeRole,
        configuration: AgentConfiguration,
    ) -> None:
        self._lab.power_on(node.name)
        if not TrustStore(configuration.trust_dir).is_joined:
            token = invite_node(controller, NodeId(node.name), (role,))
            self._in_node(node, lambda: asyncio.run(join_as_node(configuration, role, token)))
        path = self._write(node, role.value, configuration)
        self._lab.set_services(node.name, [daemon_service(role.value, role.value, path)])

    def _agent_fields(
        self, node: NodeDescription, controller: ControllerConfiguration
    ) -> dict[str, object]:
        home = self._lab.state.node(node.name)
        address = self._lab.address(node.name)
        return {
            "node": Node(
                node_id=NodeId(node.name),
                site_id=SiteId(node.site),
                rack_id=RackId(f"{node.site}-{node.rack}"),
                name=node.name,
                roles=(node.role,),
                address=address,
                cpu_count=node.hardware.cpu_count,
                memory_mib=node.hardware.memory_mib,
                bmc_url=self._lab.bmc_url(node.name),
                outlets=(f"{node.rack}/{node.outlet}",),
            ),
            "state_dir": home / node.role.value,
            "trust_dir": home / "trust",
            "controller": controller.channel_listen,
            "metrics_listen": f"{address}:{METRICS_PORT}",
            "bmc_login_file": self._login_file,
        }

    def _vnode(
        self, node: NodeDescription, common: dict[str, object], accelerator: str
    ) -> VnodeConfiguration:
        return VnodeConfiguration(
            **common,  # type: ignore[arg-type]
            idle_watts=node.hardware.idle_watts,
            peak_watts=node.hardware.peak_watts,
            boot_time_s=node.hardware.boot_seconds,
            accelerator=accelerator,
            cpu_stat_file=NODE_CPU_STAT,
            calibration_file=self._lab.state.path / f"flops-{node.hardware.cpu_count}.json",
            relay=str(Path(sys.executable).with_name("nuage-relay")),
        )

    def _ionode(self, node: NodeDescription, common: dict[str, object]) -> IonodeConfiguration:
        disks = {
            disk.name: DiskConfiguration(
                path=self._lab.disk(node.name, disk.name),
                disk_class=disk.disk_class,
                size_bytes=disk.size_bytes,
                operations_per_s=disk.iops,
                bytes_per_s=disk.bytes_per_s,
                serial=f"{node.name}-{disk.name}",
            )
            for disk in node.hardware.disks
        }
        return IonodeConfiguration(
            **common,  # type: ignore[arg-type]
            data_dir=self._lab.disk(node.name, node.hardware.disks[0].name),
            disks=disks,
            storaged=str(Path(sys.executable).with_name("nuage-storaged")),
            overcommit_ratio=OVERCOMMIT_RATIO,
        )

    def _edge(self, node: NodeDescription, common: dict[str, object]) -> EdgeConfiguration:
        lab = self._lab.description
        addresses = self._lab.wan_addresses(node.site, node.host)
        lines = zip(lab.providers, addresses, strict=True)
        return EdgeConfiguration(
            **common,  # type: ignore[arg-type]
            providers=tuple(f"{provider}={address}" for provider, address in lines),
            line_mbit=lab.links.wan_mbit or UNSHAPED_MBIT,
            line_mtu_bytes=lab.links.wan_mtu_bytes or PATH_BYTES,
        )

    # Small things ---------------------------------------------------------------------------------

    def _write(self, node: NodeDescription, name: str, configuration: object) -> Path:
        path = self._lab.state.node(node.name) / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, render(configuration).encode())
        return path

    def _in_node(self, node: NodeDescription, act: Callable[[], R]) -> R:
        """Run `act` on a thread that stands in the node's network namespace."""
        return kernel.inside(self._lab.namespace(node.name), act)

    def _wait(self, whom: str, is_there: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not is_there():
            if time.monotonic() > deadline_s:
                raise TimedOut(
                    f"start of {whom}",
                    after_s=START_TIMEOUT_S,
                    hint="`nuage lab log NODE` shows what it wrote",
                )
            time.sleep(POLL_S)  # noqa: TID251 - waits for a process

    def _wait_for_nodes(self, configurations: Iterable[str]) -> None:
        self._report("nodes connect")
        admin = admin_of(self._lab)
        sites = list(configurations)
        client = Client(f"unix:{api_socket(self._lab, sites[0])}")
        client.log_in(admin.name, admin.secret)
        wanted = sum(
            len(nodes)
            for (_, role), nodes in self._by_role.items()
            if role in (NodeRole.VNODE, NodeRole.IONODE, NodeRole.EDGE)
        )

        def connected() -> bool:
            views = client.get("/v1/nodes")
            assert isinstance(views, list)
            return sum(bool(v["status"] and v["status"]["connected"]) for v in views) >= wanted

        self._wait("all nodes", connected)
        secret_file = str(self._lab.state.path / ADMIN_FILE)
        for site in sites:
            profile = Profile(
                endpoint=f"unix:{api_socket(self._lab, site)}",
                user=admin.name,
                token=client.token,
                secret_file=secret_file,
            )
            keep_profile(profile_name(self._lab, site), profile, make_current=site == sites[0])


def daemon_service(name: str, command: str, config: Path) -> Service:
    """Return a daemon as a node's init starts it: the same whoever's shell asks."""
    argv = (sys.executable, "-m", "nuage.cli.main", command, "--config", str(config))
    path = f"{Path(sys.executable).parent}:{SYSTEM_PATH}"
    # One thread for linear algebra: a node's daemons must not spin on all cores.
    return Service(name, argv, env={"PATH": path, "OPENBLAS_NUM_THREADS": "1"})


def listens(path: Path) -> bool:
    """Tell whether somebody takes connections at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        try:
            door.connect(str(path))
        except OSError:
            return False
        return True


def _join_site(configuration: ControllerConfiguration, token: str) -> None:
    asyncio.run(join_as_site(configuration, token))
