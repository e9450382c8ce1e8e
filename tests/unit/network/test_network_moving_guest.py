"""A guest on its way: nothing is delivered before it is there, and then everybody learns."""

from nuage.ids import PortId
from nuage.network.forwarding import (
    FloodEntry,
    Label,
    MacEntry,
    Nickname,
    PortNumber,
    PruneEntry,
    SelfEntry,
    TreeEntry,
)
from nuage.network.gratuitous import ETHERTYPE_RARP, announcement
from nuage.network.segment import AccessPort, SegmentSwitch
from nuage.network.trill_frame import decode_trill
from nuage.network.wire import mac_bytes

RED = Label(0x100)
GUEST = "06:00:00:00:00:01"


def port(*, present: bool, leaving: bool = False) -> AccessPort:
    return AccessPort(
        port=PortNumber(7), port_id=PortId("port-7"), label=RED, mac=GUEST,
        addresses=("10.0.0.2",), present=present, leaving=leaving,
    )  # fmt: skip


def test_a_port_whose_guest_is_elsewhere_takes_nothing_and_keeps_its_segment() -> None:
    switch = SegmentSwitch()
    before = switch.update([port(present=False)], [])
    assert not any(isinstance(entry, MacEntry) for entry in before.set)
    assert FloodEntry(RED, ()) in before.set
    assert switch.labels == {RED}
    after = switch.update([port(present=True)], [])
    assert set(after.set) == {
        MacEntry(RED, mac_bytes(GUEST), port=PortNumber(7)),
        FloodEntry(RED, (PortNumber(7),)),
    }


def test_an_arrival_opens_its_port_alone_and_the_next_update_has_nothing_to_add() -> None:
    switch = SegmentSwitch()
    switch.update([port(present=False)], [])
    opened = switch.arrive(PortNumber(7))
    assert set(opened.set) == {
        MacEntry(RED, mac_bytes(GUEST), port=PortNumber(7)),
        FloodEntry(RED, (PortNumber(7),)),
    }
    assert not switch.arrive(PortNumber(7))
    assert not switch.arrive(PortNumber(8))
    assert not switch.update([port(present=True)], [])


def test_a_guest_that_stands_still_before_it_leaves_is_flooded_to_but_not_listed() -> None:
    """So that its announcement from elsewhere is learned, and what comes before it is kept."""
    switch = SegmentSwitch()
    switch.update([port(present=True)], [])
    still = switch.update([port(present=True, leaving=True)], [])
    assert still.removed == (MacEntry(RED, mac_bytes(GUEST), port=PortNumber(7)),)
    assert still.set == ()


def test_an_announcement_goes_over_the_branches_that_want_the_segment() -> None:
    me, tree = Nickname(0x11), Nickname(0x22)
    entries = (
        SelfEntry(me, tree),
        TreeEntry(tree, (PortNumber(1), PortNumber(2), PortNumber(3))),
        PruneEntry(tree, RED, (PortNumber(1),)),
        PruneEntry(tree, Label(0), (PortNumber(3),)),
        PruneEntry(tree, Label(0x200), (PortNumber(2),)),
    )
    macs = {PortNumber(n): bytes((2, 0, 0, 0, 0, n)) for n in (1, 2, 3)}
    sent = announcement(entries, RED, mac_bytes(GUEST), macs)
    assert [number for number, _ in sent] == [1, 3]
    frame = decode_trill(sent[0][1])
    assert (frame.multi, frame.ingress, frame.egress, frame.label) == (True, me, tree, RED)
    assert (frame.inner_smac, frame.ethertype) == (mac_bytes(GUEST), ETHERTYPE_RARP)


def test_without_a_nickname_or_a_tree_nothing_is_announced() -> None:
    nobody = (SelfEntry(Nickname(0), Nickname(0)),)
    assert announcement(nobody, RED, mac_bytes(GUEST), {}) == []
