#!/usr/bin/env python3
"""Build a guest that is an iSCSI initiator as hosts are: Debian's kernel, open-iscsi, dm-multipath.

Tests boot it without a disk (kernel and initramfs) and give it commands over a serial port. Its
programs come from Debian's packages, their libraries from the packages or, where those are this
machine's own, from here. The result is kept under `.build/initiator/` by a hash of its recipe.
Needs: apt-get, dpkg-deb, ldd.

Usage: build.py [--output-dir DIR]; prints the path of the initramfs, beside which lies `vmlinuz`.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
GUEST: Final = HERE.parent / "guest"
sys.path.insert(0, str(GUEST))
from build import Cpio, module_order, run, unsigned  # noqa: E402 - the other guest's writers

PACKAGES: Final = (
    "busybox-static",
    "open-iscsi",
    "libopeniscsiusr",
    "libisns0",
    "sg3-utils",
    "libsgutils2-1.46-2",
    "dmsetup",
    "libdevmapper1.02.1",
    "e2fsprogs",
)
PROGRAMS: Final = (
    "sbin/iscsid", "sbin/iscsiadm", "sbin/dmsetup", "sbin/mke2fs", "sbin/e2fsck",
    "usr/bin/sg_persist", "usr/bin/sg_inq", "usr/bin/sg_vpd", "usr/bin/sg_rtpg",
    "usr/bin/sg_turs", "usr/bin/sg_get_lba_status", "usr/bin/sg_write_same", "usr/bin/sg_unmap",
)  # fmt: skip
MODULES: Final = (
    "virtio_pci", "virtio_net", "crc32c-intel", "sd_mod", "sg", "iscsi_tcp", "dm-multipath",
    "dm-service-time", "dm-round-robin",
)  # fmt: skip
FOLDERS: Final = (
    "bin", "sbin", "dev", "proc", "sys", "tmp", "run", "run/lock", "run/lock/iscsi", "etc",
    "etc/iscsi", "lib64", "lib", "modules", "mnt",
)  # fmt: skip
ISCSID: Final = b"iscsid.startup = /sbin/iscsid\nnode.startup = manual\n"


def recipe_hash() -> str:
    """Return the hash of all that decides the result, apart from the packages' versions."""
    digest = hashlib.sha256()
    for path in (HERE / "build.py", HERE / "init.sh", GUEST / "build.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def fetch(work: Path) -> Path:
    """Download and unpack kernel and programs; return where they lie."""
    downloads = work / "debs"
    downloads.mkdir()
    depends = run(["apt-cache", "depends", "--important", "linux-image-cloud-amd64"])
    kernel = re.search(r"Depends: (linux-image-\S+-cloud-amd64\S*)", depends)
    if kernel is None:
        raise SystemExit("initiator: apt knows no cloud kernel; run `apt-get update` first")
    run(["apt-get", "download", "-q", kernel[1], *PACKAGES], cwd=downloads)
    for package in downloads.glob("*.deb"):
        run(["dpkg-deb", "-x", package, work / "root"])
    return work / "root"


def libraries(root: Path, program: Path) -> dict[str, Path]:
    """Return the shared libraries of a program by the name under which it asks for them."""
    folders = {str(path.parent) for path in root.rglob("*.so*")}
    answer = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, check=True,
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(sorted(folders))},
    ).stdout  # fmt: skip
    found = {name: Path(path) for name, path in re.findall(r"(\S+) => (/\S+)", answer)}
    if missing := re.findall(r"(\S+) => not found", answer):
        raise SystemExit(f"initiator: {program.name} wants {', '.join(missing)}")
    for loader in re.findall(r"^\s*(/lib64/\S+)", answer, re.MULTILINE):
        found[Path(loader).name] = Path(loader)
    return found


def initramfs(root: Path) -> bytes:
    """Return the initramfs: programs, their libraries, modules, `init.sh` as first process."""
    archive = Cpio()
    for folder in FOLDERS:
        archive.add(folder, 0o040755)
    archive.add("dev/console", 0o020600, device=(5, 1))
    archive.add("init", 0o100755, (HERE / "init.sh").read_bytes())
    archive.add("bin/busybox", 0o100755, (root / "bin/busybox").read_bytes())
    archive.add("etc/iscsi/iscsid.conf", 0o100600, ISCSID)
    # iscsid asks for the name of who gives it orders.
    archive.add("etc/passwd", 0o100644, b"root:x:0:0:root:/:/bin/sh\n")
    archive.add("etc/nsswitch.conf", 0o100644, b"passwd: files\n")
    archive.add("etc/hosts", 0o100644, b"127.0.0.1 localhost\n")
    needed: dict[str, Path] = {}
    for name in PROGRAMS:
        path = root / name
        needed |= libraries(root, path)
        archive.add(f"sbin/{path.name}", 0o100755, path.read_bytes())
    for name, path in needed.items():
        folder = "lib64" if name.startswith("ld-linux") else "lib"
        archive.add(f"{folder}/{name}", 0o100755, path.read_bytes())
    modules = module_order(root, MODULES)
    for path in modules:
        archive.add(f"modules/{path.name}", 0o100644, unsigned(path.read_bytes()))
    listing = "".join(f"{path.name}\n" for path in modules)
    archive.add("modules/order", 0o100644, listing.encode())
    return archive.finish()


def build(output_dir: Path) -> Path:
    """Return the initramfs's path, building it unless the cache has it."""
    folder = output_dir / recipe_hash()
    image = folder / "initramfs"
    if image.exists():
        return image
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir) as name:
        work = Path(name)
        print("initiator: fetching Debian's cloud kernel and open-iscsi", file=sys.stderr)
        root = fetch(work)
        made = work / "made"
        made.mkdir()
        (made / "vmlinuz").write_bytes(next(root.glob("boot/vmlinuz-*")).read_bytes())
        (made / "initramfs").write_bytes(initramfs(root))
        made.rename(folder)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the iSCSI initiator's guest.")
    default = HERE.parent.parent / ".build" / "initiator"
    parser.add_argument("--output-dir", type=Path, default=default)
    print(build(parser.parse_args().output_dir))


if __name__ == "__main__":
    main()
