"""A node's watts by RAPL: the processors' own energy counters, where no outlet and no BMC speaks.

`/sys/class/powercap/intel-rapl:N` (AMD's too) counts microjoules and wraps. `psys`, where there is
one, is the whole platform; else every package and its memory are summed: cores and graphics are
within the package. What RAPL cannot see (disks, fans, the loss of the power supply) makes it less
certain than a meter; the site knows (`energy.meters`). Reading it needs root on current kernels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nuage.clock import Clock
from nuage.energy.meters import EnergyCounter
from nuage.vnode.sed import PowerReading

POWERCAP: Final = Path("/sys/class/powercap")
ZONE_WATTS_MAX: Final = 2_000.0  # a package that draws more was reset, not wrapped
EVERY_S: Final = 1.0  # counters move every millisecond; reports ask more often than that helps
STALE_S: Final = 20.0


@dataclass(slots=True)
class _Zone:
    file: Path
    counter: EnergyCounter


class RaplMeter:
    """Mean watts between two looks at the counters (`vnode.sed.Meter`)."""

    def __init__(self, clock: Clock, powercap: Path = POWERCAP) -> None:
        self._clock = clock
        self._zones = tuple(_zones(powercap))
        self._looked_s: float | None = None
        self._last: PowerReading | None = None

    @property
    def is_there(self) -> bool:
        """Tell whether this machine has counters that we may read."""
        return bool(self._zones)

    def __call__(self) -> PowerReading | None:
        """Return the last reading; None before the second look, and once it is stale."""
        now_s = self._clock.monotonic_s()
        if self._looked_s is None or now_s - self._looked_s >= EVERY_S:
            self._look(now_s)
        last = self._last
        return None if last is None or self._clock.now_s() - last.read_s > STALE_S else last

    def _look(self, now_s: float) -> None:
        """Read every counter; a window in which one was reset or unreadable says nothing."""
        before_s, self._looked_s = self._looked_s, now_s
        joules, is_whole = 0.0, bool(self._zones)
        for zone in self._zones:
            resets = zone.counter.reset_count
            try:
                value_uj = int(zone.file.read_text())
            except (OSError, ValueError):
                is_whole = False
                continue
            joules += zone.counter.look(value_uj, now_s)
            is_whole = is_whole and zone.counter.reset_count == resets
        if is_whole and before_s is not None:
            self._last = PowerReading(
                watts=joules / (now_s - before_s), source="rapl", read_s=self._clock.now_s()
            )


def _zones(powercap: Path) -> Iterator[_Zone]:
    """Yield what adds up to the machine: `psys`, or packages and their memory."""
    named = {
        path: name
        for path in sorted(powercap.glob("intel-rapl:*"))
        if (name := _text(path / "name")) is not None
    }
    wanted = [path for path, name in named.items() if name == "psys"]
    if not wanted:
        wanted = [
            path for path, name in named.items() if name.startswith("package") or name == "dram"
        ]
    for path in wanted:
        value, largest = _text(path / "energy_uj"), _text(path / "max_energy_range_uj")
        if value is not None and largest is not None and largest.isdigit():
            yield _Zone(path / "energy_uj", EnergyCounter(int(largest), ZONE_WATTS_MAX))


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
