"""The IO-node agent on a fake daemon: it works towards its last wish and never loses its place."""

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.contract.catalogue.catalogue_makers import HandClock

from nuage.errors import Conflict, CorruptData, Unavailable
from nuage.ids import IaasId, NodeId, SiteId, VolumeId
from nuage.ionode.agent import FILLED_FILE, WISH_FILE, FindDaemons, IonodeAgent, IonodeOptions
from nuage.ionode.disks import DiskPlace
from nuage.ionode.fake import FakeDaemon
from nuage.ionode.port import StorageDaemon
from nuage.model.contract import AckPolicy, DiskClass, DiskRule, JournalRule
from nuage.model.desired import (
    ChapWish,
    DaemonWish,
    HeadReport,
    HeadWish,
    IonodeWish,
    PathWish,
    ReplicaWish,
    SetKey,
)
from nuage.model.iaas import KEY_SHREDDED
from nuage.trust.datakeys import key_id_of
from nuage.units import GIB, MIB

IAAS = IaasId("iaas-1")
VOLUME = VolumeId("vol-1")


def head(*, epoch: int = 1 << 20, user: str = "vol-1.1", image: str = "") -> HeadWish:
    return HeadWish(
        volume_id=VOLUME, iaas_id=IAAS, epoch=epoch, policy=AckPolicy.LOCAL, replicas=(),
        iqn="iqn.2026-01.cloud.nuage:vol-1", chap=(ChapWish(user=user, secret="s" * 16),),
        image_sha256=image,
    )  # fmt: skip


def wish(
    revision: int, *heads: HeadWish, size_bytes: int = 8 * MIB, erased: tuple[VolumeId, ...] = ()
) -> IonodeWish:
    replica = ReplicaWish(
        volume_id=VOLUME, iaas_id=IAAS, size_bytes=size_bytes, journal=JournalRule()
    )
    replicas = () if erased else (replica,)
    daemon = DaemonWish(iaas_id=IAAS, label=5, replicas=replicas, heads=heads, erased=erased)
    return IonodeWish(revision=revision, daemons=(daemon,))


