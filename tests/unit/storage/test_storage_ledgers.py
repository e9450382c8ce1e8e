"""A site's ledgers take in what IO-nodes vouch for, and nobody else's word for it."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.storage.proof_makers import (
    IAAS,
    NOW_S,
    VOLUME,
    SiteTrustOf,
    batch,
    new_root,
    noted,
)

from nuage.errors import Forbidden, InvalidRequest, NuageError
from nuage.ids import IaasId, NodeId
from nuage.storage.ledgers import OPEN_MAX
from nuage.trust.ledger_index import Held


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_receipts_are_taken_once_and_proven_under_one_head(tmp_path: Path) -> None:
    root = new_root()
    lyon = SiteTrustOf(root, "lyon")
    sender, signer = lyon.node("io1")
    shelf = lyon.shelf(tmp_path, root)
    assert shelf.take(sender, batch(signer, noted(1), noted(2))) == 2
    assert shelf.take(sender, batch(signer, noted(2), noted(3))) == 1
    proof = shelf.prove(IAAS, VOLUME)
    assert [entry.receipt.segment for entry in proof.receipts] == [1, 2, 3]
    assert proof.head is not None
    assert proof.head.size == 3
    assert list(proof.certificates) == [proof.receipts[0].receipt.key_id]


def test_a_ledger_is_found_again_after_a_restart(tmp_path: Path) -> None:
    root = new_root()
    lyon = SiteTrustOf(root, "lyon")
    sender, signer = lyon.node("io1")
    shelf = lyon.shelf(tmp_path, root)
    shelf.take(sender, batch(signer, noted(1)))
    shelf.close()
    again = lyon.shelf(tmp_path, root)
    assert again.take(sender, batch(signer, noted(1), noted(2))) == 1
    assert len(again.prove(IAAS, VOLUME).receipts) == 2


def test_a_node_vouches_for_itself_alone(tmp_path: Path) -> None:
    root = new_root()
    lyon = SiteTrustOf(root, "lyon")
    sender, signer = lyon.node("io1")
    other, _ = lyon.node("io2")
    shelf = lyon.shelf(tmp_path, root)
    with pytest.raises(NuageError):
        shelf.take(other, batch(signer, noted(1)))
    forged = batch(replace(signer, node_id=other.node_id), noted(1))
    with pytest.raises(Forbidden):
        shelf.take(sender, forged)


def test_a_certificate_of_another_federation_is_refused(tmp_path: Path) -> None:
    root = new_root()
    lyon = SiteTrustOf(root, "lyon")
    stranger = SiteTrustOf(new_root(), "lyon")
    sender, signer = stranger.node("io1")
    with pytest.raises(NuageError):
        lyon.shelf(tmp_path, root).take(sender, batch(signer, noted(1)))


def test_a_changed_receipt_is_refused_and_nothing_is_entered(tmp_path: Path) -> None:
    root = new_root()
    lyon = SiteTrustOf(root, "lyon")
    sender, signer = lyon.node("io1")
    shelf = lyon.shelf(tmp_path, root)
    good = batch(signer, noted(1))
    bad = replace(good, receipts=(replace(good.receipts[0], segment=9),))
    with pytest.raises(InvalidRequest):
        shelf.take(sender, bad)
    assert shelf.counts(IAAS) == {}


def test_receipts_are_counted_by_node_and_volume(tmp_path: Path) -> None:
    root = new_root()
    lyon = SiteTrustOf(root, "lyon")
    shelf = lyon.shelf(tmp_path, root)
    for name, count in (("io1", 3), ("io2", 1)):
        sender, signer = lyon.node(name)
        shelf.take(sender, batch(signer, *(noted(number) for number in range(1, count + 1))))
        shelf.take(sender, batch(signer, noted(4, act="expired", segment=1)))
    now_ms = int(NOW_S * 1000)
    expected = {
        (NodeId("io1"), VOLUME): Held(4, 2, now_ms + 4),
        (NodeId("io2"), VOLUME): Held(2, 0, now_ms + 4),
    }
    assert shelf.counts(IAAS) == expected
    shelf.close()
    again = lyon.shelf(tmp_path, root)
    assert again.counts(IAAS) == expected
    sender, signer = lyon.node("io1")
    again.take(sender, batch(signer, noted(5, segment=1), noted(6, act="expired", segment=2)))
    again.take(sender, batch(signer, noted(7, act="moved", segment=3)))
    assert again.counts(IAAS)[NodeId("io1"), VOLUME] == Held(7, 2, now_ms + 7)
    assert again.counts(IaasId("iaas-2")) == {}


def test_a_site_holds_no_files_open_for_every_iaas_that_ever_was(tmp_path: Path) -> None:
    root = new_root()
    lyon = SiteTrustOf(root, "lyon")
    sender, signer = lyon.node("io1")
    shelf = lyon.shelf(tmp_path, root)
    before = open_files()
    iaas_ids = [IaasId(f"iaas-{number}") for number in range(OPEN_MAX + 8)]
    for iaas_id in iaas_ids:
        shelf.take(sender, replace(batch(signer, noted(1)), iaas_id=iaas_id))
    assert open_files() <= before + 3 * OPEN_MAX
    for iaas_id in iaas_ids:
        assert len(shelf.prove(iaas_id, VOLUME).receipts) == 1
    shelf.close()
    assert open_files() <= before
