"""The doors against a plain file: QEMU does each act on both and compares what it reads.

`blkverify` finds a read that differs; `blklogwrites` keeps every write, discard and flush in
dm-log-writes' format (the kernel's log-writes.rst), from which the volume is made again.
"""

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.system.storage_front.storage_front_daemon import IQN, MIB, Daemon

SIZE_BYTES = 16 * MIB
SECTOR_BYTES = 512
LOG_MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD = 1, 2, 4


def serve(daemon: Daemon) -> None:
    """Open a small volume at both doors: acts meet each other often."""
    daemon.ask("create_volume", volume="v", size_bytes=SIZE_BYTES, logical_block_bytes=512)
    daemon.ask("open_head", volume="v", epoch=1, nbd="v", iqn=IQN, ack="memory")


def door(daemon: Daemon, name: str) -> dict[str, str]:
    """Return how QEMU opens the volume through a door."""
    if name == "nbd":
        return {"driver": "nbd", "host": "127.0.0.1", "port": str(daemon.nbd), "export": "v"}
    return {
        "driver": "iscsi", "transport": "tcp", "portal": f"127.0.0.1:{daemon.iscsi[0]}",
        "target": IQN, "lun": "0",
    }  # fmt: skip


def options(driver: str, **nodes: dict[str, str]) -> str:
    """Return QEMU's options of a driver over nodes, each below its own name."""
    words = [f"driver={driver}"]
    for name, node in nodes.items():
        words += [f"{name}.{key}={value}" for key, value in node.items()]
    return ",".join(words)


WRITES = ("write", "write", "write -f", "read")
# QEMU's blkverify does not carry these on; blklogwrites does.
ALL = (*WRITES, "zeroes", "unmap", "discard")


def random_acts(seed: int, count: int, kinds: tuple[str, ...]) -> list[str]:
    """Return acts of `qemu-io` at random places: some overlap, some touch parts of blocks."""
    prng = Random(seed)
    acts = []
    for _ in range(count):
        length = prng.choice([512, 1024, 4096, 12288, 65536, 262144]) + 512 * prng.randrange(3)
        offset = SECTOR_BYTES * prng.randrange((SIZE_BYTES - length) // SECTOR_BYTES)
        kind = prng.choice(kinds)
        at = f"{offset} {length}"
        acts.append(
            {
                "zeroes": f"write -z {at}",
                "unmap": f"write -z -u {at}",
                # What a discarded block reads is the device's choice: it is written at once.
                "discard": f"discard {at}\nwrite -P {prng.randrange(256)} {at}",
                "read": f"read {at}",
            }.get(kind, f"{kind} -P {prng.randrange(256)} {at}")
        )
        if prng.random() < 0.1:
            acts.append("flush")
    return [*acts, "flush", f"read 0 {SIZE_BYTES}"]


def qemu_io(image: str, acts: list[str]) -> None:
    """Do acts; every one must succeed and find no difference."""
    done = subprocess.run(
        ["qemu-io", "--cache", "none", "--image-opts", image],
        input="\n".join([*acts, "quit"]), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-2000:]
    assert "mismatch" not in told, told[-2000:]
    assert "rror" not in told, told[-2000:]


def verify(daemon: Daemon, name: str, folder: Path, *, seed: int, count: int) -> None:
    """Do random acts on the volume and on a file, compared by `blkverify`."""
    reference = folder / f"reference-{seed}"
    with reference.open("wb") as file:
        file.truncate(SIZE_BYTES)
    plain = {"driver": "file", "filename": str(reference)}
    qemu_io(
        options("blkverify", test=door(daemon, name), raw=plain),
        [f"write -P 0 0 {SIZE_BYTES}", *random_acts(seed, count, WRITES)],
    )
    reference.unlink()


def log_writes(daemon: Daemon, name: str, log: Path, *, seed: int, count: int) -> None:
    """Do random acts on the volume, each kept in `log`."""
    log.touch()
    kept = {"driver": "file", "filename": str(log)}
    qemu_io(
        options("blklogwrites", file=door(daemon, name), log=kept),
        [f"write -z 0 {SIZE_BYTES}", *random_acts(seed, count, ALL)],
    )


def logged(log: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (offset, length, flags, data) of each entry of a log."""
    with log.open("rb") as file:
        magic, version, entries, sector_bytes = struct.unpack("<QQQI", file.read(28))
        assert (magic, version) == (LOG_MAGIC, 1)
        at = sector_bytes
        for _ in range(entries):
            file.seek(at)
            sector, sectors, flags, _ = struct.unpack("<QQQQ", file.read(32))
            length = sectors * sector_bytes
            file.seek(at + sector_bytes)
            data = b"" if flags & DISCARD else file.read(length)
            at += sector_bytes + len(data)
            yield sector * sector_bytes, length, flags, data


def replayed(log: Path) -> bytes:
    """Return what a disk holds after every entry of a log."""
    disk = bytearray(SIZE_BYTES)
    for offset, length, flags, data in logged(log):
        disk[offset : offset + length] = bytes(length) if flags & DISCARD else data
    return bytes(disk)
