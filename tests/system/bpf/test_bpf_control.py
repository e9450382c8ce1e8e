"""The whole node: RBridge, segment switch and runner over the kernel plane, three in a ring."""

import asyncio
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest
from tests.system.bpf.bpf_netns import Bridge, Namespaces, inside, run, within

from nuage.clock import SystemClock
from nuage.ids import PortId
from nuage.network.circuit import Trunk
from nuage.network.fabric_event import FabricLog, TrunkAdded
from nuage.network.forwarding import (
    FibEntry,
    ForwardingDelta,
    Label,
    Nickname,
    PortEntry,
    PortNumber,
    PortRole,
)
from nuage.network.isis_auth import Keyring
from nuage.network.kernel_plane import KernelPlane, Neighbour
from nuage.network.nickname import NicknameWish
from nuage.network.rbridge import RBridge, RBridgeConfig
from nuage.network.runner import FabricRunner, LinkWatch, PacketSocket, RunnerPorts
from nuage.network.segment import AccessPort, SegmentSwitch, Station
from nuage.network.wire import mac_bytes

pytestmark = pytest.mark.system
COUNT = 3
LABEL = Label(0xABCDE)
LEFT, RIGHT, GUEST = PortNumber(1), PortNumber(2), PortNumber(9)
TRUNKS = {LEFT: "left", RIGHT: "right"}


def guest_mac(number: int) -> str:
    return f"06:00:00:00:00:0{number}"


class Node:
    """One namespace with its daemon, which can die and come back."""

    def __init__(self, number: int, name: str, pins: Path, clock: SystemClock) -> None:
        self.number, self.name, self.pins, self.clock = number, name, pins, clock
        self.logs: list[FabricLog] = []
        self.nickname = Nickname(0)  # what a daemon keeps on disk
        self.bridge = Bridge(name, 0, pins)
        self.switch: SegmentSwitch
        self.runner: FabricRunner

    def start(self) -> None:
        self.bridge.plane = within(self.name, lambda: KernelPlane(self.pins))
        plane = self.bridge.plane
        known = plane.entries()
        self.switch = SegmentSwitch(known)
        for number, interface in TRUNKS.items():
            entry = PortEntry(number, PortRole.TRUNK, self.bridge.mac(interface))
            if not any(e.key == number for e in known if isinstance(e, PortEntry)):
                self.bridge.set(entry)
            self.bridge.bind(number, interface)
        ports = self.switch.update([self.access()], self.stations([]))
        if not known:
            within(self.name, lambda: plane.apply(ports))
        self.bridge.bind(GUEST, "guest")
        config = RBridgeConfig(
            bytes((2, 0x20, 0, 0, 0, self.number)),
            f"rb{self.number}",
            NicknameWish(remembered=self.nickname),
            Keyring(1, {1: b"k"}),
        )
        rbridge = RBridge(config, Random(self.number), self.clock.monotonic_s(), known)
        self.runner = FabricRunner(
            rbridge,
            plane,
            clock=self.clock,
            ports=within(self.name, self._sockets),
            switch=self.switch,
            remember=self.remember,
            tell=self.logs.append,
        )
        for number, interface in TRUNKS.items():
            self.runner.give(TrunkAdded(Trunk(number, self.bridge.mac(interface))))
        self.runner.start()

    def _sockets(self) -> RunnerPorts:
        trunks = {
            number: (PacketSocket(interface, 0x22F4), PacketSocket(interface, 0x22F3))
            for number, interface in TRUNKS.items()
        }
        access = tuple(PacketSocket("guest", kind) for kind in (0x0806, 0x0800, 0x86DD))
        indexes = {one.index: number for number, (one, _) in trunks.items()}
        return RunnerPorts(trunks, {GUEST: access}, LinkWatch(), indexes)

    def remember(self, nickname: Nickname) -> None:
        self.nickname = nickname

    def access(self) -> AccessPort:
        return AccessPort(
            port=GUEST,
            port_id=PortId(f"port-{self.number}"),
            label=LABEL,
            mac=guest_mac(self.number),
            addresses=(f"10.7.0.{self.number + 1}",),
            cidr="10.7.0.0/24",
            rules=None,
        )

    def stations(self, nodes: list["Node"]) -> list[Station]:
        return [
            Station(
                label=LABEL,
                mac=guest_mac(n.number),
                addresses=(f"10.7.0.{n.number + 1}",),
                nickname=n.runner.rbridge.nickname,
            )
            for n in nodes
        ]

    def learn_of(self, nodes: list["Node"]) -> None:
        stations = self.stations(nodes)
        delta: ForwardingDelta = self.switch.update([self.access()], stations)
        within(self.name, lambda: self.bridge.plane.apply(delta))
        self.bridge.plane.set_neighbours(
            Neighbour(station.label, ip_address(address), mac_bytes(station.mac))
            for station in stations
            for address in station.addresses
        )

    def is_whole(self) -> bool:
        kinds = [type(entry) for entry in self.bridge.plane.entries()]
        near = self.runner.rbridge.view().neighbours
        return kinds.count(FibEntry) == COUNT - 1 and [n.bfd for n in near].count("up") == 2

    def die(self) -> None:
        self.runner.stop()
        del self.runner, self.bridge.plane


@pytest.fixture
def nodes(net: Namespaces, pins: Path) -> list[Node]:
    clock = SystemClock()
    names = [net.add(f"r{n}") for n in range(COUNT)]
    hosts = [net.add(f"h{n}") for n in range(COUNT)]
    for n in range(COUNT):
        net.cable(names[n], "right", names[(n + 1) % COUNT], "left")
        net.cable(names[n], "guest", hosts[n], "eth0")
        run("ip", "-n", hosts[n], "link", "set", "eth0", "address", guest_mac(n), "mtu", "1362")
        run("ip", "-n", hosts[n], "addr", "add", f"10.7.0.{n + 1}/24", "dev", "eth0")
    return [Node(n, name, pins / name, clock) for n, name in enumerate(names)]


async def until_whole(nodes: list[Node]) -> None:
    deadline_s = nodes[0].clock.monotonic_s() + 20
    while not all(node.is_whole() for node in nodes):
        assert nodes[0].clock.monotonic_s() < deadline_s, [node.logs for node in nodes]
        await asyncio.sleep(0.05)


async def ping(prefix: str, source: int, target: int) -> str:
    words = ("ping", "-n", "-c", "3", "-i", "0.1", "-W", "2", f"10.7.0.{target + 1}")
    done = await asyncio.to_thread(inside, f"{prefix}h{source}", *words)
    return done.stdout


async def test_a_node_on_the_kernel_plane_lives_dies_and_comes_back(
    nodes: list[Node], prefix: str
) -> None:
    """IS-IS, BFD, echoes and ARP through the programs; the same nicknames after a restart."""
    for node in nodes:
        node.start()
    try:
        await until_whole(nodes)
        for node in nodes:
            node.learn_of(nodes)
        assert "3 received" in await ping(prefix, 0, 2)
        nicknames = [node.runner.rbridge.nickname for node in nodes]
        assert Nickname(0) not in nicknames
        assert len(set(nicknames)) == COUNT
        assert all(node.bridge.plane.sums()["punted"] > 0 for node in nodes)

        nodes[1].die()
        assert "3 received" in await ping(prefix, 1, 2)
        assert "3 received" in await ping(prefix, 0, 1)
        nodes[1].start()
        await until_whole(nodes)
        assert [node.runner.rbridge.nickname for node in nodes] == nicknames
        assert "3 received" in await ping(prefix, 1, 0)
    finally:
        for node in nodes:
            if hasattr(node, "runner"):
                node.runner.stop()
