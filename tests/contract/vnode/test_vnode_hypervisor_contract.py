"""One suite for the hypervisor port, run on the fake and on QEMU (the test guest under TCG)."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nuage.errors import Conflict, NotFound, NuageError, Unavailable
from nuage.ids import IaasId, PortId, SegmentId, VmId, VolumeId
from nuage.model.contract import QosClass
from nuage.model.desired import PortWish, VmWish
from nuage.model.vm import PowerWish, VmShape
from nuage.vnode.configdrive import build_seed
from nuage.vnode.doors import TABLE
from nuage.vnode.fake import FakeFabric, FakeHypervisor
from nuage.vnode.hypervisor import (
    FileDisk,
    GuestSeen,
    GuestSpec,
    Hypervisor,
    MigrationLimits,
    MigrationStatus,
    Nic,
    RunState,
)
from nuage.vnode.qemu import QemuHypervisor, QemuOptions

VM = VmId("vm-0000000000000001")
LEFT = "127.0.0.2"  # from where the left node sends
SECRET = "5ec2e7" * 8
ENDED_BADLY = {MigrationStatus.CANCELLED, MigrationStatus.FAILED}
TLS_HANDSHAKE = b"\x16\x03"  # RFC 8446 §5.1
MIGRATION_BEGINS = b"QEVM"
REPOSITORY = Path(__file__).resolve().parents[3]
WAIT_S = 60.0
LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nodes between which guests can move, and a spec of a guest."""

    left: Hypervisor
    right: Hypervisor
    spec: GuestSpec
    spare: Path
    reopen: Callable[[], Awaitable[Hypervisor]] | None


def wish() -> VmWish:
    port = PortWish(
        port_id=PortId("port-1"), segment_id=SegmentId("segment-1"), label=7,
        mac="52:54:00:00:00:01", addresses=("10.0.0.5/24",), gateway="10.0.0.1", mtu_bytes=1362,
    )  # fmt: skip
    return VmWish(
        vm_id=VM, iaas_id=IaasId("iaas-1"), name="web-1", shape=VmShape(memory_mib=128),
        wish=PowerWish.RUNNING, epoch=1, disks=(), ports=(port,),
        user_data="#!/bin/sh\nheartbeat &\n", ssh_keys=("ssh-ed25519 AAAA someone",),
    )  # fmt: skip


def guest_spec(disk: Path) -> GuestSpec:
    asked = wish()
    return GuestSpec(
        vm_id=VM, iaas_id=asked.iaas_id, name=asked.name, shape=asked.shape,
        qos_class=QosClass.SILVER,
        disks=(FileDisk(volume_id=VolumeId("volume-1"), path=str(disk)),),
        nics=(Nic(port_id="port-1", mac="52:54:00:00:00:01"),), seed=build_seed(asked),
    )  # fmt: skip


async def until(hypervisor: Hypervisor, wanted: Callable[[GuestSeen], bool]) -> GuestSeen:
    """Look until the guest is as wanted; the time-out is generous, the machine is shared."""
    async with asyncio.timeout(WAIT_S):
        while True:
            for seen in await hypervisor.seen():
                if seen.vm_id == VM and wanted(seen):
                    return seen
            await asyncio.sleep(LOOK_S)


