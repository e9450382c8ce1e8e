"""The short way at a tunnel: what the VXLAN port would have sent, and only for what is plain."""

import asyncio
import hashlib
import shutil
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.data.network.golden_frames import write_pcap
from tests.system.bpf.bpf_netns import Bridge, Namespaces, Wire, inside, run, within
from tests.system.bpf.bpf_tunnel import (
    HEAD_BYTES,
    IP_BYTES,
    NUMBER,
    Tunnel,
    TunnelWire,
    ipv4,
)
from tests.system.network.test_network_conformance import complaints, dissect

from nuage.clock import SystemClock
from nuage.network.forwarding import (
    Drop,
    FibEntry,
    FloodEntry,
    Label,
    MacEntry,
    NextHop,
    Nickname,
    PortNumber,
    SelfEntry,
)
from nuage.network.kernel_plane import KernelPlane
from nuage.network.trill_frame import TrillFrame, decode_trill, encode_trill
from nuage.network.trunk import TrunkDriver, TrunkEnd, TrunkWish, tunnel_end
from nuage.network.trunk_wireguard import (
    TrunkUp,
    new_private_key,
    public_key_of,
    set_up,
    tear_down,
)

pytestmark = pytest.mark.system
TRUNK, RACK, GUEST, OTHER = map(PortNumber, (1, 2, 9, 10))
LABEL, OTHER_LABEL = Label(0x54321), Label(0x777)
ME, FAR, NODE = Nickname(0x11), Nickname(0x22), Nickname(0x33)
PEER, RACK_PEER = bytes.fromhex("02aa00000001"), bytes.fromhex("02aa00000002")
HERE, THERE = bytes.fromhex("060000000001"), bytes.fromhex("060000000002")
STRANGER = bytes.fromhex("060000000009")


def packet_v4(size: int = 100, tos: int = 0) -> bytes:
    body = struct.pack(">HHHH", 4000, 4001, size - IP_BYTES, 0).ljust(size - IP_BYTES, b"\7")
    return ipv4("10.0.0.1", "10.0.0.2", body, tos=tos)


def packet_v6(traffic_class: int = 0) -> bytes:
    body = struct.pack(">HHHH", 4000, 4001, 60, 0).ljust(60, b"\7")
    first = 6 << 28 | traffic_class << 20
    return struct.pack(">IHBB", first, len(body), 17, 64) + bytes(15) + b"\1" + bytes(16) + body


def native(body: bytes, dmac: bytes = THERE, smac: bytes = HERE) -> bytes:
    kind = b"\x08\x00" if body[0] >> 4 == 4 else b"\x86\xdd"
    return dmac + smac + kind + body


class Edge:
    """An RBridge with a guest, a neighbour in the rack, and a trunk over a tunnel."""

    def __init__(self, net: Namespaces, pins: Path) -> None:
        name, outside = net.add("e"), net.add("o")
        for port in ("guest", "other", "rack"):
            net.cable(name, port, outside, f"o{port}")
        self.pins = pins / "e"
        self.bridge = Bridge(name, ME, self.pins)
        self.tunnel = Tunnel(name)
        self.far = TunnelWire(self.tunnel)
        self.guest, self.other, self.rack = (
            Wire(outside, f"o{port}") for port in ("guest", "other", "rack")
        )
        port = self.tunnel.plan.port
        self.mac, self.rack_mac = self.bridge.mac(port), self.bridge.mac("rack")
        self.bridge.trunk(TRUNK, port, PEER)
        self.bridge.trunk(RACK, "rack", RACK_PEER)
        self.bridge.access(GUEST, "guest", LABEL, HERE)
        self.bridge.access(OTHER, "other", OTHER_LABEL, STRANGER)
        self.bridge.set(
            SelfEntry(ME, ME),
            FibEntry(FAR, (NextHop(TRUNK, PEER, self.mac),)),
            FibEntry(NODE, (NextHop(RACK, RACK_PEER, self.rack_mac),)),
            FloodEntry(LABEL, (GUEST,)), FloodEntry(OTHER_LABEL, (OTHER,)),
            MacEntry(LABEL, HERE, port=GUEST), MacEntry(LABEL, THERE, nickname=FAR),
            MacEntry(OTHER_LABEL, STRANGER, port=OTHER),
        )  # fmt: skip

    def sum(self, name: str) -> int:
        return self.bridge.plane.sums()[name]

    def trill(self, body: bytes, **changes: object) -> bytes:
        """Return a frame of the far end for the guest here, but for `changes`."""
        fields: dict[str, object] = {
            "outer_dmac": self.mac, "outer_smac": PEER, "multi": False, "hop_count": 9,
            "egress": ME, "ingress": FAR, "inner_dmac": HERE, "inner_smac": THERE,
            "label": LABEL, "vlan": 0, "priority": 0,
            "ethertype": 0x0800 if body[0] >> 4 == 4 else 0x86DD, "payload": body,
        }  # fmt: skip
        return encode_trill(TrillFrame(**(fields | changes)))  # type: ignore[arg-type]


