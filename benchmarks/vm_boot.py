"""Time from "create" to the first console line: plain QEMU by hand against the V-node agent.

Both boot the same image with the same machine, in turns, so that other load on the machine falls on
both alike. Prints medians and the ratio; the aim is at most 1.3.

Usage: python benchmarks/vm_boot.py [--rounds N]
"""

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine

from nuage.clock import SystemClock
from nuage.ids import IaasId, NodeId, SiteId, VmId, VolumeId
from nuage.model.desired import DiskWish, VmWish, VnodeWish
from nuage.model.vm import PowerWish, VmShape
from nuage.vnode.agent import AgentOptions, VnodeAgent
from nuage.vnode.hypervisor import Disk, FileDisk
from nuage.vnode.ports import NoPlug
from nuage.vnode.qemu import QemuHypervisor, QemuOptions
from nuage.vnode.sed import NodeFacts, Sed

REPOSITORY = Path(__file__).resolve().parents[1]
FIRST_LINE = b"nuage-guest booting"
MEMORY_MIB = 128
LOOK_S = 0.01
LONGEST_S = 60.0


def guest_image() -> Path:
    build = [sys.executable, str(REPOSITORY / "tools/guest/build.py")]
    return Path(subprocess.run(build, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


async def until_line(log: Path, started_s: float) -> float:
    """Return the seconds from `started_s` until the first console line is in `log`."""
    while time.monotonic() < started_s + LONGEST_S:
        if log.exists() and FIRST_LINE in log.read_bytes():
            return time.monotonic() - started_s
        await asyncio.sleep(LOOK_S)
    raise SystemExit(f"no console line within {LONGEST_S:g} s")


async def boot_plain(image: Path, folder: Path) -> float:
    """Boot as an administrator would by hand."""
    disk, log = folder / "plain.raw", folder / "plain.log"
    shutil.copyfile(image, disk)
    log.unlink(missing_ok=True)
    started_s = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "pc",
        "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none", "-serial", f"file:{log}",
        "-drive", f"if=virtio,format=raw,cache=none,file={disk}",
        start_new_session=True,  # as from a shell of its own: the kernel shares CPU by session
    )  # fmt: skip
    try:
        return await until_line(log, started_s)
    finally:
        process.kill()
        await process.wait()


async def boot_through_agent(image: Path, folder: Path, agent: VnodeAgent, number: int) -> float:
    """Boot by handing the agent a wish."""
    disk = folder / "agent.raw"
    shutil.copyfile(image, disk)
    vm_id = VmId(f"vm-{number:016x}")
    volume = DiskWish(
        volume_id=VolumeId("volume-1"), portal="", iqn=str(disk), chap_user="", chap_secret="",
        epoch=1, size_bytes=disk.stat().st_size,
    )  # fmt: skip
    wish = VmWish(
        vm_id=vm_id, iaas_id=IaasId("iaas-1"), name="bench", shape=VmShape(memory_mib=MEMORY_MIB),
        wish=PowerWish.RUNNING, epoch=1, disks=(volume,), ports=(),
    )  # fmt: skip
    started_s = time.monotonic()
    await agent.take_wish(VnodeWish(revision=2 * number, vms=(wish,)))
    taken_s = await until_line(folder / "node/vms" / vm_id / "console.log", started_s)
    gone = VmWish(
        vm_id=vm_id, iaas_id=wish.iaas_id, name=wish.name, shape=wish.shape,
        wish=PowerWish.DELETED, epoch=1, disks=(), ports=(),
    )  # fmt: skip
    await agent.take_wish(VnodeWish(revision=2 * number + 1, vms=(gone,)))
    while (folder / "node/vms" / vm_id).exists():
        await asyncio.sleep(LOOK_S)
    return taken_s


def local_file(wish: DiskWish) -> Disk:
    return FileDisk(volume_id=wish.volume_id, path=wish.iqn)


async def measure(rounds: int) -> None:
    image = guest_image()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        node, site = NodeId("bench"), SiteId("bench")
        hypervisor = QemuHypervisor(QemuOptions(root=folder / "node/vms", accelerator="tcg"))
        await hypervisor.open()
        clock = SystemClock()
        sed = Sed(
            NodeFacts(
                node_id=node, site_id=site, accelerator="tcg", cpu_count=2, memory_mib=1024
            ),
            clock=clock,
            meter=lambda: None, cache=folder / "flops.json",
        )  # fmt: skip
        options = AgentOptions(
            node_id=node, site_id=site, state_dir=folder / "node", listen_host="127.0.0.1",
            disk_of=local_file,
        )  # fmt: skip
        agent = VnodeAgent(options, hypervisor=hypervisor, plug=NoPlug(), sed=sed, clock=clock)
        await agent.open()
        plain, through = [], []
        for number in range(1, rounds + 1):
            plain.append(await boot_plain(image, folder))
            through.append(await boot_through_agent(image, folder, agent, number))
        await agent.close()
        await hypervisor.close()
    medians = statistics.median(plain), statistics.median(through)
    print(f"{machine.describe()}; QEMU under TCG")
    print(f"plain QEMU, first console line:   {medians[0]:.2f} s (median of {rounds})")
    print(f"through the agent:                {medians[1]:.2f} s (median of {rounds})")
    print(f"ratio:                            {medians[1] / medians[0]:.2f} (aim: at most 1.3)")
    print(json.dumps({"plain_s": plain, "agent_s": through}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Boot time through the agent against plain QEMU.")
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