class Bench:
    """An agent, its daemon, and the images it can fetch."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disks = tuple(
            DiskPlace(name=name, disk_class=kind, path=directory, size_bytes=GIB)
            for name, kind in (("d0", DiskClass.SSD), ("d1", DiskClass.HDD))
        )
        self.daemon = FakeDaemon()
        self.opened_count = 0
        self.image_fault = ""
        self.find_daemons: FindDaemons | None = None
        self.agent = self.boot()

    def boot(self) -> IonodeAgent:
        """Start the agent anew: its disk and the daemon are as they were."""
        options = IonodeOptions(
            node_id=NodeId("n1"), site_id=SiteId("marne"), state_dir=self.directory,
            disks=self.disks,
        )  # fmt: skip
        self.agent = IonodeAgent(
            options, open_daemon=self.open_daemon, fetch_image=self.fetch, clock=HandClock(),
            find_daemons=self.find_daemons,
        )  # fmt: skip
        return self.agent

    async def open_daemon(self, _wish: DaemonWish) -> StorageDaemon:
        self.opened_count += 1
        return self.daemon

    async def fetch(self, sha256: str) -> Path:
        if self.image_fault:
            raise Unavailable(self.image_fault)
        image = self.directory / sha256
        image.write_bytes(b"x" * 4096)
        return image

    async def settle(self) -> None:
        """Step until nothing is under way; a fill runs beside the steps."""
        for _ in range(12):
            await self.agent.step()

    def head_report(self) -> HeadReport:
        (report,) = self.agent.report().heads
        return report


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_a_wish_becomes_a_copy_and_a_head_that_is_reported_ready(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1, head()))
    await bench.settle()
    assert [act for act, _ in bench.daemon.acts] == ["create", "open_head"]
    report = bench.head_report()
    assert (report.state, report.portal) == ("ready", bench.daemon.portal)
    assert bench.agent.report().replica_addresses == {IAAS: bench.daemon.replica_address}


async def test_a_copy_that_an_older_agent_made_with_other_sectors_is_shown_to_nobody(
    bench: Bench,
) -> None:
    await bench.agent.take_wish(wish(1))
    await bench.settle()
    of = wish(2, head())
    (daemon,) = of.daemons
    replicas = tuple(replace(replica, sector_bytes=4096) for replica in daemon.replicas)
    path = PathWish(
        volume_id=VOLUME, iaas_id=IAAS, iqn="iqn.2026-01.cloud.nuage:vol-1", chap=(),
        initiators=(), groups=(),
    )  # fmt: skip
    for heads, paths in (((head(),), ()), ((), (path,))):
        shown = replace(daemon, replicas=replicas, heads=heads, paths=paths)
        await bench.agent.take_wish(
            replace(of, revision=of.revision + len(paths), daemons=(shown,))
        )
        await bench.settle()
        assert [act for act, _ in bench.daemon.acts] == ["create"]
        if heads:
            assert "512 bytes, the volume's are of 4096" in bench.head_report().failure
    await bench.agent.take_wish(wish(4, head()))
    await bench.settle()
    assert bench.head_report().state == "ready"


async def test_a_copy_goes_to_the_fastest_disk_unless_the_contract_asks_for_a_class(
    bench: Bench,
) -> None:
    for revision, (kind, disk) in enumerate(((None, "d0"), (DiskClass.HDD, "d1")), start=1):
        bench.daemon = FakeDaemon()
        agent = bench.boot()
        (asked,) = wish(revision, head()).daemons
        rule = DiskRule(weight=1, disk_class=kind)
        await agent.take_wish(IonodeWish(revision=revision, daemons=(replace(asked, disk=rule),)))
        await bench.settle()
        assert [replica.disk for replica in agent.report().replicas] == [disk]


async def test_initiators_follow_the_wish(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1, head(user="old")))
    await bench.settle()
    await bench.agent.take_wish(wish(2, head(user="new")))
    await bench.settle()
    assert bench.daemon.may_log_in(VOLUME, "new")
    assert not bench.daemon.may_log_in(VOLUME, "old")


async def test_a_higher_epoch_closes_the_head_and_opens_it_anew(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1, head()))
    await bench.settle()
    await bench.agent.take_wish(wish(2, head(epoch=2 << 20)))
    await bench.settle()
    assert bench.head_report().epoch == 2 << 20
    assert [act for act, _ in bench.daemon.acts][-2:] == ["close_head", "open_head"]


async def test_a_lower_epoch_is_told_as_a_failure_and_serves_nobody(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1, head(epoch=5 << 20)))
    await bench.settle()
    await bench.agent.take_wish(wish(2))
    await bench.settle()
    await bench.agent.take_wish(wish(3, head(epoch=4 << 20)))
    await bench.settle()
    report = bench.head_report()
    assert (report.state, report.portal) == ("failed", "")
    assert "epoch" in report.failure
    assert not bench.daemon.may_log_in(VOLUME, "vol-1.1")


async def test_a_head_that_gives_up_by_itself_is_told_and_tried_again(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1, head()))
    await bench.settle()
    await bench.daemon.close_head(head().volume_id)
    await bench.agent.step()
    report = bench.head_report()
    assert (report.state, report.failure) == ("failed", "the head gave up while it opened")
    await bench.agent.step()
    assert bench.head_report().state == "ready"


async def test_a_volume_is_ready_only_when_its_image_is_in(bench: Bench) -> None:
    bench.image_fault = "no site has it now"
    await bench.agent.take_wish(wish(1, head(image="aa")))
    await bench.settle()
    assert (bench.head_report().state, bench.head_report().failure) == (
        "failed",
        "no site has it now",
    )
    bench.image_fault = ""
    await bench.settle()
    assert bench.head_report().state == "ready"


async def test_an_image_that_was_half_in_is_copied_again_after_a_restart(bench: Bench) -> None:
    """The daemon has bytes of it, and nobody noted that all arrived."""
    await bench.agent.take_wish(wish(1, head(image="aa")))
    await bench.settle()
    (bench.directory / FILLED_FILE).unlink()
    bench.boot()
    await bench.settle()
    assert [act for act, _ in bench.daemon.acts].count("fill") == 2
    assert bench.head_report().state == "ready"


async def test_an_image_that_is_in_is_not_copied_again_after_a_restart(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1, head(image="aa")))
    await bench.settle()
    bench.boot()
    await bench.settle()
    assert [act for act, _ in bench.daemon.acts].count("fill") == 1
    assert bench.head_report().state == "ready"


async def test_a_restarted_agent_goes_on_without_its_controller(bench: Bench) -> None:
    await bench.agent.take_wish(wish(7, head()))
    bench.boot()
    await bench.settle()
    assert bench.head_report().state == "ready"
    assert bench.agent.report().wish_revision == 7


async def test_a_copy_that_is_in_no_wish_is_kept(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1, head()))
    await bench.settle()
    empty = DaemonWish(iaas_id=IAAS, label=5, replicas=(), heads=())
    await bench.agent.take_wish(IonodeWish(revision=2, daemons=(empty,)))
    await bench.settle()
    report = bench.agent.report()
    assert [r.volume_id for r in report.replicas] == [VOLUME]
    assert report.heads == ()


async def test_only_what_is_named_is_erased(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1, head()))
    await bench.settle()
    await bench.agent.take_wish(wish(2, erased=(VOLUME,)))
    await bench.settle()
    assert bench.agent.report().replicas == ()


async def test_an_older_wish_is_refused(bench: Bench) -> None:
    await bench.agent.take_wish(wish(5, head()))
    with pytest.raises(Conflict):
        await bench.agent.take_wish(wish(4))


async def test_a_daemon_that_does_not_answer_is_found_again(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1, head()))
    await bench.settle()
    bench.daemon.unavailable = "gone"
    await bench.settle()
    bench.daemon.unavailable = ""
    await bench.settle()
    assert bench.opened_count >= 2
    assert bench.head_report().state == "ready"


async def test_a_failure_is_forgotten_once_what_failed_is_no_longer_wanted(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1, head()))
    await bench.settle()
    bench.daemon.refusals["set_initiators"] = "busy"
    await bench.agent.take_wish(wish(2, head(user="other")))
    await bench.settle()
    assert bench.head_report().failure == "busy"
    await bench.agent.take_wish(wish(3, head()))
    await bench.settle()
    assert (bench.head_report().state, bench.head_report().failure) == ("ready", "")


async def test_a_volume_grows_through_its_head(bench: Bench) -> None:
    await bench.agent.take_wish(wish(1, head()))
    await bench.settle()
    await bench.agent.take_wish(wish(2, head(), size_bytes=16 * MIB))
    await bench.settle()
    assert [v.size_bytes for v in (await bench.daemon.seen()).volumes] == [16 * MIB]


async def test_a_wish_that_cannot_be_read_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / WISH_FILE).write_bytes(b"{")
    with pytest.raises(CorruptData) as told:
        Bench(tmp_path)
    assert WISH_FILE in told.value.where


async def test_the_wish_on_disk_is_for_its_owner_alone(bench: Bench) -> None:
    await bench.agent.take_wish(replace(wish(1, head())))
    assert (bench.directory / WISH_FILE).stat().st_mode & 0o077 == 0


async def test_a_key_is_asked_for_kept_in_memory_and_given_to_the_daemon(bench: Bench) -> None:
    key = "a7" * 32
    key_id = key_id_of(bytes.fromhex(key))
    daemon = replace(wish(1, head()).daemons[0], key_id=key_id)
    encrypted = replace(daemon, replicas=(replace(daemon.replicas[0], encrypted=True),))
    await bench.agent.take_wish(IonodeWish(revision=1, daemons=(encrypted,)))
    await bench.settle()
    report = bench.agent.report()
    assert report.locked == (IAAS,)
    assert "key" in report.heads[0].failure
    assert report.heads[0].is_locked
    bench.agent.take_key(SetKey(iaas_id=IAAS, key=key))
    await bench.settle()
    report = bench.agent.report()
    assert (report.locked, report.heads[0].state) == ((), "ready")
    for file in bench.directory.rglob("*"):
        assert key.encode() not in file.read_bytes(), file
    head_report = report.heads[0]
    assert (head_report.key_id, head_report.next_key_id) == (key_id, key_id)
    following = "b8" * 32  # somebody who knew the first was revoked
    next_id = key_id_of(bytes.fromhex(following))
    daemon = replace(encrypted, key_id=next_id)
    await bench.agent.take_wish(IonodeWish(revision=2, daemons=(daemon,)))
    await bench.settle()
    assert bench.agent.report().locked == (IAAS,)
    assert bench.agent.report().heads[0].state == "ready", "it goes on with the key that it has"
    bench.agent.take_key(SetKey(iaas_id=IAAS, key=following, earlier=(key,)))
    await bench.settle()
    head_report = bench.agent.report().heads[0]
    assert (head_report.key_id, head_report.next_key_id) == (key_id, next_id)
    encrypted = replace(daemon, heads=(replace(daemon.heads[0], epoch=daemon.heads[0].epoch + 1),))
    await bench.agent.take_wish(IonodeWish(revision=3, daemons=(encrypted,)))
    await bench.settle()
    head_report = bench.agent.report().heads[0]
    assert (head_report.key_id, head_report.next_key_id) == (next_id, next_id)
    bench.boot()  # the daemon outlived its agent, and has the keys
    await bench.agent.step()
    assert bench.agent.report().locked == ()
    shredded = replace(encrypted, key_id=KEY_SHREDDED)
    await bench.agent.take_wish(IonodeWish(revision=4, daemons=(shredded,)))
    await bench.settle()
    assert (await bench.daemon.seen()).key_id == ""
    assert bench.agent.report().locked == ()


async def test_daemons_that_a_former_agent_left_running_are_found(bench: Bench) -> None:
    empty, kept = FakeDaemon(), FakeDaemon()
    await kept.create(wish(1, head()).daemons[0].replicas[0])

    async def find() -> dict[IaasId, StorageDaemon]:
        return {IaasId("iaas-empty"): empty, IaasId("iaas-kept"): kept}

    bench.find_daemons = find
    running = asyncio.create_task(bench.boot().run())
    await asyncio.sleep(0.05)
    running.cancel()
    assert empty.unavailable
    assert not kept.unavailable
    assert list(bench.agent.report().portals) == ["iaas-kept"]


async def test_what_an_agent_knows_of_copies_goes_with_them(bench: Bench) -> None:
    """Volumes come and go for years: what is kept of each, in memory and on disk, is not."""
    for number in range(1, 4):
        volume_id = VolumeId(f"vol-{number}")
        wanted = replace(head(image="a" * 64), volume_id=volume_id)
        (daemon,) = wish(number, wanted).daemons
        (copy,) = daemon.replicas
        replicas = (replace(copy, volume_id=volume_id),)
        gone = (VolumeId(f"vol-{number - 1}"),) if number > 1 else ()
        daemon = replace(daemon, replicas=replicas, erased=gone)
        await bench.agent.take_wish(IonodeWish(revision=number, daemons=(daemon,)))
        await bench.settle()
        assert bench.head_report().state == "ready"
        filled = msgspec.json.decode((bench.directory / FILLED_FILE).read_bytes(), type=list[str])
        assert filled == [volume_id]
        await bench.agent.release(IAAS, volume_id, wanted.epoch)
        assert len(bench.agent._released) == 1  # by nothing else can it be seen


async def test_a_daemon_that_lacks_a_disk_is_started_anew_once_it_serves_no_head(
    bench: Bench,
) -> None:
    await bench.agent.take_wish(wish(1, head()))
    await bench.settle()
    first = bench.daemon
    bench.agent.renew({IAAS})
    await bench.settle()
    assert bench.opened_count == 1
    assert bench.agent.report().outdated == (IAAS,)

    await bench.agent.take_wish(wish(2))  # its head goes elsewhere
    bench.daemon = FakeDaemon()
    await bench.settle()
    assert (bench.opened_count, first.unavailable) == (2, "the daemon was ended")
    assert bench.agent.report().outdated == ()
    assert [act for act, _ in bench.daemon.acts] == ["create"]
