"""The location ledger: where each part of a volume has been, provable to an outsider.

An append-only file of receipts, one Merkle tree over them (RFC 9162 §2), tree heads signed by
the site (docs/protocols/ledger.md). An IO-node signs a receipt when it seals, moves or expires a
segment of a journal. A head proves every receipt before it; consistency between two heads proves
that nothing was rewritten in between; `nuage.trust.verify` checks both offline.

One ledger is of one IaaS at one site. What is kept in memory is the hashes: some 200 bytes a
receipt.
"""

import base64
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.errors import CorruptData, InvalidRequest, LocalProtocolError, NotFound
from nuage.ids import NodeId, SiteId, VolumeId
from nuage.trust.book import key_id_of
from nuage.trust.files import sync_directory
from nuage.trust.verify import (
    Json,
    SiteKey,
    canonical,
    check_receipt,
    head_message,
    leaf_hash,
    ledger_line,
    node_hash,
    receipt_message,
    split_ledger_line,
    tree_root,
)

HEAD_LEAVES: Final = 256  # sign at least this often
HEAD_INTERVAL_S: Final = 60.0
TEXT_CHARS_MAX: Final = 256
SEQUENCE_MAX: Final = 2**63 - 1
SEGMENT_MAX: Final = 2**64 - 1  # those of compaction and of a copy made anew have the top bit set
FILE_MODE: Final = 0o640
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_TEXT: Final = re.compile(r"[A-Za-z0-9 ._:+/=-]*")  # needs no escape in any JSON writer


class LocationEvent(Enum):
    """What happened to a segment at a place."""

    SEAL = "seal"  # it is complete and rests here
    MOVE = "move"  # it has arrived here from elsewhere
    EXPIRE = "expire"  # it was erased here


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an IO-node vouches for: this part of this volume, on this disk, at this time.

    `chain_hash` is the journal's hash chain at `sequence_last` (64 hex digits). `key_id` and
    `signature` (base64) are the node's, empty before `sign_receipt`.
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

    def document(self) -> Json:
        """Return the JSON object whose canonical form is signed and hashed."""
        return {**asdict(self), "event": self.event.value}

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
    fields = asdict(receipt) | {"key_id": key_id_of(key.public_key()), "signature": ""}
    unsigned = Receipt(**fields)
    signature = key.sign(receipt_message(unsigned.document()))
    return Receipt(**(fields | {"signature": base64.b64encode(signature).decode()}))


def read_receipt(document: Json) -> Receipt:
    """Return the receipt of a JSON object.

    Raises:
        InvalidRequest: it is not a receipt.
    """
    try:
        fields = {**document, "event": LocationEvent(document["event"])}
        return Receipt(**fields)  # type: ignore[arg-type]  # checked by Receipt and below
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidRequest("this is not a receipt", field="receipt") from error


