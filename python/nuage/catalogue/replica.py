"""Read-only replicas of the other sites: stored beside the own catalogue, read from memory.

A replica belongs to one sender; nothing but that sender's admitted items enters it. It can be
lost and read again, hence a damaged one is dropped with a log line, not an error.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias
from zlib import crc32

import structlog

from nuage.catalogue.feed import KINDS_MARK, ApplyBatch, Cursor, ReplaceReplica
from nuage.catalogue.schema import decode_record
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.table import Table
from nuage.clock import Clock
from nuage.errors import CorruptData, NuageError
from nuage.ids import SiteId
from nuage.model.record import Record

_LOG: Final = structlog.get_logger(__name__)

WRITE_AFTER_S: Final = 0.25  # what a crash may take of a replica; gathers some dozens of messages
URGENT_KINDS: Final = frozenset({"trust", "user"})  # revocations: no crash may bring rights back
RETRY_S: Final = 2.0  # after a write that failed: the disk is full, say

_PUT: Final = "INSERT OR REPLACE INTO replica_object VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_DELETE: Final = "DELETE FROM replica_object WHERE site = ? AND kind = ? AND id = ?"
_PUT_CURSOR: Final = "INSERT OR REPLACE INTO replica_cursor VALUES (?, ?, ?, ?)"


class Replicas(Protocol):
    """What a site knows of the others."""

    def sites(self) -> tuple[SiteId, ...]:
        """Return the sites of which there is a replica, by name."""
        ...

    def cursor(self, site: SiteId) -> Cursor:
        """Return up to where the replica of `site` is stored."""
        ...

    def table(self, site: SiteId) -> Table | None:
        """Return the records of `site`, or None; to be read only, and not kept."""
        ...

    async def apply(self, effect: ApplyBatch | ReplaceReplica) -> None:
        """Store an effect of a `FeedReader`, whole, and its cursor with it."""
        ...

    async def forget(self, site: SiteId) -> None:
        """Drop the replica of a site that left the federation."""
        ...


class MemoryReplicas:
    """Replicas without a disk: for tests, and for sites whose catalogue is in etcd."""

    def __init__(self) -> None:
        self._tables: dict[SiteId, Table] = {}
        self._cursors: dict[SiteId, Cursor] = {}

    def sites(self) -> tuple[SiteId, ...]:
        """Return the sites of which there is a replica."""
        return tuple(sorted(self._tables))

    def cursor(self, site: SiteId) -> Cursor:
        """Return up to where the replica of `site` is stored."""
        return self._cursors.get(site, Cursor())

    def table(self, site: SiteId) -> Table | None:
        """Return the records of `site`, or None."""
        return self._tables.get(site)

    async def apply(self, effect: ApplyBatch | ReplaceReplica) -> None:
        """Store an effect."""
        self.show(effect)

    async def forget(self, site: SiteId) -> None:
        """Drop the replica of a site."""
        self._tables.pop(site, None)
        self._cursors.pop(site, None)

    def show(self, effect: ApplyBatch | ReplaceReplica) -> None:
        """Let readers see an effect."""
        if isinstance(effect, ReplaceReplica):
            self._tables.pop(effect.site, None)
        table = self.put(effect.site, effect.cursor, effect.records)
        if isinstance(effect, ApplyBatch):
            for kind, id in effect.deleted:
                table.forget(kind, id)

    def put(self, site: SiteId, cursor: Cursor, records: Iterable[Record]) -> Table:
        """Let readers see records of a site; return its table."""
        table = self._tables.get(site)
        if table is None:
            table = self._tables[site] = Table(site, indexed=False)
        for record in records:
            table.restore(record)
        table.revision = cursor.revision
        self._cursors[site] = cursor
        return table


Row: TypeAlias = tuple[str, str, str, int, int, float, bytes, int]


@dataclass(slots=True)
class _Unwritten:
    """What of one replica is shown and not stored yet; a row of None is to be dropped.

    `whole`: what is stored is replaced by these rows altogether.
    """

    whole: bool
    cursor: Cursor
    rows: dict[tuple[str, str], Row | None]

    def then(self, later: "_Unwritten") -> "_Unwritten":
        """Return both as one."""
        if later.whole:
            return later
        return _Unwritten(self.whole, later.cursor, {**self.rows, **later.rows})


class SqliteReplicas(MemoryReplicas):
    """Replicas in the catalogue's own file: shown at once, stored by its writer soon after.

    Records and cursor are stored in one transaction: a crash takes the last moment of both, and
    the feed brings it again. So a replica costs no write of its own for each message.
    """

    def __init__(self, catalogue: SqliteCatalogue, clock: Clock) -> None:
        super().__init__()
        self._catalogue = catalogue
        self._clock = clock
        self._unwritten: dict[SiteId, _Unwritten] = {}
        self._writing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, catalogue: SqliteCatalogue, clock: Clock) -> "SqliteReplicas":
        """Load the replicas that the catalogue's file holds."""
        replicas = cls(catalogue, clock)

        def act(connection: sqlite3.Connection) -> list[tuple[SiteId, Cursor, list[Record]]]:
            rows = connection.execute("SELECT * FROM replica_cursor").fetchall()
            return [found for row in rows if (found := _load(connection, catalogue, row))]

        for site, cursor, records in await catalogue.run(act):
            replicas.put(site, cursor, records)
        return replicas

    async def apply(self, effect: ApplyBatch | ReplaceReplica) -> None:
        """Show an effect, and store it within `WRITE_AFTER_S`; what takes rights away, at once."""
        self.show(effect)
        rows: dict[tuple[str, str], Row | None] = {
            (record.kind, record.id): _row(effect.site, record, body)
            for record, body in zip(effect.records, effect.bodies, strict=True)
        }
        is_whole = isinstance(effect, ReplaceReplica)
        if isinstance(effect, ApplyBatch):
            rows |= dict.fromkeys(effect.deleted)
        self._note(effect.site, _Unwritten(is_whole, effect.cursor, rows))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_soon())
        if any(record.kind in URGENT_KINDS for record in effect.records):
            with contextlib.suppress(NuageError):  # kept, and the writer tries again
                await self.flush()

    async def forget(self, site: SiteId) -> None:
        """Drop the replica of a site."""

        def act(connection: sqlite3.Connection) -> None:
            _drop(connection, site)

        async with self._writing:
            self._unwritten.pop(site, None)
            await self._catalogue.run(act)
        await super().forget(site)

    async def flush(self) -> None:
        """Store what is shown.

        Raises:
            Unavailable: the disk refuses; it is kept, to be stored later.
        """
        async with self._writing:
            due, self._unwritten = self._unwritten, {}

            def act(connection: sqlite3.Connection) -> None:
                for site, unwritten in due.items():
                    _store(connection, site, unwritten)

            try:
                if due:
                    await self._catalogue.run(act)
            except NuageError:
                later, self._unwritten = self._unwritten, due
                for site, unwritten in later.items():
                    self._note(site, unwritten)
                raise

    async def close(self) -> None:
        """Store what is shown; before the catalogue is closed."""
        if self._writer is not None:
            self._writer.cancel()
        try:
            await self.flush()
        except NuageError as error:
            _LOG.warning("replicas not stored", error=error.message)

    def _note(self, site: SiteId, unwritten: _Unwritten) -> None:
        before = self._unwritten.get(site)
        self._unwritten[site] = unwritten if before is None else before.then(unwritten)

    async def _write_soon(self) -> None:
        while self._unwritten:
            await self._clock.sleep(WRITE_AFTER_S)
            try:
                await self.flush()
            except NuageError as error:
                _LOG.warning("replicas not stored yet", error=error.message)
                await self._clock.sleep(RETRY_S)
        self._writer = None


