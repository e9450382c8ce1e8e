"""The live event stream: a bounded ring that readers follow from any number it still holds."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import islice

from nuage.clock import Clock
from nuage.ids import SiteId

EVENTS_KEPT_MAX = 10_000  # about 3 MB; a day of an idle federation, minutes of a stormy one
OWN_LINGER_S = 0.05  # gathers a burst into one message to each other site; eyes are slower
OWN_LINES_MAX = 500  # in one message: some 150 KB, far below the channel's largest frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """One line of the stream. `number` rises by one per site since its controller started."""

    site: SiteId
    number: int
    at_s: float
    kind: str
    id: str
    what: str
    text: str
    request_id: str = ""


class EventRing:
    """Keeps the last announcements of this site and of those it hears."""

    def __init__(self, site: SiteId, clock: Clock, *, kept_max: int = EVENTS_KEPT_MAX) -> None:
        self._site = site
        self._clock = clock
        self._kept: deque[Announcement] = deque(maxlen=kept_max)
        self._next_index = 0  # of the line that comes next, counted since the start
        self._next_number = 1
        self._changed = asyncio.Event()
        self._own_changed = asyncio.Event()

    def announce(
        self, kind: str, object_id: str, what: str, text: str, request_id: str = ""
    ) -> Announcement:
        """Put a line of this site on the stream."""
        line = Announcement(
            site=self._site,
            number=self._next_number,
            at_s=self._clock.now_s(),
            kind=kind,
            id=object_id,
            what=what,
            text=text,
            request_id=request_id,
        )
        self._next_number += 1
        self.take(line)
        self._own_changed.set()
        self._own_changed = asyncio.Event()
        return line

    def take(self, line: Announcement) -> None:
        """Put another site's line on the stream."""
        self._kept.append(line)
        self._next_index += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def last(self, count: int) -> list[Announcement]:
        """Return the last `count` lines, oldest first."""
        newest_first = list(islice(reversed(self._kept), max(0, count)))
        return newest_first[::-1]

    async def follow(self, *, last: int = 0) -> AsyncIterator[Announcement]:
        """Yield the last `last` lines, then each new one; a reader too slow misses the oldest."""
        index = self._next_index - min(last, len(self._kept))
        while True:
            changed = self._changed
            lines, index = self.last(self._next_index - index), self._next_index
            for line in lines:
                yield line
            if index >= self._next_index:
                await changed.wait()

    async def follow_own(self) -> AsyncIterator[tuple[Announcement, ...]]:
        """Yield this site's new lines, together what is announced within `OWN_LINGER_S`."""
        number = self._next_number
        while True:
            changed = self._own_changed
            if number >= self._next_number:
                await changed.wait()
                await self._clock.sleep(OWN_LINGER_S)
            fresh = self._own_since(number)
            number = self._next_number
            for first in range(0, len(fresh), OWN_LINES_MAX):
                yield tuple(fresh[first : first + OWN_LINES_MAX])

    def _own_since(self, number: int) -> list[Announcement]:
        """Return this site's lines from `number` on that are still kept."""
        fresh: list[Announcement] = []
        for line in reversed(self._kept):
            if len(fresh) >= self._next_number - number:
                break
            if line.site == self._site:
                fresh.append(line)
        return fresh[::-1]
