"""A site's location ledgers: one per IaaS, fed by its IO-nodes, and what is proven from them.

In flow batches of receipts that IO-nodes signed, each with the certificate of its signer. It is
checked up to the federation's root before anything is entered, and kept beside the ledgers, so
that an auditor can check the receipts long after the node is gone. Out flow receipts, and proofs
that they are under a head of the Merkle tree that the site signed (docs/protocols/ledger.md).

Layout: ``ledger/<iaas id>.log``, ``ledger/index/<iaas id>.db`` (made from the log, and made anew
when it is gone), and ``ledger/certificates/<key id>.pem``.
"""

import base64
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.channel.identity import Identity
from nuage.errors import Forbidden, InvalidRequest, NuageError, Unauthenticated
from nuage.ids import FederationId, IaasId, NodeId, SiteId, VolumeId
from nuage.ionode.receipts import BATCH_MAX, ReceiptBatch
from nuage.model.infrastructure import DiskLoss, NodeRole
from nuage.trust.book import key_id_of, raw_key
from nuage.trust.files import write_atomically
from nuage.trust.ledger import LocationEvent, LocationLedger, Receipt, TreeHead, sign_loss
from nuage.trust.ledger_index import DiskCursor, Held, OnDisk, Segment
from nuage.trust.pki import (
    federation_of_root,
    identity_of_certificate,
    load_certificate,
    load_chain,
    pem_of,
    public_key_of,
    require_issued,
    require_site_authority,
)
from nuage.trust.verify import SiteKey, proof_message

