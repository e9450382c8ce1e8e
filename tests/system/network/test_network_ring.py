"""Four RBridges in network namespaces, on real veth pairs, with the slow path as data plane."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest
from tests.system.bpf.bpf_netns import Entered

from nuage.clock import SystemClock
from nuage.ids import PortId
from nuage.network.circuit import Trunk
from nuage.network.fabric_event import FabricLog, FabricNews, TrunkAdded
from nuage.network.forwarding import FibEntry, Label, PortNumber, RpfEntry
from nuage.network.isis_auth import Keyring
from nuage.network.rbridge import RBridge, RBridgeConfig
from nuage.network.runner import FabricRunner, LinkWatch, PacketSocket, RunnerPorts
from nuage.network.segment import AccessPort, SegmentSwitch, Station
from nuage.network.software_plane import SoftwarePlane

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 is not installed"),
]
PREFIX = f"nqr{os.getpid() % 10000}"
COUNT = 4
LABEL = Label(0xABCDE)
TRUNK_LEFT, TRUNK_RIGHT, GUEST = PortNumber(1), PortNumber(2), PortNumber(9)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def inside(namespace: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", namespace, *words], capture_output=True, text=True, check=False
    )


def rb(number: int) -> str:
    return f"{PREFIX}r{number}"


def host(number: int) -> str:
    return f"{PREFIX}h{number}"


def guest_mac(number: int) -> str:
    return f"06:00:00:00:00:0{number}"


@pytest.fixture
def ring() -> Iterator[None]:
    """Namespaces r0 … r3 in a ring (left, right), each with a host h0 … h3 behind `guest`."""
    names = [rb(n) for n in range(COUNT)] + [host(n) for n in range(COUNT)]
    try:
        for name in names:
            ip("netns", "add", name)
        for n in range(COUNT):
            ip("link", "add", "right", "netns", rb(n), "type", "veth", "peer", "name", "left",
               "netns", rb((n + 1) % COUNT))  # fmt: skip
            ip("link", "add", "guest", "netns", rb(n), "type", "veth", "peer", "name", "eth0",
               "netns", host(n))  # fmt: skip
        for n in range(COUNT):
            for interface in ("left", "right", "guest"):
                ip("-n", rb(n), "link", "set", interface, "up")
                inside(rb(n), "sysctl", "-qw", f"net.ipv6.conf.{interface}.disable_ipv6=1")
            ip("-n", host(n), "link", "set", "eth0", "address", guest_mac(n), "mtu", "1362")
            inside(host(n), "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off")
            ip("-n", host(n), "addr", "add", f"10.7.0.{n + 1}/24", "dev", "eth0")
            ip("-n", host(n), "link", "set", "eth0", "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def guest_port(number: int) -> AccessPort:
    return AccessPort(
        port=GUEST,
        port_id=PortId(f"port-{number}"),
        label=LABEL,
        mac=guest_mac(number),
        addresses=(f"10.7.0.{number + 1}",),
        cidr="10.7.0.0/24",
        rules=None,
    )


def stations(runners: dict[int, FabricRunner]) -> list[Station]:
    return [
        Station(
            label=LABEL,
            mac=guest_mac(n),
            addresses=(f"10.7.0.{n + 1}",),
            nickname=runner.rbridge.nickname,
        )
        for n, runner in runners.items()
    ]


class Ring:
    """The four runners on one event loop."""

    def __init__(self, clock: SystemClock) -> None:
        self.logs: list[tuple[int, FabricLog]] = []
        self.runners: dict[int, FabricRunner] = {}
        self.planes: dict[int, SoftwarePlane] = {}
        self.switches: dict[int, SegmentSwitch] = {}
        self._clock = clock

    def start(self) -> None:
        for n in range(COUNT):
            with Entered(rb(n)):
                left, right = PacketSocket("left"), PacketSocket("right")
                guest, links = PacketSocket("guest"), LinkWatch()
            plane, switch = SoftwarePlane(), SegmentSwitch()
            plane.apply(switch.update([guest_port(n)], []))
            config = RBridgeConfig(
                bytes((2, 0x20, 0, 0, 0, n)), f"rb{n}", ring=Keyring(1, {1: b"ring"})
            )
            rbridge = RBridge(config, Random(n), self._clock.monotonic_s())
            runner = FabricRunner(
                rbridge,
                plane,
                clock=self._clock,
                ports=RunnerPorts(
                    {TRUNK_LEFT: (left,), TRUNK_RIGHT: (right,)},
                    {GUEST: (guest,)},
                    links,
                    {left.index: TRUNK_LEFT, right.index: TRUNK_RIGHT},
                ),
                switch=switch,
                tell=lambda log, n=n: self.logs.append((n, log)),  # type: ignore[misc]
            )
            for port, one in ((TRUNK_LEFT, left), (TRUNK_RIGHT, right)):
                runner.give(TrunkAdded(Trunk(port, one.mac)))
            runner.start()
            self.runners[n], self.planes[n], self.switches[n] = runner, plane, switch

    async def until_whole(self, timeout_s: float = 15.0) -> None:
        deadline_s = self._clock.monotonic_s() + timeout_s
        while not all(self._is_whole(number) for number in self.runners):
            assert self._clock.monotonic_s() < deadline_s, self.logs
            await asyncio.sleep(0.05)
        for n, switch in self.switches.items():
            self.planes[n].apply(switch.update([guest_port(n)], stations(self.runners)))

    def _is_whole(self, number: int) -> bool:
        neighbours = self.runners[number].rbridge.view().neighbours
        reports = [(n.state, n.bfd) for n in neighbours].count(("report", "up"))
        kinds = [type(entry) for entry in self.planes[number].entries()]
        return reports == 2 and kinds.count(FibEntry) == kinds.count(RpfEntry) == COUNT - 1

    def drops(self) -> dict[int, dict[str, int]]:
        return {
            n: {cause.value: count for cause, count in plane.counters().drops.items() if count}
            for n, plane in self.planes.items()
        }

    def reasons(self, *numbers: int) -> set[str]:
        """Return why these RBridges lost the neighbour across the link in question."""
        lost = FabricNews.ADJACENCY_DOWN
        return {
            log.detail.partition(": ")[2]
            for n, log in self.logs
            if log.news is lost and n in numbers
        }

    def stop(self) -> None:
        for runner in self.runners.values():
            runner.stop()


async def ping(source: int, target: int, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        inside, host(source), "ping", "-n", *words, f"10.7.0.{target + 1}"
    )


def longest_gap_s(output: str) -> float:
    """Return the longest time between answers of `ping -D`."""
    stamps = [
        float(line.split("]")[0].lstrip("["))
        for line in output.splitlines()
        if "icmp_seq" in line and line.startswith("[")
    ]
    return max(b - a for a, b in pairwise(stamps))


async def test_a_ring_of_namespaces_converges_and_survives(ring: None) -> None:
    """Adjacencies for real, ping across, a silent blackhole, lost carrier: traffic comes back.

    How soon is a benchmark's business (benchmarks/cut_gap.py).
    """
    clock = SystemClock()
    fabric = Ring(clock)
    fabric.start()
    try:
        await fabric.until_whole()
        first = await ping(0, 2, "-c", "5", "-i", "0.2", "-W", "2")
        received = int(first.stdout.split(" received")[0].rsplit(" ", 1)[1])
        assert received >= 4, (first.stdout, fabric.drops(), fabric.logs)

        fabric.logs.clear()
        gap_s = await blackhole_gap_s()
        print(f"silent blackhole: traffic back after {gap_s * 1000:.0f} ms")  # noqa: T201
        assert fabric.reasons(0, 1) == {"echoes lost"}, fabric.logs

        await fabric.until_whole()
        fabric.logs.clear()
        gap_s = await carrier_gap_s()
        print(f"carrier lost: traffic back after {gap_s * 1000:.0f} ms")  # noqa: T201
        assert fabric.reasons(2, 3) == {"carrier lost"}, fabric.logs
    finally:
        fabric.stop()


async def blackhole_gap_s() -> float:
    """Host 0 pings host 1 over the link that is then blackholed both ways."""
    pinging = asyncio.create_task(ping(0, 1, "-D", "-i", "0.005", "-c", "300", "-W", "1"))
    await asyncio.sleep(0.4)
    for namespace, interface in ((rb(0), "right"), (rb(1), "left")):
        rule = f"table netdev cut {{ chain x {{ type filter hook egress device {interface} "
        rule += "priority 0; policy drop; }; }"
        done = await asyncio.to_thread(inside, namespace, "nft", rule)
        assert done.returncode == 0, done.stderr
    done = await pinging
    for namespace in (rb(0), rb(1)):
        inside(namespace, "nft", "delete", "table", "netdev", "cut")
    return longest_gap_s(done.stdout)


async def carrier_gap_s() -> float:
    """Host 2 pings host 3 over the link whose far end is then set down."""
    pinging = asyncio.create_task(ping(2, 3, "-D", "-i", "0.005", "-c", "200", "-W", "1"))
    await asyncio.sleep(0.4)
    await asyncio.to_thread(ip, "-n", rb(3), "link", "set", "left", "down")
    done = await pinging
    return longest_gap_s(done.stdout)
