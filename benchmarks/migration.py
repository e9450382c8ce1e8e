"""Downtime of a live migration: plain QEMU against two V-node agents with their hand-over.

Both move the same idle guest from process to process of this machine, in turns, keeping its disk.
QEMU's own `downtime` is compared. Leave to switch comes as a controller gives it: once the source has
begun to send, and in a wish of its own. With `--late` it comes only when the guest stands still for it,
by a controller that answers at once: what a move costs whose leave the quorum was slow to let go.
`--alike` gives the machine by hand the devices that ours has (entropy, balloon, config drive): what is
left then is the agents' own. Prints medians and the ratio; the aim is at most 2.

Usage: python benchmarks/migration.py [--rounds N] [--late] [--alike]
"""

import argparse
import asyncio
import contextlib
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import machine
from vm_boot import MEMORY_MIB, guest_image, local_file

from nuage.clock import SystemClock
from nuage.errors import Unavailable
from nuage.ids import IaasId, NodeId, SiteId, VmId, VolumeId
from nuage.model.desired import (
    DiskWish,
    IncomingMigration,
    OutgoingMigration,
    VmReport,
    VmWish,
    VnodeWish,
)
from nuage.model.vm import PowerWish, VmShape, VmState
from nuage.vnode.agent import AgentOptions, VnodeAgent
from nuage.vnode.ports import NoPlug
from nuage.vnode.qemu import QemuHypervisor, QemuOptions
from nuage.vnode.qmp import QmpClient
from nuage.vnode.sed import NodeFacts, Sed

READY = b"nuage-guest bench ready"
READY_PLAIN = b"ready"
LOOK_S = 0.01
DOWNTIME_MS_MAX = 100
SECRET = "5e" * 32


async def until_text(log: Path, text: bytes) -> None:
    async with asyncio.timeout(120):
        while not log.exists() or text not in log.read_bytes():
            await asyncio.sleep(LOOK_S)


def our_devices(folder: Path) -> tuple[str, ...]:
    """Return the options that give a machine what ours has beside its disk."""
    drive = folder / "config-drive"
    drive.write_bytes(bytes(1 << 20))
    return (
        "-object", "rng-random,id=entropy,filename=/dev/urandom",
        "-device", "virtio-rng-pci,rng=entropy", "-device", "virtio-balloon-pci",
        "-drive", f"if=virtio,format=raw,readonly=on,file={drive}",
    )  # fmt: skip


class PlainGuest:
    """The guest under a QEMU started by hand, moved to the next without any halt."""

    def __init__(self, image: Path, folder: Path, *, alike: bool) -> None:
        self._devices = our_devices(folder) if alike else ()
        self._folder = folder
        self._disk = folder / "plain.raw"
        self._started = 0
        self._now: tuple[asyncio.subprocess.Process, QmpClient] | None = None
        shutil.copyfile(image, self._disk)

    async def open(self) -> None:
        """Boot it."""
        self._now = await self._start()
        await until_text(self._folder / "plain1.log", READY_PLAIN)

    async def _start(self, *more: str) -> tuple[asyncio.subprocess.Process, QmpClient]:
        self._started += 1
        name = f"plain{self._started}"
        process = await asyncio.create_subprocess_exec(
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "pc",
            "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none",
            "-serial", f"file:{self._folder / name}.log",
            "-qmp", f"unix:{self._folder / name}.sock,server=on,wait=off",
            "-drive", f"if=virtio,format=raw,cache=none,file={self._disk}",
            *self._devices, *more,
            start_new_session=True,  # as from a shell of its own: the kernel shares CPU by session
        )  # fmt: skip
        while True:  # the socket is there a moment before it listens
            client = QmpClient(lambda _event: None)
            with contextlib.suppress(Unavailable):
                await client.connect(self._folder / f"{name}.sock")
                return process, client
            await asyncio.sleep(LOOK_S)

    async def move(self) -> float:
        """Move it over TCP, as the agents do; return QEMU's downtime in ms."""
        assert self._now is not None
        _, source = self._now
        following = await self._start("-incoming", "defer")
        _, target = following
        await target.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
        match await target.execute("query-migrate"):
            case {"socket-address": [{"port": str(port)}, *_]}:
                pass
            case other:
                raise SystemExit(f"QEMU does not tell where it listens: {other!r}")
        limits = {"downtime-limit": DOWNTIME_MS_MAX, "max-bandwidth": 1 << 40}
        await source.execute("migrate-set-parameters", limits)
        await source.execute("migrate", {"uri": f"tcp:127.0.0.1:{port}"})
        downtime_ms = await _ended(source)
        await self.close()
        self._now = following
        return downtime_ms

    async def close(self) -> None:
        """End the QEMU that has the guest, or had it."""
        if self._now is not None:
            process, client = self._now
            self._now = None
            await client.close()
            process.kill()
            await process.wait()


async def _ended(source: QmpClient) -> float:
    while True:
        match await source.execute("query-migrate"):
            case {"status": "completed", "downtime": int(downtime_ms), "total-time": int()}:
                return float(downtime_ms)
            case {"status": "failed"}:
                raise SystemExit("plain QEMU's migration failed")
            case _:
                await asyncio.sleep(LOOK_S)


