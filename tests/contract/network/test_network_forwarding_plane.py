"""What every forwarding plane must do, frame by frame (RFC 6325 §4.6.2, 7172, 7780, 8171).

One suite, several planes: add a driver to DRIVERS. A driver gives frames to a plane's ports and
tells what left and what was handed up to control.
"""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Protocol

import pytest

from nuage.network.forwarding import (
    NICKNAME_ANY,
    PORT_NONE,
    AdjacencyEntry,
    Direction,
    Drop,
    FibEntry,
    FloodEntry,
    ForwardingDelta,
    ForwardingPlane,
    GuardEntry,
    Label,
    MacEntry,
    NextHop,
    Nickname,
    PolicyEntry,
    PortEntry,
    PortNumber,
    PortRole,
    PruneEntry,
    RpfEntry,
    SelfEntry,
    TreeEntry,
)
from nuage.network.software_plane import SoftwarePlane
from nuage.network.trill_frame import (
    ALL_EGRESS_RBRIDGES,
    ALL_RBRIDGES,
    CHANNEL_BFD,
    CHANNEL_ECHO,
    ChannelMessage,
    TrillFrame,
    decode_trill,
    encode_trill,
    one_hop_channel_frame,
    reflect,
)

ME, LEFT_PEER, FAR, ROOT = (Nickname(n) for n in (0x10, 0x20, 0x30, 0x40))
LEFT, RIGHT, GUEST, SECOND, BLUE_GUEST = (PortNumber(n) for n in (1, 2, 11, 12, 13))
RED, BLUE = Label(0x123456), Label(0x654321)
MINE = {port: bytes((2, 0, 0, 0, 0, port)) for port in (LEFT, RIGHT)}
PEER = {port: bytes((2, 0, 0, 0, 1, port)) for port in (LEFT, RIGHT)}
STATION, REMOTE, OTHER = (bytes((6, 0, 0, 0, 0, n)) for n in (1, 2, 3))
BROADCAST = b"\xff" * 6


class Driver(Protocol):
    """A plane and its ports."""

    @property
    def plane(self) -> ForwardingPlane:
        """Return the plane."""
        ...

    def send(self, port: PortNumber, frame: bytes) -> list[tuple[PortNumber, bytes]]:
        """Give the plane a frame; return what left, in any order."""
        ...

    def punts(self) -> list[tuple[PortNumber, bytes]]:
        """Return what was handed up to control since the last call."""
        ...

    def later(self, seconds: float) -> None:
        """Let time pass."""
        ...


class SoftwareDriver:
    """The plane in Python."""

    def __init__(self) -> None:
        self.plane = SoftwarePlane()
        self._now_s = 0.0

    def send(self, port: PortNumber, frame: bytes) -> list[tuple[PortNumber, bytes]]:
        return [(out.port, out.frame) for out in self.plane.receive(port, frame, self._now_s)]

    def punts(self) -> list[tuple[PortNumber, bytes]]:
        found = [(punt.port, punt.frame) for punt in self.plane.punts]
        self.plane.punts.clear()
        return found

    def later(self, seconds: float) -> None:
        self._now_s += seconds


DRIVERS: dict[str, Callable[[], Driver]] = {"software": SoftwareDriver}


@pytest.fixture(params=sorted(DRIVERS))
def driver(request: pytest.FixtureRequest) -> Driver:
    """A plane of a RBridge with two trunks, two red guests and a blue one."""
    made = DRIVERS[request.param]()
    hops = {port: NextHop(port, PEER[port], MINE[port]) for port in (LEFT, RIGHT)}
    made.plane.apply(
        ForwardingDelta(
            set=(
                SelfEntry(ME, ROOT),
                *(PortEntry(port, PortRole.TRUNK, MINE[port]) for port in (LEFT, RIGHT)),
                *(AdjacencyEntry(port, PEER[port]) for port in (LEFT, RIGHT)),
                *(
                    PortEntry(port, PortRole.ACCESS, bytes(6), label)
                    for port, label in ((GUEST, RED), (SECOND, RED), (BLUE_GUEST, BLUE))
                ),
                FloodEntry(RED, (GUEST, SECOND)),
                FloodEntry(BLUE, (BLUE_GUEST,)),
                FibEntry(LEFT_PEER, (hops[LEFT],)),
                FibEntry(FAR, (hops[RIGHT],)),
                TreeEntry(ROOT, (LEFT, RIGHT)),
                RpfEntry(ROOT, LEFT_PEER, LEFT),
                RpfEntry(ROOT, FAR, RIGHT),
                PruneEntry(ROOT, RED, (LEFT, RIGHT)),
                PruneEntry(ROOT, BLUE, (LEFT,)),
            )
        )
    )
    return made


