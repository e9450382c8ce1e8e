"""The audit log of a site: who did what, on what, from where, and how it ended.

Append-only text, one record a line, each with the hash of all before it; the site signs the chain
at intervals (docs/protocols/audit.md). `verify` checks it offline.

Theory of operation. `append` writes a record; `sync` makes what was written durable and, when
enough has gathered or enough time has passed, seals it: a record that signs the chain so far. A
file is sealed at its end and the next begins with the hash of the last. When a log is opened,
its last file is read: a torn tail (a crash in the middle of a write) is set aside in a file of
its own and a `repair` record says so. Anything else that does not fit is CorruptData: nobody
appends to a log that was tampered with.

Fault model. A killed process loses nothing that `append` has returned for: the kernel has it. A
crash of the machine may tear or lose what was written after the last sync, in any order of
pages. What a seal covers was synced before. Whoever holds the disk but not the key can cut the
log after a seal, which only somebody who kept a later head can tell: heads go to other sites.
"""

import base64
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.errors import CorruptData, InvalidRequest, LocalProtocolError, Unavailable
from nuage.ids import SiteId
from nuage.trust.book import key_id_of
from nuage.trust.files import sync_directory
from nuage.trust.verify import (
    GENESIS,
    LINE_BYTES_MAX,
    Json,
    audit_segments,
    canonical,
    chain_hash,
    seal_message,
    split_audit_line,
)

SEGMENT_BYTES: Final = 16 * 1024 * 1024  # what is read at start: about a second
SEAL_ENTRIES: Final = 256
SEAL_INTERVAL_S: Final = 60.0
FIELD_CHARS_MAX: Final = 2000
DIGEST_CHARS: Final = 64
FILE_MODE: Final = 0o640
# Raw quotes do not occur inside a JSON string, so no entry's text can look like this.
_SEAL_BEGINS: Final = re.compile(rb'\{"key_id":"[0-9a-f]+","kind":"seal"')


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One act. `outcome` is ``ok`` or an error's code; `detail` holds no secret."""

    who: str
    action: str
    target: str
    source: str = ""
    request_id: str = ""
    outcome: str = "ok"
    detail: str = ""


class HybridTime(NamedTuple):
    """Wall clock in milliseconds and a counter: never goes back, however the clock jumps."""

    wall_ms: int
    tick: int

    def after(self, now_s: float) -> "HybridTime":
        """Return a time later than this one, as near to `now_s` as that allows."""
        now_ms = int(now_s * 1000)
        return HybridTime(now_ms, 0) if now_ms > self.wall_ms else self._next()

    def _next(self) -> "HybridTime":
        return HybridTime(self.wall_ms, self.tick + 1)


class AuditHead(NamedTuple):
    """The last sealed record: what other sites keep, so that no tail can be cut unseen.

    `seal` is its line, which carries the site's signature: for `SiteTrust.audit_seal`.
    """

    sequence: int
    digest: str
    seal: str = ""


