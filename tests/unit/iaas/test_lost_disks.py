"""A disk is lost by a person's word: what lay there is traced and proven so, and lies are found."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tests.unit.iaas.iaas_makers import datacenter, iaas, record
from tests.unit.storage.proof_makers import (
    IAAS,
    NOW_S,
    VOLUME,
    SiteTrustOf,
    batch,
    new_root,
    noted,
)

from nuage.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unavailable
from nuage.iaas.disks import NameNode, note_report
from nuage.iaas.index import FederationIndex
from nuage.iaas.lost_disks import (
    DiskStanding,
    NameDisk,
    declare_lost,
    erase_disk,
    list_disks,
    require_declared,
)
from nuage.iaas.provenance import ProveVolume, TraceVolume, prove_volume, trace_volume
from nuage.iaas.site import Site
from nuage.ids import NodeId, RackId, SiteId, UserId
from nuage.ionode.identity import Fate
from nuage.ionode.losses import endings
from nuage.ionode.receipts import ReceiptBatch
from nuage.model.contract import DiskClass
from nuage.model.desired import AbsentDisk, DiskReport, IonodeReport
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.status import NodeStatus
from nuage.model.trust import SiteTrust
from nuage.trust.ledger import Receipt, sign_receipt
from nuage.trust.permissions import Principal
from nuage.trust.pki import pem_of
from nuage.trust.verify import (
    Json,
    SiteKey,
    Stories,
    loss_message,
    signature_holds,
    told_proof,
    verify_proof,
)

MARNE, NODE, OLD = SiteId("marne"), NodeId("marne-io1"), "WD-1"
OLIVE = Principal(user_id=UserId("user-1"), name="olive", grants=())
ALL = ProveVolume(IAAS, VOLUME)


class Bench:
    """A site whose IO-node sealed three segments of a volume on a disk that does not answer."""

    def __init__(self, directory: Path) -> None:
        root = new_root()
        self.trust = SiteTrustOf(root, MARNE)
        self.shelf = self.trust.shelf(directory, root)
        self.sender, self.signer = self.trust.node(NODE)
        self.shelf.take(self.sender, batch(self.signer, *(noted(n) for n in range(1, 4))))
        own = SiteTrust(
            site_id=MARNE, authority_pem=pem_of(self.trust.authority.certificate),
            signers_pem=pem_of(self.trust.signer), revocations_pem="",
        )  # fmt: skip
        node = Node(
            node_id=NODE, site_id=MARNE, rack_id=RackId("r1"), name=NODE, roles=(NodeRole.IONODE,)
        )
        status = NodeStatus(node_id=NODE, site_id=MARNE, connected=True, since_s=1.0)
        self.index = FederationIndex(MARNE)
        for value in (datacenter(MARNE), iaas(), own, node, status):
            self.index.put(record(value))
        self.news: list[str] = []
        self.site = cast(Site, SimpleNamespace(
            site_id=MARNE, index=self.index, ledgers=self.shelf, ionodes_seen={}, save=self.save,
            clock=SimpleNamespace(now_s=lambda: NOW_S), announce=self.announce,
        ))  # fmt: skip

    async def save(self, node: Node) -> None:
        self.index.put(record(node))

    def announce(self, _kind: str, _id: str, what: str, text: str) -> None:
        self.news.append(what)
        assert OLD in text

    def hears(self, *absent: AbsentDisk, serving: tuple[str, ...] = ()) -> None:
        disks = tuple(
            DiskReport(
                name="d1", disk_class=DiskClass.SSD, free_bytes=1, total_bytes=2, serial=serial
            )
            for serial in serving
        )
        note_report(self.site, IonodeReport(
            node_id=NODE, site_id=MARNE, wish_revision=1, replicas=(), heads=(),
            replica_addresses={}, disks=disks, absent_disks=absent,
        ))  # fmt: skip

    async def standing(self) -> DiskStanding:
        (standing,) = await list_disks(self.site, OLIVE, NameNode(NODE))
        return standing

    def end(self, fate: Fate) -> list[Receipt]:
        """Tell what has become of the disk, as its node does."""
        loss = self.index.value(Node, NODE).lost_disks[0].loss
        held = [receipt for _, receipt in self.shelf.on_disk(NODE, OLD, None)[0]]
        ended = endings(held, fate=fate, loss=loss, used=(), now_ms=int(NOW_S * 1000) + 60_000)
        signed = [sign_receipt(receipt, self.signer.key()) for receipt in ended]
        given = ReceiptBatch(
            iaas_id=IAAS, chain_pem=self.signer.chain_pem(), receipts=tuple(signed)
        )
        require_declared(self.site, given)
        self.shelf.take(self.sender, given)
        return signed


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


AWAY = AbsentDisk(serial=OLD, name="d1", is_back=False, reason="its place is empty")
NAMED = NameDisk(NODE, OLD)


async def test_what_lay_on_a_lost_disk_is_traced_and_proven_as_lost_and_then_as_erased(
    bench: Bench,
) -> None:
    bench.hears(AWAY)
    before = await bench.standing()
    assert (before.state, before.segment_count, before.volume_count) == ("away", 3, 1)
    declared = await declare_lost(bench.site, OLIVE, NAMED)
    assert (declared.state, declared.declared_by, declared.segment_count) == ("lost", "olive", 3)
    assert "reboot the node" in declared.reason
    assert await declare_lost(bench.site, OLIVE, NAMED) == declared, "said twice is said once"
    bench.end(Fate.GONE)
    assert (await bench.standing()).lost_count == 3
    trace = await trace_volume(bench.site, OLIVE, TraceVolume(IAAS, VOLUME))
    assert {(stay.lost_by, stay.lost_s) for stay in trace.stays} == {("olive", NOW_S)}
    assert all(stay.until_s for stay in trace.stays)
    document = (await prove_volume(bench.site, OLIVE, ALL)).document.encode()
    told = list(told_proof(verify_proof(document)))
    assert told[0] == "SOUND"
    (lost,) = (line for line in told if line.startswith("  LOST"))
    assert "3 segments with disk WD-1 of marne-io1, declared lost by olive" in lost
    assert "not erased" in lost
    bench.hears(replace(AWAY, is_back=True))
    assert (await bench.standing()).state == "back"
    assert (await erase_disk(bench.site, OLIVE, NAMED)).erase
    bench.end(Fate.ERASED)
    bench.hears()
    assert (await bench.standing()).state == "erased"
    report = verify_proof((await prove_volume(bench.site, OLIVE, ALL)).document.encode())
    assert (report.problems, report.lost) == ([], [])
    assert "no end told" not in report.places[0]
    trace = await trace_volume(bench.site, OLIVE, TraceVolume(IAAS, VOLUME))
    assert {stay.lost_by for stay in trace.stays} == {""}
    assert bench.news == ["disk-away", "disk-lost", "lost-disk-back", "disk-erase"]


async def test_a_disk_that_answers_or_that_nobody_knows_is_not_declared_lost(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="it alone can tell"):
        await declare_lost(bench.site, OLIVE, NAMED)
    bench.hears(serving=("",))
    with pytest.raises(Unavailable, match="too old"):
        await declare_lost(bench.site, OLIVE, NAMED)
    bench.hears(serving=(OLD,))
    with pytest.raises(Conflict, match="answers"):
        await declare_lost(bench.site, OLIVE, NAMED)
    bench.hears(replace(AWAY, is_back=True))
    with pytest.raises(Conflict, match="answers"):
        await declare_lost(bench.site, OLIVE, NAMED)
    with pytest.raises(NotFound) as unknown:
        await declare_lost(bench.site, OLIVE, NameDisk(NODE, "WD-9"))
    assert unknown.value.hint == "known of marne-io1: WD-1"
    with pytest.raises(Conflict, match="not declared lost"):
        await erase_disk(bench.site, OLIVE, NAMED)
    bench.hears(AWAY)
    silent = NodeStatus(node_id=NODE, site_id=MARNE, connected=False, since_s=2.0)
    bench.index.put(record(silent))
    with pytest.raises(Unavailable):
        await declare_lost(bench.site, OLIVE, NAMED)


async def test_a_node_tells_nothing_as_lost_that_its_site_did_not_declare(bench: Bench) -> None:
    bench.hears(AWAY)
    await declare_lost(bench.site, OLIVE, NAMED)
    (lost, *_) = bench.end(Fate.GONE)
    assert lost.declaration is not None
    forged = replace(lost, declaration=replace(lost.declaration, declared_by="ada"))
    given = ReceiptBatch(iaas_id=IAAS, chain_pem="", receipts=(forged,))
    with pytest.raises(Forbidden):
        require_declared(bench.site, given)
    with pytest.raises(InvalidRequest):
        replace(lost, declaration=None)
    with pytest.raises(InvalidRequest):
        replace(lost, declaration=replace(lost.declaration, disk_serial="WD-2"))


def without_declaration(lost: Json) -> Json:
    return {name: value for name, value in lost.items() if name != "declaration"}


def declared(**changes: object) -> Callable[[Json], Json]:
    return lambda lost: {**lost, "declaration": {**cast(Json, lost["declaration"]), **changes}}


LIES: dict[str, Callable[[list[Json]], list[Json]]] = {
    "nobody declared": lambda story: [story[0], without_declaration(story[1])],
    "did not lie there": lambda story: story[1:],
    "disk is lost does not hold": lambda story: [
        story[0], declared(declared_by="ada")(story[1]),
    ],
    "another disk": lambda story: [story[0], declared(disk_serial="WD-2")(story[1])],
    "before its disk was declared": lambda story: [story[0], {**story[1], "time_ms": 1}],
    "was lost before": lambda story: [*story, story[0]],
    "tells no loss": lambda story: [{**story[0], "declaration": story[1]["declaration"]}],
}  # fmt: skip


@pytest.mark.parametrize("found", LIES)
async def test_a_ledger_that_lies_about_a_loss_is_found_out(bench: Bench, found: str) -> None:
    bench.hears(AWAY)
    await declare_lost(bench.site, OLIVE, NAMED)
    ((_, sealed), *_), _ = bench.shelf.on_disk(NODE, OLD, None)
    lost = next(r for r in bench.end(Fate.GONE) if r.segment == sealed.segment)
    assert lost.declaration is not None
    key = bench.trust.signer_key.public_key().public_bytes_raw()
    signers = {lost.declaration.key_id: SiteKey(MARNE, key)}
    assert signature_holds(key, lost.declaration.signature, loss_message(asdict(lost.declaration)))
    erased = {**sealed.document(), "event": "expire"}
    truth: list[Json] = [sealed.document(), lost.document()]
    for story in ([*truth, erased], [*truth, truth[1], erased, truth[0]]):
        told = Stories(signers)
        assert [told.take(receipt) for receipt in story] == [""] * len(story)
    told = Stories(signers)
    problems = [problem for r in LIES[found](truth) if (problem := told.take(r))]
    assert [found in problem for problem in problems] == [True]
    assert Stories({}).take(truth[0]) == ""
