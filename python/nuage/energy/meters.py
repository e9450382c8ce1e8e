"""Readings of a node's power: which to believe, how old, how sure.

Sources, best first: the PDU's outlet, the node's BMC, RAPL (processors and memory only), the
model (power curve at the load seen). `NodeMeters` keeps the last accepted reading of each and
answers with the best that is not silent.

Rules for bad data; a refused reading names its rule, and the next source serves meanwhile:

- `not_a_number`: NaN or infinite.
- `negative`: a node does not feed the grid.
- `above_nameplate`: more than the power supply can draw.
- `out_of_order`: not later than the source's last reading.
- `jump`: more than `jump_watts` from the last reading of the source. A real step confirms
  itself: the next reading near the refused one is accepted.
- `silent`: no accepted reading of the source for `silent_s`; it is passed over.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from math import isfinite
from typing import Final

SILENT_S: Final = 30.0  # twice the slowest meter's period (PDU, 15 s)
JUMP_SHARE: Final = 0.5  # of the nameplate, between two readings
CONFIRM_SHARE: Final = 0.1  # of the nameplate, between a jump and its confirmation
GAP_S_MAX: Final = 120.0  # longer gaps are bridged, and counted apart


class MeterSource(IntEnum):
    """Where a reading comes from; lower is better."""

    OUTLET = 0
    BMC = 1
    RAPL = 2
    MODEL = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """Watts of a node at a moment."""

    source: MeterSource
    power_watts: float
    read_s: float

    def age_s(self, now_s: float) -> float:
        """Return how old the reading is."""
        return now_s - self.read_s


@dataclass(frozen=True, slots=True)
class RefusedReading:
    """A reading that was not believed, and why."""

    reading: Reading
    rule: str
    reason: str


@dataclass(slots=True)
class NodeMeters:
    """The meters of one node; `nameplate_watts` is what its supplies can draw at most."""

    nameplate_watts: float
    silent_s: float = SILENT_S
    _last: dict[MeterSource, Reading] = field(default_factory=dict)
    _suspect: dict[MeterSource, Reading] = field(default_factory=dict)

    def take(self, reading: Reading) -> RefusedReading | None:
        """Accept a reading (None), or refuse it by a rule."""
        rule, reason = self._broken_rule(reading)
        if rule:
            return RefusedReading(reading, rule, reason)
        self._last[reading.source] = reading
        self._suspect.pop(reading.source, None)
        return None

    def best(self, now_s: float) -> Reading | None:
        """Return the last reading of the best source that is not silent."""
        for source in MeterSource:
            reading = self._last.get(source)
            if reading is not None and reading.age_s(now_s) <= self.silent_s:
                return reading
        return None

    def silent(self, now_s: float) -> tuple[MeterSource, ...]:
        """Return the sources that once read and no longer do."""
        return tuple(s for s, r in sorted(self._last.items()) if r.age_s(now_s) > self.silent_s)

    def _broken_rule(self, reading: Reading) -> tuple[str, str]:
        watts = reading.power_watts
        if not (isfinite(watts) and isfinite(reading.read_s)):
            return "not_a_number", f"{watts} W at {reading.read_s}"
        if watts < 0:
            return "negative", f"{watts:g} W"
        if watts > self.nameplate_watts:
            return "above_nameplate", f"{watts:g} W of {self.nameplate_watts:g} W"
        last = self._last.get(reading.source)
        if last is None:
            return "", ""
        if reading.read_s <= last.read_s:
            return "out_of_order", f"read {last.read_s - reading.read_s:g} s before the last"
        step = abs(watts - last.power_watts)
        if step <= JUMP_SHARE * self.nameplate_watts:
            return "", ""
        suspect = self._suspect.get(reading.source)
        near = CONFIRM_SHARE * self.nameplate_watts
        if suspect is not None and abs(watts - suspect.power_watts) <= near:
            return "", ""
        self._suspect[reading.source] = reading
        return "jump", f"{step:g} W from the last reading; a second one would confirm it"


@dataclass(slots=True)
class EnergyCounter:
    """A counter of microjoules that wraps (RAPL's `energy_uj`), as joules since the first look.

    Lower than before means a wrap, if the power that implies is possible; else the counter
    was reset (reboot, driver reload): nothing is added, and `reset_count` rises.
    """

    range_uj: int
    power_watts_max: float
    joules: float = 0.0
    wrap_count: int = 0
    reset_count: int = 0
    _last: tuple[int, float] | None = None

    def look(self, value_uj: int, read_s: float) -> float:
        """Take the counter's value; return the joules added since the last look."""
        before = self._last
        self._last = (value_uj, read_s)
        if before is None:
            return 0.0
        added_uj = value_uj - before[0]
        wrapped = added_uj < 0
        if wrapped:
            added_uj += self.range_uj + 1
        elapsed_s = read_s - before[1]
        if added_uj < 0 or added_uj / 1e6 > self.power_watts_max * max(elapsed_s, 0.0):
            self.reset_count += 1
            return 0.0
        self.wrap_count += wrapped
        self.joules += added_uj / 1e6
        return added_uj / 1e6


@dataclass(slots=True)
class EnergyIntegral:
    """Joules from readings of watts: trapezes between neighbours.

    A gap longer than `gap_s_max` is bridged with the mean of its ends, and counted apart:
    `bridged_joules` says how much of the sum nobody measured.
    """

    gap_s_max: float = GAP_S_MAX
    measured_joules: float = 0.0
    bridged_joules: float = 0.0
    _last: Reading | None = None

    @property
    def joules(self) -> float:
        """All of it."""
        return self.measured_joules + self.bridged_joules

    def take(self, reading: Reading) -> float:
        """Take an accepted reading; return the joules since the one before."""
        before = self._last
        if before is not None and reading.read_s < before.read_s:
            return 0.0
        self._last = reading
        if before is None:
            return 0.0
        elapsed_s = reading.read_s - before.read_s
        joules = (before.power_watts + reading.power_watts) / 2.0 * elapsed_s
        if elapsed_s > self.gap_s_max:
            self.bridged_joules += joules
        else:
            self.measured_joules += joules
        return joules
