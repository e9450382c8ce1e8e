"""The embedded catalogue: one SQLite file, one writer thread, group commit.

Theory of operation. `write` encodes on the event loop and queues its unit. The writer
thread takes all units that are waiting, stages each into its own table (a unit that
conflicts fails alone, before any SQL), stores what is left in one transaction, and commits:
one fsync for all. Only then are the events shown to readers and the callers answered. While
one fsync runs the next group gathers by itself, hence no timer.

Fault model. `kill -9` and power loss: the WAL replays what was committed, and only that was
acknowledged. Disk full: the group is rolled back, its callers are told, reads go on, later
writes are tried anew. Any other error of SQLite while storing: the writer stops for good
and says so; what is on disk decides at the next start.
"""

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeAlias, TypeVar

import structlog

from nuage.catalogue.cached import TAIL_EVENTS_MAX, CachedCatalogue, records_of
from nuage.catalogue.schema import (
    ALL_OBJECTS,
    PUT_OBJECT,
    Opened,
    decode_event,
    decode_record,
    open_file,
    sqlite_errors,
    translate,
)
from nuage.catalogue.store import Change, Event
from nuage.catalogue.table import Prepared, Staged, Table, prepare
from nuage.clock import Clock
from nuage.errors import NuageError, Unavailable
from nuage.ids import EntropySource, SiteId
from nuage.model.record import Record

_LOG: Final = structlog.get_logger(__name__)

T = TypeVar("T")

GROUP_UNITS_MAX: Final = 512  # bounds the time a group holds the log, some 10 ms
QUEUED_UNITS_MAX: Final = 16_384  # beyond it callers are told to come back
HISTORY_COUNT_DEFAULT: Final = 200_000
HISTORY_AGE_S_DEFAULT: Final = 30 * 24 * 3600.0
COMPACT_EVERY_EVENTS: Final = 4096  # how often the writer looks whether history is too long

_DELETE_OBJECT: Final = "DELETE FROM object WHERE kind = ? AND id = ?"
_PUT_CHANGE: Final = "INSERT INTO change VALUES (?, ?, ?, ?, ?, ?, ?)"
_EVENT_COLUMNS: Final = "revision, kind, id, epoch, changed_s, body, crc"


@dataclass(slots=True)
class _Unit:
    """A write that waits for its commit."""

    changes: Prepared
    done: "asyncio.Future[tuple[Record, ...]]"
    staged: Staged | None = None
    error: NuageError | None = None


@dataclass(slots=True)
class _Job(Generic[T]):
    """Anything else that wants the connection; part of the group's transaction."""

    act: Callable[[sqlite3.Connection], T]
    done: "asyncio.Future[T]"
    result: list[T] = field(default_factory=list)
    error: NuageError | None = None


_Work: TypeAlias = "_Unit | _Job[object] | None"


