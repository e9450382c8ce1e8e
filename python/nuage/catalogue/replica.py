"""Read-only replicas of the other sites: stored beside the own catalogue, read from memory.

A replica belongs to one sender; nothing but that sender's admitted items enters it. It can be
lost and read again, hence a damaged one is dropped with a log line, not an error.
"""

import sqlite3
from collections.abc import Iterable
from typing import Final, Protocol
from zlib import crc32

import structlog

from nuage.catalogue import codec
from nuage.catalogue.feed import KINDS_MARK, ApplyBatch, Cursor, ReplaceReplica
from nuage.catalogue.schema import decode_record
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.table import Table
from nuage.errors import CorruptData
from nuage.ids import SiteId
from nuage.model.record import Record

_LOG: Final = structlog.get_logger(__name__)

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
        table = self._tables.get(effect.site)
        if table is None or isinstance(effect, ReplaceReplica):
            table = Table(effect.site)
        if isinstance(effect, ApplyBatch):
            for kind, id in effect.deleted:
                table.forget(kind, id)
        for record in effect.records:
            table.restore(record)
        table.revision = effect.cursor.revision
        self._tables[effect.site] = table
        self._cursors[effect.site] = effect.cursor


class SqliteReplicas(MemoryReplicas):
    """Replicas in the catalogue's own file, written by its writer thread."""

    def __init__(self, catalogue: SqliteCatalogue) -> None:
        super().__init__()
        self._catalogue = catalogue

    @classmethod
    async def open(cls, catalogue: SqliteCatalogue) -> "SqliteReplicas":
        """Load the replicas that the catalogue's file holds."""
        replicas = cls(catalogue)

        def act(connection: sqlite3.Connection) -> list[ReplaceReplica]:
            rows = connection.execute("SELECT * FROM replica_cursor").fetchall()
            return [effect for row in rows if (effect := _load(connection, catalogue, row))]

        for effect in await catalogue.run(act):
            replicas.show(effect)
        return replicas

    async def apply(self, effect: ApplyBatch | ReplaceReplica) -> None:
        """Make an effect durable, then show it."""
        rows = [_row(effect.site, record) for record in effect.records]
        dropped = [] if isinstance(effect, ReplaceReplica) else effect.deleted

        def act(connection: sqlite3.Connection) -> None:
            if isinstance(effect, ReplaceReplica):
                connection.execute("DELETE FROM replica_object WHERE site = ?", (effect.site,))
            connection.executemany(_DELETE, [(effect.site, *key) for key in dropped])
            connection.executemany(_PUT, rows)
            cursor = effect.cursor
            marked = f"{KINDS_MARK}/{cursor.incarnation}"
            connection.execute(_PUT_CURSOR, (effect.site, marked, cursor.revision, cursor.heard_s))

        await self._catalogue.run(act)
        self.show(effect)

    async def forget(self, site: SiteId) -> None:
        """Drop the replica of a site."""

        def act(connection: sqlite3.Connection) -> None:
            _drop(connection, site)

        await self._catalogue.run(act)
        await super().forget(site)


def _row(site: SiteId, record: Record) -> tuple[str, str, str, int, int, float, bytes, int]:
    body = codec.encode_value(record.value)
    return (
        site, record.kind, record.id, record.revision, record.epoch, record.changed_s,
        body, crc32(body),
    )  # fmt: skip


def _load(
    connection: sqlite3.Connection,
    catalogue: SqliteCatalogue,
    cursor_row: tuple[SiteId, str, int, float],
) -> ReplaceReplica | None:
    site, marked, revision, heard_s = cursor_row
    kinds_mark, _, incarnation = marked.partition("/")
    rows: Iterable[tuple[str, str, int, int, float, bytes, int]] = connection.execute(
        "SELECT kind, id, revision, epoch, changed_s, body, crc FROM replica_object WHERE site = ?",
        (site,),
    )
    try:
        records = tuple(decode_record(row, site, path=catalogue.path) for row in rows)
    except CorruptData as error:
        _LOG.warning("replica dropped, to be read again", site=site, error=error.message)
        _drop(connection, site)
        return None
    # Other kinds are known now than when it was read: keep what there is, read all anew.
    cursor = Cursor(incarnation, revision, heard_s)
    if kinds_mark != KINDS_MARK:
        cursor = Cursor("", 0, heard_s)
    return ReplaceReplica(site=site, cursor=cursor, records=records)


def _drop(connection: sqlite3.Connection, site: SiteId) -> None:
    connection.execute("DELETE FROM replica_object WHERE site = ?", (site,))
    connection.execute("DELETE FROM replica_cursor WHERE site = ?", (site,))
