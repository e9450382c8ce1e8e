"""Durable writes a second: our catalogue beside plain SQLite and etcd, on this machine.

    python benchmarks/catalogue.py [--seconds 2] [--rounds 3] [--writers 64] [--no-etcd]

Each figure is the median of the rounds; the peers run in turn within each round, so that
another job on the machine disturbs all alike. One write stores one VM of about 400 bytes.
"""

import argparse
import asyncio
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from nuage.catalogue.codec import encode_value
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import Catalogue, Put
from nuage.clock import SystemClock
from nuage.ids import IaasId, SiteId, VmId
from nuage.model.vm import Vm, VmShape

SITE = SiteId("marne")
Measure = Callable[[Path, float, int], Awaitable[float]]


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


async def measure_plain_sqlite(folder: Path, seconds: float, writers: int) -> float:
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


if __name__ == "__main__":
    main()