class MerkleTree:
    """Hashes of a growing tree: roots and proofs for any size so far (RFC 9162 §2.1).

    `_levels[k]` holds the complete subtrees of 2^k leaves, from left to right.
    """

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]

    @property
    def size(self) -> int:
        """Return how many leaves there are."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> int:
        """Add a leaf's hash and return its index."""
        self._levels[0].append(leaf)
        height = 0
        while len(self._levels[height]) % 2 == 0:
            level = self._levels[height]
            if height + 1 == len(self._levels):
                self._levels.append([])
            self._levels[height + 1].append(node_hash(level[-2], level[-1]))
            height += 1
        return self.size - 1

    def root(self, size: int | None = None) -> bytes:
        """Return the root over the first `size` leaves."""
        count = self.size if size is None else size
        return self._hash(0, count) if count else tree_root(())

    def inclusion(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """Return the path that proves leaf `index` (RFC 9162 §2.1.3.1), leaf upwards.

        Raises:
            NotFound: there is no such leaf in a tree of `size`.
        """
        count = self.size if size is None else size
        if not 0 <= index < count <= self.size:
            raise NotFound("receipt", str(index))
        path: list[bytes] = []
        start, end = 0, count
        while end - start > 1:
            split = start + _largest_power_below(end - start)
            if index < split:
                path.append(self._hash(split, end))
                end = split
            else:
                path.append(self._hash(start, split))
                start = split
        return tuple(reversed(path))

    def consistency(self, old_size: int, new_size: int | None = None) -> tuple[bytes, ...]:
        """Return what proves that the old tree begins the new one (RFC 9162 §2.1.4.1).

        Raises:
            NotFound: a size is beyond what there is.
        """
        count = self.size if new_size is None else new_size
        if not 0 <= old_size <= count <= self.size:
            raise NotFound("tree of size", str(old_size))
        if old_size in {0, count}:
            return ()
        path: list[bytes] = []
        start, end, is_whole = 0, count, True
        while end != old_size:
            split = start + _largest_power_below(end - start)
            if old_size <= split:
                path.append(self._hash(split, end))
                end = split
            else:
                path.append(self._hash(start, split))
                start, is_whole = split, False
        if not is_whole:
            path.append(self._hash(start, end))
        return tuple(reversed(path))

    def _hash(self, start: int, end: int) -> bytes:
        """Return the hash of leaves `start` to `end`; `start` is a multiple of its power."""
        size = end - start
        height = size.bit_length() - 1
        if size == 1 << height:
            return self._levels[height][start >> height]
        split = start + _largest_power_below(size)
        return node_hash(self._hash(start, split), self._hash(split, end))


def _largest_power_below(size: int) -> int:
    """Return the largest power of two that is less than `size` (above 1)."""
    return 1 << ((size - 1).bit_length() - 1)


class LocationLedger:
    """The file of one ledger. One writer: the controller of the site.

    A crash may lose receipts after the last `sync` and tear the last line; the torn line is cut
    off and counted in `repaired_bytes`. A line that does not fit anywhere else is CorruptData.
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
        self._tree = MerkleTree()
        self._offsets: list[int] = []
        self._heads: list[TreeHead] = []
        self._by_volume: dict[VolumeId, list[int]] = {}
        self._leaves: set[bytes] = set()
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, FILE_MODE)
        self._end = 0
        self._load()
        sync_directory(path.parent)

    @property
    def size(self) -> int:
        """Return how many receipts there are."""
        return self._tree.size

    @property
    def head(self) -> TreeHead | None:
        """Return the last signed head; publish it to the other sites."""
        return self._heads[-1] if self._heads else None

    def has(self, receipt: Receipt) -> bool:
        """Tell whether exactly this receipt is in it: a node hands over again what it must."""
        return leaf_hash(receipt.leaf()) in self._leaves

    def append(self, receipt: Receipt, node_key: SiteKey) -> int:
        """Add a receipt and return its index; durable after `sync`.

        Raises:
            InvalidRequest: `node_key` did not sign it.
        """
        document = receipt.document()
        if not check_receipt(document, node_key):
            raise InvalidRequest(
                f"the receipt was not signed by {receipt.node_id} of {receipt.site_id}",
                field="signature",
            )
        self._write("leaf", document)
        return self._added(receipt.volume_id, receipt.leaf())

    def sync(self) -> TreeHead | None:
        """Make everything durable, sign a head when it is time, and return the last one."""
        os.fsync(self._descriptor)
        last = self.head
        unsigned_count = self.size - (last.size if last else 0)
        waited_s = self._now_s() - (last.time_ms / 1000 if last else 0.0)
        if unsigned_count >= HEAD_LEAVES or (unsigned_count and waited_s >= HEAD_INTERVAL_S):
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
        self._write("head", document)
        os.fsync(self._descriptor)
        head = _read_head(document)
        self._heads.append(head)
        return head

    def close(self) -> None:
        """Sign what is left and close the file."""
        if self._descriptor < 0:
            return
        last = self.head
        if self.size > (last.size if last else 0):
            self.sign_head()
        os.close(self._descriptor)
        self._descriptor = -1

    def receipts_of(self, volume_id: VolumeId) -> Iterator[tuple[int, Receipt]]:
        """Yield index and receipt of everything known of a volume, oldest first."""
        for index in self._by_volume.get(volume_id, ()):
            yield index, self.receipt(index)

    def receipt(self, index: int) -> Receipt:
        """Return the receipt at `index`, read from the file.

        Raises:
            NotFound: there is none.
            CorruptData: the file has changed under us.
        """
        if not 0 <= index < self.size:
            raise NotFound("receipt", str(index))
        start = self._offsets[index]
        following = self._offsets[index + 1] if index + 1 < len(self._offsets) else self._end
        data = os.pread(self._descriptor, following - start, start)
        line = data[: data.find(b"\n") + 1]
        try:
            _, record, _ = split_ledger_line(line)
            return read_receipt(record)
        except (ValueError, InvalidRequest) as error:
            raise CorruptData(str(error), where=f"{self._path} at {start}") from error

    def prove(self, index: int) -> InclusionProof:
        """Return the proof of a receipt under the last head, which is signed now if need be."""
        receipt = self.receipt(index)
        head = self.head
        if head is None or head.size <= index:
            head = self.sign_head()
        path = self._tree.inclusion(index, head.size)
        steps = tuple(step.hex() for step in path)
        return InclusionProof(receipt=receipt, index=index, path=steps, head=head)

    def prove_growth(self, old_size: int) -> tuple[str, ...]:
        """Return the proof that the tree under the last head only adds to its first leaves (hex).

        Raises:
            NotFound: no head covers `old_size` leaves.
        """
        size = 0 if self.head is None else self.head.size
        return tuple(step.hex() for step in self._tree.consistency(old_size, size))

    def _write(self, kind: str, document: Json) -> None:
        if self._descriptor < 0:
            raise LocalProtocolError("the ledger is closed")
        line = ledger_line(kind, document)
        if kind == "leaf":
            self._offsets.append(self._end)
        written = 0
        while written < len(line):
            written += os.write(self._descriptor, line[written:])
        self._end += len(line)

    def _added(self, volume_id: VolumeId, leaf: bytes) -> int:
        digest = leaf_hash(leaf)
        self._leaves.add(digest)
        index = self._tree.append(digest)
        self._by_volume.setdefault(volume_id, []).append(index)
        return index

    def _load(self) -> None:
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            for line in file:
                if not self._take_line(line):
                    break
        total = os.fstat(self._descriptor).st_size
        if total > self._end:
            self._cut(total)

    def _take_line(self, line: bytes) -> bool:
        try:
            kind, record, body = split_ledger_line(line)
        except ValueError:
            return False
        if kind == "leaf":
            self._offsets.append(self._end)
            self._added(read_receipt(record).volume_id, body)
        else:
            head = _read_head(record)
            if (head.size, head.root) != (self.size, self._tree.root().hex()):
                raise CorruptData(
                    f"the signed head of {head.size} receipts does not fit them",
                    where=str(self._path),
                    hint="keep the file as evidence; another site has its heads",
                )
            self._heads.append(head)
        self._end += len(line)
        return True

    def _cut(self, total: int) -> None:
        """Cut a torn tail off: nothing signed may be in it."""
        tail = os.pread(self._descriptor, total - self._end, self._end)
        if b" head {" in tail[9:]:
            raise CorruptData(
                "the ledger was changed before a signed head",
                where=f"{self._path} at {self._end}",
                hint="keep the file as evidence; another site has its heads",
            )
        self.repaired_bytes = len(tail)
        os.ftruncate(self._descriptor, self._end)
        os.fsync(self._descriptor)


def _read_head(document: Json) -> TreeHead:
    try:
        return TreeHead(**document)  # type: ignore[arg-type]  # names checked, values compared
    except TypeError as error:
        raise CorruptData("not a tree head", where="ledger") from error