def native(dmac: bytes, smac: bytes, payload: bytes = b"tenant" * 8) -> bytes:
    return dmac + smac + b"\x88\xb5" + payload


def trill(**more: object) -> TrillFrame:
    """Return a unicast frame from the left peer to us; change what the test is about."""
    frame = TrillFrame(
        outer_dmac=MINE[LEFT],
        outer_smac=PEER[LEFT],
        multi=False,
        hop_count=9,
        egress=ME,
        ingress=LEFT_PEER,
        inner_dmac=STATION,
        inner_smac=REMOTE,
        label=RED,
        vlan=0,
        priority=0,
        ethertype=0x88B5,
        payload=b"tenant" * 8,
    )
    return replace(frame, **more)  # type: ignore[arg-type]


def multi(**more: object) -> TrillFrame:
    """Return a frame for all of a segment, from the left peer over the tree."""
    fields: dict[str, object] = {
        "outer_dmac": ALL_RBRIDGES, "multi": True, "egress": ROOT, "inner_dmac": BROADCAST,
    }  # fmt: skip
    return trill(**{**fields, **more})


def drops(driver: Driver) -> dict[str, int]:
    return {cause.value: n for cause, n in driver.plane.counters().drops.items() if n}


def test_a_trunk_that_lost_its_neighbour_is_passed_over_at_once(driver: Driver) -> None:
    """Before any route is computed anew: the other equal next hop takes all flows."""
    hops = tuple(NextHop(port, PEER[port], MINE[port]) for port in (LEFT, RIGHT))
    stations = [bytes((6, 0, 0, 0, 9, n)) for n in range(16)]
    listed = [MacEntry(RED, mac, nickname=FAR) for mac in stations]
    driver.plane.apply(ForwardingDelta(set=(FibEntry(FAR, hops), *listed)))

    def taken() -> set[PortNumber]:
        return {port for mac in stations for port, _ in driver.send(GUEST, native(mac, STATION))}

    assert taken() == {LEFT, RIGHT}
    driver.plane.apply(ForwardingDelta(removed=(AdjacencyEntry(RIGHT, PEER[RIGHT]),)))
    assert taken() == {LEFT}
    driver.plane.apply(ForwardingDelta(removed=(AdjacencyEntry(LEFT, PEER[LEFT]),)))
    assert taken() == set()
    assert drops(driver) == {"no_route": 16}
    driver.plane.apply(ForwardingDelta(set=(AdjacencyEntry(RIGHT, PEER[RIGHT]),)))
    assert taken() == {RIGHT}


def test_a_backup_takes_over_when_the_only_next_hop_is_lost(driver: Driver) -> None:
    """Before any route is computed anew, for guests' frames and for those in transit."""
    left, right = (NextHop(port, PEER[port], MINE[port]) for port in (LEFT, RIGHT))
    path = FibEntry(FAR, (right,), backups=(left,))
    listed = MacEntry(RED, REMOTE, nickname=FAR)
    driver.plane.apply(ForwardingDelta(set=(path, listed)))
    frame = native(REMOTE, STATION)
    assert [port for port, _ in driver.send(GUEST, frame)] == [RIGHT]
    driver.plane.apply(ForwardingDelta(removed=(AdjacencyEntry(RIGHT, PEER[RIGHT]),)))
    ((port, sent),) = driver.send(GUEST, frame)
    assert (port, sent[:12]) == (LEFT, PEER[LEFT] + MINE[LEFT])
    driver.plane.apply(ForwardingDelta(removed=(AdjacencyEntry(LEFT, PEER[LEFT]),)))
    assert driver.send(GUEST, frame) == []
    assert drops(driver) == {"no_route": 1}


