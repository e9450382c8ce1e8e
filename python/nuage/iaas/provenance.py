"""Where the data of an IaaS has been, and whether that was within its contract.

Every site keeps a location ledger of each IaaS (`storage.ledgers`). Asked here, a question goes to
every site over the channels; a site that does not answer is named in the answer, never left out in
silence. A proof is a document that stands alone: receipts, their paths to heads that the sites
signed, keys and certificates up to the federation's root, and the contract as it is now
(docs/protocols/ledger.md §4). `nuage verify FILE` checks it with public keys alone.

Ledgers only grow: of a volume that was deleted they still tell, by its id, where it was and when
the last of it was erased. So they do for an IaaS that was taken down, by its id or its name, for
whoever could trace its volumes before.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from nuage.errors import InvalidRequest, NotFound, NuageError, Unavailable
from nuage.iaas.building import NameIaas
from nuage.iaas.dismantling import is_past, with_past
from nuage.iaas.operations import NamesIaas, Operation, OperationTable, any_scope, anywhere
from nuage.iaas.site import Site
from nuage.ids import IaasId, NodeId, SiteId, VolumeId, is_id
from nuage.model.contract import Contract, refusal_of_site
from nuage.model.iaas import Iaas, PastIaas
from nuage.model.infrastructure import Datacenter
from nuage.model.trust import SiteTrust
from nuage.model.vm import Vm
from nuage.model.volume import Erasure, ReplicaPlace, Volume
from nuage.storage.ledgers import EVERYTHING, LedgerProof, LedgerShelf, Selection
from nuage.trust.ledger import LocationEvent
from nuage.trust.permissions import Principal, Scope, is_allowed
from nuage.trust.verify import canonical

PROVE_METHOD = "ledger.prove"
COUNT_METHOD = "ledger.count"
ASK_TIMEOUT_S = 10.0
PROOF_FORMAT = "nuage-proof/1"


@dataclass(frozen=True, slots=True)
class AskProof:
    """A site asks another for all that its ledger has of a volume.

    `since`: how many receipts it had in an earlier proof; that they are still there is proven too.
    """

    iaas_id: IaasId
    volume_id: VolumeId
    since: int = 0
    pick: Selection = EVERYTHING


@dataclass(frozen=True, slots=True)
class TraceVolume:
    """Ask where a volume has been, a page at a time.

    `from_s` and `until_s`: only what lay somewhere at some moment between. `after`: `next` of the
    page before, ``SITE:RECEIPT`` with commas between; "" begins.
    """

    iaas: str
    volume: str
    from_s: float = 0.0
    until_s: float = 0.0
    after: str = ""


@dataclass(frozen=True, slots=True)
class ProveVolume:
    """Ask for a volume's proof, a page at a time, as `TraceVolume`.

    `since`: what an earlier proof's heads covered, ``SITE:RECEIPTS`` with commas between.
    """

    iaas: str
    volume: str
    since: str = ""
    from_s: float = 0.0
    until_s: float = 0.0
    after: str = ""


@dataclass(frozen=True, slots=True)
class ListPast:
    """Ask for the IaaSes that were taken down."""


@dataclass(frozen=True, slots=True)
class AskCount:
    """A site asks another which of its nodes hold or held parts of an IaaS's volumes."""

    iaas_id: IaasId


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldCount:
    """How many receipts a node has signed for one volume, when the last one.

    `segment_count` segments were there then and not erased.
    """

    node_id: NodeId
    volume_id: VolumeId
    receipt_count: int
    segment_count: int = 0
    last_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A segment of a volume on one disk, from when to when; `until_s` None: no end was told.

    It lies there now, or its disk is away. `lost_by`: it was not erased, but `lost_by` declared the
    disk lost at `lost_s`; `until_s` is when the node noted that it has it no more.
    """

    site: SiteId
    node: NodeId
    disk: str
    segment: int
    first_sequence: int
    last_sequence: int
    since_s: float
    until_s: float | None
    country: str
    operator: str
    operator_country: str
    chain: str
    lost_by: str = ""
    lost_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Where segments of a volume have been. `silent` sites did not answer. `next` "": it is all."""

    volume: VolumeId
    stays: tuple[Stay, ...]
    silent: tuple[SiteId, ...]
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A volume's proof as text, to be kept in a file byte for byte. `next` "": the last page."""

    document: str
    receipt_count: int
    silent: tuple[SiteId, ...]
    next: str = ""


