"""Bidirectional forwarding detection: packet and session (RFC 5880), asynchronous mode.

Theory of operation: each side sends control packets and declares how often it will (jittered
by up to a quarter) and how often it can bear to receive. Silence for `multiplier` times the
agreed interval takes the session Down; so does the peer's saying so. Before Up, packets go
once a second, and at once on each change of state. Authentication of BFD is not used: the
packets ride in the trunk, which is encrypted or private (docs/design/network.md).

::

    version:3 diag:5 | state:2 P F C A D M | multiplier:8 | length:8
    my discriminator:32 | your discriminator:32
    desired min tx:32 | required min rx:32 | required min echo rx:32     (microseconds)
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from random import Random
from typing import Final

from nuage.network.wire import MalformedFrame, Reader

BFD_BYTES: Final = 24
EARLY_SHARE: Final = 0.05  # of an interval
SLOW_INTERVAL_US: Final = 1_000_000  # RFC 5880 §6.8.3: not faster than this until Up


class BfdState(IntEnum):
    """Session states, as on the wire."""

    ADMIN_DOWN = 0
    DOWN = 1
    INIT = 2
    UP = 3


class BfdDiag(IntEnum):
    """Why a session last went down."""

    NONE = 0
    DETECTION_EXPIRED = 1
    NEIGHBOUR_DOWN = 3
    PATH_DOWN = 5
    ADMIN_DOWN = 7


@dataclass(frozen=True, slots=True)
class BfdPacket:
    """One control packet."""

    state: BfdState
    multiplier: int
    mine: int
    yours: int
    tx_interval_us: int
    rx_interval_us: int
    diag: int = 0
    poll: bool = False
    final: bool = False


def encode_bfd(packet: BfdPacket) -> bytes:
    """Return the 24 bytes of a control packet."""
    return struct.pack(
        ">BBBBIIIII",
        1 << 5 | packet.diag,
        packet.state << 6 | packet.poll << 5 | packet.final << 4,
        packet.multiplier,
        BFD_BYTES,
        packet.mine,
        packet.yours,
        packet.tx_interval_us,
        packet.rx_interval_us,
        0,
    )


def decode_bfd(data: bytes) -> BfdPacket:
    """Take a control packet apart, with the checks of RFC 5880 §6.8.6 that need no session.

    Raises:
        MalformedFrame: version, length, authentication, multipoint, zero fields.
    """
    reader = Reader(data)
    first, second, multiplier, length = reader.u8(), reader.u8(), reader.u8(), reader.u8()
    if first >> 5 != 1:
        raise MalformedFrame("bfd_version")
    if second & 0x05:
        raise MalformedFrame("bfd_flags", "authentication or multipoint")
    if length != BFD_BYTES or len(data) < BFD_BYTES:
        raise MalformedFrame("bfd_length")
    mine, yours, tx_us, rx_us = reader.u32(), reader.u32(), reader.u32(), reader.u32()
    state = BfdState(second >> 6)
    if multiplier == 0 or mine == 0 or (yours == 0 and state > BfdState.DOWN):
        raise MalformedFrame("bfd_field")
    return BfdPacket(
        state, multiplier, mine, yours, tx_us, rx_us, first & 0x1F, bool(second & 0x20),
        bool(second & 0x10),
    )  # fmt: skip


# What a packet's state does to ours (RFC 5880 §6.8.6); an absent pair changes nothing.
TRANSITIONS: Final = {
    (BfdState.DOWN, BfdState.DOWN): BfdState.INIT,
    (BfdState.DOWN, BfdState.INIT): BfdState.UP,
    (BfdState.INIT, BfdState.INIT): BfdState.UP,
    (BfdState.INIT, BfdState.UP): BfdState.UP,
    (BfdState.UP, BfdState.DOWN): BfdState.DOWN,
    (BfdState.INIT, BfdState.ADMIN_DOWN): BfdState.DOWN,
    (BfdState.UP, BfdState.ADMIN_DOWN): BfdState.DOWN,
}


@dataclass(frozen=True, slots=True)
class BfdTimers:
    """How often, and how many may be missed: 50 ms × 3 detects in 150 ms."""

    interval_us: int = 50_000
    multiplier: int = 3


class BfdSession:
    """One session. Give it packets and the time; take packets to send and changes of state."""

    def __init__(self, mine: int, timers: BfdTimers, prng: Random, now_s: float) -> None:
        self.state = BfdState.DOWN
        self.diag = BfdDiag.NONE
        self._mine = mine
        self._timers = timers
        self._prng = prng
        self._yours = 0
        self._peer_tx_us = SLOW_INTERVAL_US
        self._peer_rx_us = 1
        self._peer_multiplier = 3
        self._polling = False
        self._next_send_s = now_s
        self._heard_s: float | None = None

    @property
    def name(self) -> bytes:
        """Return the session's number as the peer says it."""
        return self._mine.to_bytes(4, "big")

    @property
    def _early_s(self) -> float:
        """Return how much early a packet may go when we are awake anyway: a part of the jitter."""
        return self._tx_interval_us() / 1e6 * EARLY_SHARE

    def _tx_interval_us(self) -> int:
        mine = self._timers.interval_us
        return mine if self.state is BfdState.UP else max(mine, SLOW_INTERVAL_US)

    @property
    def detection_s(self) -> float:
        """Return after how much silence the session goes down."""
        interval_us = max(self._timers.interval_us, self._peer_tx_us)
        return self._peer_multiplier * interval_us / 1e6

    def next_deadline_s(self) -> float:
        """Return when `tick` has something to do."""
        if self._heard_s is None:
            return self._next_send_s
        return min(self._next_send_s, self._heard_s + self.detection_s)

    def early_deadline_s(self) -> float:
        """Return when `tick` may have something to do, if we are awake anyway."""
        return min(self.next_deadline_s(), self._next_send_s - self._early_s)

    def receive(self, packet: BfdPacket, now_s: float) -> list[BfdPacket]:
        """Take one packet; return what must be answered at once."""
        if packet.yours not in (0, self._mine):
            return []
        self._yours = packet.mine
        self._peer_tx_us = packet.tx_interval_us
        self._peer_rx_us = packet.rx_interval_us
        self._peer_multiplier = packet.multiplier
        self._heard_s = now_s
        if packet.final:
            self._polling = False
        changed = self._change(TRANSITIONS.get((self.state, packet.state)))
        answers = []
        if packet.poll:
            answers.append(self._packet(final=True))
        if changed:
            answers.append(self._packet())
            self._schedule(now_s)
        return answers

    def _change(self, to: BfdState | None) -> bool:
        if to is None or to is self.state:
            return False
        self.state = to
        if to is BfdState.UP:
            self.diag = BfdDiag.NONE
            self._polling = True  # we send faster from now on: tell so until it is confirmed
        elif to is BfdState.DOWN:
            self.diag = BfdDiag.NEIGHBOUR_DOWN
            self._polling = False
        return True

    def tick(self, now_s: float) -> list[BfdPacket]:
        """Let time pass; return what is to be sent."""
        if self._heard_s is not None and now_s >= self._heard_s + self.detection_s:
            self._heard_s = None
            self._yours = 0
            self._peer_rx_us = 1
            if self.state in (BfdState.INIT, BfdState.UP):
                self.state = BfdState.DOWN
                self.diag = BfdDiag.DETECTION_EXPIRED
                self._polling = False
                self._next_send_s = now_s
        if now_s < self._next_send_s - self._early_s:
            return []
        self._schedule(now_s)
        return [self._packet()] if self._peer_rx_us else []  # 0: the peer wants none

    def _schedule(self, now_s: float) -> None:
        interval_us = max(self._tx_interval_us(), self._peer_rx_us)
        self._next_send_s = now_s + interval_us / 1e6 * self._prng.uniform(0.75 + EARLY_SHARE, 0.9)

    def _packet(self, *, final: bool = False) -> BfdPacket:
        return BfdPacket(
            state=self.state,
            multiplier=self._timers.multiplier,
            mine=self._mine,
            yours=self._yours,
            tx_interval_us=self._tx_interval_us(),
            rx_interval_us=self._timers.interval_us,
            diag=self.diag,
            poll=self._polling and not final,
            final=final,
        )