def test_ingress_to_a_directory_station_is_one_trill_frame(driver: Driver) -> None:
    driver.plane.apply(ForwardingDelta(set=(MacEntry(RED, REMOTE, nickname=FAR),)))
    frame = native(REMOTE, STATION)
    ((port, out),) = driver.send(GUEST, frame)
    assert port == RIGHT
    got = decode_trill(out)
    assert (got.outer_dmac, got.outer_smac) == (PEER[RIGHT], MINE[RIGHT])
    assert (got.egress, got.ingress, got.label, got.multi) == (FAR, ME, RED, False)
    assert (got.version, got.hop_count, got.options) == (0, 63, b"")
    assert got.native() == frame


def test_transit_changes_addresses_and_hop_count_and_nothing_else(driver: Driver) -> None:
    data = encode_trill(trill(egress=FAR, options=bytes(8), priority=5))
    ((port, out),) = driver.send(LEFT, data)
    assert port == RIGHT
    assert out[:12] == PEER[RIGHT] + MINE[RIGHT]
    assert out[12:15] == data[12:15]
    assert out[15] == data[15] - 1
    assert out[16:] == data[16:]


def test_egress_gives_the_guest_its_frame(driver: Driver) -> None:
    driver.plane.apply(ForwardingDelta(set=(MacEntry(RED, STATION, port=GUEST),)))
    frame = trill()
    assert driver.send(LEFT, encode_trill(frame)) == [(GUEST, frame.native())]


def test_a_broadcast_goes_to_guests_here_and_over_the_tree(driver: Driver) -> None:
    frame = native(BROADCAST, STATION)
    out = dict(driver.send(GUEST, frame))
    assert set(out) == {SECOND, LEFT, RIGHT}
    assert out[SECOND] == frame
    for port in (LEFT, RIGHT):
        got = decode_trill(out[port])
        assert (got.outer_dmac, got.multi, got.egress) == (ALL_RBRIDGES, True, ROOT)


def test_the_tree_is_pruned_by_interest(driver: Driver) -> None:
    assert {port for port, _ in driver.send(BLUE_GUEST, native(BROADCAST, STATION))} == {LEFT}
    blue = multi(label=BLUE)
    assert driver.send(LEFT, encode_trill(blue)) == [(BLUE_GUEST, blue.native())]
    driver.plane.apply(ForwardingDelta(set=(PruneEntry(ROOT, Label(0), (RIGHT,)),)))
    assert {port for port, _ in driver.send(LEFT, encode_trill(blue))} == {BLUE_GUEST, RIGHT}


def test_a_multidestination_frame_goes_on_and_down(driver: Driver) -> None:
    frame = multi()
    out = dict(driver.send(LEFT, encode_trill(frame)))
    assert set(out) == {RIGHT, GUEST, SECOND}
    assert out[GUEST] == out[SECOND] == frame.native()
    got = decode_trill(out[RIGHT])
    assert (got.outer_smac, got.hop_count) == (MINE[RIGHT], frame.hop_count - 1)


def test_a_segment_without_ports_here_is_only_carried_on(driver: Driver) -> None:
    driver.plane.apply(ForwardingDelta(set=(PruneEntry(ROOT, Label(7), (RIGHT,)),)))
    assert [port for port, _ in driver.send(LEFT, encode_trill(multi(label=Label(7))))] == [RIGHT]


