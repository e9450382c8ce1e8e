"""Feeds between sites: what is said, and both ends as machines (docs/protocols/feeds.md).

A site's feed is its own catalogue's changes in the order of their revisions. The reader
holds a cursor (incarnation, revision); the sender resumes after it, or sends a snapshot when
it cannot. Since revisions have no gaps, a reader knows when it missed something.

Fault model. Messages may be lost with their connection, come twice, or come from a peer that
is wrong: an item that the sender may not say is refused alone, counted, and the feed goes
on; a message out of order ends the subscription, and the next one resumes at the cursor. A
sender can only ever write into the replica that bears its own name.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from math import isfinite
from typing import Final, TypeAlias, assert_never
from zlib import crc32

import msgspec

from nuage.catalogue import codec
from nuage.catalogue.store import Event
from nuage.errors import CorruptData, RemoteProtocolError
from nuage.ids import SiteId
from nuage.model.record import KINDS, Record

HEARTBEAT_S: Final = 1.0  # bounds what the age of an idle site's replica shows
LINGER_S: Final = 0.005  # gathers a burst into one message; 1/40 of the lag allowed (200 ms)
LINGER_BUSY_S: Final = 0.02  # when the last message left within BUSY_S: a tenth of the lag allowed
BUSY_S: Final = 0.03
ITEMS_KEPT_MAX: Final = 512  # changes kept in the feed's form for the next reader, some 0.5 MB
BATCH_ITEMS_MAX: Final = 512
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024  # a quarter of the channel's largest frame
SNAPSHOT_ITEMS_MAX: Final = 2_000_000  # a federation's largest site, ten times over
OFFSET_SAMPLES: Final = 64  # about a minute of heartbeats

# What stands at one place: only the site that it names may speak of it.
PLACED_KINDS: Final = frozenset(
    {"rack", "node", "pdu"} | {kind for kind, (_, field) in KINDS.items() if field == "site_id"}
)
# A reader that learns new kinds must read again what it refused before.
KINDS_MARK: Final = format(crc32(",".join(sorted(KINDS)).encode()), "08x")


class FeedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A reader's cursor: "" and 0 when it has nothing."""

    reader: SiteId
    incarnation: str = ""
    after_revision: int = 0


class FeedItem(msgspec.Struct, frozen=True, kw_only=True):
    """One changed object; `body` None: deleted. The body is JSON (`codec`)."""

    kind: str
    id: str
    home: SiteId
    revision: int
    epoch: int
    changed_s: float
    body: bytes | None


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """Nothing changed."""


class Batch(msgspec.Struct, frozen=True, tag="batch", kw_only=True):
    """Every change after `after_revision`, one a revision."""

    after_revision: int
    items: tuple[FeedItem, ...]


class SnapshotBegin(msgspec.Struct, frozen=True, tag="snapshot-begin"):
    """All records as of `revision` follow."""

    revision: int


class SnapshotPart(msgspec.Struct, frozen=True, tag="snapshot-part"):
    """Some of the records."""

    items: tuple[FeedItem, ...]


class SnapshotEnd(msgspec.Struct, frozen=True, tag="snapshot-end"):
    """That was all: `count` records; batches after the snapshot's revision follow."""

    count: int


FeedBody: TypeAlias = Heartbeat | Batch | SnapshotBegin | SnapshotPart | SnapshotEnd


class FeedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a feed. `sent_s` is the sender's wall clock, `head_revision` its newest."""

    sender: SiteId
    incarnation: str
    sent_s: float
    head_revision: int
    body: FeedBody


