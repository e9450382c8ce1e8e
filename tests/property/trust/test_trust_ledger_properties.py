"""The location ledger: proofs against a naive oracle, tampering, torn tails."""

import hashlib
import tempfile
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from nuage.errors import CorruptData, InvalidRequest, NotFound
from nuage.ids import NodeId, SiteId, VolumeId
from nuage.trust.book import key_id_of, raw_key
from nuage.trust.ledger import (
    LocationEvent,
    LocationLedger,
    Receipt,
    sign_receipt,
)
from nuage.trust.merkle import MerkleTree
from nuage.trust.verify import (
    Peaks,
    SiteKey,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
    verify_ledger,
)

MARNE = SiteId("marne")
SITE = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
NODE = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
SITE_KEY = SiteKey(MARNE, raw_key(SITE.public_key()))
NODE_KEY = SiteKey(MARNE, raw_key(NODE.public_key()))
KEYS = {key_id_of(SITE.public_key()): SITE_KEY}
NODE_KEYS = {key_id_of(NODE.public_key()): NODE_KEY}


def receipt(n: int, event: LocationEvent = LocationEvent.SEAL) -> Receipt:
    unsigned = Receipt(
        volume_id=VolumeId(f"volume-{n % 3}"),
        segment=n,
        sequence_first=100 * n,
        sequence_last=100 * n + 99,
        chain_hash=hashlib.sha256(b"%d" % n).hexdigest(),
        site_id=MARNE,
        node_id=NodeId("io1"),
        disk_serial="WD-1234",
        event=event,
        time_ms=1_800_000_000_000 + n,
    )
    return sign_receipt(unsigned, NODE)


def open_ledger(path: Path) -> LocationLedger:
    return LocationLedger(
        path, name="iaas-1", site_id=MARNE, key=lambda: SITE, now_s=lambda: 1_800_000_000.0
    )


def leaves(count: int) -> list[bytes]:
    return [leaf_hash(b"%d" % n) for n in range(count)]


def naive_root(hashes: list[bytes]) -> bytes:
    """RFC 9162 §2.1.1, word for word."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    inner = naive_root(hashes[:split]) + naive_root(hashes[split:])
    return hashlib.sha256(b"\x01" + inner).digest()


def tree_of(count: int) -> MerkleTree:
    tree = MerkleTree()
    for leaf in leaves(count):
        tree.append(leaf)
    return tree


def test_roots_are_those_of_the_rfc() -> None:
    hashes, tree, peaks = leaves(70), MerkleTree(), Peaks()
    assert tree.root() == peaks.root() == naive_root([])
    for size, leaf in enumerate(hashes, start=1):
        tree.append(leaf)
        peaks.append(leaf)
        assert tree.root() == peaks.root() == naive_root(hashes[:size])
    assert [tree.root(size) for size in range(71)] == [naive_root(hashes[:n]) for n in range(71)]


def test_every_inclusion_proof_holds_and_no_other() -> None:
    tree = tree_of(40)
    for size in range(1, 41):
        root = tree.root(size)
        for index in range(size):
            path, leaf = tree.inclusion(index, size), leaves(size)[index]
            assert verify_inclusion(leaf, index, size, path, root)
            assert not verify_inclusion(leaf_hash(b"x"), index, size, path, root)
            assert not verify_inclusion(leaf, index, size, (*path, root), root)
            if index + 1 < size:
                assert not verify_inclusion(leaf, index + 1, size, path, root)
    with pytest.raises(NotFound):
        tree.inclusion(40)


def test_every_consistency_proof_holds_and_no_other() -> None:
    tree = tree_of(40)
    forged = naive_root([leaf_hash(b"forged"), *leaves(40)[1:]])
    for new_size in range(41):
        for old_size in range(new_size + 1):
            proof = tree.consistency(old_size, new_size)
            old, new = tree.root(old_size), tree.root(new_size)
            assert verify_consistency(old_size, new_size, proof, old, new)
            if 0 < old_size < new_size:
                assert not verify_consistency(old_size, new_size, proof, old, forged)
                assert not verify_consistency(old_size, new_size, proof[:-1], old, new)


def test_a_ledger_proves_each_receipt_under_its_last_head(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "iaas-1.ledger")
    for n in range(5):
        ledger.append(receipt(n), NODE_KEY)
    ledger.sign_head()
    for n in range(5, 12):
        ledger.append(receipt(n, LocationEvent.MOVE), NODE_KEY)
    ledger.sign_head()
    for index in range(12):
        proof = ledger.prove(index)
        path, root = [bytes.fromhex(step) for step in proof.path], bytes.fromhex(proof.head.root)
        assert (proof.index, proof.head.size) == (index, 12)
        assert verify_inclusion(leaf_hash(proof.receipt.leaf()), index, 12, path, root)
    assert ledger.indices_of(VolumeId("volume-1")) == [1, 4, 7, 10]
    ledger.close()
    report = verify_ledger(tmp_path / "iaas-1.ledger", KEYS, node_keys=NODE_KEYS)
    assert (report.problems, report.entry_count, report.unsigned_tail_count) == ([], 12, 0)
    of_another = {key_id: SiteKey("lyon", key.public_key) for key_id, key in KEYS.items()}
    assert not verify_ledger(tmp_path / "iaas-1.ledger", of_another).is_sound


def test_a_ledger_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "iaas-1.ledger"
    ledger = open_ledger(path)
    ledger.append(receipt(0), NODE_KEY)
    ledger.close()
    again = open_ledger(path)
    assert (again.size, again.receipt(0)) == (1, receipt(0))
    assert again.append(receipt(1), NODE_KEY) == 1
    assert again.prove(1).head.size == 2
    again.close()
    assert verify_ledger(path, KEYS, node_keys=NODE_KEYS).is_sound


def test_a_receipt_that_the_node_did_not_sign_is_refused(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "iaas-1.ledger")
    with pytest.raises(InvalidRequest, match="not signed by io1"):
        ledger.append(receipt(1), SITE_KEY)
    assert ledger.size == 0
    ledger.close()


@cache
def signed_ledger() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        ledger = open_ledger(Path(name) / "l")
        for n in range(4):
            ledger.append(receipt(n), NODE_KEY)
            if n == 1:
                ledger.sign_head()
        ledger.close()
        return (Path(name) / "l").read_bytes()


@given(st.data())
@settings(deadline=None)
def test_changing_any_byte_of_a_ledger_is_detected(data: st.DataObject) -> None:
    content = bytearray(signed_ledger())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "l"
        path.write_bytes(bytes(content))
        assert not verify_ledger(path, KEYS).is_sound


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_ledger_torn_after_its_last_head_opens_without_the_torn_part(
    data: st.DataObject,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "l"
        ledger = open_ledger(path)
        ledger.append(receipt(0), NODE_KEY)
        ledger.sign_head()
        durable_bytes = path.stat().st_size
        ledger.append(receipt(1), NODE_KEY)
        written = path.read_bytes()
        path = Path(name) / "torn"
        path.write_bytes(written[: data.draw(st.integers(durable_bytes, len(written)))])
        again = open_ledger(path)
        assert again.size in {1, 2}
        again.append(receipt(2), NODE_KEY)
        again.close()
        ledger.close()
        assert verify_ledger(path, KEYS, node_keys=NODE_KEYS).is_sound


def test_nobody_appends_to_a_ledger_changed_before_its_last_head(tmp_path: Path) -> None:
    path = tmp_path / "l"
    content = bytearray(signed_ledger())
    content[20] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CorruptData, match="signed head"):
        open_ledger(path)
