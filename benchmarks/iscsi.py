"""Measure the iSCSI door beside tgt: interleaved rounds, medians, ratios.

Peers run one after the other in each round, on the same disk, over TCP loopback. Rows without flushes compare
write caches (`--ack memory` against tgt's WCE=1), rows with flushes compare what is on stable storage after each of
them. tgt's aio store is no peer in those: it answers SYNCHRONIZE CACHE without a sync (`strace -f -e trace=io_submit,fdatasync`
shows 16 writes a round and nothing behind them). Its way past the page cache that does sync is rdwr with
`--bsoflags direct`, here "direct". Before a row that reads, every
peer's unit is read once from end to end: the row says what a second read costs. Beside the row with flushes
stands raw fio in the same folder, in turns with the rest: for each flush one write of what ours writes, 16 blocks and a
header, past the page cache over written space, and its `fdatasync`. The disk of a virtual
machine flushes into a host's cache: no figure here is one of real media.

Debian packages: tgt, libiscsi-bin, qemu-utils, qemu-block-extra, fio.

    benchmarks/iscsi.py [--daemon FILE] [--backend journal] [--rounds 5]
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from machine import go_first

VOLUME_BYTES: Final = 1 << 30
# An odd multiple of 4096: over 2^18 blocks it visits them in scattered order, all of them once.
STRIDE_BYTES: Final = 7919 * 4096
START_TIMEOUT_S: Final = 10.0
PERF_SECONDS: Final = 3
TGT_STORES: Final = {
    "rdwr": ["--bstype", "rdwr"],
    "direct": ["--bstype", "rdwr", "--bsoflags", "direct"],
    "aio": ["--bstype", "aio"],
}


class Control:
    """One control connection to a storage daemon (docs/protocols/storaged.md)."""

    def __init__(self, path: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        self._socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self._file = self._socket.makefile("rw")

    def ask(self, op: str, **fields: object) -> dict[str, object]:
        """Return the answer to one request; a refusal ends the benchmark."""
        self._file.write(json.dumps({"id": 1, "op": op, **fields}) + "\n")
        self._file.flush()
        for line in self._file:
            answer = json.loads(line)
            if "error" in answer:
                raise SystemExit(f"{op}: {answer['error']}")
            if "ok" in answer:
                ok: dict[str, object] = answer["ok"]
                return ok
        raise SystemExit("the storage daemon ended")


@dataclass
class Peer:
    """A target with its URL; `rows` collects each row's figures."""

    name: str
    url: str
    rows: dict[str, list[float]] = field(default_factory=dict)