class SqliteCatalogue(CachedCatalogue):
    """A catalogue in one file. Made by `open`; `close` it."""

    def __init__(
        self, site: SiteId, path: Path, opened: Opened, *, clock: Clock, tail_events_max: int
    ) -> None:
        super().__init__(site, tail_events_max=tail_events_max)
        self.path = path
        self._incarnation = opened.incarnation
        self._compacted_revision = opened.compacted_revision
        self._opened = opened
        self._connection = opened.connection
        self._clock = clock
        self._lead = Table(site)
        self._work: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._failed: NuageError | None = None
        self._events_since_compaction = 0
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"catalogue-{site}", daemon=True)
        self.commit_count = 0

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        site: SiteId,
        clock: Clock,
        size_bytes_max: int | None = None,
        history_count: int = HISTORY_COUNT_DEFAULT,
        history_age_s: float = HISTORY_AGE_S_DEFAULT,
        tail_events_max: int = TAIL_EVENTS_MAX,
        entropy: EntropySource = os.urandom,
    ) -> "SqliteCatalogue":
        """Open or create the file and load its records.

        Raises:
            Unavailable: another process has it, or the disk refuses.
            CorruptData: it does not verify.
            InvalidRequest: it belongs to another site, or to a newer Nuage.
        """
        opened = await asyncio.to_thread(
            open_file, path, site, incarnation=entropy(8).hex(), size_bytes_max=size_bytes_max
        )
        catalogue = cls(site, path, opened, clock=clock, tail_events_max=tail_events_max)
        catalogue._history = (history_count, history_age_s)
        try:
            await asyncio.to_thread(catalogue._load)
        except BaseException:
            catalogue._release()
            raise
        catalogue._thread.start()
        return catalogue

    _history: tuple[int, float] = (HISTORY_COUNT_DEFAULT, HISTORY_AGE_S_DEFAULT)

    async def write(self, changes: Sequence[Change]) -> tuple[Record, ...]:
        """Make the changes durable as one atomic unit."""
        unit = _Unit(prepare(changes), self._loop.create_future())
        self._submit(unit)
        return await unit.done

    async def run(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Run `act` on the writer thread, durable when this returns; on an error it left no trace.

        For the other tables of the file (replicas); the catalogue's own are written by `write`.
        """
        job = _Job(act, self._loop.create_future())
        self._submit(job)
        result: T = await job.done
        return result

    async def history(self, kind: str, id: str) -> tuple[Event, ...]:
        """Return the kept events of one object, oldest first."""

        def act(connection: sqlite3.Connection) -> tuple[Event, ...]:
            rows = connection.execute(
                f"SELECT {_EVENT_COLUMNS} FROM change WHERE kind = ? AND id = ? ORDER BY revision",
                (kind, id),
            )
            return self._decode_events(rows)

        return await self.run(act)

    async def compact(self, *, keep_count: int, keep_age_s: float) -> int:
        """Forget old events."""

        def act(connection: sqlite3.Connection) -> int:
            return self._compact(connection, keep_count, keep_age_s)

        return await self.run(act)

    async def close(self) -> None:
        """Finish what was accepted, then release the file."""
        if self._closed:
            return
        self._closed = True
        self._work.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.sleep(0)  # let the last outcomes, queued on this loop, be delivered
        self._wake()
        self._release()

    async def _load_events(self, after_revision: int, limit: int) -> tuple[Event, ...]:
        def act(connection: sqlite3.Connection) -> tuple[Event, ...]:
            rows = connection.execute(
                f"SELECT {_EVENT_COLUMNS} FROM change WHERE revision > ? ORDER BY revision LIMIT ?",
                (after_revision, limit),
            )
            return self._decode_events(rows)

        return await self.run(act)

    def _decode_events(
        self, rows: Iterable[tuple[int, str, str, int, float, bytes | None, int]]
    ) -> tuple[Event, ...]:
        return tuple(decode_event(row, self.site, path=self.path) for row in rows)

    def _submit(self, work: "_Unit | _Job[object]") -> None:
        if self._closed:
            raise Unavailable(f"the catalogue {self.path} is closed")
        if self._failed is not None:
            raise Unavailable(
                f"the catalogue {self.path} takes no writes any more: {self._failed.message}",
                hint=self._failed.hint,
            )
        if self._work.qsize() >= QUEUED_UNITS_MAX:
            raise Unavailable(
                f"{QUEUED_UNITS_MAX} writes wait for the disk under {self.path}", retry_after_s=1.0
            )
        self._work.put(work)

    # ---- the writer thread ----

    def _load(self) -> None:
        with sqlite_errors(self.path, doing="read"):
            for row in self._connection.execute(ALL_OBJECTS):
                record = decode_record(row, self.site, path=self.path)
                self._lead.restore(record)
                self._table.restore(record)
        self._lead.revision = self._table.revision = self._opened.revision

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group: list[_Unit | _Job[object]] = []
            work = self._work.get()
            while True:
                if work is None:
                    stopping = True
                    break
                group.append(work)
                if len(group) >= GROUP_UNITS_MAX:
                    break
                try:
                    work = self._work.get_nowait()
                except queue.Empty:
                    break
            if group:
                try:
                    self._commit_group(group)
                except Exception as error:  # noqa: BLE001  # a dead writer lets all wait for ever
                    self._stop_writing(group, error)
                with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
                    self._loop.call_soon_threadsafe(self._deliver, group)

    def _commit_group(self, group: "list[_Unit | _Job[object]]") -> None:
        """Stage, store and commit; afterwards each member bears its result or error."""
        if self._failed is not None:
            for work in group:
                work.error = self._failed
            return
        staged: list[Staged] = []
        now_s = self._clock.now_s()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for work in group:
                if isinstance(work, _Unit):
                    self._stage(work, now_s, staged)
                else:
                    self._run_job(work)
            self._store(staged)
            self._connection.execute("COMMIT")
            self.commit_count += 1
        except sqlite3.Error as error:
            self._fail_group(group, staged, error)
            return
        self._compact_when_due(sum(len(unit.events) for unit in staged))

    def _stage(self, unit: _Unit, now_s: float, staged: list[Staged]) -> None:
        try:
            unit.staged = self._lead.stage(unit.changes, now_s)
        except NuageError as error:
            unit.error = error
        else:
            staged.append(unit.staged)

    def _run_job(self, job: "_Job[object]") -> None:
        self._connection.execute("SAVEPOINT job")
        try:
            job.result.append(job.act(self._connection))
        except NuageError as error:
            job.error = error
            self._connection.execute("ROLLBACK TO job")
        self._connection.execute("RELEASE job")

    def _store(self, staged: list[Staged]) -> None:
        """Write all units at once; of an object changed twice only the last state is put."""
        changes: list[tuple[object, ...]] = []
        objects: dict[tuple[str, str], tuple[object, ...] | None] = {}
        for unit in staged:
            for event, body in zip(unit.events, unit.bodies, strict=True):
                crc = zlib.crc32(body) if body is not None else 0
                stamp = (event.epoch, event.changed_s, body, crc)
                changes.append((event.revision, event.kind, event.id, *stamp))
                objects[event.kind, event.id] = (
                    None if body is None else (event.kind, event.id, event.revision, *stamp)
                )
        if not changes:
            return
        self._connection.executemany(_PUT_CHANGE, changes)
        puts = [row for row in objects.values() if row is not None]
        deletes = [key for key, row in objects.items() if row is None]
        if puts:
            self._connection.executemany(PUT_OBJECT, puts)
        if deletes:
            self._connection.executemany(_DELETE_OBJECT, deletes)

    def _fail_group(
        self, group: "list[_Unit | _Job[object]]", staged: list[Staged], error: sqlite3.Error
    ) -> None:
        ours = translate(error, self.path, doing="write to")
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back already
            self._connection.execute("ROLLBACK")
        for unit in reversed(staged):
            self._lead.undo(unit)
        for work in group:
            if work.error is None:
                work.error = ours
        if getattr(error, "sqlite_errorname", "") != "SQLITE_FULL":
            self._failed = ours
        _LOG.error("catalogue write failed", path=str(self.path), error=str(error))

    def _stop_writing(self, group: "list[_Unit | _Job[object]]", error: Exception) -> None:
        """A bug of ours: what is on disk decides at the next start."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")
        self._failed = Unavailable(
            f"the writer of {self.path} failed: {type(error).__name__}: {error}",
            hint="restart the controller, and report this",
        )
        for work in group:
            work.error = self._failed
        _LOG.error("catalogue writer failed", path=str(self.path), exc_info=error)

    def _compact_when_due(self, event_count: int) -> None:
        self._events_since_compaction += event_count
        if self._events_since_compaction < COMPACT_EVERY_EVENTS:
            return
        self._events_since_compaction = 0
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._compact(self._connection, *self._history)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            _LOG.warning("compaction put off", path=str(self.path), error=str(error))

    def _compact(self, connection: sqlite3.Connection, keep_count: int, keep_age_s: float) -> int:
        oldest_s = self._clock.now_s() - keep_age_s
        newest = self._lead.revision
        (first_fresh,) = connection.execute(
            "SELECT min(revision) FROM change WHERE revision > ? AND changed_s >= ?",
            (max(0, newest - keep_count), oldest_s),
        ).fetchone()
        compacted = (first_fresh or newest + 1) - 1
        if compacted <= self._compacted_revision:
            return self._compacted_revision
        connection.execute("DELETE FROM change WHERE revision <= ?", (compacted,))
        connection.execute("UPDATE meta SET value = ? WHERE key = 'compacted'", (str(compacted),))
        self._compacted_revision = compacted
        return compacted

    # ---- back on the event loop ----

    def _deliver(self, group: "list[_Unit | _Job[object]]") -> None:
        """Show the group's events, then answer its callers."""
        for work in group:
            if isinstance(work, _Unit) and work.staged is not None and work.error is None:
                for event in work.staged.events:
                    self._table.apply(event)
                    self._tail.append(event)
        while self._tail and self._tail[0].revision <= self._compacted_revision:
            self._tail.popleft()
        for work in group:
            if work.done.done():
                continue  # its caller was cancelled; the write stands
            if work.error is not None:
                work.done.set_exception(work.error)
            elif isinstance(work, _Unit):
                work.done.set_result(records_of(work.staged.events if work.staged else ()))
            else:
                work.done.set_result(work.result[0])
        self._wake()

    def _release(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        os.close(self._opened.lock_fd)
