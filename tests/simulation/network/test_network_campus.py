"""Whole campuses under a virtual clock: what must hold on any graph, whatever breaks."""

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from nuage.network.applied_table import REST_S
from nuage.network.campus import Campus, random_campus, system_id
from nuage.network.fabric_event import CarrierChanged, FabricNews, KeysChanged, TraceAsked
from nuage.network.forwarding import (
    Drop,
    FibEntry,
    ForwardingDelta,
    Label,
    MacEntry,
    NextHop,
    Nickname,
    PortNumber,
    RpfEntry,
    TreeEntry,
)
from nuage.network.isis_auth import Keyring
from nuage.network.nickname import NicknameWish
from nuage.network.rbridge import RBridgeConfig

LABEL = Label(0x123456)
BROADCAST = b"\xff" * 6
SETTLED_S = 6.0


def guest_mac(number: int) -> bytes:
    return bytes((0x06, 0, 0, 0, number >> 8, number & 0xFF))


def frame_of(source: int, dmac: bytes, mark: bytes) -> bytes:
    return dmac + guest_mac(source) + b"\x88\xb5" + mark.ljust(46, b".")


def attach_all(campus: Campus) -> list[PortNumber]:
    return [campus.attach(number, LABEL) for number in range(len(campus.nodes))]


def deliveries(campus: Campus, mark: bytes) -> Counter[int]:
    return Counter(
        number
        for number, node in enumerate(campus.nodes)
        for _, _, frame in node.received
        if mark in frame
    )


def databases(campus: Campus) -> set[tuple[tuple[bytes, int, int], ...]]:
    return {
        tuple(
            sorted(
                (lsp_id, record.lsp.sequence, record.lsp.checksum)
                for lsp_id, record in node.rbridge.lsdb.records.items()
            )
        )
        for node in campus.nodes
    }


def trees(campus: Campus) -> set[tuple[int, tuple[tuple[bytes, bytes], ...]]]:
    found: set[tuple[int, tuple[tuple[bytes, bytes], ...]]] = set()
    for node in campus.nodes:
        routes = node.rbridge.routes
        assert routes is not None
        found.add((routes.tree, tuple(sorted(routes.parents.items()))))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_all_rbridges_of_a_random_campus_agree(seed: int) -> None:
    prng = Random(seed)
    campus = random_campus(seed, prng.randrange(4, 32), prng.randrange(12))
    ports = attach_all(campus)
    campus.run_until(4.0)
    assert len(databases(campus)) == 1
    assert len(trees(campus)) == 1
    nicknames = [node.rbridge.nickname for node in campus.nodes]
    assert len(set(nicknames)) == len(nicknames)
    assert 0 not in nicknames
    for number, port in enumerate(ports):
        mark = f"<{number}>".encode()
        campus.from_guest(number, port, frame_of(number, BROADCAST, mark))
        campus.run_for(0.06)
        others = {n: 1 for n in range(len(campus.nodes)) if n != number}
        assert deliveries(campus, mark) == others


@pytest.mark.parametrize("seed", range(3))
def test_learned_stations_get_unicast_alone(seed: int) -> None:
    campus = random_campus(seed, 8, 5)
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    for number, port in enumerate(ports):
        campus.from_guest(number, port, frame_of(number, BROADCAST, b"hello"))
    campus.run_for(0.5)
    for target in range(1, 8):
        mark = f"<to {target}>".encode()
        campus.from_guest(0, ports[0], frame_of(0, guest_mac(target), mark))
        campus.run_for(0.5)
        assert deliveries(campus, mark) == {target: 1}


