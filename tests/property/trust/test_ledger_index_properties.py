"""A ledger's index: a cache that crashes, damage and loss never let say what the log does not."""

import shutil
import sqlite3
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.trust.full_disk import no_file_longer_than
from tests.property.trust.test_trust_ledger_properties import (
    KEYS,
    NODE_KEY,
    NODE_KEYS,
    open_ledger,
)
from tests.property.trust.test_trust_ledger_properties import receipt as signed_receipt

from nuage.errors import CorruptData, Unavailable
from nuage.ids import VolumeId
from nuage.trust.ledger import INDEX_FOLDER, LocationLedger
from nuage.trust.verify import leaf_hash, verify_consistency, verify_inclusion, verify_ledger

receipt = cache(signed_receipt)
COUNT = 24
VOLUMES = tuple(VolumeId(f"volume-{n}") for n in range(3))
Files = dict[str, bytes]  # of a ledger: by name below its folder


def files_of(folder: Path) -> Files:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def laid_out(folder: Path, *parts: Files) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in (item for part in parts for item in part.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder / "l.log"


@cache
def lifetimes() -> tuple[tuple[Files, Files], ...]:
    """Return log and index after each step of a ledger's life; opened anew now and then."""
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), []
        ledger = open_ledger(folder / "l.log")
        for n in range(COUNT):
            ledger.append(receipt(n), NODE_KEY)
            if n % 5 == 4:
                ledger.sign_head()
            if n % 9 == 8:
                ledger.close()
                ledger = open_ledger(folder / "l.log")
            files = files_of(folder)
            log = {"l.log": files.pop("l.log")}
            found.append((log, files))
        ledger.close()
    return tuple(found)


def check_all(ledger: LocationLedger, count: int) -> None:
    """Everything that a ledger of `count` receipts has to tell, it tells, and it is so."""
    check_told(ledger, count)
    assert all(ledger.has(receipt(n)) for n in range(count))


def check_told(ledger: LocationLedger, count: int) -> None:
    assert ledger.size == count
    assert not ledger.has(receipt(count))
    by_volume = [ledger.indices_of(volume_id) for volume_id in VOLUMES]
    assert by_volume == [list(range(n, count, 3)) for n in range(3)]
    counts = {volume_id: held.receipt_count for (_, volume_id), held in ledger.counts().items()}
    assert counts == {v: len(held) for v, held in zip(VOLUMES, by_volume, strict=True) if held}
    for n in range(count):
        proof = ledger.prove(n)
        path, root = [bytes.fromhex(step) for step in proof.path], bytes.fromhex(proof.head.root)
        assert proof.receipt == receipt(n)
        leaf = leaf_hash(proof.receipt.leaf())
        assert verify_inclusion(leaf, n, proof.head.size, path, root)
    if count:
        head = ledger.sign_head()
        growth = [bytes.fromhex(step) for step in ledger.prove_growth(1)]
        first = leaf_hash(receipt(0).leaf())
        assert verify_consistency(1, head.size, growth, first, bytes.fromhex(head.root))


@given(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1), st.data())
@settings(max_examples=25, deadline=None)
def test_any_log_with_any_index_of_its_past_or_its_lost_future_tells_the_same(
    log_at: int, index_at: int, data: st.DataObject
) -> None:
    """A crash loses the end of either file: of the log what was not synced, of the index more."""
    log, index = lifetimes()[log_at][0], dict(lifetimes()[index_at][1])
    for name in index:
        if name.endswith("-wal") and data.draw(st.booleans()):
            index[name] = index[name][: data.draw(st.integers(0, len(index[name])))]
    with tempfile.TemporaryDirectory() as folder:
        path = laid_out(Path(folder) / "x", log, index)
        ledger = open_ledger(path)
        check_all(ledger, log_at + 1)
        ledger.append(receipt(log_at + 1), NODE_KEY)
        ledger.close()
        ledger = open_ledger(path)
        check_all(ledger, log_at + 2)
        ledger.close()
        assert verify_ledger(path, KEYS, node_keys=NODE_KEYS).is_sound


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_a_log_torn_at_any_byte_opens_with_an_index_that_knew_more(data: st.DataObject) -> None:
    log, index = lifetimes()[-1]
    torn = log["l.log"][: data.draw(st.integers(0, len(log["l.log"])))]
    with tempfile.TemporaryDirectory() as folder:
        path = laid_out(Path(folder) / "x", {"l.log": torn}, index)
        ledger = open_ledger(path)
        check_all(ledger, torn.count(b" leaf {") - (not torn.endswith(b"\n") and is_leaf(torn)))
        ledger.close()


