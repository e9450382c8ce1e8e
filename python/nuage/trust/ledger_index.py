"""What is where in a location ledger, in a file beside it: a cache, never evidence.

The ledger's log alone says what is true. This is made from it, always up to one of its signed
heads, and made anew when it is missing, cannot be read or does not fit; whoever reads from it
checks what came against the log or a signed root (`trust.ledger`). SQLite, without a sync at each
commit: what a crash takes from it is read from the log's end again. One process has it open.

Of each receipt some 120 bytes: where its line starts and its hash, the subtrees that it completes,
and an index by volume, node, disk and segment.
"""

import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from nuage.errors import Unavailable
from nuage.ids import IaasId, NodeId, VolumeId

FORMAT: Final = 2
CACHE_KIB: Final = 256  # of pages in memory: a batch touches some dozens of 4 KiB
SEGMENT_SHIFT: Final = 1 << 63  # SQLite's integers are signed
_SCHEMA: Final = """
CREATE TABLE covered (leaf_count INTEGER, head_at INTEGER, end_at INTEGER);
CREATE TABLE place (
    place INTEGER PRIMARY KEY, volume TEXT, node TEXT, disk TEXT,
    leaf_count INTEGER, segment_count INTEGER, last_ms INTEGER, UNIQUE (volume, node, disk)
);
CREATE INDEX place_of_disk ON place (node, disk, volume);
CREATE TABLE held (
    place INTEGER, segment INTEGER, is_lost INTEGER, PRIMARY KEY (place, segment)
) WITHOUT ROWID;
CREATE TABLE leaf (
    number INTEGER PRIMARY KEY, start_at INTEGER, hash BLOB, place INTEGER, segment INTEGER
);
CREATE INDEX leaf_of_segment ON leaf (place, segment);
CREATE TABLE subtree (position INTEGER PRIMARY KEY, hash BLOB);
"""


class Unfit(Exception):
    """What the index says is not so."""


# What a broken file raises: SQLite repeats in its complaint what it read, whatever bytes those are.
BROKEN: Final = (sqlite3.Error, UnicodeDecodeError, Unfit)


@dataclass(frozen=True, slots=True)
class Covered:
    """How far an index goes: so many leaves, up to a head's line of the log (offsets in bytes)."""

    leaf_count: int = 0
    head_at: int = 0
    end_at: int = 0


class Standing(Enum):
    """How a segment stands after a receipt: it lies there, was lost with its disk, or is gone."""

    HELD = "held"
    LOST = "lost"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A receipt in the log: where its line starts (bytes), its hash, what it tells."""

    start_at: int
    hash: bytes
    volume_id: VolumeId
    node_id: NodeId
    disk: str
    segment: int
    standing: Standing
    time_ms: int

    @property
    def key(self) -> tuple[VolumeId, NodeId, str, int]:
        """Return which segment it tells of, and where that lies."""
        return self.volume_id, self.node_id, self.disk, self.segment


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a volume's journal."""

    volume_id: VolumeId
    segment: int


@dataclass(frozen=True, slots=True)
class DiskCursor:
    """Up to where a disk's segments have been told: ledger by ledger."""

    iaas_id: IaasId
    segment: Segment


@dataclass(frozen=True, slots=True)
class OnDisk:
    """How many segments, of how many volumes, a disk holds; how many were lost with it."""

    segment_count: int = 0
    volume_count: int = 0
    lost_count: int = 0

    def plus(self, other: "OnDisk") -> "OnDisk":
        """Return what both have together: no volume is in two ledgers."""
        return OnDisk(
            self.segment_count + other.segment_count,
            self.volume_count + other.volume_count,
            self.lost_count + other.lost_count,
        )


@dataclass(frozen=True, slots=True)
class Held:
    """What a node has signed for a volume: how often, segments not erased (lost ones too), when."""

    receipt_count: int
    segment_count: int
    last_ms: int


