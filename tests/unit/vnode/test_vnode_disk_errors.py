"""What QEMU tells of its disks: at which it waits, and of which its guest was told."""

from pathlib import Path

from nuage.ids import IaasId, VmId, VolumeId
from nuage.model.vm import VmShape
from nuage.vnode.arguments import disk_device
from nuage.vnode.guest import ERROR_QUIET_S, Guest, GuestRecord, StoredDisk
from nuage.vnode.hypervisor import FileDisk, GuestSeen, IscsiDisk
from nuage.vnode.qmp import Event

VM = VmId("vm-1")
BOOT = IscsiDisk(volume_id=VolumeId("boot"), portal="10.0.0.9:3260", iqn="iqn.x:1")
DATA = IscsiDisk(volume_id=VolumeId("data"), portal="10.0.0.9:3260", iqn="iqn.x:2")
HEARD_S = 1_000.0


class Watched:
    """A guest with two disks, and how often it was said to have changed."""

    def __init__(self, folder: Path) -> None:
        self.news_count = 0
        record = GuestRecord(
            vm_id=VM, iaas_id=IaasId("i"), shape=VmShape(vcpu_count=1, memory_mib=64), mark=None,
            disks=(StoredDisk(iscsi=BOOT), StoredDisk(iscsi=DATA)), generations=(0, 0),
        )  # fmt: skip
        self._guest = Guest(folder, record, self._changed)

    def _changed(self, _vm_id: VmId) -> None:
        self.news_count += 1

    def hear(self, node: str, action: str, at_s: float = HEARD_S) -> None:
        """Let QEMU tell of a disk error."""
        data = {"device": "", "node-name": node, "operation": "read", "action": action}
        self._guest._take_event(Event("BLOCK_IO_ERROR", data, at_s))

    async def seen(self) -> GuestSeen:
        return await self._guest.observe()


def test_a_guest_waits_for_a_path_and_hears_of_a_lost_block() -> None:
    """The target says which it is: to a machine a path that does not serve is a lack of space."""
    boot = disk_device(0, BOOT)
    assert (boot["rerror"], boot["werror"]) == ("enospc", "enospc")
    file = disk_device(0, FileDisk(volume_id=VolumeId("boot"), path="/disk.raw"))
    assert (file["rerror"], file["werror"]) == ("stop", "stop")


async def test_the_volume_at_which_a_guest_stopped_is_known(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.hear("disk1", "stop")
    seen = await watched.seen()
    assert (seen.stopped_at, seen.unreadable, watched.news_count) == ("data", (), 1)


async def test_a_guest_that_reads_a_lost_block_all_the_time_is_news_now_and_then(
    tmp_path: Path,
) -> None:
    watched = Watched(tmp_path)
    for tenth in range(20):
        watched.hear("disk0", "report", HEARD_S + tenth / 10)
    watched.hear("seed", "report")
    assert watched.news_count == 1
    watched.hear("disk0", "report", HEARD_S + ERROR_QUIET_S)
    seen = await watched.seen()
    assert seen.unreadable == (("boot", HEARD_S + ERROR_QUIET_S),)
    assert (seen.stopped_at, watched.news_count) == (None, 2)