def free_port() -> int:
    """Return a TCP port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def storaged(
    binary: Path, backend: str, ack: str, work: Path, doors: list[str], **head: object
) -> Iterator[Control]:
    """Run a daemon with one open volume, written once from end to end."""
    folder = work / f"nuage-{ack}"
    folder.mkdir()
    control = folder / "control"
    command = [str(binary), "--dir", str(folder), "--control", str(control), *doors]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        ask = Control(control)
        ask.ask(
            "create_volume",
            volume="bench",
            size_bytes=VOLUME_BYTES,
            logical_block_bytes=512,
            backend=backend,
        )
        ask.ask("open_head", volume="bench", epoch=1, ack=ack, **head)
        ask.ask("fill_from_image", volume="bench", path=str(work / "image.raw"))
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextlib.contextmanager
def tgt(work: Path) -> Iterator[dict[str, str]]:
    """Run tgtd with a buffered unit and two past the page cache; yield the URL of each."""
    number = 100 + free_port() % 900
    port = free_port()
    name = "iqn.2025-01.test:t1"
    process = subprocess.Popen(
        ["tgtd", "-f", "-C", str(number), "--iscsi", f"portal=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def admin(*words: str) -> None:
        subprocess.run(["tgtadm", "-C", str(number), "--lld", "iscsi", *words], check=True)

    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if time.monotonic() > deadline:
                raise SystemExit("tgtd does not come up")
            time.sleep(0.05)
        admin("--mode", "target", "--op", "new", "--tid", "1", "-T", name)
        for lun, (kind, store) in enumerate(TGT_STORES.items(), start=1):
            image = work / f"tgt-{kind}.raw"
            shutil.copyfile(work / "image.raw", image)
            words = ["--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", str(lun)]
            admin(*words, "-b", str(image), *store)
        admin("--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL")
        url = f"iscsi://127.0.0.1:{port}/{name}"
        yield {kind: f"{url}/{lun}" for lun, kind in enumerate(TGT_STORES, start=1)}
    finally:
        # tgtd does not end on a signal while it has targets.
        with contextlib.suppress(subprocess.CalledProcessError):
            admin("--mode", "target", "--op", "delete", "--force", "--tid", "1")
            admin("--mode", "system", "--op", "delete")
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def random_reads(url: str, depth: int) -> float:
    """Return 4 KiB random reads a second by `iscsi-perf`."""
    words = ["iscsi-perf", "-r", "-b", "8", "-m", str(depth), "-t", str(PERF_SECONDS), url]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"iops average (\d+)", text) or re.findall(r"iops current (\d+)", text)
    if not found:
        raise SystemExit(f"iscsi-perf said: {text[-200:]!r}")
    return float(found[-1])


def qemu_bench(
    url: str,
    count: int,
    depth: int,
    *,
    writes: bool,
    flush_each: int = 0,
    size_bytes: int = 4096,
    step_bytes: int = STRIDE_BYTES,
) -> float:
    """Return operations a second by `qemu-img bench`."""
    words = ["qemu-img", "bench", "-f", "raw", "-t", "writeback", "-c", str(count)]
    words += ["-d", str(depth), "-s", str(size_bytes), "-S", str(step_bytes)]
    words += ["-w"] if writes else []
    words += [f"--flush-interval={flush_each}"] if flush_each else []
    text = subprocess.run([*words, url], capture_output=True, text=True, check=True).stdout
    found = re.search(r"completed in ([\d.]+) seconds", text)
    if found is None:
        raise SystemExit(f"qemu-img bench said: {text[-200:]!r}")
    return count / float(found[1])


Measure = Callable[[str], float]

MIB: Final = 1 << 20
FLUSH_ROW: Final = "write 4k qd 16, flush each 16"
ROWS: Final[dict[str, Measure]] = {
    "random read 4k qd 1": lambda url: random_reads(url, 1),
    "random read 4k qd 16": lambda url: random_reads(url, 16),
    "random read 4k qd 64": lambda url: random_reads(url, 64),
    "write 4k qd 1": lambda url: qemu_bench(url, 10_000, 1, writes=True),
    "write 4k qd 16": lambda url: qemu_bench(url, 60_000, 16, writes=True),
    "write 4k qd 64": lambda url: qemu_bench(url, 60_000, 64, writes=True),
    FLUSH_ROW: lambda url: qemu_bench(url, 30_000, 16, writes=True, flush_each=16),
    "sequential read 1M qd 4, /s": lambda url: qemu_bench(
        url, 1000, 4, writes=False, size_bytes=MIB, step_bytes=MIB
    ),
    "sequential write 1M qd 4, /s": lambda url: qemu_bench(
        url, 1000, 4, writes=True, size_bytes=MIB, step_bytes=MIB
    ),
}


RAW_BYTES: Final = 256 * MIB
RAW_WRITES: Final = 2000


def raw_flushes(file: Path) -> float:
    """Return what the disk alone gives in the row with flushes, in 4 KiB writes a second."""
    words = ["fio", "--name=raw", f"--filename={file}", "--rw=write", "--bs=68k", "--direct=1"]
    words += ["--ioengine=psync", "--fdatasync=1", f"--number_ios={RAW_WRITES}"]
    words += [f"--size={RAW_BYTES}", "--overwrite=1", "--output-format=json"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return 16 * float(json.loads(text)["jobs"][0]["write"]["iops"])


def read_once(url: str) -> None:
    """Read a unit from end to end, so that no row depends on what was written how."""
    count = VOLUME_BYTES // MIB
    qemu_bench(url, count, 4, writes=False, size_bytes=MIB, step_bytes=MIB)


def make_image(path: Path, size_bytes: int = VOLUME_BYTES) -> None:
    """Write an image without holes."""
    block = bytes(range(256)) * 4096
    with path.open("wb") as file:
        for _ in range(size_bytes // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def run(peers: list[Peer], rows: dict[str, Measure], rounds: int, raw: Peer | None = None) -> None:
    """Measure each row on each peer in turn, round by round, and the disk alone with the flushes."""
    for number in range(rounds):
        for row, measure in rows.items():
            for peer in peers:
                if "read" in row:
                    read_once(peer.url)
                peer.rows.setdefault(row, []).append(measure(peer.url))
            if raw is not None and row == FLUSH_ROW:
                raw.rows.setdefault(row, []).append(raw_flushes(Path(raw.url)))
            print(f"round {number + 1}: {row}", file=sys.stderr)


def report(peers: list[Peer], rows: dict[str, Measure]) -> None:
    """Print medians with their range, and ours over each peer's."""
    own = peers[0]
    for row in rows:
        cells = []
        mine = statistics.median(own.rows[row])
        for peer in peers:
            figures = peer.rows.get(row)
            if figures is None:
                continue
            median = statistics.median(figures)
            cell = f"{peer.name} {median:,.0f} [{min(figures):,.0f}-{max(figures):,.0f}]"
            if peer is not own:
                cell += f" ({mine / median:.2f} x)"
            cells.append(cell)
        print(f"{row:32} " + " | ".join(cells))


def options_of(description: str | None) -> argparse.Namespace:
    """Read the options of a program that measures a door of the storage daemon beside its peers."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    own = Path(__file__).resolve().parents[1] / ".venv/bin/nuage-storaged"
    parser.add_argument("--daemon", type=Path, default=own)
    parser.add_argument("--backend", choices=["journal", "file", "memory"], default="journal")
    parser.add_argument("--ack", choices=["durable", "memory", "write_back"], default="memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default="", help="only rows that contain this text")
    parser.add_argument(
        "--first", action="store_true", help="run before what else the machine does (root)"
    )
    options = parser.parse_args()
    if options.first:
        go_first(os.getpid())
    return options


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
        port = free_port()
        name = "iqn.2015-01.fr.nuage:bench"
        doors = ["--iscsi", f"127.0.0.1:{port}"]
        stack.enter_context(
            storaged(options.daemon, options.backend, options.ack, work, doors, iqn=name)
        )
        own_url = f"iscsi://127.0.0.1:{port}/{name}/0"
        stores = stack.enter_context(tgt(work))
        peers = [Peer(f"nuage {options.backend}", own_url)]
        peers += [Peer(f"tgt {kind}", url) for kind, url in stores.items()]
        raw = Peer("raw fio", str(work / "raw"))
        make_image(work / "raw", RAW_BYTES)
        run(peers, rows, options.rounds, raw)
        report([*peers, raw], rows)


if __name__ == "__main__":
    main()
