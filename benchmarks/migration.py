"""Downtime of a live migration: plain QEMU against two V-node agents with their hand-over.

Both move the same idle guest between two processes of this machine, keeping its disk. QEMU's own
`downtime` is compared; for the agents it contains the wait for leave (here a controller that
answers at once). Prints medians and the ratio; the aim is at most 2.

Usage: python benchmarks/migration.py [--rounds N]
"""

import argparse
import asyncio
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vm_boot import MEMORY_MIB, guest_image, local_file

from nuage.clock import SystemClock
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


async def until_text(log: Path, text: bytes) -> None:
    async with asyncio.timeout(60):
        while not log.exists() or text not in log.read_bytes():
            await asyncio.sleep(LOOK_S)


async def plain_round(image: Path, folder: Path) -> float:
    """Migrate between two QEMUs by hand, without any halt; return QEMU's downtime in ms."""
    disk = folder / "plain.raw"
    shutil.copyfile(image, disk)
    processes, clients = [], []
    for name in ("source", "target"):
        incoming = ("-incoming", "defer") if name == "target" else ()
        process = await asyncio.create_subprocess_exec(
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "pc",
            "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none",
            "-serial", f"file:{folder / name}.log", "-qmp",
            f"unix:{folder / name}.sock,server=on,wait=off",
            "-drive", f"if=virtio,format=raw,cache=none,file={disk}", *incoming,
        )  # fmt: skip
        processes.append(process)
        while not (folder / f"{name}.sock").exists():
            await asyncio.sleep(LOOK_S)
        client = QmpClient(lambda _event: None)
        await client.connect(folder / f"{name}.sock")
        clients.append(client)
    source, target = clients
    try:
        await until_text(folder / "source.log", READY_PLAIN)
        await asyncio.sleep(1)
        await target.execute("migrate-incoming", {"uri": f"unix:{folder}/stream"})
        limits = {"downtime-limit": DOWNTIME_MS_MAX, "max-bandwidth": 1 << 40}
        await source.execute("migrate-set-parameters", limits)
        await source.execute("migrate", {"uri": f"unix:{folder}/stream"})
        while True:
            match await source.execute("query-migrate"):
                case {"status": "completed", "downtime": int(downtime_ms)}:
                    return float(downtime_ms)
                case {"status": "failed"}:
                    raise SystemExit("plain QEMU's migration failed")
                case _:
                    await asyncio.sleep(LOOK_S)
    finally:
        for client, process in zip(clients, processes, strict=True):
            await client.close()
            process.kill()
            await process.wait()
        for left in (*folder.glob("*.sock"), *folder.glob("*.log"), folder / "stream"):
            left.unlink(missing_ok=True)


class Node:
    """A V-node: QEMU and the agent."""

    def __init__(self, name: str, folder: Path) -> None:
        self.hypervisor = QemuHypervisor(QemuOptions(root=folder / name, accelerator="tcg"))
        node, site, clock = NodeId(name), SiteId("bench"), SystemClock()
        facts = NodeFacts(node_id=node, site_id=site, accelerator="tcg")
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


async def agent_round(image: Path, folder: Path) -> float:
    """Migrate between two agents with the hand-over; return QEMU's downtime in ms."""
    disk = folder / "agent.raw"
    shutil.copyfile(image, disk)
    left, right = Node("left", folder), Node("right", folder)
    await left.open()
    await right.open()
    vm_id = VmId("vm-bench")
    volume = DiskWish(
        volume_id=VolumeId("volume-1"), portal="", iqn=str(disk), chap_user="", chap_secret="",
        epoch=1, size_bytes=disk.stat().st_size,
    )  # fmt: skip
    vm = VmWish(
        vm_id=vm_id, iaas_id=IaasId("iaas-1"), name="bench", shape=VmShape(memory_mib=MEMORY_MIB),
        wish=PowerWish.RUNNING, epoch=1, disks=(volume,), ports=(),
    )  # fmt: skip
    try:
        await left.wish(vm)
        await until_text(folder / "left" / vm_id / "console.log", READY)
        await asyncio.sleep(1)
        incoming = IncomingMigration(source_node_id=NodeId("left"), source_epoch=1)
        await right.wish(replace(vm, epoch=2, incoming=incoming))
        waiting = await right.wait(lambda report: report.migration_address != "")
        outgoing = OutgoingMigration(
            target_node_id=NodeId("right"), address=waiting.migration_address
        )
        await left.wish(replace(vm, outgoing=outgoing))
        await left.wait(lambda report: report.ready_to_switch)
        await left.wish(replace(vm, outgoing=replace(outgoing, may_switch=True)))
        gone = await left.wait(lambda report: report.migrated and report.downtime_ms > 0)
        await right.wait(lambda report: report.state is VmState.RUNNING)
        return gone.downtime_ms
    finally:
        await left.close()
        await right.close()


async def measure(rounds: int) -> None:
    image = guest_image()
    plain, through = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            plain.append(await plain_round(image, Path(name)))
            through.append(await agent_round(image, Path(name)))
    medians = statistics.median(plain), statistics.median(through)
    print(f"plain QEMU, downtime:       {medians[0]:.0f} ms (median of {rounds}: {plain})")
    print(f"agents with the hand-over:  {medians[1]:.0f} ms (median of {rounds}: {through})")
    print(f"ratio:                      {medians[1] / medians[0]:.2f} (aim: at most 2)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Migration downtime against plain QEMU.")
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
