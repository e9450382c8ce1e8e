"""Two agents with QEMU, a guest on an iSCSI disk with CHAP, and a link that can be cut.

The target is Debian's tgt until the product's own serves the disk; the agents cannot tell.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nuage.clock import SystemClock
from nuage.ids import IaasId, NodeId, PortId, SegmentId, SiteId, VmId, VolumeId
from nuage.model.desired import (
    DiskWish,
    IncomingMigration,
    OutgoingMigration,
    PortWish,
    VmReport,
    VmWish,
    VnodeWish,
)
from nuage.model.vm import PowerWish, VmShape, VmState
from nuage.vnode.agent import AgentOptions, VnodeAgent
from nuage.vnode.hypervisor import Disk, IscsiDisk, RunState
from nuage.vnode.ports import NoPlug
from nuage.vnode.qemu import QemuHypervisor, QemuOptions
from nuage.vnode.sed import NodeFacts, Sed

pytestmark = pytest.mark.system

VM = VmId("vm-00000000000000aa")
IQN = "iqn.2026-01.org.nuage.test:boot"
SECRET = "0123456789abcdef"
REPOSITORY = Path(__file__).resolve().parents[3]
WAIT_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Tgt:
    """A tgt daemon of our own with one target behind CHAP."""

    def __init__(self, disk: Path) -> None:
        self._control = free_port() % 30_000 + 1  # tgtadm keeps it in a signed short
        self._disk = disk
        self.portal = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def _admin(self, *arguments: str) -> None:
        command = ["tgtadm", "-C", str(self._control), "--lld", "iscsi", *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=10)

    def up(self) -> None:
        command = ["tgtd", "-f", "-C", str(self._control), "--iscsi", f"portal={self.portal}"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        host, port = self.portal.split(":")
        for _ in range(200):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                socket.create_connection((host, int(port)), timeout=1).close()
                self._admin("--mode", "sys", "--op", "show")
                break
            subprocess.run(["sleep", "0.05"], check=True)
        self._admin("--mode", "target", "--op", "new", "--tid", "1", "-T", IQN)
        self._admin("--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1",
                    "-b", str(self._disk))  # fmt: skip
        self._admin("--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL")
        self._admin("--mode", "account", "--op", "new", "--user", "vm", "--password", SECRET)
        self._admin("--mode", "account", "--op", "bind", "--tid", "1", "--user", "vm")

    def down(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for suffix in ("", ".lock"):
            Path(f"/run/tgtd/socket.{self._control}{suffix}").unlink(missing_ok=True)


def tgt_disk(wish: DiskWish) -> Disk:
    """Reach the disk at LUN 1: tgt keeps LUN 0 for itself."""
    return IscsiDisk(
        volume_id=wish.volume_id, portal=wish.portal, iqn=wish.iqn, lun=1,
        chap_user=wish.chap_user, chap_secret=wish.chap_secret,
    )  # fmt: skip


@dataclass(slots=True)
class Link:
    """The wire between two nodes: carries bytes to `to`, until it is cut."""

    to: str = ""
    carries: bool = True
    server: asyncio.Server | None = None
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    address: str = ""

    async def open(self, to: str) -> str:
        self.to = to
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self.address

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.to.rsplit(":", 1)
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self.writers += [writer, far_writer]
        await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.carries:
                    writer.write(data)
                    await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Break both connections at once, as a dead link does after its time-outs."""
        for writer in self.writers:
            writer.transport.abort()

    def swallow(self) -> None:
        """Take bytes and deliver none: what was in flight when the link died."""
        self.carries = False

    async def close(self) -> None:
        if self.server is not None:
            self.cut()
            self.server.close()


@dataclass(slots=True)
class Passing:
    """A portal where a head stayed for a moment: it serves the first who comes, and nobody after.

    `turned_away` is set once somebody came after.
    """

    to: str
    turned_away: asyncio.Event = field(default_factory=asyncio.Event)
    server: asyncio.Server | None = None
    carrying: list[asyncio.Task[None]] = field(default_factory=list)

    async def open(self) -> str:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.carrying:
            self.turned_away.set()
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(*self.to.split(":"))
        self.carrying += [
            asyncio.create_task(self._carry(reader, far_writer)),
            asyncio.create_task(self._carry(far_reader, writer)),
        ]

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    async def close(self) -> None:
        assert self.server is not None
        self.server.close()
        for task in self.carrying:
            task.cancel()


