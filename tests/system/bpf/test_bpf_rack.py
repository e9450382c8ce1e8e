"""The short way in a rack: past the VXLAN ports of a V-node and its edge, and on into a tunnel."""

import asyncio
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.system.bpf.bpf_netns import Bridge, Namespaces, Wire, inside, run, within
from tests.system.bpf.bpf_tunnel import Tunnel, TunnelWire
from tests.system.bpf.test_bpf_tunnel import (
    FAR,
    GUEST,
    HERE,
    LABEL,
    ME,
    NODE,
    PEER,
    RACK,
    THERE,
    TRUNK,
    native,
    packet_v4,
    packet_v6,
    summed,
    with_byte,
)

from nuage.daemon.fabric_trunks import rack_under
from nuage.ids import NodeId
from nuage.model.fabric import LinkWish
from nuage.network.forwarding import (
    FibEntry,
    FloodEntry,
    MacEntry,
    NextHop,
    PortNumber,
    SelfEntry,
)
from nuage.network.kernel_plane import KernelPlane
from nuage.network.trill_frame import TrillFrame, decode_trill, encode_trill
from nuage.network.trunk import VXLAN_PORT, TunnelEnd

pytestmark = pytest.mark.system
ADDRESSES = ("10.8.0.1", "10.8.0.2")
VNI, OTHER_VNI, OTHER_LINK = 77, 78, PortNumber(3)


class Rack:
    """guest – V-node = rack = edge, whose other trunk is a tunnel that the test holds."""

    def __init__(self, net: Namespaces, pins: Path) -> None:
        names, outside = (net.add("e"), net.add("v")), net.add("o")
        net.cable(names[0], "rack", names[1], "rack")
        net.cable(names[1], "guest", outside, "oguest")
        for n, name in enumerate(names):
            run("ip", "-n", name, "link", "set", "rack", "mtu", "1500")
            run("ip", "-n", name, "addr", "add", f"{ADDRESSES[n]}/24", "dev", "rack")
            run("ip", "-n", name, "link", "add", "name", "link", "type", "vxlan", "id", str(VNI),
                "local", ADDRESSES[n], "remote", ADDRESSES[1 - n], "dstport", str(VXLAN_PORT),
                "nolearning")  # fmt: skip
            run("ip", "-n", name, "link", "set", "dev", "link", "mtu", "1450", "up")
        self.tunnel = Tunnel(names[0])
        self.far = TunnelWire(self.tunnel)
        self.guest = Wire(outside, "oguest")
        self.pins = pins / "e"
        self.edge = Bridge(names[0], ME, self.pins)
        self.node = Bridge(names[1], NODE, pins / "v")
        port = self.tunnel.plan.port
        self.mac, here, there = (
            self.edge.mac(port), self.edge.mac("link"), self.node.mac("link"),
        )  # fmt: skip
        self.edge.trunk(TRUNK, port, PEER)
        self.edge.trunk(RACK, "link", there)
        self.node.trunk(RACK, "link", here)
        self.node.access(GUEST, "guest", LABEL, HERE)
        self.edge.set(
            SelfEntry(ME, ME),
            FibEntry(FAR, (NextHop(TRUNK, PEER, self.mac),)),
            FibEntry(NODE, (NextHop(RACK, there, here),)),
        )
        self.node.set(
            SelfEntry(NODE, ME),
            FibEntry(FAR, (NextHop(RACK, here, there),)),
            FloodEntry(LABEL, (GUEST,)),
            MacEntry(LABEL, HERE, port=GUEST), MacEntry(LABEL, THERE, nickname=FAR),
        )  # fmt: skip
        assert inside(names[0], "ping", "-c", "1", "-W", "5", ADDRESSES[1]).returncode == 0

    def end(self, n: int, vni: int = VNI) -> TunnelEnd:
        return TunnelEnd(
            interface="rack", here=IPv4Address(ADDRESSES[n]), there=IPv4Address(ADDRESSES[1 - n]),
            vni=vni, udp_port=VXLAN_PORT, mtu_bytes=1500, is_ethernet=True,
        )  # fmt: skip

    def shorten(self, *, edge: bool = True, node: bool = True) -> None:
        self.tunnel.shorten(self.edge, TRUNK)
        for n, (bridge, wanted) in enumerate(((self.edge, edge), (self.node, node))):
            if wanted:
                within(
                    bridge.namespace,
                    lambda b=bridge, n=n: b.plane.bind_tunnel(RACK, self.end(n)),  # type: ignore[misc]
                )

    def from_far(self, body: bytes) -> bytes:
        return encode_trill(
            TrillFrame(
                outer_dmac=self.mac, outer_smac=PEER, multi=False, hop_count=9, egress=NODE,
                ingress=FAR, inner_dmac=HERE, inner_smac=THERE, label=LABEL, vlan=0, priority=0,
                ethertype=0x0800 if body[0] >> 4 == 4 else 0x86DD, payload=body,
            )
        )  # fmt: skip

    def passed(self, bridge: Bridge) -> tuple[int, int]:
        sums = bridge.plane.sums()
        assert sums["kernel_refused"] == 0
        return sums["into_tunnel"], sums["out_of_tunnel"]


@pytest.fixture
def rack(net: Namespaces, pins: Path) -> Iterator[Rack]:
    made = Rack(net, pins)
    yield made
    made.tunnel.close()


