"""A volume's proof holds as it was made, and with any byte changed it does not."""

import json
from pathlib import Path
from random import Random
from typing import cast

import pytest
from tests.unit.storage.proof_makers import IAAS, VOLUME, SiteTrustOf, batch, new_root, noted

from nuage.storage.ledgers import LedgerShelf
from nuage.trust.book import key_id_of, raw_key
from nuage.trust.pki import Authority, pem_of
from nuage.trust.verify import SiteKey, canonical, told_proof, verify_proof


def site_document(site: SiteTrustOf, shelf: LedgerShelf, *, country: str) -> dict[str, object]:
    proof = shelf.prove(IAAS, VOLUME)
    return {
        "site_id": site.site_id, "place": site.site_id.title(), "country": country,
        "operator": "Operator", "operator_country": country, "tier": 3,
        "authority": pem_of(site.authority.certificate), "signers": pem_of(site.signer),
        "head": None if proof.head is None else proof.head.document(),
        "receipts": [
            {"index": e.index, "path": list(e.path), "receipt": e.receipt.document()}
            for e in proof.receipts
        ],
        "certificates": proof.certificates,
    }  # fmt: skip


class Bench:
    """Two sites that hold a copy each, and the proof that one of them puts together."""

    def __init__(self, directory: Path, *, second_country: str = "FR") -> None:
        self.root: Authority = new_root()
        self.sites = [SiteTrustOf(self.root, name) for name in ("lyon", "marne")]
        self.shelves = [site.shelf(directory, self.root) for site in self.sites]
        for site, shelf in zip(self.sites, self.shelves, strict=True):
            sender, signer = site.node(f"{site.site_id}-io1")
            shelf.take(sender, batch(signer, *(noted(n) for n in range(1, 6))))
            shelf.take(sender, batch(signer, noted(6, act="expired", segment=1)))
        self.second_country = second_country

    def body(self) -> dict[str, object]:
        countries = ("FR", self.second_country)
        sites = zip(self.sites, self.shelves, countries, strict=True)
        return {
            "format": "nuage-proof/1", "time_ms": 1,
            "volume": {"volume_id": VOLUME, "iaas_id": IAAS, "name": "disk"},
            "contract": {
                "data_countries": ["FR"], "operator_countries": [], "sites": [], "tier_min": 1,
            },
            "root": pem_of(self.root.certificate), "silent": [],
            "sites": [site_document(s, shelf, country=c) for s, shelf, c in sites],
        }  # fmt: skip

    def document(self, body: dict[str, object] | None = None) -> bytes:
        content = self.body() if body is None else body
        key_id, signature = self.shelves[0].sign(content)
        outer: dict[str, object] = {
            "body": content, "site_id": "lyon", "key_id": key_id, "signature": signature,
        }  # fmt: skip
        return canonical(outer) + b"\n"

    def keys(self) -> dict[str, SiteKey]:
        return {
            key_id_of(s.signer_key.public_key()): SiteKey(
                s.site_id, raw_key(s.signer_key.public_key())
            )
            for s in self.sites
        }


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_proof_holds_with_public_keys_alone(bench: Bench) -> None:
    report = verify_proof(
        bench.document(), keys=bench.keys(), root_pem=pem_of(bench.root.certificate)
    )
    assert report.problems == []
    assert (report.receipt_count, report.head_count) == (12, 2)
    assert report.outside == []
    assert any("lyon-io1 in Lyon, FR" in line for line in told_proof(report))


def test_no_byte_can_be_changed(bench: Bench) -> None:
    document = bench.document()
    prng = Random(11)
    for position in prng.sample(range(len(document)), 300):
        changed = bytearray(document)
        changed[position] ^= 1 << prng.randrange(8)
        assert not verify_proof(bytes(changed)).is_sound, position


def test_bytes_added_or_cut_off_are_found(bench: Bench) -> None:
    document = bench.document()
    for changed in (
        document[:-1],
        document + b"\n",
        b" " + document,
        document[: len(document) // 2],
    ):
        assert not verify_proof(changed).is_sound


def test_a_receipt_that_the_asked_site_invents_is_found(bench: Bench) -> None:
    body = bench.body()
    sites = cast("list[dict[str, object]]", body["sites"])
    receipts = cast("list[dict[str, dict[str, object]]]", sites[1]["receipts"])
    receipts[0]["receipt"]["disk_serial"] = "another"
    report = verify_proof(bench.document(body))
    assert any("signature does not hold" in problem for problem in report.problems)
    assert any("not under the signed head" in problem for problem in report.problems)


def test_keys_or_a_root_that_the_verifier_does_not_know_are_found(
    bench: Bench, tmp_path: Path
) -> None:
    other = Bench(tmp_path / "other")
    assert not verify_proof(bench.document(), keys=other.keys()).is_sound
    root_pem = pem_of(other.root.certificate)
    assert not verify_proof(bench.document(), root_pem=root_pem).is_sound


def test_a_place_outside_the_contract_is_told(tmp_path: Path) -> None:
    report = verify_proof(Bench(tmp_path, second_country="IS").document())
    assert report.is_sound
    assert report.outside == ["marne: IS is not among the contract's data_countries FR"]


def test_what_is_no_proof_is_a_problem_and_no_crash() -> None:
    for data in (b"", b"{}\n", b"[1]\n", b"\xff\xfe", json.dumps({"body": 1}).encode() + b"\n"):
        assert not verify_proof(data).is_sound
