"""A boot volume from its image: filled, against an instant clone of a template.

One storage daemon, as an IO-node runs it, on this machine's disk. An image of data that does not
compress is copied in once, as for the first VM; then volumes are filled and cloned in turns, each
until a head has it open. Prints medians, and the bytes of disk that each took.

Usage: python benchmarks/boot_volume.py [--mib N] [--rounds N] [--folder DIR]
"""

import argparse
import asyncio
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.contract.ionode.throwaway_tls import write_tls

from nuage.ids import IaasId, VolumeId
from nuage.ionode.disks import DiskPlace
from nuage.ionode.ports import DaemonPorts
from nuage.ionode.storaged import StoragedDaemon, StoragedOptions
from nuage.model.contract import AckPolicy, DiskClass, JournalRule
from nuage.model.desired import HeadWish, ReplicaWish
from nuage.model.history import IMAGE_MARK, AskMark, CloneOrigin, Moment
from nuage.units import MIB

IAAS = IaasId("iaas-00000000000000aa")
TEMPLATE = VolumeId("vol-0000000000000001")
POLL_S = 0.001


def copy_of(number: int, size_bytes: int) -> ReplicaWish:
    return ReplicaWish(
        volume_id=VolumeId(f"vol-{number:016x}"), iaas_id=IAAS, size_bytes=size_bytes,
        journal=JournalRule(),
    )  # fmt: skip


def head_of(copy: ReplicaWish) -> HeadWish:
    return HeadWish(
        volume_id=copy.volume_id, iaas_id=IAAS, epoch=1 << 20, policy=AckPolicy.LOCAL,
        replicas=(), iqn=f"iqn.2026-01.cloud.nuage:{IAAS}:{copy.volume_id}", chap=(),
    )  # fmt: skip


async def opened(daemon: StoragedDaemon, copy: ReplicaWish) -> None:
    await daemon.open_head(head_of(copy))
    while not any(
        head.volume_id == copy.volume_id and head.is_ready for head in (await daemon.seen()).heads
    ):
        await asyncio.sleep(POLL_S)


async def fill(daemon: StoragedDaemon, copy: ReplicaWish, image: Path) -> None:
    await daemon.create(copy)
    await opened(daemon, copy)
    await daemon.fill(copy.volume_id, image)
    ask = AskMark(iaas_id=IAAS, volume_ids=(copy.volume_id,), name=IMAGE_MARK)
    await daemon.mark(ask)


async def clone(daemon: StoragedDaemon, copy: ReplicaWish) -> None:
    origin = CloneOrigin(volume_id=TEMPLATE, moment=Moment(sequence=0))
    await daemon.clone(replace(copy, origin=origin))
    await opened(daemon, copy)


def used_bytes(folder: Path) -> int:
    """Return what files take of the disk; one that several volumes share counts once."""
    stats = {s.st_ino: s.st_blocks * 512 for s in (p.stat() for p in folder.rglob("*"))}
    return sum(stats.values())


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def measure(folder: Path, size_bytes: int, rounds: int) -> None:
    image = folder / "image.raw"
    with image.open("wb") as file:
        for _ in range(size_bytes // MIB):
            file.write(random.randbytes(MIB))
    tls = write_tls(folder / "tls")
    options = StoragedOptions(
        binary=str(Path(sys.executable).with_name("nuage-storaged")), disks=(DiskPlace(name="d0", disk_class=DiskClass.SSD, path=folder / "data"),),
        run_dir=folder / "run", address="127.0.0.1", tls_cert=tls.chain, tls_key=tls.key,
        tls_ca=tls.root, tls_crl=tls.lists,
    )  # fmt: skip
    ports = DaemonPorts(iscsi=free_port(), replica=free_port())
    daemon = StoragedDaemon(options, IAAS, ports)
    await daemon.start()
    try:
        await _in_turns(daemon, folder, image, rounds)
    finally:
        while pids := pids_of(folder / "run"):
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)
        await daemon.disconnect()


async def _in_turns(daemon: StoragedDaemon, folder: Path, image: Path, rounds: int) -> None:
    size_bytes = image.stat().st_size
    first = copy_of(0, size_bytes)
    await fill(daemon, first, image)
    template = replace(copy_of(1, size_bytes), journal=JournalRule(window_s=10**9))
    origin = CloneOrigin(volume_id=first.volume_id, moment=Moment(mark=IMAGE_MARK))
    await daemon.clone(replace(template, origin=origin))
    await opened(daemon, template)
    taken_s: dict[str, list[float]] = {"fill": [], "clone": []}
    bytes_used: dict[str, list[int]] = {"fill": [], "clone": []}
    for number in range(2, 2 + 2 * rounds):
        how = "fill" if number % 2 == 0 else "clone"
        copy = copy_of(number, size_bytes)
        before, begun_s = used_bytes(folder / "data"), time.monotonic()
        await (fill(daemon, copy, image) if how == "fill" else clone(daemon, copy))
        taken_s[how].append(time.monotonic() - begun_s)
        bytes_used[how].append(used_bytes(folder / "data") - before)
        await daemon.close_head(copy.volume_id)
        await daemon.erase(copy.volume_id)
    filled_s, cloned_s = (statistics.median(taken_s[how]) for how in ("fill", "clone"))
    print(machine.describe())
    for how, median_s in (("fill", filled_s), ("clone", cloned_s)):
        mib = statistics.median(bytes_used[how]) / MIB
        print(f"{how:5}  {median_s * 1000:9.1f} ms   {mib:8.1f} MiB of disk")
    print(f"image {size_bytes // MIB} MiB: a clone takes {cloned_s / filled_s:.4f} of a fill")


def pids_of(run_dir: Path) -> list[int]:
    """Return the daemons whose control socket is in `run_dir`: this program started them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"--control\0" in words and str(run_dir).encode() in words:
                found.append(int(entry.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        asyncio.run(measure(Path(name), asked.mib * MIB, asked.rounds))


if __name__ == "__main__":
    main()