CERTIFICATES: Final = "certificates"
PAGE_RECEIPTS_MAX: Final = 2000  # some 2 KiB each with their paths: a quarter of a frame
PAGE_READ_MAX: Final = 20_000  # of those that a time may rule out: a second of reading
DISK_PAGE: Final = 256  # receipts, of half a KiB each
OPEN_MAX: Final = 32  # ledgers, of three files each; a process may have 1024 by habit


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenReceipt:
    """A receipt, and the path from it to the head (hexadecimal, leaf upwards)."""

    index: int
    receipt: Receipt
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which receipts of a volume: a page of them, of a time.

    Receipts are told by segment, so that what is told of one is all there is of it. `after`: only
    segments whose first receipt is behind that index. `from_ms` and `until_ms` (0: none): only
    segments that lay here at some moment between them.
    """

    after: int = -1
    from_ms: int = 0
    until_ms: int = 0


EVERYTHING: Final = Selection()


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerProof:
    """Receipts of a volume in one site's ledger, under one signed head: a page of them.

    `next` is the `after` of the next page, None with the last. `certificates` holds the signers'
    certificates (PEM) by key id; `head` is None where nothing was ever entered. `growth`
    (hexadecimal) proves that the ledger's first `since` receipts are those of an earlier head.
    """

    site_id: SiteId
    head: TreeHead | None
    receipts: tuple[ProvenReceipt, ...]
    certificates: dict[str, str]
    since: int = 0
    growth: tuple[str, ...] = ()
    next: int | None = None


class LedgerShelf:
    """The ledgers of one site. One writer: its controller. Any of its threads may ask.

    Ledgers stay for as long as the site does, those of deleted IaaSes too; the ones used last are
    open.
    """

    def __init__(
        self,
        directory: Path,
        *,
        site_id: SiteId,
        root_pem: str,
        key: Callable[[], Ed25519PrivateKey],
        now_s: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._site_id = site_id
        self.root_pem = root_pem
        self._root = load_certificate(root_pem)
        self._key = key
        self._now_s = now_s
        self._ledgers: OrderedDict[IaasId, LocationLedger] = OrderedDict()
        self._lock = threading.Lock()
        (directory / CERTIFICATES).mkdir(mode=0o750, parents=True, exist_ok=True)

    def take(self, sender: Identity, batch: ReceiptBatch) -> int:
        """Enter what an IO-node vouches for; durable on return. Return how many were new.

        Raises:
            Forbidden: it vouches for another node.
            Unauthenticated: its certificate does not come from the root.
            InvalidRequest: a signature does not hold; nothing was entered.
        """
        if len(batch.receipts) > BATCH_MAX * 2:
            raise InvalidRequest(f"at most {BATCH_MAX * 2} receipts at a time", field="receipts")
        signer, certificate_pem = self._signer_of(sender, batch.chain_pem)
        key_id = _key_id(certificate_pem)
        for receipt in batch.receipts:
            if (receipt.site_id, receipt.node_id) != (sender.site_id, sender.node_id):
                raise Forbidden(f"{sender} may not vouch for {receipt.node_id}")
            if receipt.key_id != key_id:
                raise InvalidRequest("signed with another key than the one shown", field="key_id")
        kept = self._directory / CERTIFICATES / f"{key_id}.pem"
        if not kept.exists():
            write_atomically(kept, certificate_pem.encode())
        with self._lock:
            ledger = self._opened(batch.iaas_id)
            fresh = [receipt for receipt in batch.receipts if not ledger.has(receipt)]
            for receipt in fresh:
                ledger.append(receipt, signer)
            ledger.sync()
        return len(fresh)

    def _signer_of(self, sender: Identity, chain_pem: str) -> tuple[SiteKey, str]:
        leaf, *above = load_chain(chain_pem)
        if not above:
            raise Unauthenticated("the chain lacks the authority of the site")
        federation: FederationId = federation_of_root(self._root)
        require_site_authority(
            above[0], self._root, federation_id=federation, site_id=self._site_id, now_s=None
        )
        require_issued(leaf, above[0], now_s=self._now_s())
        identity = identity_of_certificate(leaf)
        if identity != sender or identity.role is not NodeRole.IONODE:
            raise Unauthenticated(f"{sender} shows the certificate of {identity}")
        return SiteKey(self._site_id, raw_key(public_key_of(leaf))), pem_of(leaf)

    def _opened(self, iaas_id: IaasId) -> LocationLedger:
        """Return the ledger of an IaaS, opened or begun."""
        known = self._ledgers.pop(iaas_id, None)
        if known is None or not known.is_open:
            known = LocationLedger(
                self._directory / f"{iaas_id}.log",
                name=iaas_id,
                site_id=self._site_id,
                key=self._key,
                now_s=self._now_s,
            )
        self._ledgers[iaas_id] = known
        while len(self._ledgers) > OPEN_MAX:
            _, unused = self._ledgers.popitem(last=False)
            unused.close()
        return known

    def _has(self, iaas_id: IaasId) -> bool:
        return iaas_id in self._ledgers or (self._directory / f"{iaas_id}.log").exists()

    def prove(
        self,
        iaas_id: IaasId,
        volume_id: VolumeId,
        *,
        since: int = 0,
        pick: Selection = EVERYTHING,
    ) -> LedgerProof:
        """Return a page of a volume's receipts, under a head that covers all of them.

        Raises:
            NotFound: the ledger never had `since` receipts.
        """
        with self._lock:
            if not self._has(iaas_id):
                return LedgerProof(site_id=self._site_id, head=None, receipts=(), certificates={})
            ledger = self._opened(iaas_id)
            if ledger.size and (ledger.head is None or ledger.head.size < ledger.size):
                ledger.sign_head()
            picked, following = _page(ledger, volume_id, pick)
            proofs = [ledger.prove(index) for index in picked]
            head, growth = ledger.head, ledger.prove_growth(since)
        return LedgerProof(
            site_id=self._site_id,
            head=head,
            receipts=tuple(
                ProvenReceipt(index=proof.index, receipt=proof.receipt, path=proof.path)
                for proof in proofs
            ),
            certificates=self._certificates(proof.receipt for proof in proofs),
            since=since,
            growth=growth,
            next=following,
        )

    def counts(self, iaas_id: IaasId) -> dict[tuple[NodeId, VolumeId], Held]:
        """Return what each node here has signed for each volume of an IaaS."""
        with self._lock:
            return self._opened(iaas_id).counts() if self._has(iaas_id) else {}

    def on_disk(
        self, node_id: NodeId, disk_serial: str, after: DiskCursor | None
    ) -> tuple[list[tuple[IaasId, Receipt]], DiskCursor | None]:
        """Return a page of what a disk holds by its last receipt, or what was lost with it.

        And where the next page begins, None: that was the last.
        """
        found: list[tuple[IaasId, Receipt]] = []
        for iaas_id in self._iaas_ids():
            if after is not None and iaas_id < after.iaas_id:
                continue
            behind = after.segment if after is not None and iaas_id == after.iaas_id else None
            with self._lock:
                more = self._opened(iaas_id).on_disk(
                    node_id, disk_serial, after=behind, count=DISK_PAGE - len(found)
                )
            found += [(iaas_id, receipt) for receipt in more]
            if len(found) >= DISK_PAGE:
                last = Segment(more[-1].volume_id, more[-1].segment)
                return found, DiskCursor(iaas_id, last)
        return found, None

    def disks_of(self, node_id: NodeId) -> dict[str, OnDisk]:
        """Return what each disk of a node holds, and what was lost with it, by serial."""
        found: dict[str, OnDisk] = {}
        for iaas_id in self._iaas_ids():
            with self._lock:
                ledger = self._opened(iaas_id)
                serials = ledger.disks_of(node_id)
                here = {serial: ledger.count_on_disk(node_id, serial) for serial in serials}
            for disk, more in here.items():
                found[disk] = found.get(disk, OnDisk()).plus(more)
        return found

    def _iaas_ids(self) -> list[IaasId]:
        return sorted(IaasId(path.stem) for path in self._directory.glob("*.log"))

    def sign_loss(self, loss: DiskLoss) -> DiskLoss:
        """Return this site's word that a disk is lost."""
        return sign_loss(loss, self._key())

    def _certificates(self, receipts: Iterable[Receipt]) -> dict[str, str]:
        key_ids = sorted({receipt.key_id for receipt in receipts})
        folder = self._directory / CERTIFICATES
        return {key_id: (folder / f"{key_id}.pem").read_text() for key_id in key_ids}

    def sign(self, body: dict[str, object]) -> tuple[str, str]:
        """Return key id and signature (base64) of this site over a proof's body."""
        key = self._key()
        signature = base64.b64encode(key.sign(proof_message(body))).decode()
        return key_id_of(key.public_key()), signature

    def sync(self) -> None:
        """Sign what has waited long enough; called from time to time."""
        with self._lock:
            for ledger in self._ledgers.values():
                if ledger.is_open:
                    ledger.sync()

    def close(self) -> None:
        """Sign what is left and close the files."""
        with self._lock:
            for ledger in self._ledgers.values():
                ledger.close()
            self._ledgers.clear()


