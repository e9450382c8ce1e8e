"""Measure what copies and history cost, and how soon a large volume is there again.

Rows (`--rows` runs those that contain a text):

- replicas: 4 KiB writes at depth 16, `any-2-of-3` over TLS on loopback beside a single copy of ours, in turns.
  All three copies share this machine's cores and disk.
- history: the same writes with a day of history beside none, in turns.
- restart: `--mapped-gib` of mapped blocks, the blocks themselves holes (`nuage-mapped-volume`); the time from a
  new process to the first block read, after a close in good order and after a kill under writes; and
  resident bytes a mapped block, after a rest in which it gives back what opening took.
- past: a view, a rollback and a clone of the middle of `--written-gib` of writes, to the first block read.
- idle: resident memory of a daemon without volumes, and with one open.

Debian packages: qemu-utils, qemu-block-extra. `cargo build --release -p nuage-engine` for the restart row.
"""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from iscsi import MIB, Control, free_port, qemu_bench
from machine import cpu_seconds, describe, go_first, memory_of

from nuage.channel import Identity
from nuage.ids import FederationId, NodeId, SiteId
from nuage.ionode.storaged import ALLOCATOR
from nuage.model.infrastructure import NodeRole
from nuage.trust.pki import pem_of
from nuage.trust.store import DAEMON_CHAIN, DAEMON_KEY, ROOT, TrustStore

GIB: Final = 1 << 30
VOLUME_BYTES: Final = GIB
WRITES: Final = 40_000
UUID: Final = "00112233445566778899aabbccddeeff"
FEDERATION: Final = FederationId("bench")
SITE: Final = SiteId("marne")
# The daemon gives back what was free for 10 s, and looks each second.
REST_S: Final = 12.0


@dataclass
class Daemon:
    """A storage daemon in a folder of its own; started again it finds its volumes."""

    binary: Path
    folder: Path
    nbd_port: int
    replica_port: int
    tls: Path | None = None

    def start(self) -> None:
        """Run the process and connect to it."""
        self.folder.mkdir(exist_ok=True)
        words = [str(self.binary), "--dir", str(self.folder), "--control", str(self.control_path)]
        words += ["--nbd", f"127.0.0.1:{self.nbd_port}"]
        if self.tls is not None:
            words += ["--replica", f"127.0.0.1:{self.replica_port}"]
            words += ["--tls-cert", str(self.tls / DAEMON_CHAIN)]
            words += ["--tls-key", str(self.tls / DAEMON_KEY), "--tls-ca", str(self.tls / ROOT)]
        environment = os.environ | ALLOCATOR
        self.process = subprocess.Popen(words, stderr=subprocess.DEVNULL, env=environment)
        self.control = Control(self.control_path)

    @property
    def control_path(self) -> Path:
        """Return where its control socket is."""
        return self.folder / "control"

    def end(self, how: int = signal.SIGTERM) -> None:
        """End the process and wait for it."""
        self.process.send_signal(how)
        self.process.wait()
        self.control_path.unlink(missing_ok=True)

    def create(
        self, op: str = "create_volume", size_bytes: int = VOLUME_BYTES, **more: object
    ) -> None:
        """Make an empty volume or copy."""
        words = {"size_bytes": size_bytes, "logical_block_bytes": 512, "uuid": UUID, **more}
        self.control.ask(op, volume="v", **words)

    def lead(self, volume: str = "v", epoch: int = 1, **more: object) -> None:
        """Open a head and wait until it serves."""
        words = {"ack": "memory", "nbd": volume, **more}
        self.control.ask("open_head", volume=volume, epoch=epoch, **words)
        while True:
            head = self.control.ask("status", volume=volume)["head"]
            if isinstance(head, dict) and head["state"] == "open":
                return
            time.sleep(0.01)

    def url(self, volume: str = "v") -> str:
        """Return where its volume is served."""
        return f"nbd://127.0.0.1:{self.nbd_port}/{volume}"

    def reads(self, volume: str = "v") -> None:
        """Read one block through the door."""
        words = ["qemu-io", "-r", "-f", "raw", "-c", "read 0 4096", self.url(volume)]
        subprocess.run(words, stdout=subprocess.DEVNULL, check=True)

    def resident_bytes(self) -> float:
        """Return what the process holds in memory."""
        return memory_of(self.process.pid).rss_mib * MIB


