"""A volume's head that moves twice, while QEMU still waits for the first move's end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from nuage.errors import TimedOut
from nuage.ids import IaasId, VmId, VolumeId
from nuage.model.vm import VmShape
from nuage.vnode.guest import Guest, GuestRecord, stored
from nuage.vnode.hypervisor import Disk, IscsiDisk
from nuage.vnode.qemu import QemuHypervisor, QemuOptions
from nuage.vnode.qmp import Json
from nuage.vnode.rerouting import Rerouting

VM = VmId("vm-1")
FIRST = IscsiDisk(volume_id=VolumeId("volume-1"), portal="10.0.0.1:21000", iqn="iqn.v1")
SECOND = replace(FIRST, portal="10.0.0.2:21000")
THIRD = replace(FIRST, portal="10.0.0.3:21000")


class SlowGuest(Guest):
    """Its monitor takes every command, and may not answer in time to one that waits for I/O."""

    is_slow = True
    waits_for: asyncio.Event | None = None
    asked: list[str] | None = None  # for blocks of these names

    async def execute(self, name: str, arguments: Mapping[str, Json] | None = None) -> Json:
        """Answer, or do not."""
        if name == "blockdev-add" and self.asked is not None:
            self.asked.append(str((arguments or {})["node-name"]))
        if name == "blockdev-reopen" and self.waits_for is not None:
            await self.waits_for.wait()
        elif name == "blockdev-reopen" and self.is_slow:
            raise TimedOut(f"QEMU command {name}", after_s=30)
        return {}


class NoKernel(Rerouting):
    """Notes what is led where."""

    def __init__(self) -> None:
        super().__init__()
        self.led_ways: list[tuple[str, str, bool]] = []
        self.turned: list[tuple[str, str]] = []

    @contextlib.asynccontextmanager
    async def led(self, old: str, new: str, *, is_again: bool) -> AsyncIterator[None]:
        """Note it."""
        self.led_ways.append((old, new, is_again))
        yield

    async def turn(self, left: str, new: str) -> None:
        """Note it."""
        self.turned.append((left, new))

    async def hold(self, portals: frozenset[str]) -> None:
        """Do nothing."""

    @contextlib.asynccontextmanager
    async def refusable(self, portals: frozenset[str]) -> AsyncIterator[None]:
        """Do nothing."""
        yield


async def shown(hypervisor: QemuHypervisor) -> Disk | None:
    (seen,) = await hypervisor.seen()
    return seen.disks[0]


def running(folder: Path, kernel: Rerouting) -> tuple[QemuHypervisor, SlowGuest]:
    """Return a hypervisor with one guest, whose disk is at FIRST."""
    hypervisor = QemuHypervisor(QemuOptions(root=folder, accelerator="tcg"))
    hypervisor._rerouting = kernel
    (folder / VM).mkdir()
    record = GuestRecord(
        vm_id=VM, iaas_id=IaasId("iaas-1"), shape=VmShape(memory_mib=128), mark=None,
        disks=(stored(FIRST),), generations=(0,),
    )  # fmt: skip
    guest = SlowGuest(folder / VM, record, lambda _vm_id: None)
    guest.save(record)
    hypervisor._guests[VM] = guest
    return hypervisor, guest


async def test_a_way_that_may_have_been_taken_is_not_believed(tmp_path: Path) -> None:
    kernel = NoKernel()
    hypervisor, guest = running(tmp_path, kernel)
    with pytest.raises(TimedOut):
        await hypervisor.repoint_disk(VM, 0, SECOND)
    assert await shown(hypervisor) not in (FIRST, SECOND)  # QEMU may use either
    guest.is_slow = False
    await hypervisor.repoint_disk(VM, 0, FIRST)  # the head came back
    assert kernel.led_ways[-1] == (SECOND.portal, FIRST.portal, True)
    assert await shown(hypervisor) == FIRST


async def test_an_agent_that_ends_in_a_repointing_leaves_word_that_it_had_begun(
    tmp_path: Path,
) -> None:
    hypervisor, guest = running(tmp_path, NoKernel())
    guest.waits_for = asyncio.Event()
    repointing = asyncio.ensure_future(hypervisor.repoint_disk(VM, 0, SECOND))
    await asyncio.sleep(0)
    kernel, asked = NoKernel(), list[str]()
    after = QemuHypervisor(QemuOptions(root=tmp_path, accelerator="tcg"))
    after._rerouting = kernel
    found = SlowGuest.load(tmp_path / VM, lambda _vm_id: None)
    assert isinstance(found, SlowGuest)
    found.is_slow, found.asked = False, asked
    after._guests[VM] = found
    assert await shown(after) not in (FIRST, SECOND)  # QEMU may use either
    await after.repoint_disk(VM, 0, FIRST)  # the head came back
    assert kernel.led_ways == [(SECOND.portal, FIRST.portal, True)]
    assert asked == ["way0-2"], "the first try may have taken the names of the first"
    assert await shown(after) == FIRST
    assert found.record.repointings == {}
    repointing.cancel()
    await asyncio.gather(repointing, return_exceptions=True)


async def test_what_waits_follows_a_volume_that_moves_again(tmp_path: Path) -> None:
    kernel = NoKernel()
    hypervisor, guest = running(tmp_path, kernel)
    await hypervisor.follow_disk(VM, 0, THIRD)  # nothing is under way
    guest.waits_for = asyncio.Event()
    repointing = asyncio.ensure_future(hypervisor.repoint_disk(VM, 0, SECOND))
    await asyncio.sleep(0)
    await hypervisor.follow_disk(VM, 0, SECOND)
    await hypervisor.follow_disk(VM, 0, THIRD)
    await hypervisor.follow_disk(VM, 0, FIRST)
    guest.waits_for.set()
    await repointing
    assert kernel.turned == [(SECOND.portal, THIRD.portal), (THIRD.portal, FIRST.portal)]
    assert await shown(hypervisor) == SECOND, "QEMU's way; another repointing is next"
