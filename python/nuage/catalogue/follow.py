"""The loops around the feed's machines: serve our changes, follow the others'.

The transport is a parameter: `subscribe(site, request)` gives the messages of one
subscription and ends, or raises, when the connection does.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol, TypeAlias, runtime_checkable

import structlog

from nuage.catalogue.feed import (
    BUSY_S,
    HEARTBEAT_S,
    LINGER_BUSY_S,
    LINGER_S,
    FeedItems,
    FeedMessage,
    FeedReader,
    FeedRequest,
    FeedSender,
    FeedStatus,
    Refused,
)
from nuage.catalogue.replica import Replicas
from nuage.catalogue.store import Catalogue, Compacted
from nuage.clock import Clock
from nuage.errors import NuageError
from nuage.ids import SiteId

_LOG: Final = structlog.get_logger(__name__)

SILENCE_S: Final = 5 * HEARTBEAT_S  # a subscription that says nothing for so long is ended
RETRY_S: Final = 0.25
RETRY_S_MAX: Final = 2.0  # a healed link is found within this; a try costs one packet
REFUSALS_LOGGED_MAX: Final = 100  # of each feed: a wrong sender must not fill the log

Subscribe: TypeAlias = Callable[[SiteId, FeedRequest], AsyncIterator[FeedMessage]]


async def serve_feed(
    catalogue: Catalogue, request: FeedRequest, *, clock: Clock, items: FeedItems | None = None
) -> AsyncIterator[FeedMessage]:
    """Yield our feed from the reader's cursor on, for ever; `items` are shared by all readers."""
    sender = FeedSender(catalogue.site, catalogue.incarnation, items)
    position = request.after_revision
    sent_s = -BUSY_S
    snapshot_due = not sender.can_resume(
        request,
        head_revision=catalogue.revision,
        compacted_revision=catalogue.compacted_revision,
    )
    if not snapshot_due:
        yield sender.heartbeat(head_revision=catalogue.revision, now_s=clock.now_s())
    while True:
        if snapshot_due:
            position, records = catalogue.all_records()
            for message in sender.snapshot(position, records, clock.now_s()):
                yield message
            snapshot_due = False
        try:
            events = await catalogue.changes_after(position)
        except Compacted:
            snapshot_due = True
            continue
        if events:
            head_revision = catalogue.revision
            for message in sender.batches(events, head_revision=head_revision, now_s=clock.now_s()):
                yield message
            position = events[-1].revision
            sent_s = clock.monotonic_s()
            continue
        async for beat in _heartbeats(catalogue, sender, position, clock):
            yield beat
        is_busy = clock.monotonic_s() - sent_s < BUSY_S
        await clock.sleep(LINGER_BUSY_S if is_busy else LINGER_S)


async def serve_replica(
    replicas: Replicas, site: SiteId, *, clock: Clock
) -> AsyncIterator[FeedMessage]:
    """Yield what is known here of `site`, as it would say it itself: one snapshot, or nothing.

    For a site that lost its catalogue: what it told the others after its last back-up.
    """
    table, cursor = replicas.table(site), replicas.cursor(site)
    if table is None or not cursor.incarnation:
        return
    sender = FeedSender(site, cursor.incarnation)
    for message in sender.snapshot(cursor.revision, table.all_records(), clock.now_s()):
        yield message


async def _heartbeats(
    catalogue: Catalogue, sender: FeedSender, position: int, clock: Clock
) -> AsyncIterator[FeedMessage]:
    """Yield heartbeats until something changed."""
    changed = asyncio.create_task(catalogue.wait_beyond(position))
    try:
        while True:
            pause = asyncio.create_task(clock.sleep(HEARTBEAT_S))
            try:
                await asyncio.wait({changed, pause}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                pause.cancel()
            if changed.done():
                changed.result()
                return
            yield sender.heartbeat(head_revision=catalogue.revision, now_s=clock.now_s())
    finally:
        changed.cancel()


@runtime_checkable
class Closable(Protocol):
    """A stream that wants to be told when nobody reads it any more."""

    async def aclose(self) -> None:
        """End the subscription."""
        ...


class FeedFollower:
    """Keeps the replicas of other sites up to date. One `follow` task a site."""

    def __init__(
        self, replicas: Replicas, *, reader: SiteId, subscribe: Subscribe, clock: Clock
    ) -> None:
        self._replicas = replicas
        self._reader = reader
        self._subscribe = subscribe
        self._clock = clock
        self._readers: dict[SiteId, FeedReader] = {}
        self._failures: dict[SiteId, str] = {}

    def statuses(self) -> tuple[FeedStatus, ...]:
        """Return how each feed stands, by site."""
        now_s, monotonic_s = self._clock.now_s(), self._clock.monotonic_s()
        return tuple(
            reader.status(
                now_s=now_s, monotonic_s=monotonic_s, failure=self._failures.get(site, "")
            )
            for site, reader in sorted(self._readers.items())
        )

    def age_s(self, site: SiteId) -> float | None:
        """Return the seconds since `site` was last heard, None: never."""
        now_s, monotonic_s = self._clock.now_s(), self._clock.monotonic_s()
        reader = self._readers.get(site)
        if reader is not None:
            return reader.age_s(now_s=now_s, monotonic_s=monotonic_s)
        heard_s = self._replicas.cursor(site).heard_s
        return max(0.0, now_s - heard_s) if heard_s else None

    async def follow(self, site: SiteId) -> None:
        """Follow one site for ever; cancel the task to stop."""
        reader = FeedReader(site, reader=self._reader, cursor=self._replicas.cursor(site))
        self._readers[site] = reader
        retry_s = RETRY_S
        try:
            while True:
                before = reader.cursor
                await self._follow_once(reader)
                moved = reader.cursor != before
                retry_s = RETRY_S if moved else min(2 * retry_s, RETRY_S_MAX)
                reader.restart(self._replicas.cursor(site))
                await self._clock.sleep(retry_s)
        finally:
            reader.restart(self._replicas.cursor(site))

    async def _follow_once(self, reader: FeedReader) -> None:
        """Follow one subscription to its end; the reason is kept for the status."""
        stream: AsyncIterator[FeedMessage] | None = None
        try:
            stream = self._subscribe(reader.site, reader.request())
            while True:
                async with asyncio.timeout(SILENCE_S):
                    message = await anext(stream)
                self._failures.pop(reader.site, None)
                await self._store(reader, message)
        except StopAsyncIteration:
            self._failures[reader.site] = "the feed ended"
        except TimeoutError:
            self._failures[reader.site] = f"nothing heard for {SILENCE_S:g} s"
        except NuageError as error:
            self._failures[reader.site] = error.message
            _LOG.info("feed interrupted", site=reader.site, error=error.message)
        finally:
            if isinstance(stream, Closable):
                await stream.aclose()

    async def _store(self, reader: FeedReader, message: FeedMessage) -> None:
        effects = reader.receive(
            message, now_s=self._clock.now_s(), monotonic_s=self._clock.monotonic_s()
        )
        for effect in effects:
            if isinstance(effect, Refused):
                if reader.refused_count <= REFUSALS_LOGGED_MAX:
                    _LOG.warning(
                        "feed item refused", site=effect.site, kind=effect.kind, id=effect.id,
                        rule=effect.rule, reason=effect.reason,
                    )  # fmt: skip
            else:
                await self._replicas.apply(effect)
