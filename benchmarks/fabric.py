"""TRILL and LISP on eBPF beside the kernel's own VXLAN and a plain bridge, in one run.

    python benchmarks/fabric.py [--rounds 9] [--kinds bridge,vxlan,trill,lisp] [--cost]

host – node – transit – node – host in network namespaces, all kinds side by side. Each round
measures every kind in every mode once, so that load from elsewhere hits all alike:

    super   segments of 64 KiB pass whole (virtual links: TSO on everywhere)
    nic     trunks without TSO, as a NIC that does not know the encapsulation
    pp      hosts send frames of 1500 bytes

Prints medians, the median of each round's own ratio to VXLAN (measured within a second or two of
each other, so that load from elsewhere counts least), and the round-trip time of `ping`. `--cost`
says besides what each of our programs takes for a frame, in a stream and in a ping, where it finds
caches cold (`kernel.bpf_stats_enabled`, for the whole machine meanwhile; needs bpftool).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.system.bpf.bpf_netns import Bridge, Chain, Namespaces, inside, run, within

from nuage.network.forwarding import (
    EidEntry,
    Label,
    MapCacheEntry,
    PortEntry,
    PortNumber,
    PortRole,
    Rloc,
)

MODES = {"super": "400M", "nic": "120M", "pp": "80M"}  # and how much is sent each time
PREFIX = "nqbench"
ROUTER_MAC = bytes.fromhex("02feed000001")
INSTANCE = Label(7)
COSTED_LEAST = 100  # frames, for a mean


class Fabric(NamedTuple):
    """Two hosts, how the second is called, and the (namespace, interface) of every trunk end."""

    hosts: tuple[str, str]
    target: str
    trunks: tuple[tuple[str, str], ...]
    remove: Callable[[], None]


def chain_of(kind: str) -> tuple[Namespaces, list[str], list[str]]:
    """Return namespaces with cables: hosts and nodes, addresses not yet set."""
    net = Namespaces(f"{PREFIX}{kind[0]}")
    hosts = [net.add("h0"), net.add("h1")]
    nodes = [net.add(f"r{n}") for n in range(3)]
    net.cable(nodes[0], "east", nodes[1], "west")
    net.cable(nodes[1], "east", nodes[2], "west")
    net.cable(nodes[0], "guest", hosts[0], "eth0")
    net.cable(nodes[2], "guest", hosts[1], "eth0")
    for host in hosts:
        run("ip", "-n", host, "link", "set", "eth0", "mtu", "1500")
    return net, hosts, nodes


def trunks_of(nodes: list[str]) -> tuple[tuple[str, str], ...]:
    """Return the ends of the two cables between nodes."""
    return ((nodes[0], "east"), (nodes[1], "west"), (nodes[1], "east"), (nodes[2], "west"))


def same_subnet(hosts: list[str]) -> None:
    """Give the hosts addresses on one segment."""
    for number, host in enumerate(hosts):
        run("ip", "-n", host, "addr", "add", f"10.9.0.{number + 1}/24", "dev", "eth0")


def underlay(nodes: list[str]) -> None:
    """Make IP work between the outer nodes, through the middle one."""
    run("ip", "-n", nodes[0], "addr", "add", "172.16.0.1/24", "dev", "east")
    run("ip", "-n", nodes[1], "addr", "add", "172.16.0.2/24", "dev", "west")
    run("ip", "-n", nodes[1], "addr", "add", "172.16.1.2/24", "dev", "east")
    run("ip", "-n", nodes[2], "addr", "add", "172.16.1.3/24", "dev", "west")
    inside(nodes[1], "sysctl", "-qw", "net.ipv4.ip_forward=1")
    run("ip", "-n", nodes[0], "route", "add", "172.16.1.0/24", "via", "172.16.0.2")
    run("ip", "-n", nodes[2], "route", "add", "172.16.0.0/24", "via", "172.16.1.2")
    assert inside(nodes[0], "ping", "-c", "1", "-W", "2", "172.16.1.3").returncode == 0


def add_bridge(node: str, *ports: str) -> None:
    """Join ports of a node in a kernel bridge."""
    run("ip", "-n", node, "link", "add", "br0", "type", "bridge")
    for port in ports:
        run("ip", "-n", node, "link", "set", port, "master", "br0")
    run("ip", "-n", node, "link", "set", "br0", "mtu", "1500")
    run("ip", "-n", node, "link", "set", "br0", "up")


def plain_bridge(_pins: Path) -> Fabric:
    """Three kernel bridges."""
    net, hosts, nodes = chain_of("bridge")
    same_subnet(hosts)
    add_bridge(nodes[0], "east", "guest")
    add_bridge(nodes[1], "west", "east")
    add_bridge(nodes[2], "west", "guest")
    return Fabric((hosts[0], hosts[1]), "10.9.0.2", trunks_of(nodes), net.remove)


def vxlan(_pins: Path) -> Fabric:
    """VXLAN between kernel bridges, over an IP router."""
    net, hosts, nodes = chain_of("vxlan")
    same_subnet(hosts)
    underlay(nodes)
    for node, local, remote in (
        (nodes[0], "172.16.0.1", "172.16.1.3"),
        (nodes[2], "172.16.1.3", "172.16.0.1"),
    ):
        run("ip", "-n", node, "link", "add", "vx0", "type", "vxlan", "id", "7", "dstport", "4789",
            "local", local, "remote", remote)  # fmt: skip
        run("ip", "-n", node, "link", "set", "vx0", "mtu", "1500", "up")
        add_bridge(node, "vx0", "guest")
    return Fabric((hosts[0], hosts[1]), "10.9.0.2", trunks_of(nodes), net.remove)


def trill(pins: Path) -> Fabric:
    """Three RBridges of ours; the two hosts are in the directory."""
    chain = Chain(f"{PREFIX}t", pins)
    chain.list_hosts()
    for bridge in chain.bridges:
        bridge.join_tcp()
    nodes = [bridge.namespace for bridge in chain.bridges]
    return Fabric((chain.hosts[0], chain.hosts[1]), "10.9.0.2", trunks_of(nodes), chain.remove)


def lisp(pins: Path) -> Fabric:
    """Two tunnel routers of ours, over an IP router."""
    net, hosts, nodes = chain_of("lisp")
    underlay(nodes)
    ends = ((nodes[0], "east", "172.16.0.1", "172.16.1.3"),
            (nodes[2], "west", "172.16.1.3", "172.16.0.1"))  # fmt: skip
    for number, (node, trunk, mine, other) in enumerate(ends):
        host, port = hosts[number], PortNumber(9)
        mac = bytes.fromhex(
            inside(host, "cat", "/sys/class/net/eth0/address").stdout.strip().replace(":", "")
        )
        run("ip", "-n", host, "addr", "add", f"10.{number}.0.1/32", "dev", "eth0")
        run("ip", "-n", host, "route", "add", "default", "dev", "eth0")
        run("ip", "-n", host, "neigh", "add", f"10.{1 - number}.0.1", "lladdr",
            "02:fe:ed:00:00:01", "dev", "eth0")  # fmt: skip
        bridge = Bridge(node, number + 1, pins / node)
        bridge.set(
            PortEntry(port, PortRole.ACCESS, mac, INSTANCE, mtu_bytes=1500),
            EidEntry(INSTANCE, ip_network(f"10.{number}.0.1/32"), port, mac),
            MapCacheEntry(INSTANCE, ip_network(f"10.{1 - number}.0.0/16"), (Rloc(other),)),
        )
        bridge.bind(9, "guest")
        bridge.join_tcp()
        address = IPv4Address(mine)
        within(node, lambda b=bridge, t=trunk, a=address: b.plane.set_router(t, a, ROUTER_MAC))  # type: ignore[misc]
    return Fabric((hosts[0], hosts[1]), "10.1.0.1", trunks_of(nodes), net.remove)


BUILD: dict[str, Callable[[Path], Fabric]] = {
    "bridge": plain_bridge,
    "vxlan": vxlan,
    "trill": trill,
    "lisp": lisp,
}


def set_mode(fabric: Fabric, mode: str) -> None:
    """Switch segmentation at trunks and hosts as `mode` says."""
    at_trunks = "on" if mode == "super" else "off"
    for namespace, interface in fabric.trunks:
        inside(namespace, "ethtool", "-K", interface, "tso", at_trunks, "gso", at_trunks)
    at_hosts = "off" if mode == "pp" else "on"
    for host in fabric.hosts:
        inside(host, "ethtool", "-K", "eth0", "tso", at_hosts, "gso", at_hosts)


def throughput_gbit_per_s(fabric: Fabric, mode: str) -> float:
    """Return what one TCP stream gets through."""
    done = inside(
        fabric.hosts[0], "timeout", "9", "iperf3", "-c", fabric.target,
        "-n", MODES[mode], "-J", "--connect-timeout", "2000",
    )  # fmt: skip
    try:
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (KeyError, ValueError):  # it did not get through at all
        return 0.0


def round_trip_us(fabric: Fabric) -> float:
    """Return the mean round trip of 200 echoes."""
    done = inside(fabric.hosts[0], "ping", "-q", "-i", "0.002", "-c", "200", fabric.target)
    line = next(line for line in done.stdout.splitlines() if "min/avg/max" in line)
    return float(line.split("=")[1].split("/")[1]) * 1000


def measure(fabrics: dict[str, Fabric], rounds: int) -> dict[str, list[float]]:
    """Return all values by "kind mode"; who goes first changes from round to round."""
    found: dict[str, list[float]] = {}
    kinds = list(fabrics)
    for turn in range(rounds):
        order = kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]
        for mode in MODES:
            for kind in order:
                set_mode(fabrics[kind], mode)
                value = throughput_gbit_per_s(fabrics[kind], mode)
                found.setdefault(f"{kind} {mode}", []).append(value)
        for kind in order:
            found.setdefault(f"{kind} rtt", []).append(round_trip_us(fabrics[kind]))
    return found


def program_costs() -> dict[int, tuple[str, int, int]]:
    """Return each program's name, how long it has run in ns and how often, by its id."""
    shown = json.loads(run("bpftool", "-j", "prog", "show"))
    return {
        each["id"]: (each.get("name", ""), each.get("run_time_ns", 0), each.get("run_cnt", 0))
        for each in shown
    }


