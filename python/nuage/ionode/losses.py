"""What lay on a disk that was declared lost gets its end in the location ledger.

The site's ledger says what the disk held; the agent, which alone can look, says what became of it:
lost, while the disk is not there, or erased, once it came back and was wiped. Nothing is kept here
for that: what the ledger has taken in it does not name again, and what it has not is told anew.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Final

import structlog

from nuage.clock import Clock
from nuage.errors import NuageError
from nuage.ids import IaasId, NodeId, VolumeId
from nuage.ionode.identity import DiskBook, Fate
from nuage.ionode.receipts import BATCH_MAX, ReceiptBatch, Signer
from nuage.model.infrastructure import DiskLoss, LostDisk
from nuage.trust.ledger import LocationEvent, Receipt, sign_receipt
from nuage.trust.ledger_index import DiskCursor

HELD_METHOD: Final = "ionode.held"
LOOK_EVERY_S: Final = 15.0
ASK_AGAIN_S: Final = 3600.0  # notes of another IaaS may have been late; it reads every ledger
log = structlog.get_logger("ionode")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskHeld:
    """An IO-node asks what the ledgers say that a disk of its holds, or lost."""

    node_id: NodeId
    disk_serial: str
    after: DiskCursor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPage:
    """The last receipt of each such segment. `next`: where the next page begins, if any."""

    held: tuple[tuple[IaasId, Receipt], ...]
    next: DiskCursor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How an IaaS stands here. `used` volumes are served from disks that are at no place any more.

    `is_told`: the site has all that its daemon noted.
    """

    is_told: bool
    used: frozenset[VolumeId] = frozenset()


Ask = Callable[[AskHeld], Awaitable[HeldPage]]
Stands = Callable[[IaasId], Awaitable[Standing]]


def endings(
    held: Iterable[Receipt],
    *,
    fate: Fate,
    loss: DiskLoss,
    used: Collection[VolumeId],
    now_ms: int,
) -> list[Receipt]:
    """Return what is to be told, unsigned, of segments of a disk that was declared lost.

    Of one that is gone: that they were lost with it, but for what a daemon still serves from open
    files. Of one that came back and was erased: that they were. Else nothing.
    """
    ended = [receipt for receipt in held if receipt.volume_id not in used]
    if fate is Fate.GONE:
        told = [receipt for receipt in ended if receipt.event is not LocationEvent.LOST]
        lost = LocationEvent.LOST
        return [replace(r, event=lost, time_ms=now_ms, declaration=loss) for r in told]
    if fate is Fate.ERASED:
        expire = LocationEvent.EXPIRE
        return [replace(r, event=expire, time_ms=now_ms, declaration=None) for r in ended]
    return []


class LossTeller:
    """Tells the site what was lost, as long as there is something to tell."""

    def __init__(
        self,
        book: DiskBook,
        *,
        signer: Signer,
        lost: Callable[[], tuple[LostDisk, ...]],
        uses: Callable[[str], bool],
        stands: Stands,
        ask: Ask,
        hand: Callable[[ReceiptBatch], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._book = book
        self._signer = signer
        self._lost = lost
        self._uses = uses
        self._stands = stands
        self._ask = ask
        self._hand = hand
        self._clock = clock
        self._told_s: dict[tuple[str, Fate], float] = {}  # when all of it was told

    async def run(self) -> None:
        """Look now and then, for ever."""
        while True:
            await self.look()
            await self._clock.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Tell what there is to tell of each disk that was declared lost."""
        for lost in self._lost():
            try:
                await self._look_at(lost)
            except NuageError as error:
                serial = lost.loss.disk_serial
                log.info("lost disk not told of", disk=serial, error=error.message)

    async def _look_at(self, lost: LostDisk) -> None:
        serial = lost.loss.disk_serial
        fate, erased_ms = self._book.fate_of(serial)
        if fate is Fate.BACK and lost.erase and not self._uses(self._book.place_of(serial)):
            self._book.erase(serial)
            log.warning("lost disk erased", disk=serial)
            fate, erased_ms = self._book.fate_of(serial)
        told_s = self._told_s.get((serial, fate), float("-inf"))
        is_due = self._clock.monotonic_s() - told_s >= ASK_AGAIN_S
        if fate in (Fate.BACK, Fate.SERVES) or not is_due:
            return
        now_ms = erased_ms or int(self._clock.now_s() * 1000)
        is_all, after = True, None
        while True:
            ask = AskHeld(node_id=self._signer.node_id, disk_serial=serial, after=after)
            page = await self._ask(ask)
            for iaas_id, entries in groupby(page.held, key=itemgetter(0)):
                held = [receipt for _, receipt in entries]
                stands = await self._stands(iaas_id)
                is_all = is_all and stands.is_told and not stands.used
                if stands.is_told:
                    ended = endings(
                        held, fate=fate, loss=lost.loss, used=stands.used, now_ms=now_ms
                    )
                    await self._tell(iaas_id, ended)
            after = page.next
            if after is None:
                break
        if is_all:
            self._told_s[serial, fate] = self._clock.monotonic_s()

    async def _tell(self, iaas_id: IaasId, ended: list[Receipt]) -> None:
        for begin in range(0, len(ended), BATCH_MAX):
            signed = tuple(
                sign_receipt(receipt, self._signer.key())
                for receipt in ended[begin : begin + BATCH_MAX]
            )
            chain_pem = self._signer.chain_pem()
            await self._hand(ReceiptBatch(iaas_id=iaas_id, chain_pem=chain_pem, receipts=signed))
