"""What a real daemon compacts onto a large disk is told under that disk, and ends with it alone."""

from pathlib import Path

import pytest
from tests.contract.ionode.test_lost_disk import Node, nothing
from tests.contract.ionode.test_storage_daemon_contract import BINARY, IAAS, VOLUME

from nuage.ids import NodeId
from nuage.ionode.disks import BasePlace
from nuage.ionode.storaged import StoragedDaemon
from nuage.model.contract import DiskClass, JournalRule
from nuage.trust.ledger_index import OnDisk
from nuage.units import KIB, MIB

PIECE = bytes([7]) * (128 * KIB)
BASE_FROM = 1 << 63  # docs/protocols/ledger.md §1
SHORT = JournalRule(window_s=0, window_bytes=MIB)  # the oldest leaves at once


class OlderDaemon(StoragedDaemon):
    """One that tells all under the journal's disk, as daemons did before they knew the other."""

    def _base(self, place: BasePlace) -> str:
        return str(place.path / IAAS)


class TwoClasses(Node):
    """A node with a fast disk for journals and a large one for what compaction writes."""

    async def compact(self) -> None:
        """Write until compaction has moved something: most of each segment is written over."""
        await self.wish()
        await self.is_open()
        for step in range(64):
            places = [(step % 16) * len(PIECE)]  # this stays for a while, the rest does not
            places += range(4 * MIB, 8 * MIB, len(PIECE))
            for offset in places:
                await self.daemon.write(VOLUME, offset, PIECE)
            await self.daemon.flush(VOLUME)
            if step > 4 and self.bases():
                return
        raise AssertionError("nothing was compacted")

    def bases(self) -> list[Path]:
        return [*self.directory.glob(f"*/volumes/bases/{IAAS}/volumes/*/seg.*")]

    def told(self, serial: str) -> set[bool]:
        """Tell of what kinds a disk holds segments by the ledger: True, compaction wrote them."""
        held, _ = self.shelf.on_disk(NodeId("io1"), serial, None)
        return {receipt.segment >= BASE_FROM for _, receipt in held}

    async def anew(self) -> None:
        await self.end()
        self.begin()
        await self.wish()


def node_of(
    directory: Path, *classes: DiskClass, daemon_type: type[StoragedDaemon] = StoragedDaemon
) -> TwoClasses:
    if not BINARY.exists():
        pytest.skip(f"{BINARY.name} is not built: run `make setup`")
    first, second = classes
    return TwoClasses(directory, classes=(first, second), journal=SHORT, daemon_type=daemon_type)


async def test_what_an_older_daemon_told_under_the_journals_disk_is_told_anew_and_lost_with_its_own(
    tmp_path: Path,
) -> None:
    node = node_of(tmp_path, DiskClass.NVME, DiskClass.HDD, daemon_type=OlderDaemon)
    fast, large = (disk.serial for disk in node.book.serving)
    try:
        await node.compact()
        await node.until(lambda: node.told(fast) == {False, True}, nothing)
        assert node.told(large) == set()

        node.daemon_type = StoragedDaemon
        await node.anew()
        await node.until(lambda: node.told(large) == {True}, nothing)
        await node.until(lambda: node.told(fast) == {False}, nothing)
        base_count = node.on(large).segment_count

        await node.end()
        (tmp_path / "d1").rename(tmp_path / "gone")
        (tmp_path / "d1").mkdir()
        node.declare(large)
        await node.anew()
        await node.until(lambda: node.on(large).segment_count == 0, node.teller.look)
        assert node.on(large).lost_count == base_count
        assert node.told(fast) == {False}
        assert node.on(fast).lost_count == 0
    finally:
        await node.end()
        node.shelf.close()


async def test_what_lies_on_the_large_disk_stays_while_its_journal_may_come_back_and_no_longer(
    tmp_path: Path,
) -> None:
    node = node_of(tmp_path, DiskClass.HDD, DiskClass.NVME)
    large, fast = (disk.serial for disk in node.book.serving)
    try:
        await node.compact()
        await node.until(lambda: node.told(large) == {True}, nothing)
        await node.settle()
        bases, on_large = node.bases(), node.on(large)
        assert node.told(fast) == {False}

        await node.end()
        (tmp_path / "d1").rename(tmp_path / "gone")
        (tmp_path / "d1").mkdir()
        await node.anew()
        await node.is_open()
        await node.settle()
        assert {*node.bases()} >= {*bases}
        assert node.on(large).segment_count >= on_large.segment_count > 0

        await node.end()
        node.declare(fast)
        await node.anew()
        await node.until(lambda: node.on(fast).segment_count == 0, node.teller.look)
        await node.until(lambda: node.on(large) == OnDisk(), nothing)
        assert node.bases() == []
    finally:
        await node.end()
        node.shelf.close()
