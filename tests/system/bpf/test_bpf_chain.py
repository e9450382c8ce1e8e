"""host – RBridge – transit – RBridge – host on the kernel plane, with static tables."""

import shutil
import socket
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.data.network.golden_frames import write_pcap
from tests.system.bpf.bpf_netns import Bridge, Chain, Entered, Wire, inside, run, within

from nuage.errors import Unavailable
from nuage.network.forwarding import (
    PORT_NONE,
    Drop,
    FibEntry,
    Label,
    NextHop,
    Nickname,
    PortEntry,
    PortNumber,
    PortRole,
    PruneEntry,
    RpfEntry,
    SelfEntry,
)
from nuage.network.kernel_plane import KernelPlane, XdpMode
from nuage.network.trill_frame import ALL_RBRIDGES, TrillFrame, decode_trill, encode_trill

pytestmark = pytest.mark.system
BROADCAST = b"\xff" * 6
PATIENCE_S = 60.0
TEST_TYPE = b"\x88\xb5"
DISSECTOR = Path(__file__).parents[3] / "tools/dissectors/nuage_trill.lua"


def hello(source: bytes, target: bytes = BROADCAST, text: bytes = b"hello") -> bytes:
    return target + source + TEST_TYPE + text.ljust(46, b".")


def drops(bridge: Bridge, cause: Drop) -> int:
    return bridge.plane.counters().drops[cause]


def crafted(chain: Chain, **changes: object) -> bytes:
    """A frame as the left RBridge would send it to the middle one, with changes."""
    middle = chain.bridges[1]
    fields: dict[str, object] = {
        "outer_dmac": middle.mac("west"), "outer_smac": chain.bridges[0].mac("east"),
        "multi": False, "hop_count": 5, "egress": chain.NICKS[2], "ingress": chain.NICKS[0],
        "inner_dmac": chain.guest_macs[1], "inner_smac": chain.guest_macs[0],
        "label": chain.LABEL, "vlan": 0, "priority": 0, "ethertype": 0x88B5,
        "payload": b"x" * 46,
    }  # fmt: skip
    return encode_trill(TrillFrame(**{**fields, **changes}))  # type: ignore[arg-type]


def test_hosts_reach_each_other_and_are_learned(chain: Chain) -> None:
    assert "3 received" in chain.ping("-c", "3", "-i", "0.05", "-W", "2")
    learned = chain.bridges[0].plane.learned()
    assert {(found.mac, found.nickname, found.port) for found in learned} == {
        (chain.guest_macs[0], 0, 9),
        (chain.guest_macs[1], chain.NICKS[2], 0),
    }
    assert all(0 <= found.age_s < 60 for found in learned)
    counters = [bridge.plane.counters() for bridge in chain.bridges]
    assert counters[1].transit_frames >= 6
    assert sum(sum(c.drops.values()) for c in counters) == 0


def test_a_tcp_stream_of_super_frames_passes_whole(chain: Chain) -> None:
    """All bytes arrive, nothing is dropped; the guest's segments are cut at the trunk alone."""
    chain.list_hosts()
    sent = bytes(range(256)) * (20 * 4096)
    stream_through(chain, sent)
    counters = [bridge.plane.counters() for bridge in chain.bridges]
    assert sum(sum(c.drops.values()) for c in counters) == 0
    frames = len(sent) / 1448
    assert counters[0].ingress_frames < frames / 2
    assert counters[1].transit_frames >= frames


def stream_through(chain: Chain, sent: bytes) -> None:
    """Send bytes over one TCP connection from the left host to the right one."""
    with Entered(chain.hosts[1]):
        server = socket.create_server(("10.9.0.2", 0))
    with Entered(chain.hosts[0]):
        client = socket.socket()
    server.settimeout(PATIENCE_S)
    client.settimeout(PATIENCE_S)
    with server, client, ThreadPoolExecutor(1) as reader:
        received = reader.submit(all_of_one_client, server)
        client.connect(server.getsockname())
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert received.result() == sent


def all_of_one_client(server: socket.socket) -> bytes:
    connection, _ = server.accept()
    connection.settimeout(PATIENCE_S)
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 20), b""))


