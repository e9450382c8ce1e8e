"""What came for a guest that stood still: made whole, and carried to where it went."""

import struct

from nuage.network.forwarding import (
    FibEntry,
    Label,
    NextHop,
    Nickname,
    PortNumber,
    SelfEntry,
)
from nuage.network.stray import NEEDS_CHECKSUM, VNET_HEADER, made_whole, sent_after
from nuage.network.trill_frame import decode_trill
from nuage.network.wire import internet_checksum

MACS = bytes.fromhex("060000000001060000000002")
RED = Label(0x100)
HERE, THERE = Nickname(0x11), Nickname(0x22)
PSEUDO = struct.pack(">4s4sBBH", bytes(4), bytes(4), 0, 17, 12)


def datagram(checksum: int) -> bytes:
    return struct.pack(">HHHH4s", 999, 53, 12, checksum, b"word")


def on_its_way(flags: int, gso_type: int, frame: bytes) -> bytes:
    return VNET_HEADER.pack(flags, gso_type, 0, 0, 34, 6) + frame


def test_a_checksum_that_was_left_to_the_hardware_is_filled_in() -> None:
    head = MACS + b"\x08\x00" + bytes(20)
    partial = ~internet_checksum(PSEUDO) & 0xFFFF
    whole = made_whole(on_its_way(NEEDS_CHECKSUM, 0, head + datagram(partial)))
    assert whole is not None
    assert whole[:34] == head
    assert internet_checksum(PSEUDO + whole[34:]) == 0
    assert made_whole(on_its_way(0, 0, head + datagram(7))) == head + datagram(7)


def test_what_cannot_be_made_whole_is_left_out() -> None:
    frame = MACS + b"\x08\x00" + bytes(20)
    assert made_whole(on_its_way(0, 1, frame)) is None, "a super-frame"
    assert made_whole(on_its_way(NEEDS_CHECKSUM, 0, frame)) is None, "no place for the checksum"
    assert made_whole(b"\0" * 12) is None


def test_strays_go_one_way_to_the_new_place_under_our_nickname() -> None:
    macs = {PortNumber(2): b"\x02" * 6}
    hops = (
        NextHop(PortNumber(1), b"\xa1" * 6, b"\x01" * 6),
        NextHop(PortNumber(2), b"\xa2" * 6, b"\x02" * 6),
    )
    entries = (SelfEntry(HERE, HERE), FibEntry(THERE, hops))
    frame = MACS + b"\x08\x00" + b"a packet"
    sent = sent_after(entries, RED, THERE, [frame, frame], macs)
    assert [port for port, _ in sent] == [2, 2], "the first hop's trunk is not there any more"
    told = decode_trill(sent[0][1])
    assert (told.multi, told.egress, told.ingress, told.label) == (False, THERE, HERE, RED)
    assert told.outer_dmac + told.outer_smac == b"\xa2" * 6 + b"\x02" * 6
    assert told.inner_dmac + told.inner_smac + b"\x08\x00" + told.payload == frame


def test_without_a_way_or_a_nickname_nothing_is_sent() -> None:
    frame = MACS + b"\x08\x00"
    hop = FibEntry(THERE, (NextHop(PortNumber(1), b"\xa1" * 6, b"\x01" * 6),))
    macs = {PortNumber(1): b"\x01" * 6}
    assert sent_after((SelfEntry(HERE, HERE),), RED, THERE, [frame], macs) == []
    assert sent_after((SelfEntry(Nickname(0), Nickname(0)), hop), RED, THERE, [frame], macs) == []
    assert sent_after((SelfEntry(HERE, HERE), hop), RED, THERE, [frame], {}) == []
