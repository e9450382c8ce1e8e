"""Trunks whose path narrows once they are up: Hellos and echoes pass, full frames do not."""

from collections import Counter

import pytest

from nuage.network.campus import Cable, Campus, CampusNode, system_id
from nuage.network.circuit import BFD_TIMERS, METRIC_MAX
from nuage.network.fabric_event import FabricNews, LabelsChanged
from nuage.network.forwarding import Label, PortNumber
from nuage.network.isis_pdu import MTU_PROBE
from nuage.network.nickname import NicknameWish
from nuage.network.rbridge import PDU_BYTES_NARROW, RBridgeConfig

LABEL = Label(7)
NOTICED_S = 60.0  # a probe in 39 s, ten more that nobody answers, a Hello
MAC = bytes.fromhex("060000000001"), bytes.fromhex("060000000002")
BROADCAST = b"\xff" * 6
NARROW, WIDE = FabricNews.MTU_TOO_SMALL, FabricNews.MTU_ENOUGH


class Net(Campus):
    """RBridges, the first two with a guest each."""

    def __init__(self, *cables: tuple[int, int], seed: int = 5, echoes: bool = True) -> None:
        super().__init__(seed)
        for number in range(1 + max(max(cable) for cable in cables)):
            self.add(RBridgeConfig(system_id(number), f"rb{number}"))
        self.laid = [self.connect(*c, bfd=BFD_TIMERS if echoes else None) for c in cables]
        self.ports = [self.attach(number, LABEL) for number in range(2)]
        self.run_until(6.0)
        self.get_through(size=60)

    def arrived(self, source: int, dmac: bytes, size: int, mark: bytes) -> int:
        """Send a frame from one guest; return how often the other got it."""
        frame = (dmac + MAC[source] + b"\x88\xb5" + mark).ljust(size, b".")
        self.from_guest(source, self.ports[source], frame)
        self.run_for(0.05)
        return sum(mark in frame for _, _, frame in self.nodes[1 - source].received)

    def get_through(self, size: int, times: int = 1) -> None:
        """Check that frames of a size come through in both directions, to one and to all."""
        for number in range(2):
            for dmac in (BROADCAST, MAC[1 - number]):
                mark = f"<{number} {size} {dmac.hex()} {self.now_s}>".encode()
                assert self.arrived(number, dmac, size, mark) == times, mark

    def told(self, number: int = 0) -> list[FabricNews]:
        return [e.news for e in self.nodes[number].log if e.news in (NARROW, WIDE)]


def metrics(node: CampusNode) -> list[int]:
    return [seen.metric for seen in node.rbridge.view().neighbours]


def narrow(cable: Cable, *, wide: bool = False) -> None:
    cable.long_lost = 0.0 if wide else 1.0


def test_frames_go_around_a_trunk_that_narrows_and_back_once_it_is_wide() -> None:
    net = Net((0, 1), (0, 2), (2, 1))
    narrow(net.laid[0])
    net.run_for(NOTICED_S)
    net.get_through(1300)
    assert metrics(net.nodes[0]) == [METRIC_MAX, 2000]
    narrow(net.laid[0], wide=True)
    net.run_for(5.0)
    assert metrics(net.nodes[0]) == [2000, 2000]
    assert net.told(0) == net.told(1) == [NARROW, WIDE]
    assert net.told(2) == []


@pytest.mark.parametrize("which", [0, 1])
def test_of_parallel_trunks_the_wide_one_carries_all(which: int) -> None:
    """Whichever of the two the tree used before."""
    net = Net((0, 1), (0, 1))
    narrow(net.laid[which])
    net.run_for(NOTICED_S)
    net.get_through(1300)


