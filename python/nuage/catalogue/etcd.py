"""The catalogue of a site with several controllers: shared in etcd.

Theory of operation. Every controller keeps all records in memory, as the SQLite driver
does, and follows the others' changes. One key holds the site's revision; each transaction
compares it with what its writer believes, so that the writes of all controllers form one
line without gaps and each is checked against the newest state. A writer that lost the race
catches up and stages its units again; the callers notice only a conflict of their own.
Writes that wait at the same time share one transaction.

Fault model. A transaction without an answer is sent again, unchanged, under the same mark:
it is applied once at most, since applying it moves the revision it compares. Only when etcd
stays silent for `WRITE_TIMEOUT_S` do callers get `TimedOut`. A controller that is cut off
from etcd reads what it last knew and writes nothing. Layout: docs/protocols/catalogue.md.
"""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from nuage.catalogue import codec
from nuage.catalogue.cached import CachedCatalogue, records_of
from nuage.catalogue.store import CHANGES_PER_WRITE_MAX, WRITE_BYTES_MAX, Change, Compacted, Event
from nuage.catalogue.table import Prepared, PreparedPut, Staged, Table, prepare
from nuage.clock import Clock
from nuage.errors import UNREADABLE, CorruptData, NuageError, TimedOut, Unavailable
from nuage.etcd.client import EtcdClient, WatchCompacted
from nuage.etcd.messages import (
    Compare,
    CompareTarget,
    DeleteOp,
    KeyValue,
    Op,
    PutOp,
    RangeOp,
    absent,
    prefix_end,
)
from nuage.ids import EntropySource, SiteId
from nuage.model.record import Record

_LOG: Final = structlog.get_logger(__name__)

PAGE_KEYS: Final = 500
WRITE_TIMEOUT_S: Final = 15.0  # three times etcd's own, room for one election
RETRY_S: Final = 0.2
HISTORY_COUNT_DEFAULT: Final = 20_000  # etcd keeps all of it in memory: a tenth of SQLite's
HISTORY_AGE_S_DEFAULT: Final = 30 * 24 * 3600.0
COMPACT_EVERY_EVENTS: Final = 4096


_DELETED: Final = msgspec.Raw(b"null")  # the value of an object that is no more


class _Stored(msgspec.Struct, frozen=True):
    """A change or an object as etcd holds it; `by` marks the transaction that wrote it."""

    kind: str
    id: str
    revision: int
    epoch: int
    changed_s: float
    by: str
    value: msgspec.Raw = _DELETED


@dataclass(slots=True)
class _Unit:
    changes: Prepared
    done: "asyncio.Future[tuple[Record, ...]]"
    staged: Staged | None = None