@dataclass(frozen=True, slots=True)
class Cursor:
    """Up to where a replica has its site's history."""

    incarnation: str = ""
    revision: int = 0
    heard_s: float = 0.0  # our wall clock when something was last heard


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyBatch:
    """Effect: put and drop these in the replica of `site`, and move its cursor, at once.

    `bodies` are the records' values as they were sent, for a store to keep.
    """

    site: SiteId
    cursor: Cursor
    records: tuple[Record, ...]
    bodies: tuple[bytes, ...]
    deleted: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceReplica:
    """Effect: the replica of `site` is exactly these records, at once; `bodies` as above."""

    site: SiteId
    cursor: Cursor
    records: tuple[Record, ...]
    bodies: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Effect: an item was refused by `rule`; log it."""

    site: SiteId
    kind: str
    id: str
    rule: str
    reason: str


Effect: TypeAlias = ApplyBatch | ReplaceReplica | Refused


class FeedState(Enum):
    """How a feed stands."""

    CUT = "cut"  # not connected, or nothing heard yet
    SNAPSHOT = "snapshot"  # a snapshot is being received; the old replica is shown until its end
    FOLLOWING = "following"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedStatus:
    """What a reader knows of a feed. `age_s` None: never heard.

    `clock_offset_s` is the sender's clock minus ours, from the quickest of recent messages;
    it is too small by that message's delay on the way.
    """

    site: SiteId
    state: FeedState
    revision: int
    head_revision: int
    age_s: float | None
    heard_s: float
    clock_offset_s: float
    refused_count: int
    applied_count: int
    snapshot_count: int
    failure: str = ""


def item_of(
    event_or_record: Event | Record,
) -> FeedItem:
    """Return the feed's form of a change or of a record."""
    record = event_or_record if isinstance(event_or_record, Record) else event_or_record.record
    return FeedItem(
        kind=event_or_record.kind, id=event_or_record.id, home=event_or_record.home,
        revision=event_or_record.revision, epoch=event_or_record.epoch,
        changed_s=event_or_record.changed_s,
        body=None if record is None else codec.encode_value(record.value),
    )  # fmt: skip


class FeedItems:
    """The newest changes of one catalogue in the feed's form, made once for all readers."""

    def __init__(self) -> None:
        self._items: dict[int, FeedItem] = {}

    def of(self, event: Event) -> FeedItem:
        """Return the feed's form of a change."""
        item = self._items.get(event.revision)
        if item is None:
            item = self._items[event.revision] = item_of(event)
            if len(self._items) > ITEMS_KEPT_MAX:
                del self._items[next(iter(self._items))]
        return item


class FeedSender:
    """Our end of a feed that another site reads. Knows no connection and no clock."""

    def __init__(self, site: SiteId, incarnation: str, items: FeedItems | None = None) -> None:
        self._site = site
        self._incarnation = incarnation
        self._items = FeedItems() if items is None else items

    def can_resume(
        self, request: FeedRequest, *, head_revision: int, compacted_revision: int
    ) -> bool:
        """Tell whether batches after the reader's cursor suffice, or a snapshot is due."""
        return (
            request.incarnation == self._incarnation
            and compacted_revision <= request.after_revision <= head_revision
        )

    def snapshot(
        self, revision: int, records: Sequence[Record], now_s: float
    ) -> Iterator[FeedMessage]:
        """Yield the messages of a snapshot; bodies are encoded as they are taken."""
        yield self._message(SnapshotBegin(revision), revision, now_s)
        items: list[FeedItem] = []
        size_bytes = 0
        for record in records:
            item = item_of(record)
            size_bytes += len(item.body or b"")
            items.append(item)
            if len(items) >= BATCH_ITEMS_MAX or size_bytes >= BATCH_BYTES_MAX:
                yield self._message(SnapshotPart(tuple(items)), revision, now_s)
                items, size_bytes = [], 0
        if items:
            yield self._message(SnapshotPart(tuple(items)), revision, now_s)
        yield self._message(SnapshotEnd(len(records)), revision, now_s)

    def batches(
        self, events: Sequence[Event], *, head_revision: int, now_s: float
    ) -> Iterator[FeedMessage]:
        """Yield consecutive events as messages, each within the size limits."""
        items: list[FeedItem] = []
        size_bytes = 0
        for event in events:
            item = self._items.of(event)
            size_bytes += len(item.body or b"")
            items.append(item)
            if len(items) >= BATCH_ITEMS_MAX or size_bytes >= BATCH_BYTES_MAX:
                yield self._batch(items, head_revision, now_s)
                items, size_bytes = [], 0
        if items:
            yield self._batch(items, head_revision, now_s)

    def heartbeat(self, *, head_revision: int, now_s: float) -> FeedMessage:
        """Return what an idle feed says."""
        return self._message(Heartbeat(), head_revision, now_s)

    def _batch(self, items: list[FeedItem], head_revision: int, now_s: float) -> FeedMessage:
        body = Batch(after_revision=items[0].revision - 1, items=tuple(items))
        return self._message(body, head_revision, now_s)

    def _message(self, body: FeedBody, head_revision: int, now_s: float) -> FeedMessage:
        return FeedMessage(
            sender=self._site, incarnation=self._incarnation, sent_s=now_s,
            head_revision=head_revision, body=body,
        )  # fmt: skip