@pytest.mark.parametrize(
    ("frame", "cause"),
    [
        (trill(version=1), Drop.VERSION),
        (trill(outer_dmac=OTHER), Drop.OUTER_DESTINATION),
        (trill(outer_dmac=ALL_RBRIDGES), Drop.OUTER_DESTINATION),
        (multi(outer_dmac=MINE[LEFT]), Drop.OUTER_DESTINATION),
        (trill(outer_smac=OTHER), Drop.NO_ADJACENCY),
        (trill(options=b"\x80\0\0\0"), Drop.OPTIONS),
        (trill(ingress=ME), Drop.OWN_INGRESS),
        (trill(ingress=Nickname(0)), Drop.INGRESS),
        (trill(ingress=Nickname(0xFFC0)), Drop.INGRESS),
        (trill(egress=FAR, hop_count=0), Drop.HOP_COUNT),
        (trill(egress=Nickname(0x999)), Drop.NO_ROUTE),
        (multi(egress=Nickname(0x999)), Drop.UNKNOWN_TREE),
        (multi(ingress=FAR), Drop.RPF),
        (multi(ingress=Nickname(0x999)), Drop.RPF),
        (trill(label=Label(99)), Drop.LABEL),
        (trill(label=None, vlan=10), Drop.LABEL),
        (trill(inner_smac=b"\x01\0\0\0\0\1"), Drop.INNER),
        (trill(egress=NICKNAME_ANY), Drop.INNER),
        (trill(inner_dmac=ALL_EGRESS_RBRIDGES, ethertype=0x22F4), Drop.INNER),  # ESADI
        (trill(inner_dmac=bytes.fromhex("0180c2000000")), Drop.INNER),  # a BPDU
        (trill(ethertype=0x22F3), Drop.INNER),
    ],
)
def test_a_frame_that_must_not_pass_is_counted_by_cause(
    driver: Driver, frame: TrillFrame, cause: Drop
) -> None:
    assert driver.send(LEFT, encode_trill(frame)) == []
    assert driver.punts() == []
    assert drops(driver) == {cause.value: 1}


def test_a_tree_frame_on_a_port_outside_the_tree_is_dropped(driver: Driver) -> None:
    driver.plane.apply(ForwardingDelta(set=(TreeEntry(ROOT, (RIGHT,)),)))
    assert driver.send(LEFT, encode_trill(multi())) == []
    assert drops(driver) == {"not_tree_port": 1}


def test_between_two_trees_broadcasts_are_refused_and_the_rest_outlives_the_daemon(
    driver: Driver,
) -> None:
    """An entry that names no port; one for a frame to one station does not ask."""
    rest = RpfEntry(ROOT, LEFT_PEER, PORT_NONE)
    driver.plane.apply(ForwardingDelta(set=(rest,)))
    assert driver.send(LEFT, encode_trill(multi())) == []
    assert drops(driver) == {"tree_rest": 1}
    assert rest in driver.plane.entries()
    assert driver.send(LEFT, encode_trill(trill(egress=FAR))) != []
    driver.plane.apply(ForwardingDelta(set=(RpfEntry(ROOT, LEFT_PEER, LEFT),)))
    assert driver.send(LEFT, encode_trill(multi())) != []
    assert drops(driver) == {"tree_rest": 1}


@pytest.mark.parametrize("cut", range(12, 42, 3))
def test_a_truncated_frame_is_dropped(driver: Driver, cut: int) -> None:
    assert driver.send(LEFT, encode_trill(trill())[:cut]) == []
    assert sum(driver.plane.counters().drops.values()) == 1


def test_native_frames_and_bpdus_do_not_pass_a_trunk(driver: Driver) -> None:
    assert driver.send(LEFT, native(STATION, REMOTE)) == []
    bpdu = bytes.fromhex("0180c2000000") + REMOTE + b"\0\x26" + bytes(46)
    assert driver.send(LEFT, bpdu) == []
    assert drops(driver) == {"native": 1, "bridge_control": 1}


def test_a_frame_without_hops_left_is_still_delivered_here(driver: Driver) -> None:
    assert {p for p, _ in driver.send(LEFT, encode_trill(trill(hop_count=0)))} == {GUEST, SECOND}
    assert {p for p, _ in driver.send(LEFT, encode_trill(multi(hop_count=0)))} == {GUEST, SECOND}