def _row(site: SiteId, record: Record, body: bytes) -> Row:
    return (
        site, record.kind, record.id, record.revision, record.epoch, record.changed_s,
        body, crc32(body),
    )  # fmt: skip


def _store(connection: sqlite3.Connection, site: SiteId, unwritten: _Unwritten) -> None:
    if unwritten.whole:
        connection.execute("DELETE FROM replica_object WHERE site = ?", (site,))
    rows = unwritten.rows
    connection.executemany(_DELETE, [(site, *key) for key, row in rows.items() if row is None])
    connection.executemany(_PUT, [row for row in rows.values() if row is not None])
    cursor = unwritten.cursor
    marked = f"{KINDS_MARK}/{cursor.incarnation}"
    connection.execute(_PUT_CURSOR, (site, marked, cursor.revision, cursor.heard_s))


def _load(
    connection: sqlite3.Connection,
    catalogue: SqliteCatalogue,
    cursor_row: tuple[SiteId, str, int, float],
) -> tuple[SiteId, Cursor, list[Record]] | None:
    site, marked, revision, heard_s = cursor_row
    kinds_mark, _, incarnation = marked.partition("/")
    rows: Iterable[tuple[str, str, int, int, float, bytes, int]] = connection.execute(
        "SELECT kind, id, revision, epoch, changed_s, body, crc FROM replica_object WHERE site = ?",
        (site,),
    )
    try:
        records = [decode_record(row, site, path=catalogue.path) for row in rows]
    except CorruptData as error:
        _LOG.warning("replica dropped, to be read again", site=site, error=error.message)
        _drop(connection, site)
        return None
    # Other kinds are known now than when it was read: keep what there is, read all anew.
    cursor = Cursor(incarnation, revision, heard_s)
    if kinds_mark != KINDS_MARK:
        cursor = Cursor("", 0, heard_s)
    return site, cursor, records


def _drop(connection: sqlite3.Connection, site: SiteId) -> None:
    connection.execute("DELETE FROM replica_object WHERE site = ?", (site,))
    connection.execute("DELETE FROM replica_cursor WHERE site = ?", (site,))
