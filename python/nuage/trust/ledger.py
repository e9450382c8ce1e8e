"""The location ledger: where each part of a volume has been, provable to an outsider.

An append-only file of receipts, one Merkle tree over them (RFC 9162 §2), tree heads signed by
the site (docs/protocols/ledger.md). An IO-node signs a receipt when it seals, moves or expires a
segment of a journal, and when one was lost with its disk. A head proves every receipt before it;
consistency between two heads proves that nothing was rewritten in between; `nuage.trust.verify`
checks both offline.

One ledger is of one IaaS at one site. What is in memory does not grow with it, and it opens in a
time that does not: an index beside the log has what is where (`trust.ledger_index`).
"""

import base64
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final, TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.errors import CorruptData, InvalidRequest, LocalProtocolError, NotFound, Unavailable
from nuage.ids import NodeId, SiteId, VolumeId
from nuage.model.infrastructure import DiskLoss
from nuage.trust.book import key_id_of
from nuage.trust.files import sync_directory
from nuage.trust.ledger_index import (
    BROKEN,
    Covered,
    Held,
    Leaf,
    LedgerIndex,
    OnDisk,
    Segment,
    Standing,
    Unfit,
)
from nuage.trust.merkle import MerkleTree
from nuage.trust.verify import (
    LINE_BYTES_MAX,
    Json,
    SiteKey,
    canonical,
    check_receipt,
    head_message,
    leaf_hash,
    ledger_line,
    loss_message,
    receipt_message,
    split_ledger_line,
    verify_consistency,
    verify_inclusion,
)

HEAD_LEAVES: Final = 256  # sign at least this often
HEAD_INTERVAL_S: Final = 60.0
TEXT_CHARS_MAX: Final = 256
SEQUENCE_MAX: Final = 2**63 - 1
SEGMENT_MAX: Final = 2**64 - 1  # those of compaction and of a copy made anew have the top bit set
FILE_MODE: Final = 0o640
INDEX_FOLDER: Final = "index"  # beside the logs
SETTLE_LEAVES: Final = 4096  # while an index is made anew: some 2 MiB in memory
CUT_BYTES: Final = 1 << 20
T = TypeVar("T")
log: Final = structlog.get_logger("nuage.trust")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_TEXT: Final = re.compile(r"[A-Za-z0-9 ._:+/=-]*")  # needs no escape in any JSON writer


class LocationEvent(Enum):
    """What happened to a segment at a place."""

    SEAL = "seal"  # it is complete and rests here
    MOVE = "move"  # it has arrived here from elsewhere
    EXPIRE = "expire"  # it was erased here
    LOST = "lost"  # its disk was declared lost, and nothing of it is here; nobody erased it


