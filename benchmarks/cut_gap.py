"""How long traffic stops when a link of a ring dies: ours beside FRR and the kernel's STP.

    python benchmarks/cut_gap.py [--rounds 5] [--kinds nuage,frr,frr-least,stp]

Three nodes in a ring of network namespaces, a host behind each of two neighbours, which send each
other a datagram every millisecond over the link that dies (`cut_probe`). Silent: the link's both
ends swallow what they send and nobody is told. Carrier: one end is set down, the other sees it.
All kinds stand side by side, each round cuts each of them once.

    nuage      RBridges, echoes each 50 ms, lost after two that did not return
    frr        IS-IS and BFD of 50 ms x 3, as ours (Debian's `frr`; without it: not measured)
    frr-least  the same with the least BFD allows there, 10 ms x 3
    stp        bridges with the kernel's timers at their least (hello 1 s, forward delay 2 s, age 6 s),
               in the first two rounds only: its gap is those timers, and takes half a minute

FRR's daemons and this process run at one real-time priority, as all of ours do.

While the kernel closes the far port it holds the lock under which carriers are told and asked
for; nothing passes meanwhile, and nobody can hear why. That time is told besides. Needs root.
"""

import argparse
import asyncio
import fcntl
import json
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import machine

sys.path.insert(0, str(Path(__file__).parents[1]))

import frr_ring
from frr_ring import FrrRing, Timers
from tests.system.bpf.bpf_netns import Namespaces, inside, run, within
from tests.system.bpf.test_bpf_control import COUNT, Node, guest_mac

from nuage.clock import SystemClock
from nuage.daemon.urgency import run_urgently

PREFIX = "nqcut"
PROBE = Path(__file__).with_name("cut_probe.py")
BEFORE_S = 0.5
WATCH_S = {"nuage": 1.5, "frr": 2.5, "frr-least": 2.5, "stp": 14.0}
SETTLE_S = {"nuage": 0.5, "frr": 1.0, "frr-least": 1.0, "stp": 3.0}
ROUNDS_MAX = {"stp": 2}
WHOLE_WAIT_S = 40.0
FLAT = ("10.7.0.1", "10.7.0.2")  # of the two hosts where the ring is one segment
LINK = ("right", "left")  # of node 0, of node 1: the link that the two hosts talk over


@dataclass
class Ring:
    """Nodes, the two hosts and their addresses, whether all is well, and how to end it."""

    kind: str
    nodes: list[str]
    hosts: tuple[str, str]
    addresses: tuple[str, str]
    is_whole: Callable[[], Awaitable[bool]]
    stop: Callable[[], None]


def cables(kind: str) -> tuple[Namespaces, list[str], list[str]]:
    """Return a ring's namespaces and the two hosts behind nodes 0 and 1."""
    net = Namespaces(f"{PREFIX}{kind[0]}{kind[-1]}")
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

    async def is_whole() -> bool:
        return all(node.is_whole() for node in nodes)

    await until(is_whole)
    for node in nodes:
        node.learn_of(nodes)

    def stop() -> None:
        for node in nodes:
            node.die()
        net.remove()

    return Ring("nuage", names, (hosts[0], hosts[1]), FLAT, is_whole, stop)


def forwards(node: str, port: str) -> bool:
    """Tell whether a bridge's port is in the tree and passes frames."""
    told = json.loads(run("ip", "-n", node, "-d", "-j", "link", "show", "dev", port))
    data = told[0].get("linkinfo", {}).get("info_slave_data", {})
    return str(data.get("state", "")) == "forwarding"


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

    def is_open(n: int) -> bool:
        """Tell whether frames pass from node `n` to the next one."""
        return forwards(names[n], "right") and forwards(names[(n + 1) % COUNT], "left")

    async def is_whole() -> bool:
        """Tell whether the tree goes over the link, and what bridges learned before is forgotten."""
        if not is_open(0) or (is_open(1) and is_open(2)):
            return False
        return inside(hosts[0], "ping", "-c", "1", "-W", "1", FLAT[1]).returncode == 0

    await until(is_whole)
    return Ring("stp", names, (hosts[0], hosts[1]), FLAT, is_whole, net.remove)


def frr(kind: str, timers: Timers) -> Callable[[Path], Awaitable[Ring]]:
    """Return what builds a ring of FRR's routers with these BFD timers."""

    async def build(_folder: Path) -> Ring:
        net, names, hosts = cables(kind)
        ring = FrrRing(names, timers)
        try:
            await asyncio.to_thread(ring.start)
        except SystemExit:
            net.remove()
            raise
        for n, host in enumerate(hosts):
            run("ip", "-n", host, "addr", "add", f"{frr_ring.host_address(n)}/24", "dev", "eth0")
            run("ip", "-n", host, "route", "add", "default", "via", f"10.71.{n}.1")

        async def is_whole() -> bool:
            return await asyncio.to_thread(ring.is_whole)

        def stop() -> None:
            ring.stop()
            net.remove()

        addresses = (frr_ring.host_address(0), frr_ring.host_address(1))
        return Ring(kind, names, (hosts[0], hosts[1]), addresses, is_whole, stop)

    return build