async def resumed_once_the_other_let_go(hypervisor: Hypervisor) -> None:
    """Resume the guest; the other's process locks its file until its last thread has ended."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await hypervisor.resume(VM)
            except NuageError as problem:
                if "lock" not in str(problem):
                    raise
            await asyncio.sleep(LOOK_S)


async def until_console(hypervisor: Hypervisor, text: bytes) -> None:
    async with asyncio.timeout(WAIT_S):
        while text not in await hypervisor.console_log(VM, 0, 1 << 20):  # noqa: ASYNC110 - a file
            await asyncio.sleep(LOOK_S)


async def press_until_off(hypervisor: Hypervisor) -> None:
    """Press as the agent does: a guest that still boots does not hear the first time."""
    async with asyncio.timeout(WAIT_S):
        while True:
            await hypervisor.press_power(VM)
            for _ in range(40):
                (seen,) = await hypervisor.seen()
                if seen.state is RunState.SHUT_DOWN:
                    return
                await asyncio.sleep(LOOK_S)


def in_state(state: RunState) -> Callable[[GuestSeen], bool]:
    return lambda seen: seen.state is state


@pytest.fixture(scope="module")
def guest_image() -> Path:
    if shutil.which("qemu-system-x86_64") is None or os.geteuid() != 0:
        pytest.skip("needs root and qemu-system-x86_64")
    build = [sys.executable, str(REPOSITORY / "tools/guest/build.py")]
    return Path(subprocess.run(build, check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.system)])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    spare = tmp_path / "spare.raw"
    spare.write_bytes(bytes(1 << 20))
    if request.param == "fake":
        fabric = FakeFabric()
        yield Pair(
            FakeHypervisor(fabric), FakeHypervisor(fabric), guest_spec(tmp_path / "disk"), spare,
            None,
        )  # fmt: skip
        return
    image: Path = request.getfixturevalue("guest_image")
    disk = tmp_path / "disk.raw"
    shutil.copyfile(image, disk)
    nodes = [
        QemuHypervisor(QemuOptions(root=tmp_path / name, accelerator="tcg", address=address))
        for name, address in (("left", LEFT), ("right", "127.0.0.1"))
    ]
    for node in nodes:
        await node.open()

    async def reopen() -> Hypervisor:
        await nodes[0].close()
        again = QemuHypervisor(QemuOptions(root=tmp_path / "left", accelerator="tcg"))
        nodes.append(again)
        await again.open()
        return again

    yield Pair(nodes[0], nodes[1], guest_spec(disk), spare, reopen)
    for node in nodes:
        for seen in await node.seen():
            await node.kill(seen.vm_id)
        await node.close()


async def test_a_guest_lives_from_start_to_forget(pair: Pair) -> None:
    node = pair.left
    await node.start(pair.spec)
    seen = await until(node, in_state(RunState.RUNNING))
    assert seen.volumes == (VolumeId("volume-1"),)
    assert seen.shape == pair.spec.shape
    await until_console(node, b"nuage-guest web-1 ready")
    with pytest.raises(Conflict):
        await node.start(pair.spec)
    with pytest.raises(Conflict):
        await node.forget(VM)
    await node.pause(VM)
    await until(node, in_state(RunState.PAUSED))
    await node.resume(VM)
    await until(node, in_state(RunState.RUNNING))
    await press_until_off(node)
    assert b"web-1 ready" in await node.console_log(VM, 0, 1 << 20)  # kept after the end
    await node.forget(VM)
    assert await node.seen() == ()


async def test_a_killed_guest_is_shut_down_and_starts_again(pair: Pair) -> None:
    await pair.left.start(pair.spec)
    await pair.left.kill(VM)
    await until(pair.left, in_state(RunState.SHUT_DOWN))
    await pair.left.kill(VM)  # again, without harm
    await pair.left.start(pair.spec)
    await until(pair.left, in_state(RunState.RUNNING))


async def test_what_is_not_there_is_not_found(pair: Pair) -> None:
    for act in (pair.left.kill, pair.left.press_power, pair.left.forget, pair.left.resume):
        with pytest.raises(NotFound):
            await act(VmId("vm-none"))


async def test_disks_come_and_go_while_the_guest_runs(pair: Pair) -> None:
    node = pair.left
    await node.start(pair.spec)
    await until_console(node, b"ready")
    more = FileDisk(volume_id=VolumeId("volume-2"), path=str(pair.spare))
    await node.attach_disk(VM, 1, more)
    await until(node, lambda seen: seen.volumes == (VolumeId("volume-1"), VolumeId("volume-2")))
    with pytest.raises(Conflict):
        await node.attach_disk(VM, 1, more)
    other = pair.spare.with_name("moved.raw")
    other.write_bytes(bytes(1 << 20))
    moved = FileDisk(volume_id=VolumeId("volume-2"), path=str(other))
    nowhere = replace(moved, path=str(pair.spare.with_name("nowhere.raw")))
    for _ in range(3):  # what is refused leaves nothing that the next would stumble over
        with pytest.raises(NuageError):
            await node.repoint_disk(VM, 1, nowhere)
    await node.repoint_disk(VM, 1, moved)
    await node.detach_disk(VM, 1)
    await until(node, lambda seen: seen.volumes == (VolumeId("volume-1"), VolumeId("")))
    with pytest.raises(NotFound):
        await node.detach_disk(VM, 1)
    await node.attach_disk(VM, 1, more)  # the slot can be used again
    await until(node, lambda seen: seen.volumes[1] == VolumeId("volume-2"))


async def test_a_guest_moves_with_its_disk_and_halts_for_leave(pair: Pair) -> None:
    await pair.left.start(pair.spec)
    await until_console(pair.left, b"ready")
    await pair.right.start_incoming(pair.spec, "127.0.0.1", SECRET)
    waiting = await until(pair.right, in_state(RunState.INCOMING))
    assert waiting.incoming_address.startswith("127.0.0.1:")
    await pair.left.migrate(VM, waiting.incoming_address, MigrationLimits(), SECRET)
    await until(pair.left, lambda seen: seen.migration.status is MigrationStatus.SWITCHING)
    await until(pair.left, in_state(RunState.SWITCHING))
    assert (await until(pair.right, lambda _: True)).state is RunState.INCOMING
    await pair.left.migrate_continue(VM)
    await until(pair.right, in_state(RunState.RUNNING))
    gone = await until(pair.left, in_state(RunState.HANDED_OVER))
    assert gone.migration.status is MigrationStatus.COMPLETED
    assert gone.migration.downtime_ms > 0


async def test_a_guest_with_leave_goes_without_a_halt(pair: Pair) -> None:
    await pair.left.start(pair.spec)
    await until_console(pair.left, b"ready")
    await pair.right.start_incoming(pair.spec, "127.0.0.1", SECRET)
    waiting = await until(pair.right, in_state(RunState.INCOMING))
    slow = MigrationLimits(bandwidth_bytes_per_s_max=4 << 20)
    if isinstance(pair.left, FakeHypervisor):
        pair.left.sends_slowly = True
    await pair.left.migrate(VM, waiting.incoming_address, slow, SECRET)
    await pair.left.migrate_continue(VM)
    given = await until(pair.left, lambda seen: seen.migration.has_leave)
    assert given.state is RunState.RUNNING
    if isinstance(pair.left, FakeHypervisor):
        pair.left.all_sent(VM)
    await until(pair.right, in_state(RunState.RUNNING))
    gone = await until(pair.left, in_state(RunState.HANDED_OVER))
    assert gone.migration.status is MigrationStatus.COMPLETED
    await pair.left.migrate_cancel(VM)  # too late, and without harm
    await until(pair.left, in_state(RunState.HANDED_OVER))


async def test_leave_is_taken_back_while_memory_flows(pair: Pair) -> None:
    await pair.left.start(pair.spec)
    await until_console(pair.left, b"ready")
    await pair.right.start_incoming(pair.spec, "127.0.0.1", SECRET)
    waiting = await until(pair.right, in_state(RunState.INCOMING))
    slow = MigrationLimits(bandwidth_bytes_per_s_max=64 << 10)
    if isinstance(pair.left, FakeHypervisor):
        pair.left.sends_slowly = True
    await pair.left.migrate(VM, waiting.incoming_address, slow, SECRET)
    await pair.left.migrate_continue(VM)
    await pair.left.migrate_cancel(VM)
    kept = await until(pair.left, lambda s: s.migration.status is MigrationStatus.CANCELLED)
    assert kept.state is RunState.RUNNING
    await until(pair.right, in_state(RunState.GONE))


async def test_a_cancelled_migration_leaves_the_guest_where_it_was(pair: Pair) -> None:
    await pair.left.start(pair.spec)
    await until_console(pair.left, b"ready")
    await pair.right.start_incoming(pair.spec, "127.0.0.1", SECRET)
    waiting = await until(pair.right, in_state(RunState.INCOMING))
    await pair.left.migrate(VM, waiting.incoming_address, MigrationLimits(), SECRET)
    await until(pair.left, in_state(RunState.SWITCHING))
    await pair.left.migrate_cancel(VM)
    await until(pair.left, in_state(RunState.RUNNING))
    await until(pair.right, in_state(RunState.GONE))


async def test_a_migration_to_nowhere_fails_and_harms_nothing(pair: Pair) -> None:
    await pair.left.start(pair.spec)
    try:
        await pair.left.migrate(VM, "127.0.0.1:1", MigrationLimits(), SECRET)
    except Unavailable as refused:
        assert "127.0.0.1:1" in refused.message  # noqa: PT017 - or it fails later
    else:
        await until(pair.left, lambda seen: seen.migration.status is MigrationStatus.FAILED)
    await until(pair.left, in_state(RunState.RUNNING))


async def test_memory_goes_only_to_who_knows_the_secret(pair: Pair) -> None:
    await pair.left.start(pair.spec)
    await pair.right.start_incoming(pair.spec, "127.0.0.1", SECRET)
    waiting = await until(pair.right, in_state(RunState.INCOMING))
    await pair.left.migrate(VM, waiting.incoming_address, MigrationLimits(), "bad0" * 8)
    seen = await until(pair.left, lambda seen: seen.migration.status is MigrationStatus.FAILED)
    assert seen.state is RunState.RUNNING
    await pair.left.migrate(VM, waiting.incoming_address, MigrationLimits(), SECRET)
    await until(pair.left, in_state(RunState.SWITCHING))
    await pair.left.migrate_continue(VM)
    await until(
        pair.right, in_state(RunState.RUNNING)
    )  # the stranger's attempt has cost it nothing


async def test_a_target_that_says_nothing_holds_up_nobody(pair: Pair) -> None:
    if isinstance(pair.left, FakeHypervisor):
        pytest.skip("a fake hears at once")
    await pair.left.start(pair.spec)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with asyncio.timeout(10):  # QEMU's monitor would be mute until somebody speaks
            await pair.left.migrate(VM, address, MigrationLimits(), SECRET)
            for _ in range(3):
                (seen,) = await pair.left.seen()
                assert seen.state is RunState.RUNNING
                await asyncio.sleep(0.2)
            await pair.left.migrate_cancel(VM)
    await until(pair.left, lambda seen: seen.migration.status in ENDED_BADLY)
    await until(pair.left, in_state(RunState.RUNNING))


async def test_a_stranger_does_not_reach_the_port_at_which_a_guest_waits(pair: Pair) -> None:
    """One who connected and said nothing would keep QEMU from hearing the guest's source."""
    if isinstance(pair.left, FakeHypervisor):
        pytest.skip("a fake has no port")
    await pair.left.start(pair.spec)
    await pair.right.start_incoming(pair.spec, "127.0.0.1", SECRET, source_host=LEFT)
    waiting = await until(pair.right, in_state(RunState.INCOMING))
    host, _, port = waiting.incoming_address.rpartition(":")
    with socket.socket() as stranger:
        stranger.settimeout(0.5)
        with pytest.raises(TimeoutError):
            stranger.connect((host, int(port)))
        async with asyncio.timeout(10):
            await pair.left.migrate(VM, waiting.incoming_address, MigrationLimits(), SECRET)
            await until(pair.left, in_state(RunState.SWITCHING))
            await pair.left.migrate_continue(VM)
            await until(pair.right, in_state(RunState.RUNNING))
    assert TABLE not in kernel_rules(), "nobody waits any more"


