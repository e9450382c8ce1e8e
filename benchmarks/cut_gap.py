"""How long traffic stops when a link of a ring dies: ours beside the kernel's STP.

    python benchmarks/cut_gap.py [--rounds 5] [--kinds nuage,stp]

Three nodes in a ring of network namespaces, a host behind each of two neighbours, which ping each
other every 2 ms over the link that dies. Silent: the link's both ends swallow what they send and
nobody is told. Carrier: one end is set down, the other sees it. All kinds run side by side, each
round cuts each of them once. `stp`: bridges with the kernel's timers at their least (hello 1 s,
forward delay 2 s, age 6 s). Needs root.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import machine

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.system.bpf.bpf_netns import Namespaces, inside, run
from tests.system.bpf.test_bpf_control import COUNT, Node, guest_mac

from nuage.clock import SystemClock
from nuage.daemon.urgency import run_urgently

PREFIX = "nqcut"
INTERVAL_S = 0.002
BEFORE_S = 0.5
WATCH_S = {"nuage": 2.0, "stp": 18.0}
HEALED_S = {"nuage": 4.0, "stp": 10.0}
LINK = ("right", "left")  # of node 0, of node 1: the link that the two hosts talk over


@dataclass
class Ring:
    """Nodes, the two hosts, what the first pings, and how to end it."""

    kind: str
    nodes: list[str]
    host: str
    target: str
    stop: Callable[[], None]


def cables(kind: str) -> tuple[Namespaces, list[str], list[str]]:
    """Return a ring's namespaces and the two hosts behind nodes 0 and 1."""
    net = Namespaces(f"{PREFIX}{kind[0]}")
    names = [net.add(f"r{n}") for n in range(COUNT)]
    hosts = [net.add(f"h{n}") for n in range(COUNT)]
    for n in range(COUNT):
        net.cable(names[n], "right", names[(n + 1) % COUNT], "left")
        net.cable(names[n], "guest", hosts[n], "eth0")
        run("ip", "-n", hosts[n], "link", "set", "eth0", "address", guest_mac(n), "mtu", "1362")
    return net, names, hosts


async def nuage(folder: Path) -> Ring:
    """RBridges of ours on the kernel plane, their control machines on this process's loop."""
    net, names, hosts = cables("nuage")
    for n, host in enumerate(hosts):
        run("ip", "-n", host, "addr", "add", f"10.7.0.{n + 1}/24", "dev", "eth0")
    clock = SystemClock()
    nodes = [Node(n, name, folder / "bpf" / name, clock) for n, name in enumerate(names)]
    for node in nodes:
        node.start()
    while not all(node.is_whole() for node in nodes):
        await asyncio.sleep(0.05)
    for node in nodes:
        node.learn_of(nodes)

    def stop() -> None:
        for node in nodes:
            node.die()
        net.remove()

    return Ring("nuage", names, hosts[0], "10.7.0.2", stop)


async def stp(_folder: Path) -> Ring:
    """Kernel bridges with the spanning tree protocol, node 0 the root."""
    net, names, hosts = cables("stp")
    for n, name in enumerate(names):
        run("ip", "-n", name, "link", "add", "br0", "type", "bridge", "stp_state", "1",
            "forward_delay", "200", "hello_time", "100", "max_age", "600",
            "priority", str(4096 * (n + 1)))  # fmt: skip
        for port in ("left", "right", "guest"):
            run("ip", "-n", name, "link", "set", port, "master", "br0")
        run("ip", "-n", name, "link", "set", "br0", "up")
        run("ip", "-n", hosts[n], "addr", "add", f"10.7.0.{n + 1}/24", "dev", "eth0")
    await asyncio.sleep(HEALED_S["stp"])
    return Ring("stp", names, hosts[0], "10.7.0.2", net.remove)


BUILD: dict[str, Callable[[Path], Awaitable[Ring]]] = {"nuage": nuage, "stp": stp}


async def within(node: str, *words: str) -> None:
    """Run a command in a namespace while the loop goes on."""
    done = await asyncio.to_thread(inside, node, *words)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")


async def silent(ring: Ring, *, cut: bool) -> None:
    """Let the link swallow everything, or no longer: a queue that no frame fits into."""
    for node, port in zip(ring.nodes[:2], LINK, strict=True):
        full = ("tbf", "rate", "8bit", "burst", "1", "limit", "1") if cut else ()
        verb = "replace" if cut else "del"
        await within(node, "tc", "qdisc", verb, "dev", port, "root", *full)


async def carrier(ring: Ring, *, cut: bool) -> None:
    """Set the far end of the link down, or up."""
    await within(ring.nodes[1], "ip", "link", "set", LINK[1], "down" if cut else "up")


def longest_gap_ms(output: str, ended_s: float) -> float:
    """Return the longest time between answers of `ping -D`, and from the last to its end."""
    stamps = [
        float(line.split("]")[0].lstrip("["))
        for line in output.splitlines()
        if line.startswith("[") and "icmp_seq" in line
    ]
    return max(b - a for a, b in pairwise((*stamps, ended_s))) * 1000


async def gap_ms(ring: Ring, way: Callable[..., Awaitable[None]]) -> float:
    """Return the longest gap of a ping over the cut."""
    total_s = BEFORE_S + WATCH_S[ring.kind]
    # Real-time, so that what is measured is not when `ping` gets a processor.
    words = ("chrt", "-r", "1", "ping", "-n", "-D", "-i", str(INTERVAL_S),
             "-w", str(int(total_s) + 1), ring.target)  # fmt: skip
    pinging = asyncio.create_task(asyncio.to_thread(inside, ring.host, *words))
    await asyncio.sleep(BEFORE_S)
    await way(ring, cut=True)
    told, ended_s = (await pinging).stdout, time.time()
    await way(ring, cut=False)
    await asyncio.sleep(HEALED_S[ring.kind])
    return longest_gap_ms(told, ended_s)


async def measure(kinds: list[str], rounds: int, folder: Path) -> None:
    rings: list[Ring] = []
    found: dict[tuple[str, str], list[float]] = {}
    try:
        for kind in kinds:  # one at a time: each needs its quiet
            rings.append(await BUILD[kind](folder))  # noqa: PERF401
        for _ in range(rounds):
            for ring in rings:
                for name, way in (("silent", silent), ("carrier", carrier)):
                    found.setdefault((ring.kind, name), []).append(await gap_ms(ring, way))
    finally:
        for ring in rings:
            ring.stop()
    print(f"{'':8}{'silent cut, ms':>34}{'carrier lost, ms':>34}")
    for kind in kinds:
        cells = []
        for name in ("silent", "carrier"):
            values = sorted(found[kind, name])
            cells.append(f"{median(values):.0f} [{values[0]:.0f}..{values[-1]:.0f}]")
        print(f"{kind:8}" + "".join(f"{cell:>34}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default=",".join(BUILD))
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    print(machine.describe())
    print(f"runs {run_urgently()}, as the daemons do")
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "bpf"
        pins.mkdir()
        run("mount", "-t", "bpf", "bpf", str(pins))
        try:
            asyncio.run(measure(kinds, options.rounds, Path(folder)))
        finally:
            run("umount", "-l", str(pins))


if __name__ == "__main__":
    main()
