"""What every process does alike: event loop, logs, signals, metrics."""

import asyncio
import gc
import json
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

import msgspec
import structlog
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from nuage.channel import parse_address
from nuage.errors import NuageError

STOP_TIMEOUT_S: Final = 10.0
# Records are many, small and without cycles: looking for garbage at every 700th costs a tenth.
GC_THRESHOLD: Final = (10_000, 20, 20)
LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_logs(process: str, node: str, level: str) -> None:
    """Write one JSON object a line on standard error, with process, node and request id."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _bound(process=process, node=node),
            structlog.processors.JSONRenderer(serializer=log_line),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(file=sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )


def log_line(event: structlog.typing.EventDict, **_options: object) -> bytes:
    """Return a log event as JSON; what JSON cannot say is written as Python would show it."""
    try:
        return msgspec.json.encode(event, enc_hook=repr)
    except (ValueError, OverflowError, TypeError):  # bytes of a file name, numbers beyond 64 bits
        return json.dumps(event, default=repr).encode()


def _bound(
    **fields: str,
) -> Callable[[object, str, structlog.typing.EventDict], structlog.typing.EventDict]:
    def add(
        _logger: object, _name: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event.update(fields)
        return event

    return add


def new_registry() -> CollectorRegistry:
    """Return a metrics registry with the process's own figures in it."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


async def serve_metrics(listen: str, registry: CollectorRegistry) -> web.AppRunner:
    """Serve ``/metrics`` and ``/healthz`` on ``host:port``."""

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    async def health(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    application.router.add_get("/healthz", health)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    host, port = parse_address(listen)
    await web.TCPSite(runner, host, port).start()
    return runner


Start = Callable[[], Awaitable[Callable[[], Awaitable[None]]]]


def run_process(start: Start) -> int:
    """Run `start`, wait for SIGTERM or SIGINT, run the stop that it returned; return the exit code.

    An error that `start` raises is told in one line: it is about configuration or surroundings,
    and no stack helps.
    """
    return uvloop.run(_main(start))


async def _main(start: Start) -> int:
    log = structlog.get_logger()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    starting = asyncio.ensure_future(start())
    told = asyncio.ensure_future(stopped.wait())
    await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():  # one that stands by, say
        starting.cancel()
        await asyncio.wait({starting})
        return 0
    try:
        stop = starting.result()
    except (NuageError, OSError) as error:
        told.cancel()
        log.error("start failed", error=str(error), hint=getattr(error, "hint", ""))
        return 1
    log.info("started")
    gc.collect()
    gc.freeze()  # modules and what was loaded live as long as the process: never looked at again
    gc.set_threshold(*GC_THRESHOLD)
    await told
    log.info("stopping")
    try:
        await asyncio.wait_for(stop(), STOP_TIMEOUT_S)
    except TimeoutError:
        log.warning("stopping took too long", after_s=STOP_TIMEOUT_S)
    return 0


class Tasks:
    """The background tasks of a process: one that dies is logged and begun again."""

    RESTART_DELAY_S: Final = 1.0

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("tasks")

    def keep(self, name: str, run: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run `run` for ever."""
        self._add(asyncio.create_task(self._supervise(name, run), name=name))

    def start(self, name: str, work: Coroutine[object, object, None]) -> None:
        """Run `work` once; a NuageError is logged."""
        self._add(asyncio.create_task(self._once(name, work), name=name))

    def _add(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(
        self, name: str, run: Callable[[], Coroutine[object, object, None]]
    ) -> None:
        while True:
            try:
                await run()
            except NuageError as error:
                self._log.warning("task failed", task=name, error=error.message, code=error.code)
            except Exception:  # noqa: BLE001 - the supervisor: a bug must not end a daemon silently
                self._log.exception("task failed", task=name)
            await asyncio.sleep(self.RESTART_DELAY_S)

    async def _once(self, name: str, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except NuageError as error:
            self._log.warning("task failed", task=name, error=error.message, code=error.code)
        except Exception:  # noqa: BLE001 - as above
            self._log.exception("task failed", task=name)

    async def close(self) -> None:
        """Cancel what still runs."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