def broadcasts_while_links_fail(
    campus: Campus, prng: Random, steps: int
) -> Iterator[tuple[float, int]]:
    """Yield, for each broadcast: how long after a link changed it was sent, and how often it came.

    Links are lost, cut and repaired at random. How often: at the node at which most came.
    """
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    sent = []
    for step in range(steps):
        changed_s = campus.now_s
        cable = prng.choice(campus.cables)
        if cable.cut:
            campus.cut(cable, cut=False)
        elif cable.lost:
            campus.lose(cable, lost=False)
        elif prng.random() < 0.5:
            campus.cut(cable)
        else:
            campus.lose(cable)
        for burst in range(5):
            number = prng.randrange(len(ports))
            mark = f"<{step}.{burst}>".encode()
            sent.append((campus.now_s - changed_s, mark))
            campus.from_guest(number, ports[number], frame_of(number, BROADCAST, mark))
            campus.run_for(prng.choice((0.001, 0.004, 0.05, 0.15)))
    campus.run_for(1.0)
    for after_s, mark in sent:
        yield after_s, max(deliveries(campus, mark).values(), default=0)


@pytest.mark.parametrize(("seed", "count"), [(0, 12), (1, 12), (2, 4), (3, 24)])
def test_nothing_is_delivered_twice_while_trees_change(seed: int, count: int) -> None:
    campus = random_campus(seed, count, count - 2)
    seen = list(broadcasts_while_links_fail(campus, Random(seed), 40))
    assert max(times for _, times in seen) == 1


def test_nothing_is_delivered_twice_while_the_tree_of_a_large_campus_changes() -> None:
    """Without a rest one node has a frame by its old tree, and by the new one 5 ms later."""
    seen = list(broadcasts_while_links_fail(random_campus(4, 64, 62), Random(4), 3))
    assert max(times for _, times in seen) == 1


def test_what_a_slow_way_brings_after_its_tree_has_changed_is_refused() -> None:
    """It passed where the news of the change had not been; its way is shorter than a rest.

    A triangle: the frame goes to rb0 at once and to rb1 in 50 ms, where it finds that the link
    between the other two is lost and goes on to rb0.
    """
    campus = Campus(1)
    for number in range(3):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    near = campus.connect(0, 2)
    campus.connect(0, 1)
    campus.connect(1, 2, delay_s=0.05)
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    campus.from_guest(2, ports[2], frame_of(2, BROADCAST, b"<first>"))
    campus.run_for(0.002)
    campus.cut(near)
    campus.run_for(0.1)
    assert deliveries(campus, b"<first>") == {0: 1, 1: 1}
    assert campus.nodes[0].plane.counters().drops[Drop.TREE_REST] == 1
    campus.run_for(REST_S)
    campus.from_guest(2, ports[2], frame_of(2, BROADCAST, b"<second>"))
    campus.run_for(0.1)
    assert deliveries(campus, b"<second>") == {0: 1, 1: 1}
    assert campus.nodes[0].plane.counters().drops[Drop.TREE_REST] == 1


def test_a_silent_loss_is_healed_within_a_quarter_second() -> None:
    """Ring of five; the one link in use swallows everything; BFD and the fabric go around."""
    campus = Campus(7)
    for number in range(5):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    cables = [campus.connect(n, (n + 1) % 5) for n in range(5)]
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    campus.from_guest(1, ports[1], frame_of(1, BROADCAST, b"here I am"))
    campus.run_for(0.1)
    campus.lose(cables[0])
    lost_s = campus.now_s
    for step in range(300):
        campus.from_guest(0, ports[0], frame_of(0, guest_mac(1), f"<{step}>".encode()))
        campus.run_for(0.001)
    got = [when for when, _, frame in campus.nodes[1].received if frame[:6] == guest_mac(1)]
    assert got[0] - lost_s <= 0.2


def test_lost_carrier_is_healed_within_ten_milliseconds() -> None:
    campus = Campus(8)
    for number in range(4):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    cables = [campus.connect(n, (n + 1) % 4) for n in range(4)]
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    campus.from_guest(1, ports[1], frame_of(1, BROADCAST, b"here I am"))
    campus.run_for(0.1)
    campus.cut(cables[0])
    cut_s = campus.now_s
    for step in range(50):
        campus.from_guest(0, ports[0], frame_of(0, guest_mac(1), f"<{step}>".encode()))
        campus.run_for(0.001)
    got = [when for when, _, frame in campus.nodes[1].received if frame[:6] == guest_mac(1)]
    assert got[0] - cut_s <= 0.01


