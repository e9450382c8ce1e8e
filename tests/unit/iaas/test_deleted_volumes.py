"""What ledgers keep of a volume that was deleted: it is listed, traced and proven by its id."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tests.unit.iaas.iaas_makers import datacenter, iaas, record, volume
from tests.unit.storage.proof_makers import IAAS, VOLUME, SiteTrustOf, batch, new_root, noted

from nuage.channel.identity import Identity
from nuage.errors import NotFound
from nuage.iaas.index import FederationIndex
from nuage.iaas.provenance import (
    ListDeleted,
    ProveVolume,
    Stay,
    TraceVolume,
    list_deleted,
    prove_volume,
    trace_volume,
)
from nuage.iaas.site import Site
from nuage.ids import NodeId, SiteId, UserId
from nuage.ionode.receipts import Signer
from nuage.model.iaas import PastIaas
from nuage.model.record import Noun
from nuage.model.trust import SiteTrust
from nuage.model.volume import Erasure, ReplicaPlace
from nuage.storage import ledgers
from nuage.trust.permissions import Principal
from nuage.trust.pki import pem_of
from nuage.trust.verify import told_proof, verify_proof

OWNER = Principal(user_id=UserId("user-1"), name="ada", grants=())
NODE = NodeId("marne-io1")
PLACE = ReplicaPlace(node_id=NODE, site_id=SiteId("marne"))


def site_with(directory: Path, *values: Noun, erased: int) -> Site:
    """Return a site whose node sealed three segments of a volume and erased `erased` of them."""
    root = new_root()
    trust = SiteTrustOf(root, "marne")
    shelf = trust.shelf(directory, root)
    sender, signer = trust.node(NODE)
    shelf.take(sender, batch(signer, *(noted(n) for n in range(1, 4))))
    gone = (noted(3 + n, act="expired", segment=n) for n in range(1, erased + 1))
    shelf.take(sender, batch(signer, *gone))
    own = SiteTrust(
        site_id=SiteId("marne"), authority_pem=pem_of(trust.authority.certificate),
        signers_pem=pem_of(trust.signer), revocations_pem="",
    )  # fmt: skip
    index = FederationIndex(SiteId("marne"))
    for value in (datacenter("marne"), iaas(), own, *values):
        index.put(record(value))
    clock = SimpleNamespace(now_s=lambda: 7.0)
    here = SimpleNamespace(site_id=SiteId("marne"), index=index, ledgers=shelf, clock=clock)
    here.node = (sender, signer)
    return cast(Site, here)


def erasure() -> Erasure:
    return Erasure(volume_id=VOLUME, iaas_id=IAAS, name="disk", label=1, places=(PLACE,))


async def test_a_deleted_volume_is_listed_with_what_is_not_yet_erased(tmp_path: Path) -> None:
    site = site_with(tmp_path, erasure(), volume(2), erased=2)
    (known,) = (await list_deleted(site, OWNER, ListDeleted(IAAS))).volumes
    assert (known.volume, known.name, known.nodes) == (VOLUME, "disk", (NODE,))
    assert (known.receipt_count, known.segment_count) == (5, 1)


async def test_a_deleted_volume_is_proven_by_its_id_and_its_proof_says_so(tmp_path: Path) -> None:
    site = site_with(tmp_path, erased=3)
    proof = await prove_volume(site, OWNER, ProveVolume(IAAS, VOLUME))
    told = list(told_proof(verify_proof(proof.document.encode())))
    assert told[0] == "SOUND"
    assert f"({VOLUME}), deleted" in told[1]
    (place,) = (line for line in told if "segments since" in line)
    assert "until" in place
    trace = await trace_volume(site, OWNER, TraceVolume(IAAS, VOLUME))
    assert all(stay.until_s is not None for stay in trace.stays)


async def test_a_volume_of_an_iaas_that_was_taken_down_is_listed_and_proven(tmp_path: Path) -> None:
    site = site_with(tmp_path, erased=3)
    former = iaas()
    site.index.remove("iaas", IAAS, SiteId("marne"))
    with pytest.raises(NotFound):
        await prove_volume(site, OWNER, ProveVolume(IAAS, VOLUME))
    past = PastIaas(
        iaas_id=IAAS, name=former.name, owner="ada", contract=former.contract, deleted_s=6.0
    )
    site.index.put(record(past))
    for name in (former.name, IAAS):
        proof = await prove_volume(site, OWNER, ProveVolume(name, VOLUME))
        told = list(told_proof(verify_proof(proof.document.encode())))
        assert told[0] == "SOUND"
        (known,) = (await list_deleted(site, OWNER, ListDeleted(name))).volumes
        assert (known.volume, known.segment_count) == (VOLUME, 0)


async def test_a_long_life_is_proven_in_pages_that_each_stand_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "PAGE_RECEIPTS_MAX", 3)
    site = site_with(tmp_path, erased=2)
    after, told = "", []
    stays: list[Stay] = []
    for _ in range(3):
        ask = ProveVolume(IAAS, VOLUME, after=after)
        proof = await prove_volume(site, OWNER, ask)
        report = verify_proof(proof.document.encode())
        assert report.is_sound
        told.append((proof.receipt_count, *report.places[0].split(": ")[1].split(" since")[:1]))
        assert bool(proof.next) == any("not the last page" in line for line in report.covers)
        stays += (await trace_volume(site, OWNER, TraceVolume(IAAS, VOLUME, after=after))).stays
        after = proof.next
        if not after:
            break
    # Of each segment all that is known is on one page: what is said to be there is there.
    assert told == [(2, "1 segments"), (3, "2 segments")]
    assert sorted(stay.segment for stay in stays if stay.until_s is None) == [3]


async def test_a_segment_of_other_content_ends_the_former_of_its_number(tmp_path: Path) -> None:
    """The disk was lost, and with it who could tell; the volume went on with what was left."""
    site = site_with(tmp_path, erased=0)
    sender, signer = cast(tuple[Identity, Signer], site.node)  # type: ignore[attr-defined]
    anew = replace(noted(9, segment=2), chain="f" * 64, last_sequence=21)
    assert site.ledgers is not None
    site.ledgers.take(sender, batch(signer, anew))
    stays = (await trace_volume(site, OWNER, TraceVolume(IAAS, VOLUME))).stays
    told = [(stay.segment, stay.last_sequence, stay.until_s is None) for stay in stays]
    assert told == [(1, 19, True), (2, 29, False), (3, 39, True), (2, 21, True)]


async def test_a_proof_of_a_time_has_what_lay_there_then_and_says_so(tmp_path: Path) -> None:
    site = site_with(tmp_path, erased=2)
    (last,) = (
        stay
        for stay in (await trace_volume(site, OWNER, TraceVolume(IAAS, VOLUME))).stays
        if stay.until_s is None
    )
    ask = ProveVolume(IAAS, VOLUME, from_s=last.since_s + 1000)
    proof = await prove_volume(site, OWNER, ask)
    report = verify_proof(proof.document.encode())
    assert proof.receipt_count == 1
    assert "with no end told by 1970-01-01T00:00:07" in report.places[0]
    (line,) = report.covers
    assert line.startswith("only what lay somewhere after ")
    ask = ProveVolume(IAAS, VOLUME, until_s=0.001)
    assert (await prove_volume(site, OWNER, ask)).receipt_count == 0


async def test_a_volume_that_is_being_erased_is_proven_by_its_name(tmp_path: Path) -> None:
    site = site_with(tmp_path, erasure(), erased=1)
    proof = await prove_volume(site, OWNER, ProveVolume(IAAS, "disk"))
    assert json.loads(proof.document)["body"]["volume"]["name"] == "disk"


@pytest.mark.parametrize("name", ["disk", "vol-ffffffffffffffff"])
async def test_what_no_ledger_tells_of_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound):
        await prove_volume(site_with(tmp_path, erased=0), OWNER, ProveVolume(IAAS, name))
