"""What all drivers share: reads from memory, watches that pull, a tail of recent events.

A watcher holds a position, not a queue: it pulls what comes after its position from the
tail in memory, or from the driver when it is further behind. A slow watcher therefore
costs nothing, and is told `Compacted` when history has passed it by.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import islice
from typing import Final

from nuage.catalogue.store import EVENTS_PER_READ_MAX, Change, Compacted, Event
from nuage.catalogue.table import Table
from nuage.errors import InvalidRequest, NotFound, Unavailable
from nuage.ids import SiteId
from nuage.model.record import Record

# Enough for a feed that was cut for some minutes at hundreds of writes a second.
TAIL_EVENTS_MAX: Final = 65_536


class CachedCatalogue(ABC):
    """Reads and watches over a table that a driver keeps up to date (`_publish`)."""

    def __init__(self, site: SiteId, *, tail_events_max: int = TAIL_EVENTS_MAX) -> None:
        self._table = Table(site)
        self._incarnation = ""
        self._compacted_revision = 0
        self._tail: deque[Event] = deque(maxlen=tail_events_max)
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False

    @property
    def site(self) -> SiteId:
        """Return the site whose catalogue this is."""
        return self._table.site

    @property
    def incarnation(self) -> str:
        """Return the name of this history."""
        return self._incarnation

    @property
    def revision(self) -> int:
        """Return the revision of the last change that can be read here."""
        return self._table.revision

    @property
    def compacted_revision(self) -> int:
        """Return the smallest revision that `watch` can resume from."""
        return self._compacted_revision

    async def get(self, kind: str, id: str) -> Record:
        """Return the record; NotFound when there is none here."""
        record = self._table.find(kind, id)
        if record is None:
            raise NotFound(kind, id)
        return record

    async def find(self, kind: str, id: str) -> Record | None:
        """Return the record, or None."""
        return self._table.find(kind, id)

    async def list(
        self,
        kind: str,
        *,
        iaas_id: str | None = None,
        name: str | None = None,
        where: Callable[[Record], bool] | None = None,
    ) -> tuple[Record, ...]:
        """Return the records of a kind, by id."""
        return self._table.select(kind, iaas_id=iaas_id, name=name, where=where)

    def all_records(self) -> tuple[int, tuple[Record, ...]]:
        """Return the revision and every record at it."""
        return self._table.revision, self._table.all_records()

    async def watch(self, after_revision: int) -> AsyncIterator[Event]:
        """Yield each event after `after_revision`, in order, for ever."""
        position = after_revision
        while True:
            events = await self.changes_after(position)
            for event in events:
                yield event
                position = event.revision
            if not events:
                await self.wait_beyond(position)

    async def changes_after(
        self, revision: int, *, limit: int = EVENTS_PER_READ_MAX
    ) -> tuple[Event, ...]:
        """Return up to `limit` events after `revision`; Compacted when they are not kept."""
        if limit < 1:
            raise InvalidRequest("at least one event is read", field="limit")
        self._require_kept(revision)
        behind_count = self._table.revision - revision
        if behind_count == 0:
            return ()
        if behind_count <= len(self._tail):
            return self._of_tail(behind_count, limit)
        events = await self._load_events(revision, limit)
        if not events or events[0].revision != revision + 1:  # compacted while we were reading
            raise Compacted(asked_revision=revision, oldest_revision=self._compacted_revision)
        return events

    async def wait_beyond(self, revision: int) -> int:
        """Wait until the catalogue's revision is above `revision`; return it."""
        while self._table.revision <= revision:
            if self._closed:
                raise Unavailable(f"the catalogue of {self.site} is closed")
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:  # cancelled before anything changed
                    self._waiters.remove(waiter)
        return self._table.revision

    def _require_kept(self, revision: int) -> None:
        if not self._compacted_revision <= revision <= self._table.revision:
            raise Compacted(asked_revision=revision, oldest_revision=self._compacted_revision)

    def _of_tail(self, behind_count: int, limit: int) -> tuple[Event, ...]:
        """Return up to `limit` of the tail's last `behind_count` events, oldest first.

        Whoever keeps up is near its end, and a deque is walked from an end: so from that one.
        """
        newest_first = islice(reversed(self._tail), max(0, behind_count - limit), behind_count)
        return tuple(reversed(tuple(newest_first)))

    def _publish(self, events: Iterable[Event]) -> None:
        """Show durable events to readers and watchers; on the event loop only."""
        for event in events:
            self._table.apply(event)
            self._tail.append(event)
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    @abstractmethod
    async def write(self, changes: Sequence[Change]) -> tuple[Record, ...]:
        """Make the changes durable as one atomic unit."""

    @abstractmethod
    async def _load_events(self, after_revision: int, limit: int) -> tuple[Event, ...]:
        """Return stored events after a revision that the tail does not reach back to."""


def records_of(events: Iterable[Event]) -> tuple[Record, ...]:
    """Return the records that a unit's events put."""
    return tuple(event.record for event in events if event.record is not None)
