"""The site's location ledgers in its controller: fed by IO-nodes, asked by other sites. Wiring."""

import asyncio
from pathlib import Path
from typing import Final

from nuage.channel import Handlers, Peer
from nuage.clock import Clock
from nuage.daemon.process import Tasks
from nuage.errors import Forbidden
from nuage.iaas.lost_disks import require_declared
from nuage.iaas.provenance import (
    COUNT_METHOD,
    PROVE_METHOD,
    AskCount,
    AskProof,
    HeldCount,
    count_here,
    prove_here,
)
from nuage.iaas.site import Site
from nuage.ionode.losses import HELD_METHOD, AskHeld, HeldPage
from nuage.ionode.receipts import RECEIPTS_METHOD, ReceiptBatch
from nuage.model.infrastructure import NodeRole
from nuage.storage.ledgers import LedgerProof, LedgerShelf
from nuage.trust.pki import pem_of
from nuage.trust.store import TrustStore

LEDGER_FOLDER: Final = "ledger"
SYNC_EVERY_S: Final = 15.0


def open_ledgers(state_dir: Path, store: TrustStore, clock: Clock) -> LedgerShelf:
    """Return the ledgers of the site whose trust `store` holds."""
    return LedgerShelf(
        state_dir / LEDGER_FOLDER,
        site_id=store.identity().site_id,
        root_pem=pem_of(store.root()),
        key=store.signer_key,
        now_s=clock.now_s,
    )


def serve_ledgers(handlers: Handlers, site: Site, shelf: LedgerShelf) -> None:
    """Answer IO-nodes and other sites. Disk work runs on threads."""
    writing = asyncio.Lock()  # who waits for the shelf holds no thread

    @handlers.method(RECEIPTS_METHOD, ReceiptBatch, roles={NodeRole.IONODE}, runs_to_end=True)
    async def receipts(peer: Peer, batch: ReceiptBatch) -> None:
        require_declared(site, batch)
        async with writing:
            await asyncio.to_thread(shelf.take, peer.identity, batch)

    @handlers.method(HELD_METHOD, AskHeld, roles={NodeRole.IONODE})
    async def held(peer: Peer, ask: AskHeld) -> HeldPage:
        if ask.node_id != peer.identity.node_id:
            raise Forbidden(f"{peer.identity} asks for {ask.node_id}")
        async with writing:
            found, following = await asyncio.to_thread(
                shelf.on_disk, ask.node_id, ask.disk_serial, ask.after
            )
        return HeldPage(held=tuple(found), next=following)

    @handlers.method(PROVE_METHOD, AskProof, roles={NodeRole.CONTROLLER})
    async def prove(_peer: Peer, ask: AskProof) -> LedgerProof:
        return await prove_here(site, ask)

    @handlers.method(COUNT_METHOD, AskCount, roles={NodeRole.CONTROLLER})
    async def count(_peer: Peer, ask: AskCount) -> list[HeldCount]:
        return await count_here(site, ask)


def keep_ledgers(tasks: Tasks, shelf: LedgerShelf, clock: Clock) -> None:
    """Sign heads as they fall due."""

    async def sync() -> None:
        while True:
            await clock.sleep(SYNC_EVERY_S)
            await asyncio.to_thread(shelf.sync)

    tasks.keep("ledgers", sync)
