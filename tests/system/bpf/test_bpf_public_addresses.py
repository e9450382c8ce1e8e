"""Public addresses of both families on real nodes: their daemons and machines die under traffic.

Two sites: an edge each, two V-nodes in marne, one in lyon. Every node is a process with the
product's own `Fabric`, in a namespace of its own; guests are namespaces behind their ports.
"""

import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest
from tests.system.bpf.bpf_netns import Namespaces, inside, run
from tests.system.bpf.node_process import NodeProcess, configured, until

from nuage.ids import PortId, SegmentId, SiteId
from nuage.model.contract import QosClass
from nuage.model.desired import PortWish
from nuage.model.fabric import (
    EidWish,
    FabricWish,
    LispWish,
    PortRulesWish,
    ProxyWish,
    RegistrableWish,
)
from nuage.vnode.ports import tap_name

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
POOLS = ("203.0.113.0/24", "2001:db8:77::/64")
SITES = {"e1": "marne", "e2": "lyon", "v1": "marne", "v2": "marne", "v3": "lyon"}
UNDER = {name: f"10.77.0.{number}" for number, name in enumerate(SITES, 1)}
LINES = {"e1": "192.0.2.1", "e2": "192.0.2.2"}
LINES6 = {"e1": "2001:db8:1::1", "e2": "2001:db8:1::2"}
EDGES = tuple(LINES)


def eids(guest: int) -> tuple[str, str]:
    return f"203.0.113.{guest}", f"2001:db8:77::{guest}"


@dataclass
class Guest:
    """A machine with two public addresses, on a node and, when that dies, on another."""

    number: int
    nodes: list[str] = field(default_factory=list)  # where it has been; the last: where it is

    @property
    def port_id(self) -> PortId:
        return PortId(f"port-{self.number}")


