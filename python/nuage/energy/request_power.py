"""The paper's dynamic metric: what a node drew while it served requests (§II-E).

`P_dyn = Σ p_k · dt_k / Σ dt_k` over the power samples inside the windows of the last
requests: the measured power, weighted by time. It follows the machine as it ages, warms and
fills, which a calibration made once does not. A node without history has none: 0 requests,
and the `green` policy goes by its calibration, or explores it on purpose where there is none.

Beside it stands the utilisation of the same windows, averaged alike: equal machines that served at
different loads drew differently, and only with it can they be told for equal.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

REQUESTS_KEPT: Final = 100  # as GreenDIET's SeD keeps
SAMPLES_KEPT: Final = 20_000  # 100 requests of ten minutes at one sample per three seconds


@dataclass(slots=True)
class RequestPower:
    """Samples of power and load, and the windows of the requests served on one node."""

    requests_kept: int = REQUESTS_KEPT
    _samples: deque[tuple[float, float, float]] = field(
        default_factory=lambda: deque(maxlen=SAMPLES_KEPT)
    )
    _windows: deque[tuple[float, float, float]] = field(default_factory=deque)
    requests_served: int = 0

    def sample(self, read_s: float, power_watts: float, utilisation: float = 1.0) -> None:
        """Take a sample that is not older than the last; it holds until the next one."""
        if not self._samples or read_s >= self._samples[-1][0]:
            self._samples.append((read_s, power_watts, utilisation))

    def served(self, begin_s: float, end_s: float) -> None:
        """Count a request that ran from `begin_s` to `end_s`, with what its window saw."""
        self.requests_served += 1
        joules = seconds = busy_s = 0.0
        samples = []
        for sample in reversed(self._samples):  # those before it began say nothing of it
            samples.append(sample)
            if sample[0] <= begin_s:
                break
        samples.reverse()
        for index, (read_s, watts, utilisation) in enumerate(samples):
            until_s = samples[index + 1][0] if index + 1 < len(samples) else end_s
            inside_s = min(until_s, end_s) - max(read_s, begin_s)
            if inside_s > 0:
                joules += watts * inside_s
                seconds += inside_s
                busy_s += utilisation * inside_s
        if seconds > 0:
            self._windows.append((joules, seconds, busy_s))
            if len(self._windows) > self.requests_kept:
                self._windows.popleft()

    def forget(self, before_s: float) -> None:
        """Drop the samples that no request which began at `before_s` or later will look at."""
        while len(self._samples) > 1 and self._samples[1][0] <= before_s:
            self._samples.popleft()

    @property
    def mean_power_watts(self) -> float:
        """The metric: joules over seconds of the windows kept; 0.0 without history."""
        seconds = sum(window[1] for window in self._windows)
        return sum(window[0] for window in self._windows) / seconds if seconds else 0.0

    @property
    def mean_utilisation(self) -> float:
        """The load at which that was drawn, 0 to 1; 1.0 without history."""
        seconds = sum(window[1] for window in self._windows)
        return sum(window[2] for window in self._windows) / seconds if seconds else 1.0


def requests_per_joule(request_count: int, power_watts: float, window_s: float) -> float:
    """Return requests served per joule over the window; higher is greener (paper §II-E)."""
    joules = power_watts * window_s
    return request_count / joules if joules > 0 else 0.0
