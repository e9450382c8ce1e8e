"""Receipts on their way from a storage daemon to the site's location ledger.

A daemon notes what becomes of each segment of its journals, under dense numbers. This end signs
each with the node's key and hands it over; only what the site has taken in moves the cursor, so
that nothing is lost while the controller or this agent is away. A receipt may be handed over twice:
its bytes are the same then (Ed25519 is deterministic), and the ledger takes it once.

A copy that is erased is signed for here: the daemon forgets it with the copy. What is to be vouched
for is on disk before the act, and told only once the copy is gone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.errors import UNREADABLE, CorruptData
from nuage.ids import IaasId, NodeId, SiteId, VolumeId
from nuage.ionode.port import DaemonReceipt
from nuage.trust.files import write_atomically
from nuage.trust.ledger import LocationEvent, Receipt, sign_receipt

RECEIPTS_METHOD: Final = "ionode.receipts"
BATCH_MAX: Final = 64  # receipts in one call: some 30 KiB
_EVENTS: Final = {
    "sealed": LocationEvent.SEAL,
    "moved": LocationEvent.MOVE,
    "expired": LocationEvent.EXPIRE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptBatch:
    """Signed receipts of one IaaS, with the certificate chain (PEM) of the key that signed them."""

    iaas_id: IaasId
    chain_pem: str
    receipts: tuple[Receipt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Who vouches. `key` and `chain_pem` are read anew for each batch: certificates are renewed."""

    site_id: SiteId
    node_id: NodeId
    serial_of: Callable[[str, int], str]  # of a disk by its place ("": the first), at a time (ms)
    key: Callable[[], Ed25519PrivateKey]
    chain_pem: Callable[[], str]

    def sign(self, noted: DaemonReceipt) -> Receipt:
        """Return what the daemon noted as this node's word."""
        receipt = Receipt(
            volume_id=noted.volume_id,
            segment=noted.segment,
            sequence_first=noted.first_sequence,
            sequence_last=noted.last_sequence,
            chain_hash=noted.chain,
            site_id=self.site_id,
            node_id=self.node_id,
            disk_serial=self.serial_of(noted.disk, noted.time_ms),
            event=_EVENTS[noted.act],
            time_ms=noted.time_ms,
        )
        return sign_receipt(receipt, self.key())


class _Kept(msgspec.Struct):
    """What is on disk: the last number taken in, erasures under way, and what they left to tell."""

    cursor: int = 0
    erasing: dict[VolumeId, list[DaemonReceipt]] = {}
    erased: list[DaemonReceipt] = []


class Outbox:
    """What one daemon's site does not know yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = _Kept()
        if path.exists():
            try:
                self._kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            except UNREADABLE as error:
                raise CorruptData(f"receipts cannot be read: {error}", where=str(path)) from None

    @property
    def cursor(self) -> int:
        """Return the number of the last receipt that the site has."""
        return self._kept.cursor

    @property
    def erased(self) -> tuple[DaemonReceipt, ...]:
        """Return what is to be told of copies that are gone."""
        return tuple(self._kept.erased)

    def has_told(self, past: Iterable[DaemonReceipt]) -> bool:
        """Tell whether the site knows all of this, and what became of erased copies."""
        last = max((receipt.number for receipt in past), default=0)
        return last <= self._kept.cursor and not self._kept.erasing and not self._kept.erased

    def remove(self) -> None:
        """Forget where it was: its daemon begins anew, if ever, with the first number."""
        self._path.unlink(missing_ok=True)

    def taken(self, receipts: Iterable[DaemonReceipt]) -> None:
        """Note that the site has taken these in."""
        done = list(receipts)
        numbers = [receipt.number for receipt in done]
        self._kept.cursor = max([self._kept.cursor, *numbers])
        self._kept.erased = [r for r in self._kept.erased if r not in done]
        self._save()

    def erase_begins(
        self, volume_id: VolumeId, past: Iterable[DaemonReceipt], *, now_ms: int
    ) -> None:
        """Note what is held of a copy that will be erased now."""
        held = held_segments(past, volume_id)
        self._kept.erasing[volume_id] = [_expired(receipt, now_ms) for receipt in held]
        self._save()

    def erase_ended(self, present: Iterable[VolumeId]) -> None:
        """Note which copies are still there: what became of the others is to be told."""
        still = set(present)
        gone = [volume_id for volume_id in self._kept.erasing if volume_id not in still]
        for volume_id in gone:
            self._kept.erased += self._kept.erasing.pop(volume_id)
        if gone:
            self._save()

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, msgspec.json.encode(self._kept))


def held_segments(past: Iterable[DaemonReceipt], volume_id: VolumeId) -> list[DaemonReceipt]:
    """Return the last receipt of each segment of a volume that has not expired, disk by disk."""
    held: dict[tuple[str, int], DaemonReceipt] = {}
    for receipt in past:
        if receipt.volume_id != volume_id:
            continue
        if receipt.act == "expired":
            held.pop((receipt.disk, receipt.segment), None)
        else:
            held[receipt.disk, receipt.segment] = receipt
    return [held[key] for key in sorted(held)]


def _expired(receipt: DaemonReceipt, now_ms: int) -> DaemonReceipt:
    return DaemonReceipt(
        number=0,
        act="expired",
        volume_id=receipt.volume_id,
        segment=receipt.segment,
        first_sequence=receipt.first_sequence,
        last_sequence=receipt.last_sequence,
        chain=receipt.chain,
        time_ms=now_ms,
        disk=receipt.disk,
    )