def test_stations_are_learned_at_egress_and_forgotten_with_age(driver: Driver) -> None:
    driver.send(LEFT, encode_trill(multi()))
    assert [(x.mac, x.nickname) for x in driver.plane.learned()] == [(REMOTE, LEFT_PEER)]
    ((port, _),) = driver.send(GUEST, native(REMOTE, STATION))
    assert port == LEFT
    driver.later(301)
    assert len(driver.send(GUEST, native(REMOTE, STATION))) == 3, "flooded again"


def test_a_directory_entry_outranks_what_is_learned(driver: Driver) -> None:
    driver.plane.apply(ForwardingDelta(set=(MacEntry(RED, REMOTE, nickname=FAR),)))
    driver.send(LEFT, encode_trill(multi()))
    ((port, _),) = driver.send(GUEST, native(REMOTE, STATION))
    assert port == RIGHT
    driver.plane.apply(ForwardingDelta(removed=(MacEntry(RED, REMOTE, nickname=FAR),)))
    assert len(driver.send(GUEST, native(REMOTE, STATION))) == 3


def test_what_was_learned_before_a_directory_line_does_not_come_back_when_that_goes(
    driver: Driver,
) -> None:
    driver.send(LEFT, encode_trill(multi()))
    found = driver.plane.learned_at(RED, REMOTE)
    assert found is not None
    assert (found.nickname, found.port) == (LEFT_PEER, 0)
    line = MacEntry(RED, REMOTE, nickname=FAR)
    driver.plane.apply(ForwardingDelta(set=(line,)))
    driver.plane.apply(ForwardingDelta(removed=(line,)))
    assert driver.plane.learned_at(RED, REMOTE) is None
    assert len(driver.send(GUEST, native(REMOTE, STATION))) == 3, "flooded: nobody knows"


def test_learning_in_one_segment_says_nothing_of_another(driver: Driver) -> None:
    driver.send(LEFT, encode_trill(multi()))
    out = driver.send(BLUE_GUEST, native(REMOTE, STATION))
    assert [decode_trill(frame).multi for _, frame in out] == [True]


def test_a_nickname_that_is_gone_takes_what_was_learned_with_it(driver: Driver) -> None:
    driver.send(LEFT, encode_trill(multi()))
    hop = NextHop(LEFT, PEER[LEFT], MINE[LEFT])
    driver.plane.apply(ForwardingDelta(removed=(FibEntry(LEFT_PEER, (hop,)),)))
    assert driver.plane.learned() == ()


def test_equal_paths_share_the_flows_and_keep_each_together(driver: Driver) -> None:
    hops = tuple(NextHop(port, PEER[port], MINE[port]) for port in (LEFT, RIGHT))
    driver.plane.apply(
        ForwardingDelta(set=(FibEntry(FAR, hops), MacEntry(RED, REMOTE, nickname=FAR)))
    )
    used = []
    for sport in range(200):
        body = sport.to_bytes(2, "big") + b"\0\x35\0\x08\0\0"
        head = b"\x45\0\0\x1c\0\0\0\0\x40\x11\0\0"
        packet = head + IPv4Address("10.0.0.1").packed + IPv4Address("10.0.0.2").packed + body
        frame = REMOTE + STATION + b"\x08\0" + packet
        ports = {driver.send(GUEST, frame)[0][0] for _ in range(3)}
        assert len(ports) == 1
        used.append(ports.pop())
    assert 60 <= used.count(LEFT) <= 140


