"""Calls over the channel (mutual TLS 1.3) beside aiohttp's JSON POST (plain and TLS).

Server and client are two processes on loopback, both on uvloop. Prints calls a second, latency
and CPU time of each side per call; run `python benchmarks/channel.py`.
"""

import argparse
import asyncio
import json
import multiprocessing
import platform
import ssl
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import msgspec
import structlog
import uvloop
from aiohttp import web

from nuage.channel import ChannelClient, ChannelServer, Handlers, Identity, Peer
from nuage.clock import SystemClock
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole
from nuage.trust.store import TrustStore

CLOCK = SystemClock()


@dataclass(frozen=True)
class Ask:
    vm_id: str
    memory_mib: int
    vcpu_count: int
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    vm_id: str
    accepted: bool
    score: float


ASK = Ask("vm-0123456789abcdef", 2048, 2, ("web", "gold"))
Call = Callable[[], Awaitable[None]]


def handlers() -> Handlers:
    made = Handlers()

    @made.method("estimate", Ask)
    async def estimate(_peer: Peer, body: Ask) -> Answer:
        return Answer(body.vm_id, accepted=True, score=1.5)

    @made.method("cpu", type(None))
    async def cpu(_peer: Peer, _body: None) -> float:
        return time.process_time()

    return made


async def http_estimate(request: web.Request) -> web.Response:
    body = msgspec.json.decode(await request.read(), type=Ask)
    answer = msgspec.json.encode(Answer(body.vm_id, accepted=True, score=1.5))
    return web.Response(body=answer, content_type="application/json")


async def http_cpu(_request: web.Request) -> web.Response:
    return web.Response(text=json.dumps(time.process_time()))


async def serve(directory: Path, pipe: Connection) -> None:
    store = TrustStore(directory)
    server = ChannelServer(store.server_context(), handlers(), CLOCK)
    await server.listen("127.0.0.1", 0)
    ports = [server.port]
    app = web.Application()
    app.router.add_post("/estimate", http_estimate)
    app.router.add_get("/cpu", http_cpu)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    for context in (None, store.server_context()):
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
    ports += [address[1] for address in runner.addresses]
    pipe.send(ports)
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    await runner.cleanup()
    await server.close()


def run_server(directory: Path, pipe: Connection) -> None:
    quiet()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(directory, pipe))


def quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


async def measure(name: str, call: Call, server_cpu: Callable[[], Awaitable[float]]) -> None:
    for concurrency, call_count in ((1, 3000), (64, 20000)):
        await run(call, concurrency, 500)
        cpu_before, own_before = await server_cpu(), time.process_time()
        started = time.perf_counter()
        latencies = await run(call, concurrency, call_count)
        took_s = time.perf_counter() - started
        own_us = (time.process_time() - own_before) / call_count * 1e6
        server_us = (await server_cpu() - cpu_before) / call_count * 1e6
        quantiles = statistics.quantiles(latencies, n=100)
        print(
            f"{name:<18} {concurrency:>4} at once  {call_count / took_s:>8.0f} calls/s  "
            f"p50 {quantiles[49] * 1e6:>6.0f} µs  p99 {quantiles[98] * 1e6:>6.0f} µs  "
            f"CPU/call: client {own_us:>5.1f} µs, server {server_us:>5.1f} µs"
        )


async def run(call: Call, concurrency: int, call_count: int) -> list[float]:
    latencies: list[float] = []

    async def worker() -> None:
        for _ in range(call_count // concurrency):
            started = time.perf_counter()
            await call()
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return latencies


async def measure_all(directory: Path, ports: list[int]) -> None:
    store = TrustStore(directory)
    address = f"127.0.0.1:{ports[0]}"
    async with ChannelClient(address, store.client_context(), Handlers(), CLOCK) as client:
        await client.wait_ready(5)

        async def over_channel() -> None:
            await client.call("estimate", ASK, Answer)

        await measure("channel, mTLS", over_channel, lambda: client.call("cpu", None, float))
    for name, scheme, port in (("aiohttp", "http", ports[1]), ("aiohttp, mTLS", "https", ports[2])):
        await measure_http(name, f"{scheme}://127.0.0.1:{port}", store.client_context())


async def measure_http(name: str, url: str, context: ssl.SSLContext) -> None:
    connector = aiohttp.TCPConnector(limit=64, ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def over_http() -> None:
            async with session.post(f"{url}/estimate", data=msgspec.json.encode(ASK)) as response:
                msgspec.json.decode(await response.read(), type=Answer)

        async def cpu() -> float:
            async with session.get(f"{url}/cpu") as response:
                return float(await response.text())

        await measure(name, over_http, cpu)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    quiet()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        identity = Identity(FederationId("fr"), SiteId("marne"), NodeRole.CONTROLLER, NodeId("c1"))
        TrustStore(directory).found(identity, now_s=CLOCK.now_s())
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=run_server, args=(directory, theirs)
        )
        process.start()
        ports = ours.recv()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measure_all(directory, ports))
        ours.send(None)
        process.join()


if __name__ == "__main__":
    main()
