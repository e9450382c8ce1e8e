"""Network namespaces with RBridges on the kernel plane, and raw sockets to look at frames."""

import asyncio
import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from select import select
from types import TracebackType
from typing import TypeVar

from nuage.network.forwarding import (
    AdjacencyEntry,
    Entry,
    FibEntry,
    FloodEntry,
    ForwardingDelta,
    Label,
    MacEntry,
    NextHop,
    Nickname,
    PortEntry,
    PortNumber,
    PortRole,
    PruneEntry,
    RpfEntry,
    SelfEntry,
    TreeEntry,
)
from nuage.network.gro_port import gro_port_of, stand_up
from nuage.network.kernel_plane import KernelPlane, XdpMode

CLONE_NEWNET = 0x40000000
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_AUXDATA = 8
PACKET_IGNORE_OUTGOING = 23
TP_STATUS_VLAN_VALID = 0x10
T = TypeVar("T")


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def inside(namespace: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", namespace, *words], capture_output=True, text=True, check=False
    )


class Entered:
    """The calling thread in another network namespace."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(Path("/run/netns") / self._name, os.O_RDONLY)
        assert self._libc.setns(there, CLONE_NEWNET) == 0
        os.close(there)

    def __exit__(
        self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        assert self._libc.setns(self._home, CLONE_NEWNET) == 0
        os.close(self._home)


def within(namespace: str, act: Callable[[], T]) -> T:
    with Entered(namespace):
        return act()


class Wire:
    """A raw socket on an interface: what comes in, and a way to send."""

    def __init__(self, namespace: str, interface: str, ethertype: int = 3) -> None:
        with Entered(namespace):
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))
            index = socket.if_nametoindex(interface)
            raw.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            raw.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            promiscuous = index.to_bytes(4, "little") + b"\1\0\0\0" + bytes(8)
            raw.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, promiscuous)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            raw.bind((interface, ethertype))
            self.mac = raw.getsockname()[4]
        raw.setblocking(False)
        self._raw = raw

    def fileno(self) -> int:
        return self._raw.fileno()

    def send(self, frame: bytes) -> None:
        self._raw.send(frame)

    def frames(self, timeout_s: float = 0.0, count: int = 1 << 30) -> list[bytes]:
        """Return up to `count` frames, waiting `timeout_s` for each that is still missing."""
        found: list[bytes] = []
        while len(found) < count and select([self._raw], [], [], timeout_s)[0]:
            found.append(self._receive())
        return found

    def _receive(self) -> bytes:
        """Return a frame, with the VLAN tag that the kernel takes out of it."""
        frame, auxiliary, _, _ = self._raw.recvmsg(65536, 256)
        for level, kind, data in auxiliary:
            if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", data[:20])
                if status & TP_STATUS_VLAN_VALID:
                    return frame[:12] + struct.pack(">HH", tpid, tci) + frame[12:]
        return frame

    def __del__(self) -> None:
        if hasattr(self, "_raw"):
            self._raw.close()


class Namespaces:
    """Creates namespaces under one prefix and takes all of them away again."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._names: list[str] = []

    def add(self, short: str) -> str:
        name = f"{self.prefix}{short}"
        run("ip", "netns", "add", name)
        self._names.append(name)
        inside(name, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        run("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def cable(self, one: str, one_port: str, other: str, other_port: str) -> None:
        run("ip", "link", "add", one_port, "netns", one, "type", "veth",
            "peer", "name", other_port, "netns", other)  # fmt: skip
        for name, port in ((one, one_port), (other, other_port)):
            run("ip", "-n", name, "link", "set", port, "mtu", "9000")
            run("ip", "-n", name, "link", "set", port, "up")

    def remove(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Bridge:
    """One RBridge: a namespace, a kernel plane pinned below `pins`, static tables."""

    def __init__(self, namespace: str, nickname: int, pins: Path) -> None:
        self.namespace = namespace
        self.nickname = Nickname(nickname)
        self.pins = pins
        self.plane = within(namespace, lambda: KernelPlane(pins))

    def set(self, *entries: Entry) -> None:
        within(self.namespace, lambda: self.plane.apply(ForwardingDelta(entries)))

    def drop(self, *entries: Entry) -> None:
        within(self.namespace, lambda: self.plane.apply(ForwardingDelta(removed=entries)))

    def mac(self, interface: str) -> bytes:
        path = f"/sys/class/net/{interface}/address"
        return bytes.fromhex(inside(self.namespace, "cat", path).stdout.strip().replace(":", ""))

    def bind(self, number: int, interface: str, *, xdp: XdpMode = XdpMode.OFF) -> None:
        within(self.namespace, lambda: self.plane.bind(PortNumber(number), interface, xdp=xdp))

    def join_tcp(self) -> None:
        """Let what TCP brings be joined on its way to ports here, as the daemons do."""
        port = gro_port_of(self.namespace)

        def make() -> None:
            asyncio.run(stand_up(port))
            self.plane.bind_gro(port)

        within(self.namespace, make)

    def trunk(self, number: int, interface: str, neighbour: bytes) -> None:
        port = PortNumber(number)
        self.set(
            PortEntry(port, PortRole.TRUNK, self.mac(interface), mtu_bytes=9000),
            AdjacencyEntry(port, neighbour),
        )
        self.bind(number, interface)

    def access(self, number: int, interface: str, label: int, mac: bytes) -> None:
        port = PortNumber(number)
        self.set(PortEntry(port, PortRole.ACCESS, mac, Label(label), mtu_bytes=1500))
        self.bind(number, interface)


class Chain:
    """host – RBridge – transit – RBridge – host, with static tables (label LABEL, tree at RB 2)."""

    LABEL = Label(0xABCDE)
    NICKS = (Nickname(0x11), Nickname(0x22), Nickname(0x33))

    def __init__(self, prefix: str, pins: Path) -> None:
        self.net = Namespaces(prefix)
        try:
            self._build(self.net, pins)
        except BaseException:
            self.net.remove()
            raise

    def _build(self, net: Namespaces, pins: Path) -> None:
        self.hosts = [net.add("h0"), net.add("h1")]
        names = [net.add(f"r{n}") for n in range(3)]
        net.cable(names[0], "east", names[1], "west")
        net.cable(names[1], "east", names[2], "west")
        net.cable(names[0], "guest", self.hosts[0], "eth0")
        net.cable(names[2], "guest", self.hosts[1], "eth0")
        self.bridges = [
            Bridge(name, nick, pins / name) for name, nick in zip(names, self.NICKS, strict=True)
        ]
        self.guest_macs = [bytes((6, 0, 0, 0, 0, n)) for n in range(2)]
        for n, host in enumerate(self.hosts):
            run("ip", "-n", host, "link", "set", "eth0", "address", f"06:00:00:00:00:0{n}")
            run("ip", "-n", host, "link", "set", "eth0", "mtu", "1500")
            run("ip", "-n", host, "addr", "add", f"10.9.0.{n + 1}/24", "dev", "eth0")
            other = f"06:00:00:00:00:0{1 - n}"
            run("ip", "-n", host, "neigh", "add", f"10.9.0.{2 - n}", "lladdr", other,
                "dev", "eth0")  # fmt: skip
        self._fill()

    def _fill(self) -> None:
        left, middle, right = self.bridges
        macs = {
            (n, side): bridge.mac(side)
            for n, bridge in enumerate(self.bridges)
            for side in ("west", "east")
            if (n, side) not in {(0, "west"), (2, "east")}
        }
        left.trunk(2, "east", macs[1, "west"])
        middle.trunk(1, "west", macs[0, "east"])
        middle.trunk(2, "east", macs[2, "west"])
        right.trunk(1, "west", macs[1, "east"])
        left.access(9, "guest", self.LABEL, self.guest_macs[0])
        right.access(9, "guest", self.LABEL, self.guest_macs[1])
        east, west = PortNumber(2), PortNumber(1)
        to_right = NextHop(east, macs[1, "west"], macs[0, "east"])
        to_left = NextHop(west, macs[1, "east"], macs[2, "west"])
        tree = self.NICKS[1]
        left.set(
            SelfEntry(self.NICKS[0], tree),
            FibEntry(self.NICKS[1], (to_right,)),
            FibEntry(self.NICKS[2], (to_right,)),
            *self._tree_entries((east,), {1: east, 2: east}),
            FloodEntry(self.LABEL, (PortNumber(9),)),
        )
        middle.set(
            SelfEntry(self.NICKS[1], tree),
            FibEntry(self.NICKS[0], (NextHop(west, macs[0, "east"], macs[1, "west"]),)),
            FibEntry(self.NICKS[2], (NextHop(east, macs[2, "west"], macs[1, "east"]),)),
            *self._tree_entries((west, east), {0: west, 2: east}),
        )
        right.set(
            SelfEntry(self.NICKS[2], tree),
            FibEntry(self.NICKS[0], (to_left,)),
            FibEntry(self.NICKS[1], (to_left,)),
            *self._tree_entries((west,), {0: west, 1: west}),
            FloodEntry(self.LABEL, (PortNumber(9),)),
        )

    def _tree_entries(
        self, ports: tuple[PortNumber, ...], ingress: dict[int, PortNumber]
    ) -> Sequence[Entry]:
        tree = self.NICKS[1]
        return (
            TreeEntry(tree, ports),
            PruneEntry(tree, self.LABEL, ports),
            *(RpfEntry(tree, self.NICKS[n], port) for n, port in ingress.items()),
        )

    def list_hosts(self) -> None:
        """Tell the ends of the chain by directory where the two hosts are."""
        for here, there in ((0, 1), (1, 0)):
            self.bridges[2 * here].set(
                MacEntry(self.LABEL, self.guest_macs[here], port=PortNumber(9)),
                MacEntry(self.LABEL, self.guest_macs[there], nickname=self.NICKS[2 * there]),
            )

    def ping(self, *words: str, source: int = 0) -> str:
        done = inside(self.hosts[source], "ping", "-n", *words, f"10.9.0.{2 - source}")
        return done.stdout

    def remove(self) -> None:
        self.net.remove()
