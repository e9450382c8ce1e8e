"""Whatever becomes of disks, the ledger tells of each segment what is so, and each end once."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.catalogue.catalogue_makers import HandClock
from tests.unit.storage.proof_makers import IAAS, VOLUME, SiteTrustOf, batch, new_root, noted

from nuage.errors import Unavailable
from nuage.ids import IaasId, NodeId
from nuage.ionode.identity import DiskBook, Fate
from nuage.ionode.losses import AskHeld, HeldPage, LossTeller, Standing, endings
from nuage.ionode.receipts import ReceiptBatch
from nuage.model.infrastructure import DiskLoss, LostDisk
from nuage.storage import ledgers
from nuage.trust.book import key_id_of, raw_key
from nuage.trust.ledger import LocationEvent
from nuage.trust.verify import SiteKey, verify_ledger

DISKS: Final = ("WD-1", "WD-2")
ROOT: Final = new_root()
SITE: Final = SiteTrustOf(ROOT, "lyon")
NODE, SIGNER = SITE.node("io1")
KEYS: Final = {
    key_id_of(SITE.signer_key.public_key()): SiteKey("lyon", raw_key(SITE.signer_key.public_key()))
}
ENDS: Final = {Fate.SERVES: "", Fate.BACK: "", Fate.GONE: "lost", Fate.ERASED: "expire"}


class Places(DiskBook):
    """What has become of each disk, as the test says."""

    def __init__(self) -> None:
        self.fates = dict.fromkeys(DISKS, Fate.SERVES)

    def fate_of(self, serial: str) -> tuple[Fate, int]:
        return self.fates[serial], 5 if self.fates[serial] is Fate.ERASED else 0

    def place_of(self, serial: str) -> str:
        return serial if self.fates[serial] is Fate.BACK else ""

    def erase(self, serial: str) -> None:
        self.fates[serial] = Fate.ERASED


@dataclass
class World:
    """A node, its site's ledger, and what lies where."""

    shelf: ledgers.LedgerShelf
    book: Places = field(default_factory=Places)
    lost: dict[str, LostDisk] = field(default_factory=dict)
    told: dict[tuple[str, int], str] = field(default_factory=dict)  # the last event of a segment
    standing: Standing = field(default_factory=lambda: Standing(is_told=True))
    fails_after: int = 1_000
    handed: int = 0
    number: int = 0

    async def ask(self, ask: AskHeld) -> HeldPage:
        found, following = self.shelf.on_disk(ask.node_id, ask.disk_serial, ask.after)
        return HeldPage(held=tuple(found), next=following)

    async def hand(self, given: ReceiptBatch) -> None:
        self.shelf.take(NODE, given)
        self.handed += 1
        for receipt in given.receipts:
            before = self.told[receipt.disk_serial, receipt.segment]
            assert before != receipt.event.value, "each end is told once"
            self.told[receipt.disk_serial, receipt.segment] = receipt.event.value
        if self.handed > self.fails_after:
            raise Unavailable("the answer is lost")

    async def stands(self, _iaas_id: IaasId) -> Standing:
        return self.standing

    def teller(self) -> LossTeller:
        return LossTeller(
            self.book, signer=SIGNER, lost=lambda: tuple(self.lost.values()),
            uses=lambda _place: False, stands=self.stands, ask=self.ask, hand=self.hand,
            clock=HandClock(),
        )  # fmt: skip

    def note(self, disk: str, segment: int, act: str) -> None:
        self.number += 1
        signer = replace(SIGNER, serial_of=lambda _place, _ms: disk)
        self.shelf.take(NODE, batch(signer, noted(self.number, act=act, segment=segment)))
        self.told[disk, segment] = "expire" if act == "expired" else "seal"

    def declare(self, disk: str) -> None:
        loss = DiskLoss(
            site_id=SITE.site_id, node_id=NodeId("io1"), disk_serial=disk, declared_by="ada",
            time_ms=1,
        )  # fmt: skip
        self.lost[disk] = LostDisk(loss=self.shelf.sign_loss(loss))


@contextmanager
def world() -> Iterator[tuple[World, Path]]:
    with tempfile.TemporaryDirectory() as name:
        shelf = SITE.shelf(Path(name), ROOT)
        yield World(shelf), Path(name) / "lyon" / f"{IAAS}.log"
        shelf.close()


STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(["sealed", "expired", "gone", "declare", "back", "erase", "look"]),
        st.sampled_from(DISKS),
        st.integers(1, 4),
    ),
    max_size=24,
)