def test_in_a_triangle_no_frame_waits_for_routes_once_the_carrier_is_lost() -> None:
    """The backup takes the first frame after the loss; routes come later."""
    campus = Campus(9)
    for number in range(3):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    cables = [campus.connect(n, (n + 1) % 3) for n in range(3)]
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    campus.from_guest(1, ports[1], frame_of(1, BROADCAST, b"here I am"))
    campus.run_for(0.1)
    campus.cut(cables[0])
    for step in range(20):
        campus.from_guest(0, ports[0], frame_of(0, guest_mac(1), f"<{step:02}>".encode()))
        campus.run_for(0.0005)
    campus.run_for(0.1)
    got = [frame for _, _, frame in campus.nodes[1].received if frame[:6] == guest_mac(1)]
    assert [frame[14:18] for frame in got] == [f"<{step:02}>".encode() for step in range(20)]


def test_the_far_end_of_parallel_trunks_is_told_of_a_carrier_that_only_the_near_end_lost() -> None:
    """One of two trunks loses its carrier at one end; the other end still sees its own."""
    campus = Campus(15)
    for number in range(2):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    first, _ = campus.connect(0, 1), campus.connect(0, 1)
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    campus.from_guest(0, ports[0], frame_of(0, BROADCAST, b"here I am"))
    campus.run_for(0.1)
    campus.lose(first)
    campus.give(0, CarrierChanged(first.a[1], up=False))
    campus.run_for(0.01)
    for flow in range(32):
        frame = guest_mac(0) + bytes((6, 0, 0, 1, 0, flow)) + b"\x88\xb5" + bytes(46)
        campus.from_guest(1, ports[1], frame)
    campus.run_for(0.01)
    assert sum(frame[:6] == guest_mac(0) for _, _, frame in campus.nodes[0].received) == 32
    assert [n.state for n in campus.nodes[1].rbridge.view().neighbours] == ["report", "report"]


def test_a_wrong_key_makes_no_adjacency_and_a_clear_event() -> None:
    campus = Campus(3)
    campus.add(RBridgeConfig(system_id(0), "a", ring=Keyring(1, {1: b"right"})))
    campus.add(RBridgeConfig(system_id(1), "b", ring=Keyring(1, {1: b"wrong"})))
    campus.connect(0, 1)
    campus.run_until(SETTLED_S)
    for node in campus.nodes:
        assert [n.state for n in node.rbridge.view().neighbours] == ["down"]
        assert FabricNews.AUTHENTICATION_FAILED in {entry.news for entry in node.log}


def test_keys_roll_without_losing_an_adjacency() -> None:
    """One end still signs with the old key, both accept both."""
    keys = {1: b"old", 2: b"new"}
    campus = Campus(3)
    campus.add(RBridgeConfig(system_id(0), "a", ring=Keyring(1, keys)))
    campus.add(RBridgeConfig(system_id(1), "b", ring=Keyring(2, keys)))
    campus.connect(0, 1)
    campus.run_until(SETTLED_S)
    assert len(databases(campus)) == 1
    assert [n.state for n in campus.nodes[0].rbridge.view().neighbours] == ["report"]


def ring(generation: int, *, accepts: tuple[int, ...] = ()) -> Keyring:
    keys = {number: f"generation {number}".encode() for number in (generation, *accepts)}
    return Keyring(generation, keys)


