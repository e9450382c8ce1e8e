"""Echoes: the witness that a trunk carries frames both ways (RFC 5880 §6.4, echo function).

Theory of operation: every `interval` a few bytes of ours go to the neighbour, whose *plane* sends
them back; our own plane notes when they return. No process of either end is woken
by them, so they may be frequent where control packets are not. An echo that is not back after
the silence allowed, counted from when it was sent, ends the adjacency. Echoes that we were too
busy to send prove nothing, and a neighbour that has never returned one is not judged by them.

All watches of a process send on one grid of time: one wake-up for all trunks.

::

    id:64 (drawn anew for each adjacency) | sent, nanoseconds of our monotonic clock:64
"""

import struct
from collections import deque
from random import Random
from typing import Final

from nuage.network.bfd import BfdTimers

ECHO_BYTES: Final = 16
ECHO_TIMERS: Final = BfdTimers(interval_us=50_000, multiplier=3)
GRACE_SHARE: Final = 0.1  # of the interval: the last of `multiplier` echoes has time to return
ROUND_TRIP_KEPT: Final = 0.9  # of the longest seen, each time: a path may grow shorter
OPEN_MAX: Final = 64  # echoes under way; more say nothing new
_FORM: Final = struct.Struct(">8sQ")


class EchoWatch:
    """The echoes of one trunk."""

    def __init__(self, timers: BfdTimers, prng: Random) -> None:
        self._id = prng.randbytes(8)
        self._period_s = timers.interval_us / 1e6
        self._silence_s = timers.interval_us * (timers.multiplier - 1 + GRACE_SHARE) / 1e6
        self._next_s = float("-inf")
        self._open_ns: deque[int] = deque()
        self._round_trip_s = 0.0
        self._heard = False

    def due(self, now_s: float) -> bytes | None:
        """Return what an echo to be sent now holds, and count it as sent."""
        if now_s < self._next_s:
            return None
        self._next_s = (now_s // self._period_s + 1) * self._period_s
        if self._next_s <= now_s:  # the quotient was rounded down
            self._next_s += self._period_s
        sent_ns = int(now_s * 1e9)
        if len(self._open_ns) == OPEN_MAX:
            self._open_ns.pop()
        self._open_ns.append(sent_ns)
        return _FORM.pack(self._id, sent_ns)

    def returned(self, content: bytes, at_s: float) -> None:
        """Take an echo that came back at `at_s`; one that is not ours changes nothing."""
        if len(content) < ECHO_BYTES:
            return
        mark, sent_ns = _FORM.unpack_from(content)
        if mark != self._id:
            return
        self._heard = True
        while self._open_ns and self._open_ns[0] <= sent_ns:
            self._open_ns.popleft()
        took_s = max(0.0, at_s - sent_ns / 1e9)
        self._round_trip_s = max(took_s, self._round_trip_s * ROUND_TRIP_KEPT)

    def _silent_at_s(self) -> float:
        if not self._heard or not self._open_ns:
            return float("inf")
        return self._open_ns[0] / 1e9 + self._silence_s + self._round_trip_s

    @property
    def heard(self) -> bool:
        """Tell whether the neighbour returns echoes at all."""
        return self._heard

    def silent(self, now_s: float) -> bool:
        """Tell whether echoes used to come back and do not any more."""
        return now_s >= self._silent_at_s()

    def alive(self, now_s: float) -> bool:
        """Tell whether echoes come back."""
        return self._heard and not self.silent(now_s)

    def next_deadline_s(self) -> float:
        """Return when `due` or `silent` has something to say."""
        return min(self._next_s, self._silent_at_s())
