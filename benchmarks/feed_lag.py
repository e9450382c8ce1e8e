"""How late another site sees a change: from the answer to a write at one site to its reading at
the others, alone and under the load of `placements`.

A probe makes a small volume at one site, then asks every other site for it every few milliseconds
through the API until it is there; the farthest counts. Prints medians and p99 in milliseconds; run
``python benchmarks/feed_lag.py``.
"""

import argparse
import asyncio
import time

import machine
import uvloop
from bare_federation import BareFederation, Tenant
from keep_alive import Connection
from placements import load

ASK_EVERY_S = 0.004
PROBE_EVERY_S = 0.1
GIVE_UP_S = 10.0


async def seen_after(connection: Connection, path: str, begun_s: float) -> float:
    """Return how long after `begun_s` a site answers for `path`."""
    while time.monotonic() < begun_s + GIVE_UP_S:
        answer = await connection.ask("GET", path)
        if answer.status == 200:
            break
        await asyncio.sleep(ASK_EVERY_S)
    return time.monotonic() - begun_s


async def probe(federation: BareFederation, tenant: Tenant, until_s: float) -> list[float]:
    """Return the lag to the farthest site of each probe, in seconds."""
    connections = [await federation.connect(site, tenant=tenant) for site in federation.sites]
    lags = []
    number = 0
    while time.monotonic() < until_s:
        writer = connections[number % len(connections)]
        others = [c for c in connections if c is not writer]
        name = f"probe{number}-{time.monotonic_ns()}"
        body = {"name": name, "size_bytes": 1024 * 1024}
        made = await writer.ask("POST", f"/v1/iaas/{tenant.iaas}/volumes", body)
        assert made.status < 300, made
        begun_s = time.monotonic()
        path = f"/v1/iaas/{tenant.iaas}/volumes/{name}/where"
        lags.append(max(await asyncio.gather(*(seen_after(c, path, begun_s) for c in others))))
        number += 1
        await asyncio.sleep(PROBE_EVERY_S)
    for connection in connections:
        await connection.close()
    return lags


def show(what: str, lags_s: list[float], more: str = "") -> None:
    median_ms = machine.percentile(lags_s, 0.5) * 1000
    p99_ms = machine.percentile(lags_s, 0.99) * 1000
    print(
        f"feed lag to the farthest of three sites, {what}: "
        f"median {median_ms:.1f} ms, p99 {p99_ms:.1f} ms ({len(lags_s)} probes){more}"
    )


async def run(federation: BareFederation, arguments: argparse.Namespace) -> None:
    if arguments.first:
        federation.go_first()
    prober = await federation.add_tenant("probe")
    tenants = [await federation.add_tenant(f"tenant{n}") for n in range(4)]
    show("idle", await probe(federation, prober, time.monotonic() + arguments.seconds))
    lags, tally = await asyncio.gather(
        probe(federation, prober, time.monotonic() + arguments.seconds),
        load(
            federation,
            tenants,
            connection_count=arguments.connections,
            duration_s=arguments.seconds,
            tls=False,
        ),
    )
    rate = len(tally.latencies_s) / arguments.seconds
    show("under load", lags, f", {rate:.0f} placements/s beside it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--connections", type=int, default=4, help="of the load, to each site")
    parser.add_argument(
        "--first", action="store_true", help="run before what else the machine does (root)"
    )
    arguments = parser.parse_args()
    print(machine.describe())
    with BareFederation() as federation:
        uvloop.run(run(federation, arguments))


if __name__ == "__main__":
    main()