@pytest.fixture
def edge(net: Namespaces, pins: Path) -> Iterator[Edge]:
    made = Edge(net, pins)
    yield made
    made.tunnel.close()


@pytest.mark.parametrize(
    ("body", "tos"),  # RFC 6040 section 4.1: what a guest says of congestion is said outside
    [
        (packet_v4(), 0), (packet_v4(tos=2), 2), (packet_v4(tos=0x2B), 3),
        (packet_v6(), 0), (packet_v6(0x29), 1),
    ],
    ids=["ipv4", "ect0", "ce", "ipv6", "ipv6-ect1"],
)  # fmt: skip
def test_what_a_guest_sends_enters_as_the_vxlan_port_would_write_it(
    edge: Edge, body: bytes, tos: int
) -> None:
    def sent() -> bytes:
        edge.guest.send(native(body))
        (packet,) = edge.tunnel.packets(5.0, 1)
        return packet

    by_port = sent()
    edge.tunnel.shorten(edge.bridge, TRUNK)
    shortened = sent()
    assert edge.sum("into_tunnel") == 1
    assert edge.far.opened(shortened) == edge.far.opened(by_port)
    assert decode_trill(edge.far.opened(shortened)).payload == body
    assert shortened[1] == tos
    assert by_port[1] == 0, "a router's mark would be lost at the far end's VXLAN port"
    assert shortened[8:10] == by_port[8:10], "TTL and protocol"


