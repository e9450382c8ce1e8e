"""The paper's dynamic metric: what a node drew while it served requests (§II-E).

`P_dyn = Σ p_k · dt_k / Σ dt_k` over the power samples inside the windows of requests: the measured
power, weighted by time. It follows the machine as it ages, warms and fills, which a calibration
made once does not. A request is a VM, and its window the time that it runs here. GreenDIET's tasks
end after minutes and were counted when they did; a VM may stay for a year, so that what runs now
counts as far as it got, and a window ends after an hour and the next one begins.

A node without history has none: 0 requests, and the `green` policy goes by its calibration, or
explores it on purpose where there is none.

Beside it stands the utilisation of the same windows, averaged alike: equal machines that served at
different loads drew differently, and only with it can they be told for equal.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

WINDOWS_KEPT: Final = 100  # as many requests as GreenDIET's SeD keeps
WINDOW_S_MAX: Final = 3600.0


@dataclass(slots=True)
class _Window:
    """What one request saw of its node."""

    joules: float = 0.0
    seconds: float = 0.0
    busy_s: float = 0.0

    def add(self, other: "_Window", sign: float = 1.0) -> None:
        self.joules += sign * other.joules
        self.seconds += sign * other.seconds
        self.busy_s += sign * other.busy_s


@dataclass(slots=True)
class RequestPower:
    """The windows of the requests that a node serves, and of those that it served last."""

    windows_kept: int = WINDOWS_KEPT
    requests_begun: int = 0
    _running: dict[str, _Window] = field(default_factory=dict)
    _ended: deque[_Window] = field(default_factory=deque)
    _sum: _Window = field(default_factory=_Window)  # of `_ended`
    _since_s: float = 0.0
    _watts: float | None = None
    _utilisation: float = 1.0

    def observe(
        self, now_s: float, watts: float | None, utilisation: float, running: Collection[str]
    ) -> None:
        """Note what runs and what is drawn from now on; None: no meter says, nothing counts."""
        self._pass(now_s)
        for request in [request for request in self._running if request not in running]:
            self._keep(self._running.pop(request))
        for request in running:
            window = self._running.get(request)
            if window is None:
                self.requests_begun += 1
                self._running[request] = _Window()
            elif window.seconds >= WINDOW_S_MAX:
                self._keep(window)
                self._running[request] = _Window()
        self._watts, self._utilisation = watts, utilisation

    def _pass(self, now_s: float) -> None:
        lasted_s, self._since_s = now_s - self._since_s, now_s
        if self._watts is None or lasted_s <= 0:
            return
        passed = _Window(self._watts * lasted_s, lasted_s, self._utilisation * lasted_s)
        for window in self._running.values():
            window.add(passed)

    def _keep(self, window: _Window) -> None:
        if window.seconds <= 0:
            return
        self._ended.append(window)
        self._sum.add(window)
        if len(self._ended) > self.windows_kept:
            self._sum.add(self._ended.popleft(), -1.0)

    def means(self) -> tuple[float, float]:
        """Return the metric in watts, and the load at which it was drawn, 0 to 1.

        As observed last; 0 W at full load without history.
        """
        total = _Window()
        if self._ended:
            total.add(self._sum)
        for window in self._running.values():
            total.add(window)
        if total.seconds <= 0:
            return 0.0, 1.0
        return total.joules / total.seconds, total.busy_s / total.seconds

    @property
    def requests_served(self) -> int:
        """Requests that have begun here; 0 as long as nothing was measured of any."""
        has_history = bool(self._ended) or any(w.seconds > 0 for w in self._running.values())
        return self.requests_begun if has_history else 0
