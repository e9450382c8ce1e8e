"""An event loop whose time is a number: the product's own coroutines, with nothing to wait for.

Whatever sleeps or times out on this loop is woken in the order of its moment, at once. There
are no sockets, threads or child processes on it; a run from one seed is the same each time.
"""

import asyncio
import gc
import selectors
from collections.abc import Coroutine
from typing import Final, TypeVar

T = TypeVar("T")

EPOCH_S: Final = 1_800_000_000.0  # true time 0 on a wall clock without skew


class Stuck(Exception):
    """Nothing can ever happen again, and the run is not over: a bug in it or in what it runs."""


class _TimeJumps(selectors.SelectSelector):
    """Says that nothing came in, and moves time on instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.time_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("every task waits, and no timer is set")
        self.time_s += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's loop on virtual time."""

    def __init__(self) -> None:
        self._jumps = _TimeJumps()
        super().__init__(self._jumps)

    def time(self) -> float:
        """Return the true time of the run in seconds."""
        return self._jumps.time_s


def run_virtually(main: Coroutine[object, object, T]) -> T:
    """Run `main` to its end on a fresh virtual loop, and cancel what it left."""
    loop = VirtualLoop()
    was_collecting = gc.isenabled()
    gc.disable()  # a run is short, and half of what collecting looks at is waiting tasks
    try:
        return loop.run_until_complete(main)
    finally:
        if was_collecting:
            gc.enable()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class SkewedClock:
    """A machine's clock: its own rate and its own idea of what o'clock it is (`nuage.clock`)."""

    def __init__(self, *, rate: float = 1.0, offset_s: float = 0.0) -> None:
        self.rate = rate
        self.offset_s = offset_s
        self._loop = asyncio.get_running_loop()

    def now_s(self) -> float:
        """Return the wall clock, as wrong as it is."""
        return EPOCH_S + self.offset_s + self._loop.time() * self.rate

    def monotonic_s(self) -> float:
        """Return seconds that run at this machine's rate."""
        return self._loop.time() * self.rate

    async def sleep(self, delay_s: float) -> None:
        """Wait `delay_s` seconds of this clock."""
        await asyncio.sleep(delay_s / self.rate)
