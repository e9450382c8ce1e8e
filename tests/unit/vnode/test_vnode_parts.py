"""Config drives, arguments, the probe's judgement, console logs, cgroups, the SeD's arithmetic."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nuage.clock import SystemClock
from nuage.energy.calibration import Calibration
from nuage.errors import CorruptData, InvalidRequest
from nuage.ids import IaasId, NodeId, PortId, SegmentId, SiteId, VmId, VolumeId
from nuage.model.contract import QosClass
from nuage.model.desired import PortWish, VmWish
from nuage.model.vm import PowerWish, VmShape
from nuage.vnode.arguments import Launch, command_line, disk_device
from nuage.vnode.cgroup import CgroupTree
from nuage.vnode.configdrive import SeedLayout, build_seed, network_config
from nuage.vnode.console import ConsoleLog
from nuage.vnode.guest import Guest
from nuage.vnode.hypervisor import GuestSpec, IscsiDisk
from nuage.vnode.iso9660 import build_iso
from nuage.vnode.ports import tap_name
from nuage.vnode.probe import Trial, judge
from nuage.vnode.qemu import QemuHypervisor, QemuOptions
from nuage.vnode.sed import NodeFacts, Sed, given_mib

PORT = PortWish(
    port_id=PortId("port-1"), segment_id=SegmentId("s"), label=0xFFFFFF, mac="52:54:00:00:00:01",
    addresses=("10.0.0.5", "fd00::5/64"), gateway="10.0.0.1", mtu_bytes=1362,
)  # fmt: skip


def wish() -> VmWish:
    return VmWish(
        vm_id=VmId("vm-1"), iaas_id=IaasId("i"), name="web-1", shape=VmShape(),
        wish=PowerWish.RUNNING, epoch=1, disks=(), ports=(PORT,), user_data="#!/bin/sh\n",
        ssh_keys=("ssh-ed25519 AAAA me",),
    )  # fmt: skip


def test_a_config_drive_carries_its_label_where_guests_look() -> None:
    for layout in SeedLayout:
        image = build_seed(wish(), layout)
        assert image[32808:].startswith(layout.value.encode())
        assert image[16 * 2048 :].startswith(b"\x01CD001\x01")
        assert b"ssh-ed25519 AAAA me" in image
        assert len(image) % 2048 == 0


def test_the_same_wish_gives_the_same_drive() -> None:
    assert build_seed(wish()) == build_seed(wish())


def test_a_name_too_long_for_a_drive_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        build_iso("cidata", {"x" * 300: b""})
    with pytest.raises(InvalidRequest):
        build_iso("y" * 40, {})


def test_network_config_gives_a_bare_address_a_prefix() -> None:
    text = network_config((PORT,))
    assert '      - "10.0.0.5/24"' in text
    assert '      - "fd00::5/64"' in text
    assert '        via: "10.0.0.1"' in text


def spec_of(*disks: IscsiDisk) -> GuestSpec:
    return GuestSpec(
        vm_id=VmId("vm-1"), iaas_id=IaasId("i"), name="web", shape=VmShape(memory_mib=256),
        qos_class=QosClass.GOLD, disks=disks, nics=(), seed=b"",
    )  # fmt: skip


def launch_under(accelerator: str) -> Launch:
    return Launch(
        accelerator=accelerator, qmp_fd=3, console_fd=4, tap_fds={}, secret_files={0: "secret0"}
    )


def test_a_secret_is_never_an_argument_or_a_repr() -> None:
    disk = IscsiDisk(
        volume_id=VolumeId("v"), portal="10.0.0.9:3260", iqn="iqn.x", chap_user="u",
        chap_secret="hush",
    )  # fmt: skip
    spec = spec_of(disk)
    told = " ".join(command_line(spec, launch_under("tcg")))
    assert "hush" not in told
    assert "file=secret0" in told
    assert "hush" not in repr(spec)


def test_a_guest_sees_the_sectors_of_its_volume() -> None:
    disk = IscsiDisk(volume_id=VolumeId("v"), portal="10.0.0.9:3260", iqn="iqn.x")
    assert "logical_block_size" not in disk_device(1, disk)
    native = disk_device(1, replace(disk, sector_bytes=4096))
    assert (native["logical_block_size"], native["physical_block_size"]) == (4096, 4096)


@pytest.mark.parametrize(("accelerator", "kib"), [("kvm", 256 * 1024), ("tcg", 256 * 1024 + 8)])
def test_emulated_memory_is_no_whole_number_of_64_pages(accelerator: str, kib: int) -> None:
    arguments = command_line(spec_of(), launch_under(accelerator))
    assert arguments[arguments.index("-m") + 1] == f"{kib}K"


@pytest.mark.parametrize(
    ("kvm_s", "kvm_booted", "tcg_s", "wanted"),
    [(0.1, True, 0.2, "kvm"), (4.0, True, 0.1, "tcg"), (0.0, False, 0.1, "tcg")],
)
def test_kvm_is_taken_only_when_it_boots_a_guest_in_time(
    kvm_s: float,
    kvm_booted: bool,  # noqa: FBT001 - a column of the table above
    tcg_s: float,
    wanted: str,
) -> None:
    kvm = Trial(accelerator="kvm", booted=kvm_booted, seconds=kvm_s)
    tcg = Trial(accelerator="tcg", booted=True, seconds=tcg_s)
    assert judge(kvm, tcg).accelerator == wanted


def test_a_console_log_is_cut_and_still_counts_every_byte(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "console.log")
    log.path.write_bytes(b"a" * 100)
    assert log.rotate(bytes_max=50)
    log.path.write_bytes(b"b" * 10)
    assert log.total_bytes() == 110
    assert log.read(95, 100) == b"a" * 5 + b"b" * 10
    log.path.write_bytes(b"c" * 60)
    log.rotate(bytes_max=50)
    assert log.total_bytes() == 160
    assert log.read(0, 5) == b"c" * 5  # the oldest kept


def test_shares_follow_the_class_where_a_tree_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    took = CgroupTree(tmp_path).place(VmId("vm-1"), 42, QosClass.GOLD, 256)
    assert took == ("cpu", "memory")
    assert (tmp_path / "vm-1/cpu.weight").read_text() == "400"
    assert (tmp_path / "vm-1/cgroup.procs").read_text() == "42"
    assert CgroupTree(None).place(VmId("vm-1"), 42, QosClass.GOLD, 256) == ()


def test_interface_names_fit_the_kernel() -> None:
    assert len(tap_name(PortId("port-0123456789abcdef"))) <= 15


async def test_a_node_s_flops_are_measured_once_and_a_slice_has_its_share(tmp_path: Path) -> None:
    runs = []

    def linpack(_monotonic_s: Callable[[], float]) -> Calibration:
        runs.append(1)
        return Calibration(flops=80e9, order=1000, runs=3, residual=0.01)

    machine_cores = os.cpu_count() or 1
    for cores, expected in ((machine_cores, 80e9), (1, 80e9 / machine_cores)):
        facts = NodeFacts(
            node_id=NodeId("v1"), site_id=SiteId("marne"), accelerator="tcg", cpu_count=cores,
            memory_mib=1024,
        )  # fmt: skip
        cache = tmp_path / f"{cores}" / "flops.json"
        for _ in range(2):
            sed = Sed(facts, clock=SystemClock(), meter=lambda: None, cache=cache, linpack=linpack)
            assert await sed.calibrate() == pytest.approx(expected)
        kept = json.loads(cache.read_text())
        assert (kept["order"], kept["residual"]) == (1000, 0.01)
    assert len(runs) == len({machine_cores, 1}), "the second time the file is believed"


async def test_nodes_that_share_a_machine_and_start_together_measure_it_once(
    tmp_path: Path,
) -> None:
    runs = []

    def linpack(_monotonic_s: Callable[[], float]) -> Calibration:
        runs.append(1)
        return Calibration(flops=80e9, order=1000, runs=3, residual=0.01)

    def sed(number: int) -> Sed:
        facts = NodeFacts(
            node_id=NodeId(f"v{number}"), site_id=SiteId("marne"), accelerator="tcg", cpu_count=2,
            memory_mib=1024,
        )  # fmt: skip
        cache = tmp_path / "flops.json"
        return Sed(facts, clock=SystemClock(), meter=lambda: None, cache=cache, linpack=linpack)

    flops = await asyncio.gather(*(sed(number).calibrate() for number in range(4)))
    assert len(set(flops)) == 1
    assert len(runs) == 1


def test_a_guest_that_cannot_be_is_told_from_one_that_is(tmp_path: Path) -> None:
    record: dict[str, object] = {
        "vm_id": "vm-1", "iaas_id": "iaas-1", "shape": {"vcpu_count": 1, "memory_mib": 96},
        "mark": None, "disks": [], "generations": [],
    }  # fmt: skip
    path = tmp_path / "guest.json"
    path.write_text(json.dumps(record))
    assert Guest.load(tmp_path, lambda _vm_id: None).record.vm_id == "vm-1"
    # The agent passes such a folder by, and the node's other guests are looked after.
    path.write_text(json.dumps(record | {"shape": {"vcpu_count": 1, "memory_mib": 32}}))
    with pytest.raises(CorruptData, match=r"guest\.json"):
        Guest.load(tmp_path, lambda _vm_id: None)


async def test_a_folder_that_says_nothing_is_told_for_as_long_as_it_is_there(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "vm-1"
    folder.mkdir()
    (folder / "guest.json").write_text("{")
    hypervisor = QemuHypervisor(QemuOptions(root=tmp_path, accelerator="tcg"))
    await hypervisor.open()
    assert list(hypervisor.unreadable) == ["vm-1"]
    (folder / "guest.json").unlink()
    folder.rmdir()
    assert not list(hypervisor.unreadable)


@pytest.mark.parametrize(
    ("said", "total", "given"),
    [(0, 16_384, 14_336), (0, 2_048, 1_536), (0, 256, 0), (900, 512, 900)],
)
def test_a_node_gives_what_its_file_says_or_else_what_its_machine_can_spare(
    said: int, total: int, given: int
) -> None:
    assert given_mib(said, total) == given
