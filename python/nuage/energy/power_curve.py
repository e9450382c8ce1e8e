"""A node's watts as a function of its CPU load, and what switching it off is worth.

Eleven points, 0 to 100 % in steps of ten, straight between them: SPECpower's form. Many
machines jump as soon as they do anything at all (56 to 78 W in the first tenth); where that
is known, `epsilon_watts` is the draw just above zero load, SimGrid's epsilon.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from nuage.errors import InvalidRequest

POINTS: Final = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerCurve:
    """Watts at 0, 10 … 100 % of CPU, and the energy of going off and coming back."""

    watts: tuple[float, ...]
    epsilon_watts: float | None = None
    off_watts: float = 0.0
    boot_time_s: float = 0.0
    boot_joules: float = 0.0
    shutdown_joules: float = 0.0

    def __post_init__(self) -> None:
        if len(self.watts) != POINTS:
            raise InvalidRequest(f"a curve has {POINTS} points", field="watts")
        if self.watts[0] < 0 or any(
            b < a for a, b in zip(self.watts, self.watts[1:], strict=False)
        ):
            raise InvalidRequest("watts are not negative and do not fall with load", field="watts")
        if self.epsilon_watts is not None and not (
            self.watts[0] <= self.epsilon_watts <= self.watts[1]
        ):
            raise InvalidRequest("epsilon lies between idle and 10 %", field="epsilon_watts")

    @property
    def idle_watts(self) -> float:
        """Watts at no load."""
        return self.watts[0]

    @property
    def peak_watts(self) -> float:
        """Watts at full load."""
        return self.watts[-1]

    def at(self, load: float) -> float:
        """Return watts at `load`, 0 to 1; loads outside are taken as the nearest end."""
        place = min(max(load, 0.0), 1.0) * (POINTS - 1)
        below = min(int(place), POINTS - 2)
        low = self.watts[below]
        if below == 0 and place > 0 and self.epsilon_watts is not None:
            low = self.epsilon_watts
        return low + (self.watts[below + 1] - low) * (place - below)

    def marginal_watts(self, load: float, added: float, *, is_off: bool = False) -> float:
        """Return what `added` load costs now; a node that is off has to idle first."""
        if is_off:
            return self.at(added) - self.off_watts
        return self.at(load + added) - self.at(load)

    def break_even_s(self) -> float:
        """Return how long a node must stay off to pay: (E_off + E_on) / (P_idle - P_off)."""
        saved_watts = self.idle_watts - self.off_watts
        if saved_watts <= 0:
            return inf
        return (self.shutdown_joules + self.boot_joules) / saved_watts


def line(idle_watts: float, peak_watts: float) -> PowerCurve:
    """Return the straight curve from idle to peak, for a node nobody has measured."""
    step = (peak_watts - idle_watts) / (POINTS - 1)
    return PowerCurve(watts=tuple(idle_watts + step * index for index in range(POINTS)))


# SPECpower_ssj2008 results, watts at 0 … 100 %. Two boxes with the same processors as the
# Taurus and Orion nodes of the GreenDIET runs (2 × Xeon E5-2630): the rest of the box is 60 %.
HUAWEI_RH2288_V2: Final = PowerCurve(
    watts=(56.2, 78.3, 87.1, 95.6, 102, 109, 123, 139, 159, 181, 205)
)
ACER_AT350_F2: Final = PowerCurve(watts=(96, 133, 147, 163, 181, 199, 219, 237, 272, 305, 323))
HP_ML110_G4: Final = PowerCurve(watts=(86, 89.4, 92.6, 96, 99.5, 102, 106, 108, 112, 114, 117))
HP_ML110_G5: Final = PowerCurve(watts=(93.7, 97, 101, 105, 110, 116, 121, 125, 129, 133, 135))


class CurveFit:
    """Refines a curve online from (load, watts) readings.

    Each reading moves the two points it lies between by `rate` of its error, shared by
    distance; points then are made not to fall with load (pooling adjacent violators). Points
    that were never seen move with their neighbours only as far as that needs.
    """

    def __init__(self, start: PowerCurve, *, rate: float = 0.1) -> None:
        if not 0 < rate <= 1:
            raise InvalidRequest("rate is above 0, at most 1", field="rate")
        self._curve = start
        self._points = list(start.watts)
        self._weights = [1e-3] * POINTS
        self._rate = rate
        self.reading_count = 0

    def take(self, load: float, watts: float) -> None:
        """Take one accepted reading."""
        place = min(max(load, 0.0), 1.0) * (POINTS - 1)
        below = min(int(place), POINTS - 2)
        above_share = place - below
        guess = self._points[below] + (self._points[below + 1] - self._points[below]) * above_share
        error = watts - guess
        for index, share in ((below, 1.0 - above_share), (below + 1, above_share)):
            self._points[index] = max(self._points[index] + self._rate * share * error, 0.0)
            self._weights[index] += share
        self.reading_count += 1

    def curve(self) -> PowerCurve:
        """Return the curve as known now."""
        return replace(
            self._curve, watts=_not_falling(self._points, self._weights), epsilon_watts=None
        )


def _not_falling(values: Sequence[float], weights: Sequence[float]) -> tuple[float, ...]:
    """Return the nearest (weighted) sequence that does not fall: pool adjacent violators."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        mean, total, count = value, weight, 1
        while blocks and blocks[-1][0] > mean:
            low, low_weight, low_count = blocks.pop()
            mean = (mean * total + low * low_weight) / (total + low_weight)
            total += low_weight
            count += low_count
        blocks.append((mean, total, count))
    return tuple(mean for mean, _, count in blocks for _ in range(count))