def test_control_frames_are_handed_up_and_echoes_sent_back(driver: Driver) -> None:
    hello = bytes.fromhex("0180c2000041") + PEER[LEFT] + b"\x22\xf4" + b"\x83" + bytes(40)
    assert driver.send(LEFT, hello) == []
    assert driver.punts() == [(LEFT, hello)]
    bfd = one_hop_channel_frame(
        ChannelMessage(CHANNEL_BFD, bytes(24)), dmac=MINE[LEFT], smac=PEER[LEFT], ingress=LEFT_PEER
    )
    assert driver.send(LEFT, bfd) == []
    assert driver.punts() == [(LEFT, bfd)]
    echo = one_hop_channel_frame(
        ChannelMessage(CHANNEL_ECHO, b"8 bytes."),
        dmac=MINE[LEFT], smac=PEER[LEFT], ingress=LEFT_PEER,
    )  # fmt: skip
    assert driver.send(LEFT, echo) == [(LEFT, reflect(echo, smac=MINE[LEFT]))]
    mine = one_hop_channel_frame(
        ChannelMessage(CHANNEL_ECHO, b"8 bytes."), dmac=PEER[LEFT], smac=MINE[LEFT], ingress=ME
    )
    back = reflect(mine, smac=PEER[LEFT])
    assert driver.send(LEFT, back) == []
    assert driver.punts() == [(LEFT, back)]


def test_of_others_than_the_neighbour_control_hears_little(driver: Driver) -> None:
    """A neighbour may come back by another port, so a little; and a flood leaves it its share."""
    group, kind = bytes.fromhex("0180c2000041"), b"\x22\xf4" + b"\x83" + bytes(100)
    for number in range(3000):
        assert driver.send(LEFT, group + number.to_bytes(6, "big") + kind) == []
    heard = len(driver.punts())
    assert 0 < heard < 600
    assert drops(driver) == {Drop.RATE.value: 3000 - heard}
    for _ in range(500):
        driver.send(LEFT, group + PEER[LEFT] + kind)
    assert len(driver.punts()) == 500
    bfd = one_hop_channel_frame(
        ChannelMessage(CHANNEL_BFD, bytes(24)), dmac=MINE[LEFT], smac=OTHER, ingress=LEFT_PEER
    )
    assert driver.send(LEFT, bfd) == []
    assert driver.punts() == []
    assert drops(driver)[Drop.NO_ADJACENCY.value] == 1
    driver.plane.apply(ForwardingDelta(removed=(AdjacencyEntry(LEFT, PEER[LEFT]),)))
    for number in range(500):
        driver.send(LEFT, group + number.to_bytes(6, "big") + kind)
    assert len(driver.punts()) == 500, "without a neighbour anybody may be it"


def channel_frame(**more: object) -> TrillFrame:
    fields: dict[str, object] = {
        "inner_dmac": ALL_EGRESS_RBRIDGES, "label": None, "vlan": 1, "ethertype": 0x8946,
        "payload": b"\x0f\xf8\x40\x00" + bytes(12),
    }  # fmt: skip
    return trill(**{**fields, **more})


def test_a_channel_message_for_us_or_at_its_last_hop_is_handed_up(driver: Driver) -> None:
    for frame in (channel_frame(), channel_frame(egress=FAR, hop_count=0)):
        data = encode_trill(frame)
        assert driver.send(LEFT, data) == []
        assert driver.punts() == [(LEFT, data)]
    ((port, _),) = driver.send(LEFT, encode_trill(channel_frame(egress=FAR, hop_count=5)))
    assert port == RIGHT
    assert driver.punts() == []
    assert drops(driver) == {}


def test_a_tenants_frame_is_never_taken_for_a_channel_message(driver: Driver) -> None:
    frame = channel_frame(label=RED, vlan=0)
    assert {port for port, _ in driver.send(LEFT, encode_trill(frame))} <= {GUEST, SECOND}
    assert driver.punts() == []


@pytest.mark.parametrize("ethertype", [0x22F3, 0x22F4, 0x8946])
def test_a_guest_cannot_send_what_rbridges_send(driver: Driver, ethertype: int) -> None:
    frame = REMOTE + STATION + ethertype.to_bytes(2, "big") + bytes(60)
    assert driver.send(GUEST, frame) == []
    group = bytes.fromhex("0180c2000042") + STATION + b"\x88\xb5" + bytes(60)
    assert driver.send(GUEST, group) == []
    assert driver.punts() == []
    assert drops(driver) == {"bridge_control": 2}


