"""Receipts leave a node signed, none is lost, and an erased copy is told of once it is gone."""

import asyncio
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.contract.catalogue.catalogue_makers import HandClock

from nuage.errors import CorruptData, Unavailable
from nuage.ids import IaasId, NodeId, SiteId, VolumeId
from nuage.ionode.agent import IonodeAgent, IonodeOptions
from nuage.ionode.disks import DiskPlace
from nuage.ionode.fake import FakeDaemon
from nuage.ionode.port import DaemonReceipt, StorageDaemon
from nuage.ionode.receipts import Outbox, ReceiptBatch, Signer, held_segments
from nuage.model.contract import DiskClass, JournalRule
from nuage.model.desired import DaemonWish, IonodeWish, ReplicaWish
from nuage.trust.book import raw_key
from nuage.trust.verify import SiteKey, check_receipt
from nuage.units import GIB, MIB

IAAS, VOLUME = IaasId("iaas-1"), VolumeId("vol-1")
KEY = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
SIGNER = Signer(
    site_id=SiteId("lyon"), node_id=NodeId("io1"),
    serial_of=lambda disk, _ms: {"d1": "WD-2"}.get(disk, "WD-1"),
    key=lambda: KEY, chain_pem=lambda: "chain",
)  # fmt: skip


def wish(revision: int, *, erased: bool = False) -> IonodeWish:
    replica = ReplicaWish(volume_id=VOLUME, iaas_id=IAAS, size_bytes=8 * MIB, journal=JournalRule())
    daemon = DaemonWish(
        iaas_id=IAAS, label=5, replicas=() if erased else (replica,), heads=(),
        erased=(VOLUME,) if erased else (),
    )  # fmt: skip
    return IonodeWish(revision=revision, daemons=(daemon,))


