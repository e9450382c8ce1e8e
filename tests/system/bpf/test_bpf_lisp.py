"""Two tunnel routers on the kernel plane, an IP router between them."""

from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest
from tests.data.network.lisp_tables import data_header
from tests.system.bpf.bpf_netns import Bridge, Namespaces, Wire, inside, run, within

from nuage.network.forwarding import (
    Drop,
    EidEntry,
    GuardEntry,
    Label,
    LispHeard,
    LispMiss,
    MapAction,
    MapCacheEntry,
    PortEntry,
    PortNumber,
    PortRole,
    Rloc,
)
from nuage.network.kernel_plane import KernelPlane

pytestmark = pytest.mark.system
ROUTER_MAC = bytes.fromhex("02feed000001")
TENANT = Label(0x123456)
PORT = PortNumber(9)
RLOCS = ("172.16.0.1", "172.16.1.3")
V4 = ("10.0.0.1", "10.1.0.1")
V6 = ("fd00::1", "fd01::1")


class Pair:
    """host 0 – router 0 – IP – router 1 – host 1; the mappings are not yet there."""

    def __init__(self, net: Namespaces, pins: Path) -> None:
        self.hosts = [net.add("h0"), net.add("h1")]
        names = [net.add("r0"), net.add("r2")]
        self.middle = net.add("r1")
        net.cable(names[0], "uplink", self.middle, "west")
        net.cable(names[1], "uplink", self.middle, "east")
        inside(self.middle, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        run("ip", "-n", self.middle, "addr", "add", "172.16.0.2/24", "dev", "west")
        run("ip", "-n", self.middle, "addr", "add", "172.16.1.2/24", "dev", "east")
        self.bridges: list[Bridge] = []
        self.macs: list[bytes] = []
        for n, name in enumerate(names):
            run("ip", "-n", name, "addr", "add", f"{RLOCS[n]}/24", "dev", "uplink")
            run("ip", "-n", name, "route", "add", "default", "via", f"172.16.{n}.2")
            net.cable(name, "guest", self.hosts[n], "eth0")
            self.bridges.append(Bridge(name, n + 1, pins / name))
            self._host(n)
            self._router(n)

    def _host(self, n: int) -> None:
        host = self.hosts[n]
        inside(host, "sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0")
        run("ip", "-n", host, "link", "set", "eth0", "mtu", "1464")
        for address, bits in ((V4[n], 32), (V6[n], 128)):
            run("ip", "-n", host, "addr", "add", f"{address}/{bits}", "dev", "eth0",
                *(["nodad"] if bits == 128 else []))  # fmt: skip
        for flag, peer in (("-4", V4[1 - n]), ("-6", V6[1 - n])):
            run("ip", flag, "-n", host, "route", "add", "default", "dev", "eth0")
            run("ip", "-n", host, "neigh", "add", peer, "lladdr", "02:fe:ed:00:00:01",
                "dev", "eth0")  # fmt: skip
        path = "/sys/class/net/eth0/address"
        self.macs.append(bytes.fromhex(inside(host, "cat", path).stdout.strip().replace(":", "")))

    def _router(self, n: int) -> None:
        bridge = self.bridges[n]
        bridge.set(PortEntry(PORT, PortRole.ACCESS, self.macs[n], TENANT, mtu_bytes=1464))
        bridge.set(self.eid(n, V4[n]), self.eid(n, V6[n]))
        bridge.bind(PORT, "guest")
        rloc = IPv4Address(RLOCS[n])
        within(bridge.namespace, lambda: bridge.plane.set_router("uplink", rloc, ROUTER_MAC))

    def eid(self, n: int, address: str, forward_to: str = "") -> EidEntry:
        return EidEntry(TENANT, ip_network(address), PORT, self.macs[n], forward_to)

    def map(self, n: int, *prefixes: str) -> None:
        self.bridges[n].set(
            *(MapCacheEntry(TENANT, ip_network(p), (Rloc(RLOCS[1 - n]),)) for p in prefixes)
        )

    def map_all(self) -> None:
        self.map(0, "10.1.0.0/16", "fd01::/64")
        self.map(1, "10.0.0.0/16", "fd00::/64")

    def ping(self, target: str) -> bool:
        return "1 received" in inside(self.hosts[0], "ping", "-c1", "-W1", target).stdout


@pytest.fixture
def pair(net: Namespaces, pins: Path) -> Pair:
    return Pair(net, pins)


@pytest.mark.parametrize("family", [V4, V6])
def test_eids_reach_each_other_through_the_tunnel(pair: Pair, family: tuple[str, str]) -> None:
    pair.map_all()
    wire = Wire(pair.middle, "west")
    assert pair.ping(family[1])
    (out,) = [frame for frame in wire.frames(0.2) if frame[36:38] == (4341).to_bytes(2, "big")]
    assert out[26:34] == ip_address(RLOCS[0]).packed + ip_address(RLOCS[1]).packed
    nonce = int.from_bytes(out[43:46], "big")
    assert out[42:50] == data_header(TENANT, nonce)
    assert out[22] == 64  # the guest's own TTL
    heard = pair.bridges[1].plane.take_heard()
    assert heard == (LispHeard(TENANT, ip_network(family[1]), IPv4Address(RLOCS[0])),)
    assert pair.bridges[1].plane.take_heard() == ()


def test_a_miss_is_told_once_and_dropped(pair: Pair) -> None:
    plane = pair.bridges[0].plane
    assert not pair.ping(V4[1])
    miss = LispMiss(TENANT, IPv4Address(V4[0]), IPv4Address(V4[1]))
    assert plane.take_misses() == (miss,)
    assert plane.counters().drops[Drop.NO_MAPPING] == 1
    ask = MapCacheEntry(TENANT, ip_network("10.1.0.0/16"), (), MapAction.SEND_MAP_REQUEST)
    pair.bridges[0].set(ask)
    assert not pair.ping(V4[1])
    assert plane.take_misses() == (miss,)
    pair.bridges[0].set(MapCacheEntry(TENANT, ip_network("10.1.0.0/16"), (), MapAction.DROP))
    assert not pair.ping(V4[1])
    assert plane.take_misses() == ()


def test_the_longest_prefix_wins(pair: Pair) -> None:
    pair.map_all()
    nowhere = MapCacheEntry(TENANT, ip_network("10.1.0.1/32"), (), MapAction.DROP)
    pair.bridges[0].set(nowhere)
    assert not pair.ping(V4[1])
    pair.bridges[0].drop(nowhere)
    assert pair.ping(V4[1])


def test_another_tenants_instance_does_not_reach_an_eid(pair: Pair) -> None:
    pair.map_all()
    near = pair.bridges[0]
    near.set(PortEntry(PORT, PortRole.ACCESS, pair.macs[0], Label(0x99), mtu_bytes=1464))
    near.set(MapCacheEntry(0x99, ip_network("10.1.0.0/16"), (Rloc(RLOCS[1]),)))
    assert not pair.ping(V4[1])
    assert near.plane.sums()["encapsulated"] == 1
    assert pair.bridges[1].plane.counters().drops[Drop.NO_MAPPING] == 1


def test_strays_follow_an_eid_that_moved(pair: Pair) -> None:
    """The EID of host 1 is now at router 0; its old place sends stragglers back there."""
    pair.map_all()
    old, new = pair.bridges[1], pair.bridges[0]
    old.set(pair.eid(1, V4[1], forward_to=RLOCS[0]))
    assert not pair.ping(V4[1])  # host 0 has no such address, but the stray came back to router 0
    assert old.plane.sums()["strays"] == 1
    assert new.plane.counters().drops[Drop.NO_MAPPING] == 1
    assert LispHeard(TENANT, ip_network(V4[1]), IPv4Address(RLOCS[0])) in old.plane.take_heard()


def test_two_routers_that_blame_each_other_do_not_loop(pair: Pair) -> None:
    pair.map_all()
    pair.bridges[1].set(pair.eid(1, V4[1], forward_to=RLOCS[0]))
    pair.bridges[0].set(pair.eid(0, V4[1], forward_to=RLOCS[1]))
    assert not pair.ping(V4[1])
    drops = sum(b.plane.counters().drops[Drop.HOP_COUNT] for b in pair.bridges)
    assert drops <= 1  # the IP router between them may be the one to end it
    assert sum(b.plane.sums()["strays"] for b in pair.bridges) < 64


def test_mappings_outlive_the_daemon(pair: Pair) -> None:
    pair.map_all()
    assert pair.ping(V4[1])
    before = [set(bridge.plane.entries()) for bridge in pair.bridges]
    for bridge in pair.bridges:
        del bridge.plane
    assert pair.ping(V6[1])
    for bridge in pair.bridges:
        bridge.plane = within(bridge.namespace, lambda b=bridge: KernelPlane(b.pins))  # type: ignore[misc]
    assert [set(bridge.plane.entries()) for bridge in pair.bridges] == before
    assert len(pair.bridges[1].plane.take_heard()) == 2


def _share(pair: Pair, n: int, **more: dict[str, IPv4Address]) -> None:
    """Have a side's guest send into instance 0, which all tenants share."""
    bridge = pair.bridges[n]
    bridge.set(
        PortEntry(PORT, PortRole.ACCESS, pair.macs[n], TENANT, mtu_bytes=1464, guarded=True),
        GuardEntry(PORT, IPv4Address(V4[n])),
        _shared_eid(pair, n),
        MapCacheEntry(0, ip_network(f"10.{1 - n}.0.0/16"), (Rloc(RLOCS[1 - n]),)),
    )
    rloc = IPv4Address(RLOCS[n])
    within(
        bridge.namespace,
        lambda: bridge.plane.set_router("uplink", rloc, ROUTER_MAC, instance_id=0, **more),
    )


def _shared_eid(pair: Pair, n: int) -> EidEntry:
    return EidEntry(0, ip_network(V4[n]), PORT, pair.macs[n])


def test_in_the_shared_instance_a_port_sends_from_its_own_eids_only(pair: Pair) -> None:
    _share(pair, 0)
    _share(pair, 1)
    assert pair.ping(V4[1]), "under the label of the port that has the EID"
    near = pair.bridges[0]
    near.drop(_shared_eid(pair, 0))
    sent, spoofed = near.plane.sums()["encapsulated"], near.plane.counters().drops[Drop.SPOOFED]
    assert not pair.ping(V4[1])
    assert near.plane.sums()["encapsulated"] == sent
    assert near.plane.counters().drops[Drop.SPOOFED] > spoofed


def test_a_router_with_lines_takes_what_comes_to_them_and_answers_by_its_routes(
    pair: Pair,
) -> None:
    far, line = pair.bridges[1], "172.16.1.9"
    run("ip", "-n", far.namespace, "addr", "add", f"{line}/24", "dev", "uplink")
    inside(far.namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    _share(pair, 0)
    _share(pair, 1, lines={"uplink": IPv4Address(line)})
    pair.bridges[0].set(MapCacheEntry(0, ip_network("10.1.0.0/16"), (Rloc(line),)))
    assert pair.ping(V4[1])
    assert far.plane.sums()["decapsulated"] == 1
    assert far.plane.sums()["encapsulated"] == 1
