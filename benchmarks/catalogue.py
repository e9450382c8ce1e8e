"""Durable writes a second beside plain SQLite and etcd, and the lag of feeds, on this machine.

    python benchmarks/catalogue.py [--seconds 2] [--rounds 3] [--writers 64] [--folder DIR]

Each figure is the median of the rounds; the peers run in turn within each round, so that
another job on the machine disturbs all alike. One write stores one VM of about 400 bytes.
"""

import argparse
import asyncio
import platform
import shutil
import socket
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

from nuage.catalogue.codec import encode_value
from nuage.catalogue.etcd import EtcdCatalogue
from nuage.catalogue.feed import ApplyBatch, FeedMessage, FeedRequest, ReplaceReplica
from nuage.catalogue.follow import FeedFollower, serve_feed
from nuage.catalogue.replica import SqliteReplicas
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import Catalogue, Put
from nuage.clock import SystemClock
from nuage.errors import NuageError
from nuage.etcd.client import EtcdClient
from nuage.etcd.messages import PutOp
from nuage.ids import IaasId, SiteId, VmId
from nuage.model.vm import Vm, VmShape

SITE = SiteId("marne")
WIRE_DELAY_S = 0.010  # one way across a country
Measure = Callable[[Path, float, int], Coroutine[None, None, float]]


def vm(number: int) -> Vm:
    return Vm(
        vm_id=VmId(f"vm-{number:016x}"),
        iaas_id=IaasId("iaas-1"),
        name=f"web-{number}",
        shape=VmShape(),
    )


async def drive(catalogue: Catalogue, seconds: float, writers: int) -> float:
    """Return the writes a second that `writers` tasks get done."""
    deadline_s = time.perf_counter() + seconds
    counts = [0] * writers

    async def write(writer: int) -> None:
        while time.perf_counter() < deadline_s:
            await catalogue.write([Put(value=vm(writer * 10**6 + counts[writer]))])
            counts[writer] += 1

    started_s = time.perf_counter()
    await asyncio.gather(*(write(writer) for writer in range(writers)))
    return sum(counts) / (time.perf_counter() - started_s)


async def measure_ours(folder: Path, seconds: float, writers: int) -> float:
    catalogue = await SqliteCatalogue.open(folder / "ours.db", site=SITE, clock=SystemClock())
    rate = await drive(catalogue, seconds, writers)
    await catalogue.close()
    return rate


