"""What a plane is told, in what order: a reverse-path entry that moves rests in between."""

from nuage.network.applied_table import REST_S, AppliedTable
from nuage.network.forwarding import (
    PORT_NONE,
    AdjacencyEntry,
    Entry,
    FibEntry,
    ForwardingDelta,
    NextHop,
    Nickname,
    PortNumber,
    RpfEntry,
    table,
)

TREE, INGRESS = Nickname(1), Nickname(2)
MAC = b"\x02\0\0\0\0\1"


def by(port: int) -> RpfEntry:
    return RpfEntry(TREE, INGRESS, PortNumber(port))


def applied(*entries: Entry, now_s: float = 0.0) -> AppliedTable:
    made = AppliedTable(())
    made.become(table(entries), now_s)
    return made


def test_the_first_entry_of_an_ingress_is_written_at_once() -> None:
    made = AppliedTable(())
    assert made.become(table([by(1)]), 0.0) == ForwardingDelta(set=(by(1),))
    assert made.next_deadline_s() == float("inf")


def test_another_port_is_written_after_a_rest() -> None:
    made = applied(by(1))
    assert made.become(table([by(2)]), 5.0) == ForwardingDelta(set=(by(PORT_NONE),))
    assert made.next_deadline_s() == 5.0 + REST_S
    assert not made.tick(5.0 + REST_S / 2)
    assert made.tick(5.0 + REST_S) == ForwardingDelta(set=(by(2),))
    assert made.next_deadline_s() == float("inf")


def test_who_changes_its_mind_at_rest_waits_no_longer_for_it() -> None:
    made = applied(by(1))
    made.become(table([by(2)]), 5.0)
    assert not made.become(table([by(3)]), 5.0 + REST_S / 2)
    assert made.tick(5.0 + REST_S) == ForwardingDelta(set=(by(3),))


def test_back_to_the_port_of_before_needs_no_rest_and_away_again_a_whole_one() -> None:
    made = applied(by(1))
    made.become(table([by(2)]), 5.0)
    assert made.become(table([by(1)]), 5.01) == ForwardingDelta(set=(by(1),))
    assert made.next_deadline_s() == float("inf")
    made.become(table([by(2)]), 5.02)
    assert made.next_deadline_s() == 5.02 + REST_S


def test_an_ingress_that_goes_and_comes_by_another_port_rests_what_is_left() -> None:
    made = applied(by(1))
    assert made.become({}, 5.0) == ForwardingDelta(removed=(by(1),))
    assert made.next_deadline_s() == float("inf"), "nothing waits for it"
    assert made.become(table([by(2)]), 5.05) == ForwardingDelta(set=(by(PORT_NONE),))
    assert made.next_deadline_s() == 5.0 + REST_S
    gone = applied(by(1))
    gone.become({}, 5.0)
    assert gone.become(table([by(2)]), 5.0 + REST_S) == ForwardingDelta(set=(by(2),))


def test_a_rest_that_an_earlier_life_began_is_over() -> None:
    """A daemon takes longer to come back."""
    made = AppliedTable([by(PORT_NONE)])
    assert made.become(table([by(2)]), 0.0) == ForwardingDelta(set=(by(2),))


def test_a_lost_neighbour_and_backups_change_no_rest() -> None:
    near = AdjacencyEntry(PortNumber(2), MAC)
    hop = NextHop(PortNumber(2), MAC, MAC)
    path = FibEntry(INGRESS, (hop,))
    made = applied(by(1), near, path)
    made.become(table([by(2), near, path]), 5.0)
    assert made.without_neighbour(near.port) == ForwardingDelta(removed=(near,))
    better = FibEntry(INGRESS, (hop,), backups=(hop,))
    assert made.with_paths([better]) == ForwardingDelta(set=(better,))
    assert made.tick(5.0 + REST_S) == ForwardingDelta(set=(by(2),))
    assert set(made.entries.values()) == {better, by(2)}
