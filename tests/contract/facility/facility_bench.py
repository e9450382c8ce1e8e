"""The lab's emulated hardware on loopback, under a clock that only sleeping moves."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.contract.facility.snmp_v3_device import snmp_v3_device

from nuage.clock import SystemClock
from nuage.facility.redfish import Login, RedfishConnection
from nuage.lab.bmc_documents import install_bmc
from nuage.lab.description import DEFAULT_DESCRIPTION, PduSpeech, load_description
from nuage.lab.machine import Effects, State
from nuage.lab.pdu_documents import install_pdu
from nuage.lab.pdu_snmp import snmp_pdu
from nuage.lab.redfish_server import Device, RedfishServer
from nuage.lab.redfish_service import Accounts, Identity, RedfishService
from nuage.lab.rig import Fault, Rig

COMMUNITY = "closed-network"
LOGIN = Login(user="operator", password="nuage-lab")
NODE = "marne-v1"
PDU = "marne-r1-pdu"


class StepClock:
    """A clock that stands still until somebody sleeps; sleeping takes no real time."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def now_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        self.now += delay_s
        await asyncio.sleep(0)


@dataclass(slots=True)
class Bench:
    """Two devices at URLs, and the rig behind them."""

    rig: Rig
    clock: StepClock
    node_url: str
    pdu_url: str
    cpu_s: dict[str, float]
    performed: list[tuple[str, Effects]]
    services: dict[str, RedfishService]

    @asynccontextmanager
    async def snmp(self, speech: PduSpeech) -> AsyncIterator[int]:
        """Serve the PDU by SNMP, too; yields the port."""
        agent = snmp_pdu(self.rig, PDU, speech, COMMUNITY)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: agent, local_addr=("127.0.0.1", 0)
        )
        try:
            yield transport.get_extra_info("sockname")[1]
        finally:
            transport.close()

    @asynccontextmanager
    async def snmp_v3(self, speech: PduSpeech) -> AsyncIterator[int]:
        """Serve the PDU by SNMP 3, to a user with keys; yields the port."""
        port = free_udp_port()
        with snmp_v3_device(snmp_pdu(self.rig, PDU, speech, COMMUNITY), port):
            yield port

    def connect(self, url: str, *, timeout_s: float = 5.0) -> RedfishConnection:
        return RedfishConnection(url, LOGIN, self.clock, timeout_s=timeout_s)


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running_bench() -> AsyncIterator[Bench]:
    """Serve one BMC and one PDU of the two-site lab on loopback."""
    clock = StepClock()
    cpu_s: dict[str, float] = {}
    performed: list[tuple[str, Effects]] = []
    rig = Rig(
        load_description(DEFAULT_DESCRIPTION.with_name("duo.toml")),
        clock,
        cpu_seconds=lambda node: cpu_s.get(node, 0.0),
        perform=lambda node, effects: performed.append((node, effects)),
    )
    server = RedfishServer(SystemClock(), None)
    await server.start()
    urls: dict[str, str] = {}
    services: dict[str, RedfishService] = {}
    for name, install in ((NODE, install_bmc), (PDU, install_pdu)):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        port = listener.getsockname()[1]
        identity = Identity(
            name=name, address="127.0.0.1", port=port, mac="02:00:00:00:00:01",
            product="Lab rack PDU" if name == PDU else "Lab BMC",
            certificate_pem="-----BEGIN CERTIFICATE-----", started_s=clock.now_s(),
        )  # fmt: skip
        accounts = Accounts(LOGIN.user, LOGIN.password, lambda count: bytes(range(count)))
        services[name] = service = RedfishService(identity, accounts, clock.now_s)
        install(service, rig, name)

        def fault(name: str = name) -> Fault:
            rig.advance()
            return rig.fault(name)

        def dead(name: str = name) -> bool:
            return name in rig.machines and rig.machines[name].state is State.DARK

        await server.serve(listener, Device(service, fault, dead))
        urls[name] = f"http://127.0.0.1:{port}"
    try:
        yield Bench(rig, clock, urls[NODE], urls[PDU], cpu_s, performed, services)
    finally:
        await server.stop()