def test_keys_roll_under_running_rbridges_and_shut_out_who_has_the_old_one() -> None:
    """Each hears of it at another time; frames go on; a node that was not told is alone at last."""
    campus = Campus(31)
    for number in range(4):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}", ring=ring(1)))
    for number in range(4):
        campus.connect(number, (number + 1) % 4)
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    for number in range(3):
        campus.give(number, KeysChanged(ring(1, accepts=(2,))))
        campus.run_for(1.0)
    for number in range(3):
        campus.give(number, KeysChanged(ring(2, accepts=(1,))))
        campus.run_for(0.3)
        mark = f"<rolled {number}>".encode()
        campus.from_guest(number, ports[number], frame_of(number, BROADCAST, mark))
        campus.run_for(0.2)
        assert len(deliveries(campus, mark)) == 3, mark
    for number in range(3):
        campus.give(number, KeysChanged(ring(2)))
        campus.run_for(1.0)
    rolled = campus.nodes[:3]
    downs = {e.detail for n in rolled for e in n.log if e.news is FabricNews.ADJACENCY_DOWN}
    assert downs == set()
    campus.kill(3)  # its cables are pulled, as a revoked node's are
    for cable in (campus.cables[2], campus.cables[3]):
        campus.lose(cable)
    campus.run_for(1.0)
    campus.restart(3, RBridgeConfig(system_id(3), "rb3", ring=ring(1)))
    for cable in (campus.cables[2], campus.cables[3]):
        campus.lose(cable, lost=False)
    campus.run_for(SETTLED_S)
    assert [n.state for n in campus.nodes[3].rbridge.view().neighbours] == ["down", "down"]
    assert [n.state for n in campus.nodes[1].rbridge.view().neighbours] == ["report", "report"]
    assert FabricNews.AUTHENTICATION_FAILED in {e.news for e in campus.nodes[0].log}


def test_who_comes_after_a_roll_learns_all_from_a_neighbour() -> None:
    """What was signed with the key of before has been said again."""
    campus = Campus(32)
    for number in range(3):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}", ring=ring(1)))
    campus.connect(0, 1)
    campus.connect(1, 2)
    campus.run_until(SETTLED_S)
    for step in (ring(1, accepts=(2,)), ring(2, accepts=(1,)), ring(2)):
        for number in range(3):
            campus.give(number, KeysChanged(step))
        campus.run_for(1.0)
    late = campus.add(RBridgeConfig(system_id(9), "late", ring=ring(2)))
    campus.connect(0, late)
    campus.run_for(SETTLED_S)
    assert len(databases(campus)) == 1


def test_a_restart_keeps_the_nickname_and_the_forwarding() -> None:
    campus = random_campus(11, 5, 3)
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    campus.from_guest(2, ports[2], frame_of(2, BROADCAST, b"here I am"))
    campus.run_for(0.1)
    before = campus.nodes[2].remembered
    assert before is not None
    campus.restart(2, RBridgeConfig(system_id(2), "rb2", nickname=NicknameWish(remembered=before)))
    campus.run_for(SETTLED_S)
    assert campus.nodes[2].rbridge.nickname == before
    assert len(databases(campus)) == 1
    campus.from_guest(0, ports[0], frame_of(0, BROADCAST, b"<after>"))
    campus.run_for(0.5)
    assert deliveries(campus, b"<after>") == {1: 1, 2: 1, 3: 1, 4: 1}


def test_of_two_that_want_one_nickname_the_configured_one_keeps_it() -> None:
    campus = Campus(5)
    same = Nickname(0x0BEE)
    campus.add(RBridgeConfig(system_id(9), "drawn", nickname=NicknameWish(remembered=same)))
    campus.add(RBridgeConfig(system_id(1), "set", nickname=NicknameWish(configured=same)))
    campus.connect(0, 1)
    campus.run_until(SETTLED_S)
    assert campus.nodes[1].rbridge.nickname == same
    assert campus.nodes[0].rbridge.nickname not in (0, same)
    assert campus.nodes[0].remembered == campus.nodes[0].rbridge.nickname


