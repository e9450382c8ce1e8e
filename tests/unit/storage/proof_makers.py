"""A small federation's trust and its ledgers, for tests of proofs."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.channel.identity import Identity
from nuage.ids import FederationId, IaasId, NodeId, SiteId, VolumeId
from nuage.ionode.port import DaemonReceipt
from nuage.ionode.receipts import ReceiptBatch, Signer
from nuage.model.infrastructure import NodeRole
from nuage.storage.ledgers import LedgerShelf
from nuage.trust.pki import (
    Authority,
    issue_daemon,
    issue_signer,
    issue_site_authority,
    make_root,
    pem_of,
)

NOW_S = 1_800_000_000.0
FEDERATION = FederationId("fr")
IAAS, VOLUME = IaasId("iaas-1"), VolumeId("vol-0000000000000001")


class SiteTrustOf:
    """The keys and certificates of one site."""

    def __init__(self, root: Authority, name: str) -> None:
        self.site_id = SiteId(name)
        key = Ed25519PrivateKey.generate()
        certificate = issue_site_authority(
            root, key.public_key(), federation_id=FEDERATION, site_id=self.site_id, now_s=NOW_S
        )
        self.authority = Authority(certificate, key)
        self.signer_key = Ed25519PrivateKey.generate()
        self.signer = issue_signer(
            self.authority, self.signer_key.public_key(), federation_id=FEDERATION,
            site_id=self.site_id, now_s=NOW_S,
        )  # fmt: skip

    def node(self, name: str) -> tuple[Identity, Signer]:
        """Return an IO-node's identity and what it signs with."""
        identity = Identity(FEDERATION, self.site_id, NodeRole.IONODE, NodeId(name))
        key = Ed25519PrivateKey.generate()
        leaf = issue_daemon(self.authority, key.public_key(), identity, now_s=NOW_S)
        chain_pem = pem_of(leaf, self.authority.certificate)
        signer = Signer(
            site_id=self.site_id, node_id=identity.node_id, serial_of=lambda _disk, _ms: "WD-1",
            key=lambda: key, chain_pem=lambda: chain_pem,
        )  # fmt: skip
        return identity, signer

    def shelf(self, directory: Path, root: Authority) -> LedgerShelf:
        """Return this site's ledgers."""
        return LedgerShelf(
            directory / self.site_id, site_id=self.site_id, root_pem=pem_of(root.certificate),
            key=lambda: self.signer_key, now_s=lambda: NOW_S,
        )  # fmt: skip


def new_root() -> Authority:
    """Return a federation's root."""
    return make_root(FEDERATION, NOW_S)


def noted(number: int, *, act: str = "sealed", segment: int = 0) -> DaemonReceipt:
    """Return what a daemon notes of a segment of ten writes."""
    segment = segment or number
    return DaemonReceipt(
        number=number, act=act, volume_id=VOLUME, segment=segment, first_sequence=segment * 10,
        last_sequence=segment * 10 + 9, chain=f"{segment:064x}",
        time_ms=int(NOW_S * 1000) + number,
    )  # fmt: skip


def batch(signer: Signer, *receipts: DaemonReceipt) -> ReceiptBatch:
    """Return receipts as an agent hands them over."""
    return ReceiptBatch(
        iaas_id=IAAS, chain_pem=signer.chain_pem(), receipts=tuple(map(signer.sign, receipts))
    )
