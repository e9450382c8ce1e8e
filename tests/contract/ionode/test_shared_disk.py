"""Two real daemons on one disk: who has reserved a part of it has it, whatever the other does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.ionode.test_storage_daemon_contract import (
    BINARY,
    HEAD,
    REPLICA,
    VOLUME,
    end_storaged,
    opened,
    storaged_of,
)

from nuage.clock import SystemClock
from nuage.ids import IaasId
from nuage.ionode.disks import DiskPlace
from nuage.ionode.media import Media
from nuage.ionode.storaged import StoragedDaemon
from nuage.model.contract import DiskClass, DiskRule, Limits
from nuage.model.desired import ShareReport
from nuage.units import KIB

NOISY, QUIET = IaasId("iaas-00000000000000aa"), IaasId("iaas-00000000000000bb")
CAPACITY, RESERVED = 400, 300
RULES = {
    NOISY: DiskRule(weight=1),
    QUIET: DiskRule(weight=1, reservation=Limits(operations_per_s=RESERVED)),
}


class SharedDisk:
    """A disk of `CAPACITY` operations a second, two daemons, and what their clients do."""

    def __init__(self, path: Path, daemons: dict[IaasId, StoragedDaemon]) -> None:
        place = DiskPlace(
            name="d0", disk_class=DiskClass.SSD, path=path,
            capacity=Limits(operations_per_s=CAPACITY),
        )  # fmt: skip
        self.daemons = daemons
        self.media = Media((place,), SystemClock(), usage=lambda _path: (1, 1))
        self.done = dict.fromkeys(daemons, 0)
        self.progress = asyncio.Condition()

    async def load(self, iaas_id: IaasId) -> None:
        """Write for ever, one after the other."""
        while True:
            await self.daemons[iaas_id].write(VOLUME, 0, bytes(4 * KIB))
            async with self.progress:
                self.done[iaas_id] += 1
                self.progress.notify_all()

    async def settled(self, *, noisy: range, quiet: range, waits: bool = False) -> None:
        """Divide until both may take what lies in these ranges, and the noisy one has to wait."""
        for _ in range(600):
            await self.media.divide("d0", self.daemons, RULES)
            shares = self.shares()
            found = {name: share.limits.operations_per_s for name, share in shares.items()}
            is_waiting = shares[NOISY].waits or not waits
            if found[NOISY] in noisy and found[QUIET] in quiet and is_waiting:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"the shares are {found}")

    async def reached(self, iaas_id: IaasId, count: int) -> None:
        """Wait until so many writes were answered."""
        async with asyncio.timeout(60):
            async with self.progress:
                await self.progress.wait_for(lambda: self.done[iaas_id] >= count)

    def shares(self) -> dict[IaasId, ShareReport]:
        return {share.iaas_id: share for share in self.media.shares(RULES)}


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[SharedDisk]:
    if not BINARY.exists():
        pytest.skip(f"{BINARY.name} is not built: run `make setup`")
    folders = {NOISY: tmp_path / "a", QUIET: tmp_path / "b"}  # short, as names of sockets are
    daemons = {iaas_id: storaged_of(folder) for iaas_id, folder in folders.items()}
    for daemon in daemons.values():
        await daemon.start()
        await daemon.create(REPLICA)
        await opened(daemon, replace(HEAD, chap=()))
    yield SharedDisk(tmp_path, daemons)
    await end_storaged(tmp_path)
    for daemon in daemons.values():
        await daemon.disconnect()
    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def loads(disk: SharedDisk, iaas_id: IaasId, count: int) -> AsyncIterator[None]:
    clients = [asyncio.create_task(disk.load(iaas_id)) for _ in range(count)]
    try:
        yield
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def test_a_noisy_iaas_has_an_idle_neighbours_share_and_loses_it_when_that_wakes(
    disk: SharedDisk,
) -> None:
    alone = range(1)  # 0: all there is
    async with loads(disk, NOISY, 16):
        await disk.settled(noisy=alone, quiet=alone)
        async with loads(disk, QUIET, 8):
            left = range(1, CAPACITY - RESERVED + 1)
            await disk.settled(noisy=left, quiet=range(RESERVED, CAPACITY + 1), waits=True)
            before = disk.done[QUIET]
            await disk.reached(QUIET, before + 50)
        await disk.settled(noisy=alone, quiet=alone)
