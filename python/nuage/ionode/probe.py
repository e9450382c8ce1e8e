"""What a disk does a second, measured once: writes that are durable, as a journal makes them.

A journal gathers what many clients write into one commit, so operations are counted in commits
of `GROUP_BLOCKS` blocks, and bytes in commits of a MiB.
"""

import os
import time
from pathlib import Path
from typing import Final

from nuage.model.contract import Limits
from nuage.units import KIB, MIB

BLOCK_BYTES: Final = 4 * KIB
GROUP_BLOCKS: Final = 16
FILE_BYTES: Final = 16 * MIB
MEASURED_S: Final = 0.25  # for each of the two
NAME: Final = "probe.tmp"


def measure(folder: Path) -> Limits:
    """Return the operations and bytes a second that the disk under `folder` does."""
    path = folder / NAME
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.pwrite(fd, bytes(FILE_BYTES), 0)  # overwriting is what a journal does
        os.fsync(fd)
        groups_per_s = _commits_per_s(fd, GROUP_BLOCKS * BLOCK_BYTES)
        mibs_per_s = _commits_per_s(fd, MIB)
    finally:
        os.close(fd)
        path.unlink()
    return Limits(
        operations_per_s=max(1, int(groups_per_s * GROUP_BLOCKS)),
        bytes_per_s=max(1, int(mibs_per_s * MIB)),
    )


def best_of(one: Limits, other: Limits) -> Limits:
    """Return the higher of each."""
    return Limits(
        operations_per_s=max(one.operations_per_s, other.operations_per_s),
        bytes_per_s=max(one.bytes_per_s, other.bytes_per_s),
    )


def _commits_per_s(fd: int, size_bytes: int) -> float:
    data = os.urandom(size_bytes)
    began_s = now_s = time.monotonic()
    count = 0
    while now_s - began_s < MEASURED_S:
        os.pwritev(fd, [data], count * size_bytes % FILE_BYTES, os.RWF_DSYNC)
        count += 1
        now_s = time.monotonic()
    return count / (now_s - began_s)
