"""The SQLite file: schema, upgrades, opening (docs/protocols/catalogue.md).

One process at a time: a lock file beside the database says who holds it, and SQLite's own
exclusive mode backs it up. WAL with `synchronous=FULL`: a commit returns after its fsync.
"""

import contextlib
import fcntl
import os
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nuage.catalogue import codec
from nuage.catalogue.store import Event
from nuage.errors import CorruptData, InvalidRequest, NuageError, Unavailable
from nuage.ids import SiteId
from nuage.model.record import Record

APPLICATION_ID: Final = 0x4E756167  # "Nuag": `file` and a careful operator can tell
PAGE_BYTES: Final = 4096
CACHE_KIB: Final = 16 * 1024
CHECKPOINT_PAGES: Final = CACHE_KIB * 1024 // PAGE_BYTES  # SQLite's 1000 write a page more often
WAL_BYTES_MAX: Final = 64 * 1024 * 1024  # what a WAL shrinks back to after a burst

# A row as `decode_record` takes it.
ALL_OBJECTS: Final = "SELECT kind, id, revision, epoch, changed_s, body, crc FROM object"
PUT_OBJECT: Final = "INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?, ?, ?, ?)"

# Each entry lifts a file by one version; a released entry never changes.
UPGRADES: Final = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE object (
        kind TEXT NOT NULL, id TEXT NOT NULL, revision INTEGER NOT NULL,
        epoch INTEGER NOT NULL, changed_s REAL NOT NULL,
        body BLOB NOT NULL, crc INTEGER NOT NULL,
        PRIMARY KEY (kind, id)
    ) WITHOUT ROWID;
    CREATE TABLE change (
        revision INTEGER PRIMARY KEY, kind TEXT NOT NULL, id TEXT NOT NULL,
        epoch INTEGER NOT NULL, changed_s REAL NOT NULL, body BLOB, crc INTEGER NOT NULL
    );
    """,
    """
    CREATE TABLE replica_object (
        site TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, revision INTEGER NOT NULL,
        epoch INTEGER NOT NULL, changed_s REAL NOT NULL,
        body BLOB NOT NULL, crc INTEGER NOT NULL,
        PRIMARY KEY (site, kind, id)
    ) WITHOUT ROWID;
    CREATE TABLE replica_cursor (
        site TEXT PRIMARY KEY, incarnation TEXT NOT NULL, revision INTEGER NOT NULL,
        heard_s REAL NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE INDEX change_of_object ON change (kind, id);
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An open, checked, up-to-date file."""

    connection: sqlite3.Connection
    lock_fd: int
    incarnation: str
    revision: int
    compacted_revision: int


def open_file(path: Path, site: SiteId, *, incarnation: str, size_bytes_max: int | None) -> Opened:
    """Open or create the file; `incarnation` names its history when it is made now.

    Raises:
        Unavailable: another process has it, or the disk refuses.
        CorruptData: it does not verify; restore it, or start anew and let feeds refill.
        InvalidRequest: it belongs to another site, or was written by a newer Nuage.
    """
    lock_fd = _take_lock(path)
    try:
        with sqlite_errors(path, doing="open"):
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                return _check_file(
                    connection, lock_fd, path,
                    site=site, incarnation=incarnation, size_bytes_max=size_bytes_max,
                )  # fmt: skip
            except BaseException:
                connection.close()
                raise
    except BaseException:
        os.close(lock_fd)
        raise


@contextlib.contextmanager
def sqlite_errors(path: Path, *, doing: str) -> Iterator[None]:
    """Translate SQLite's errors into ours, naming the file."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise translate(error, path, doing=doing) from error


def translate(error: sqlite3.Error | UnicodeDecodeError, path: Path, *, doing: str) -> NuageError:
    """Return what a caller can do about an error of SQLite."""
    name: str = getattr(error, "sqlite_errorname", "")
    # SQLite repeats in its complaint what it read, which can be no text any more; and at the start
    # it lacks a table or column only where the schema's own text has changed.
    is_damaged = isinstance(error, UnicodeDecodeError)
    is_other = doing == "open" and name == "SQLITE_ERROR"
    if is_damaged or is_other or name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return CorruptData(
            f"the catalogue {path} does not verify ({error})",
            where=str(path),
            hint="stop the controller, keep the file, restore the last backup",
        )
    if name.startswith("SQLITE_FULL"):
        return Unavailable(
            f"no room to {doing} {path}: the disk (or the catalogue's limit) is full",
            retry_after_s=30.0,
            hint="free space on that file system; nothing was lost and reads go on",
        )
    if name.startswith("SQLITE_BUSY"):
        return Unavailable(f"another process has {path} open", hint="stop it first")
    return Unavailable(f"cannot {doing} {path}: {error}", hint="look at the disk's health")


def decode_record(
    row: tuple[str, str, int, int, float, bytes, int], home: SiteId, *, path: Path
) -> Record:
    """Return the record of a row (kind, id, revision, epoch, changed_s, body, crc)."""
    kind, id, revision, epoch, changed_s, body, crc = row
    where = f"{path}: {home}/{kind}/{id}"
    if zlib.crc32(body) != crc:
        raise CorruptData(f"the checksum of {kind} {id} in {path} is wrong", where=where)
    return Record(
        kind=kind, id=id, home=home, revision=revision, epoch=epoch, changed_s=changed_s,
        value=codec.decode_value(kind, body, where=where),
    )  # fmt: skip


def decode_event(
    row: tuple[int, str, str, int, float, bytes | None, int], home: SiteId, *, path: Path
) -> Event:
    """Return the event of a row (revision, kind, id, epoch, changed_s, body, crc)."""
    revision, kind, id, epoch, changed_s, body, crc = row
    record = None
    if body is not None:
        record = decode_record((kind, id, revision, epoch, changed_s, body, crc), home, path=path)
    return Event(
        revision=revision, kind=kind, id=id, home=home, epoch=epoch, changed_s=changed_s,
        record=record,
    )  # fmt: skip


def _take_lock(path: Path) -> int:
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"cannot open {lock_path}: {error.strerror}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock_fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock_fd)
        raise Unavailable(
            f"another process (pid {holder}) has the catalogue {path} open",
            hint="one controller a file; stop the other, or use etcd for several controllers",
        ) from error
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
    return lock_fd


def _check_file(
    connection: sqlite3.Connection,
    lock_fd: int,
    path: Path,
    *,
    site: SiteId,
    incarnation: str,
    size_bytes_max: int | None,
) -> Opened:
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
    if size_bytes_max is not None:
        connection.execute(f"PRAGMA max_page_count = {size_bytes_max // PAGE_BYTES}")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise CorruptData(
            f"the catalogue {path} does not verify: {verdict}", where=str(path),
            hint="stop the controller, keep the file, restore the last backup",
        )  # fmt: skip
    _upgrade(connection, path)
    connection.execute(
        "INSERT OR IGNORE INTO meta VALUES ('site', ?), ('incarnation', ?), ('compacted', '0')",
        (site, incarnation),
    )
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    if meta["site"] != site:
        raise InvalidRequest(
            f"the catalogue {path} belongs to site {meta['site']!r}, not {site!r}", field="site"
        )
    compacted_revision = int(meta["compacted"])
    (newest,) = connection.execute("SELECT max(revision) FROM change").fetchone()
    return Opened(
        connection=connection, lock_fd=lock_fd, incarnation=meta["incarnation"],
        revision=max(newest or 0, compacted_revision), compacted_revision=compacted_revision,
    )  # fmt: skip


def _upgrade(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (table_count,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if table_count and application_id != APPLICATION_ID:
        raise CorruptData(f"{path} is an SQLite file, but no catalogue", where=str(path))
    if version > len(UPGRADES):
        raise InvalidRequest(
            f"{path} has schema {version}, this Nuage knows up to {len(UPGRADES)}",
            hint="run the version that wrote it, or a newer one",
        )
    for step in range(version, len(UPGRADES)):
        connection.executescript(
            f"BEGIN IMMEDIATE; {UPGRADES[step]}"
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {step + 1}; COMMIT;"
        )