class EtcdCatalogue(CachedCatalogue):
    """A catalogue in etcd. Made by `open`; `close` it (the client is the caller's)."""

    def __init__(
        self, site: SiteId, client: EtcdClient, *, clock: Clock, entropy: EntropySource
    ) -> None:
        super().__init__(site)
        self._client = client
        self._clock = clock
        self._entropy = entropy
        self._root = f"/nuage/catalogue/{site}/".encode()
        self._lead = Table(site)
        self._units: list[_Unit] = []
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._store_revision = 0
        self._events_since_compaction = 0
        self._history = (HISTORY_COUNT_DEFAULT, HISTORY_AGE_S_DEFAULT)

    @classmethod
    async def open(
        cls,
        client: EtcdClient,
        *,
        site: SiteId,
        clock: Clock,
        history_count: int = HISTORY_COUNT_DEFAULT,
        history_age_s: float = HISTORY_AGE_S_DEFAULT,
        entropy: EntropySource = os.urandom,
    ) -> "EtcdCatalogue":
        """Create the site's keys when there are none, and load its records.

        Raises:
            Unavailable: no member of etcd answers.
            CorruptData: a key does not verify; the message names it.
        """
        catalogue = cls(site, client, clock=clock, entropy=entropy)
        catalogue._history = (history_count, history_age_s)
        await catalogue._create()
        await catalogue._reload()
        catalogue._tasks = [
            asyncio.create_task(catalogue._write_for_ever(), name=f"catalogue-{site}-write"),
            asyncio.create_task(catalogue._follow_for_ever(), name=f"catalogue-{site}-follow"),
        ]
        return catalogue

    async def write(self, changes: Sequence[Change]) -> tuple[Record, ...]:
        """Make the changes durable as one atomic unit."""
        unit = _Unit(prepare(changes), asyncio.get_running_loop().create_future())
        if self._closed or self._tasks[0].done():
            raise _closed(self.site)
        self._units.append(unit)
        self._work.set()
        return await unit.done

    async def history(self, kind: str, id: str) -> tuple[Event, ...]:
        """Return the kept events of one object, oldest first; reads the whole history."""
        found: list[Event] = []
        position = self._compacted_revision
        while position < self.revision:
            events = await self._load_events(position, PAGE_KEYS)
            if not events:
                break
            found += [event for event in events if (event.kind, event.id) == (kind, id)]
            position = events[-1].revision
        return tuple(found)

    async def compact(self, *, keep_count: int, keep_age_s: float) -> int:
        """Forget old events."""
        compacted = await self._first_fresh(keep_count, keep_age_s) - 1
        if compacted > self._compacted_revision:
            key = self._root + b"compacted"
            result = await self._client.txn(
                (Compare(key, CompareTarget.VALUE, str(self._compacted_revision).encode()),),
                (
                    PutOp(key, str(compacted).encode()),
                    DeleteOp(self._change_key(0), self._change_key(compacted + 1)),
                ),
                (RangeOp(key),),
            )
            if not result.succeeded:  # another controller did it
                compacted = int(result.kvs(0)[0].value)
            else:
                with contextlib.suppress(NuageError):  # it may be compacted further already
                    await self._client.compact(max(1, result.header.revision - PAGE_KEYS))
            self._set_compacted(compacted)
        return self._compacted_revision

    async def close(self) -> None:
        """Stop writing and following; units still queued are refused."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for unit in self._units:
            if not unit.done.done():
                unit.done.set_exception(_closed(self.site))
        self._units.clear()
        self._wake()

    # ---- writing ----

    async def _write_for_ever(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._units:
                group = self._take_group()
                try:
                    await self._write_group(group)
                except NuageError as error:
                    for unit in group:
                        if not unit.done.done():
                            unit.done.set_exception(error)
                finally:  # cancelled, or a bug of ours: nobody is left waiting
                    for unit in group:
                        if not unit.done.done():
                            unit.done.set_exception(_closed(self.site))
                await self._compact_when_due()

    def _take_group(self) -> list[_Unit]:
        count, change_count, size_bytes = 0, 0, 0
        for unit in self._units:
            change_count += len(unit.changes)
            size_bytes += sum(len(c.body) for c in unit.changes if isinstance(c, PreparedPut))
            if count and (change_count > CHANGES_PER_WRITE_MAX or size_bytes > WRITE_BYTES_MAX):
                break
            count += 1
        group, self._units = self._units[:count], self._units[count:]
        return group

    async def _write_group(self, group: list[_Unit]) -> None:
        """Stage and send until the group is stored or each member has failed alone."""
        deadline_s = self._clock.monotonic_s() + WRITE_TIMEOUT_S
        waiting = group
        while waiting:
            await self._catch_up_lead()
            staged = self._stage(waiting)
            if not staged:
                return
            mark = self._entropy(8).hex()
            try:
                stored = await self._send(staged, mark, deadline_s)
            except BaseException:
                self._undo(staged)
                raise
            if stored:
                for unit, done in staged:
                    self._publish_new(done.events)
                    if not unit.done.done():
                        unit.done.set_result(records_of(done.events))
                return
            self._undo(staged)
            waiting = [unit for unit, _ in staged]
            await self._fetch_new()

    def _stage(self, units: list[_Unit]) -> list[tuple[_Unit, Staged]]:
        staged: list[tuple[_Unit, Staged]] = []
        now_s = self._clock.now_s()
        for unit in units:
            if unit.done.done():  # its caller was cancelled before anything was sent
                continue
            try:
                staged.append((unit, self._lead.stage(unit.changes, now_s)))
            except NuageError as error:
                unit.done.set_exception(error)
        return staged

    def _undo(self, staged: list[tuple[_Unit, Staged]]) -> None:
        for _, done in reversed(staged):
            self._lead.undo(done)

    async def _send(self, staged: list[tuple[_Unit, Staged]], mark: str, deadline_s: float) -> bool:
        """Send one transaction until etcd says whether it was applied."""
        first_revision = staged[0][1].events[0].revision
        compares = (
            Compare(
                self._root + b"revision", CompareTarget.VALUE, str(first_revision - 1).encode()
            ),
        )
        operations = self._operations(staged, mark)
        look = (RangeOp(self._change_key(first_revision)),)
        while True:
            try:
                result = await self._client.txn(compares, operations, look)
            except (TimedOut, Unavailable) as error:
                if self._clock.monotonic_s() >= deadline_s:
                    raise TimedOut(
                        f"write to the catalogue of {self.site} in etcd", after_s=WRITE_TIMEOUT_S
                    ) from error
                await self._clock.sleep(RETRY_S)
                continue
            if result.succeeded:
                return True
            found = result.kvs(0)
            return bool(found) and _parse(found[0]).by == mark

    def _operations(self, staged: list[tuple[_Unit, Staged]], mark: str) -> list[Op]:
        operations: list[Op] = []
        objects: dict[bytes, Op] = {}
        revision = 0
        for _, done in staged:
            for event, body in zip(done.events, done.bodies, strict=True):
                stored = msgspec.json.encode(
                    _Stored(
                        kind=event.kind,
                        id=event.id,
                        revision=event.revision,
                        epoch=event.epoch,
                        changed_s=event.changed_s,
                        by=mark,
                        value=_DELETED if body is None else msgspec.Raw(body),
                    )
                )
                revision = event.revision
                operations.append(PutOp(self._change_key(revision), stored))
                key = self._root + f"object/{event.kind}/{event.id}".encode()
                objects[key] = DeleteOp(key) if body is None else PutOp(key, stored)
        operations.extend(objects.values())
        operations.append(PutOp(self._root + b"revision", str(revision).encode()))
        return operations

    async def _catch_up_lead(self) -> None:
        """Bring the leading table to what readers see; nothing is staged now."""
        while self._lead.revision < self._table.revision:
            try:
                events = await self.changes_after(self._lead.revision)
            except Compacted:
                self._lead = self._fresh_table()
                return
            for event in events:
                self._lead.apply(event)

    def _fresh_table(self) -> Table:
        table = Table(self.site)
        for record in self._table.all_records():
            table.restore(record)
        table.revision = self._table.revision
        return table

    async def _compact_when_due(self) -> None:
        if self._events_since_compaction < COMPACT_EVERY_EVENTS:
            return
        self._events_since_compaction = 0
        keep_count, keep_age_s = self._history
        try:
            await self.compact(keep_count=keep_count, keep_age_s=keep_age_s)
        except NuageError as error:
            _LOG.warning("compaction put off", site=self.site, error=str(error))

    # ---- following ----

    async def _follow_for_ever(self) -> None:
        while True:
            try:
                await self._fetch_new()
                changes = self._client.watch(
                    self._root + b"change/", prefix=True, start_revision=self._store_revision + 1
                )
                async for key_events in changes:
                    puts = [event.kv for event in key_events if event.kv.value]
                    self._publish_new(tuple(self._event_of(kv) for kv in puts))
            except WatchCompacted:
                continue
            except NuageError as error:
                _LOG.warning("catalogue not followed", site=self.site, error=str(error))
                await self._clock.sleep(RETRY_S)

    async def _fetch_new(self) -> None:
        """Read what other controllers wrote since."""
        while True:
            found = await self._client.range(
                self._change_key(self.revision + 1),
                range_end=prefix_end(self._root + b"change/"),
                limit=PAGE_KEYS,
            )
            events = tuple(self._event_of(kv) for kv in found.kvs)
            if events and events[0].revision > self.revision + 1:
                await self._reload()  # what lies between was compacted while we were away
                continue
            self._publish_new(events)
            self._store_revision = found.header.revision
            if not found.more:
                return

    def _publish_new(self, events: tuple[Event, ...]) -> None:
        fresh = [event for event in events if event.revision > self.revision]
        self._events_since_compaction += len(fresh)
        self._publish(fresh)

    async def _load_events(self, after_revision: int, limit: int) -> tuple[Event, ...]:
        found = await self._client.range(
            self._change_key(after_revision + 1),
            range_end=prefix_end(self._root + b"change/"),
            limit=limit,
        )
        return tuple(
            event
            for event in (self._event_of(kv) for kv in found.kvs)
            if event.revision <= self.revision
        )

    # ---- loading ----

    async def _create(self) -> None:
        incarnation = self._root + b"incarnation"
        await self._client.txn(  # a no-op when another controller came first
            (absent(incarnation),),
            (
                PutOp(incarnation, self._entropy(8).hex().encode()),
                PutOp(self._root + b"revision", b"0"),
                PutOp(self._root + b"compacted", b"0"),
            ),
        )

    async def _reload(self) -> None:
        """Read every record as of one revision of the store."""
        keys = {
            kv.key[len(self._root) :]: kv
            for name in (b"incarnation", b"revision", b"compacted")
            for kv in (await self._client.range(self._root + name)).kvs
        }
        if len(keys) != 3:
            raise CorruptData("the catalogue's own keys are missing", where=self._root.decode())
        table = Table(self.site)
        key, end, at = self._root + b"object/", prefix_end(self._root + b"object/"), 0
        more = True
        while more:
            page = await self._client.range(key, range_end=end, limit=PAGE_KEYS, revision=at)
            at = at or page.header.revision
            for kv in page.kvs:
                record = self._event_of(kv).record
                if record is not None:
                    table.restore(record)
                key = kv.key + b"\x00"
            more = page.more
        (revision,) = (await self._client.range(self._root + b"revision", revision=at)).kvs
        table.revision = int(revision.value)
        self._incarnation = keys[b"incarnation"].value.decode()
        self._tail.clear()
        self._table = table
        self._store_revision = at
        self._compacted_revision = max(self._compacted_revision, int(keys[b"compacted"].value))
        self._lead = self._fresh_table() if self._lead.revision == 0 else self._lead
        self._wake()

    def _event_of(self, kv: KeyValue) -> Event:
        stored, where = _parse(kv), kv.key.decode(errors="replace")
        record = None
        if bytes(stored.value) != bytes(_DELETED):
            record = Record(
                kind=stored.kind, id=stored.id, home=self.site, revision=stored.revision,
                epoch=stored.epoch, changed_s=stored.changed_s,
                value=codec.decode_value(stored.kind, bytes(stored.value), where=where),
            )  # fmt: skip
        return Event(
            revision=stored.revision, kind=stored.kind, id=stored.id, home=self.site,
            epoch=stored.epoch, changed_s=stored.changed_s, record=record,
        )  # fmt: skip

    async def _first_fresh(self, keep_count: int, keep_age_s: float) -> int:
        """Return the smallest revision to keep."""
        oldest_s = self._clock.now_s() - keep_age_s
        position = max(self._compacted_revision, self.revision - keep_count)
        while position < self.revision:
            events = await self.changes_after(position)
            for event in events:
                if event.changed_s >= oldest_s:
                    return event.revision
            position = events[-1].revision
        return self.revision + 1

    def _set_compacted(self, revision: int) -> None:
        self._compacted_revision = max(self._compacted_revision, revision)
        while self._tail and self._tail[0].revision <= self._compacted_revision:
            self._tail.popleft()

    def _change_key(self, revision: int) -> bytes:
        return self._root + f"change/{revision:020d}".encode()


def _closed(site: SiteId) -> Unavailable:
    return Unavailable(f"the catalogue of {site} takes no writes any more", hint="restart it")


def _parse(kv: KeyValue) -> _Stored:
    try:
        return msgspec.json.decode(kv.value, type=_Stored)
    except UNREADABLE as error:
        where = kv.key.decode(errors="replace")
        raise CorruptData(f"etcd's {where} is no catalogue entry: {error}", where=where) from error