class Node:
    """A V-node: QEMU and the agent."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.hypervisor = QemuHypervisor(QemuOptions(root=folder / name, accelerator="tcg"))
        node, site, clock = NodeId(name), SiteId("bench"), SystemClock()
        facts = NodeFacts(
            node_id=node, site_id=site, accelerator="tcg", cpu_count=2, memory_mib=1024
        )
        sed = Sed(facts, clock=clock, meter=lambda: None, cache=folder / "flops.json")
        options = AgentOptions(
            node_id=node, site_id=site, state_dir=folder / f"{name}-state",
            listen_host="127.0.0.1", disk_of=local_file,
        )  # fmt: skip
        self.agent = VnodeAgent(
            options, hypervisor=self.hypervisor, plug=NoPlug(), sed=sed, clock=clock
        )
        self._revision = 0

    async def open(self) -> None:
        await self.hypervisor.open()
        await self.agent.open()

    async def wish(self, *vms: VmWish) -> None:
        self._revision += 1
        await self.agent.take_wish(VnodeWish(revision=self._revision, vms=vms))

    async def wait(self, wanted: Callable[[VmReport], bool]) -> VmReport:
        async with asyncio.timeout(60):
            async for report in self.agent.reports():
                for vm in report.vms:
                    if wanted(vm):
                        return vm
        raise SystemExit("the reports ended")

    async def close(self) -> None:
        await self.agent.close()
        for seen in await self.hypervisor.seen():
            await self.hypervisor.kill(seen.vm_id)
        await self.hypervisor.close()


class AgentGuest:
    """The guest between two agents, moved to and fro."""

    def __init__(self, image: Path, folder: Path, *, late: bool) -> None:
        self._late = late
        disk = folder / "agent.raw"
        shutil.copyfile(image, disk)
        volume = DiskWish(
            volume_id=VolumeId("volume-1"), portal="", iqn=str(disk), chap_user="", chap_secret="",
            epoch=1, size_bytes=disk.stat().st_size,
        )  # fmt: skip
        self._vm = VmWish(
            vm_id=VmId("vm-bench"), iaas_id=IaasId("iaas-1"), name="bench",
            shape=VmShape(memory_mib=MEMORY_MIB), wish=PowerWish.RUNNING, epoch=1, disks=(volume,),
            ports=(),
        )  # fmt: skip
        self._folder = folder
        self._here, self._there = Node("left", folder), Node("right", folder)

    async def open(self) -> None:
        """Start the agents and boot the guest."""
        await self._here.open()
        await self._there.open()
        await self._here.wish(self._vm)
        await until_text(self._folder / "left" / self._vm.vm_id / "console.log", READY)

    async def move(self) -> float:
        """Move it with the hand-over; return QEMU's downtime in ms."""
        vm, source, target = self._vm, self._here, self._there
        arrived = replace(vm, epoch=vm.epoch + 1)
        incoming = IncomingMigration(
            source_node_id=NodeId(source.name), source_epoch=vm.epoch, secret=SECRET
        )
        await target.wish(replace(arrived, incoming=incoming))
        waiting = await target.wait(lambda report: report.migration_address != "")
        outgoing = OutgoingMigration(
            target_node_id=NodeId(target.name), address=waiting.migration_address, secret=SECRET
        )
        await source.wish(replace(vm, outgoing=outgoing))
        if self._late:
            await source.wait(lambda report: report.ready_to_switch)
        else:
            await source.wait(lambda report: report.state is VmState.MIGRATING)
        await source.wish(replace(vm, outgoing=replace(outgoing, may_switch=True)))
        gone = await source.wait(lambda report: report.migrated and report.downtime_ms > 0)
        await target.wait(lambda report: report.state is VmState.RUNNING)
        await source.wish(replace(vm, wish=PowerWish.DELETED, disks=()))
        await source.wait(lambda report: report.state is VmState.DELETED)
        await source.wish()
        await target.wish(arrived)
        self._vm, self._here, self._there = arrived, target, source
        return gone.downtime_ms

    async def close(self) -> None:
        """End the guest and the agents."""
        await self._here.close()
        await self._there.close()


async def measure(rounds: int, *, late: bool, alike: bool) -> None:
    image = guest_image()
    with tempfile.TemporaryDirectory() as name:
        by_hand = PlainGuest(image, Path(name), alike=alike)
        by_agents = AgentGuest(image, Path(name), late=late)
        try:
            await asyncio.gather(by_hand.open(), by_agents.open())
            await asyncio.sleep(1)
            pauses = [(await by_hand.move(), await by_agents.move()) for _ in range(rounds)]
        finally:
            await by_hand.close()
            await by_agents.close()
    plain, through = ([pair[index] for pair in pauses] for index in (0, 1))
    medians = statistics.median(plain), statistics.median(through)
    print(f"plain QEMU, downtime:       {medians[0]:.0f} ms (median of {rounds}: {plain})")
    print(f"agents with the hand-over:  {medians[1]:.0f} ms (median of {rounds}: {through})")
    print(f"ratio:                      {medians[1] / medians[0]:.2f} (aim: at most 2)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Migration downtime against plain QEMU.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--late", action="store_true", help="Leave comes at the pause.")
    parser.add_argument("--alike", action="store_true", help="Equal devices on both sides.")
    arguments = parser.parse_args()
    print(machine.describe())
    asyncio.run(measure(arguments.rounds, late=arguments.late, alike=arguments.alike))


if __name__ == "__main__":
    main()
