#!/usr/bin/env python3
"""Build the Nuage test guest: a raw disk that boots from a virtio disk in seconds, even under TCG.

It is made of two Debian packages (the cloud kernel and the static busybox) and the scripts beside
this file; nothing else is downloaded. The result is kept under `.build/guest/` by a hash of its
recipe, so a second run takes no time. Needs: apt-get, dpkg-deb, syslinux, mtools, mke2fs.

Layout of the disk (MBR, 512-byte sectors):

    0           master boot record (syslinux mbr.bin) and partition table
    2048        partition 1, FAT16, active: ldlinux.sys, syslinux.cfg, vmlinuz, initrd
    partition 2 ext4, mounted at /data in the guest: what a user writes stays on the volume

Usage: build.py [--output-dir DIR]; prints the path of the image.
"""

import argparse
import hashlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
KERNEL_META_PACKAGE: Final = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE: Final = "busybox-static"
SECTOR_BYTES: Final = 512
BOOT_START_SECTOR: Final = 2048
BOOT_SECTORS: Final = 48 * 2048  # 48 MiB: kernel 14, initramfs 3, room for a larger kernel
DATA_SECTORS: Final = 47 * 2048  # so that the whole image is 96 MiB
MODULE_SIGNATURE: Final = b"~Module signature appended~\n"

# Before the network is up; the rest loads beside it. Dependencies are found in the modules.
EARLY_MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_net", "isofs")
LATE_MODULES: Final = ("virtio-rng", "evdev", "button", "virtio_balloon", "virtio_scsi", "sd_mod")

# No self-tests of ciphers (0.4 s under TCG), no CPU mitigations (nothing here is secret), no timer
# calibration, and no tracing probes: what is left is 1.5 s of kernel under TCG.
KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 quiet loglevel=3 mitigations=off nokaslr tsc=reliable no_timer_check "
    "lpj=4000000 cryptomgr.notests apparmor=0 random.trust_cpu=on panic=5 "
    "initcall_blacklist=init_kprobe_trace"
)
SYSLINUX_CONFIG: Final = f"""\
DEFAULT nuage
PROMPT 0
LABEL nuage
  LINUX vmlinuz
  INITRD initrd
  APPEND {KERNEL_ARGUMENTS}
"""
SCRIPTS: Final = {
    "init": "init.sh",
    "etc/network-up": "network-up.sh",
    "etc/user-data-run": "user-data-run.sh",
    "etc/udhcpc.script": "udhcpc.sh",
    "bin/heartbeat": "heartbeat.sh",
    "etc/inittab": "inittab",
    "etc/acpi/PWRF/00000080": "power.sh",
}
FOLDERS: Final = (
    "bin", "dev", "proc", "sys", "tmp", "root", "root/.ssh", "etc", "etc/acpi", "etc/acpi/PWRF",
    "lib", "lib/modules", "config", "data", "www", "var", "var/run",
)  # fmt: skip


def recipe_hash() -> str:
    """Return the hash of all that decides the image, apart from the packages' versions."""
    digest = hashlib.sha256()
    for path in sorted(HERE.iterdir()):
        if path.is_file() and path.suffix in {".py", ".sh", ""}:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def run(arguments: Sequence[str | Path], *, cwd: Path | None = None) -> str:
    """Run a program and return what it printed; its complaint becomes ours."""
    done = subprocess.run(
        [str(argument) for argument in arguments], cwd=cwd, capture_output=True, check=False
    )
    if done.returncode != 0:
        told = done.stderr.decode(errors="replace").strip()
        raise SystemExit(f"guest: {' '.join(map(str, arguments))} failed: {told}")
    return done.stdout.decode()


def fetch_packages(work: Path) -> tuple[Path, Path]:
    """Download and unpack the kernel and busybox; return (kernel root, busybox binary)."""
    downloads = work / "debs"
    downloads.mkdir()
    depends = run(["apt-cache", "depends", "--important", KERNEL_META_PACKAGE])
    found = re.search(r"Depends: (linux-image-\S+-cloud-amd64\S*)", depends)
    if found is None:
        raise SystemExit("guest: apt knows no cloud kernel; run `apt-get update` first")
    run(["apt-get", "download", "-q", found[1], BUSYBOX_PACKAGE], cwd=downloads)
    for package in downloads.glob("*.deb"):
        run(["dpkg-deb", "-x", package, work / "root"])
    return work / "root", work / "root/bin/busybox"


def module_order(root: Path, names: Sequence[str]) -> list[Path]:
    """Return the modules `names` need, dependencies first; those built in are left out."""
    by_name = {path.stem.replace("-", "_"): path for path in root.glob("lib/modules/*/**/*.ko")}
    order: list[Path] = []

    def add(name: str) -> None:
        path = by_name.get(name.replace("-", "_"))
        if path is None or path in order:
            return
        depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for dependency in depends[1].decode().split(",") if depends else ():
            if dependency:
                add(dependency)
        order.append(path)

    for name in names:
        add(name)
    return order


def unsigned(module: bytes) -> bytes:
    """Return a module without its signature, whose check costs time under TCG."""
    if not module.endswith(MODULE_SIGNATURE):
        return module
    end = len(module) - len(MODULE_SIGNATURE)
    (signature_bytes,) = struct.unpack(">I", module[end - 4 : end])
    return module[: end - 12 - signature_bytes]