def report_costs(fabrics: dict[str, Fabric], others: set[int]) -> None:
    """Print what each program takes for a frame; `others`: programs that are not ours."""
    run("sysctl", "-qw", "kernel.bpf_stats_enabled=1")
    try:
        for kind in fabrics.keys() & {"trill", "lisp"}:
            set_mode(fabrics[kind], "pp")
            for what, act in (
                ("stream", lambda fabric: throughput_gbit_per_s(fabric, "pp")),
                ("ping", round_trip_us),
            ):
                before = program_costs()
                act(fabrics[kind])
                print(f"{kind} {what}: " + ", ".join(costs_since(before, others)))
    finally:
        run("sysctl", "-qw", "kernel.bpf_stats_enabled=0")


def costs_since(before: dict[int, tuple[str, int, int]], others: set[int]) -> list[str]:
    """Return name and ns a frame of our programs that ran often since `before`, in their order."""
    found = []
    for number, (name, time_ns, count) in sorted(program_costs().items()):
        _, time_before_ns, count_before = before.get(number, (name, 0, 0))
        times = count - count_before
        if number not in others and times >= COSTED_LEAST:
            found.append(f"{name} {(time_ns - time_before_ns) / times:.0f} ns")
    return found


def report(kinds: list[str], found: dict[str, list[float]]) -> None:
    """Print a line per kind."""
    print(f"{'':8}" + "".join(f"{mode + ' Gb/s':>28}" for mode in MODES) + f"{'rtt us':>28}")
    for kind in kinds:
        cells = []
        for column in (*MODES, "rtt"):
            values = found[f"{kind} {column}"]
            peers = found.get(f"vxlan {column}", values)
            ratio = median(a / b for a, b in zip(values, peers, strict=True) if b)
            cells.append(
                f"{median(values):.2f} [{min(values):.1f}..{max(values):.1f}] x{ratio:.2f}"
            )
        print(f"{kind:8}" + "".join(f"{cell:>28}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--kinds", default=",".join(BUILD))
    parser.add_argument("--cost", action="store_true", help="of each program, besides")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    fabrics: dict[str, Fabric] = {}
    servers = []
    with tempfile.TemporaryDirectory() as pins:
        run("mount", "-t", "bpf", "bpf", pins)
        others = set(program_costs()) if options.cost else set()
        try:
            for kind in kinds:
                fabrics[kind] = BUILD[kind](Path(pins))
            for fabric in fabrics.values():
                command = ["ip", "netns", "exec", fabric.hosts[1], "iperf3", "-s"]
                servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            measure(fabrics, 1)
            report(kinds, measure(fabrics, options.rounds))
            if options.cost:
                report_costs(fabrics, others)
        finally:
            for server in servers:
                server.terminate()
                server.wait()
            for fabric in fabrics.values():
                fabric.remove()
            run("umount", "-l", pins)


if __name__ == "__main__":
    main()