@dataclass(slots=True)
class Lab:
    """Two nodes and the disk's target."""

    folder: Path
    tgt: Tgt
    link: Link = field(default_factory=Link)
    agents: dict[str, VnodeAgent] = field(default_factory=dict)
    hypervisors: dict[str, QemuHypervisor] = field(default_factory=dict)
    revision: int = 0

    async def start(self, name: str) -> VnodeAgent:
        hypervisor = QemuHypervisor(QemuOptions(root=self.folder / name / "vms", accelerator="tcg"))
        await hypervisor.open()
        node, site = NodeId(name), SiteId("marne")
        sed = Sed(
            NodeFacts(
                node_id=node, site_id=site, accelerator="tcg", cpu_count=2, memory_mib=1024,
            ),
            clock=SystemClock(), meter=lambda: None, cache=self.folder / "flops.json",
        )  # fmt: skip
        options = AgentOptions(
            node_id=node, site_id=site, state_dir=self.folder / name, listen_host="127.0.0.1",
            disk_of=tgt_disk,
        )  # fmt: skip
        agent = VnodeAgent(
            options, hypervisor=hypervisor, plug=NoPlug(), sed=sed, clock=SystemClock()
        )
        await agent.open()
        self.agents[name], self.hypervisors[name] = agent, hypervisor
        return agent

    async def stop(self, name: str) -> None:
        await self.agents.pop(name).close()
        await self.hypervisors.pop(name).close()

    async def wish(self, name: str, *vms: VmWish) -> None:
        self.revision += 1
        await self.agents[name].take_wish(VnodeWish(revision=self.revision, vms=vms))

    async def wait(self, name: str, wanted: Callable[[VmReport], bool]) -> VmReport:
        async with asyncio.timeout(WAIT_S):
            async for report in self.agents[name].reports(every_s=0.2):
                for vm in report.vms:
                    if wanted(vm):
                        return vm
        raise AssertionError("the reports ended")

    async def console_says(self, name: str, text: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            hypervisor = self.hypervisors[name]
            while text not in await hypervisor.console_log(VM, 0, 1 << 20):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def running_on(self) -> list[str]:
        return [
            name
            for name, hypervisor in self.hypervisors.items()
            for seen in await hypervisor.seen()
            if seen.state is RunState.RUNNING
        ]

    async def begin_move(self, *, bandwidth: int = 0) -> OutgoingMigration:
        """Let the VM wait on the right and leave from the left."""
        incoming = IncomingMigration(
            source_node_id=NodeId("left"), source_epoch=1, secret="5e" * 32
        )
        await self.wish("right", replace(self.vm(epoch=2), incoming=incoming))
        waiting = await self.wait("right", lambda vm: vm.migration_address != "")
        address = await self.link.open(waiting.migration_address)
        outgoing = OutgoingMigration(
            target_node_id=NodeId("right"),
            address=address,
            bandwidth_bytes_per_s_max=bandwidth,
            secret="5e" * 32,
        )
        await self.wish("left", replace(self.vm(), outgoing=outgoing))
        return outgoing

    def vm(self, *, epoch: int = 1, power: PowerWish = PowerWish.RUNNING) -> VmWish:
        disk = DiskWish(
            volume_id=VolumeId("volume-1"), portal=self.tgt.portal, iqn=IQN, chap_user="vm",
            chap_secret=SECRET, epoch=1, size_bytes=96 << 20,
        )  # fmt: skip
        port = PortWish(
            port_id=PortId("port-1"), segment_id=SegmentId("s"), label=1,
            mac="52:54:00:00:00:aa", addresses=("10.1.0.5/24",), gateway="", mtu_bytes=1362,
        )  # fmt: skip
        return VmWish(
            vm_id=VM, iaas_id=IaasId("iaas-1"), name="web-1", shape=VmShape(memory_mib=128),
            wish=power, epoch=epoch, disks=(disk,), ports=(port,),
            user_data="#!/bin/sh\nheartbeat &\n",
        )  # fmt: skip


@pytest.fixture(scope="module")
def image() -> Path:
    needed = ("qemu-system-x86_64", "tgtd", "tgtadm")
    missing = [tool for tool in needed if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(needed)}")
    build = [sys.executable, str(REPOSITORY / "tools/guest/build.py")]
    return Path(subprocess.run(build, check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture
def tgt(image: Path, tmp_path: Path) -> Iterator[Tgt]:
    disk = tmp_path / "disk.raw"
    subprocess.run(["cp", "--sparse=always", image, disk], check=True)
    target = Tgt(disk)
    target.up()
    yield target
    target.down()


@pytest.fixture
async def lab(tgt: Tgt, tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path, tgt)
    await lab.start("left")
    await lab.start("right")
    yield lab
    await lab.link.close()
    for agent in lab.agents.values():
        await agent.close()
    for hypervisor in lab.hypervisors.values():
        for seen in await hypervisor.seen():
            await hypervisor.kill(seen.vm_id)
        await hypervisor.close()


async def boot(lab: Lab) -> None:
    await lab.wish("left", lab.vm())
    await lab.wait("left", lambda vm: vm.state is VmState.RUNNING)
    await lab.console_says("left", b"beat 1")


async def test_a_guest_boots_from_iscsi_and_its_secret_is_nowhere_to_be_seen(lab: Lab) -> None:
    await boot(lab)
    folder = lab.folder / "left/vms" / VM
    record = json.loads((folder / "guest.json").read_bytes())
    arguments = Path(f"/proc/{record['mark']['pid']}/cmdline").read_bytes()
    assert IQN.encode() in arguments
    assert SECRET.encode() not in arguments
    for path in folder.iterdir():
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    await lab.wish("left", lab.vm(power=PowerWish.STOPPED))
    await lab.wait("left", lambda vm: vm.state is VmState.STOPPED)
    assert b"powering off" in await lab.hypervisors["left"].console_log(VM, 0, 1 << 20)


async def test_an_agent_that_restarts_finds_its_guest_untouched(lab: Lab) -> None:
    await boot(lab)
    before = (await lab.hypervisors["left"].seen())[0]
    await lab.stop("left")
    await lab.start("left")
    after = await lab.wait("left", lambda vm: vm.state is VmState.RUNNING)
    assert after.cpu_seconds >= before.cpu_seconds
    await lab.console_says("left", b"beat 3")
    log = await lab.hypervisors["left"].console_log(VM, 0, 1 << 20)
    assert log.count(b"nuage-guest booting") == 1


async def test_a_vm_moves_live_and_its_heart_beats_on(lab: Lab) -> None:
    await boot(lab)
    outgoing = await lab.begin_move()
    await lab.wait("left", lambda vm: vm.ready_to_switch)
    assert await lab.running_on() == []  # halted: the quorum decides now
    allowed = replace(outgoing, may_switch=True)
    await lab.wish("left", replace(lab.vm(), outgoing=allowed))
    gone = await lab.wait("left", lambda vm: vm.migrated)
    arrived = await lab.wait("right", lambda vm: vm.state is VmState.RUNNING)
    assert arrived.epoch == 2
    assert gone.downtime_ms > 0
    await lab.console_says("right", b"beat")
    assert b"booting" not in await lab.hypervisors["right"].console_log(VM, 0, 1 << 20)
    await lab.wish("left")
    async with asyncio.timeout(WAIT_S):
        async for report in lab.agents["left"].reports(every_s=0.2):
            if report.vms == ():
                break
    assert await lab.running_on() == ["right"]


async def test_a_link_that_dies_while_memory_is_sent_leaves_the_vm_where_it_was(lab: Lab) -> None:
    await boot(lab)
    outgoing = await lab.begin_move(bandwidth=4 << 20)
    await lab.wait("left", lambda vm: vm.migration_progress > 0)
    # With leave already: it may go at any moment, and has not gone.
    await lab.wish("left", replace(lab.vm(), outgoing=replace(outgoing, may_switch=True)))
    await lab.wait("left", lambda vm: vm.migration_progress > 0)
    lab.link.cut()
    failed = await lab.wait("left", lambda vm: vm.failure != "")
    assert failed.state is VmState.RUNNING
    await lab.wait("right", lambda vm: vm.state is VmState.FAILED)
    assert await lab.running_on() == ["left"]
    await lab.wish("right")
    await lab.wish("left", lab.vm())
    log = await lab.hypervisors["left"].console_log(VM, 0, 1 << 20)
    await lab.console_says("left", b"beat %d" % (log.count(b"beat") + 2))


async def test_a_link_that_dies_at_the_switch_before_leave_leaves_the_vm_where_it_was(
    lab: Lab,
) -> None:
    await boot(lab)
    await lab.begin_move()
    await lab.wait("left", lambda vm: vm.ready_to_switch)
    lab.link.cut()
    # A source that waits sends nothing and hears of no cut: it gives up when no leave comes.
    await lab.wait("left", lambda vm: vm.failure != "" and vm.state is VmState.RUNNING)
    await lab.wait("right", lambda vm: vm.state is VmState.FAILED)
    assert await lab.running_on() == ["left"]


async def test_a_link_that_swallows_the_last_state_leaves_one_copy_to_take_back(lab: Lab) -> None:
    """The worst moment: the source has sent all, the target got nothing, the epoch has moved."""
    await boot(lab)
    outgoing = await lab.begin_move()
    await lab.wait("left", lambda vm: vm.ready_to_switch)
    lab.link.swallow()
    allowed = replace(outgoing, may_switch=True)
    await lab.wish("left", replace(lab.vm(), outgoing=allowed))
    await lab.wait("left", lambda vm: vm.migrated)
    assert await lab.running_on() == []
    lab.link.cut()
    await lab.wait("right", lambda vm: vm.state is VmState.FAILED)
    await lab.wish("right")  # the controller gives it back under the next epoch
    await lab.wish("left", lab.vm(epoch=3))
    back = await lab.wait("left", lambda vm: vm.state is VmState.RUNNING)
    assert back.epoch == 3
    assert await lab.running_on() == ["left"]
    log = await lab.hypervisors["left"].console_log(VM, 0, 1 << 20)
    await lab.console_says("left", b"beat %d" % (log.count(b"beat") + 2))


async def test_a_guest_outlives_a_restart_of_its_storage(lab: Lab) -> None:
    await boot(lab)
    lab.tgt.down()
    console = lab.hypervisors["left"].console_socket(VM)
    reader, writer = await asyncio.open_unix_connection(str(console))
    writer.write(b"echo kept > /data/file; sync; echo written-$((1+1))\n")
    await writer.drain()
    await asyncio.sleep(1)
    lab.tgt.up()
    await lab.console_says("left", b"written-2")
    writer.close()
    del reader


async def test_a_disk_whose_head_goes_on_before_qemu_has_followed_goes_on(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    await boot(lab)
    console = lab.hypervisors["left"].console_socket(VM)
    _, writer = await asyncio.open_unix_connection(str(console))
    writer.write(
        b"i=0; while :; do i=$((i+1)); echo $i >/data/file; sync; echo wrote-$i.; done &\n"
    )
    await writer.drain()
    await lab.console_says("left", b"wrote-3.")
    lab.tgt.down()
    elsewhere = Tgt(lab.folder / "disk.raw")
    elsewhere.up()
    passing = Passing(elsewhere.portal)
    (disk,) = lab.vm().disks
    away = replace(disk, portal=await passing.open())
    try:
        await lab.wish("left", replace(lab.vm(), disks=(away,)))
        await passing.turned_away.wait()  # QEMU waits for what it had asked of the first portal
        wrote = (await lab.hypervisors["left"].console_log(VM, 0, 1 << 20)).count(b"wrote-")
        lab.tgt.up()
        await lab.wish("left", lab.vm())
        await lab.console_says("left", b"wrote-%d." % (wrote + 5))
    finally:
        writer.close()
        await passing.close()
        elsewhere.down()
    assert "no answer within" not in capsys.readouterr().out