@pytest.mark.parametrize(
    ("node", "edge", "body"),
    [(False, True, packet_v4()), (True, False, packet_v6()), (True, True, packet_v4()),
     (True, True, packet_v6())],
    ids=["edge", "node-ipv6", "both", "both-ipv6"],
)  # fmt: skip
def test_a_guest_of_a_v_node_is_reached_through_the_tunnel_whichever_end_has_the_short_way(
    rack: Rack, *, node: bool, edge: bool, body: bytes
) -> None:
    rack.shorten(edge=edge, node=node)
    rack.guest.send(native(body))
    (frame,) = rack.far.frames(5.0, 1)
    out = decode_trill(frame)
    assert (frame[:6], frame[6:12], out.egress, out.ingress) == (PEER, rack.mac, FAR, NODE)
    assert (out.hop_count, out.label, out.payload) == (59 if body[0] >> 4 == 4 else 14, LABEL, body)
    rack.far.send(rack.from_far(body))
    assert rack.guest.frames(5.0, 1) == [native(body, dmac=HERE, smac=THERE)]
    # What a VXLAN port sends has a UDP checksum: it comes out by the VXLAN port as well. The
    # tunnel has the short way in any case.
    both = node and edge
    assert rack.passed(rack.node) == (node, both)
    assert rack.passed(rack.edge) == (1 + edge, 1 + both)


def test_a_neighbour_in_the_rack_is_reached_without_a_look_at_routes(rack: Rack) -> None:
    rack.shorten()
    for bridge, there in ((rack.node, ADDRESSES[0]), (rack.edge, ADDRESSES[1])):
        run("ip", "-n", bridge.namespace, "route", "add", f"{there}/32", "via", "10.8.0.99")
    rack.guest.send(native(packet_v4()))
    assert len(rack.far.frames(5.0, 1)) == 1
    rack.far.send(rack.from_far(packet_v4()))
    assert len(rack.guest.frames(5.0, 1)) == 1


def test_a_mark_of_congestion_passes_from_the_tunnel_through_the_rack_to_the_guest(
    rack: Rack,
) -> None:
    rack.shorten()
    congested = with_byte(rack.far.wrapped(rack.from_far(packet_v4(tos=2))), 1, 3)
    rack.tunnel.write(summed(congested))
    (frame,) = rack.guest.frames(5.0, 1)
    assert frame[14:] == packet_v4(tos=3)
    rack.guest.send(native(packet_v4(tos=1)))
    (packet,) = rack.tunnel.packets(5.0, 1)
    assert packet[1] == 1
    assert decode_trill(rack.far.opened(packet)).payload == packet_v4(tos=1)


def test_what_is_for_another_link_on_the_same_network_is_left_to_its_port(rack: Rack) -> None:
    """The short way of one trunk goes; that of the other on this network stays."""
    rack.shorten()
    plane, name = rack.edge.plane, rack.edge.namespace
    within(name, lambda: plane.bind_tunnel(OTHER_LINK, rack.end(0, OTHER_VNI)))
    within(name, lambda: plane.unbind_tunnel(OTHER_LINK))
    rack.guest.send(native(packet_v4()))
    assert len(rack.far.frames(5.0, 1)) == 1
    assert rack.passed(rack.edge) == (1, 1)
    within(name, lambda: plane.unbind_tunnel(RACK))
    filters = inside(name, "tc", "filter", "show", "dev", "rack", "ingress").stdout
    assert "rack_in" not in filters
    rack.guest.send(native(packet_v4()))
    assert len(rack.far.frames(5.0, 1)) == 1
    assert rack.passed(rack.edge) == (2, 1)


def test_a_daemon_that_comes_back_finds_the_short_way_in_the_rack(rack: Rack) -> None:
    rack.shorten()
    name = rack.edge.namespace
    rack.edge.plane = within(name, lambda: KernelPlane(rack.pins))
    rack.guest.send(native(packet_v4()))
    rack.far.send(rack.from_far(packet_v4()))
    assert len(rack.far.frames(5.0, 1)) == len(rack.guest.frames(5.0, 1)) == 1
    assert rack.passed(rack.edge) == (2, 2)
    within(name, lambda: rack.edge.plane.unbind(RACK))
    filters = inside(name, "tc", "filter", "show", "dev", "rack", "ingress").stdout
    assert "rack_in" not in filters


def test_only_neighbours_on_one_network_have_the_short_way(net: Namespaces) -> None:
    one, other = net.add("e"), net.add("v")
    net.cable(one, "rack", other, "rack")
    run("ip", "-n", one, "link", "set", "rack", "mtu", "1400")
    run("ip", "-n", one, "addr", "add", f"{ADDRESSES[0]}/24", "dev", "rack")
    run("ip", "-n", one, "route", "add", "10.9.0.0/24", "via", ADDRESSES[1])

    def under(address: str) -> TunnelEnd | None:
        wish = LinkWish(node_id=NodeId("marne-v1"), address=address, vni=VNI)
        return within(one, lambda: asyncio.run(rack_under(wish, ADDRESSES[0])))

    assert under("10.9.0.7") is None
    end = under(ADDRESSES[1])
    assert end is not None
    assert (end.interface, end.mtu_bytes, end.is_ethernet) == ("rack", 1400, True)
    features = inside(one, "ethtool", "-k", "rack").stdout
    assert "tx-udp_tnl-segmentation: off" in features
