"""A guest's QEMU command line and block nodes: pure functions of its spec.

The machine is `pc` without what a server guest has no use for: each PCI slot of it takes a
hot-plugged disk without bridges in between, and it boots as fast as q35 (docs/design/vnode.md).
Slots are fixed, so that the same spec is the same machine on both ends of a migration, and so that
a guest that names disks in the order it finds them calls slot 0 its first::

    0x03 random numbers   0x04 balloon   0x05..0x14 disks   0x15..0x1e network cards
    0x1f config drive

Above each disk's transport (iSCSI, NBD, file) stands a node ``disk<slot>`` that never changes, so
that the transport beneath can be replaced while the guest runs. Secrets are files of mode 0600
that QEMU reads at its start, or travel through QMP; they are never arguments.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nuage.errors import InvalidRequest
from nuage.ids import VmId
from nuage.units import SECTOR_BYTES
from nuage.vnode.hypervisor import Disk, FileDisk, GuestSpec, IscsiDisk, NbdDisk
from nuage.vnode.qmp import Json

QEMU_BINARY: Final = "qemu-system-x86_64"
# vmdesc is suppressed: nothing follows the last byte that the target needs, so a source whose last
# write failed knows that the target is not running (docs/design/vnode.md, "one copy").
MACHINE: Final = "pc-i440fx-7.2,suppress-vmdesc=on,hpet=off,usb=off,vmport=off,dump-guest-core=off"
SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# Memory beside what was asked for, under TCG. When QEMU (7.2; cured in 9.0) reads which pages were
# written since it last looked, it leaves the emulated TLBs as they are wherever it can read 64
# pages at once: what a vCPU then writes through an entry that it still holds stays behind when the
# guest moves. Memory that is no whole number of 64 pages is read page by page, and rightly. QEMU
# rounds sizes up to 8 KiB.
TCG_ODD_KIB: Final = 8
RNG_SLOT: Final = 0x03
BALLOON_SLOT: Final = 0x04
DISK_SLOT_FIRST: Final = 0x05
DISKS_MAX: Final = 16
NIC_SLOT_FIRST: Final = 0x15
NICS_MAX: Final = 10
SEED_SLOT: Final = 0x1F
INITIATOR_PREFIX: Final = "iqn.2026-01.org.nuage:vm"
_NAMESPACE: Final = uuid.UUID("6e756167-6500-4000-8000-766d00000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What the driver passes into a QEMU besides the spec: descriptors and names of files.

    Paths are relative to the guest's folder, which is QEMU's working directory.
    """

    accelerator: str
    qmp_fd: int
    console_fd: int
    tap_fds: Mapping[str, int]
    secret_files: Mapping[int, str]
    seed_file: str = "seed.iso"
    console_log: str = "console.log"
    incoming: bool = False


def guest_uuid(vm_id: VmId) -> str:
    """Return the UUID by which a running QEMU is recognised as this guest's."""
    return str(uuid.uuid5(_NAMESPACE, vm_id))


def secret_id(slot: int) -> str:
    """Return the name of the QEMU object that holds slot's CHAP secret."""
    return f"secret{slot}"


def transport_node(slot: int, generation: int) -> str:
    """Return the name of the block node that reaches slot's volume, by its `generation`-th way."""
    return f"way{slot}-{generation}"


def disk_node(slot: int) -> str:
    """Return the name of the block node that the guest's device stands on."""
    return f"disk{slot}"


def transport_options(
    vm_id: VmId, slot: int, disk: Disk, *, generation: int = 0, secret: str = ""
) -> dict[str, Json]:
    """Return the `blockdev-add` options that reach `disk`."""
    common: dict[str, Json] = {"node-name": transport_node(slot, generation), "discard": "unmap"}
    match disk:
        case IscsiDisk():
            login: dict[str, Json] = (
                {"user": disk.chap_user, "password-secret": secret} if disk.chap_user else {}
            )
            return {
                **common, **login, "driver": "iscsi", "transport": "tcp", "portal": disk.portal,
                "target": disk.iqn, "lun": disk.lun,
                "initiator-name": f"{INITIATOR_PREFIX}:{vm_id}",
                "cache": {"direct": True},
            }  # fmt: skip
        case NbdDisk():
            return {
                **common, "driver": "nbd", "export": disk.export,
                "server": {"type": "unix", "path": disk.socket_path},
                "reconnect-delay": 300,  # a restart of the server is waited for, not an error
                "cache": {"direct": True},
            }  # fmt: skip
        case FileDisk():
            return {
                **common, "driver": "file", "filename": disk.path, "aio": "threads",
                "cache": {"direct": True},
            }  # fmt: skip


def disk_options(slot: int, *, generation: int = 0) -> dict[str, Json]:
    """Return the options of the node between the device and the transport."""
    return {
        "driver": "raw", "node-name": disk_node(slot), "file": transport_node(slot, generation),
        "discard": "unmap", "cache": {"direct": True},
    }  # fmt: skip


