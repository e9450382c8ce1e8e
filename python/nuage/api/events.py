"""The live event stream: a bounded ring that readers follow from any number it still holds."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from nuage.clock import Clock
from nuage.ids import SiteId

EVENTS_KEPT_MAX = 10_000  # about 3 MB; a day of an idle federation, minutes of a stormy one


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
        self._kept: deque[tuple[int, Announcement]] = deque(maxlen=kept_max)
        self._next_index = 0
        self._next_number = 1
        self._changed = asyncio.Event()

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
        return line

    def take(self, line: Announcement) -> None:
        """Put another site's line on the stream."""
        self._kept.append((self._next_index, line))
        self._next_index += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def last(self, count: int) -> list[Announcement]:
        """Return the last `count` lines, oldest first."""
        return [line for _, line in list(self._kept)[-count:]]

    async def follow(self, *, last: int = 0, own_only: bool = False) -> AsyncIterator[Announcement]:
        """Yield the last `last` lines, then each new one; a reader too slow misses the oldest."""
        index = self._next_index - min(last, len(self._kept))
        while True:
            changed = self._changed
            for at, line in list(self._kept):
                if at >= index:
                    index = at + 1
                    if not own_only or line.site == self._site:
                        yield line
            if index >= self._next_index:
                await changed.wait()
