"""Offline verifier of audit logs and location ledgers. Needs this file, Python and `cryptography`.

::

    python verify.py audit  DIRECTORY --keys keys.json [--head SEQUENCE:HASH]
    python verify.py ledger FILE      --keys keys.json [--node-keys nodes.json]
    python verify.py proof  FILE      [--keys keys.json] [--root root.pem] [--since EARLIER]

It imports nothing of Nuage, so that an auditor can read all that it trusts. `keys.json` is
``{"keys": [{"key_id": …, "site_id": …, "public_key": <base64>}]}``, taken from the
federation once, on another way than the log; a proof carries its certificates up to the
federation's root. Formats: docs/protocols/audit.md, ledger.md.
"""

import argparse
import base64
import hashlib
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

AUDIT_CONTEXT: Final = b"nuage/audit/1\0"
RECEIPT_CONTEXT: Final = b"nuage/receipt/1\0"
HEAD_CONTEXT: Final = b"nuage/ledger-head/1\0"
PROOF_CONTEXT: Final = b"nuage/proof/1\0"
LOSS_CONTEXT: Final = b"nuage/disk-lost/1\0"
CLOCKS_DIFFER_MS: Final = 300_000  # a site's and its node's, as much as certificates bear
GENESIS: Final = "0" * 64  # the hash before the first record
LINE_BYTES_MAX: Final = 64 * 1024
PROBLEMS_MAX: Final = 100  # a log with more is lost anyway
ENDS: Final = ("expire", "lost")
UNREADABLE: Final = (  # what a document that anybody wrote makes Python and cryptography raise
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, InvalidSignature,
    UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension, x509.InvalidVersion,
)  # fmt: skip
WHAT_LOST_MEANS: Final = "(of an encrypted volume nobody can read them once its key is destroyed)"

Json: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True)
class SiteKey:
    """A public key (32 bytes, Ed25519) and the site that signs with it."""

    site_id: str
    public_key: bytes


@dataclass(slots=True)
class Report:
    """What a verification found. Any entry in `problems` means: do not believe the file."""

    record_count: int = 0
    entry_count: int = 0
    signature_count: int = 0
    unsigned_tail_count: int = 0
    repairs: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    head_sequence: int = 0
    head_hash: str = GENESIS
    site_id: str = ""

    @property
    def is_sound(self) -> bool:
        """Tell whether everything that was signed is as it was signed."""
        return not self.problems

    def found(self, problem: str) -> None:
        """Note a problem."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


# Shared with the writers ------------------------------------------------------------------


def canonical(value: Json) -> bytes:
    """Return the one JSON form that is hashed and signed: sorted, without spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def chain_hash(previous: str, body: bytes) -> str:
    """Return the hash of an audit record after the record with hash `previous`."""
    return hashlib.sha256(bytes.fromhex(previous) + body).hexdigest()


def signature_holds(public_key: bytes, signature_b64: object, message: bytes) -> bool:
    """Tell whether a base64 signature is of `message`."""
    try:
        signature = base64.b64decode(str(signature_b64), validate=True)
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return base64.b64encode(signature).decode() == signature_b64


def seal_message(record: Json) -> bytes:
    """Return what the signature of an audit seal covers: the record without it."""
    return AUDIT_CONTEXT + canonical({k: v for k, v in record.items() if k != "signature"})


def receipt_message(receipt: Json) -> bytes:
    """Return what an IO-node signs in a receipt."""
    return RECEIPT_CONTEXT + canonical({k: v for k, v in receipt.items() if k != "signature"})


def loss_message(loss: Json) -> bytes:
    """Return what a site signs when a disk is declared lost."""
    return LOSS_CONTEXT + canonical({k: v for k, v in loss.items() if k != "signature"})


def head_message(head: Json) -> bytes:
    """Return what a site signs in a tree head."""
    return HEAD_CONTEXT + canonical({k: v for k, v in head.items() if k != "signature"})


def proof_message(body: Json) -> bytes:
    """Return what the site that was asked signs in a volume's proof: its whole body."""
    return PROOF_CONTEXT + canonical(body)


# Audit log --------------------------------------------------------------------------------


def audit_segments(directory: Path) -> list[Path]:
    """Return the log's files in order."""
    return sorted(directory.glob("audit-*.log"))