@dataclass(frozen=True, slots=True)
class ListDeleted:
    """Ask which volumes an IaaS once had."""

    iaas: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedVolume:
    """What ledgers know of a volume that is no more; `name` is known while it is being erased.

    `segment_count` segments of it have no receipt yet that says that they were erased.
    """

    volume: VolumeId
    name: str
    nodes: tuple[NodeId, ...]
    receipt_count: int
    segment_count: int
    last_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedVolumes:
    """All of them, the last one first. `silent` sites did not answer."""

    volumes: tuple[DeletedVolume, ...]
    silent: tuple[SiteId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that lies or runs where the contract does not allow it."""

    kind: str
    id: str
    site: SiteId
    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractCheck:
    """What was looked at, and what was found outside the contract: nothing, it is to be hoped."""

    vm_count: int
    copy_count: int
    receipt_count: int
    findings: tuple[Finding, ...]
    silent: tuple[SiteId, ...]


# Asked by other sites -------------------------------------------------------------------------


def shelf_of(site: Site) -> LedgerShelf:
    """Return this site's ledgers."""
    if site.ledgers is None:
        raise Unavailable(f"site {site.site_id} keeps no location ledger")
    return site.ledgers


async def prove_here(site: Site, ask: AskProof) -> LedgerProof:
    """Return what this site's ledger has of a volume."""
    shelf = shelf_of(site)
    return await asyncio.to_thread(
        shelf.prove, ask.iaas_id, ask.volume_id, since=ask.since, pick=ask.pick
    )


async def count_here(site: Site, ask: AskCount) -> list[HeldCount]:
    """Return which nodes of this site have signed for an IaaS's volumes."""
    counts = await asyncio.to_thread(shelf_of(site).counts, ask.iaas_id)
    return [
        HeldCount(
            node_id=node_id,
            volume_id=volume_id,
            receipt_count=held.receipt_count,
            segment_count=held.segment_count,
            last_s=held.last_ms / 1000,
        )
        for (node_id, volume_id), held in sorted(counts.items())
    ]


# Use cases ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """The volume that is asked about; one that was deleted has no copies and size any more."""

    iaas_id: IaasId
    volume_id: VolumeId
    name: str = ""
    size_bytes: int = 0
    epoch: int = 0
    head: NodeId | None = None
    replicas: tuple[ReplicaPlace, ...] = ()
    is_deleted: bool = False


def _iaas_named(site: Site, name: str) -> Iaas | PastIaas:
    """Return the IaaS of this id or name, or the one that was taken down.

    Raises:
        NotFound: there never was one.
        InvalidRequest: several of this name were taken down: use the id.
    """
    try:
        return site.index.iaas_named(name)
    except NotFound:
        if site.index.find_value(PastIaas, name) is None and not site.index.is_name_taken(
            PastIaas, name
        ):
            raise
    return site.index.named(PastIaas, name)


def _trace_scope(site: Site, body: NamesIaas) -> Scope | None:
    """Ask for the role on the IaaS named, be it gone."""
    return Scope(iaas_id=_iaas_named(site, body.iaas).iaas_id)


async def list_past(site: Site, principal: Principal, _body: ListPast) -> list[PastIaas]:
    """Show the IaaSes that were taken down and whose past the caller may prove, newest first."""
    who = with_past(site.index, principal)
    seen = [
        past
        for past in site.index.values(PastIaas)
        if is_past(site.index, past.iaas_id)  # not one that could not be taken down yet
        and is_allowed(who, "volume.trace", Scope(iaas_id=past.iaas_id))
    ]
    return sorted(seen, key=lambda past: -past.deleted_s)


def _subject(site: Site, iaas: str, volume: str) -> _Subject:
    """Return the volume of that name or id, or the one that once had that id.

    Raises:
        NotFound: a name that no volume has now, nor one that is being erased.
    """
    iaas_id = _iaas_named(site, iaas).iaas_id
    try:
        found = site.index.named(Volume, volume, iaas_id)
    except NotFound as error:
        return _deleted_subject(site, iaas_id, volume, error)
    return _Subject(
        iaas_id=iaas_id,
        volume_id=found.volume_id,
        name=found.name,
        size_bytes=found.size_bytes,
        epoch=found.epoch,
        head=found.head,
        replicas=found.replicas,
    )


def _deleted_subject(site: Site, iaas_id: IaasId, volume: str, error: NotFound) -> _Subject:
    for erasure in site.index.values(Erasure):
        named = volume in (erasure.name, erasure.volume_id)
        if named and erasure.iaas_id == iaas_id and erasure.is_deleted:
            return _Subject(
                iaas_id=iaas_id, volume_id=erasure.volume_id, name=erasure.name, is_deleted=True
            )
    if is_id("vol", volume):
        return _Subject(iaas_id=iaas_id, volume_id=VolumeId(volume), is_deleted=True)
    raise NotFound(
        "volume",
        volume,
        hint="one that was deleted is named by its id: `nuage volume list --deleted`",
    ) from error


async def _proofs(
    site: Site, volume: _Subject, body: TraceVolume | ProveVolume, since: Mapping[SiteId, int]
) -> tuple[list[LedgerProof], tuple[SiteId, ...]]:
    """Ask every site that has a part in the page; return the answers in order, and who gave none.

    Raises:
        NotFound: a volume of which there is no record, nor a receipt at any site that answers.
    """
    after = _covered(body.after, "after")

    async def one(site_id: SiteId) -> LedgerProof | None:
        pick = Selection(
            after=after.get(site_id, -1),
            from_ms=int(body.from_s * 1000),
            until_ms=int(body.until_s * 1000),
        )
        ask = AskProof(volume.iaas_id, volume.volume_id, since.get(site_id, 0), pick)
        if site_id == site.site_id:
            return await prove_here(site, ask)
        try:
            return await site.others.ask(
                site_id, PROVE_METHOD, ask, LedgerProof, timeout_s=ASK_TIMEOUT_S
            )
        except NuageError:
            return None

    site_ids = sorted(d.site_id for d in site.index.values(Datacenter))
    site_ids = [site_id for site_id in site_ids if not after or site_id in after]
    answers = await asyncio.gather(*(one(site_id) for site_id in site_ids))
    silent = tuple(s for s, answer in zip(site_ids, answers, strict=True) if answer is None)
    proofs = [answer for answer in answers if answer is not None]
    is_whole = not (after or body.from_s or body.until_s)
    if is_whole and volume.is_deleted and not any(proof.receipts for proof in proofs):
        hint = f"{', '.join(silent)} did not answer" if silent else "no ledger tells of it"
        raise NotFound("volume", volume.volume_id, hint=hint)
    return proofs, silent


def _next_page(proofs: Iterable[LedgerProof]) -> dict[SiteId, int]:
    return {proof.site_id: proof.next for proof in proofs if proof.next is not None}


def _told_page(page: Mapping[SiteId, int]) -> str:
    return ",".join(f"{site_id}:{index}" for site_id, index in sorted(page.items()))


async def trace_volume(site: Site, _principal: Principal, body: TraceVolume) -> Trace:
    """Tell where each segment of a volume has been, from when to when, and under whose law."""
    volume = _subject(site, body.iaas, body.volume)
    proofs, silent = await _proofs(site, volume, body, {})
    stays = [stay for proof in proofs for stay in _stays(site, proof)]
    return Trace(
        volume=volume.volume_id,
        stays=tuple(sorted(stays, key=lambda s: (s.since_s, s.site, s.node, s.segment))),
        silent=silent,
        next=_told_page(_next_page(proofs)),
    )


def _stays(site: Site, proof: LedgerProof) -> Iterable[Stay]:
    datacenter = site.index.value(Datacenter, proof.site_id)
    open_stays: dict[tuple[NodeId, str, int], Stay] = {}
    closed: list[Stay] = []
    for entry in proof.receipts:
        receipt = entry.receipt
        key = (receipt.node_id, receipt.disk_serial, receipt.segment)
        moment_s = receipt.time_ms / 1000
        known = open_stays.pop(key, None)
        if known is not None and receipt.declaration is not None:
            lost = receipt.declaration
            known = replace(
                known, until_s=moment_s, lost_by=lost.declared_by, lost_s=lost.time_ms / 1000
            )
            open_stays[key] = known  # until it comes back and is erased
            continue
        is_other = known is not None and known.chain != receipt.chain_hash
        if known is not None and (receipt.event is LocationEvent.EXPIRE or is_other):
            # Other content under its number: the former was lost, and nobody said when.
            closed.append(replace(known, until_s=moment_s, lost_by="", lost_s=0.0))
            known = None
        if receipt.event in (LocationEvent.EXPIRE, LocationEvent.LOST):
            continue
        open_stays[key] = Stay(
            site=receipt.site_id,
            node=receipt.node_id,
            disk=receipt.disk_serial,
            segment=receipt.segment,
            first_sequence=receipt.sequence_first,
            last_sequence=receipt.sequence_last,
            since_s=moment_s if known is None else known.since_s,
            until_s=None,
            country=datacenter.country,
            operator=datacenter.operator.name,
            operator_country=datacenter.operator.country,
            chain=receipt.chain_hash,
        )
    return [*closed, *open_stays.values()]


async def prove_volume(site: Site, _principal: Principal, body: ProveVolume) -> Proof:
    """Put together what proves where a volume has been, signed by the site that was asked.

    Raises:
        InvalidRequest: `since` does not say what an earlier proof covered.
        NotFound: a ledger never had as many receipts as `since` says, or nothing of the volume.
    """
    volume = _subject(site, body.iaas, body.volume)
    proofs, silent = await _proofs(site, volume, body, _covered(body.since, "since"))
    following = _next_page(proofs)
    shelf = shelf_of(site)
    iaas = _iaas_named(site, volume.iaas_id)
    content: dict[str, object] = {
        "format": PROOF_FORMAT,
        "time_ms": int(site.clock.now_s() * 1000),
        "volume": {
            "volume_id": volume.volume_id,
            "iaas_id": volume.iaas_id,
            "name": volume.name,
            "size_bytes": volume.size_bytes,
            "epoch": volume.epoch,
            "is_deleted": volume.is_deleted,
        },
        "iaas": {"name": iaas.name, "owner": iaas.owner},
        "contract": _contract_document(iaas.contract),
        "copies": [
            {
                "node_id": copy.node_id,
                "site_id": copy.site_id,
                "is_head": copy.node_id == volume.head,
            }
            for copy in volume.replicas
        ],
        "root": shelf.root_pem,
        "sites": [_site_document(site, proof) for proof in proofs],
        "silent": list(silent),
        "selection": {
            "from_ms": int(body.from_s * 1000),
            "until_ms": int(body.until_s * 1000),
            "after": dict(sorted(_covered(body.after, "after").items())),
            "next": dict(sorted(following.items())),
        },
    }
    key_id, signature = shelf.sign(content)
    document: dict[str, object] = {
        "body": content,
        "site_id": site.site_id,
        "key_id": key_id,
        "signature": signature,
    }
    return Proof(
        document=canonical(document).decode() + "\n",
        receipt_count=sum(len(proof.receipts) for proof in proofs),
        silent=silent,
        next=_told_page(following),
    )


def _covered(text: str, field: str) -> dict[SiteId, int]:
    """Read what an earlier proof's heads covered, or where a page begins."""
    covered: dict[SiteId, int] = {}
    for part in filter(None, text.split(",")):
        site_id, _, count = part.rpartition(":")
        if not site_id or not count.isdecimal():
            raise InvalidRequest(
                f"{part!r} is not SITE:RECEIPTS", field=field, hint="as in marne:120,lyon:44"
            )
        covered[SiteId(site_id)] = int(count)
    return covered


def _contract_document(contract: Contract) -> dict[str, object]:
    document: dict[str, object] = msgspec.to_builtins(contract)
    return document


def _site_document(site: Site, proof: LedgerProof) -> dict[str, object]:
    datacenter = site.index.value(Datacenter, proof.site_id)
    trust = site.index.value(SiteTrust, proof.site_id)
    return {
        "site_id": proof.site_id,
        "place": datacenter.place,
        "country": datacenter.country,
        "operator": datacenter.operator.name,
        "operator_country": datacenter.operator.country,
        "tier": datacenter.tier,
        "authority": trust.authority_pem,
        "signers": trust.signers_pem,
        "head": None if proof.head is None else proof.head.document(),
        "receipts": [
            {
                "index": entry.index,
                "path": list(entry.path),
                "receipt": entry.receipt.document(),
            }
            for entry in proof.receipts
        ],
        "certificates": proof.certificates,
        "growth": {"since": proof.since, "path": list(proof.growth)},
    }


async def list_deleted(site: Site, _principal: Principal, body: ListDeleted) -> DeletedVolumes:
    """Tell which volumes an IaaS once had, by what the ledgers of all sites keep of them."""
    iaas = _iaas_named(site, body.iaas)
    counts, silent = await _counts(site, iaas.iaas_id)
    held: dict[VolumeId, list[HeldCount]] = defaultdict(list)
    for count in (count for found in counts.values() for count in found):
        if site.index.find("volume", count.volume_id) is None:
            held[count.volume_id].append(count)
    names = {e.volume_id: e.name for e in site.index.values(Erasure)}
    deleted = [
        DeletedVolume(
            volume=volume_id,
            name=names.get(volume_id, ""),
            nodes=tuple(count.node_id for count in found),
            receipt_count=sum(count.receipt_count for count in found),
            segment_count=sum(count.segment_count for count in found),
            last_s=max(count.last_s for count in found),
        )
        for volume_id, found in held.items()
    ]
    return DeletedVolumes(
        volumes=tuple(sorted(deleted, key=lambda volume: -volume.last_s)), silent=silent
    )


async def check_iaas(site: Site, _principal: Principal, body: NameIaas) -> ContractCheck:
    """Look at every VM, every copy and every receipt of an IaaS against its contract."""
    return await check_contract(site, _iaas_named(site, body.iaas))


async def check_contract(site: Site, iaas: Iaas | PastIaas) -> ContractCheck:
    """Look at every VM, copy and receipt of `iaas`; what sites do not answer is named."""
    refusals = {
        d.site_id: refusal
        for d in site.index.values(Datacenter)
        if (refusal := refusal_of_site(iaas.contract, d)) is not None
    }
    places: list[tuple[str, str, SiteId]] = [
        ("vm", vm.vm_id, vm.site_id)
        for vm in site.index.of_iaas(Vm, iaas.iaas_id)
        if vm.site_id is not None
    ]
    vm_count = len(places)
    places += [
        ("copy", f"{volume.volume_id} on {place.node_id}", place.site_id)
        for volume in site.index.of_iaas(Volume, iaas.iaas_id)
        for place in volume.replicas
    ]
    copy_count = len(places) - vm_count
    counts, silent = await _counts(site, iaas.iaas_id)
    places += [
        ("receipt", f"{held.volume_id} on {held.node_id}", site_id)
        for site_id, found in counts.items()
        for held in found
    ]
    return ContractCheck(
        vm_count=vm_count,
        copy_count=copy_count,
        receipt_count=sum(held.receipt_count for found in counts.values() for held in found),
        findings=tuple(
            Finding(
                kind=kind,
                id=object_id,
                site=site_id,
                rule=refusals[site_id].rule,
                reason=refusals[site_id].reason,
            )
            for kind, object_id, site_id in places
            if site_id in refusals
        ),
        silent=silent,
    )


async def _counts(
    site: Site, iaas_id: IaasId
) -> tuple[dict[SiteId, list[HeldCount]], tuple[SiteId, ...]]:
    counts: dict[SiteId, list[HeldCount]] = {}
    silent: list[SiteId] = []
    ask = AskCount(iaas_id)
    for site_id in sorted(d.site_id for d in site.index.values(Datacenter)):
        if site_id == site.site_id:
            counts[site_id] = await count_here(site, ask)
            continue
        try:
            counts[site_id] = await site.others.ask(
                site_id, COUNT_METHOD, ask, list[HeldCount], timeout_s=ASK_TIMEOUT_S
            )
        except NuageError:
            silent.append(site_id)
    return counts, tuple(silent)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    path = "/v1/iaas/{iaas}/volumes/{volume}"
    table.add(
        Operation(
            name="iaas.list-deleted",
            verb="GET",
            path="/v1/deleted-iaas",
            body=ListPast,
            result=list[PastIaas],
            action="volume.trace",
            summary="Tell which IaaSes were taken down, and may still be traced and proven",
            run=list_past,
            scope=any_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="volume.trace",
            verb="GET",
            path=path + "/trace",
            body=TraceVolume,
            result=Trace,
            action="volume.trace",
            summary="Tell where each part of a volume has been, from when to when",
            run=trace_volume,
            scope=_trace_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="volume.prove",
            verb="GET",
            path=path + "/proof",
            body=ProveVolume,
            result=Proof,
            action="volume.trace",
            summary="Prove where a volume has been, in a document that stands alone",
            run=prove_volume,
            scope=_trace_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="volume.list-deleted",
            verb="GET",
            path="/v1/iaas/{iaas}/deleted-volumes",
            body=ListDeleted,
            result=DeletedVolumes,
            action="volume.trace",
            summary="Tell which volumes were deleted, and what of them has been where",
            run=list_deleted,
            scope=_trace_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="iaas.check",
            verb="GET",
            path="/v1/iaas/{iaas}/check",
            body=NameIaas,
            result=ContractCheck,
            action="iaas.read",
            summary="Look for anything of an IaaS that lies or runs outside its contract",
            run=check_iaas,
            scope=_trace_scope,
            home=anywhere,
        )
    )
