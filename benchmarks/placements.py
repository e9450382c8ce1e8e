"""Durable placements a second through the real API of a federation of four sites.

Each answered request was placed by the five steps (bids of all sites, ranking, commitment) and
stands in the elected site's catalogue, on disk, with its volume, its port and its decision.
Hypervisors and storage daemons are left out (`bare_federation`). The load is one process with a few
keep-alive connections to every site; all share the machine's cores. Prints the rate, the latency
and the CPU time of each process; run ``python benchmarks/placements.py``.
"""

import argparse
import asyncio
import itertools
import time
from dataclasses import dataclass, field

import machine
import uvloop
from bare_federation import BareFederation, Tenant
from keep_alive import Connection

PACE_EVERY_S = 0.1


@dataclass
class Tally:
    """What the clients saw."""

    latencies_s: list[float] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    names: "itertools.count[int]" = field(default_factory=itertools.count)
    pace: machine.Pace = field(default_factory=machine.Pace)


async def create_one(connection: Connection, tenant: Tenant, name: str) -> str:
    """Ask for one VM; return "" or what was refused."""
    body = {
        "name": name,
        "image": tenant.image,
        "shape": {"vcpu_count": 1, "memory_mib": 64},
    }
    answer = await connection.ask("POST", f"/v1/iaas/{tenant.iaas}/vms", body)
    if answer.status < 300:
        return ""
    error = answer.document["error"]
    assert isinstance(error, dict)
    return f"{error.get('code')}: {error.get('message')}"[:120]


async def client(connection: Connection, tenant: Tenant, tally: Tally, until_s: float) -> None:
    """Create VMs one after another until the time is over."""
    while time.monotonic() < until_s:
        begun_s = time.monotonic()
        refusal = await create_one(connection, tenant, f"vm{next(tally.names)}")
        if refusal:
            tally.refused[refusal] = tally.refused.get(refusal, 0) + 1
        else:
            tally.latencies_s.append(time.monotonic() - begun_s)


async def keep_pace(tally: Tally, until_s: float) -> None:
    """Time a fixed piece of Python now and then, to know how fast the machine is meanwhile."""
    while time.monotonic() < until_s:
        tally.pace.sample()
        await asyncio.sleep(PACE_EVERY_S)


async def load(
    federation: BareFederation,
    tenants: list[Tenant],
    *,
    connection_count: int,
    duration_s: float,
    tls: bool,
) -> Tally:
    """Load every site with `connection_count` connections for a while."""
    tally = Tally()
    tokens = {}
    for tenant in tenants:
        first = await federation.connect(federation.sites[0], tenant=tenant)
        tokens[tenant] = first.token
        await first.close()
    connections = []
    for site in federation.sites:
        for index in range(connection_count):
            tenant = tenants[index % len(tenants)]
            connection = await federation.connect(site, tls=tls, token=tokens[tenant])
            connections.append((connection, tenant))
    until_s = time.monotonic() + duration_s
    await asyncio.gather(
        keep_pace(tally, until_s),
        *(client(connection, tenant, tally, until_s) for connection, tenant in connections),
    )
    for connection, _ in connections:
        await connection.close()
    return tally


async def run(federation: BareFederation, arguments: argparse.Namespace) -> None:
    if arguments.first:
        federation.go_first()
    tenants = [await federation.add_tenant(f"tenant{n}") for n in range(arguments.tenants)]
    warm = {"connection_count": 1, "duration_s": 1.0, "tls": arguments.tls}
    await load(federation, [await federation.add_tenant("warm")], **warm)
    own = machine.cpu_seconds_of_self()
    before = federation.cpu_seconds()
    busy = machine.machine_busy_seconds()
    wakes, blocks = federation.events()
    begun_s = time.monotonic()
    tally = await load(
        federation,
        tenants,
        connection_count=arguments.connections,
        duration_s=arguments.seconds,
        tls=arguments.tls,
    )
    took_s = time.monotonic() - begun_s
    after = federation.cpu_seconds()
    own = machine.cpu_seconds_of_self() - own
    busy = machine.machine_busy_seconds() - busy
    report(tally, took_s, before, after, own, busy)
    wakes, blocks = (
        now - then for now, then in zip(federation.events(), (wakes, blocks), strict=True)
    )
    count = max(len(tally.latencies_s), 1)
    print(f"  {wakes / count:.1f} wake-ups and {blocks / count:.1f} blocks written a placement")


def report(
    tally: Tally,
    took_s: float,
    before: dict[str, float],
    after: dict[str, float],
    own_s: float,
    busy_s: float,
) -> None:
    """Print what was measured."""
    count = len(tally.latencies_s)
    latencies = tally.latencies_s or [0.0]
    median_ms = machine.percentile(latencies, 0.5) * 1000
    p99_ms = machine.percentile(latencies, 0.99) * 1000
    used = {name: after[name] - before[name] for name in after}
    ours_s = sum(used.values()) + own_s
    print(
        f"placements: {count / took_s:7.1f} /s ({count} in {took_s:.1f} s), "
        f"latency median {median_ms:.1f} ms, p99 {p99_ms:.1f} ms"
    )
    each_ms = ours_s / max(count, 1) * 1000
    print(
        f"  CPU: {each_ms:.2f} ms a placement ({ours_s:.1f} s of our processes; "
        f"{max(busy_s - ours_s, 0):.1f} s of others on the same cores): "
        f"{2000 / max(each_ms, 1e-9):.0f} /s if two cores were ours alone"
    )
    loops = each_ms / max(tally.pace.loop_ms, 1e-9)
    print(
        f"  a loop of a million took {tally.pace.loop_ms:.0f} ms meanwhile: "
        f"{loops * 1000:.0f} thousandths of it a placement"
    )
    for name, seconds in (*used.items(), ("the load itself", own_s)):
        print(f"    {name:16} {seconds:6.2f} s  {seconds / max(count, 1) * 1000:6.2f} ms each")
    for refusal, times in sorted(tally.refused.items(), key=lambda item: -item[1])[:5]:
        print(f"  refused {times} times: {refusal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=8, help="to each site")
    parser.add_argument("--tenants", type=int, default=4)
    parser.add_argument("--vnodes", type=int, default=8, help="of each site")
    parser.add_argument("--tls", action="store_true", help="over TLS instead of the Unix socket")
    parser.add_argument(
        "--acting", action="store_true", help="nodes claim to do what they are told"
    )
    parser.add_argument(
        "--first", action="store_true", help="run before what else the machine does (root)"
    )
    parser.add_argument("--profile", default="", help="write cProfile files with this prefix")
    arguments = parser.parse_args()
    print(machine.describe())
    with BareFederation(
        vnode_count=arguments.vnodes, acting=arguments.acting, profile=arguments.profile
    ) as federation:
        uvloop.run(run(federation, arguments))


if __name__ == "__main__":
    main()
