"""An event loop whose time is a number: the product's own coroutines, with nothing to wait for.

Whatever sleeps or times out on this loop is woken in the order of its moment, at once. There
are no sockets, threads or child processes on it; a run from one seed is the same each time.
"""

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from heapq import heappop, heappush
from itertools import count
from typing import Final, TypeVar

T = TypeVar("T")

EPOCH_S: Final = 1_800_000_000.0  # true time 0 on a wall clock without skew


class Stuck(Exception):
    """Nothing can ever happen again, and the run is not over: a bug in it or in what it runs."""


class _Call(asyncio.TimerHandle):
    """A call that is due at a moment, or now."""

    __slots__ = ()

    def __init__(  # asyncio's asks the loop for its debug mode, and copies what it is given
        self,
        callback: Callable[..., object],
        args: tuple[object, ...],
        context: Context | None,
        when_s: float,
    ) -> None:
        self._callback: Callable[..., object] | None = callback
        self._args = args
        self._context = copy_context() if context is None else context
        self._cancelled = False
        self._when = when_s

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = None

    def run(self) -> None:
        """Make the call, unless it was cancelled."""
        if self._callback is not None:
            self._context.run(self._callback, *self._args)


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's loop on virtual time, without what only sockets, signals and threads need.

    A run makes tens of thousands of calls, each of some microseconds: what a loop does for each is
    a third of the run.
    """

    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._time_s = 0.0
        self._due_now: deque[_Call] = deque()
        self._due_later: list[tuple[float, int, _Call]] = []  # a heap; the number keeps the order
        self._numbers = count()

    def time(self) -> float:
        """Return the true time of the run in seconds."""
        return self._time_s

    def call_soon(
        self, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.Handle:
        """Call `callback` after all that is due already."""
        call = _Call(callback, args, context, self._time_s)
        self._due_now.append(call)
        return call

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: object,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call `callback` after `delay` seconds."""
        return self.call_at(self._time_s + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: object,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call `callback` at a moment, or now if that has passed."""
        call = _Call(callback, args, context, when)
        heappush(self._due_later, (when, next(self._numbers), call))
        return call

    def _run_once(self) -> None:
        """Move time on to the next call, and make all that are due."""
        due_now, due_later = self._due_now, self._due_later
        if not due_now and not self._stopping:
            while due_later and due_later[0][2].cancelled():
                heappop(due_later)
            if not due_later:
                raise Stuck("every task waits, and no timer is set")
            self._time_s = max(self._time_s, due_later[0][0])
            while due_later and due_later[0][0] <= self._time_s:
                due_now.append(heappop(due_later)[2])
        while due_now and not self._stopping:
            due_now.popleft().run()  # what it raises ends the run: a bug in it


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