class FeedReader:
    """Our end of another site's feed: messages in, effects out.

    The cursor it holds runs ahead of the replica's by what was returned but not yet stored.
    When storing fails, or the connection ends, make a new reader from the stored cursor.
    """

    def __init__(self, site: SiteId, *, reader: SiteId, cursor: Cursor) -> None:
        self.site = site
        self._reader = reader
        self._cursor = cursor
        self._head_revision = cursor.revision
        self._snapshot: list[tuple[Record, bytes]] | None = None
        self._snapshot_revision = 0
        self._snapshot_item_count = 0
        self._state = FeedState.CUT
        self._heard_monotonic_s: float | None = None
        self._offsets: deque[float] = deque(maxlen=OFFSET_SAMPLES)
        self.refused_count = 0
        self.applied_count = 0
        self.snapshot_count = 0

    @property
    def cursor(self) -> Cursor:
        """Return up to where effects were returned."""
        return self._cursor

    def request(self) -> FeedRequest:
        """Return what to subscribe with."""
        return FeedRequest(
            reader=self._reader, incarnation=self._cursor.incarnation,
            after_revision=self._cursor.revision,
        )  # fmt: skip

    def restart(self, cursor: Cursor) -> None:
        """Begin a new subscription at the stored cursor; counts and clocks are kept."""
        self._cursor = cursor
        self._snapshot = None
        self._state = FeedState.CUT

    def receive(
        self, message: FeedMessage, *, now_s: float, monotonic_s: float
    ) -> tuple[Effect, ...]:
        """Take one message; return what to store, in order.

        Raises:
            RemoteProtocolError: the message is out of order or not this sender's; end the
                subscription, `restart`, subscribe again.
        """
        if message.sender != self.site:
            raise RemoteProtocolError(f"the feed of {self.site} speaks as {message.sender!r}")
        self._heard_monotonic_s = monotonic_s
        self._offsets.append(message.sent_s - now_s)
        self._head_revision = message.head_revision
        match message.body:
            case Heartbeat():
                self._require_same_history(message)
                return ()
            case Batch():
                self._require_same_history(message)
                return self._take_batch(message.body, now_s)
            case SnapshotBegin():
                self._snapshot = []
                self._snapshot_item_count = 0
                self._snapshot_revision = message.body.revision
                self._state = FeedState.SNAPSHOT
                return ()
            case SnapshotPart():
                return self._take_part(message.body)
            case SnapshotEnd():
                return self._end_snapshot(message, message.body, now_s)
            case _:
                assert_never(message.body)

    def status(self, *, now_s: float, monotonic_s: float, failure: str = "") -> FeedStatus:
        """Return how the feed stands now."""
        return FeedStatus(
            site=self.site, state=self._state, revision=self._cursor.revision,
            head_revision=self._head_revision,
            age_s=self.age_s(now_s=now_s, monotonic_s=monotonic_s), heard_s=self._cursor.heard_s,
            clock_offset_s=max(self._offsets, default=0.0), refused_count=self.refused_count,
            applied_count=self.applied_count, snapshot_count=self.snapshot_count, failure=failure,
        )  # fmt: skip

    def age_s(self, *, now_s: float, monotonic_s: float) -> float | None:
        """Return the seconds since the sender was last heard, None: never."""
        if self._heard_monotonic_s is not None:
            return monotonic_s - self._heard_monotonic_s
        heard_s = self._cursor.heard_s
        return max(0.0, now_s - heard_s) if heard_s else None

    def _require_same_history(self, message: FeedMessage) -> None:
        if self._snapshot is not None or message.incarnation != self._cursor.incarnation:
            raise RemoteProtocolError(
                f"{self.site} sends changes of history {message.incarnation!r}, "
                f"asked was {self._cursor.incarnation!r}"
            )
        self._state = FeedState.FOLLOWING

    def _take_batch(self, batch: Batch, now_s: float) -> tuple[Effect, ...]:
        if batch.after_revision > self._cursor.revision:
            raise RemoteProtocolError(
                f"{self.site} sends what follows {batch.after_revision}, "
                f"the replica is at {self._cursor.revision}"
            )
        refused: list[Refused] = []
        latest: dict[tuple[str, str], tuple[Record, bytes] | None] = {}
        revision = batch.after_revision
        for item in batch.items:
            revision += 1
            if item.revision != revision:
                raise RemoteProtocolError(f"{self.site} leaves out revision {revision}")
            if revision <= self._cursor.revision:
                continue  # told before
            admitted = admit(item, self.site)
            if isinstance(admitted, Refused):
                refused.append(admitted)
            else:
                latest[item.kind, item.id] = _with_body(admitted, item)
        if revision <= self._cursor.revision:
            return ()
        self._cursor = Cursor(self._cursor.incarnation, revision, now_s)
        self.refused_count += len(refused)
        self.applied_count += len(latest)
        put = [entry for entry in latest.values() if entry is not None]
        apply = ApplyBatch(
            site=self.site,
            cursor=self._cursor,
            records=tuple(record for record, _ in put),
            bodies=tuple(body for _, body in put),
            deleted=tuple(key for key, entry in latest.items() if entry is None),
        )
        return (*refused, apply)

    def _take_part(self, part: SnapshotPart) -> tuple[Effect, ...]:
        if self._snapshot is None:
            raise RemoteProtocolError(f"{self.site} sends part of a snapshot it did not begin")
        self._snapshot_item_count += len(part.items)
        if self._snapshot_item_count > SNAPSHOT_ITEMS_MAX:
            raise RemoteProtocolError(f"{self.site} sends more than {SNAPSHOT_ITEMS_MAX} records")
        refused: list[Refused] = []
        for item in part.items:
            admitted = admit(item, self.site)
            if isinstance(admitted, Refused):
                refused.append(admitted)
            elif (entry := _with_body(admitted, item)) is not None:
                self._snapshot.append(entry)
        self.refused_count += len(refused)
        return tuple(refused)

    def _end_snapshot(
        self, message: FeedMessage, end: SnapshotEnd, now_s: float
    ) -> tuple[Effect, ...]:
        if self._snapshot is None or end.count != self._snapshot_item_count:
            raise RemoteProtocolError(f"{self.site} sends an incomplete snapshot")
        entries, self._snapshot = self._snapshot, None
        self._cursor = Cursor(message.incarnation, self._snapshot_revision, now_s)
        self._state = FeedState.FOLLOWING
        self.snapshot_count += 1
        replace = ReplaceReplica(
            site=self.site,
            cursor=self._cursor,
            records=tuple(record for record, _ in entries),
            bodies=tuple(body for _, body in entries),
        )
        return (replace,)