class World:
    """The nodes, their guests, and a host outside."""

    def __init__(self, net: Namespaces, pins: Path, folder: Path) -> None:
        self.net, self.pins, self.folder = net, pins, folder
        self.guests: dict[int, Guest] = {}
        self.processes: dict[str, NodeProcess] = {}
        self._revision = self._generation = 0
        self._accepted: tuple[int, ...] = ()
        self._space: dict[str, str] = {}
        rack, isp = net.add("rack"), net.add("isp")
        for space in (rack, isp):
            run("ip", "-n", space, "link", "add", "br0", "type", "bridge")
            run("ip", "-n", space, "link", "set", "br0", "up")
        for name, address in UNDER.items():
            self._add_node(name, address, rack, isp)
        self.outside = net.add("out")
        net.cable(self.outside, "eth0", isp, "out")
        run("ip", "-n", isp, "link", "set", "out", "master", "br0")
        self._six(self.outside, "eth0")
        for address in ("192.0.2.9/24", "2001:db8:1::9/64"):
            self._address(self.outside, address, "eth0")
        self._route_from_outside("e1")

    def _six(self, space: str, interface: str) -> None:
        inside(space, "sysctl", "-qw", f"net.ipv6.conf.{interface}.disable_ipv6=0")

    def _address(self, space: str, address: str, interface: str) -> None:
        more = ("nodad",) if ":" in address else ()
        run("ip", "-n", space, "addr", "add", address, "dev", interface, *more)

    def _add_node(self, name: str, address: str, rack: str, isp: str) -> None:
        space = self._space[name] = self.net.add(name)
        self.net.cable(space, "eth0", rack, name)
        run("ip", "-n", rack, "link", "set", name, "master", "br0")
        self._address(space, f"{address}/24", "eth0")
        if name not in EDGES:
            edge = next(e for e in EDGES if SITES[e] == SITES[name])
            run("ip", "-n", space, "route", "add", "default", "via", UNDER[edge])
            return
        self.net.cable(space, "wan", isp, name)
        run("ip", "-n", isp, "link", "set", name, "master", "br0")
        self._six(space, "wan")
        self._address(space, f"{LINES[name]}/24", "wan")
        self._address(space, f"{LINES6[name]}/64", "wan")
        for setting in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            inside(space, "sysctl", "-qw", f"net.{setting}=1")
        for which in ("all", "default"):
            inside(space, "sysctl", "-qw", f"net.ipv4.conf.{which}.rp_filter=0")

    def _route_from_outside(self, edge: str) -> None:
        for pool, via in zip(POOLS, (LINES[edge], LINES6[edge]), strict=True):
            run("ip", "-n", self.outside, "route", "replace", pool, "via", via)

    # ---- nodes ----

    def start(self, name: str) -> None:
        lines = f'providers = ["isp={LINES[name]}"]\n' if name in EDGES else ""
        path = configured(
            self.folder / name, site=SITES[name], address=UNDER[name], is_edge=name in EDGES,
            more=lines,
        )  # fmt: skip
        self.processes[name] = NodeProcess(self._space[name], self.pins, path)
        self.processes[name].start()

    def tell(self, name: str, order: dict[str, object]) -> None:
        assert self.processes[name].tell(order) == "done"

    def kill(self, name: str) -> None:
        self.processes.pop(name).kill()

    def lose(self, name: str) -> None:
        """The whole machine goes: its daemon, and its plane by its cables."""
        self.kill(name)
        for interface in ("eth0", "wan") if name in EDGES else ("eth0",):
            run("ip", "-n", self._space[name], "link", "set", interface, "down")
        if name in EDGES:
            self._route_from_outside(next(e for e in EDGES if e != name))

    def wish(self) -> None:
        """Tell all nodes that live how things are."""
        self._revision += 1
        for name in self.processes:
            self.tell(name, {"wish": self._wish_of(name)})

    def _keys(self, sites: set[SiteId], generation: int) -> dict[SiteId, str]:
        return {each: sha256(f"{each} {generation}".encode()).hexdigest() for each in sites}

    def roll_keys(self) -> None:
        """Replace the sites' keys: both are accepted for a while, then the new ones alone."""
        self._accepted, self._generation = (self._generation,), self._generation + 1
        self.wish()
        self._accepted = ()
        self.wish()

    def _wish_of(self, name: str) -> FabricWish:
        here = [guest for guest in self.guests.values() if guest.nodes[-1] == name]
        site, is_edge = SiteId(SITES[name]), name in EDGES
        sites = set(map(SiteId, SITES.values())) if is_edge else {site}
        order = sorted(EDGES, key=lambda edge: SITES[edge] != site)
        lisp = LispWish(
            servers=tuple((UNDER[edge], LINES[edge]) for edge in order),
            proxies=tuple(ProxyWish(address=UNDER[e], priority=p) for p, e in enumerate(order, 1)),
            lines=tuple(LINES[edge] for edge in EDGES if SITES[edge] == site),
            pools=POOLS,
            eids=tuple(
                EidWish(address=address, port_id=guest.port_id, version=len(guest.nodes))
                for guest in here
                for address in eids(guest.number)
            ),
            registrable=tuple(
                RegistrableWish(address=address, sites=(SiteId(SITES[guest.nodes[-1]]),))
                for guest in self.guests.values()
                for address in eids(guest.number)
            ),
            site_keys=self._keys(sites, self._generation),
            key_id=self._generation,
            old_site_keys={old: self._keys(sites, old) for old in self._accepted},
        )
        ports = tuple(
            PortRulesWish(
                port_id=guest.port_id, hostname=f"g{guest.number}", cidr="10.0.0.0/24",
                qos_class=QosClass.GOLD, rules=None, public_addresses=eids(guest.number),
            )
            for guest in here
        )  # fmt: skip
        return FabricWish(revision=self._revision, key="00" * 32, ports=ports, lisp=lisp)

    # ---- guests ----

    def boot(self, number: int, node: str) -> None:
        """Have a guest run on a node: anew, or because its last one is no more."""
        guest = self.guests.setdefault(number, Guest(number))
        guest.nodes.append(node)
        self.wish()
        space = self.net.add(f"g{number}{node}")
        mac = f"06:00:00:00:00:{number:02x}"
        run("ip", "link", "add", tap_name(guest.port_id), "netns", self._space[node],
            "type", "veth", "peer", "name", "eth0", "netns", space)  # fmt: skip
        run("ip", "-n", self._space[node], "link", "set", tap_name(guest.port_id), "up")
        plug = PortWish(
            port_id=guest.port_id, segment_id=SegmentId("segment-1"), label=0x1234, mac=mac,
            addresses=(f"10.0.0.{number}/24",), gateway="10.0.0.254", mtu_bytes=1362,
        )  # fmt: skip
        self.tell(node, {"plug": plug})
        self._six(space, "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "address", mac, "mtu", "1362")
        four, six = eids(number)
        self._address(space, f"10.0.0.{number}/24", "eth0")
        self._address(space, f"{four}/32", "eth0")
        self._address(space, f"{six}/128", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "route", "add", "default", "via", "10.0.0.254")

    def space_of(self, number: int) -> str:
        return f"{self.net.prefix}g{number}{self.guests[number].nodes[-1]}"

    def reaches(self, source: int, target: int) -> bool:
        """Tell whether a guest reaches another by both families."""
        space = self.space_of(source)
        return all(
            inside(space, "ping", "-n", "-c", "1", "-W", "1", "-I", mine, theirs).returncode == 0
            for mine, theirs in zip(eids(source), eids(target), strict=True)
        )

    def reached_from_outside(self, target: int) -> bool:
        return all(
            inside(self.outside, "ping", "-n", "-c", "1", "-W", "1", address).returncode == 0
            for address in eids(target)
        )

    def remove(self) -> None:
        for name in list(self.processes):
            self.kill(name)


class Ping:
    """A ping of both families that goes on meanwhile."""

    def __init__(self, world: World, source: int, target: int, *, count: int = 0) -> None:
        self._ends_itself = bool(count)
        more = ("-c", str(count), "-W", "10") if count else ()
        self._running = [
            subprocess.Popen(
                ("ip", "netns", "exec", world.space_of(source), "ping", "-n", "-i",
                 "0.02", *more, "-I", mine, theirs),
                stdout=subprocess.PIPE, text=True,
            )
            for mine, theirs in zip(eids(source), eids(target), strict=True)
        ]  # fmt: skip

    def lost(self) -> list[tuple[int, int]]:
        """Return how many of how many were lost, by family, when it is over."""
        found = []
        for one in self._running:
            if not self._ends_itself:
                one.send_signal(signal.SIGINT)
            told, _ = one.communicate()
            counted = re.search(r"(\d+) packets transmitted, (\d+) received", told)
            assert counted is not None, told
            found.append((int(counted.group(1)) - int(counted.group(2)), int(counted.group(1))))
        return found


def loses_little(world: World) -> bool:
    return all(lost <= sent // 20 for lost, sent in Ping(world, 1, 2, count=50).lost())


@pytest.fixture
def world(net: Namespaces, pins: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(net, pins, tmp_path_factory.mktemp("nodes"))
    try:
        for name in SITES:
            made.start(name)
        made.boot(1, "v3")
        made.boot(2, "v1")
        yield made
    finally:
        made.remove()


def test_public_addresses_outlive_daemons_map_servers_and_nodes(world: World) -> None:
    """IPv4 and IPv6 alike: daemons away under traffic, an edge that dies, a node that dies."""
    until(lambda: world.reaches(1, 2), "guests of two sites reach each other")
    until(lambda: world.reached_from_outside(2), "who is outside reaches a guest")
    outward = inside(world.space_of(2), "ip", "-6", "route", "show", "default").stdout
    assert "proto ra" in outward, "the tunnel router advertises itself"

    ping = Ping(world, 1, 2)
    world.roll_keys()
    for name in ("v1", "v3"):
        world.kill(name)
    Ping(world, 1, 2, count=400).lost()  # long enough for guests to probe their neighbours
    until(lambda: loses_little(world), "the planes forward while their daemons are away")
    until(lambda: world.reached_from_outside(2), "from outside, too")
    for name in ("v1", "v3"):
        world.start(name)
    world.wish()
    until(lambda: loses_little(world), "and when they are back")
    for lost, sent in ping.lost():
        assert sent > 100
        assert lost <= sent // 10, "keys rolled, daemons died and came back, and traffic went on"

    world.lose("e1")  # marne's map-server and way out
    world.boot(3, "v1")
    until(lambda: world.reaches(1, 3), "an address is registered and found without marne's edge")
    until(lambda: world.reached_from_outside(2), "lyon's edge is the way in")

    world.lose("v1")
    world.boot(2, "v2")
    took_s = until(lambda: world.reaches(1, 2), "the address is found on the node that took over")
    print(f"guest on another node, reached again after {took_s:.1f} s")  # noqa: T201
    until(lambda: world.reached_from_outside(2), "and from outside")