def test_the_only_trunk_of_a_site_goes_on_with_what_fits() -> None:
    """Also when its echoes are lost a while, and when its daemon begins anew."""
    net = Net((0, 1))
    narrow(net.laid[0])
    net.run_for(NOTICED_S)
    net.get_through(60)
    net.get_through(1300, times=0)
    net.lose(net.laid[0])
    net.run_for(3.0)
    net.lose(net.laid[0], lost=False)
    net.run_for(20.0)
    net.get_through(60)
    wish = NicknameWish(remembered=net.nodes[0].rbridge.nickname)
    net.restart(0, RBridgeConfig(system_id(0), "rb0", nickname=wish))
    net.give(0, LabelsChanged(frozenset({LABEL})))
    net.run_for(60.0)
    net.get_through(60)
    assert not net.nodes[0].rbridge.restarting
    narrow(net.laid[0], wide=True)
    net.run_for(5.0)
    net.get_through(1300)


@pytest.mark.parametrize("seed", range(3))
def test_a_line_that_loses_every_tenth_long_frame_is_not_held_to_be_narrow(seed: int) -> None:
    net = Net((0, 1), seed=seed, echoes=False)
    net.laid[0].long_lost = 0.1
    probes: Counter[int] = Counter()

    def count(number: int, _port: PortNumber, frame: bytes) -> None:
        probes[number] += (frame[12:14], frame[18]) == (b"\x22\xf4", MTU_PROBE)

    net.tap = count
    net.run_for(1800.0)
    assert net.told(0) == net.told(1) == []
    assert metrics(net.nodes[0]) == [2000]
    assert all(50 < probes[number] < 120 for number in range(2)), "about one in 30 s, and repeats"


def test_a_neighbour_whose_daemon_is_away_makes_no_trunk_narrow() -> None:
    net = Net((0, 1))
    net.run_for(NOTICED_S)
    for _ in range(4):
        net.kill(1)
        net.run_for(30.0)
        wish = NicknameWish(remembered=net.nodes[1].rbridge.nickname)
        net.restart(1, RBridgeConfig(system_id(1), "rb1", nickname=wish))
        net.run_for(17.0)
    assert net.told(0) == net.told(1) == []
    assert net.nodes[0].rbridge.view().neighbours[0].port == PortNumber(1)
    net.get_through(1300)


def test_a_trunk_that_never_was_wide_enough_says_so_once_and_once_that_it_is() -> None:
    campus = Campus(6)
    for number in range(2):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    cable = campus.connect(0, 1)
    narrow(cable)
    campus.run_until(200.0)
    told = [e.news for e in campus.nodes[0].log]
    assert told == [NARROW, FabricNews.NICKNAME_CHANGED]
    assert campus.nodes[0].rbridge.view().neighbours[0].state == "two-way"
    narrow(cable, wide=True)
    campus.run_for(20.0)
    told = [e.news for e in campus.nodes[0].log]
    assert told[2:] == [FabricNews.ADJACENCY_UP, WIDE]


def test_over_an_only_trunk_that_is_narrow_a_campus_still_learns_all_that_is_said() -> None:
    """LSPs and lists of them are cut to what it carries, by everybody, and grow again with it."""
    net = Net((0, 1), (1, 2))
    narrow(net.laid[0])
    net.run_for(NOTICED_S)
    scattered = frozenset(Label(number) for number in range(10, 1810, 2))
    for number in (0, 2):
        net.give(number, LabelsChanged(scattered | {LABEL}))
    net.run_for(10.0)
    assert label_counts(net.nodes[0]) == label_counts(net.nodes[2])
    assert label_counts(net.nodes[0])[::2][:2] == [901, 901]
    assert longest_lsp(net.nodes[0]) <= PDU_BYTES_NARROW
    narrow(net.laid[0], wide=True)
    net.run_for(10.0)
    assert label_counts(net.nodes[0])[::2][:2] == [901, 901]
    assert longest_lsp(net.nodes[0]) > PDU_BYTES_NARROW


def label_counts(node: CampusNode) -> list[int]:
    return [seen.label_count for seen in node.rbridge.view().nodes]


def longest_lsp(node: CampusNode) -> int:
    return max(len(record.raw) for record in node.rbridge.lsdb.records.values())