def test_a_partition_keeps_two_working_halves_and_heals() -> None:
    campus = Campus(6)
    for number in range(4):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    campus.connect(0, 1)
    middle = campus.connect(1, 2)
    campus.connect(2, 3)
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    campus.cut(middle)
    campus.run_for(1.0)
    campus.from_guest(0, ports[0], frame_of(0, BROADCAST, b"<left>"))
    campus.from_guest(3, ports[3], frame_of(3, BROADCAST, b"<right>"))
    campus.run_for(0.5)
    assert deliveries(campus, b"<left>") == {1: 1}
    assert deliveries(campus, b"<right>") == {2: 1}
    campus.cut(middle, cut=False)
    campus.run_for(SETTLED_S)
    campus.from_guest(0, ports[0], frame_of(0, BROADCAST, b"<whole>"))
    campus.run_for(0.5)
    assert deliveries(campus, b"<whole>") == {1: 1, 2: 1, 3: 1}


def test_a_segment_goes_only_where_it_has_ports() -> None:
    """The tree is pruned: a link that leads to nobody of the segment stays dark."""
    campus = Campus(9)
    for number in range(4):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    for number in range(3):
        campus.connect(number, number + 1)
    first, second = campus.attach(0, LABEL), campus.attach(1, LABEL)
    campus.attach(3, Label(77))
    campus.run_until(SETTLED_S)
    seen: Counter[int] = Counter()

    def watch(number: int, _port: PortNumber, frame: bytes) -> None:
        seen[number] += frame[12:14] == b"\x22\xf3" and b"<quiet>" in frame

    campus.tap = watch
    campus.from_guest(0, first, frame_of(0, BROADCAST, b"<quiet>"))
    campus.run_for(0.2)
    assert second
    assert +seen == {0: 1}
    assert deliveries(campus, b"<quiet>") == {1: 1}


def test_a_wandering_frame_dies_of_its_hop_count() -> None:
    """Planes told lies by hand loop a frame: it is forwarded 63 times and then counted."""
    campus = Campus(3)
    for number in range(3):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    campus.connect(0, 1)
    campus.connect(1, 2)
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    lie_about_an_unknown_nickname(campus)
    campus.from_guest(0, ports[0], frame_of(0, guest_mac(99), b"<lost>"))
    campus.run_for(1.0)
    drops = sum(node.plane.counters().drops[Drop.HOP_COUNT] for node in campus.nodes)
    moved = sum(node.plane.counters().transit_frames for node in campus.nodes)
    assert (drops, moved) == (1, 63)


def lie_about_an_unknown_nickname(campus: Campus) -> None:
    """The first sends it to the second, which passes it to and fro with the third."""
    ghost = Nickname(0xABC)
    ways = ((0, 1, 1, 1), (1, 2, 2, 1), (2, 1, 1, 2))  # who, by which port, to whom, at which port
    for number, port, other, other_port in ways:
        hop = NextHop(PortNumber(port), campus.mac(other, other_port), campus.mac(number, port))
        campus.nodes[number].plane.apply(
            ForwardingDelta(set=(FibEntry(ghost, (hop,)), MacEntry(LABEL, guest_mac(99), ghost)))
        )


def test_the_reverse_path_table_names_one_tree_port_for_each_ingress() -> None:
    campus = random_campus(21, 16, 12)
    attach_all(campus)
    campus.run_until(SETTLED_S)
    for node in campus.nodes:
        table = node.rbridge.table
        tree_ports = {p for entry in table if isinstance(entry, TreeEntry) for p in entry.ports}
        reverse = [entry for entry in table if isinstance(entry, RpfEntry)]
        assert len(reverse) == len(campus.nodes) - 1
        assert {entry.port for entry in reverse} <= tree_ports