class LedgerIndex:
    """The file. Whatever of `BROKEN` a method raises means: `begin_anew`.

    Raises:
        Unavailable: no file can be made here, or another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        try:
            self._connection = _open(path)
        except BROKEN as error:
            _require_ours(error, path)
            self._connection = self._made_anew()

    @property
    def covered(self) -> Covered:
        """Return how far it goes."""
        found = self._connection.execute("SELECT * FROM covered").fetchone() or (0, 0, 0)
        (last,) = self._connection.execute("SELECT max(number) FROM leaf").fetchone()
        if not all(isinstance(value, int) and value >= 0 for value in found):
            raise Unfit(f"it covers {found}")
        covered = Covered(*found)
        if covered.leaf_count != (0 if last is None else last + 1):
            raise Unfit(f"it covers {covered.leaf_count} receipts and ends at {last}")
        return covered

    def begin_anew(self) -> None:
        """Throw away what there is."""
        self.close()
        self._connection = self._made_anew()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _made_anew(self) -> sqlite3.Connection:
        for suffix in ("", "-wal", "-shm", "-journal"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        try:
            return _open(self._path)
        except sqlite3.Error as error:
            raise Unavailable(f"cannot make {self._path}: {error}") from error

    def extend(
        self,
        leaves: Sequence[Leaf],
        subtrees: Mapping[tuple[int, int], bytes],
        *,
        since: Covered,
        until: Covered,
    ) -> None:
        """Add what lies between two heads, all of it or nothing."""
        connection = self._connection
        by_place: dict[tuple[VolumeId, NodeId, str], list[Leaf]] = defaultdict(list)
        for leaf in leaves:
            by_place[leaf.volume_id, leaf.node_id, leaf.disk].append(leaf)
        connection.execute("BEGIN IMMEDIATE")
        try:
            places = {key: self._place(*key, found) for key, found in by_place.items()}
            rows = (
                (number, leaf.start_at, leaf.hash,
                 places[leaf.volume_id, leaf.node_id, leaf.disk], _signed(leaf.segment))
                for number, leaf in enumerate(leaves, start=since.leaf_count)
            )  # fmt: skip
            connection.executemany("INSERT INTO leaf VALUES (?, ?, ?, ?, ?)", rows)
            connection.executemany(
                "INSERT INTO subtree VALUES (?, ?)",
                (
                    (_position(height, number), node)
                    for (height, number), node in subtrees.items()
                    if height
                ),
            )
            connection.execute("DELETE FROM covered")
            connection.execute(
                "INSERT INTO covered VALUES (?, ?, ?)",
                (until.leaf_count, until.head_at, until.end_at),
            )
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _place(
        self, volume_id: VolumeId, node_id: NodeId, disk: str, leaves: Sequence[Leaf]
    ) -> int:
        """Count leaves at their place, and return the place's number."""
        row = self._connection.execute(
            "INSERT INTO place (volume, node, disk, leaf_count, segment_count, last_ms)"
            " VALUES (?1, ?2, ?3, ?4, 0, ?5) ON CONFLICT DO UPDATE SET"
            " leaf_count = leaf_count + ?4, last_ms = max(last_ms, ?5) RETURNING place",
            (volume_id, node_id, disk, len(leaves), max(leaf.time_ms for leaf in leaves)),
        ).fetchone()
        place, more = int(row[0]), 0
        for segment, standing in {_signed(leaf.segment): leaf.standing for leaf in leaves}.items():
            was_there = self._connection.execute(
                "DELETE FROM held WHERE place = ? AND segment = ?", (place, segment)
            ).rowcount
            is_there = standing is not Standing.GONE
            if is_there:
                row = place, segment, standing is Standing.LOST
                self._connection.execute("INSERT INTO held VALUES (?, ?, ?)", row)
            more += is_there - was_there
        self._connection.execute(
            "UPDATE place SET segment_count = segment_count + ? WHERE place = ?", (more, place)
        )
        return place

    def node(self, height: int, number: int) -> bytes:
        """Return the hash of a complete subtree; a leaf is one of height 0."""
        if height:
            query, key = "SELECT hash FROM subtree WHERE position = ?", _position(height, number)
        else:
            query, key = "SELECT hash FROM leaf WHERE number = ?", number
        return bytes(self._one(query, key))

    def start_at(self, number: int) -> int:
        """Return where a leaf's line starts in the log."""
        return int(self._one("SELECT start_at FROM leaf WHERE number = ?", number))

    def _one(self, query: str, key: int) -> bytes | int:
        row = self._connection.execute(query, (key,)).fetchone()
        if row is None or not isinstance(row[0], bytes | int):
            raise Unfit(f"nothing at {key}")
        return row[0]

    def has(self, leaf: Leaf) -> bool:
        """Tell whether a leaf of this hash is in it."""
        found = self._connection.execute(
            "SELECT 1 FROM leaf WHERE hash = ? AND segment = ? AND place ="
            " (SELECT place FROM place WHERE volume = ? AND node = ? AND disk = ?)",
            (leaf.hash, _signed(leaf.segment), leaf.volume_id, leaf.node_id, leaf.disk),
        )
        return found.fetchone() is not None

    def of_volume(self, volume_id: VolumeId) -> dict[tuple[NodeId, str, int], list[int]]:
        """Return the numbers of a volume's leaves, in order, by node, disk and segment."""
        numbers: defaultdict[tuple[NodeId, str, int], list[int]] = defaultdict(list)
        places = self._connection.execute(
            "SELECT place, node, disk, leaf_count FROM place WHERE volume = ?", (volume_id,)
        ).fetchall()
        for place, node, disk, leaf_count in places:
            rows = self._connection.execute(
                "SELECT number, segment FROM leaf WHERE place = ? ORDER BY number", (place,)
            ).fetchall()
            if len(rows) != leaf_count:
                raise Unfit(f"{len(rows)} receipts of {volume_id} instead of {leaf_count}")
            for number, segment in rows:
                numbers[NodeId(node), str(disk), segment + SEGMENT_SHIFT].append(int(number))
        return dict(numbers)

    def is_held(self, leaf: Leaf) -> bool:
        """Tell whether the segment that a leaf names was not erased where it says."""
        found = self._connection.execute(
            "SELECT 1 FROM held WHERE segment = ? AND place ="
            " (SELECT place FROM place WHERE volume = ? AND node = ? AND disk = ?)",
            (_signed(leaf.segment), leaf.volume_id, leaf.node_id, leaf.disk),
        )
        return found.fetchone() is not None

    def on_disk(
        self, node_id: NodeId, disk: str, *, after: Segment | None, count: int
    ) -> list[int]:
        """Return the last leaf of each segment that a disk holds, or that was lost with it."""
        begin = ("", 0) if after is None else (after.volume_id, _signed(after.segment))
        rows = self._connection.execute(
            "SELECT (SELECT max(number) FROM leaf"
            "        WHERE leaf.place = held.place AND leaf.segment = held.segment)"
            " FROM place JOIN held ON held.place = place.place"
            " WHERE node = ? AND disk = ? AND (volume, segment) > (?, ?)"
            " ORDER BY volume, segment LIMIT ?",
            (node_id, disk, *begin, count),
        ).fetchall()
        if any(not isinstance(number, int) for (number,) in rows):
            raise Unfit(f"segments on {disk} without a receipt")
        return [int(number) for (number,) in rows]

    def count_on_disk(self, node_id: NodeId, disk: str) -> OnDisk:
        """Return how much a disk holds, and how much was lost with it."""
        row = self._connection.execute(
            "SELECT count(*) FILTER (WHERE NOT is_lost),"
            " count(DISTINCT volume) FILTER (WHERE NOT is_lost), count(*) FILTER (WHERE is_lost)"
            " FROM place JOIN held ON held.place = place.place WHERE node = ? AND disk = ?",
            (node_id, disk),
        ).fetchone()
        return OnDisk(*(int(count) for count in row))

    def disks_of(self, node_id: NodeId) -> list[str]:
        """Return the disks of a node that hold something, or lost it."""
        rows = self._connection.execute(
            "SELECT DISTINCT disk FROM place JOIN held ON held.place = place.place"
            " WHERE node = ? ORDER BY disk",
            (node_id,),
        )
        return [str(disk) for (disk,) in rows]

    def counts(self) -> dict[tuple[NodeId, VolumeId], Held]:
        """Return what each node has signed for each volume."""
        rows = self._connection.execute(
            "SELECT node, volume, sum(leaf_count), sum(segment_count), max(last_ms) FROM place"
            " GROUP BY node, volume"
        )
        return {
            (NodeId(str(node)), VolumeId(str(volume))): Held(*(int(count) for count in counts))
            for node, volume, *counts in rows
        }


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
    try:
        # Locked by one process, so that no memory is shared: a state directory may lie on a
        # network's file system.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found == 0:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        elif found != FORMAT:
            raise Unfit(f"format {found}")
    except BaseException:
        connection.close()
        raise
    return connection


def _require_ours(error: Exception, path: Path) -> None:
    """Refuse to throw away a file for what is no fault of its own."""
    name: str = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_NOMEM")):
        raise Unavailable(f"cannot open {path}: {error}") from error


def _position(height: int, number: int) -> int:
    """Return where a subtree comes when each follows its parts, so that all are added in order."""
    last_leaf = ((number + 1) << height) - 1
    return 2 * last_leaf - last_leaf.bit_count() + height


def _signed(segment: int) -> int:
    return segment - SEGMENT_SHIFT
