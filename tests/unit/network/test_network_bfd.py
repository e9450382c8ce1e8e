"""BFD sessions: up in two exchanges, down by silence or by word, polls confirmed."""

from random import Random

from nuage.network.bfd import BfdDiag, BfdPacket, BfdSession, BfdState, BfdTimers


class Wire:
    """Two sessions and what flies between them."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.ends = [BfdSession(n + 1, BfdTimers(), Random(n), 0.0) for n in range(2)]
        self.lost = False
        self.sent: list[tuple[float, int, BfdPacket]] = []

    def deliver(self, source: int, packets: list[BfdPacket]) -> None:
        for packet in packets:
            self.sent.append((self.now_s, source, packet))
            if not self.lost:
                answers = self.ends[1 - source].receive(packet, self.now_s)
                self.deliver(1 - source, answers)

    def run(self, until_s: float) -> None:
        while True:
            when_s, who = min((end.next_deadline_s(), n) for n, end in enumerate(self.ends))
            if when_s > until_s:
                break
            self.now_s = max(self.now_s, when_s)
            self.deliver(who, self.ends[who].tick(self.now_s))
        self.now_s = until_s

    def states(self) -> list[BfdState]:
        return [end.state for end in self.ends]


def test_two_ends_come_up_and_send_fast_only_then() -> None:
    wire = Wire()
    wire.run(2.0)
    assert wire.states() == [BfdState.UP, BfdState.UP]
    slow = [p for _, _, p in wire.sent if p.state is not BfdState.UP]
    assert all(p.tx_interval_us >= 1_000_000 for p in slow)
    fast = [when_s for when_s, source, p in wire.sent if source == 0 and when_s > 1.5]
    assert 10 <= len(fast) <= 15, "50 ms with jitter"
    assert not any(p.poll for when_s, _, p in wire.sent if when_s > 1.0), "polls were confirmed"


def test_silence_takes_both_down_within_150_ms() -> None:
    wire = Wire()
    wire.run(2.0)
    wire.lost = True
    wire.run(2.15)
    assert wire.states() == [BfdState.DOWN, BfdState.DOWN]
    assert {end.diag for end in wire.ends} == {BfdDiag.DETECTION_EXPIRED}


def test_one_lost_packet_takes_nothing_down() -> None:
    wire = Wire()
    wire.run(2.0)
    wire.lost = True
    wire.run(2.09)
    wire.lost = False
    wire.run(3.0)
    assert wire.states() == [BfdState.UP, BfdState.UP]


def test_the_word_down_is_believed() -> None:
    wire = Wire()
    wire.run(2.0)
    down = BfdPacket(BfdState.DOWN, 3, 1, 2, 1_000_000, 50_000)
    wire.ends[1].receive(down, wire.now_s)
    assert wire.ends[1].state is BfdState.DOWN
    assert wire.ends[1].diag is BfdDiag.NEIGHBOUR_DOWN


def test_a_packet_for_another_session_is_not_ours() -> None:
    wire = Wire()
    wire.run(2.0)
    stranger = BfdPacket(BfdState.DOWN, 3, 9, 77, 1_000_000, 50_000)
    assert wire.ends[0].receive(stranger, wire.now_s) == []
    assert wire.states() == [BfdState.UP, BfdState.UP]


def test_netlink_tells_carrier() -> None:
    from nuage.network.runner import LinkState, parse_link_messages

    def message(kind: int, index: int, flags: int) -> bytes:
        import struct

        return struct.pack("=IHHIIBxHiII", 32, kind, 0, 0, 0, 0, 0, index, flags, 0)

    data = message(16, 3, 0x10043) + message(16, 4, 0x1003) + message(17, 5, 0x10043)
    assert parse_link_messages(data) == [
        LinkState(3, True), LinkState(4, False), LinkState(5, False, gone=True),
    ]  # fmt: skip
    assert parse_link_messages(data[:40]) == [LinkState(3, True)]
    assert parse_link_messages(b"\0" * 64) == []