def test_a_broadcast_crosses_the_tree_once(chain: Chain) -> None:
    far, near = Wire(chain.hosts[1], "eth0"), Wire(chain.hosts[0], "eth0")
    frame = hello(chain.guest_macs[0])
    near.send(frame)
    assert far.frames(0.3) == [frame]
    assert near.frames(0.05) == []


def test_pruning_keeps_a_label_where_nobody_wants_it(chain: Chain) -> None:
    far, near = Wire(chain.hosts[1], "eth0"), Wire(chain.hosts[0], "eth0")
    middle = chain.bridges[1]
    middle.set(PruneEntry(chain.NICKS[1], chain.LABEL, (PortNumber(1),)))
    near.send(hello(chain.guest_macs[0]))
    assert far.frames(0.2) == []
    middle.set(PruneEntry(chain.NICKS[1], Label(0), (PortNumber(2),)))
    near.send(hello(chain.guest_macs[0]))
    assert len(far.frames(0.3)) == 1


def test_a_frame_on_the_wrong_branch_is_dropped(chain: Chain) -> None:
    far, near = Wire(chain.hosts[1], "eth0"), Wire(chain.hosts[0], "eth0")
    middle = chain.bridges[1]
    middle.set(RpfEntry(chain.NICKS[1], chain.NICKS[0], PortNumber(2)))
    near.send(hello(chain.guest_macs[0]))
    assert far.frames(0.2) == []
    assert drops(middle, Drop.RPF) == 1


def test_between_two_trees_a_broadcast_is_refused_and_the_next_daemon_knows(chain: Chain) -> None:
    far, near = Wire(chain.hosts[1], "eth0"), Wire(chain.hosts[0], "eth0")
    middle = chain.bridges[1]
    rest = RpfEntry(chain.NICKS[1], chain.NICKS[0], PORT_NONE)
    middle.set(rest)
    near.send(hello(chain.guest_macs[0]))
    assert far.frames(0.2) == []
    assert drops(middle, Drop.TREE_REST) == 1
    assert drops(middle, Drop.RPF) == 0
    again = within(middle.namespace, lambda: KernelPlane(middle.pins))
    assert rest in again.entries()
    middle.set(replace(rest, port=PortNumber(1)))
    near.send(hello(chain.guest_macs[0]))
    assert len(far.frames(0.3)) == 1


def test_the_hop_count_ends_a_loop(chain: Chain) -> None:
    out = Wire(chain.bridges[0].namespace, "east")
    far = Wire(chain.bridges[2].namespace, "west")
    out.send(crafted(chain, hop_count=1))
    (passed,) = far.frames(0.3)
    assert decode_trill(passed).hop_count == 0
    out.send(crafted(chain, hop_count=0))
    assert far.frames(0.2) == []
    assert drops(chain.bridges[1], Drop.HOP_COUNT) == 1


def test_a_stranger_on_the_trunk_is_not_heard(chain: Chain) -> None:
    out = Wire(chain.bridges[0].namespace, "east")
    far = Wire(chain.bridges[2].namespace, "west")
    out.send(crafted(chain, outer_smac=bytes((2, 9, 9, 9, 9, 9))))
    out.send(crafted(chain, ingress=chain.NICKS[1]))
    out.send(crafted(chain, outer_dmac=ALL_RBRIDGES))
    out.send(bytes.fromhex("0180c2000000") + bytes(6) + b"\0\x26" + bytes(46))
    assert far.frames(0.2) == []
    middle = chain.bridges[1]
    causes = (
        Drop.NO_ADJACENCY, Drop.OWN_INGRESS, Drop.OUTER_DESTINATION, Drop.BRIDGE_CONTROL,
    )  # fmt: skip
    assert [drops(middle, cause) for cause in causes] == [1, 1, 1, 1]


def test_what_is_too_old_is_not_used(chain: Chain) -> None:
    chain.ping("-c", "1", "-W", "2")
    left = chain.bridges[0]
    assert len(left.plane.learned()) == 2
    assert left.plane.age() == 0
    assert left.plane.age(age_max_s=0.0) == 2
    assert left.plane.learned() == ()
    assert "1 received" in chain.ping("-c", "1", "-W", "2")