def step(here: World, what: str, disk: str, segment: int) -> None:
    fate = here.book.fates[disk]
    if what in ("sealed", "expired"):
        lies_there = here.told.get((disk, segment)) == "seal"
        if fate is Fate.SERVES and disk not in here.lost and (what == "sealed" or lies_there):
            here.note(disk, segment, what)
    elif what == "gone" and fate in (Fate.SERVES, Fate.BACK) and disk not in here.lost:
        here.book.fates[disk] = Fate.GONE
    elif what == "declare" and fate is Fate.GONE and disk not in here.lost:
        here.declare(disk)
    elif what == "back" and fate is Fate.GONE:
        here.book.fates[disk] = Fate.BACK if disk in here.lost else Fate.SERVES
    elif what == "erase" and fate is Fate.BACK and disk in here.lost:
        here.lost[disk] = LostDisk(loss=here.lost[disk].loss, erase=True)


@given(STEPS, st.integers(0, 2))
@settings(max_examples=12, deadline=None)
def test_a_segment_ends_by_what_became_of_its_disk_and_every_verifier_believes_it(
    steps: list[tuple[str, str, int]], fails_after: int
) -> None:
    with world() as (here, log):
        here.fails_after = fails_after
        for what, disk, segment in steps:
            step(here, what, disk, segment)
            if what == "look":
                asyncio.run(here.teller().look())  # as an agent that has just begun
        before = dict(here.told)
        for _ in range(4):
            here.handed = -100
            asyncio.run(here.teller().look())
        for (disk, segment), told in here.told.items():
            end = ENDS[here.book.fates[disk]] if disk in here.lost else ""
            was = before[disk, segment]
            assert told == (was if was == "expire" or not end else end)
        here.shelf.sync()
        here.shelf.close()
        if here.told:
            assert verify_ledger(log, KEYS).problems == []


def test_nothing_is_told_as_lost_that_is_on_its_way_or_in_use() -> None:
    with world() as (here, _log):
        here.note("WD-2", 1, "sealed")
        here.book.fates["WD-2"] = Fate.GONE
        here.declare("WD-2")
        teller = here.teller()
        for standing in (
            Standing(is_told=False),
            Standing(is_told=True, used=frozenset({VOLUME})),
        ):
            here.standing = standing
            asyncio.run(teller.look())
            assert here.told == {("WD-2", 1): "seal"}
        here.standing = Standing(is_told=True)
        asyncio.run(teller.look())
        assert here.told == {("WD-2", 1): "lost"}


def test_a_disk_of_many_segments_is_told_page_by_page() -> None:
    with world() as (here, _log):
        count = ledgers.DISK_PAGE + 3
        for begin in range(1, count, 60):
            numbers = range(begin, min(begin + 60, count + 1))
            here.shelf.take(NODE, batch(SIGNER, *map(noted, numbers)))
            here.told |= {("WD-1", number): "seal" for number in numbers}
        here.book.fates["WD-1"] = Fate.GONE
        here.declare("WD-1")
        asyncio.run(here.teller().look())
        assert len(here.told) == count
        assert set(here.told.values()) == {"lost"}
        held = here.shelf.disks_of(NODE.node_id)["WD-1"]
        assert (held.segment_count, held.volume_count, held.lost_count) == (0, 0, count)


def test_what_is_told_is_of_the_segment_itself() -> None:
    with world() as (here, _log):
        here.note("WD-1", 3, "sealed")
        here.declare("WD-1")
        ((_, receipt),) = here.shelf.on_disk(NODE.node_id, "WD-1", None)[0]
        loss = here.lost["WD-1"].loss
        (lost,) = endings([receipt], fate=Fate.GONE, loss=loss, used=(), now_ms=9)
        assert (lost.event, lost.time_ms, lost.declaration) == (LocationEvent.LOST, 9, loss)
        assert lost.chain_hash == receipt.chain_hash
        assert endings([lost], fate=Fate.GONE, loss=loss, used=(), now_ms=10) == []
        (gone,) = endings([lost], fate=Fate.ERASED, loss=loss, used=(), now_ms=11)
        assert (gone.event, gone.declaration) == (LocationEvent.EXPIRE, None)
        for fate in (Fate.SERVES, Fate.BACK):
            assert endings([receipt], fate=fate, loss=loss, used=(), now_ms=9) == []
