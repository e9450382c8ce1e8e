"""Measure the NBD door beside nbdkit's file and memory plug-ins: interleaved rounds, medians, ratios.

nbdkit memory is the ceiling of the protocol on this machine, not a peer: it keeps nothing. qemu-nbd over
TCP is left out on purpose: it stalls on delayed acknowledgements and would flatter anybody.

Debian packages: fio, nbdkit, qemu-utils.

    benchmarks/nbd.py [--daemon FILE] [--backend journal] [--rounds 5]
"""

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from iscsi import (
    Measure,
    Peer,
    free_port,
    make_image,
    options_of,
    qemu_bench,
    report,
    run,
    storaged,
)

FIO_SECONDS: Final = 3


def fio(url: str, mode: str, depth: int, *, size: str = "4k", fsync: int = 0) -> float:
    """Return operations a second of fio's nbd engine."""
    words = ["fio", "--name=x", "--ioengine=nbd", f"--uri={url}", f"--rw={mode}", f"--bs={size}"]
    words += [f"--iodepth={depth}", "--time_based", f"--runtime={FIO_SECONDS}", "--ramp_time=1"]
    words += ["--randrepeat=0", "--norandommap", "--size=1G", "--output-format=json"]
    words += [f"--fsync={fsync}"] if fsync else []
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    job = json.loads(text[text.index("{") :])["jobs"][0]
    return float(job["read"]["iops"] + job["write"]["iops"])


ROWS: Final[dict[str, Measure]] = {
    "random read 4k qd 1": lambda url: fio(url, "randread", 1),
    "random read 4k qd 16": lambda url: fio(url, "randread", 16),
    "random read 4k qd 64": lambda url: fio(url, "randread", 64),
    "random write 4k qd 1": lambda url: fio(url, "randwrite", 1),
    "random write 4k qd 16": lambda url: fio(url, "randwrite", 16),
    "random write 4k qd 64": lambda url: fio(url, "randwrite", 64),
    "random write 4k qd 1, flush each": lambda url: fio(url, "randwrite", 1, fsync=1),
    "random write 4k qd 16, flush each 16": lambda url: fio(url, "randwrite", 16, fsync=16),
    "sequential read 1M qd 4": lambda url: fio(url, "read", 4, size="1M"),
    "sequential write 1M qd 4": lambda url: fio(url, "write", 4, size="1M"),
    # The pattern on which qemu-nbd over TCP falls to 363 a second.
    "qemu-img bench write 4k qd 16": lambda url: qemu_bench(url, 40_000, 16, writes=True),
}


@contextlib.contextmanager
def nbdkit(*plugin: str) -> Iterator[str]:
    """Run nbdkit with a plug-in; yield its URL."""
    port = free_port()
    process = subprocess.Popen(["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), *plugin])
    try:
        time.sleep(0.5)
        yield f"nbd://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(timeout=10)


def main() -> None:
    """Measure and print one table."""
    options = options_of(__doc__)
    rows = {row: measure for row, measure in ROWS.items() if options.rows in row}
    with (
        tempfile.TemporaryDirectory(prefix="nuage-bench-") as folder,
        contextlib.ExitStack() as stack,
    ):
        work = Path(folder)
        make_image(work / "image.raw")
        shutil.copyfile(work / "image.raw", work / "nbdkit.raw")
        port = free_port()
        doors = ["--nbd", f"127.0.0.1:{port}"]
        stack.enter_context(
            storaged(options.daemon, options.backend, options.ack, work, doors, nbd="bench")
        )
        peers = [
            Peer(f"nuage {options.backend}", f"nbd://127.0.0.1:{port}/bench"),
            Peer("nbdkit file", stack.enter_context(nbdkit("file", str(work / "nbdkit.raw")))),
            Peer("nbdkit memory", stack.enter_context(nbdkit("memory", "1G"))),
        ]
        run(peers, rows, options.rounds)
        report(peers, rows)


if __name__ == "__main__":
    main()