class Cpio:
    """Writer of the kernel's initramfs format (``newc``: 110 bytes of hexadecimal fields)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(
        self, name: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (
            self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, device[0], device[1], len(encoded), 0,
        )  # fmt: skip
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._parts += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def build_initramfs(root: Path, busybox: Path) -> bytes:
    """Return the uncompressed initramfs (unpacking costs more than reading it)."""
    archive = Cpio()
    for folder in FOLDERS:
        archive.add(folder, 0o040755)
    archive.add("dev/console", 0o020600, device=(5, 1))
    archive.add("dev/ttyS0", 0o020600, device=(4, 64))
    archive.add("bin/busybox", 0o100755, busybox.read_bytes())
    for target, source in SCRIPTS.items():
        archive.add(target, 0o100755, (HERE / source).read_bytes())
    archive.add("etc/profile", 0o100644, b"PS1='\\h:\\w\\$ '\nexport PS1 PATH=/bin HOME=/root\n")
    early = module_order(root, EARLY_MODULES)
    late = [path for path in module_order(root, LATE_MODULES) if path not in early]
    for path in (*early, *late):
        archive.add(f"lib/modules/{path.name}", 0o100644, unsigned(path.read_bytes()))
    for name, paths in (("early", early), ("late", late)):
        listing = "".join(f"{path.name}\n" for path in paths)
        archive.add(f"lib/modules/{name}", 0o100644, listing.encode())
    return archive.finish()


def partition_entry(*, active: bool, kind: int, start_sector: int, sectors: int) -> bytes:
    """Return one entry of the MBR's table; the CHS fields say "use LBA"."""
    chs = b"\xfe\xff\xff"
    return struct.pack("<B3sB3sII", 0x80 if active else 0, chs, kind, chs, start_sector, sectors)


def build_disk(image: Path, root: Path, initramfs: bytes, work: Path) -> None:
    """Write the raw disk: boot record, FAT with the kernel, ext4 for data."""
    kernel = next(root.glob("boot/vmlinuz-*"))
    (work / "initrd").write_bytes(initramfs)
    (work / "syslinux.cfg").write_text(SYSLINUX_CONFIG)
    data_start = BOOT_START_SECTOR + BOOT_SECTORS
    total_bytes = (data_start + DATA_SECTORS) * SECTOR_BYTES
    boot_record = Path("/usr/lib/syslinux/mbr/mbr.bin").read_bytes()[:440].ljust(446, b"\0")
    table = partition_entry(
        active=True, kind=0x0E, start_sector=BOOT_START_SECTOR, sectors=BOOT_SECTORS
    ) + partition_entry(active=False, kind=0x83, start_sector=data_start, sectors=DATA_SECTORS)
    with image.open("wb") as disk:
        disk.write(boot_record + table.ljust(64, b"\0") + b"\x55\xaa")
        disk.truncate(total_bytes)
    offset_bytes = BOOT_START_SECTOR * SECTOR_BYTES
    inside = f"{image}@@{offset_bytes}"
    run(["mformat", "-i", inside, "-T", str(BOOT_SECTORS), "-h", "64", "-s", "32",
         "-H", str(BOOT_START_SECTOR), "-c", "16", "-v", "NUAGE", "::"])  # fmt: skip
    run(["mcopy", "-i", inside, work / "syslinux.cfg", "::syslinux.cfg"])
    run(["mcopy", "-i", inside, kernel, "::vmlinuz"])
    run(["mcopy", "-i", inside, work / "initrd", "::initrd"])
    run(["syslinux", "--install", "--offset", str(offset_bytes), image])
    data = work / "data.ext4"
    with data.open("wb") as file:
        file.truncate(DATA_SECTORS * SECTOR_BYTES)
    run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-L", "data", "-m", "0",
         "-O", "^metadata_csum", data])  # fmt: skip
    run(["dd", f"if={data}", f"of={image}", "bs=1M", f"seek={data_start // 2048}",
         "conv=notrunc,sparse", "status=none"])  # fmt: skip


def require_tools() -> None:
    """Stop with the missing tools' names."""
    needed = ("apt-get", "dpkg-deb", "syslinux", "mformat", "mcopy", "mke2fs", "dd")
    missing = [tool for tool in needed if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"guest: missing {', '.join(missing)}; see tools/packages-build.txt")


def build(output_dir: Path) -> Path:
    """Return the image's path, building it unless the cache has it."""
    image = output_dir / f"guest-{recipe_hash()}.raw"
    if image.exists():
        return image
    require_tools()
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir) as name:
        work = Path(name)
        print("guest: fetching Debian's cloud kernel and busybox", file=sys.stderr)
        root, busybox = fetch_packages(work)
        building = work / "guest.raw"
        build_disk(building, root, build_initramfs(root, busybox), work)
        for outdated in output_dir.glob("guest-*"):
            outdated.unlink()
        building.replace(image)
    latest = output_dir / "guest.raw"
    latest.unlink(missing_ok=True)
    latest.symlink_to(image.name)
    print(f"guest: built {image} ({image.stat().st_blocks // 2048} MiB on disk)", file=sys.stderr)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the Nuage test guest.")
    default = HERE.parent.parent / ".build" / "guest"
    parser.add_argument("--output-dir", type=Path, default=default)
    print(build(parser.parse_args().output_dir))


if __name__ == "__main__":
    main()
