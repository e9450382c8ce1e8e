"""Token buckets: how much of something a neighbour, a guest or a client may send."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second on average, so many at once."""

    per_s: float
    burst: float


class TokenBucket:
    """A bucket that fills with time. `dropped` counts what was refused."""

    __slots__ = ("_rate", "_stamp_s", "_tokens", "dropped")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self._rate = rate
        self._tokens = rate.burst
        self._stamp_s = now_s
        self.dropped = 0

    def take(self, now_s: float, amount: float = 1.0) -> bool:
        """Tell whether `amount` may pass now; if so it is gone from the bucket."""
        gained = (now_s - self._stamp_s) * self._rate.per_s
        self._tokens = min(self._rate.burst, self._tokens + gained)
        self._stamp_s = now_s
        if self._tokens < amount:
            self.dropped += 1
            return False
        self._tokens -= amount
        return True


HUSH_KEYS_MAX: Final = 256


class Hush:
    """Lets one of many equal events through in a while, so that a flood is logged, not flooded.

    Keys may come from outside: of more than `HUSH_KEYS_MAX` in a while the rest is not heard.
    """

    __slots__ = ("_interval_s", "_last_s")

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._last_s: dict[object, float] = {}  # the oldest first

    def may_say(self, key: object, now_s: float) -> bool:
        """Tell whether `key` was silent long enough to be heard again."""
        while self._last_s:
            oldest, last_s = next(iter(self._last_s.items()))
            if now_s - last_s < self._interval_s:
                break
            del self._last_s[oldest]
        if key in self._last_s or len(self._last_s) >= HUSH_KEYS_MAX:
            return False
        self._last_s[key] = now_s
        return True
