"""What the fabric costs on an encrypted trunk: guests over TRILL beside the bare driver and VXLAN.

    python benchmarks/trunk.py [--rounds 7] [--driver wireguard-go] [--seconds 2]

Two sites in network namespaces with a line of 1500 bytes between them and one tunnel over it. The
same tunnel carries both, in turns:

    bare    TCP between the tunnel's own addresses
    vxlan   TCP between two guests: kernel bridge, VXLAN port, tunnel, bridge (1390 bytes)
    edge    TCP between two guests: RBridge with the tunnel, RBridge (guests have 1362 bytes)
    node    the same between guests of a V-node behind each of those RBridges, VXLAN in the rack
    edge port, node port
            the same, but our frames go by the trunk's VXLAN port, none by the short way

Prints medians and the median of each round's own ratio; the goal is 0.9 in throughput and 1.1 in
round trips. The CPU of a stream is what wireguard-go, iperf3 and the kernel's soft interrupts take
for a gigabyte: it tells more than rates where others use the machine, too. `--driver wireguard-kernel` where the kernel has it. Needs root, iperf3 and wireguard.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median

import machine

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.system.bpf.bpf_netns import Bridge, Entered, Namespaces, inside, run, within
from tests.system.bpf.bpf_tunnel import NUMBER

from nuage.clock import SystemClock
from nuage.network.forwarding import (
    FibEntry,
    FloodEntry,
    Label,
    MacEntry,
    NextHop,
    Nickname,
    PortNumber,
    SelfEntry,
)
from nuage.network.mtu import PATH_BYTES, Wrapping, trunk_mtu
from nuage.network.trunk import (
    VXLAN_PORT,
    TrunkDriver,
    TrunkEnd,
    TrunkWish,
    TunnelEnd,
    tunnel_end,
)
from nuage.network.trunk_wireguard import (
    TrunkUp,
    new_private_key,
    public_key_of,
    set_up,
    tear_down,
)

LABEL = Label(7)
TRUNK, RACK, GUEST = 1, 2, 9
ADDRESSES = ("192.0.2.1", "192.0.2.2")
NICKNAMES = (Nickname(0x11), Nickname(0x22))
NODE_NICKNAMES = (Nickname(0x33), Nickname(0x44))
KINDS = ("bare", "vxlan", "edge", "node", "edge port", "node port")
PEER_VNI = "4000"
RACK_VNI = 6000


class Sites:
    """Both sites, the tunnel and a guest on each side."""

    def __init__(self, pins: Path, driver: TrunkDriver) -> None:
        self._net = Namespaces("nqtk")
        self._trunks: list[TrunkUp] = []
        try:
            self._build(pins, driver)
        except BaseException:
            self.remove()
            raise

    def _build(self, pins: Path, driver: TrunkDriver) -> None:
        net = self._net
        self.edges = [net.add("a"), net.add("b")]
        self.hosts = [net.add("h0"), net.add("h1")]
        self.nodes = [net.add("v0"), net.add("v1")]
        self.farther = [net.add("g0"), net.add("g1")]
        self.peers = [net.add("p0"), net.add("p1")]
        net.cable(self.edges[0], "wan", self.edges[1], "wan")
        for edge, host, address in zip(self.edges, self.hosts, ADDRESSES, strict=True):
            run("ip", "-n", edge, "link", "set", "wan", "mtu", "1500")
            run("ip", "-n", edge, "addr", "add", f"{address}/24", "dev", "wan")
            net.cable(edge, "guest", host, "eth0")
        for edge, node, host in zip(self.edges, self.nodes, self.farther, strict=True):
            net.cable(edge, "rack", node, "rack")
            self._link(edge, node)
            net.cable(node, "guest", host, "eth0")
        self._join(driver)
        self._bridge_peers()
        self._forward([Bridge(edge, n, pins / edge) for n, edge in enumerate(self.edges)])
        self._forward_nodes([Bridge(node, n, pins / node) for n, node in enumerate(self.nodes)])

    def _join(self, driver: TrunkDriver) -> None:
        keys = [new_private_key() for _ in ADDRESSES]
        ends = [
            TrunkEnd(site_id=f"site-{n}", address=address, public_key=public_key_of(key))
            for n, (address, key) in enumerate(zip(ADDRESSES, keys, strict=True))
        ]
        for n, edge in enumerate(self.edges):
            wish = TrunkWish(
                number=NUMBER, provider="isp", here=ends[n], there=ends[1 - n], drivers=(driver,)
            )
            joined = set_up(wish, keys[n], SystemClock())
            self._trunks.append(within(edge, lambda made=joined: asyncio.run(made)))  # type: ignore[misc]

    def _link(self, *ends: str) -> None:
        """Make the trunk of a rack, as the daemons do without a cable."""
        for n, name in enumerate(ends):
            mtu = str(trunk_mtu(PATH_BYTES, Wrapping(encrypted=False)))
            run("ip", "-n", name, "link", "set", "rack", "mtu", str(PATH_BYTES))
            run("ip", "-n", name, "addr", "add", f"10.8.0.{n + 1}/24", "dev", "rack")
            run("ip", "-n", name, "link", "add", "name", "link", "type", "vxlan", "id", str(RACK_VNI),
                "local", f"10.8.0.{n + 1}", "remote", f"10.8.0.{2 - n}",
                "dstport", "4789", "nolearning")  # fmt: skip
            run("ip", "-n", name, "link", "set", "dev", "link", "mtu", mtu, "up")
            inside(name, "ethtool", "-K", "link", "tso", "off", "gso", "off")
            inside(name, "ethtool", "-K", "rack", "tx-udp_tnl-segmentation", "off")

    def _forward(self, bridges: list[Bridge]) -> None:
        port = self._trunks[0].plan.port
        macs = [bridge.mac(port) for bridge in bridges]
        guests = [bytes((6, 0, 0, 0, 0, n)) for n in range(2)]
        for n, (bridge, host) in enumerate(zip(bridges, self.hosts, strict=True)):
            far = 1 - n
            bridge.trunk(TRUNK, port, macs[far])
            bridge.access(GUEST, "guest", LABEL, guests[n])
            bridge.join_tcp()
            bridge.set(
                SelfEntry(NICKNAMES[n], NICKNAMES[0]),
                FibEntry(NICKNAMES[far], (NextHop(PortNumber(TRUNK), macs[far], macs[n]),)),
                FloodEntry(LABEL, (PortNumber(GUEST),)),
                MacEntry(LABEL, guests[n], port=PortNumber(GUEST)),
                MacEntry(LABEL, guests[far], nickname=NICKNAMES[far]),
            )
            self._address(host, n, "10.9.0", 0)
        self._bridges = bridges

    def _address(self, host: str, n: int, network: str, kind: int) -> None:
        mtu = str(self._trunks[n].plan.guest_mtu_bytes)
        own, other = (f"06:00:00:00:0{kind}:0{which}" for which in (n, 1 - n))
        run("ip", "-n", host, "link", "set", "eth0", "address", own, "mtu", mtu)
        run("ip", "-n", host, "addr", "add", f"{network}.{n + 1}/24", "dev", "eth0")
        run("ip", "-n", host, "neigh", "add", f"{network}.{2 - n}", "lladdr", other,
            "dev", "eth0")  # fmt: skip

    def _forward_nodes(self, nodes: list[Bridge]) -> None:
        """Put an RBridge with a guest behind each that has the tunnel."""
        guests = [bytes((6, 0, 0, 0, 1, n)) for n in range(2)]
        for n, (node, edge, host) in enumerate(
            zip(nodes, self._bridges, self.farther, strict=True)
        ):
            far, here, there = 1 - n, edge.mac("link"), node.mac("link")
            tunnel = self._trunks[n].plan.port
            across = NextHop(PortNumber(TRUNK), self._bridges[far].mac(tunnel), edge.mac(tunnel))
            edge.trunk(RACK, "link", there)
            edge.set(
                FibEntry(NODE_NICKNAMES[n], (NextHop(PortNumber(RACK), there, here),)),
                FibEntry(NODE_NICKNAMES[far], (across,)),
            )
            node.trunk(RACK, "link", here)
            node.access(GUEST, "guest", LABEL, guests[n])
            node.join_tcp()
            node.set(
                SelfEntry(NODE_NICKNAMES[n], NICKNAMES[0]),
                FibEntry(NODE_NICKNAMES[far], (NextHop(PortNumber(RACK), here, there),)),
                FloodEntry(LABEL, (PortNumber(GUEST),)),
                MacEntry(LABEL, guests[n], port=PortNumber(GUEST)),
                MacEntry(LABEL, guests[far], nickname=NODE_NICKNAMES[far]),
            )
            self._address(host, n, "10.9.2", 1)
        self._node_bridges = nodes

    def choose_way(self, kind: str) -> None:
        """Let plain frames go past the VXLAN ports, as the daemons do, or all by them."""
        for pair in zip(self._bridges, self._node_bridges, strict=True):
            for n, bridge in enumerate(pair):
                self._choose_in_rack(bridge, n, kind)
        for n, (bridge, trunk) in enumerate(zip(self._bridges, self._trunks, strict=True)):
            plan, plane, number = trunk.plan, bridge.plane, PortNumber(TRUNK)
            end = tunnel_end(NUMBER, plan.tunnel, plan.tunnel_mtu_bytes, low=n == 0)
            with Entered(bridge.namespace):
                if kind.endswith("port"):
                    plane.unbind_tunnel(number)
                else:
                    plane.bind_tunnel(number, end)

    def _choose_in_rack(self, bridge: Bridge, n: int, kind: str) -> None:
        end = TunnelEnd(
            interface="rack", here=IPv4Address(f"10.8.0.{n + 1}"),
            there=IPv4Address(f"10.8.0.{2 - n}"), vni=RACK_VNI, udp_port=VXLAN_PORT,
            mtu_bytes=PATH_BYTES, is_ethernet=True,
        )  # fmt: skip
        with Entered(bridge.namespace):
            if kind.endswith("port"):
                bridge.plane.unbind_tunnel(PortNumber(RACK))
            else:
                bridge.plane.bind_tunnel(PortNumber(RACK), end)

    def _bridge_peers(self) -> None:
        """Join two more hosts by what a kernel has for it."""
        for n, (edge, host) in enumerate(zip(self.edges, self.peers, strict=True)):
            self._net.cable(edge, "peer", host, "eth0")
            plan = self._trunks[n].plan
            mtu = str(plan.trunk_mtu_bytes)
            run("ip", "-n", edge, "link", "add", "br0", "type", "bridge")
            run("ip", "-n", edge, "link", "add", "vx0", "type", "vxlan", "id", PEER_VNI,
                "dstport", "4789", "local", plan.tunnel_local,
                "remote", plan.tunnel_remote)  # fmt: skip
            for port in ("vx0", "peer"):
                run("ip", "-n", edge, "link", "set", port, "master", "br0")
            for port in ("vx0", "br0"):
                run("ip", "-n", edge, "link", "set", port, "mtu", mtu, "up")
            run("ip", "-n", host, "link", "set", "eth0", "mtu", mtu)
            run("ip", "-n", host, "addr", "add", f"10.9.1.{n + 1}/24", "dev", "eth0")

    def way(self, kind: str) -> tuple[str, str, str]:
        """Return who asks, who answers, and how the second is called."""
        if kind == "bare":
            return self.edges[0], self.edges[1], self._trunks[0].plan.tunnel_remote
        if kind == "vxlan":
            return self.peers[0], self.peers[1], "10.9.1.2"
        if kind.startswith("node"):
            return self.farther[0], self.farther[1], "10.9.2.2"
        return self.hosts[0], self.hosts[1], "10.9.0.2"

    def tunnels(self) -> set[str]:
        """Return the names of the tunnel's ends."""
        return {trunk.plan.tunnel for trunk in self._trunks}

    def remove(self) -> None:
        """Take all of it away."""
        for edge, trunk in zip(self.edges, self._trunks, strict=False):
            ends = (trunk.plan.port, trunk.plan.tunnel)
            within(edge, lambda gone=ends: asyncio.run(tear_down(*gone)))  # type: ignore[misc]
        self._net.remove()