def test_a_second_rbridge_on_a_trunk_is_refused_and_said() -> None:
    """Three RBridges on one wire: not a point-to-point trunk."""
    campus = Campus(4)
    for number in range(3):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    campus.connect(0, 1)
    campus.connect(2, 1)
    campus.run_until(SETTLED_S)
    stolen: list[bytes] = []
    campus.tap = lambda number, _port, frame: stolen.append(frame) if number == 2 else None
    campus.run_for(2.0)
    campus.tap = None
    from nuage.network.fabric_event import FrameReceived

    hello = next(frame for frame in stolen if frame[12:14] == b"\x22\xf4" and frame[18] == 17)
    campus.give(0, FrameReceived(PortNumber(1), hello))
    news = {entry.news for entry in campus.nodes[0].log}
    assert news & {FabricNews.SECOND_NEIGHBOUR, FabricNews.MALFORMED}
    assert [n.state for n in campus.nodes[0].rbridge.view().neighbours] == ["report"]


def test_a_dead_daemon_is_waited_for_while_its_plane_forwards() -> None:
    """A leaf and a transit RBridge: killed for 60 s, tenants' frames go on, nicknames stay."""
    campus = Campus(13)
    for number in range(4):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    for number in range(3):
        campus.connect(number, number + 1)
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    nicknames = [node.rbridge.nickname for node in campus.nodes]
    campus.kill(0)
    campus.kill(2)
    for second in range(60):
        for number in (0, 3):
            mark = f"<{number} at {second}>".encode()
            campus.from_guest(number, ports[number], frame_of(number, BROADCAST, mark))
            campus.run_for(0.5)
            assert len(deliveries(campus, mark)) == 3, mark
    for number in (0, 2):
        wish = NicknameWish(remembered=nicknames[number])
        campus.restart(number, RBridgeConfig(system_id(number), f"rb{number}", nickname=wish))
        for step in range(40):
            mark = f"<{number} restart {step}>".encode()
            campus.from_guest(3, ports[3], frame_of(3, BROADCAST, mark))
            campus.run_for(0.05)
            assert len(deliveries(campus, mark)) == 3, mark
        assert not campus.nodes[number].rbridge.restarting
    campus.run_for(SETTLED_S)
    assert [node.rbridge.nickname for node in campus.nodes] == nicknames
    assert len(databases(campus)) == 1
    assert len(trees(campus)) == 1
    downs = [e for node in campus.nodes for e in node.log if e.news is FabricNews.ADJACENCY_DOWN]
    assert downs == []
    assert FabricNews.NEIGHBOUR_RESTARTED in {e.news for e in campus.nodes[1].log}


def test_no_frame_is_lost_while_all_daemons_come_back_one_after_the_other() -> None:
    """As after an upgrade: who is back knows nothing yet of those that are not."""
    campus = Campus(15)
    for number in range(5):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    for number in range(4):
        campus.connect(number, number + 1)
    ports = attach_all(campus)
    campus.run_until(SETTLED_S)
    nicknames = [node.rbridge.nickname for node in campus.nodes]
    for number in range(5):
        campus.kill(number)
    campus.run_for(30.0)
    for number in range(5):
        wish = NicknameWish(remembered=nicknames[number])
        campus.restart(number, RBridgeConfig(system_id(number), f"rb{number}", nickname=wish))
        for step in range(30):
            mark = f"<{number} back {step}>".encode()
            campus.from_guest(0, ports[0], frame_of(0, BROADCAST, mark))
            campus.run_for(0.05)
            assert len(deliveries(campus, mark)) == 4, mark
    campus.run_for(SETTLED_S)
    assert [node.rbridge.nickname for node in campus.nodes] == nicknames
    assert not any(node.rbridge.restarting for node in campus.nodes)
    assert len(databases(campus)) == 1