def disk_device(slot: int, disk: Disk) -> dict[str, Json]:
    """Return the `device_add` options of a disk; a lost volume stops the guest, unharmed.

    A machine's own target says what is worth waiting for, as if it lacked space: at that the guest
    stops. What it says as it is, a block that no copy has, is the guest's to know, also where it
    writes to a part of it.
    """
    waits = "enospc" if isinstance(disk, IscsiDisk) else "stop"
    device: dict[str, Json] = {
        "driver": "virtio-blk-pci", "id": f"dev{slot}", "drive": disk_node(slot),
        "addr": f"{DISK_SLOT_FIRST + slot:#x}", "serial": disk.volume_id[:20],
        "werror": waits, "rerror": waits,
    }  # fmt: skip
    if isinstance(disk, IscsiDisk) and disk.sector_bytes != SECTOR_BYTES:
        device |= {
            "logical_block_size": disk.sector_bytes,
            "physical_block_size": disk.sector_bytes,
        }
    return device


def command_line(spec: GuestSpec, launch: Launch) -> list[str]:
    """Return QEMU's arguments.

    Raises:
        InvalidRequest: more disks or cards than there are slots.
    """
    if len(spec.disks) > DISKS_MAX:
        raise InvalidRequest(f"a VM has at most {DISKS_MAX} disks", field="disks")
    if len(spec.nics) > NICS_MAX:
        raise InvalidRequest(f"a VM has at most {NICS_MAX} ports", field="ports")
    return [
        QEMU_BINARY,
        *("-name", f"guest={spec.vm_id},debug-threads=on"),
        *("-uuid", guest_uuid(spec.vm_id)),
        *("-accel", "kvm" if launch.accelerator == "kvm" else "tcg,thread=multi"),
        *("-cpu", "host" if launch.accelerator == "kvm" else "max"),
        *("-machine", MACHINE),
        *("-m", _memory(spec, launch)),
        *("-smp", str(spec.shape.vcpu_count)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-boot", "menu=off,strict=on"),
        *("-action", "shutdown=pause,panic=pause"),
        *("-sandbox", SANDBOX),
        *("-msg", "timestamp=on"),
        *("-chardev", f"socket,id=qmp,fd={launch.qmp_fd},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev",
          f"socket,id=console,fd={launch.console_fd},server=on,wait=off,"
          f"logfile={launch.console_log},logappend=on"),
        *("-serial", "chardev:console"),
        *("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        *_device({"driver": "virtio-rng-pci", "rng": "entropy", "addr": f"{RNG_SLOT:#x}"}),
        *_device({"driver": "virtio-balloon-pci", "id": "balloon", "addr": f"{BALLOON_SLOT:#x}"}),
        *_seed(launch.seed_file),
        *_disks(spec, launch),
        *_nics(spec, launch),
        *(("-incoming", "defer") if launch.incoming else ()),
    ]  # fmt: skip


def _memory(spec: GuestSpec, launch: Launch) -> str:
    odd_kib = TCG_ODD_KIB if launch.accelerator == "tcg" else 0
    return f"{spec.shape.memory_mib * 1024 + odd_kib}K"


def _device(options: Mapping[str, Json]) -> tuple[str, str]:
    return "-device", json.dumps(options, separators=(",", ":"))


def _blockdev(options: Mapping[str, Json]) -> tuple[str, str]:
    return "-blockdev", json.dumps(options, separators=(",", ":"))


def _seed(path: str) -> Sequence[str]:
    return (
        *_blockdev({"driver": "file", "filename": path, "node-name": "seed", "read-only": True}),
        *_device({"driver": "virtio-blk-pci", "drive": "seed", "addr": f"{SEED_SLOT:#x}",
                  "serial": "config-drive"}),
    )  # fmt: skip


def _disks(spec: GuestSpec, launch: Launch) -> list[str]:
    arguments: list[str] = []
    for slot, disk in enumerate(spec.disks):
        if disk is None:
            continue
        secret_file = launch.secret_files.get(slot)
        if secret_file is not None:
            arguments += ["-object", f"secret,id={secret_id(slot)},file={secret_file}"]
        transport = transport_options(spec.vm_id, slot, disk, secret=secret_id(slot))
        device = disk_device(slot, disk)
        if slot == 0:
            device["bootindex"] = 0
        arguments += [*_blockdev(transport), *_blockdev(disk_options(slot)), *_device(device)]
    return arguments


def _nics(spec: GuestSpec, launch: Launch) -> list[str]:
    arguments: list[str] = []
    for index, nic in enumerate(spec.nics):
        fd = launch.tap_fds.get(nic.port_id)
        # Without a tap the card hangs on a hub of its own: the cable is out, the card is there.
        backend = f"hubport,id=net{index},hubid={index}" if fd is None else (
            f"tap,id=net{index},fd={fd}"
        )  # fmt: skip
        arguments += ["-netdev", backend]
        arguments += _device(
            {
                "driver": "virtio-net-pci", "netdev": f"net{index}", "mac": nic.mac,
                "id": f"nic{index}", "addr": f"{NIC_SLOT_FIRST + index:#x}", "romfile": "",
            }
        )  # fmt: skip
    return arguments