def verify_audit(
    path: Path, keys: Mapping[str, SiteKey], *, head: tuple[int, str] | None = None
) -> Report:
    """Verify the audit log in directory `path` with the sites' public keys alone.

    `head` is a (sequence, hash) that somebody else kept, for instance another site: with it
    even a log that was cut short at a seal, or rewritten by the site itself, is detected.
    """
    report = Report()
    if not (segments := audit_segments(path)):
        report.found(f"{path}: no audit log here")
    head_seen = head is None
    for index, segment in enumerate(segments):
        is_last = index == len(segments) - 1
        for number, line in enumerate(_lines(segment), start=1):
            where = f"{segment.name} line {number}"
            if not _take_audit_line(report, line, keys, where=where, is_last=is_last):
                return report  # the chain is broken: whatever follows proves nothing
            if head is not None and (report.head_sequence, report.head_hash) == head:
                head_seen = True
    if not head_seen:
        report.found(f"record {head} that somebody else has seen is not in this log")
    if report.record_count and not report.signature_count:
        report.found("nothing in this log is signed")
    return report


def _take_audit_line(
    report: Report, line: bytes, keys: Mapping[str, SiteKey], *, where: str, is_last: bool
) -> bool:
    try:
        digest, record = split_audit_line(line)
    except ValueError as error:
        kept = "; opening the log repairs a torn tail" if is_last else ""
        report.found(f"{where}: {error}{kept}")
        return False
    kind, sequence = record.get("kind"), record.get("sequence")
    if report.record_count == 0:
        if kind != "open":
            report.found(f"{where}: a log begins with an open record, not {kind!r}")
            return False
        report.head_hash = str(record["previous"])
        report.head_sequence = int(str(sequence)) - 1
        report.site_id = str(record.get("site_id"))
        if report.head_sequence == 0 and report.head_hash != GENESIS:
            report.found(f"{where}: the first record has something before it")
            return False
    if record.get("previous") != report.head_hash or sequence != report.head_sequence + 1:
        report.found(f"{where}: does not follow the record before it")
        return False
    if digest != chain_hash(report.head_hash, line[65:-1]):
        report.found(f"{where}: its hash does not fit its content")
        return False
    report.head_hash, report.head_sequence = digest, report.head_sequence + 1
    report.record_count += 1
    return _count_audit_record(report, record, keys, where=where)


def _count_audit_record(
    report: Report, record: Json, keys: Mapping[str, SiteKey], *, where: str
) -> bool:
    kind = record.get("kind")
    if record.get("site_id") != report.site_id:
        report.found(f"{where}: of another site")
        return False
    if kind == "seal":
        key = keys.get(str(record.get("key_id")))
        if key is None or key.site_id != report.site_id:
            report.found(f"{where}: sealed with a key that is not {report.site_id}'s")
            return False
        if not signature_holds(key.public_key, record.get("signature"), seal_message(record)):
            report.found(f"{where}: the seal's signature does not hold")
            return False
        report.signature_count += 1
        report.unsigned_tail_count = 0
        return True
    report.unsigned_tail_count += 1
    if kind == "entry":
        report.entry_count += 1
    elif kind == "repair":
        report.repairs.append(f"{where}: {record.get('torn_bytes')} bytes of a torn tail set aside")
    elif kind != "open":
        report.found(f"{where}: unknown kind {kind!r}")
        return False
    return True


def split_audit_line(line: bytes) -> tuple[str, Json]:
    """Return hash and record of a line: 64 hex digits, a space, JSON, a line feed.

    Raises:
        ValueError: it is not such a line.
    """
    if len(line) < 67 or line[64:65] != b" " or line[-1:] != b"\n":
        raise ValueError("not a whole record")
    record = _parsed(line[65:-1])
    if not isinstance(record, dict) or canonical(record) != line[65:-1]:
        raise ValueError("not a record in canonical form")
    numbers = [record.get(name) for name in ("sequence", "time_ms", "tick")]
    if not _is_hash(record.get("previous")) or any(type(n) is not int for n in numbers):
        raise ValueError("not an audit record")
    return line[:64].decode("ascii"), record


