"""Which disk a copy goes to: by class, by room, by what others have reserved."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tests.unit.iaas.iaas_makers import IAAS, iaas, node, record, volume

from nuage.errors import InvalidRequest, NoCandidate
from nuage.iaas.disks import NameNode, note_report, show_node
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import Site
from nuage.ids import NodeId, SiteId, VolumeId
from nuage.ionode.disks import DiskPlace, base_disk, choose_disk, disk_reports, require_disks
from nuage.model.contract import Contract, DiskClass, DiskRule, Limits
from nuage.model.desired import DiskReport, IonodeReport, LostBlocks, ReplicaReport, ShareReport
from nuage.model.infrastructure import NodeRole
from nuage.model.status import DiskStatus, NodeStatus
from nuage.storage.places import IonodeSpace, space_of
from nuage.trust.permissions import Principal
from nuage.units import GIB

NODE = node("marne", NodeRole.IONODE)
FAST = DiskReport(name="d0", disk_class=DiskClass.NVME, free_bytes=50 * GIB, total_bytes=100 * GIB)
SLOW = DiskReport(name="d1", disk_class=DiskClass.HDD, free_bytes=900 * GIB, total_bytes=1000 * GIB)
ANY, HDD, SSD = None, DiskClass.HDD, DiskClass.SSD


def places(*kinds: DiskClass) -> tuple[DiskPlace, ...]:
    return tuple(
        DiskPlace(name=f"d{at}", disk_class=kind, path=Path(f"/d{at}"), size_bytes=(at + 1) * GIB)
        for at, kind in enumerate(kinds)
    )


def test_journals_go_to_the_fastest_disk_until_it_is_low() -> None:
    assert choose_disk([SLOW, FAST], ANY) == "d0"
    assert choose_disk([SLOW, replace(FAST, free_bytes=19 * GIB)], ANY) == "d1"


def test_a_class_that_is_asked_for_is_kept_to() -> None:
    assert choose_disk([SLOW, FAST], HDD) == "d1"
    with pytest.raises(NoCandidate, match="no ssd disk"):
        choose_disk([SLOW, FAST], SSD)
    with pytest.raises(NoCandidate):
        choose_disk([FAST, replace(SLOW, free_bytes=GIB)], HDD)


def test_bases_go_to_the_largest_of_the_slowest_class_if_there_are_several() -> None:
    kinds = places(DiskClass.NVME, DiskClass.HDD, DiskClass.HDD)
    base = base_disk(kinds)
    assert base is not None
    assert base.name == "d2"
    assert base_disk(kinds[1:]) is None
    assert base_disk(()) is None


def test_a_disk_has_what_is_left_of_its_size_or_of_what_is_mounted() -> None:
    reports = disk_reports(
        places(DiskClass.NVME, DiskClass.HDD), {"d0": GIB // 4}, capacities={},
        usage=lambda _path: (GIB, 100 * GIB),
    )  # fmt: skip
    assert [(r.free_bytes, r.total_bytes) for r in reports] == [
        (3 * GIB // 4, GIB), (GIB, 2 * GIB),
    ]  # fmt: skip
    assert [r.for_bases for r in reports] == [False, True]


def test_two_disks_do_not_share_a_directory() -> None:
    one, other = places(DiskClass.NVME, DiskClass.HDD)
    require_disks((one, other))
    with pytest.raises(InvalidRequest, match="share"):
        require_disks((one, replace(other, path=one.path)))


def status(*disks: DiskReport, capacity: int = 0) -> NodeStatus:
    return NodeStatus(
        node_id=NODE.node_id, site_id=SiteId("marne"), connected=True, since_s=0.0,
        disks=tuple(
            DiskStatus(
                name=d.name, disk_class=d.disk_class, free_bytes=d.free_bytes,
                total_bytes=d.total_bytes, capacity=Limits(operations_per_s=capacity),
            )
            for d in disks
        ),
    )  # fmt: skip


def test_a_node_without_the_class_gets_no_copy_and_one_with_it_is_measured_by_that_disk() -> None:
    asked = DiskRule(disk_class=HDD)
    space = space_of(NODE, status(FAST, SLOW), asked, reserved=Limits())
    assert (space.refusal, space.free_bytes) == (None, SLOW.free_bytes)
    refused = space_of(NODE, status(FAST), asked, reserved=Limits())
    assert refused.refusal == ("disk.disk_class", "it has no hdd disk")


def test_a_reservation_that_a_disk_cannot_keep_is_refused() -> None:
    asked = DiskRule(reservation=Limits(operations_per_s=600))
    others = Limits(operations_per_s=500)
    space = space_of(NODE, status(FAST, capacity=1000), asked, reserved=others)
    assert space.refusal is not None
    assert space.refusal[0] == "disk.reservation"
    for capacity in (1100, 0):  # 0: it was not measured yet, and nobody can tell
        known = status(FAST, capacity=capacity)
        assert space_of(NODE, known, asked, reserved=others).refusal is None


def test_what_may_be_promised_of_a_class_is_of_its_disks_and_of_the_one_for_bases() -> None:
    none_more: dict[tuple[NodeId, DiskClass | None], int] = {}

    def short(space: IonodeSpace, size_bytes: int) -> str:
        return space.shortage(
            size_bytes, size_bytes, lambda node, of_class: none_more.get((node, of_class), 0)
        )

    known = replace(status(FAST, replace(FAST, name="d2"), SLOW), overcommit_ratio=2.0)
    nvme = DiskRule(disk_class=DiskClass.NVME)
    apart = space_of(NODE, known, nvme, reserved=Limits())
    assert short(apart, 200 * GIB) == ""
    assert "one volume has at most 100 GiB of its nvme disks × 2" in short(apart, 201 * GIB)
    none_more[NODE.node_id, DiskClass.NVME] = 300 * GIB
    assert short(apart, 100 * GIB) == ""
    assert "300 GiB of 400 GiB are promised" in short(apart, 101 * GIB)
    none_more[NODE.node_id, None] = 2399 * GIB
    assert "2.343 TiB of 2.344 TiB are promised" in short(apart, 2 * GIB)

    none_more.clear()
    bases = tuple(replace(disk, for_bases=disk.name == "d1") for disk in known.disks)
    shared = space_of(NODE, replace(known, disks=bases), nvme, reserved=Limits())
    assert short(shared, 2200 * GIB) == ""  # a journal of 100 GiB, and what is compacted of it
    assert short(shared, 2201 * GIB) != ""
    silent = space_of(NODE, status(), nvme, reserved=Limits())
    assert short(silent, 64 * 1024 * GIB) == "", "nothing is known of its disks"


def test_a_rule_that_contradicts_itself_is_refused() -> None:
    few, many = Limits(operations_per_s=1), Limits(operations_per_s=2)
    with pytest.raises(InvalidRequest):
        DiskRule(reservation=many, limit=few)
    with pytest.raises(InvalidRequest):
        DiskRule(weight=-1)


class Hall:
    """A site with one IO-node, and what it announced."""

    def __init__(self) -> None:
        self.news: list[tuple[str, str]] = []
        index = FederationIndex(SiteId("marne"))
        for noun in (iaas(Contract()), volume(places=(("marne", NODE.node_id),)), NODE):
            index.put(record(noun))
        fields = SimpleNamespace(
            site_id=SiteId("marne"), index=index, ionodes_seen={}, announce=self._announce
        )
        self.site = cast(Site, fields)

    def _announce(self, _kind: str, object_id: str, what: str, _text: str) -> None:
        self.news.append((object_id, what))

    def hears(
        self, lost: LostBlocks | None, *shares: ShareReport, aside_bytes: int | None = None
    ) -> list[tuple[str, str]]:
        self.news.clear()
        replica = ReplicaReport(
            volume_id=VolumeId("vol-1"), iaas_id=IAAS, state="ready", lost=lost,
            quarantine_bytes=aside_bytes,
        )  # fmt: skip
        note_report(self.site, IonodeReport(
            node_id=NodeId(NODE.node_id), site_id=SiteId("marne"), wish_revision=1,
            replicas=(replica,), heads=(), replica_addresses={}, shares=shares,
        ))  # fmt: skip
        return list(self.news)


def test_blocks_that_no_copy_has_are_announced_once_and_again_when_they_are_more() -> None:
    hall, told = Hall(), [("vol-1", "blocks-lost")]
    assert hall.hears(LostBlocks()) == []
    assert hall.hears(LostBlocks(block_count=2)) == told
    assert hall.hears(LostBlocks(block_count=2)) == []
    assert hall.hears(None) == []
    assert hall.hears(LostBlocks(block_count=2)) == []
    assert hall.hears(LostBlocks(block_count=2, segment_count=1)) == told


def test_what_a_copy_puts_aside_of_its_log_is_announced_once_and_again_when_it_is_more() -> None:
    hall, told = Hall(), [("vol-1", "quarantine-kept")]
    amounts = (None, 0, 4096, 4096, None, 4096, 8192, 0, 4096)
    heard = [hall.hears(None, aside_bytes=amount) for amount in amounts]
    assert heard == [[], [], told, [], [], [], told, [], told]


async def test_a_node_shows_who_has_which_share_of_its_disks() -> None:
    hall = Hall()
    share = ShareReport(
        iaas_id=IAAS, disk="d0", rule=DiskRule(weight=4), limits=Limits(), operations_per_s=1.0,
        bytes_per_s=0.0,
    )  # fmt: skip
    hall.hears(None, share)
    shown = await show_node(hall.site, cast(Principal, None), NameNode(NODE.node_id))
    assert (shown.shares, shown.copy_count) == ((share,), 1)
    assert shown.names == {IAAS: "tenant-1"}
