"""A volume's proof holds as it was made, and with any byte changed it does not."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import cast

import pytest
from tests.unit.storage.proof_makers import IAAS, VOLUME, SiteTrustOf, batch, new_root, noted

from nuage.channel.identity import Identity
from nuage.errors import NotFound
from nuage.ionode.port import DaemonReceipt
from nuage.ionode.receipts import Signer
from nuage.storage.ledgers import LedgerShelf
from nuage.trust.book import key_id_of, raw_key
from nuage.trust.pki import Authority, pem_of
from nuage.trust.verify import SiteKey, canonical, heads_of_proof, told_proof, verify_proof


def site_document(
    site: SiteTrustOf, shelf: LedgerShelf, *, country: str, since: int
) -> dict[str, object]:
    proof = shelf.prove(IAAS, VOLUME, since=since)
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
        "growth": {"since": proof.since, "path": list(proof.growth)},
    }  # fmt: skip


class Bench:
    """Two sites that hold a copy each, and the proof that one of them puts together."""

    def __init__(self, directory: Path, *, second_country: str = "FR") -> None:
        self.root: Authority = new_root()
        self.sites = [SiteTrustOf(self.root, name) for name in ("lyon", "marne")]
        self.shelves = [site.shelf(directory, self.root) for site in self.sites]
        self.nodes: dict[str, tuple[Identity, Signer]] = {}
        for site, shelf in zip(self.sites, self.shelves, strict=True):
            sender, signer = self.nodes[site.site_id] = site.node(f"{site.site_id}-io1")
            shelf.take(sender, batch(signer, *(noted(n) for n in range(1, 6))))
            shelf.take(sender, batch(signer, noted(6, act="expired", segment=1)))
        self.second_country = second_country

    def body(self, *, since: int = 0) -> dict[str, object]:
        countries = ("FR", self.second_country)
        sites = zip(self.sites, self.shelves, countries, strict=True)
        return {
            "format": "nuage-proof/1", "time_ms": 1,
            "volume": {"volume_id": VOLUME, "iaas_id": IAAS, "name": "disk"},
            "contract": {
                "data_countries": ["FR"], "operator_countries": [], "sites": [], "tier_min": 1,
            },
            "root": pem_of(self.root.certificate), "silent": [],
            "sites": [site_document(s, shelf, country=c, since=since) for s, shelf, c in sites],
        }  # fmt: skip

    def document(self, body: dict[str, object] | None = None) -> bytes:
        content = self.body() if body is None else body
        key_id, signature = self.shelves[0].sign(content)
        outer: dict[str, object] = {
            "body": content, "site_id": "lyon", "key_id": key_id, "signature": signature,
        }  # fmt: skip
        return canonical(outer) + b"\n"

    def grow(self) -> None:
        """Have every ledger take more."""
        for site, shelf in zip(self.sites, self.shelves, strict=True):
            sender, signer = self.nodes[site.site_id]
            shelf.take(sender, batch(signer, *(noted(n) for n in range(7, 12))))

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


def test_how_many_segments_have_no_end_is_told_as_of_when_the_proof_was_made(bench: Bench) -> None:
    def places() -> list[str]:
        told = told_proof(verify_proof(bench.document()))
        return [line.partition(" in ")[2] for line in told if "segments since" in line]

    def take(*receipts: DaemonReceipt) -> None:
        for shelf, (sender, signer) in zip(bench.shelves, bench.nodes.values(), strict=True):
            shelf.take(sender, batch(signer, *receipts))

    def ends(text: str) -> bool:
        since = "segments since 2027-01-15T08:00:00+00:00"
        count, _, until = text.partition("|")
        found = places()
        return len(found) == 2 and all(
            place.endswith(f": {count} {since}, {until}") for place in found
        )

    asked = "of them with no end told by 1970-01-01T00:00:00+00:00"
    assert ends(f"5|4 {asked}"), places()
    bench.grow()
    assert ends(f"10|9 {asked}"), places()
    take(noted(20, segment=1))
    assert ends(f"10|10 {asked}"), "the first is there again"
    take(replace(noted(21, segment=2), chain="f" * 64))
    assert ends(f"11|10 {asked}"), "the disk was lost, and the number came again"
    take(*(noted(30 + n, act="expired", segment=n) for n in (1, *range(3, 6), *range(7, 12))))
    take(replace(noted(50, act="expired", segment=2), chain="f" * 64))
    assert ends("11|until 2027-01-15T08:00:00+00:00"), places()


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


def test_ledgers_that_only_grew_since_an_earlier_proof_are_told(bench: Bench) -> None:
    earlier = bench.document()
    assert heads_of_proof(earlier) == {"lyon": 6, "marne": 6}
    bench.grow()
    report = verify_proof(bench.document(bench.body(since=6)), since=earlier)
    assert report.problems == []
    assert "  ledger grew     lyon: from 6 to 11 receipts, none rewritten" in told_proof(report)
    same = verify_proof(bench.document(bench.body(since=11)), since=bench.document())
    assert (same.problems, len(same.grown)) == ([], 2)


def test_a_ledger_that_was_written_anew_since_an_earlier_proof_is_found(
    bench: Bench, tmp_path: Path
) -> None:
    earlier = bench.document()
    marne = bench.sites[1]
    sender, signer = bench.nodes["marne"]
    bench.shelves[1] = marne.shelf(tmp_path / "anew", bench.root)
    bench.shelves[1].take(sender, batch(signer, *(noted(n) for n in range(2, 9))))
    report = verify_proof(bench.document(bench.body(since=6)), since=earlier)
    assert report.problems == ["marne: its ledger was rewritten since the earlier proof"]
    assert verify_proof(bench.document(bench.body(since=6))).is_sound, "by itself it holds"
    with pytest.raises(NotFound):
        bench.shelves[1].prove(IAAS, VOLUME, since=8)


def test_an_earlier_proof_that_is_none_or_of_others_is_a_problem(
    bench: Bench, tmp_path: Path
) -> None:
    document = bench.document(bench.body(since=6))
    other = Bench(tmp_path / "other")
    for since in (other.document(), b"{}\n", bench.document()[:-2] + b"]\n"):
        assert not verify_proof(document, since=since).is_sound
    bench.grow()
    (lyon, marne) = verify_proof(bench.document(), since=document).problems
    assert "prove it --since" in lyon
    assert "prove it --since" in marne
    for data in (b"", b"{}", b"[]", b'{"body": {"sites": [1]}}'):
        with pytest.raises(ValueError, match=r"proof|Expecting"):
            heads_of_proof(data)


def test_what_is_no_proof_is_a_problem_and_no_crash() -> None:
    for data in (b"", b"{}\n", b"[1]\n", b"\xff\xfe", json.dumps({"body": 1}).encode() + b"\n"):
        assert not verify_proof(data).is_sound