class Bench:
    """An agent, its daemon, and a site that takes receipts in or is away."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemon = FakeDaemon()
        self.taken: list[ReceiptBatch] = []
        self.fault = ""
        self.agent = self.boot()

    def boot(self) -> IonodeAgent:
        disk = DiskPlace(name="d0", disk_class=DiskClass.SSD, path=self.directory, size_bytes=GIB)
        options = IonodeOptions(
            node_id=NodeId("io1"), site_id=SiteId("lyon"), state_dir=self.directory,
            disks=(disk,),
        )  # fmt: skip
        return IonodeAgent(
            options, open_daemon=self.open_daemon, fetch_image=self.fetch, clock=HandClock(),
            signer=SIGNER, hand_receipts=self.take,
        )  # fmt: skip

    async def open_daemon(self, _wish: DaemonWish) -> StorageDaemon:
        return self.daemon

    async def fetch(self, _sha256: str) -> Path:
        raise Unavailable("no image here")

    async def take(self, batch: ReceiptBatch) -> None:
        if self.fault:
            raise Unavailable(self.fault)
        self.taken.append(batch)

    async def settle(self) -> None:
        for _ in range(10):
            await self.agent.step()
            await asyncio.sleep(0)

    @property
    def events(self) -> list[tuple[str, int]]:
        return [(r.event.value, r.segment) for batch in self.taken for r in batch.receipts]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_what_a_daemon_notes_is_signed_and_handed_over_once(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1))
    bench.daemon.note(VOLUME, "sealed", 1)
    bench.daemon.note(VOLUME, "moved", 2)
    await bench.settle()
    assert bench.events == [("seal", 1), ("move", 2)]
    assert bench.daemon.taken == 2
    key = SiteKey("lyon", raw_key(KEY.public_key()))
    assert all(check_receipt(r.document(), key) for b in bench.taken for r in b.receipts)
    bench.agent = bench.boot()
    bench.daemon.note(VOLUME, "sealed", 3)
    await bench.settle()
    assert ("seal", 3) in bench.events
    assert bench.events.count(("seal", 1)) == 1  # the next agent goes on where this one was


@pytest.mark.parametrize("segment", [1 << 63 | 1, 0b11 << 62 | 1])
async def test_what_compaction_and_a_copy_made_anew_have_written_is_told_too(
    bench: Bench, segment: int
) -> None:
    await bench.agent.take_wish(wish(1))
    bench.daemon.note(VOLUME, "moved", segment)
    bench.daemon.note(VOLUME, "sealed", 2)
    await bench.settle()
    assert bench.events == [("move", segment), ("seal", 2)]


async def test_an_erased_copy_is_told_of_after_it_is_gone(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1))
    bench.daemon.note(VOLUME, "sealed", 1)
    bench.daemon.note(VOLUME, "sealed", 2)
    bench.daemon.note(VOLUME, "expired", 1)
    await bench.settle()
    await bench.agent.take_wish(wish(2, erased=True))
    await bench.settle()
    assert bench.agent.report().erased == (VOLUME,)
    outbox = Outbox(bench.directory / "receipts" / f"{IAAS}.json")
    assert [(r.act, r.segment) for r in outbox.erased] == [("expired", 2)]


async def test_what_lies_on_a_disk_that_is_away_is_not_told_as_erased(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1))
    bench.daemon.note(VOLUME, "sealed", 1, disk="d1")
    bench.daemon.note(VOLUME, "sealed", 2)
    await bench.settle()
    await bench.agent.take_wish(wish(2, erased=True))
    await bench.settle()
    outbox = Outbox(bench.directory / "receipts" / f"{IAAS}.json")
    assert [(r.act, r.segment) for r in outbox.erased] == [("expired", 2)]


async def test_a_copy_that_no_wish_names_is_kept_and_no_erasure_is_told(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1))
    await bench.settle()
    daemon = DaemonWish(iaas_id=IAAS, label=5, replicas=(), heads=())
    await bench.agent.take_wish(IonodeWish(revision=2, daemons=(daemon,)))
    await bench.settle()
    assert bench.agent.report().erased == ()
    assert [replica.volume_id for replica in bench.agent.report().replicas] == [VOLUME]


def receipt(number: int, act: str, segment: int) -> DaemonReceipt:
    return DaemonReceipt(
        number=number, act=act, volume_id=VOLUME, segment=segment, first_sequence=segment,
        last_sequence=segment, chain="0" * 64, time_ms=number,
    )  # fmt: skip


def test_held_is_what_was_sealed_or_moved_and_has_not_expired() -> None:
    past = [receipt(1, "sealed", 1), receipt(2, "sealed", 2), receipt(3, "expired", 1)]
    past.append(receipt(4, "moved", 2))
    assert [r.number for r in held_segments(past, VOLUME)] == [4]
    assert held_segments(past, VolumeId("vol-2")) == []


def test_an_outbox_keeps_its_place_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "outbox.json"
    outbox = Outbox(path)
    outbox.taken([receipt(7, "sealed", 1)])
    outbox.erase_begins(VOLUME, [receipt(7, "sealed", 1)], now_ms=99)
    assert Outbox(path).erased == ()
    again = Outbox(path)
    again.erase_ended([VOLUME])
    assert again.erased == ()
    again.erase_ended([])
    assert [(r.act, r.time_ms) for r in Outbox(path).erased] == [("expired", 99)]
    assert Outbox(path).cursor == 7
    path.write_text("{")
    with pytest.raises(CorruptData):
        Outbox(path)


async def test_a_daemon_of_which_nothing_is_left_ends_once_the_site_knows_all(
    bench: Bench,
) -> None:
    await bench.agent.take_wish(wish(1))
    await bench.settle()
    bench.daemon.note(VOLUME, "sealed", 1)
    bench.fault = "cut off"
    await bench.agent.take_wish(IonodeWish(revision=2, daemons=()))
    await bench.settle()
    assert bench.agent.report().portals  # it keeps a copy, which no wish has erased
    await bench.daemon.erase(VOLUME)
    await bench.settle()
    assert bench.agent.report().portals  # what it noted is not told
    bench.fault = ""
    for _ in range(3):
        await bench.settle()
    assert ("seal", 1) in bench.events
    assert not bench.agent.report().portals
    assert bench.daemon.unavailable
    assert not list((bench.directory / "receipts").iterdir())
