"""A site's records apart from its running catalogue: read out of a file, written into a new one.

For back-ups (`nuage.daemon.backup`). What is written is a catalogue like any other, but without
history and with an incarnation of its own: whoever followed the one before reads it whole, since
the two may have gone apart after the moment of the snapshot.
"""

import os
from pathlib import Path
from typing import Final
from zlib import crc32

from nuage.catalogue.feed import Cursor, ReplaceReplica
from nuage.catalogue.schema import (
    ALL_OBJECTS,
    PUT_OBJECT,
    decode_record,
    open_file,
    sqlite_errors,
)
from nuage.ids import EntropySource, SiteId

# What was given out after the snapshot and is known to nobody had lower revisions than this more.
REVISIONS_LEFT_OUT: Final = 1_000_000


def read_catalogue(path: Path, site: SiteId) -> ReplaceReplica:
    """Return all records of a catalogue's file that no controller has open.

    Raises:
        Unavailable: a controller has it open.
        CorruptData, InvalidRequest: as `schema.open_file`.
    """
    opened = open_file(path, site, incarnation="", size_bytes_max=None)
    try:
        with sqlite_errors(path, doing="read"):
            rows = opened.connection.execute(ALL_OBJECTS).fetchall()
        return ReplaceReplica(
            site=site,
            cursor=Cursor(opened.incarnation, opened.revision),
            records=tuple(decode_record(row, site, path=path) for row in rows),
            bodies=tuple(row[5] for row in rows),
        )
    finally:
        opened.connection.close()
        os.close(opened.lock_fd)


def write_catalogue(
    path: Path, snapshot: ReplaceReplica, *, revision: int, entropy: EntropySource = os.urandom
) -> None:
    """Make a catalogue of a snapshot's records, which goes on after `revision`; durable on return.

    Raises:
        Unavailable: the disk refuses.
    """
    opened = open_file(path, snapshot.site, incarnation=entropy(8).hex(), size_bytes_max=None)
    try:
        with sqlite_errors(path, doing="write"):
            opened.connection.execute("BEGIN IMMEDIATE")
            opened.connection.executemany(
                PUT_OBJECT,
                [
                    (r.kind, r.id, r.revision, r.epoch, r.changed_s, body, crc32(body))
                    for r, body in zip(snapshot.records, snapshot.bodies, strict=True)
                ],
            )
            opened.connection.execute(
                "UPDATE meta SET value = ? WHERE key = 'compacted'", (str(revision),)
            )
            opened.connection.execute("COMMIT")
            opened.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        opened.connection.close()
        os.close(opened.lock_fd)