async def measure_plain_sqlite(folder: Path, seconds: float, _writers: int) -> float:
    """One commit a write, WAL and synchronous=FULL, one table, no history, no checks."""
    connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE object (id TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID")
    started_s, count = time.perf_counter(), 0
    while time.perf_counter() < started_s + seconds:
        value = vm(count)
        connection.execute("INSERT INTO object VALUES (?, ?)", (value.vm_id, encode_value(value)))
        count += 1
    rate = count / (time.perf_counter() - started_s)
    connection.close()
    return rate


async def measure_reads(folder: Path, seconds: float, _writers: int) -> float:
    catalogue = await SqliteCatalogue.open(folder / "ours.db", site=SITE, clock=SystemClock())
    await catalogue.write([Put(value=vm(1))])
    started_s, count = time.perf_counter(), 0
    while time.perf_counter() < started_s + seconds / 4:
        for _ in range(1000):
            await catalogue.get("vm", vm_id)
        count += 1000
    rate = count / (time.perf_counter() - started_s)
    await catalogue.close()
    return rate


vm_id = vm(1).vm_id


@asynccontextmanager
async def etcd_process(folder: Path) -> AsyncIterator[EtcdClient]:
    """Run one member on loopback, with its default settings and its data in `folder`."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    client_url, peer_url = (f"http://127.0.0.1:{port}" for port in ports)
    process = await asyncio.create_subprocess_exec(
        "etcd", "--data-dir", str(folder / "etcd"), "--log-level", "error",
        "--listen-client-urls", client_url, "--advertise-client-urls", client_url,
        "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url,
        "--initial-cluster", f"default={peer_url}",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    client = EtcdClient([client_url])
    try:
        while True:
            try:
                await client.range(b"up")
                break
            except NuageError:
                await asyncio.sleep(0.05)
        yield client
    finally:
        await client.close()
        process.kill()
        await process.wait()


async def measure_etcd(folder: Path, seconds: float, writers: int) -> float:
    """Plain puts through the same client: the peer."""
    async with etcd_process(folder) as client:
        deadline_s = time.perf_counter() + seconds
        counts = [0] * writers

        async def write(writer: int) -> None:
            while time.perf_counter() < deadline_s:
                value = vm(writer * 10**6 + counts[writer])
                await client.txn((), (PutOp(value.vm_id.encode(), encode_value(value)),))
                counts[writer] += 1

        started_s = time.perf_counter()
        await asyncio.gather(*(write(writer) for writer in range(writers)))
        return sum(counts) / (time.perf_counter() - started_s)


async def measure_ours_on_etcd(folder: Path, seconds: float, writers: int) -> float:
    async with etcd_process(folder) as client:
        catalogue = await EtcdCatalogue.open(client, site=SITE, clock=SystemClock())
        rate = await drive(catalogue, seconds, writers)
        await catalogue.close()
        return rate


async def measure_feed_lag(folder: Path, seconds: float, rate: float) -> list[float]:
    """Return the ms from a durable write to its durable copy at each of three other sites.

    All four run in this process; the wire between them adds `WIRE_DELAY_S` each way.
    """
    clock = SystemClock()
    home = await SqliteCatalogue.open(folder / "home.db", site=SITE, clock=clock)
    acked_s: dict[int, float] = {}
    lags_ms: list[float] = []

    async def subscribe(_site: SiteId, request: FeedRequest) -> AsyncIterator[FeedMessage]:
        sent: asyncio.Queue[tuple[float, FeedMessage]] = asyncio.Queue()

        async def send() -> None:
            async for message in serve_feed(home, request, clock=clock):
                await sent.put((time.perf_counter() + WIRE_DELAY_S, message))

        sending = asyncio.create_task(send())
        try:
            while True:
                arrives_s, message = await sent.get()
                await asyncio.sleep(max(0.0, arrives_s - time.perf_counter()))
                yield message
        finally:
            sending.cancel()

    class Watched(SqliteReplicas):
        async def apply(self, effect: ApplyBatch | ReplaceReplica) -> None:
            await super().apply(effect)
            now_s = time.perf_counter()
            lags_ms.extend(
                1000 * (now_s - acked_s[record.revision])
                for record in effect.records
                if record.revision in acked_s
            )

    others = [
        await SqliteCatalogue.open(folder / f"{name}.db", site=SiteId(name), clock=clock)
        for name in ("rennes", "lyon", "nice")
    ]
    tasks = []
    for other in others:
        replicas = Watched(other, clock)
        follower = FeedFollower(replicas, reader=other.site, subscribe=subscribe, clock=clock)
        tasks.append(asyncio.create_task(follower.follow(SITE)))
    await asyncio.sleep(0.5)
    started_s = time.perf_counter()
    for number in range(int(rate * seconds)):
        (record,) = await home.write([Put(value=vm(number))])
        acked_s[record.revision] = time.perf_counter()
        await asyncio.sleep(max(0.0, started_s + (number + 1) / rate - time.perf_counter()))
    await asyncio.sleep(0.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for catalogue in [home, *others]:
        await catalogue.close()
    return sorted(lags_ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    arguments = parser.parse_args()
    measures: dict[str, tuple[Measure, int]] = {
        "nuage catalogue, SQLite": (measure_ours, arguments.writers),
        "nuage catalogue, SQLite, 1 writer": (measure_ours, 1),
        "plain sqlite3, a commit a write": (measure_plain_sqlite, 1),
        "nuage catalogue, reads": (measure_reads, 1),
    }
    if shutil.which("etcd") is not None:
        measures["nuage catalogue, etcd"] = (measure_ours_on_etcd, arguments.writers)
        measures["etcd, a put a write"] = (measure_etcd, arguments.writers)
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(arguments.rounds):
        for name, (measure, writers) in measures.items():
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                rates[name].append(asyncio.run(measure(Path(folder), arguments.seconds, writers)))
    peer = statistics.median(rates["plain sqlite3, a commit a write"])
    print(f"{platform.machine()}, {platform.platform()}, {arguments.writers} writers")
    for name, found in rates.items():
        median = statistics.median(found)
        print(f"{name:36} {median:12,.0f}/s   {median / peer:8.2f} x plain sqlite3")
    for rate in (20.0, 500.0):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            lags_ms = asyncio.run(measure_feed_lag(Path(folder), arguments.seconds, rate))
        p99 = lags_ms[int(0.99 * (len(lags_ms) - 1))]
        print(
            f"feed lag at {rate:3.0f} writes/s, wire {1000 * WIRE_DELAY_S:.0f} ms: median "
            f"{statistics.median(lags_ms):.1f} ms, p99 {p99:.1f} ms, largest {lags_ms[-1]:.1f} ms"
        )


if __name__ == "__main__":
    main()