def carriers(sites: Sites, servers: Sequence[subprocess.Popen[bytes]]) -> list[Path]:
    """Return in /proc those who answer and the wireguard-go of both ends."""
    found = [Path(f"/proc/{server.pid}") for server in servers]
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"wireguard-go") and os.fsdecode(words[1]) in sites.tunnels():
                found.append(process)
    return found


def cpu_s(processes: Sequence[Path]) -> float:
    """Return what they, children that ended, and soft interrupts have taken so far."""
    threads = [thread for process in processes for thread in process.glob("task/*/schedstat")]
    taken = sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    soft = int(Path("/proc/stat").read_text().split()[7]) / os.sysconf("SC_CLK_TCK")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken + soft + children.ru_utime + children.ru_stime


def stream(
    sites: Sites, kind: str, seconds: float, processes: Sequence[Path]
) -> tuple[float, float]:
    """Return what one TCP stream gets through, Mbit/s, and CPU seconds a gigabyte."""
    asks, _, target = sites.way(kind)
    before_s = cpu_s(processes)
    done = inside(asks, "iperf3", "-c", target, "-t", str(seconds), "-J")
    taken_s = cpu_s(processes) - before_s
    try:
        received = json.loads(done.stdout)["end"]["sum_received"]
        return float(received["bits_per_second"]) / 1e6, taken_s / float(received["bytes"]) * 1e9
    except (KeyError, ValueError, ZeroDivisionError):
        raise SystemExit(f"{kind}: nothing gets through: {done.stdout[-300:]}") from None