async def test_an_agent_that_was_restarted_lets_no_stranger_in(pair: Pair) -> None:
    if pair.reopen is None:
        pytest.skip("the fake's guests live in the test's process")
    await pair.left.start_incoming(pair.spec, "127.0.0.1", SECRET, source_host="127.0.0.3")
    rule = f"table inet {TABLE}"
    assert rule in kernel_rules()
    again = await pair.reopen()
    await until(again, in_state(RunState.INCOMING))
    assert "127.0.0.3" in kernel_rules()
    await again.kill(VM)
    await again.seen()
    assert rule not in kernel_rules()


def kernel_rules() -> str:
    return subprocess.run(
        ("nft", "list", "ruleset"), check=True, capture_output=True, text=True
    ).stdout


async def test_no_memory_goes_without_a_secret(pair: Pair) -> None:
    await pair.left.start(pair.spec)
    with pytest.raises(Unavailable, match="no secret"):
        await pair.right.start_incoming(pair.spec, "127.0.0.1", "")
    with pytest.raises(Unavailable, match="no secret"):
        await pair.left.migrate(VM, "127.0.0.1:1", MigrationLimits(), "")


async def test_the_line_sees_no_byte_of_a_guests_memory(pair: Pair) -> None:
    if isinstance(pair.left, FakeHypervisor):
        pytest.skip("a fake sends nothing")
    await pair.left.start(pair.spec)
    await pair.right.start_incoming(pair.spec, "127.0.0.1", SECRET)
    waiting = await until(pair.right, in_state(RunState.INCOMING))
    async with listening_between(waiting.incoming_address) as (address, heard):
        await pair.left.migrate(VM, address, MigrationLimits(), SECRET)
        await until(pair.left, in_state(RunState.SWITCHING))
        await pair.left.migrate_continue(VM)
        await until(pair.right, in_state(RunState.RUNNING))
    assert len(heard) > 1 << 16
    assert heard[:2] == TLS_HANDSHAKE
    for plain in (
        MIGRATION_BEGINS,
        b"pc.ram",
        b"ready",
    ):  # names of QEMU's blocks, the guest's words
        assert plain not in heard