def _with_body(record: Record | None, item: FeedItem) -> tuple[Record, bytes] | None:
    return None if record is None or item.body is None else (record, item.body)


def admit(item: FeedItem, sender: SiteId) -> Record | Refused | None:
    """Return the record an item stands for, None for a deletion, or why it is refused.

    A feed cannot write what its sender does not own: the home must be the sender, and what
    stands at a place must stand at the sender's. For what moves, the record must bear the
    epoch it is sent under; which of two homes counts is decided by the view, by epoch.
    """

    def refuse(rule: str, reason: str) -> Refused:
        return Refused(site=sender, kind=item.kind, id=item.id, rule=rule, reason=reason)

    if item.kind not in KINDS:
        return refuse("kind", "this site does not know the kind")
    if item.home != sender:
        return refuse("home", f"its home is {item.home!r}, which alone may write it")
    if item.epoch < 0 or not isfinite(item.changed_s) or not item.id:
        return refuse("form", "its epoch, time or id is none")
    if item.body is None:
        return None
    try:
        value = codec.decode_value(item.kind, item.body, where=f"feed of {sender}")
    except CorruptData as error:
        return refuse("body", error.message)
    if codec.id_of(value) != item.id:
        return refuse("id", f"the body is of {codec.id_of(value)!r}")
    if item.kind in PLACED_KINDS and getattr(value, "site_id", sender) != sender:
        return refuse("place", "it stands at another site")
    if codec.bears_epoch(value) and codec.epoch_of(value) != item.epoch:
        return refuse("epoch", f"the body bears epoch {codec.epoch_of(value)}, not {item.epoch}")
    return Record(
        kind=item.kind, id=item.id, home=sender, revision=item.revision, epoch=item.epoch,
        changed_s=item.changed_s, value=value,
    )  # fmt: skip
