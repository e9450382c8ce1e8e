"""The network between simulated machines: delay, loss, partitions and crashes, from one seed.

What a channel promises is kept: a call that is answered took effect once; one that is not may
have, or may not. A line that is down at first looks slow (`TimedOut`), then cut
(`SiteUnreachable`), as with heartbeats over TCP.
"""

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final, NoReturn, TypeVar

from nuage.errors import SiteUnreachable, TimedOut
from nuage.ids import SiteId

T = TypeVar("T")

NOTICED_AFTER_S: Final = 3.0  # a dead line is known to be dead from then on


class Machine:
    """A process that can crash: what it does ends with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_up = True
        self.boots = 0
        self._work: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in this process."""
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    def crash(self) -> None:
        """End the process at once, as ``kill -9`` does."""
        self.is_up = False
        self.boots += 1
        for task in list(self._work):
            task.cancel()


class Wires:
    """Lines between named ends; every line is up until it is cut."""

    def __init__(self, prng: Random, *, slow_share: float = 0.0) -> None:
        self._prng = prng
        self.slow_share = slow_share
        self._cut_since: dict[frozenset[str], float] = {}

    def cut(self, a: str, b: str) -> None:
        """Cut the line between two ends."""
        now_s = asyncio.get_running_loop().time()
        self._cut_since.setdefault(frozenset((a, b)), now_s)

    def heal(self, a: str = "", b: str = "") -> None:
        """Heal one line, or all."""
        if a:
            self._cut_since.pop(frozenset((a, b)), None)
        else:
            self._cut_since.clear()

    def is_up(self, a: str, b: str) -> bool:
        """Tell whether bytes pass between two ends now."""
        return a == b or frozenset((a, b)) not in self._cut_since

    def delay_s(self) -> float:
        """Draw the delay of one message."""
        if self.slow_share and self._prng.random() < self.slow_share:
            return self._prng.uniform(0.3, 2.5)
        return self._prng.uniform(0.001, 0.04)

    async def call(
        self,
        a: str,
        server: Machine,
        act: Callable[[], Coroutine[Any, Any, T]],
        *,
        timeout_s: float,
        doing: str,
    ) -> T:
        """Have `server` do `act` for `a`, over the line between them.

        Raises:
            SiteUnreachable: the line or the server is known to be down; nothing was done.
            TimedOut: no answer; whether it was done is unknown.
        """
        self.require_line(a, server, doing)
        ends_s = asyncio.get_running_loop().time() + timeout_s
        # Written out, for a run makes tens of thousands of calls: no time-out is set for a wait
        # whose length is known, and the other process's task is not wrapped in one more.
        await self._carry(a, server, doing, ends_s, timeout_s)
        task = server.spawn(act())
        await _ended(task, ends_s)
        if not task.done() or task.cancelled():
            # That process ended, or is still at it: no answer comes.
            await self._give_up(doing, ends_s, timeout_s)
        await self._carry(a, server, doing, ends_s, timeout_s)
        return task.result()

    async def exchange(
        self, a: str, server: Machine, act: Callable[[], T], *, timeout_s: float, doing: str
    ) -> T:
        """Have `server` do at once what takes no time; else as `call`."""
        self.require_line(a, server, doing)
        ends_s = asyncio.get_running_loop().time() + timeout_s
        await self._carry(a, server, doing, ends_s, timeout_s)
        answer = act()
        await self._carry(a, server, doing, ends_s, timeout_s)
        return answer

    async def _carry(
        self, a: str, server: Machine, doing: str, ends_s: float, timeout_s: float
    ) -> None:
        """Take one message over the line; what is lost is waited for until the end."""
        left_s = ends_s - asyncio.get_running_loop().time()
        delay_s = self.delay_s()
        if delay_s >= left_s:
            await self._give_up(doing, ends_s, timeout_s)
        await asyncio.sleep(delay_s)
        if not self.is_up(a, server.name) or not server.is_up:
            await self._give_up(doing, ends_s, timeout_s)

    async def _give_up(self, doing: str, ends_s: float, timeout_s: float) -> NoReturn:
        await asyncio.sleep(ends_s - asyncio.get_running_loop().time())
        raise TimedOut(doing, after_s=timeout_s)

    def require_line(self, a: str, server: Machine, doing: str) -> None:
        """Raise SiteUnreachable when the line is known to be down."""
        since_s = self._cut_since.get(frozenset((a, server.name)))
        now_s = asyncio.get_running_loop().time()
        known_cut = since_s is not None and now_s - since_s > NOTICED_AFTER_S
        if known_cut or not server.is_up:
            raise SiteUnreachable(SiteId(server.name), doing=doing)


async def _ended(task: asyncio.Task[Any], ends_s: float) -> None:
    """Wait for another process's task, until `ends_s` at the longest."""
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    def look(ended: asyncio.Task[Any]) -> None:
        if not ended.cancelled():
            ended.exception()  # looked at, also when nobody waits for the answer any more
        wake()

    timer = loop.call_at(ends_s, wake)
    task.add_done_callback(look)
    try:
        await woken
    finally:
        timer.cancel()