def leaving(edge: Edge, interface: str) -> socket.socket:
    """Return what sees the frames that leave by an interface."""
    raw = within(edge.bridge.namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    within(edge.bridge.namespace, lambda: raw.bind((interface, 3)))
    raw.settimeout(5.0)
    return raw


def protocol_of_next(raw: socket.socket) -> int:
    """Return the Ethertype by which the kernel knows the next frame that leaves."""
    while True:
        _, (_, protocol, direction, *_) = raw.recvfrom(4096)
        if direction == socket.PACKET_OUTGOING and protocol != 0x86DD:  # the host's own
            return int(protocol)


def test_a_frame_in_transit_is_ip_for_the_tunnel_and_trill_for_the_rack(edge: Edge) -> None:
    """The kernel's WireGuard drops what does not say it is IP; VXLAN reads IP where it says so."""
    edge.tunnel.shorten(edge.bridge, TRUNK)
    with (
        closing(leaving(edge, edge.tunnel.plan.tunnel)) as tunnel,
        closing(leaving(edge, "rack")) as rack,
    ):
        edge.rack.send(
            edge.trill(
                packet_v4(),
                outer_dmac=edge.rack_mac,
                outer_smac=RACK_PEER,
                egress=FAR,
                ingress=NODE,
            )
        )
        assert protocol_of_next(tunnel) == 0x0800
        edge.far.send(edge.trill(packet_v4(), egress=NODE))
        assert protocol_of_next(rack) == 0x22F3
    assert (edge.sum("into_tunnel"), edge.sum("out_of_tunnel")) == (1, 1)


def test_what_a_neighbour_sends_passes_into_the_tunnel_and_back(edge: Edge) -> None:
    edge.tunnel.shorten(edge.bridge, TRUNK)
    out = edge.trill(
        packet_v4(), outer_dmac=edge.rack_mac, outer_smac=RACK_PEER, egress=FAR, ingress=NODE
    )
    edge.rack.send(out)
    (frame,) = edge.far.frames(5.0, 1)
    assert frame[:12] == PEER + edge.mac
    assert decode_trill(frame).hop_count == 8
    assert frame[16:] == out[16:]
    back = edge.trill(packet_v6(), egress=NODE)
    edge.far.send(back)
    (frame,) = edge.rack.frames(5.0, 1)
    assert frame[:12] == RACK_PEER + edge.rack_mac
    assert frame[16:] == back[16:]
    sums = edge.bridge.plane.sums()
    assert (sums["into_tunnel"], sums["out_of_tunnel"], sums["transit"]) == (1, 1, 2)


def test_what_is_longer_than_the_tunnel_is_cut_by_ip_as_before(edge: Edge) -> None:
    edge.tunnel.shorten(edge.bridge, TRUNK)
    longest = edge.tunnel.plan.tunnel_mtu_bytes - 78
    edge.guest.send(native(packet_v4(longest)))
    (packet,) = edge.tunnel.packets(5.0, 1)
    assert len(packet) == edge.tunnel.plan.tunnel_mtu_bytes
    edge.guest.send(native(packet_v4(longest + 1)))
    assert len(edge.tunnel.packets(5.0, 2)) == 2
    assert edge.sum("into_tunnel") == 1


def with_byte(packet: bytes, at: int, value: int) -> bytes:
    return packet[:at] + bytes((value,)) + packet[at + 1 :]


def with_a_bit_wrong(packet: bytes, at: int) -> bytes:
    return with_byte(packet, at, packet[at] ^ 1)


def summed(packet: bytes) -> bytes:
    """Return it with its IP checksum made right again."""
    return ipv4(
        ".".join(map(str, packet[12:16])), ".".join(map(str, packet[16:20])), packet[IP_BYTES:],
        tos=packet[1], fragment=int.from_bytes(packet[6:8], "big"),
    )  # fmt: skip


Odd = Callable[[Edge], bytes]
ODD: dict[str, tuple[Odd, Drop | None]] = {
    "vni": (lambda e: e.far.wrapped(e.trill(packet_v4()), vni=NUMBER + 1), None),
    "ip sum": (lambda e: with_a_bit_wrong(e.far.wrapped(e.trill(packet_v4())), 10), None),
    "udp sum": (lambda e: with_byte(e.far.wrapped(e.trill(packet_v4())), 26, 1), None),
    "fragment": (lambda e: summed(with_byte(e.far.wrapped(e.trill(packet_v4())), 6, 0x20)), None),
    "cut off": (lambda e: e.far.wrapped(e.trill(packet_v4()))[:-1], None),
    "outer dmac": (
        lambda e: e.far.wrapped(e.trill(packet_v4(), outer_dmac=THERE)), Drop.OUTER_DESTINATION,
    ),
    "outer smac": (
        lambda e: e.far.wrapped(e.trill(packet_v4(), outer_smac=THERE)), Drop.NO_ADJACENCY,
    ),
    "our ingress": (
        lambda e: e.far.wrapped(e.trill(packet_v4(), ingress=ME)), Drop.OWN_INGRESS,
    ),
    "no such egress": (
        lambda e: e.far.wrapped(e.trill(packet_v4(), egress=Nickname(0x99))), Drop.NO_ROUTE,
    ),
    "no hops": (
        lambda e: e.far.wrapped(e.trill(packet_v4(), egress=NODE, hop_count=0)), Drop.HOP_COUNT,
    ),
    "no such label": (
        lambda e: e.far.wrapped(e.trill(packet_v4(), label=Label(0x999))), Drop.LABEL,
    ),
    "many's inner source": (
        lambda e: e.far.wrapped(e.trill(packet_v4(), inner_smac=b"\1" * 6)), Drop.INNER,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_plain_is_judged_and_counted_as_before(edge: Edge, name: str) -> None:
    edge.tunnel.shorten(edge.bridge, TRUNK)
    make, cause = ODD[name]
    edge.tunnel.write(make(edge))
    edge.far.send(edge.trill(packet_v4(200)))  # one that is plain, behind it
    assert [len(frame) for frame in edge.guest.frames(5.0, 1)] == [214]
    assert edge.guest.frames() == edge.other.frames() == edge.rack.frames() == []
    assert edge.sum("out_of_tunnel") == 1
    drops = {each: many for each, many in edge.bridge.plane.counters().drops.items() if many}
    assert drops == ({cause: 1} if cause else {})


def test_what_the_vxlan_port_takes_besides_it_still_takes(edge: Edge) -> None:
    edge.tunnel.shorten(edge.bridge, TRUNK)
    from_elsewhere = with_byte(edge.far.wrapped(edge.trill(packet_v4())), 15, 3)
    edge.tunnel.write(summed(from_elsewhere))
    assert len(edge.guest.frames(5.0, 1)) == 1
    assert edge.sum("out_of_tunnel") == 0


@pytest.mark.parametrize(
    ("body", "marked"),  # RFC 6040 section 4.2
    [
        (packet_v4(tos=2), packet_v4(tos=3)), (packet_v4(tos=0x29), packet_v4(tos=0x2B)),
        (packet_v4(tos=3), packet_v4(tos=3)), (packet_v4(tos=0x28), None),
        (packet_v6(2), packet_v6(3)), (packet_v6(0x29), packet_v6(0x2B)), (packet_v6(0x28), None),
    ],
    ids=["ect0", "ect1", "ce", "not-ect", "ipv6-ect0", "ipv6-ect1", "ipv6-not-ect"],
)  # fmt: skip
@pytest.mark.parametrize("egress", [ME, NODE], ids=["guest", "transit"])
def test_a_mark_of_congestion_on_the_way_reaches_the_guest(
    edge: Edge, egress: Nickname, body: bytes, marked: bytes | None
) -> None:
    edge.tunnel.shorten(edge.bridge, TRUNK)
    congested = with_byte(edge.far.wrapped(edge.trill(body, egress=egress)), 1, 3)
    edge.tunnel.write(summed(congested))
    edge.far.send(edge.trill(packet_v4(200), egress=egress))  # one behind it, not marked
    out = edge.guest if egress == ME else edge.rack
    frames = out.frames(5.0, 1 if marked is None else 2)
    bodies = [decode_trill(frame).payload if egress == NODE else frame[14:] for frame in frames]
    assert bodies == ([] if marked is None else [marked]) + [packet_v4(200)]
    assert edge.bridge.plane.counters().drops[Drop.INNER] == (marked is None)


def test_a_tunnel_whose_process_waits_for_a_processor_keeps_what_comes(edge: Edge) -> None:
    """A TCP window of super-frames at once; by default it is lost from the 501st packet on."""
    for _ in range(1800):
        edge.guest.send(native(packet_v4()))
    name = edge.tunnel.plan.tunnel
    path = f"/sys/class/net/{name}/statistics/tx_dropped"
    assert inside(edge.tunnel.namespace, "cat", path).stdout.strip() == "0"


def test_another_segments_guest_gets_nothing_of_this_one(edge: Edge) -> None:
    edge.tunnel.shorten(edge.bridge, TRUNK)
    edge.far.send(edge.trill(packet_v4(), inner_dmac=STRANGER))  # known, but in the other label
    edge.far.send(edge.trill(packet_v4(), label=OTHER_LABEL))  # the guest's, in the other label
    edge.far.send(edge.trill(packet_v4(200), label=OTHER_LABEL, inner_dmac=STRANGER))
    assert [len(frame) for frame in edge.other.frames(5.0, 2)] == [114, 214]  # the second floods
    assert [len(frame) for frame in edge.guest.frames(5.0, 1)] == [114]  # and so does the first
    assert edge.sum("out_of_tunnel") == 1


def test_a_daemon_that_comes_back_finds_the_short_way_and_unbinding_takes_it_off(
    edge: Edge,
) -> None:
    name, plan = edge.bridge.namespace, edge.tunnel.plan
    edge.tunnel.shorten(edge.bridge, TRUNK)
    edge.bridge.plane = within(name, lambda: KernelPlane(edge.pins))
    edge.bridge.bind(TRUNK, plan.port)
    edge.guest.send(native(packet_v4()))
    edge.far.send(edge.trill(packet_v4()))
    assert len(edge.tunnel.packets(5.0, 1)) == len(edge.guest.frames(5.0, 1)) == 1
    assert (edge.sum("into_tunnel"), edge.sum("out_of_tunnel")) == (1, 1)
    within(name, lambda: edge.bridge.plane.unbind(TRUNK))
    assert "tunnel_in" not in inside(name, "tc", "filter", "show", "dev", plan.tunnel,
                                     "ingress").stdout  # fmt: skip
    edge.bridge.bind(TRUNK, plan.port)
    edge.guest.send(native(packet_v4()))
    edge.far.send(edge.trill(packet_v4()))
    assert len(edge.tunnel.packets(5.0, 1)) == len(edge.guest.frames(5.0, 1)) == 1
    assert (edge.sum("into_tunnel"), edge.sum("out_of_tunnel")) == (1, 1)


# ---- two sites and an encrypted tunnel ----


class Sites:
    """guest – V-node – edge = tunnel = edge – guest; with super-frames, unfinished checksums."""

    NICKS = (NODE, ME, FAR)

    def __init__(self, net: Namespaces, pins: Path) -> None:
        self.guests = [net.add("g0"), net.add("g1")]
        names = [net.add("v0"), net.add("e0"), net.add("e1")]
        net.cable(names[0], "rack", names[1], "rack")
        net.cable(names[1], "wan", names[2], "wan")
        net.cable(names[0], "guest", self.guests[0], "eth0")
        net.cable(names[2], "guest", self.guests[1], "eth0")
        for n, name in enumerate(names[1:], 1):
            run("ip", "-n", name, "link", "set", "wan", "mtu", "1500")
            run("ip", "-n", name, "addr", "add", f"192.0.2.{n}/24", "dev", "wan")
        self.bridges = [Bridge(name, 0, pins / name) for name in names]
        self.trunks: list[TrunkUp] = []

    def join(self) -> None:
        keys = [new_private_key(), new_private_key()]
        ends = [
            TrunkEnd(site_id=f"site-{n}", address=f"192.0.2.{n + 1}", public_key=public_key_of(key))
            for n, key in enumerate(keys)
        ]
        for n, bridge in enumerate(self.bridges[1:]):
            wish = TrunkWish(
                number=NUMBER, provider="isp", here=ends[n], there=ends[1 - n],
                drivers=(TrunkDriver.WIREGUARD_GO,),
            )  # fmt: skip
            made = set_up(wish, keys[n], SystemClock())
            self.trunks.append(within(bridge.namespace, lambda made=made: asyncio.run(made)))  # type: ignore[misc]
        self._fill()

    def _fill(self) -> None:
        node, low, high = self.bridges
        tunnel = self.trunks[0].plan.port
        macs = [low.mac(tunnel), high.mac(tunnel)]
        rack = (node.mac("rack"), low.mac("rack"))
        node.trunk(RACK, "rack", rack[1])
        low.trunk(RACK, "rack", rack[0])
        low.trunk(TRUNK, tunnel, macs[1])
        high.trunk(TRUNK, tunnel, macs[0])
        stations = (HERE, THERE)
        for n, (bridge, nick, far) in enumerate(((node, NODE, FAR), (high, FAR, NODE))):
            bridge.access(GUEST, "guest", LABEL, stations[n])
            bridge.join_tcp()
            hop = NextHop(RACK, rack[1], rack[0]) if n == 0 else NextHop(TRUNK, macs[0], macs[1])
            bridge.set(
                SelfEntry(nick, nick), FibEntry(far, (hop,)), FloodEntry(LABEL, (GUEST,)),
                MacEntry(LABEL, stations[n], port=GUEST),
                MacEntry(LABEL, stations[1 - n], nickname=far),
            )  # fmt: skip
        low.set(
            SelfEntry(ME, ME), FibEntry(NODE, (NextHop(RACK, rack[0], rack[1]),)),
            FibEntry(FAR, (NextHop(TRUNK, macs[1], macs[0]),)),
        )  # fmt: skip
        for n, guest in enumerate(self.guests):
            inside(guest, "sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0")
            mtu = str(self.trunks[0].plan.guest_mtu_bytes)
            own, other = f"06:00:00:00:00:0{n + 1}", f"06:00:00:00:00:0{2 - n}"
            run("ip", "-n", guest, "link", "set", "eth0", "address", own, "mtu", mtu)
            for prefix, bits in (("10.9.0.", 24), ("fd00::", 64)):
                nodad = ("nodad",) if bits == 64 else ()
                run("ip", "-n", guest, "addr", "add", f"{prefix}{n + 1}/{bits}",
                    "dev", "eth0", *nodad)  # fmt: skip
                run("ip", "-n", guest, "neigh", "add", f"{prefix}{2 - n}", "lladdr", other,
                    "dev", "eth0")  # fmt: skip

    def shorten(self, end: int) -> None:
        bridge, plan = self.bridges[1 + end], self.trunks[end].plan
        tunnel = tunnel_end(NUMBER, plan.tunnel, plan.tunnel_mtu_bytes, low=end == 0)
        within(bridge.namespace, lambda: bridge.plane.bind_tunnel(TRUNK, tunnel))

    def sums(self, end: int) -> dict[str, int]:
        return self.bridges[1 + end].plane.sums()

    def sent_whole(self, source: int, family: int, data: bytes) -> bool:
        """Send `data` from a guest by TCP; tell whether the other got just that."""
        address = "10.9.0." if family == socket.AF_INET else "fd00::"
        asks, answers = self.guests[source], self.guests[1 - source]
        listening = within(answers, lambda: socket.socket(family, socket.SOCK_STREAM))
        got = hashlib.sha256()

        def take() -> None:
            listening.settimeout(30)
            with closing(listening.accept()[0]) as stream:
                stream.settimeout(30)
                while piece := stream.recv(1 << 20):
                    got.update(piece)

        with closing(listening):
            listening.bind((f"{address}{2 - source}", 5000))
            listening.listen()
            taker = threading.Thread(target=take)
            taker.start()
            with closing(within(asks, lambda: socket.socket(family, socket.SOCK_STREAM))) as stream:
                stream.settimeout(30)
                stream.connect((f"{address}{2 - source}", 5000))
                stream.sendall(data)
            taker.join(60)
        return got.digest() == hashlib.sha256(data).digest()

    def remove(self) -> None:
        for bridge, trunk in zip(self.bridges[1:], self.trunks, strict=False):
            ends = (trunk.plan.port, trunk.plan.tunnel)
            within(bridge.namespace, lambda gone=ends: asyncio.run(tear_down(*gone)))  # type: ignore[misc]


@pytest.fixture
def sites(net: Namespaces, pins: Path) -> Iterator[Sites]:
    if any(shutil.which(tool) is None for tool in ("wg", "wireguard-go")):
        pytest.skip("needs wg and wireguard-go")
    made = Sites(net, pins)
    try:
        made.join()
        yield made
    finally:
        made.remove()


@pytest.mark.parametrize("shortened", [(), (0,), (1,), (0, 1)], ids=["none", "low", "high", "both"])
def test_guests_meet_over_an_encrypted_trunk_whichever_end_has_the_short_way(
    sites: Sites, shortened: tuple[int, ...]
) -> None:
    for end in shortened:
        sites.shorten(end)
    longest = str(sites.trunks[0].plan.guest_mtu_bytes - 28)
    for words in (("-M", "do", "-s", longest), ("-s", "4000"), ("-6", "-s", "4000")):
        target = "fd00::2" if "-6" in words else "10.9.0.2"
        done = inside(sites.guests[0], "ping", "-n", "-c", "2", "-i", "0.1", "-W", "5",
                      *words, target)  # fmt: skip
        assert " 0% packet loss" in done.stdout, done.stdout
    data = bytes(range(251)) * 8000  # 2 MB
    for family in (socket.AF_INET, socket.AF_INET6):
        assert sites.sent_whole(0, family, data)
        before = sites.sums(1)["into_tunnel"]
        assert sites.sent_whole(1, family, data)
        entered = sites.sums(1)["into_tunnel"] - before
        assert entered < len(data) / 1310 * 0.8, "super-frames enter whole"
    for end in (0, 1):
        sums = sites.sums(end)
        assert (sums["into_tunnel"] > 100) == (end in shortened)
        assert (sums["out_of_tunnel"] > 100) == (shortened == (0, 1))
        assert sums["kernel_refused"] == 0


def test_tshark_reads_what_enters_a_tunnel_by_the_short_way(edge: Edge, tmp_path: Path) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    edge.tunnel.shorten(edge.bridge, TRUNK)
    ethernet = bytes(12) + b"\x08\x00"
    packets = []
    for body in (packet_v4(), packet_v6()):
        edge.guest.send(native(body))
        packets += edge.tunnel.packets(5.0, 1)
    assert edge.sum("into_tunnel") == 2
    assert all(len(packet) > HEAD_BYTES for packet in packets)
    capture = tmp_path.parent / f"{tmp_path.name}.pcap"  # not on the BPF file system
    write_pcap(capture, [ethernet + packet for packet in packets])
    told = dissect(capture, "-V")
    assert told.count("Virtual eXtensible Local Area Network") == 2
    assert f"VXLAN Network Identifier (VNI): {NUMBER}" in told
    assert told.count("TRILL") >= 2
    assert complaints(told) == []
