"""An emulated guest that writes without a pause keeps every byte when it moves."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nuage.ids import IaasId, VmId, VolumeId
from nuage.model.contract import QosClass
from nuage.model.vm import VmShape
from nuage.vnode.hypervisor import FileDisk, GuestSeen, GuestSpec, MigrationLimits, RunState
from nuage.vnode.qemu import QemuHypervisor, QemuOptions

pytestmark = pytest.mark.system

VM = VmId("vm-0000000000000002")
WAIT_S = 120.0
LOOK_S = 0.05
ROUNDS_AFTER = 3

# A boot sector that counts in 128 pages, round by round, and looks at each count before it raises
# it. It takes no interrupt and changes no page table: nothing makes the emulator forget its TLB.
# "." each 65,536 rounds. After 8 of them it counts in 16 pages only, so that a slow migration comes
# to an end, and looks each time whether the others are still 0. "X", once, for what is not as it
# was left.
#
#     cli                      fa
#     xor bx, bx               31db
#     mov si, 0x9000           be0090
#     mov cx, 8                b90800
#     mov dx, 0x1000           ba0010
#  1: mov es, dx               8ec2
#     mov [es:0], bx           26891e0000
#     add dx, 0x100            81c20001
#     cmp dx, 0x9000           81fa0090
#     jb 1b                    72ef
#  2: mov dx, 0x1000           ba0010
#  3: mov es, dx               8ec2
#     cmp [es:0], bx           26391e0000
#     jne 5f                   7536
#     inc word [es:0]          26ff060000
#     add dx, 0x100            81c20001
#     cmp dx, si               39f2
#     jb 3b                    72ea
#     inc bx                   43
#     jnz 2b                   75e4
#     mov al, '.'              b02e
#     mov dx, 0x3f8            baf803
#     out dx, al               ee
#     loop 2b                  e2dc
#     mov si, 0x2000           be0020
#     mov cx, 1                b90100
#     mov dx, si               89f2
#  4: mov es, dx               8ec2
#     cmp word [es:0], 0       26833e000000
#     jne 5f                   750c
#     add dx, 0x100            81c20001
#     cmp dx, 0x9000           81fa0090
#     jb 4b                    72ec
#     jmp 2b                   ebbe
#  5: mov al, 'X'              b058
#     mov dx, 0x3f8            baf803
#     out dx, al               ee
#  6: hlt                      f4
#     jmp 6b                   ebfd
COUNTS = bytes.fromhex(
    "fa31dbbe0090b90800ba00108ec226891e000081c2000181fa009072ef"
    "ba00108ec226391e0000753626ff06000081c2000139f272ea4375e4b02ebaf803eee2dc"
    "be0020b9010089f28ec226833e000000750c81c2000181fa009072ecebbe"
    "b058baf803eef4ebfd"
)
# So slow that 128 pages do not fit into the pause: they are sent again and again meanwhile.
SLOW = MigrationLimits(downtime_ms_max=100, bandwidth_bytes_per_s_max=2 << 20)
DISK_BYTES = 1 << 20

if shutil.which("qemu-system-x86_64") is None or os.geteuid() != 0:
    pytest.skip("needs root and qemu-system-x86_64", allow_module_level=True)


async def until(hypervisor: QemuHypervisor, wanted: Callable[[GuestSeen], bool]) -> GuestSeen:
    async with asyncio.timeout(WAIT_S):
        while True:
            for seen in await hypervisor.seen():
                if wanted(seen):
                    return seen
            await asyncio.sleep(LOOK_S)


async def console(hypervisor: QemuHypervisor, *, at_least: int) -> bytes:
    """Return what the guest wrote once there is so much of it."""
    async with asyncio.timeout(WAIT_S):
        while True:
            told = await hypervisor.console_log(VM, 0, 4096)
            if len(told) >= at_least or b"X" in told:
                return told
            await asyncio.sleep(LOOK_S)


async def test_a_guest_that_writes_all_the_time_loses_no_write_in_a_move(tmp_path: Path) -> None:
    disk = tmp_path / "counts.raw"
    disk.write_bytes((COUNTS.ljust(510, b"\0") + b"\x55\xaa").ljust(DISK_BYTES, b"\0"))
    spec = GuestSpec(
        vm_id=VM, iaas_id=IaasId("iaas-1"), name="counts", shape=VmShape(memory_mib=64),
        qos_class=QosClass.SILVER,
        disks=(FileDisk(volume_id=VolumeId("volume-1"), path=str(disk)),), nics=(), seed=bytes(512),
    )  # fmt: skip
    here, there = (
        QemuHypervisor(QemuOptions(root=tmp_path / name, accelerator="tcg"))
        for name in ("here", "there")
    )
    try:
        await here.open()
        await there.open()
        await here.start(spec)
        assert b"X" not in await console(here, at_least=1)
        await there.start_incoming(spec, "127.0.0.1", "5ec2e7" * 8)
        waiting = await until(there, lambda seen: seen.state is RunState.INCOMING)
        await here.migrate(VM, waiting.incoming_address, SLOW, "5ec2e7" * 8)
        await here.migrate_continue(VM)
        await until(there, lambda seen: seen.state is RunState.RUNNING)
        assert b"X" not in await console(there, at_least=ROUNDS_AFTER)
    finally:
        for node in (here, there):
            for seen in await node.seen():
                await node.kill(seen.vm_id)
            await node.close()