class AuditLog:
    """Writes one site's log. One writer: the controller that owns the site's catalogue.

    `key` is asked at each seal, since the site's signing key is renewed while the log is open.
    """

    def __init__(
        self,
        directory: Path,
        *,
        site_id: SiteId,
        key: Callable[[], Ed25519PrivateKey],
        now_s: Callable[[], float],
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._directory = directory
        self._site_id = site_id
        self._key = key
        self._now_s = now_s
        self._segment_bytes = segment_bytes
        self._digest = GENESIS
        self._sequence = 0
        self._time = HybridTime(0, 0)
        self._unsealed_count = 0
        self._sealed_s = 0.0
        self._file_bytes = 0
        self._segment = 0
        self._head = AuditHead(0, GENESIS)
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._descriptor = -1
        self._open()

    @property
    def head(self) -> AuditHead:
        """Return the last sealed record; publish it to the other sites."""
        return self._head

    def append(self, entry: AuditEntry) -> int:
        """Write `entry` and return its sequence number; durable after `sync`.

        Raises:
            InvalidRequest: a field is too long.
            Unavailable: the disk refuses; nothing was entered.
        """
        fields: Json = {
            "who": entry.who,
            "action": entry.action,
            "target": entry.target,
            "source": entry.source,
            "request_id": entry.request_id,
            "outcome": entry.outcome,
            "detail": entry.detail,
        }
        for name, value in fields.items():
            if len(str(value)) > FIELD_CHARS_MAX:
                raise InvalidRequest("too long for the audit log", field=name)
        self._write("entry", fields)
        self._unsealed_count += 1
        return self._sequence

    def flush(self) -> None:
        """Make what was written before durable; another thread may append meanwhile."""
        os.fsync(self._descriptor)

    def seal_if_due(self) -> None:
        """Seal and begin a new file when it is time. Short when `flush` has just run."""
        due = self._now_s() - self._sealed_s >= SEAL_INTERVAL_S
        if self._unsealed_count >= SEAL_ENTRIES or (self._unsealed_count and due):
            self.seal()
        if self._file_bytes >= self._segment_bytes:
            self._rotate()

    def sync(self) -> None:
        """Make everything written durable; seal and begin a new file when it is time."""
        self.flush()
        self.seal_if_due()

    def seal(self) -> AuditHead:
        """Sign the chain as it is; durable on return."""
        os.fsync(self._descriptor)
        key = self._key()
        line = self._write("seal", {"key_id": key_id_of(key.public_key())}, key)
        os.fsync(self._descriptor)
        self._sealed_s = self._now_s()
        self._unsealed_count = 0
        self._head = AuditHead(self._sequence, self._digest, line[:-1].decode())
        return self._head

    def close(self) -> None:
        """Seal what is left and close the file."""
        if self._descriptor < 0:
            return
        if self._unsealed_count:
            self.seal()
        os.close(self._descriptor)
        self._descriptor = -1

    # Writing ------------------------------------------------------------------------------

    def _write(self, kind: str, fields: Json, signer: Ed25519PrivateKey | None = None) -> bytes:
        if self._descriptor < 0:
            raise LocalProtocolError("the audit log is closed")
        self._time = self._time.after(self._now_s())
        record: Json = {
            **fields,
            "kind": kind,
            "sequence": self._sequence + 1,
            "previous": self._digest,
            "site_id": self._site_id,
            "time_ms": self._time.wall_ms,
            "tick": self._time.tick,
        }
        if signer is not None:
            signature = signer.sign(seal_message(record))
            record["signature"] = base64.b64encode(signature).decode()
        body = canonical(record)
        digest = chain_hash(self._digest, body)
        line = digest.encode() + b" " + body + b"\n"
        if len(line) > LINE_BYTES_MAX:
            raise InvalidRequest("too long for the audit log", field="detail")
        try:
            _write_all(self._descriptor, line)
        except OSError as error:
            # What follows a torn line would stand behind a broken chain, once it is sealed.
            os.ftruncate(self._descriptor, self._file_bytes)
            raise Unavailable(f"cannot write the audit log: {error.strerror}") from error
        self._digest, self._sequence = digest, self._sequence + 1
        self._file_bytes += len(line)
        return line

    def _begin_segment(self) -> None:
        self._segment += 1
        path = self._directory / f"audit-{self._segment:06d}.log"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._descriptor = os.open(path, flags, FILE_MODE)
        self._file_bytes = 0
        self._write("open", {"segment": self._segment})
        self.seal()
        sync_directory(self._directory)

    def _rotate(self) -> None:
        if self._unsealed_count:
            self.seal()
        os.close(self._descriptor)
        self._begin_segment()

    # Opening ------------------------------------------------------------------------------

    def _open(self) -> None:
        segments = audit_segments(self._directory)
        if not segments:
            self._begin_segment()
            return
        last = segments[-1]
        self._segment = int(last.stem.removeprefix("audit-"))
        data = last.read_bytes()
        good_bytes = self._read_back(last, data)
        if good_bytes == 0 and len(segments) > 1:
            # The crash hit between creating this file and its first record.
            before = segments[-2].read_bytes()
            if self._read_back(segments[-2], before) != len(before):
                raise CorruptData("a finished file ends torn", where=str(segments[-2]))
        torn = data[good_bytes:]
        if torn:
            self._set_aside(last, torn)
        self._descriptor = os.open(last, os.O_WRONLY | os.O_APPEND)
        if torn:
            os.ftruncate(self._descriptor, good_bytes)
        self._file_bytes = good_bytes
        if good_bytes == 0:
            self._write("open", {"segment": self._segment})
        if torn:
            self._write("repair", {"torn_bytes": len(torn)})
        if torn or good_bytes == 0:
            self.seal()

    def _read_back(self, path: Path, data: bytes) -> int:
        """Take the state from a file's records; return how many of its bytes are good.

        Raises:
            CorruptData: a record does not fit, and it is not a torn tail.
        """
        position, first = 0, True
        while position < len(data):
            end = data.find(b"\n", position) + 1
            line = data[position:end] if end else data[position:]
            try:
                digest, record = split_audit_line(line)
            except ValueError as error:
                self._require_torn(path, data[position:], str(error))
                return position
            if first:
                self._digest = str(record["previous"])
                self._sequence = int(str(record["sequence"])) - 1
                first = False
            follows = record["previous"] == self._digest
            if not follows or digest != chain_hash(self._digest, line[65:-1]):
                self._require_torn(path, data[position:], "the chain is broken")
                return position
            self._take(digest, record, line)
            position = end
        return position

    def _take(self, digest: str, record: Json, line: bytes) -> None:
        self._digest, self._sequence = digest, self._sequence + 1
        time_ms, tick = record["time_ms"], record["tick"]
        assert isinstance(time_ms, int), "split_audit_line checked it"
        assert isinstance(tick, int), "split_audit_line checked it"
        self._time = max(self._time, HybridTime(time_ms, tick))
        if record["kind"] == "seal":
            self._unsealed_count = 0
            self._head = AuditHead(self._sequence, digest, line[:-1].decode())
        else:
            self._unsealed_count += 1

    def _require_torn(self, path: Path, rest: bytes, problem: str) -> None:
        """Raise CorruptData when a seal begins after the bad place `rest` starts with.

        A seal is written only after a sync of all before it, so a crash cannot leave that.
        """
        if _SEAL_BEGINS.search(rest, DIGEST_CHARS + 2) is not None:
            raise CorruptData(
                f"the audit log was changed before a sealed record: {problem}",
                where=f"{path}, record {self._sequence + 1}",
                hint="keep the directory as evidence; start with an empty one",
            )

    def _set_aside(self, path: Path, torn: bytes) -> None:
        aside = path.with_suffix(f".torn-{self._sequence + 1}")
        with aside.open("wb") as file:
            file.write(torn)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self._directory)


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])
