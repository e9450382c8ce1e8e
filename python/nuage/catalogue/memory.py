"""The catalogue without a disk: for tests and the simulation."""

import asyncio
import os
from collections.abc import Sequence

from nuage.catalogue.cached import CachedCatalogue, records_of
from nuage.catalogue.store import Change, Compacted, Event
from nuage.catalogue.table import prepare
from nuage.clock import Clock
from nuage.errors import Unavailable
from nuage.ids import EntropySource, SiteId
from nuage.model.record import Record


class MemoryCatalogue(CachedCatalogue):
    """Keeps everything in memory; a write is "durable" when it returns."""

    def __init__(self, site: SiteId, *, clock: Clock, entropy: EntropySource = os.urandom) -> None:
        super().__init__(site)
        self._clock = clock
        self._incarnation = entropy(8).hex()
        self._events: list[Event] = []

    async def write(self, changes: Sequence[Change]) -> tuple[Record, ...]:
        """Store one atomic unit."""
        if self._closed:
            raise Unavailable(f"the catalogue of {self.site} is closed")
        staged = self._table.stage(prepare(changes), self._clock.now_s())
        self._events.extend(staged.events)
        self._tail.extend(staged.events)
        self._wake()
        await asyncio.sleep(0)  # as any driver: others run before the caller sees the result
        return records_of(staged.events)

    async def history(self, kind: str, id: str) -> tuple[Event, ...]:
        """Return the kept events of one object, oldest first."""
        return tuple(event for event in self._events if (event.kind, event.id) == (kind, id))

    async def compact(self, *, keep_count: int, keep_age_s: float) -> int:
        """Forget old events."""
        oldest_s = self._clock.now_s() - keep_age_s
        kept = self._events[-keep_count:] if keep_count > 0 else []
        fresh = (index for index, event in enumerate(kept) if event.changed_s >= oldest_s)
        kept = kept[next(fresh, len(kept)) :]
        self._events = kept
        self._compacted_revision = kept[0].revision - 1 if kept else self.revision
        while self._tail and self._tail[0].revision <= self._compacted_revision:
            self._tail.popleft()
        return self._compacted_revision

    async def close(self) -> None:
        """Refuse further writes."""
        self._closed = True
        self._wake()

    async def _load_events(self, after_revision: int, limit: int) -> tuple[Event, ...]:
        if not self._events:
            raise Compacted(asked_revision=after_revision, oldest_revision=self.revision)
        start = after_revision + 1 - self._events[0].revision
        return tuple(self._events[start : start + limit])