def _page(
    ledger: LocationLedger, volume_id: VolumeId, pick: Selection
) -> tuple[list[int], int | None]:
    """Return the receipts of a page in order, and the `after` of the next one."""
    has_window = bool(pick.from_ms or pick.until_ms)
    picked: list[int] = []
    read_count = 0
    last = pick.after
    for indices in ledger.segments_of(volume_id):
        if indices[0] <= pick.after:
            continue
        is_full = picked and len(picked) + len(indices) > PAGE_RECEIPTS_MAX
        if is_full or read_count >= PAGE_READ_MAX:
            return sorted(picked), last
        last = indices[0]
        if has_window:
            read_count += len(indices)
            ends = ledger.receipt(indices[0]), ledger.receipt(indices[-1])
            if not _lay_between(*ends, pick):
                continue
        picked += indices
    return sorted(picked), None


def _lay_between(first: Receipt, last: Receipt, pick: Selection) -> bool:
    """Tell whether a segment lay here at some moment of the time that is asked about.

    What was lost and not erased may lie somewhere still.
    """
    began = not pick.until_ms or first.time_ms <= pick.until_ms
    ended = last.event is LocationEvent.EXPIRE and last.time_ms < pick.from_ms
    return began and not ended


def _key_id(certificate_pem: str) -> str:
    try:
        return key_id_of(public_key_of(load_certificate(certificate_pem)))
    except NuageError as error:
        raise Unauthenticated(f"the certificate cannot be read: {error.message}") from error