def test_a_nickname_that_is_gone_is_unlearned(chain: Chain) -> None:
    chain.ping("-c", "1", "-W", "2")
    left = chain.bridges[0]
    gone = [e for e in left.plane.entries() if getattr(e, "nickname", 0) == chain.NICKS[2]]
    left.drop(*gone)
    assert [found.port for found in left.plane.learned()] == [9]


def test_frames_go_on_while_the_daemon_is_gone_and_it_comes_back(chain: Chain) -> None:
    """Closing every plane stands for killed daemons: nothing of theirs but the pins is left."""
    chain.list_hosts()
    before = [set(bridge.plane.entries()) for bridge in chain.bridges]
    for bridge in chain.bridges:
        del bridge.plane
    assert "5 received" in chain.ping("-c", "5", "-i", "0.02", "-W", "2")
    for bridge in chain.bridges:
        bridge.plane = within(bridge.namespace, lambda b=bridge: KernelPlane(b.pins))  # type: ignore[misc]
    assert [set(bridge.plane.entries()) for bridge in chain.bridges] == before
    assert SelfEntry(Nickname(0x11), Nickname(0x22)) in chain.bridges[0].plane.entries()
    assert chain.bridges[1].plane.counters().transit_frames >= 10
    assert "2 received" in chain.ping("-c", "2", "-i", "0.02", "-W", "2")


def cables_of(bridge: Bridge) -> list[tuple[int, str]]:
    bound = bridge.plane.bound()
    return [(n, name) for n, name in ((1, "west"), (2, "east")) if PortNumber(n) in bound]


@pytest.mark.parametrize("mode", [XdpMode.GENERIC, XdpMode.DRIVER])
def test_xdp_takes_the_plain_frames_and_tc_the_rest(chain: Chain, mode: XdpMode) -> None:
    """As on a NIC: transit and stripping in XDP, broadcasts and refusals in tc."""
    for bridge in chain.bridges:
        for _, interface in cables_of(bridge):  # a frame must fit a page in veth's driver
            run("ip", "-n", bridge.namespace, "link", "set", interface, "mtu", "2000")
    for bridge in chain.bridges:
        for number, interface in cables_of(bridge):
            bridge.bind(number, interface, xdp=mode)
            assert bridge.plane.has_xdp(PortNumber(number))
    for host in chain.hosts:  # XDP knows no checksum that is still to be filled in
        inside(host, "ethtool", "-K", "eth0", "tx", "off")
    assert "3 received" in chain.ping("-c", "3", "-i", "0.05", "-W", "2")
    far = Wire(chain.hosts[1], "eth0")
    frame = hello(chain.guest_macs[0])
    Wire(chain.hosts[0], "eth0").send(frame)
    assert far.frames(0.3) == [frame]
    right = chain.bridges[2]
    assert {found.mac for found in right.plane.learned()} == set(chain.guest_macs)
    assert [b.plane.counters().transit_frames for b in chain.bridges] == [0, 7, 0]
    assert right.plane.counters().egress_frames == 4
    out = Wire(chain.bridges[0].namespace, "east")
    out.send(crafted(chain, hop_count=0))
    out.send(crafted(chain, version=1))
    far.frames(0.1)
    assert drops(chain.bridges[1], Drop.HOP_COUNT) == drops(chain.bridges[1], Drop.VERSION) == 1
    before = set(right.plane.entries())
    del right.plane
    assert "2 received" in chain.ping("-c", "2", "-i", "0.05", "-W", "2")
    right.plane = within(right.namespace, lambda: KernelPlane(right.pins))
    assert set(right.plane.entries()) == before
    assert right.plane.has_xdp(PortNumber(1))
    right.bind(1, "west")
    assert "prog" not in run("ip", "-n", right.namespace, "link", "show", "west")
    right.bind(1, "west", xdp=mode)  # veth's driver sends only to where a program is
    assert "2 received" in chain.ping("-c", "2", "-i", "0.05", "-W", "2")