_STANDING: Final = {"expire": Standing.GONE, "lost": Standing.LOST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an IO-node vouches for: this part of this volume, on this disk, at this time.

    `chain_hash` is the journal's hash chain at `sequence_last` (64 hex digits). `key_id` and
    `signature` (base64) are the node's, empty before `sign_receipt`. `declaration`, of a lost
    segment alone, is the site's word that the disk is lost.
    """

    volume_id: VolumeId
    segment: int
    sequence_first: int
    sequence_last: int
    chain_hash: str
    site_id: SiteId
    node_id: NodeId
    disk_serial: str
    event: LocationEvent
    time_ms: int
    key_id: str = ""
    signature: str = ""
    declaration: DiskLoss | None = None

    def __post_init__(self) -> None:
        if _HASH.fullmatch(self.chain_hash) is None:
            raise InvalidRequest("a chain hash has 64 hex digits", field="chain_hash")
        if not 0 <= self.segment <= SEGMENT_MAX:
            raise InvalidRequest("out of range", field="segment")
        for name in ("sequence_first", "sequence_last", "time_ms"):
            if not 0 <= getattr(self, name) <= SEQUENCE_MAX:
                raise InvalidRequest("out of range", field=name)
        if self.sequence_first > self.sequence_last:
            raise InvalidRequest("the range is reversed", field="sequence_last")
        for name in ("volume_id", "site_id", "node_id", "disk_serial", "key_id", "signature"):
            text = getattr(self, name)
            if len(text) > TEXT_CHARS_MAX or _TEXT.fullmatch(text) is None:
                raise InvalidRequest(
                    f"letters, digits and '._:+/=-' only, at most {TEXT_CHARS_MAX}", field=name
                )
        self._require_declaration()

    def _require_declaration(self) -> None:
        if (self.event is LocationEvent.LOST) != (self.declaration is not None):
            raise InvalidRequest(
                "what was lost names who declared its disk lost, and nothing else does",
                field="declaration",
            )
        lost = self.declaration
        place = self.site_id, self.node_id, self.disk_serial
        if lost is not None and (lost.site_id, lost.node_id, lost.disk_serial) != place:
            raise InvalidRequest("another disk was declared lost", field="declaration")

    def document(self) -> Json:
        """Return the JSON object whose canonical form is signed and hashed."""
        document: Json = {**asdict(self), "event": self.event.value}
        if self.declaration is None:
            del document["declaration"]
        return document

    def leaf(self) -> bytes:
        """Return the Merkle tree's leaf."""
        return canonical(self.document())


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHead:
    """The site's word on the first `size` receipts; `root` in hex, `signature` in base64."""

    ledger: str
    site_id: SiteId
    size: int
    root: str
    time_ms: int
    key_id: str
    signature: str

    def document(self) -> Json:
        """Return the JSON object that is signed (without `signature`)."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class InclusionProof:
    """That `receipt` is leaf `index` of the tree of `head`; hashes in hex, leaf upwards."""

    receipt: Receipt
    index: int
    path: tuple[str, ...]
    head: TreeHead


def sign_receipt(receipt: Receipt, key: Ed25519PrivateKey) -> Receipt:
    """Return `receipt` with the node's key id and signature."""
    unsigned = replace(receipt, key_id=key_id_of(key.public_key()), signature="")
    signature = key.sign(receipt_message(unsigned.document()))
    return replace(unsigned, signature=base64.b64encode(signature).decode())


def sign_loss(loss: DiskLoss, key: Ed25519PrivateKey) -> DiskLoss:
    """Return `loss` with the site's key id and signature.

    Raises:
        InvalidRequest: it cannot go into a receipt.
    """
    for name in ("disk_serial", "declared_by"):
        text = getattr(loss, name)
        if not text or len(text) > TEXT_CHARS_MAX or _TEXT.fullmatch(text) is None:
            raise InvalidRequest(
                f"letters, digits and '._:+/=-' only, at most {TEXT_CHARS_MAX}", field=name
            )
    unsigned = replace(loss, key_id=key_id_of(key.public_key()), signature="")
    signature = key.sign(loss_message(asdict(unsigned)))
    return replace(unsigned, signature=base64.b64encode(signature).decode())


def read_receipt(document: Json) -> Receipt:
    """Return the receipt of a JSON object.

    Raises:
        InvalidRequest: it is not a receipt.
    """
    try:
        fields = {**document, "event": LocationEvent(document["event"])}
        if "declaration" in fields:
            fields["declaration"] = DiskLoss(**fields["declaration"])  # type: ignore[arg-type]
        return Receipt(**fields)  # type: ignore[arg-type]  # checked by Receipt and below
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidRequest("this is not a receipt", field="receipt") from error


class LocationLedger:
    """The file of one ledger. One writer: the controller of the site.

    A crash may lose receipts after the last `sync` and tear the last line; the torn line is cut
    off and counted in `repaired_bytes`. A line that does not fit anywhere else is CorruptData,
    found when it is read.

    Theory of operation: the log is the truth. Beside it lies an index (`trust.ledger_index`) that
    always ends at a signed head of the log. Opened, that head is read and compared with the root
    of what the index holds, and the log is read on from there: the index has its leaves at the
    next head. Until then they are in memory: at most `HEAD_LEAVES` and a batch, for each `sync`
    signs what is due. What the index tells is checked before it is told on: a receipt against its
    hash, a path against a signed root. Where it does not fit, it is made anew from the whole log.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        site_id: SiteId,
        key: Callable[[], Ed25519PrivateKey],
        now_s: Callable[[], float],
    ) -> None:
        self.repaired_bytes = 0
        self._path = path
        self._name = name
        self._site_id = site_id
        self._key = key
        self._now_s = now_s
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._index = LedgerIndex(path.parent / INDEX_FOLDER / f"{path.stem}.db")
        self._descriptor = -1
        self._end = 0
        self._head: TreeHead | None = None
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, FILE_MODE)
            self._load()
        except BaseException:
            self._let_go()
            raise
        sync_directory(path.parent)

    @property
    def size(self) -> int:
        """Return how many receipts there are."""
        return self._tree.size

    @property
    def head(self) -> TreeHead | None:
        """Return the last signed head; publish it to the other sites."""
        return self._head

    @property
    def is_open(self) -> bool:
        """Tell whether it can be asked: it closes when its file turns out to be damaged."""
        return self._descriptor >= 0

    def has(self, receipt: Receipt) -> bool:
        """Tell whether exactly this receipt is in it: a node hands over again what it must.

        Where the index is damaged, one that is in it may be missed, and is then in it twice: both
        are true.
        """
        leaf = _leaf_of(receipt.document(), receipt.leaf(), start_at=0)
        return self._checked(lambda: leaf.hash in self._fresh_hashes or self._index.has(leaf))

    def append(self, receipt: Receipt, node_key: SiteKey) -> int:
        """Add a receipt and return its index; durable after `sync`.

        Raises:
            InvalidRequest: `node_key` did not sign it.
            Unavailable: the disk refuses; nothing was entered.
        """
        document = receipt.document()
        if not check_receipt(document, node_key):
            raise InvalidRequest(
                f"the receipt was not signed by {receipt.node_id} of {receipt.site_id}",
                field="signature",
            )
        start_at = self._end
        self._write("leaf", document)
        return self._add(_leaf_of(document, canonical(document), start_at=start_at))

    def sync(self) -> TreeHead | None:
        """Make everything durable, sign a head when it is time, and return the last one."""
        last = self._head
        unsigned_count = self.size - (last.size if last else 0)
        if not unsigned_count:
            return last  # all that is durable since its head was signed
        os.fsync(self._descriptor)
        waited_s = self._now_s() - (last.time_ms / 1000 if last else 0.0)
        if unsigned_count >= HEAD_LEAVES or waited_s >= HEAD_INTERVAL_S:
            return self.sign_head()
        return last

    def sign_head(self) -> TreeHead:
        """Sign the tree as it is; durable on return."""
        os.fsync(self._descriptor)
        key = self._key()
        document: Json = {
            "ledger": self._name,
            "site_id": self._site_id,
            "size": self.size,
            "root": self._tree.root().hex(),
            "time_ms": int(self._now_s() * 1000),
            "key_id": key_id_of(key.public_key()),
        }
        signature = base64.b64encode(key.sign(head_message(document))).decode()
        document["signature"] = signature
        head_at = self._end
        self._write("head", document)
        os.fsync(self._descriptor)
        head = self._head = _read_head(document)
        self._settle(head_at)
        return head

    def close(self) -> None:
        """Sign what is left and close the files."""
        if not self.is_open:
            return
        if self.size > (self._head.size if self._head else 0):
            self.sign_head()
        self._let_go()

    def indices_of(self, volume_id: VolumeId) -> list[int]:
        """Return the index of each receipt of a volume, oldest first."""
        return sorted(index for found in self.segments_of(volume_id) for index in found)

    def segments_of(self, volume_id: VolumeId) -> list[tuple[int, ...]]:
        """Return the indices of a volume's receipts, those of each segment on each disk together.

        In the order of the first of each.
        """
        found = self._checked(lambda: self._index.of_volume(volume_id))
        for index, leaf in enumerate(self._fresh, start=self._covered.leaf_count):
            if leaf.volume_id == volume_id:
                found.setdefault((leaf.node_id, leaf.disk, leaf.segment), []).append(index)
        return sorted(tuple(indices) for indices in found.values())

    def counts(self) -> dict[tuple[NodeId, VolumeId], Held]:
        """Return what each node has signed for each volume."""

        def counted() -> dict[tuple[NodeId, VolumeId], Held]:
            found = self._index.counts()
            now = {leaf.key: leaf for leaf in self._fresh}
            for leaf in self._fresh:
                place = leaf.node_id, leaf.volume_id
                held = found.get(place, Held(0, 0, 0))
                more = 0
                if now[leaf.key] is leaf:  # the last that tells of this segment
                    was_held = self._index.is_held(leaf)
                    more = (leaf.standing is not Standing.GONE) - was_held
                found[place] = Held(
                    held.receipt_count + 1,
                    held.segment_count + more,
                    max(held.last_ms, leaf.time_ms),
                )
            return found

        return self._checked(counted)

    def on_disk(
        self, node_id: NodeId, disk_serial: str, *, after: Segment | None, count: int
    ) -> list[Receipt]:
        """Return the last receipt of each segment that a disk holds, or that was lost with it.

        In order of volume and segment, at most `count` behind `after`.

        Raises:
            Unavailable: the disk here is full; nothing can be told for sure.
        """
        self._settle_all()

        def found() -> list[Receipt]:
            numbers = self._index.on_disk(node_id, disk_serial, after=after, count=count)
            return [self._read_back(number) for number in numbers]

        return self._checked(found)

    def count_on_disk(self, node_id: NodeId, disk_serial: str) -> OnDisk:
        """Return how much of the ledger a disk holds, and how much was lost with it."""
        self._settle_all()
        return self._checked(lambda: self._index.count_on_disk(node_id, disk_serial))

    def disks_of(self, node_id: NodeId) -> list[str]:
        """Return the serials of a node's disks that hold something, or lost it."""
        self._settle_all()
        return self._checked(lambda: self._index.disks_of(node_id))

    def _settle_all(self) -> None:
        """Have the index tell of every receipt."""
        if self._fresh:
            self.sign_head()
        if self._fresh:
            raise Unavailable(f"the index of {self._path} cannot be written")

    def receipt(self, index: int) -> Receipt:
        """Return the receipt at `index`, read from the file.

        Raises:
            NotFound: there is none.
            CorruptData: the file has changed under us.
        """
        if not 0 <= index < self.size:
            raise NotFound("receipt", str(index))
        return self._checked(lambda: self._read_back(index))

    def prove(self, index: int) -> InclusionProof:
        """Return the proof of a receipt under the last head, which is signed now if need be."""
        receipt = self.receipt(index)
        head = self._head
        if head is None or head.size <= index:
            head = self.sign_head()

        def path_under_head() -> tuple[bytes, ...]:
            path = self._tree.inclusion(index, head.size)
            leaf, root = leaf_hash(receipt.leaf()), bytes.fromhex(head.root)
            if not verify_inclusion(leaf, index, head.size, path, root):
                raise Unfit(f"the path of receipt {index}")
            return path

        steps = tuple(step.hex() for step in self._checked(path_under_head))
        return InclusionProof(receipt=receipt, index=index, path=steps, head=head)

    def prove_growth(self, old_size: int) -> tuple[str, ...]:
        """Return the proof that the tree under the last head only adds to its first leaves (hex).

        Raises:
            NotFound: no head covers `old_size` leaves.
        """
        head = self._head
        if head is None:
            return tuple(step.hex() for step in self._tree.consistency(old_size, 0))

        def path_to_head() -> tuple[bytes, ...]:
            path = self._tree.consistency(old_size, head.size)
            old, new = self._tree.root(old_size), bytes.fromhex(head.root)
            if not verify_consistency(old_size, head.size, path, old, new):
                raise Unfit(f"the path from {old_size} receipts")
            return path

        return tuple(step.hex() for step in self._checked(path_to_head))

    # The log --------------------------------------------------------------------------------------

    def _write(self, kind: str, document: Json) -> None:
        if not self.is_open:
            raise LocalProtocolError("the ledger is closed")
        line = ledger_line(kind, document)
        written = 0
        try:
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            self._take_back()
            raise Unavailable(f"cannot write {self._path}: {error.strerror}") from error
        self._end += len(line)

    def _take_back(self) -> None:
        """Cut off what was written of a line: what follows would stand behind a torn one."""
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError:
            self._let_go()  # cut off when it is opened

    def _read_back(self, index: int) -> Receipt:
        offset = index - self._covered.leaf_count
        start_at = self._index.start_at(index) if offset < 0 else self._fresh[offset].start_at
        if not 0 <= start_at < self._end:
            raise Unfit(f"receipt {index} at {start_at}")
        data = os.pread(self._descriptor, LINE_BYTES_MAX, start_at)
        try:
            _, record, body = split_ledger_line(data[: data.find(b"\n") + 1])
        except ValueError as error:
            raise Unfit(f"at {start_at}: {error}") from error
        if leaf_hash(body) != self._tree.leaf(index):
            raise Unfit(f"receipt {index} is not at {start_at}")
        return read_receipt(record)

    def _add(self, leaf: Leaf) -> int:
        self._fresh.append(leaf)
        self._fresh_hashes.add(leaf.hash)
        return self._tree.append(leaf.hash)

    # The index ------------------------------------------------------------------------------------

    def _checked(self, read: Callable[[], T]) -> T:
        """Return what the index tells; where that does not fit, make it anew and ask once more."""
        if not self.is_open:
            raise LocalProtocolError("the ledger is closed")
        try:
            return read()
        except BROKEN as error:
            log.warning("index of a ledger made anew", ledger=self._name, error=str(error))
        try:
            self._index.begin_anew()
            self._load()
            return read()
        except BROKEN as error:
            self._let_go()
            raise CorruptData(str(error), where=str(self._path)) from error
        except BaseException:
            self._let_go()
            raise

    def _settle(self, head_at: int) -> None:
        """Let the index have what the head at `head_at` covers."""
        until = Covered(self.size, head_at, self._end)
        try:
            self._index.extend(self._fresh, self._tree.fresh, since=self._covered, until=until)
        except BROKEN as error:
            # Held in memory until the next head: a full disk refuses receipts before long.
            log.warning("index of a ledger not written", ledger=self._name, error=str(error))
            return
        self._begin_after(until)

    def _begin_after(self, covered: Covered) -> None:
        self._covered = covered
        self._fresh: list[Leaf] = []
        self._fresh_hashes: set[bytes] = set()
        self._tree.forget()

    def _load(self) -> None:
        """Go on from the last head that the index knows; from the beginning if it does not fit."""
        try:
            self._begin_at_index()
        except BROKEN as error:
            log.warning("index of a ledger made anew", ledger=self._name, error=str(error))
            self._index.begin_anew()
            self._begin_at_index()
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(self._end)
            while line := file.readline(LINE_BYTES_MAX):
                if not self._take_line(line):
                    break
        total = os.fstat(self._descriptor).st_size
        if total > self._end:
            self._cut(total)

    def _begin_at_index(self) -> None:
        covered = self._index.covered
        self._tree = MerkleTree(self._index.node, size=covered.leaf_count)
        self._head = self._head_at(covered) if covered.end_at else None
        root = self._tree.root().hex()
        if self._head is not None and (self._head.size, self._head.root) != (self.size, root):
            raise Unfit(f"another head than that of {self.size} receipts")
        self._end = covered.end_at
        self._begin_after(covered)

    def _head_at(self, covered: Covered) -> TreeHead:
        length = covered.end_at - covered.head_at
        if not 0 < length <= LINE_BYTES_MAX:
            raise Unfit(f"a head of {length} bytes")
        try:
            kind, record, _ = split_ledger_line(os.pread(self._descriptor, length, covered.head_at))
        except (ValueError, OSError) as error:
            raise Unfit(f"no head at {covered.head_at}: {error}") from error
        if kind != "head":
            raise Unfit(f"no head at {covered.head_at}")
        return _read_head(record)

    def _take_line(self, line: bytes) -> bool:
        try:
            kind, record, body = split_ledger_line(line)
        except ValueError:
            return False
        start_at = self._end
        self._end += len(line)
        if kind == "leaf":
            self._add(_leaf_of(record, body, start_at=start_at))
            return True
        head = _read_head(record)
        if (head.size, head.root) != (self.size, self._tree.root().hex()):
            raise CorruptData(
                f"the signed head of {head.size} receipts does not fit them",
                where=str(self._path),
                hint="keep the file as evidence; another site has its heads",
            )
        self._head = head
        if len(self._fresh) >= SETTLE_LEAVES:
            self._settle(start_at)
        return True

    def _cut(self, total: int) -> None:
        """Cut a torn tail off: nothing signed may be in it."""
        sought = b" head {"
        for at in range(self._end + 9, total, CUT_BYTES):  # 9: the torn line may be a head's
            if sought in os.pread(self._descriptor, CUT_BYTES + len(sought) - 1, at):
                raise CorruptData(
                    "the ledger was changed before a signed head",
                    where=f"{self._path} at {self._end}",
                    hint="keep the file as evidence; another site has its heads",
                )
        self.repaired_bytes = total - self._end
        os.ftruncate(self._descriptor, self._end)
        os.fsync(self._descriptor)

    def _let_go(self) -> None:
        self._index.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _leaf_of(record: Json, body: bytes, *, start_at: int) -> Leaf:
    volume_id, node_id = record.get("volume_id"), record.get("node_id")
    segment, time_ms = record.get("segment"), record.get("time_ms")
    disk = record.get("disk_serial")
    if not (
        isinstance(volume_id, str)
        and isinstance(node_id, str)
        and isinstance(disk, str)
        and isinstance(segment, int)
        and isinstance(time_ms, int)
    ):
        raise CorruptData("not a receipt", where=f"ledger at {start_at}")
    return Leaf(
        start_at,
        leaf_hash(body),
        VolumeId(volume_id),
        NodeId(node_id),
        disk,
        segment,
        _STANDING.get(str(record.get("event")), Standing.HELD),
        time_ms,
    )


def _read_head(document: Json) -> TreeHead:
    try:
        return TreeHead(**document)  # type: ignore[arg-type]  # names checked, values compared
    except TypeError as error:
        raise CorruptData("not a tree head", where="ledger") from error