def test_what_is_named_and_never_speaks_is_not_waited_for_for_long() -> None:
    campus = Campus(16)
    for number in range(3):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    for number in range(2):
        campus.connect(number, number + 1)
    attach_all(campus)
    campus.run_until(SETTLED_S)
    nicknames = [node.rbridge.nickname for node in campus.nodes]
    for number in range(3):
        campus.kill(number)
    for number in range(2):
        wish = NicknameWish(remembered=nicknames[number])
        campus.restart(number, RBridgeConfig(system_id(number), f"rb{number}", nickname=wish))
    campus.run_for(5.0)
    assert campus.nodes[0].rbridge.restarting
    campus.run_for(70.0)
    assert not campus.nodes[0].rbridge.restarting
    left = {e.nickname for e in campus.nodes[0].rbridge.table if isinstance(e, FibEntry)}
    assert left == {nicknames[1]}


def test_a_link_that_dies_while_its_far_daemon_is_away_is_noticed_at_once() -> None:
    campus = Campus(14)
    for number in range(3):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    cables = [campus.connect(number, (number + 1) % 3) for number in range(3)]
    campus.run_until(SETTLED_S)
    campus.kill(1)
    campus.run_for(5.0)
    assert campus.nodes[0].rbridge.view().neighbours[0].state == "report"
    campus.lose(cables[0])
    campus.run_for(0.2)
    assert campus.nodes[0].rbridge.view().neighbours[0].state == "down"


def test_a_neighbour_that_never_returns_is_given_up() -> None:
    campus = Campus(15)
    for number in range(2):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    campus.connect(0, 1)
    campus.run_until(SETTLED_S)
    campus.kill(1)
    campus.run_for(119.0)
    assert campus.nodes[0].rbridge.view().neighbours[0].state == "report"
    campus.run_for(12.0)  # it is known to be away after 9 s at most
    assert campus.nodes[0].rbridge.view().neighbours[0].state == "down"


def test_a_trace_names_each_rbridge_on_the_way() -> None:
    campus = Campus(16)
    for number in range(5):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    for number in range(4):
        campus.connect(number, number + 1)
    campus.run_until(4.0)
    target = campus.nodes[4].rbridge.nickname
    computed = campus.nodes[0].rbridge.path_to(target)
    assert [hop.hostname for hop in computed] == ["rb0", "rb1", "rb2", "rb3", "rb4"]
    assert computed[0].choices == ("rb1",)
    campus.give(0, TraceAsked(target, trace_id=77))
    campus.run_for(0.5)
    seen = {answer.hop: answer.hostname for answer in campus.nodes[0].traced}
    assert {hop: seen[hop] for hop in range(4)} == {0: "rb1", 1: "rb2", 2: "rb3", 3: "rb4"}
    assert {seen[hop] for hop in range(4, 16)} == {"rb4"}


def test_a_guest_cannot_speak_as_a_rbridge() -> None:
    """A channel frame from an access port goes nowhere."""
    campus = Campus(17)
    for number in range(2):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    campus.connect(0, 1)
    ports = attach_all(campus)
    campus.run_until(4.0)
    for dmac in (BROADCAST, bytes.fromhex("0180c2000042"), guest_mac(1)):
        frame = dmac + guest_mac(0) + b"\x89\x46" + b"<evil>".ljust(46, b".")
        campus.from_guest(0, ports[0], frame)
    campus.run_for(0.2)
    assert deliveries(campus, b"<evil>") == {}
    assert campus.nodes[0].plane.counters().drops[Drop.BRIDGE_CONTROL] == 3


def test_a_campus_of_sixty_four_agrees_before_and_after_losses() -> None:
    campus = random_campus(64, 64, 40, bfd=None)
    ports = attach_all(campus)
    campus.run_until(4.0)
    for cable in campus.prng.sample(campus.cables[63:], 8):
        campus.cut(cable)
    campus.run_for(1.0)
    assert len(databases(campus)) == 1
    assert len(trees(campus)) == 1
    for number in (0, 21, 63):
        mark = f"<{number}>".encode()
        campus.from_guest(number, ports[number], frame_of(number, BROADCAST, mark))
        campus.run_for(0.1)
        assert deliveries(campus, mark) == {n: 1 for n in range(64) if n != number}
