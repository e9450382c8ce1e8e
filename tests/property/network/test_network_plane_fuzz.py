"""Any bytes at any port: a plane counts, forwards by its tables, and never falls over."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from nuage.network.forwarding import (
    AdjacencyEntry,
    Drop,
    FibEntry,
    FloodEntry,
    ForwardingDelta,
    Label,
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
from nuage.network.software_plane import LEARNED_PER_PORT_MAX, SoftwarePlane
from nuage.network.trill_frame import TrillFrame, encode_trill

ME, PEER, TREE, RED = Nickname(1), Nickname(2), Nickname(3), Label(5)
TRUNK, OTHER_TRUNK, GUEST = PortNumber(1), PortNumber(2), PortNumber(3)
MINE, THEIRS = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"


def plane() -> SoftwarePlane:
    made = SoftwarePlane()
    made.apply(
        ForwardingDelta(
            set=(
                SelfEntry(ME, TREE),
                PortEntry(TRUNK, PortRole.TRUNK, MINE),
                PortEntry(OTHER_TRUNK, PortRole.TRUNK, MINE),
                PortEntry(GUEST, PortRole.ACCESS, bytes(6), RED),
                AdjacencyEntry(TRUNK, THEIRS),
                FibEntry(PEER, (NextHop(TRUNK, THEIRS, MINE),)),
                TreeEntry(TREE, (TRUNK, OTHER_TRUNK)),
                RpfEntry(TREE, PEER, TRUNK),
                PruneEntry(TREE, RED, (TRUNK, OTHER_TRUNK)),
                FloodEntry(RED, (GUEST,)),
            )
        )
    )
    return made


@settings(deadline=None, max_examples=300)
@given(st.sampled_from((TRUNK, OTHER_TRUNK, GUEST, PortNumber(9))), st.binary(max_size=100))
def test_any_bytes_are_forwarded_by_the_tables_or_counted(port: PortNumber, data: bytes) -> None:
    made = plane()
    out = made.receive(port, data, 1.0)
    assert {sent.port for sent in out} <= {TRUNK, OTHER_TRUNK, GUEST} - {port}
    counters = made.counters()
    moved = (
        counters.transit_frames + counters.egress_frames + counters.ingress_frames
        + counters.flooded_frames + len(made.punts)
    )  # fmt: skip
    assert moved + sum(counters.drops.values()) >= 1


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32), st.booleans())
def test_a_mutilated_trill_frame_never_leaves_by_the_port_it_came_from(
    seed: int,
    multi: bool,  # noqa: FBT001
) -> None:
    prng = Random(seed)
    frame = encode_trill(
        TrillFrame(
            outer_dmac=bytes.fromhex("0180c2000040") if multi else MINE,
            outer_smac=THEIRS,
            multi=multi,
            hop_count=prng.randrange(64),
            egress=TREE if multi else ME,
            ingress=PEER,
            inner_dmac=b"\xff" * 6,
            inner_smac=b"\6\0\0\0\0\1",
            label=RED,
            vlan=0,
            priority=0,
            ethertype=0x0800,
            payload=prng.randbytes(60),
        )
    )
    data = bytearray(frame)
    for _ in range(prng.randrange(3)):
        data[prng.randrange(12, len(data))] = prng.randrange(256)
    made = plane()
    for sent in made.receive(TRUNK, bytes(data), 1.0):
        is_echo = sent.port == TRUNK and sent.frame[:6] == THEIRS
        assert sent.port != TRUNK or is_echo
        assert len(sent.frame) <= len(frame)


def test_a_guest_that_changes_its_mac_forever_fills_no_table() -> None:
    made = plane()
    for number in range(10_000):
        mac = b"\6\0" + number.to_bytes(4, "big")
        made.receive(GUEST, b"\xff" * 6 + mac + b"\x88\xb5" + bytes(46), 1.0)
    assert len(made.learned()) == LEARNED_PER_PORT_MAX
    assert made.counters().drops[Drop.SPOOFED] == 0