def is_leaf(torn: bytes) -> bool:
    return b" leaf {" in torn[torn.rfind(b"\n") + 1 :]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_an_index_with_any_byte_changed_or_cut_off_changes_nothing_told(
    data: st.DataObject,
) -> None:
    log, _ = lifetimes()[-1]
    with tempfile.TemporaryDirectory() as name:
        path = laid_out(Path(name) / "whole", log)
        open_ledger(path).close()  # in one file, without SQLite's log
        (index,) = (path.parent / INDEX_FOLDER).iterdir()
        content = bytearray(index.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] ^= data.draw(st.integers(1, 255))
        else:
            del content[at:]
        index.write_bytes(bytes(content))
        ledger = open_ledger(path)
        check_told(ledger, COUNT)
        ledger.close()


@pytest.mark.parametrize(
    "lie",
    [
        "UPDATE leaf SET start_at = start_at + 1 WHERE number = 3",
        "UPDATE leaf SET start_at = (SELECT start_at FROM leaf WHERE number = 4) WHERE number = 3",
        "UPDATE leaf SET start_at = -1 WHERE number = 3",
        "UPDATE leaf SET hash = zeroblob(32) WHERE number = 3",
        "UPDATE leaf SET hash = 'text' WHERE number = 3",
        "UPDATE leaf SET place = 1 WHERE number = 4",
        "DELETE FROM leaf WHERE number = 3",
        "DELETE FROM subtree WHERE position = 2",
        "UPDATE subtree SET hash = zeroblob(32)",
        "UPDATE covered SET leaf_count = leaf_count - 1",
        "UPDATE covered SET head_at = 0",
        "UPDATE covered SET end_at = 'far'",
        "DELETE FROM covered",
        "DROP TABLE place",
        "PRAGMA user_version = 9",
    ],
)
def test_an_index_that_lies_is_made_anew(tmp_path: Path, lie: str) -> None:
    path = laid_out(tmp_path / "x", *lifetimes()[-1])
    open_ledger(path).close()
    (index,) = (path.parent / INDEX_FOLDER).iterdir()
    with sqlite3.connect(index) as connection:
        connection.execute(lie)
    connection.close()
    ledger = open_ledger(path)
    check_all(ledger, COUNT)
    ledger.close()


def test_a_ledger_opens_at_its_end_and_finds_what_was_changed_when_it_is_read(
    tmp_path: Path,
) -> None:
    path = laid_out(tmp_path / "x", *lifetimes()[-1])
    open_ledger(path).close()
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(bytes(content))
    ledger = open_ledger(path)
    assert ledger.prove(5).receipt == receipt(5)
    with pytest.raises(CorruptData, match="changed before a signed head"):
        ledger.prove(0)
    assert not ledger.is_open
    with pytest.raises(CorruptData, match="changed before a signed head"):
        open_ledger(path)


def test_a_disk_that_is_full_for_a_while_tears_no_line(tmp_path: Path) -> None:
    path = tmp_path / "l.log"
    ledger = open_ledger(path)
    for n in range(3):
        ledger.append(receipt(n), NODE_KEY)
    ledger.sign_head()
    with no_file_longer_than(path.stat().st_size + 10), pytest.raises(Unavailable):
        ledger.append(receipt(3), NODE_KEY)
    assert ledger.size == 3
    ledger.append(receipt(3), NODE_KEY)
    check_all(ledger, 4)
    ledger.close()
    assert verify_ledger(path, KEYS, node_keys=NODE_KEYS).is_sound


def test_an_index_that_cannot_be_written_catches_up(tmp_path: Path) -> None:
    path = tmp_path / "l.log"
    ledger = open_ledger(path)
    (wal,) = (tmp_path / INDEX_FOLDER).glob("*-wal")
    for n in range(40):
        ledger.append(receipt(n), NODE_KEY)
    with no_file_longer_than(max(path.stat().st_size + 1000, wal.stat().st_size + 4096)):
        ledger.sign_head()
        check_all(ledger, 40)
    check_all(ledger, 40)
    ledger.close()
    ledger = open_ledger(path)
    check_all(ledger, 40)
    ledger.close()


def test_an_index_whose_schema_is_no_text_any_more_is_made_anew(tmp_path: Path) -> None:
    """SQLite repeats what it read in its complaint, whatever bytes those are."""
    log, _ = lifetimes()[-1]
    path = laid_out(tmp_path / "whole", log)
    open_ledger(path).close()
    (index,) = (path.parent / INDEX_FOLDER).iterdir()
    whole = index.read_bytes()
    first = whole.index(b"CREATE TABLE")
    for at in range(first, 4096, 11):
        index.write_bytes(whole[:at] + bytes((whole[at] ^ 0x80,)) + whole[at + 1 :])
        ledger = open_ledger(path)
        check_told(ledger, COUNT)
        ledger.close()