def make_tls(directory: Path, count: int) -> list[Path]:
    """Found a federation and let IO-nodes in; return their directories."""
    now_s = time.time()
    founder = TrustStore(directory / "founder")
    founder.found(
        Identity(FEDERATION, SITE, NodeRole.CONTROLLER, NodeId("controller")), now_s=now_s
    )
    found = []
    for number in range(count):
        key = Ed25519PrivateKey.generate()
        node = Identity(FEDERATION, SITE, NodeRole.IONODE, NodeId(f"io{number}"))
        chain_pem = founder.issue(key.public_key(), node, now_s=now_s)
        store = TrustStore(directory / f"io{number}")
        store.install(root_pem=pem_of(founder.root()), chain_pem=chain_pem, key=key)
        found.append(store.directory)
    return found


@contextlib.contextmanager
def daemons(binary: Path, work: Path, names: list[str], *, tls: bool) -> Iterator[list[Daemon]]:
    """Run daemons side by side; they end and leave nothing."""
    identities = make_tls(work / "tls", len(names)) if tls else [None] * len(names)
    made = [
        Daemon(binary, work / name, free_port(), free_port(), identity)
        for name, identity in zip(names, identities, strict=True)
    ]
    started = []
    try:
        for daemon in made:
            daemon.start()
            started.append(daemon)
        yield made
    finally:
        for daemon in started:
            daemon.end(signal.SIGKILL)


def write_rates(peers: dict[str, Daemon], rounds: int) -> None:
    """Print writes a second of each peer in turns, and the first one's share of the others'."""
    rates: dict[str, list[float]] = {name: [] for name in peers}
    for name, daemon in peers.items():
        qemu_bench(daemon.url(), WRITES, 16, writes=True)  # the first segments are made
        print(f"  {name}: filled", file=sys.stderr)
    for _ in range(rounds):
        for name, daemon in peers.items():
            rates[name].append(qemu_bench(daemon.url(), WRITES, 16, writes=True))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        span = f"[{min(rates[name]):,.0f}-{max(rates[name]):,.0f}]"
        print(f"  {name:24} {median:9,.0f} writes/s {span}, {first / median:.2f} x")