def test_a_driver_without_xdp_refuses_it_and_the_port_goes_by_tc(chain: Chain) -> None:
    """What no driver runs (a tunnel, a VXLAN port) says so; frames still pass."""
    left = chain.bridges[0]
    run("ip", "-n", left.namespace, "link", "add", "vx", "type", "vxlan", "id", "5",
        "remote", "192.0.2.1", "dev", "east", "dstport", "4789")  # fmt: skip
    left.set(PortEntry(PortNumber(7), PortRole.TRUNK, left.mac("vx"), mtu_bytes=1400))
    with pytest.raises(Unavailable, match="xdp_trunk"):
        left.bind(7, "vx", xdp=XdpMode.DRIVER)
    assert not left.plane.has_xdp(PortNumber(7))
    left.bind(7, "vx")
    assert PortNumber(7) in left.plane.bound()


def test_tcp_that_comes_in_frames_is_joined_for_its_port(chain: Chain) -> None:
    """Stripped segments reach the guest as super-frames, whole and in order; the rest as before."""
    chain.list_hosts()
    right = chain.bridges[2]
    right.join_tcp()
    far = Wire(chain.hosts[1], "eth0")
    assert "3 received" in chain.ping("-c", "3", "-i", "0.05", "-W", "2")
    far.frames()
    stream_through(chain, bytes(range(256)) * (4 * 4096))
    lengths = [len(frame) for frame in far.frames()]
    assert max(lengths) > 3000, "nothing was joined"
    assert sum(sum(b.plane.counters().drops.values()) for b in chain.bridges) == 0
    right.plane.unbind_gro()
    stream_through(chain, bytes(range(256)) * 4096)
    assert max(len(frame) for frame in far.frames()) <= 1514


def test_ecmp_keeps_a_flow_on_one_path_and_uses_both(chain: Chain) -> None:
    """Two equal next hops that differ in their outer address, towards the same wire."""
    left, middle = chain.bridges[0], chain.bridges[1]
    chain.list_hosts()
    path = FibEntry(
        chain.NICKS[2],
        tuple(NextHop(PortNumber(2), bytes((2, 0, 0, 0, 0, n)), left.mac("east")) for n in (1, 2)),
    )
    left.set(path)
    wire, near = Wire(middle.namespace, "west"), Wire(chain.hosts[0], "eth0")
    taken: dict[int, set[bytes]] = {}
    for _ in range(2):
        for source_port in range(32):
            packet = udp("10.9.0.1", "10.9.0.2", source_port)
            near.send(chain.guest_macs[1] + chain.guest_macs[0] + b"\x08\x00" + packet)
            (frame,) = wire.frames(0.3, 1)
            taken.setdefault(source_port, set()).add(frame[:6])
    assert all(len(hops) == 1 for hops in taken.values())
    assert len(set().union(*taken.values())) == 2
    assert left.plane.entries().count(path) == 1


def udp(source: str, target: str, source_port: int) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 46, 0, 0, 64, 17, 0)
    head += IPv4Address(source).packed + IPv4Address(target).packed
    return head + struct.pack(">HHHH", source_port, 9, 26, 0) + bytes(18)


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_what_the_kernel_plane_sends(chain: Chain, tmp_path: Path) -> None:
    wire = Wire(chain.bridges[1].namespace, "west")
    chain.ping("-c", "2", "-i", "0.05", "-W", "2")
    Wire(chain.hosts[0], "eth0").send(hello(chain.guest_macs[0]))
    frames = [frame for frame in wire.frames(0.2) if frame[12:14] == b"\x22\xf3"]
    assert len(frames) == 3
    with TemporaryDirectory() as directory:  # tmp_path is a BPF file system here
        capture = Path(directory) / "kernel.pcap"
        write_pcap(capture, frames)
        done = subprocess.run(
            ["tshark", "-r", str(capture), "-X", f"lua_script:{DISSECTOR}", "-V"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        fields = subprocess.run(
            ["tshark", "-r", str(capture), "-X", f"lua_script:{DISSECTOR}", "-T", "fields",
             "-e", "nuage_fgl.label", "-e", "trill.hop_cnt", "-e", "trill.multi_dst"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert "alformed" not in done.stdout
    rows = [row.split("\t") for row in fields.stdout.splitlines()]
    hops_and_multi = (("60", "1"), ("60", "0"), ("63", "1"))  # pings, and what is no IP
    assert rows == [["0x0abcde", *each] for each in hops_and_multi]