def test_a_guarded_guest_speaks_as_itself_or_not_at_all(driver: Driver) -> None:
    guarded = PortEntry(GUEST, PortRole.ACCESS, STATION, RED, guarded=True)
    own = IPv4Address("10.0.0.1")
    driver.plane.apply(
        ForwardingDelta(set=(guarded, GuardEntry(GUEST, own), MacEntry(RED, REMOTE, port=SECOND)))
    )

    def packet(smac: bytes, source: str) -> bytes:
        head = b"\x45\0\0\x1c\0\0\0\0\x40\x11\0\0" + IPv4Address(source).packed
        ports = b"\0\x07\0\x35\0\x08\0\0"
        return REMOTE + smac + b"\x08\0" + head + IPv4Address("10.0.0.2").packed + ports

    assert driver.send(GUEST, packet(STATION, "10.0.0.1")) != []
    assert driver.send(GUEST, packet(STATION, "10.0.0.9")) == []
    assert driver.send(GUEST, packet(OTHER, "10.0.0.1")) == []
    assert driver.send(GUEST, native(REMOTE, STATION)) == []
    assert drops(driver) == {"spoofed": 3}


def test_a_filtered_guest_gets_answers_and_what_is_allowed(driver: Driver) -> None:
    driver.plane.apply(
        ForwardingDelta(
            set=(
                PortEntry(GUEST, PortRole.ACCESS, STATION, RED, filtered=True),
                PolicyEntry(GUEST, 0, Direction.EGRESS, protocol=17),
                PolicyEntry(GUEST, 1, Direction.INGRESS, protocol=17, first=80, last=80),
                MacEntry(RED, REMOTE, port=SECOND),
                MacEntry(RED, STATION, port=GUEST),
            )
        )
    )

    def udp(dmac: bytes, smac: bytes, source: str, target: str, ports: tuple[int, int]) -> bytes:
        head = b"\x45\0\0\x1c\0\0\0\0\x40\x11\0\0"
        body = ports[0].to_bytes(2, "big") + ports[1].to_bytes(2, "big") + b"\0\x08\0\0"
        addresses = IPv4Address(source).packed + IPv4Address(target).packed
        return dmac + smac + b"\x08\0" + head + addresses + body

    def reaches(sport: int, dport: int) -> bool:
        frame = udp(STATION, REMOTE, "10.0.0.2", "10.0.0.1", (sport, dport))
        return driver.send(SECOND, frame) != []

    assert not reaches(53, 999)
    assert driver.send(GUEST, udp(REMOTE, STATION, "10.0.0.1", "10.0.0.2", (999, 53))) != []
    assert reaches(53, 999)
    assert not reaches(54, 999)
    assert reaches(5, 80)


def test_what_the_plane_holds_can_be_read_back(driver: Driver) -> None:
    held = set(driver.plane.entries())
    entry = MacEntry(RED, REMOTE, nickname=FAR)
    driver.plane.apply(ForwardingDelta(set=(entry,)))
    assert set(driver.plane.entries()) == held | {entry}
    driver.plane.apply(ForwardingDelta(set=(entry,)))
    driver.plane.apply(ForwardingDelta(removed=(entry,)))
    assert set(driver.plane.entries()) == held


def test_counters_add_up(driver: Driver) -> None:
    driver.plane.apply(ForwardingDelta(set=(MacEntry(RED, REMOTE, nickname=FAR),)))
    for _ in range(3):
        driver.send(GUEST, native(REMOTE, STATION))
    for _ in range(4):
        driver.send(LEFT, encode_trill(trill(egress=FAR)))
    for _ in range(5):
        driver.send(LEFT, encode_trill(trill()))
    sums = driver.plane.counters()
    assert (sums.ingress_frames, sums.transit_frames, sums.egress_frames) == (3, 4, 5)
    assert set(sums.drops) == set(Drop)
    assert not any(sums.drops.values())