def replicas(options: argparse.Namespace, work: Path) -> None:
    """Three copies beside one."""
    names = ["head", "copy1", "copy2", "single"]
    with daemons(options.daemon, work, names, tls=True) as (head, *others, single):
        head.create("create_replica")
        peers = []
        for number, copy in enumerate(others, start=1):
            copy.create("create_replica")
            address = f"127.0.0.1:{copy.replica_port}"
            peers.append({"name": f"io{number}", "site": SITE, "address": address})
        head.lead(policy="any-2-of-3", replicas=peers)
        single.create()
        single.lead()
        write_rates({"any-2-of-3 over TLS": head, "single copy": single}, options.rounds)
        flushed = {"head": head, "single": single}
        for name, daemon in flushed.items():
            rate = qemu_bench(daemon.url(), WRITES // 4, 16, writes=True, flush_each=16)
            print(f"  {name:24} {rate:9,.0f} writes/s with a flush each 16")


def history(options: argparse.Namespace, work: Path) -> None:
    """A day of history beside none."""
    with daemons(options.daemon, work, ["day", "none"], tls=False) as (day, none):
        day.create(retention={"seconds": 86_400, "bytes": 64 * GIB, "strict": False})
        none.create(retention={"seconds": 0, "bytes": 0, "strict": False})
        day.lead()
        none.lead()
        write_rates({"a day of history": day, "no history": none}, options.rounds)


def first_read_s(daemon: Daemon, epoch: int) -> float:
    """Return the time from a new process to a block read."""
    begun = time.monotonic()
    daemon.start()
    daemon.lead(epoch=epoch)
    daemon.reads()
    return time.monotonic() - begun


def restart(options: argparse.Namespace, work: Path) -> None:
    """A large volume is opened again."""
    if not options.filler.exists():
        raise SystemExit(f"{options.filler} is not built: cargo build --release -p nuage-engine")
    blocks = options.mapped_gib * GIB // 4096
    with daemons(options.daemon, work, ["large"], tls=False) as (daemon,):
        idle = daemon.resident_bytes()
        daemon.create(size_bytes=options.mapped_gib * GIB)
        daemon.end()
        filler = [str(options.filler), str(daemon.folder / "volumes/v/journal")]
        scattered = ["scattered"] if options.scattered else []
        subprocess.run([*filler, str(options.mapped_gib), *scattered], check=True)
        after_close = first_read_s(daemon, epoch=2)
        time.sleep(REST_S)
        each = (daemon.resident_bytes() - idle) / blocks
        writer = subprocess.Popen(
            ["qemu-img", "bench", "-f", "raw", "-w", "-c", "2000000", "-d", "16", daemon.url()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(options.kill_after_s)
        daemon.end(signal.SIGKILL)
        writer.kill()
        writer.wait()
        after_kill = first_read_s(daemon, epoch=3)
    print(
        f"  {options.mapped_gib} GiB mapped: first read {after_close:.2f} s after a close in order,"
    )
    print(f"  {after_kill:.2f} s after a kill under writes; {each:.2f} bytes of memory a block")


def past(options: argparse.Namespace, work: Path) -> None:
    """Go back to the middle of what was written."""
    count = options.written_gib * 1024
    with daemons(options.daemon, work, ["past"], tls=False) as (daemon,):
        daemon.create(size_bytes=max(1, options.written_gib // 2) * GIB)
        daemon.lead()
        for half in range(2):
            qemu_bench(daemon.url(), count // 2, 4, writes=True, size_bytes=MIB, step_bytes=MIB)
            daemon.control.ask("flush", volume="v")
            if half == 0:
                daemon.control.ask("mark", volumes=["v"], name="middle")
        moment = {"mark": "middle"}
        begun = time.monotonic()
        view = daemon.control.ask("at", volume="v", moment=moment, nbd="then")
        daemon.reads("then")
        viewed = time.monotonic() - begun
        daemon.control.ask("close_at", view=view["view"])
        begun = time.monotonic()
        daemon.control.ask("clone", volume="v", moment=moment, clone="c", uuid="0c" * 16)
        daemon.lead("c")
        daemon.reads("c")
        cloned = time.monotonic() - begun
        begun = time.monotonic()
        daemon.control.ask("rollback", volume="v", moment=moment, force=True)
        daemon.reads()
        rolled = time.monotonic() - begun
    print(f"  {options.written_gib} GiB written, back to the middle, to the first read:")
    print(f"  view {viewed:.2f} s, clone {cloned:.2f} s, rollback {rolled:.2f} s")


def idle(options: argparse.Namespace, work: Path) -> None:
    """Memory of a daemon that has nothing to do."""
    with daemons(options.daemon, work, ["idle"], tls=False) as (daemon,):
        empty = daemon.resident_bytes() / MIB
        daemon.create()
        daemon.lead()
        before = cpu_seconds(daemon.process.pid)
        time.sleep(2)
        used = (cpu_seconds(daemon.process.pid) - before) / 2
        print(
            f"  {empty:.1f} MiB without volumes, {daemon.resident_bytes() / MIB:.1f} MiB with one"
        )
        print(f"  open; {100 * used:.1f} % of a core")


ROWS: Final = {
    "replicas": replicas,
    "history": history,
    "past": past,
    "idle": idle,
    "restart": restart,
}


def main() -> None:
    """Measure the rows and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--daemon", type=Path, default=here / ".venv/bin/nuage-storaged")
    parser.add_argument("--filler", type=Path, default=here / "target/release/nuage-mapped-volume")
    parser.add_argument("--folder", type=Path, help="where volumes are made (default: temporary)")
    parser.add_argument("--rows", default="", help="only rows that contain this text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mapped-gib", type=int, default=8)
    parser.add_argument("--scattered", action="store_true", help="map block by block, out of order")
    parser.add_argument("--written-gib", type=int, default=2)
    parser.add_argument("--kill-after-s", type=float, default=3.0)
    parser.add_argument(
        "--first", action="store_true", help="run before what else the machine does (root)"
    )
    options = parser.parse_args()
    if options.first:
        go_first(os.getpid())
    print(describe())
    for name, row in ROWS.items():
        if options.rows in name:
            with tempfile.TemporaryDirectory(prefix="nuage-bench-", dir=options.folder) as folder:
                print(name)
                row(options, Path(folder))


if __name__ == "__main__":
    main()