@pytest.mark.skipif(os.geteuid() != 0, reason="missing: root")
async def test_each_guest_is_a_user_of_its_own_and_moves_as_such(
    pair: Pair, tmp_path: Path
) -> None:
    if isinstance(pair.left, FakeHypervisor):
        pytest.skip("a fake runs nothing")
    left, right = (
        QemuHypervisor(QemuOptions(root=tmp_path / name, accelerator="tcg", own_users=True))
        for name in ("own-left", "own-right")
    )
    spec = replace(pair.spec, disks=())
    other = replace(spec, vm_id=VmId("vm-0000000000000002"))
    try:
        await left.open()
        await right.open()
        await left.start(other)
        await left.start(spec)
        users = {folder.name: folder.stat().st_uid for folder in (tmp_path / "own-left").iterdir()}
        assert len({0, *users.values()}) == 3
        for vm_id, user in users.items():
            (pid,) = [
                entry
                for entry in Path("/proc").iterdir()
                if entry.name.isdecimal() and f"guest={vm_id}".encode() in cmdline(entry)
            ]
            assert pid.stat().st_uid == user
        await right.start_incoming(spec, "127.0.0.1", SECRET)
        waiting = await until(right, in_state(RunState.INCOMING))
        await left.migrate(VM, waiting.incoming_address, MigrationLimits(), SECRET)
        await until(left, in_state(RunState.SWITCHING))
        await left.migrate_continue(VM)
        await until(right, in_state(RunState.RUNNING))
    finally:
        for hypervisor in (left, right):
            for seen in await hypervisor.seen():
                await hypervisor.kill(seen.vm_id)
                await hypervisor.forget(seen.vm_id)
            await hypervisor.close()


