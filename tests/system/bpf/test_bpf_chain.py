"""host – RBridge – transit – RBridge – host on the kernel plane, with static tables."""

import subprocess

import pytest
from tests.system.bpf.bpf_netns import Bridge, Chain, Wire, inside, within

from nuage.network.forwarding import (
    Drop,
    Label,
    Nickname,
    PortNumber,
    PruneEntry,
    RpfEntry,
    SelfEntry,
)
from nuage.network.kernel_plane import KernelPlane
from nuage.network.trill_frame import ALL_RBRIDGES, TrillFrame, decode_trill, encode_trill

pytestmark = pytest.mark.system
BROADCAST = b"\xff" * 6
TEST_TYPE = b"\x88\xb5"


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
    chain.list_hosts()
    server = subprocess.Popen(
        ["ip", "netns", "exec", chain.hosts[1], "iperf3", "-s", "-1", "-B", "10.9.0.2"],
        stdout=subprocess.DEVNULL,
    )
    done = inside(
        chain.hosts[0], "sh", "-c",
        "for i in 1 2 3 4 5 6 7 8 9; do iperf3 -c 10.9.0.2 -n 20M -J && exit; sleep 0.1; done",
    )  # fmt: skip
    server.wait(timeout=20)
    assert '"end"' in done.stdout, done.stdout + done.stderr
    assert sum(sum(b.plane.counters().drops.values()) for b in chain.bridges) == 0


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
