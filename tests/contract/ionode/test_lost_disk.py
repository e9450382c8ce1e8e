"""A real daemon's disk is taken away for good: its segments end in the ledger, and only then."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.ionode.test_storage_daemon_contract import (
    BINARY,
    HEAD,
    IAAS,
    REPLICA,
    VOLUME,
    end_storaged,
    free_ports,
)
from tests.contract.ionode.throwaway_tls import write_tls
from tests.unit.storage.proof_makers import SiteTrustOf, new_root

from nuage.clock import SystemClock
from nuage.daemon.ionode import BASES
from nuage.errors import NotFound
from nuage.ids import NodeId, SiteId
from nuage.ionode.agent import IonodeAgent, IonodeOptions
from nuage.ionode.disks import BasePlace, DiskPlace, base_disk
from nuage.ionode.identity import DiskBook
from nuage.ionode.losses import AskHeld, HeldPage, LossTeller
from nuage.ionode.port import StorageDaemon
from nuage.ionode.receipts import ReceiptBatch
from nuage.ionode.storaged import StoragedDaemon, StoragedOptions
from nuage.model.contract import DiskClass, JournalRule, Limits
from nuage.model.desired import DaemonWish, IonodeWish
from nuage.model.history import AskMark
from nuage.model.infrastructure import DiskLoss, LostDisk
from nuage.trust.ledger_index import OnDisk
from nuage.units import GIB

WITHIN_S = 60.0


class Node:
    """An IO-node of two disks, of which the second is taken first, and its site's ledger.

    Where their classes differ, the slow one takes what compaction writes.
    """

    def __init__(
        self,
        directory: Path,
        *,
        classes: tuple[DiskClass, DiskClass] = (DiskClass.NVME, DiskClass.NVME),
        journal: JournalRule = REPLICA.journal,
        daemon_type: type[StoragedDaemon] = StoragedDaemon,
    ) -> None:
        self.directory = directory
        self.replica = replace(REPLICA, journal=journal)
        self.daemon_type = daemon_type
        self.tls = write_tls(directory / "tls")
        self.ports = free_ports()
        root = new_root()
        site = SiteTrustOf(root, "lyon")
        self.sender, self.signer = site.node("io1")
        self.shelf = site.shelf(directory / "site", root)
        self.lost: tuple[LostDisk, ...] = ()
        self.revision = 0
        self.epoch = 1
        self.places = tuple(
            DiskPlace(
                name=name, disk_class=disk_class, path=directory / name / "volumes",
                size_bytes=size, serial=name, capacity=Limits(operations_per_s=1000),
            )
            for name, size, disk_class in (
                ("d0", GIB // 8, classes[0]), ("d1", GIB // 4, classes[1]),
            )
        )  # fmt: skip
        for name in ("d0", "d1"):
            (directory / name).mkdir()
        self.begin()

    def begin(self) -> None:
        """Start the agent anew."""
        self.book = DiskBook(
            self.directory / "disks.json", self.places, now_ms=lambda: int(time.time() * 1000)
        )
        lost = {lost.loss.disk_serial for lost in self.lost}
        self.book.take_in(lost)
        large, serving = base_disk(self.places), self.book.serving
        base = None
        if large is not None and large.name in [disk.name for disk in serving]:
            base = BasePlace(large.name, large.path / BASES)
        options = StoragedOptions(
            binary=str(BINARY), disks=serving, base=base,
            all_disks=self.book.is_complete(lost), run_dir=self.directory / "run",
            address="127.0.0.1", tls_cert=self.tls.chain, tls_key=self.tls.key,
            tls_ca=self.tls.root, tls_crl=self.tls.lists, clear_from=self.directory / "clear-from",
        )  # fmt: skip
        self.daemon = self.daemon_type(options, IAAS, self.ports)
        signer = replace(self.signer, serial_of=self.book.serial_at)
        self.agent = IonodeAgent(
            IonodeOptions(
                node_id=NodeId("io1"), site_id=SiteId("lyon"), state_dir=self.directory,
                disks=self.places, book=self.book,
            ),
            open_daemon=self.open, fetch_image=_no_image, clock=SystemClock(), signer=signer,
            hand_receipts=self.take,
        )  # fmt: skip
        self.teller = LossTeller(
            self.book, signer=signer, lost=lambda: self.agent.lost_disks, uses=self.agent.uses,
            stands=self.agent.stands, ask=self.ask, hand=self.take, clock=SystemClock(),
        )  # fmt: skip

    async def open(self, _wish: DaemonWish) -> StorageDaemon:
        await self.daemon.start()
        return self.daemon

    async def take(self, batch: ReceiptBatch) -> None:
        self.shelf.take(self.sender, batch)

    async def ask(self, ask: AskHeld) -> HeldPage:
        found, following = self.shelf.on_disk(ask.node_id, ask.disk_serial, ask.after)
        return HeldPage(held=tuple(found), next=following)

    def declare(self, serial: str, *, erase: bool = False) -> None:
        loss = DiskLoss(
            site_id=SiteId("lyon"), node_id=NodeId("io1"), disk_serial=serial, declared_by="ada",
            time_ms=1,
        )  # fmt: skip
        self.lost = (LostDisk(loss=self.shelf.sign_loss(loss), erase=erase),)

    async def wish(self) -> None:
        """Have the head opened under the next epoch, which seals what is open."""
        self.revision, self.epoch = self.revision + 1, self.epoch + 1
        head = replace(HEAD, epoch=self.epoch, accepts_loss=True)
        daemon = DaemonWish(iaas_id=IAAS, label=5, replicas=(self.replica,), heads=(head,))
        await self.agent.take_wish(
            IonodeWish(revision=self.revision, daemons=(daemon,), lost_disks=self.lost)
        )

    def on(self, serial: str) -> OnDisk:
        return self.shelf.disks_of(NodeId("io1")).get(serial, OnDisk())

    async def until(self, holds: Callable[[], bool], tell: Callable[[], Awaitable[None]]) -> None:
        deadline_s = time.monotonic() + WITHIN_S
        while not holds():
            assert time.monotonic() < deadline_s
            await self.agent.step()
            await tell()
            await asyncio.sleep(0.05)

    async def settle(self) -> None:
        """Let the site have all that is noted, and look for what is lost."""
        for _ in range(20):
            await self.agent.step()
            await self.teller.look()
            await asyncio.sleep(0.05)

    async def is_open(self) -> None:
        """Return once the head of the last wish is ready."""

        def is_ready() -> bool:
            heads = self.agent.report().heads
            return any(head.epoch == self.epoch and head.state == "ready" for head in heads)

        await self.until(is_ready, nothing)

    async def end(self) -> None:
        await end_storaged(self.directory)
        await self.daemon.disconnect()


async def _no_image(sha256: str) -> Path:
    raise NotFound("image", sha256)


async def nothing() -> None:
    return


async def test_what_lay_on_a_disk_ends_once_it_was_declared_lost_and_is_open_no_more(
    tmp_path: Path,
) -> None:
    if not BINARY.exists():
        pytest.skip(f"{BINARY.name} is not built: run `make setup`")
    node = Node(tmp_path)
    try:
        old = node.book.serving[1].serial
        for count in (1, 2):
            await node.wish()
            await node.is_open()
            await node.daemon.mark(AskMark(iaas_id=IAAS, volume_ids=(VOLUME,), name="noon"))
            await node.until(lambda count=count: node.on(old).segment_count >= count - 1, nothing)  # type: ignore[misc]
        assert node.on(old).segment_count > 0
        held = node.on(old)

        (tmp_path / "d1").rename(tmp_path / "shelf")
        node.declare(old)
        await node.wish()
        assert [disk.serial for disk in node.agent.report().absent_disks] == []
        await node.settle()
        assert node.on(old) == held, "it was in service when the agent began"
        await node.daemon.disconnect()
        node.begin()
        await node.settle()
        assert (await node.agent.stands(IAAS)).is_told
        assert node.on(old) == held, "its daemon has it open still"

        await node.end()
        node.begin()
        new = node.book.serving[1].serial
        assert new != old
        await node.until(lambda: node.on(old).segment_count == 0, node.teller.look)
        assert node.on(old) == OnDisk(lost_count=held.segment_count)

        await node.end()
        (tmp_path / "d1").rename(tmp_path / "newer")
        (tmp_path / "shelf").rename(tmp_path / "d1")
        node.declare(old, erase=True)
        node.begin()
        assert [disk.name for disk in node.book.serving] == ["d0"]
        await node.wish()
        await node.until(lambda: node.on(old) == OnDisk(), node.teller.look)
        assert [path.name for path in (tmp_path / "d1" / "volumes").iterdir()] == ["disk.json"]
    finally:
        await node.end()
        node.shelf.close()