def read_seal(seal: str, keys: Mapping[str, SiteKey], site_id: str) -> tuple[int, str]:
    """Return (sequence, hash) of a sealed line of a site's log that was kept elsewhere.

    Raises:
        ValueError: it is not a seal, or not that site's.
    """
    line = seal.encode() + b"\n"
    digest, record = split_audit_line(line)
    key = keys.get(str(record.get("key_id")))
    if (
        record.get("kind") != "seal"
        or record.get("site_id") != site_id
        or key is None
        or key.site_id != site_id
        or digest != chain_hash(str(record["previous"]), line[65:-1])
        or not signature_holds(key.public_key, record.get("signature"), seal_message(record))
    ):
        raise ValueError(f"not a seal of site {site_id}")
    return int(str(record["sequence"])), digest


# Merkle tree (RFC 9162 §2.1) ----------------------------------------------------------------


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf (RFC 9162 §2.1.1)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node (RFC 9162 §2.1.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> bool:
    """Tell whether the leaf with hash `leaf` is at `index` of the tree (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size:
        return False
    fn, sn, found = index, size - 1, leaf
    for step in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            found = node_hash(step, found)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = node_hash(found, step)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and found == root


def verify_consistency(
    old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> bool:
    """Tell whether the old tree is the beginning of the new one (RFC 9162 §2.1.4.2)."""
    if old_size > new_size or old_size < 0:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    if old_size == 0:
        return not proof
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = path[0]
    for step in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old, new = node_hash(step, old), node_hash(step, new)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, step)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old == old_root and new == new_root


class Peaks:
    """Root of a growing tree in logarithmic time: the complete subtrees from left to right."""

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        self.size = size
        self._peaks = list(peaks)

    def append(self, leaf: bytes) -> list[bytes]:
        """Add a leaf's hash; equal neighbours merge as carries do in binary counting.

        Returns the leaf and the subtrees that it completes, each half of the next.
        """
        completed, carry = [leaf], self.size
        while carry & 1:
            completed.append(node_hash(self._peaks.pop(), completed[-1]))
            carry >>= 1
        self._peaks.append(completed[-1])
        self.size += 1
        return completed

    def root(self) -> bytes:
        """Return the root over all leaves so far."""
        if not self._peaks:
            return hashlib.sha256(b"").digest()
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes (RFC 9162 §2.1.1)."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


# Location ledger ----------------------------------------------------------------------------


def verify_ledger(
    path: Path,
    keys: Mapping[str, SiteKey],
    *,
    node_keys: Mapping[str, SiteKey] | None = None,
    head: tuple[int, str] | None = None,
) -> Report:
    """Verify a ledger's file: every signed head over the leaves before it, every receipt.

    Without `node_keys` the receipts' own signatures are not checked, only that the site's
    signed heads cover them. `head` is a (size, root) that somebody else kept.
    """
    report = Report()
    peaks, stories = Peaks(), Stories(keys)
    head_seen = head is None or head == (0, tree_root(()).hex())
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path.name} line {number}"
        try:
            kind, record, body = split_ledger_line(line)
        except ValueError as error:
            report.found(f"{where}: {error}")
            return report
        report.record_count += 1
        if kind == "leaf":
            peaks.append(leaf_hash(body))
            report.entry_count += 1
            report.unsigned_tail_count += 1
            _check_receipt(report, record, node_keys, where=where)
            if problem := stories.take(record):
                report.found(f"{where}: {problem}")
            continue
        root = peaks.root().hex()
        if not _check_head(report, record, keys, peaks.size, root, where=where):
            return report
        report.signature_count += 1
        report.unsigned_tail_count = 0
        report.head_sequence, report.head_hash = peaks.size, root
        head_seen = head_seen or head == (peaks.size, root)
    if not head_seen:
        report.found(f"head {head} that somebody else has seen is not in this ledger")
    if report.entry_count and not report.signature_count:
        report.found("nothing in this ledger is signed by its site")
    return report


class Stories:
    """What receipts tell of each segment on each disk, one after the other: a loss must fit.

    Lost is only what lay there, on a disk that its site declared lost, and nothing but `expire`
    follows: the disk came back and was erased.
    """

    def __init__(self, signers: Mapping[str, SiteKey]) -> None:
        self._signers = signers
        self._is_lost: dict[tuple[str, ...], bool] = {}  # of what has not expired

    def take(self, receipt: Json) -> str:
        """Return what is wrong with the next receipt, "" when nothing."""
        names = ("volume_id", "site_id", "node_id", "disk_serial", "segment")
        place = tuple(str(receipt.get(name)) for name in names)
        was_lost = self._is_lost.get(place)
        match receipt.get("event"):
            case "lost":
                self._is_lost[place] = True
                if was_lost is None:
                    return "it tells as lost what did not lie there"
                return _undeclared(receipt, self._signers)
            case "expire":
                self._is_lost.pop(place, None)
            case _:
                self._is_lost[place] = bool(was_lost)
                if was_lost:
                    return "it lies on a disk with which it was lost before"
        return "it names a lost disk and tells no loss" if "declaration" in receipt else ""


def _undeclared(receipt: Json, signers: Mapping[str, SiteKey]) -> str:
    """Return why nobody's word stands behind a loss, "" where somebody's does."""
    loss = receipt.get("declaration")
    if not isinstance(loss, dict):
        return "nobody declared its disk lost"
    if any(loss.get(name) != receipt[name] for name in ("site_id", "node_id", "disk_serial")):
        return "another disk than its own was declared lost"
    key = signers.get(str(loss.get("key_id")))
    if (
        key is None
        or key.site_id != loss["site_id"]
        or not signature_holds(key.public_key, loss.get("signature"), loss_message(loss))
    ):
        return "the site's word that its disk is lost does not hold"
    if int(str(loss["time_ms"])) > int(str(receipt["time_ms"])) + CLOCKS_DIFFER_MS:
        return "it was told as lost before its disk was declared lost"
    return ""


def check_receipt(receipt: Json, key: SiteKey) -> bool:
    """Tell whether a receipt was signed with a node's key, at the site that it names."""
    return receipt.get("site_id") == key.site_id and signature_holds(
        key.public_key, receipt.get("signature"), receipt_message(receipt)
    )


def _check_receipt(
    report: Report, receipt: Json, node_keys: Mapping[str, SiteKey] | None, *, where: str
) -> None:
    if node_keys is None:
        return
    key = node_keys.get(str(receipt.get("key_id")))
    if key is None:
        report.found(f"{where}: signed by a node that is not known")
    elif not check_receipt(receipt, key):
        report.found(f"{where}: the receipt's signature does not hold")


def _check_head(
    report: Report,
    record: Json,
    keys: Mapping[str, SiteKey],
    size: int,
    root: str,
    *,
    where: str,
) -> bool:
    report.site_id = report.site_id or str(record.get("site_id"))
    key = keys.get(str(record.get("key_id")))
    if key is None or key.site_id != record.get("site_id") or key.site_id != report.site_id:
        report.found(f"{where}: a head signed with a key that is not its site's")
        return False
    if (record.get("size"), record.get("root")) != (size, root):
        report.found(f"{where}: the signed head is not that of the {size} leaves before it")
        return False
    if not signature_holds(key.public_key, record.get("signature"), head_message(record)):
        report.found(f"{where}: the head's signature does not hold")
        return False
    return True


def ledger_line(kind: str, record: Json) -> bytes:
    """Return a line of a ledger: CRC-32 in 8 hex digits, kind, JSON, a line feed."""
    body = kind.encode() + b" " + canonical(record)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def split_ledger_line(line: bytes) -> tuple[str, Json, bytes]:
    """Return kind, record and the record's bytes of a line.

    Raises:
        ValueError: it is not a whole line, or does not fit its checksum.
    """
    if len(line) < 16 or line[8:9] != b" " or line[-1:] != b"\n":
        raise ValueError("not a whole record")
    content = line[9:-1]
    if line[:8] != b"%08x" % zlib.crc32(content):
        raise ValueError("does not fit its checksum")
    kind, _, body = content.partition(b" ")
    record = _parsed(body)
    if kind not in {b"leaf", b"head"} or not isinstance(record, dict) or canonical(record) != body:
        raise ValueError("not a record in canonical form")
    return kind.decode(), record, body


# Proof of a volume's places -------------------------------------------------------------------


@dataclass(slots=True)
class ProofReport:
    """What a volume's proof says. `silent`: sites of which it says nothing.

    `grown`: each ledger that only grew since an earlier proof. `covers`: what is left out.
    """

    volume: str = ""
    asked_site: str = ""
    root_fingerprint: str = ""
    is_anchored: bool = False
    receipt_count: int = 0
    head_count: int = 0
    places: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    covers: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Tell whether all of it is as it was signed."""
        return not self.problems


def verify_proof(
    data: bytes, *, keys: Mapping[str, SiteKey] | None = None, root_pem: str = "",
    since: bytes = b"",
) -> ProofReport:  # fmt: skip
    """Verify a volume's proof; `keys` and `root_pem` are what you know from elsewhere.

    `since`: an earlier proof. No ledger may have lost or changed anything that it had then.
    """
    report = ProofReport()
    try:
        _check_proof(report, data, keys, root_pem)
        if since:
            _check_growth(report, since, data)
    except UNREADABLE as error:
        report.problems.append(f"this is not a volume's proof: {error!r}")
    return report


def heads_of_proof(data: bytes) -> dict[str, int]:
    """Return how many receipts each site's head covers in a proof.

    Raises:
        ValueError: it is no proof.
    """
    try:
        sites = _parsed(data)["body"]["sites"]  # type: ignore[index]
        heads = {str(site["site_id"]): site["head"] for site in sites}
        return {site_id: int(head["size"]) for site_id, head in heads.items() if head is not None}
    except UNREADABLE as error:
        raise ValueError(f"this is not a volume's proof: {error!r}") from error


def _check_growth(report: ProofReport, since: bytes, data: bytes) -> None:
    """Check that each ledger of the earlier proof begins the one of this proof."""
    earlier = ProofReport()
    _check_proof(earlier, since, None, "")
    if earlier.problems or earlier.root_fingerprint != report.root_fingerprint:
        report.problems.append("the earlier proof does not hold, or stands on another root")
        return
    before, now = json.loads(since)["body"], json.loads(data)["body"]
    if before["volume"]["iaas_id"] != now["volume"]["iaas_id"]:
        report.problems.append("the earlier proof is of another IaaS")
        return
    sites = {site["site_id"]: site for site in now["sites"]}
    for was in before["sites"]:
        if was["head"] is not None and was["site_id"] not in report.silent:
            _check_grown(report, was, sites.get(was["site_id"]))


def _check_grown(report: ProofReport, was: Json, site: Json | None) -> None:
    old, site_id = _inner(was, "head"), was["site_id"]
    if site is None or site["head"] is None:
        report.problems.append(f"{site_id} had a ledger, and has none any more")
        return
    new = _inner(site, "head")
    growth = site.get("growth")
    if not isinstance(growth, dict) or growth["since"] != old["size"]:
        report.problems.append(f"{site_id}: it was not proven since that proof: prove it --since")
        return
    path = growth["path"]
    if not isinstance(path, list) or not verify_consistency(
        int(str(old["size"])), int(str(new["size"])), [bytes.fromhex(str(step)) for step in path],
        bytes.fromhex(str(old["root"])), bytes.fromhex(str(new["root"])),
    ):  # fmt: skip
        report.problems.append(f"{site_id}: its ledger was rewritten since the earlier proof")
        return
    report.grown.append(f"{site_id}: from {old['size']} to {new['size']} receipts, none rewritten")


def _check_proof(
    report: ProofReport, data: bytes, keys: Mapping[str, SiteKey] | None, root_pem: str
) -> None:
    document = _parsed(data)
    if not isinstance(document, dict) or canonical(document) + b"\n" != data:
        raise ValueError("not in canonical form")
    body = document["body"]
    if len(document) != 4 or body["format"] != "nuage-proof/1":
        raise ValueError("of another format")
    volume = body["volume"]
    name = f"{volume['name']} " if volume["name"] else ""
    report.volume = f"{name}({volume['volume_id']})" + ", deleted" * bool(volume.get("is_deleted"))
    report.asked_site = str(document["site_id"])
    root = x509.load_pem_x509_certificate(body["root"].encode())
    root.verify_directly_issued_by(root)
    report.root_fingerprint = root.fingerprint(hashes.SHA256()).hex()
    if root_pem and x509.load_pem_x509_certificate(root_pem.encode()) != root:
        report.problems.append("it stands on another root than the one that you trust")
    report.is_anchored = bool(root_pem) or keys is not None
    signers: dict[str, SiteKey] = {}
    for site in body["sites"]:
        signers |= _signers_of(site, root)
    for key_id, key in signers.items():
        if keys is not None and keys.get(key_id) != key:
            report.problems.append(f"{key.site_id} signs with a key that you do not know: {key_id}")
    asked = signers.get(document["key_id"])
    if (
        asked is None
        or asked.site_id != document["site_id"]
        or not signature_holds(asked.public_key, document["signature"], proof_message(body))
    ):
        report.problems.append("the signature of the site that was asked does not hold")
    for site in body["sites"]:
        _check_site(report, site, signers, body)
    report.silent += [str(site) for site in body["silent"]]
    report.covers += _told_selection(body["selection"]) if "selection" in body else ()


def _told_selection(selection: Json) -> Iterator[str]:
    """Return lines for what a proof leaves out: nothing where it is of all times and one page."""
    for name, word in (("from_ms", "after"), ("until_ms", "before")):
        if time_ms := int(str(selection[name])):
            moment = datetime.fromtimestamp(time_ms // 1000, tz=UTC).isoformat()
            yield f"only what lay somewhere {word} {moment}"
    for name, words in (("after", "a further page:"), ("next", "not the last page: the next is")):
        if page := sorted(_inner(selection, name).items()):
            yield f"{words} behind receipt {', '.join(f'{n} of {site}' for site, n in page)}"


def _signers_of(site: Json, root: x509.Certificate) -> dict[str, SiteKey]:
    """Return a site's signing keys; raises ValueError unless they come from the root."""
    authority = _authority_of(site, root)
    domain = _domain_of(site, root)
    found: dict[str, SiteKey] = {}
    for signer in x509.load_pem_x509_certificates(str(site["signers"]).encode()):
        signer.verify_directly_issued_by(authority)
        names = _alternative_names(signer)
        if names.get_values_for_type(x509.DNSName) != [f"signer.{domain}"]:
            raise ValueError(f"not a signer of {site['site_id']}")
        key_id, raw = _key_of(signer)
        found[key_id] = SiteKey(str(site["site_id"]), raw)
    return found


def _authority_of(site: Json, root: x509.Certificate) -> x509.Certificate:
    authority = x509.load_pem_x509_certificate(str(site["authority"]).encode())
    authority.verify_directly_issued_by(root)
    constraints = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    domains = [n.value for n in constraints.permitted_subtrees or () if isinstance(n, x509.DNSName)]
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    if not basic.ca or domains != [_domain_of(site, root)]:
        raise ValueError(f"not the authority of {site['site_id']}")
    return authority


def _domain_of(site: Json, root: x509.Certificate) -> str:
    (federation,) = root.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
    return f"{site['site_id']}.{federation.value!s}.nuage.internal"


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def _key_of(certificate: x509.Certificate) -> tuple[str, bytes]:
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise TypeError("not an Ed25519 key")
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha1(raw, usedforsecurity=False).hexdigest(), raw


def _nodes_of(site: Json, root: x509.Certificate) -> dict[str, tuple[str, SiteKey]]:
    """Return the IO-nodes whose certificates are there, by key id."""
    authority = _authority_of(site, root)
    found: dict[str, tuple[str, SiteKey]] = {}
    certificates = site["certificates"]
    if not isinstance(certificates, dict):
        raise TypeError("certificates")
    for key_id, pem in certificates.items():
        certificate = x509.load_pem_x509_certificate(str(pem).encode())
        certificate.verify_directly_issued_by(authority)
        uris = _alternative_names(certificate).get_values_for_type(x509.UniformResourceIdentifier)
        (site_id, role, node_id) = uris[0].rsplit("/", 3)[1:]
        found_id, raw = _key_of(certificate)
        if site_id != site["site_id"] or role != "ionode" or found_id != key_id:
            raise ValueError(f"not the certificate of an IO-node of {site['site_id']}")
        found[key_id] = (node_id, SiteKey(site_id, raw))
    return found


def _check_site(
    report: ProofReport, site: Json, signers: Mapping[str, SiteKey], body: Json
) -> None:
    site_id, head = str(site["site_id"]), site["head"]
    receipts = site["receipts"]
    if head is None and not receipts:
        return
    if not isinstance(receipts, list) or not isinstance(head, dict):
        raise TypeError(f"receipts of {site_id} without a head")
    key = signers.get(str(head["key_id"]))
    if (
        key is None
        or key.site_id != site_id
        or head["site_id"] != site_id
        or head["ledger"] != _inner(body, "volume")["iaas_id"]
        or not signature_holds(key.public_key, head["signature"], head_message(head))
    ):
        report.problems.append(f"the head of {site_id}'s ledger does not hold")
        return
    report.head_count += 1
    nodes = _nodes_of(site, x509.load_pem_x509_certificate(str(body["root"]).encode()))
    for entry in receipts:
        _check_proven(report, entry, head, nodes, body)
    own = [entry["receipt"] for entry in sorted(receipts, key=lambda entry: int(entry["index"]))]
    stories = Stories(signers)
    report.problems += [f"{site_id}: {problem}" for problem in map(stories.take, own) if problem]
    report.places += _told_places(site, own, body)
    report.lost += _told_losses(own)
    refusal = _refusal_of(_inner(body, "contract"), site)
    if refusal and receipts:
        report.outside.append(f"{site_id}: {refusal}")


def _inner(document: Json, name: str) -> Json:
    value = document[name]
    if not isinstance(value, dict):
        raise TypeError(name)
    return value


def _check_proven(
    report: ProofReport,
    entry: Json,
    head: Json,
    nodes: Mapping[str, tuple[str, SiteKey]],
    body: Json,
) -> None:
    receipt, index, path = _inner(entry, "receipt"), entry["index"], entry["path"]
    if not isinstance(path, list) or not isinstance(index, int) or isinstance(index, bool):
        raise TypeError("path")
    where = f"receipt {index} of {head['site_id']}"
    node_id, key = nodes[str(receipt["key_id"])]
    if receipt["volume_id"] != _inner(body, "volume")["volume_id"]:
        report.problems.append(f"{where}: of another volume")
    if node_id != receipt["node_id"] or not check_receipt(receipt, key):
        report.problems.append(f"{where}: the IO-node's signature does not hold")
    steps = [bytes.fromhex(str(step)) for step in path]
    size, root = int(str(head["size"])), bytes.fromhex(str(head["root"]))
    if not verify_inclusion(leaf_hash(canonical(receipt)), index, size, steps, root):
        report.problems.append(f"{where}: it is not under the signed head")
    report.receipt_count += 1


def _refusal_of(contract: Json, site: Json) -> str:
    """Return which rule of the contract a site breaks, "" when none."""
    for rule, found in (
        ("sites", site["site_id"]),
        ("data_countries", site["country"]),
        ("operator_countries", site["operator_country"]),
    ):
        allowed = contract[rule]
        if isinstance(allowed, list) and allowed and found not in allowed:
            return f"{found} is not among the contract's {rule} {', '.join(map(str, allowed))}"
    if int(str(site["tier"])) < int(str(contract["tier_min"])):
        return f"tier {site['tier']} is below {contract['tier_min']}"
    return ""


def _told_places(site: Json, receipts: Sequence[Json], body: Json) -> list[str]:
    """Return a line for each IO-node: how many segments it held, by content, from when to when."""
    law = f"{site['place']}, {site['country']}, {site['operator']} ({site['operator_country']})"
    lines = []
    for node_id in sorted({str(receipt["node_id"]) for receipt in receipts}):
        own = [receipt for receipt in receipts if receipt["node_id"] == node_id]
        count = len({_content(r) for r in own})
        last_told = {(str(r["disk_serial"]), str(r["segment"])): r for r in own}.values()
        open_count = len({_content(r) for r in last_told if r["event"] not in ENDS})
        lost_count = len({_content(r) for r in last_told if r["event"] == "lost"})
        first, *_, last = sorted(int(str(r["time_ms"])) for r in (*own, *own))
        times = first, int(str(body["time_ms"])) if open_count else last
        since, end = (datetime.fromtimestamp(t // 1000, tz=UTC).isoformat() for t in times)
        until = f"{open_count} of them with no end told by {end}" if open_count else f"until {end}"
        lost = f", {lost_count} of them lost" * bool(lost_count)
        lines.append(f"{node_id} in {law}: {count} segments since {since}, {until}{lost}")
    return lines


def _content(receipt: Json) -> tuple[str, str]:
    return str(receipt["segment"]), str(receipt["chain_hash"])


def _told_losses(receipts: Sequence[Json]) -> list[str]:
    """Return a line for each disk with which segments were lost that nobody has erased since."""
    lost: dict[tuple[str, str], Json] = {}
    for receipt in receipts:
        place = str(receipt["disk_serial"]), f"{receipt['node_id']} {receipt['segment']}"
        if receipt["event"] == "lost" and isinstance(receipt.get("declaration"), dict):
            lost[place] = _inner(receipt, "declaration")
        else:
            lost.pop(place, None)
    counts = Counter(canonical(loss) for loss in lost.values())
    lines = []
    for loss in {canonical(loss): loss for loss in lost.values()}.values():
        count = counts[canonical(loss)]
        moment = datetime.fromtimestamp(int(str(loss["time_ms"])) // 1000, tz=UTC).isoformat()
        lines.append(
            f"{count} segments with disk {loss['disk_serial']} of {loss['node_id']}, declared lost"
            f" by {loss['declared_by']} at {moment}: not erased, whoever has the disk has them"
        )
    return lines


def told_proof(report: ProofReport) -> Iterator[str]:
    """Return a proof's report in words, line by line."""
    yield "SOUND" if report.is_sound else "NOT SOUND: do not believe this file"
    yield f"  volume          {report.volume or '?'}, asked at {report.asked_site or '?'}"
    yield f"  receipts        {report.receipt_count}, under {report.head_count} signed heads"
    anchor = "the one that you trust" if report.is_anchored else "compare it with the operators'"
    yield f"  root            SHA-256 {report.root_fingerprint} ({anchor})"
    yield from (f"  covers          {line}" for line in report.covers)
    yield from (f"  place           {place}" for place in report.places)
    yield from (f"  LOST            {disk}" for disk in report.lost)
    if report.lost:
        yield f"  {'':<15} {WHAT_LOST_MEANS}"
    yield from (f"  ledger grew     {ledger}" for ledger in report.grown)
    yield from (
        f"  NOT ANSWERED    {site}: this proof says nothing of it" for site in report.silent
    )
    yield from (f"  OUTSIDE         {place}" for place in report.outside)
    yield from (f"  problem         {problem}" for problem in report.problems)


# Command line -------------------------------------------------------------------------------


def load_keys(path: Path) -> dict[str, SiteKey]:
    """Return the keys in a ``keys.json``."""
    document = json.loads(path.read_text())
    return {
        entry["key_id"]: SiteKey(entry["site_id"], base64.b64decode(entry["public_key"]))
        for entry in document["keys"]
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify what the command line names; return 0 when it is sound, 1 when it is not."""
    parser = argparse.ArgumentParser(description="Verify a Nuage audit log or location ledger.")
    parser.add_argument("kind", choices=("audit", "ledger", "proof"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--keys", type=Path, help="the sites' public keys")
    parser.add_argument("--root", type=Path, help="the federation's root certificate (proof)")
    parser.add_argument("--since", type=Path, help="an earlier proof of the same IaaS (proof)")
    parser.add_argument("--node-keys", type=Path, help="the IO-nodes' public keys (ledger)")
    parser.add_argument("--head", help="SEQUENCE:HASH that somebody else kept")
    options = parser.parse_args(arguments)
    if options.kind == "proof":
        proof = verify_proof(
            options.path.read_bytes(),
            keys=load_keys(options.keys) if options.keys else None,
            root_pem=options.root.read_text() if options.root else "",
            since=options.since.read_bytes() if options.since else b"",
        )
        sys.stdout.write("\n".join(told_proof(proof)) + "\n")
        return 0 if proof.is_sound and not proof.outside else 1
    if options.keys is None:
        parser.error("--keys is missing")
    keys = load_keys(options.keys)
    head: tuple[int, str] | None = None
    if options.head:
        sequence, _, digest = options.head.partition(":")
        head = int(sequence), digest
    if options.kind == "audit":
        report = verify_audit(options.path, keys, head=head)
    else:
        node_keys = load_keys(options.node_keys) if options.node_keys else None
        report = verify_ledger(options.path, keys, node_keys=node_keys, head=head)
    sys.stdout.write("\n".join(told(report)) + "\n")
    return 0 if report.is_sound else 1


def told(report: Report) -> Iterator[str]:
    """Return a report in words, line by line."""
    yield "SOUND" if report.is_sound else "NOT SOUND: do not believe this file"
    yield f"  site            {report.site_id or '?'}"
    yield f"  entries         {report.entry_count} in {report.record_count} records"
    yield f"  signatures      {report.signature_count}, all of them checked"
    yield f"  after the last  {report.unsigned_tail_count} records not signed yet"
    yield f"  head            {report.head_sequence}:{report.head_hash}"
    yield from (f"  repaired        {repair}" for repair in report.repairs)
    yield from (f"  problem         {problem}" for problem in report.problems)


def _is_hash(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while line := file.readline(LINE_BYTES_MAX + 1):
            yield line


if __name__ == "__main__":
    sys.exit(main())