def round_trip_us(sites: Sites, kind: str) -> float:
    """Return the mean round trip of 200 echoes."""
    asks, _, target = sites.way(kind)
    done = inside(asks, "ping", "-q", "-i", "0.005", "-c", "200", target)
    line = next((each for each in done.stdout.splitlines() if "min/avg/max" in each), "")
    if not line:
        raise SystemExit(f"{kind}: nothing comes back: {done.stdout}")
    return float(line.split("=")[1].split("/")[1]) * 1000


def measure(
    sites: Sites, rounds: int, seconds: float, processes: Sequence[Path]
) -> dict[tuple[str, str], list[float]]:
    """Return all values; who goes first changes from round to round."""
    found: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds):
        first = turn % len(KINDS)
        for kind in KINDS[first:] + KINDS[:first]:
            sites.choose_way(kind)
            rate, cost = stream(sites, kind, seconds, processes)
            found.setdefault((kind, "Mb/s"), []).append(rate)
            found.setdefault((kind, "CPU s/GB"), []).append(cost)
            found.setdefault((kind, "rtt us"), []).append(round_trip_us(sites, kind))
    return found


def report(found: dict[tuple[str, str], list[float]]) -> None:
    """Print a line per kind, ratios to the bare driver beside."""
    for kind in KINDS:
        cells = []
        for what in ("Mb/s", "CPU s/GB", "rtt us"):
            values, bare = found[kind, what], found["bare", what]
            ratio = median(a / b for a, b in zip(values, bare, strict=True))
            spread = f"[{min(values):.0f}..{max(values):.0f}]"
            cells.append(f"{what} {median(values):.3g} {spread} x{ratio:.2f}")
        print(f"{kind:10}" + "".join(f"{cell:>36}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--driver", default=TrunkDriver.WIREGUARD_GO.value)
    options = parser.parse_args()
    print(machine.describe())
    servers = []
    with tempfile.TemporaryDirectory() as pins:
        run("mount", "-t", "bpf", "bpf", pins)
        try:
            sites = Sites(Path(pins), TrunkDriver(options.driver))
            try:
                for answers in {sites.way(kind)[1] for kind in KINDS}:
                    command = ["ip", "netns", "exec", answers, "iperf3", "-s"]
                    servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
                time.sleep(1.0)  # they listen
                busy = carriers(sites, servers)
                measure(sites, 1, 1.0, busy)
                report(measure(sites, options.rounds, options.seconds, busy))
            finally:
                for server in servers:
                    server.terminate()
                    server.wait()
                sites.remove()
        finally:
            run("umount", "-l", pins)


if __name__ == "__main__":
    main()