BUILD: dict[str, Callable[[Path], Awaitable[Ring]]] = {
    "nuage": nuage,
    "frr": frr("frr", Timers(50, 3)),
    "frr-least": frr("frr-least", Timers(10, 3)),
    "stp": stp,
}


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a ring is whole."""
    deadline_s = time.monotonic() + WHOLE_WAIT_S
    while not await is_so():
        if time.monotonic() > deadline_s:
            raise SystemExit("a ring does not become whole")
        await asyncio.sleep(0.1)


async def tell(node: str, *words: str) -> None:
    """Run a command in a namespace while the loop goes on."""
    done = await asyncio.to_thread(inside, node, *words)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")


async def silent(ring: Ring, *, cut: bool) -> None:
    """Let the link swallow everything, or no longer: a queue that no frame fits into."""
    for node, port in zip(ring.nodes[:2], LINK, strict=True):
        full = ("tbf", "rate", "8bit", "burst", "1", "limit", "1") if cut else ()
        verb = "replace" if cut else "del"
        await tell(node, "tc", "qdisc", verb, "dev", port, "root", *full)


SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
closing_ms: list[float] = []  # how long the kernel took to close the far port, each time


def switch(namespace: str, interface: str, *, up: bool) -> float:
    """Set an interface up or down; return how many milliseconds the kernel took."""
    with within(namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asking:
        request = struct.pack("16sH22x", interface.encode(), 0)
        told = fcntl.ioctl(asking, SIOCGIFFLAGS, request)
        flags = struct.unpack_from("H", told, 16)[0]
        flags = flags | IFF_UP if up else flags & ~IFF_UP
        begun_s = time.monotonic()
        fcntl.ioctl(asking, SIOCSIFFLAGS, struct.pack("16sH22x", interface.encode(), flags))
        return (time.monotonic() - begun_s) * 1000


async def carrier(ring: Ring, *, cut: bool) -> None:
    """Set the far end of the link down, or up."""
    took_ms = await asyncio.to_thread(switch, ring.nodes[1], LINK[1], up=not cut)
    if cut:
        closing_ms.append(took_ms)


def probe(ring: Ring, end: int, for_s: float) -> subprocess.Popen[str]:
    """Start a host's side of the conversation."""
    # Real-time, so that what is measured is not when the probe gets a processor.
    words = ("ip", "netns", "exec", ring.hosts[end], "chrt", "-r", "2", sys.executable, str(PROBE))
    there = ring.addresses[1 - end]
    return subprocess.Popen(
        (*words, there, str(for_s)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def told_by(one: subprocess.Popen[str]) -> str:
    """Return the next line of a probe."""
    assert one.stdout is not None
    return one.stdout.readline().strip()


def go(one: subprocess.Popen[str]) -> None:
    """Let a probe begin."""
    assert one.stdin is not None
    one.stdin.write("\n")
    one.stdin.flush()


async def gap_ms(ring: Ring, way: Callable[..., Awaitable[None]]) -> float:
    """Return the longest gap of the two directions over the cut."""
    await until(ring.is_whole)
    probes = [probe(ring, end, BEFORE_S + WATCH_S[ring.kind]) for end in (0, 1)]
    for one in probes:
        await asyncio.to_thread(told_by, one)
    for one in probes:
        go(one)
    await asyncio.sleep(BEFORE_S)
    await way(ring, cut=True)
    gaps = [float(await asyncio.to_thread(told_by, one)) for one in probes]
    for one in probes:
        await asyncio.to_thread(one.wait)
    await way(ring, cut=False)
    await asyncio.sleep(SETTLE_S[ring.kind])
    return max(gaps)


def spread(values: list[float]) -> str:
    """Return the median, and least and most."""
    if not values:
        return "not whole"
    return f"{median(values):.0f} [{min(values):.0f}..{max(values):.0f}]"


async def measure(kinds: list[str], rounds: int, folder: Path) -> None:
    rings: list[Ring] = []
    found: dict[tuple[str, str], list[float]] = {}
    unstable: set[str] = set()
    try:
        for kind in kinds:  # one at a time: each needs its quiet
            rings.append(await BUILD[kind](folder))  # noqa: PERF401
        for turn in range(rounds):
            in_turn = [r for r in rings if turn < ROUNDS_MAX.get(r.kind, rounds)]
            for ring in [r for r in in_turn if r.kind not in unstable]:
                try:
                    for name, way in (("silent", silent), ("carrier", carrier)):
                        found.setdefault((ring.kind, name), []).append(await gap_ms(ring, way))
                except SystemExit as error:  # it flaps: too fast for this machine
                    print(f"{ring.kind}: {error}")
                    unstable.add(ring.kind)
    finally:
        for ring in rings:
            ring.stop()
    print(f"{'':10}{'silent cut, ms':>34}{'carrier lost, ms':>34}")
    for kind in kinds:
        cells = [spread(found.get((kind, name), [])) for name in ("silent", "carrier")]
        print(f"{kind:10}" + "".join(f"{cell:>34}" for cell in cells))
    print(f"the kernel took {spread(closing_ms)} ms to close the far port")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default=",".join(BUILD))
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    print(machine.describe())
    print(f"runs {run_urgently()}, as the daemons do")
    if reason := frr_ring.why_not():
        print(f"rows of FRR left out. {reason}")
        kinds = [kind for kind in kinds if not kind.startswith("frr")]
    else:
        print(frr_ring.version())
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
