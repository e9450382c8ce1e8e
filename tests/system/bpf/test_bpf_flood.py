"""Control messages of strangers on a trunk: the kernel lets the daemon hear a little of them."""

from pathlib import Path

import pytest
from tests.system.bpf.bpf_netns import Bridge, Namespaces, Wire

from nuage.network.forwarding import (
    AdjacencyEntry,
    Drop,
    Nickname,
    PortEntry,
    PortNumber,
    PortRole,
    SelfEntry,
)
from nuage.network.trill_frame import (
    ALL_ISIS_RBRIDGES,
    CHANNEL_BFD,
    ChannelMessage,
    one_hop_channel_frame,
)

pytestmark = pytest.mark.system
TRUNK = PortNumber(1)
PEER, STRANGER = b"\2\0\0\0\1\1", b"\2\0\0\0\6\6"
HELLO = b"\x22\xf4\x83" + bytes(100)


def test_of_others_than_the_neighbour_the_daemon_hears_little(net: Namespaces, pins: Path) -> None:
    here, there = net.add("p"), net.add("q")
    net.cable(here, "p1", there, "q1")
    bridge, wire = Bridge(here, 1, pins / "p"), Wire(there, "q1")
    bridge.set(SelfEntry(Nickname(1), Nickname(0)))
    bridge.trunk(TRUNK, "p1", PEER)

    def punted(frame: bytes, count: int) -> int:
        before = bridge.plane.sums()["punted"]
        for _ in range(count):
            wire.send(frame)
        return bridge.plane.sums()["punted"] - before

    heard = punted(ALL_ISIS_RBRIDGES + STRANGER + HELLO, 20_000)
    assert 0 < heard < 2000
    assert bridge.plane.counters().drops[Drop.RATE] == 20_000 - heard
    assert punted(ALL_ISIS_RBRIDGES + PEER + HELLO, 1000) == 1000, (
        "the neighbour's share is its own"
    )
    bfd = one_hop_channel_frame(
        ChannelMessage(CHANNEL_BFD, bytes(24)),
        dmac=bridge.mac("p1"), smac=STRANGER, ingress=Nickname(2),
    )  # fmt: skip
    assert punted(bfd, 10) == 0
    assert bridge.plane.counters().drops[Drop.NO_ADJACENCY] == 10
    known = [e for e in bridge.plane.entries() if isinstance(e, PortEntry)]
    assert known == [PortEntry(TRUNK, PortRole.TRUNK, bridge.mac("p1"), mtu_bytes=9000)]
    bridge.drop(AdjacencyEntry(TRUNK, PEER))
    assert punted(ALL_ISIS_RBRIDGES + STRANGER + HELLO, 5000) == 5000, "anybody may be it"