def cmdline(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


@contextlib.asynccontextmanager
async def listening_between(there: str) -> AsyncIterator[tuple[str, bytearray]]:
    """Pass what comes on to `there` and back; keep what went there."""
    heard = bytearray()
    host, _, port = there.rpartition(":")

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, int(port))

        async def pump(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray
        ) -> None:
            while data := await source.read(1 << 16):
                kept += data
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(
            pump(reader, there_writer, heard), pump(there_reader, writer, bytearray())
        )

    server = await asyncio.start_server(passed_on, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        server.close()


async def test_a_handed_over_guest_can_be_taken_back(pair: Pair) -> None:
    """Should the target be lost right after the switch, the source's copy still is whole."""
    await pair.left.start(pair.spec)
    await until_console(pair.left, b"ready")
    await pair.right.start_incoming(pair.spec, "127.0.0.1", SECRET)
    waiting = await until(pair.right, in_state(RunState.INCOMING))
    await pair.left.migrate(VM, waiting.incoming_address, MigrationLimits(), SECRET)
    await until(pair.left, in_state(RunState.SWITCHING))
    await pair.left.migrate_continue(VM)
    await until(pair.left, in_state(RunState.HANDED_OVER))
    await pair.right.kill(VM)
    await until(pair.right, in_state(RunState.SHUT_DOWN))
    await resumed_once_the_other_let_go(pair.left)
    await until(pair.left, in_state(RunState.RUNNING))


async def test_guests_outlive_the_agent_and_are_found_again(pair: Pair) -> None:
    if pair.reopen is None:
        pytest.skip("the fake's guests live in the test's process")
    await pair.left.start(pair.spec)
    before = await until(pair.left, in_state(RunState.RUNNING))
    again = await pair.reopen()
    after = await until(again, in_state(RunState.RUNNING))
    assert after.volumes == before.volumes
    await until_console(again, b"web-1 ready")
    await again.kill(VM)
    await until(again, in_state(RunState.SHUT_DOWN))


async def test_a_guest_that_cannot_start_says_why(pair: Pair) -> None:
    if pair.reopen is None:
        pytest.skip("the fake refuses what it is told to refuse")
    broken = guest_spec(Path("/nonexistent/disk"))
    with pytest.raises(NuageError, match="nonexistent"):
        await pair.left.start(broken)
    seen = await until(pair.left, in_state(RunState.GONE))
    assert "nonexistent" in seen.failure
    assert seen.console_bytes == 0
