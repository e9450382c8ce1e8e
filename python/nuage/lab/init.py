"""A node's init: starts its daemons, restarts them with back-off, ends them when asked.

Like systemd with `Restart=always`: 0.1 s after the first exit, twice as long after each
further one up to 5 s, from the beginning again once a daemon has run for 10 s.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from nuage.clock import Clock
from nuage.lab.cgroup import Cgroup
from nuage.lab.control import Service, ServiceStatus
from nuage.lab.launch import Place
from nuage.lab.state import StateDirectory, read_pid, write_pid

RESTART_FIRST_S: Final = 0.1
RESTART_MAX_S: Final = 5.0
PROVEN_AFTER_S: Final = 10.0
LOG_BYTES_MAX: Final = 16 * 1024 * 1024  # then the log moves aside, one generation
STOP_PATIENCE_S: Final = 10.0  # for the daemons; then everything that is left is asked
POLL_S: Final = 0.05

_log = structlog.get_logger(__name__)


class Restarts:
    """How long to wait before the next start. Pure."""

    def __init__(self) -> None:
        self._delay_s = RESTART_FIRST_S

    def after_exit(self, ran_s: float) -> float:
        """Return the wait before the next start of a daemon that ran for `ran_s`."""
        if ran_s >= PROVEN_AFTER_S:
            self._delay_s = RESTART_FIRST_S
        delay_s = self._delay_s
        self._delay_s = min(RESTART_MAX_S, 2 * delay_s)
        return delay_s


class _Unit:
    """One daemon under supervision."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.pid = 0
        self.starts = 0
        self.last_exit: int | None = None
        self.task: asyncio.Task[None] | None = None


class Init:
    """The init of one node; alive while the node's operating system is."""

    def __init__(self, place: Place, cgroup: Cgroup, state: StateDirectory, clock: Clock) -> None:
        self._place = place
        self._cgroup = cgroup
        self._state = state
        self._clock = clock
        self._units: dict[str, _Unit] = {}
        self._running = False

    def status(self) -> tuple[ServiceStatus, ...]:
        """Return how the daemons are."""
        return tuple(
            ServiceStatus(unit.service.name, unit.pid, unit.starts, unit.last_exit)
            for unit in self._units.values()
        )

    def start(self, services: tuple[Service, ...], *, adopt: bool = False) -> None:
        """Start supervising; with `adopt`, daemons that run already are taken over."""
        self._running = True
        for service in services:
            self._start_unit(service, adopt=adopt)

    async def change(self, services: tuple[Service, ...]) -> None:
        """Bring a running node to another set of daemons."""
        if not self._running:
            return
        wanted = {service.name: service for service in services}
        for name, unit in list(self._units.items()):
            if wanted.get(name) != unit.service:
                await self._stop_unit(unit)
                del self._units[name]
        for name, service in wanted.items():
            if name not in self._units:
                self._start_unit(service, adopt=False)

    async def terminate(self) -> None:
        """End as a shutdown does: ask the daemons, then all that is left; wait until empty."""
        self._running = False
        for unit in self._units.values():
            _cancel(unit)
            _signal(unit.pid, signal.SIGTERM)
        asked_s = self._clock.monotonic_s()
        rest_asked = False
        while self._cgroup.populated():
            mains_left = any(_alive(unit.pid) for unit in self._units.values())
            late = self._clock.monotonic_s() - asked_s > STOP_PATIENCE_S
            if not rest_asked and (late or not mains_left):
                rest_asked = True
                for pid in self._cgroup.pids():
                    _signal(pid, signal.SIGTERM)
            await self._clock.sleep(POLL_S)

    def forget(self) -> None:
        """Stop supervising; the processes end by other means."""
        self._running = False
        for unit in self._units.values():
            _cancel(unit)
        self._units.clear()

    def _pidfile(self, service: Service) -> Path:
        return self._state.node(self._place.node) / f"{service.name}.pid"

    def _start_unit(self, service: Service, *, adopt: bool) -> None:
        unit = self._units[service.name] = _Unit(service)
        unit.task = asyncio.create_task(self._supervise(unit, adopt=adopt))

    async def _stop_unit(self, unit: _Unit) -> None:
        _cancel(unit)
        _signal(unit.pid, signal.SIGTERM)
        deadline_s = self._clock.monotonic_s() + STOP_PATIENCE_S
        while _alive(unit.pid):
            if self._clock.monotonic_s() > deadline_s:
                _signal(unit.pid, signal.SIGKILL)
            await self._clock.sleep(POLL_S)

    async def _supervise(self, unit: _Unit, *, adopt: bool) -> None:
        restarts = Restarts()
        running_pid = read_pid(self._pidfile(unit.service)) if adopt else None
        while True:
            began_s = self._clock.monotonic_s()
            if running_pid is not None:
                unit.pid = running_pid
                await _wait_pidfd(running_pid)
                running_pid, unit.last_exit = None, None
            else:
                unit.last_exit = await self._run(unit)
            unit.pid = 0
            delay_s = restarts.after_exit(self._clock.monotonic_s() - began_s)
            _log.info(
                "service ended", node=self._place.node, service=unit.service.name,
                exit=unit.last_exit, restart_in_s=delay_s,
            )  # fmt: skip
            await self._clock.sleep(delay_s)

    async def _run(self, unit: _Unit) -> int:
        service = unit.service
        unit.starts += 1
        log = self._state.log(self._place.node, service.name)
        with _open_log(log) as output:
            process = await asyncio.create_subprocess_exec(
                *self._place.command(service.argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**_base_environment(), **service.env},
                cwd=service.directory,
                start_new_session=True,
            )
        unit.pid = process.pid
        with contextlib.suppress(OSError):
            write_pid(self._pidfile(service), process.pid)
        return await process.wait()


def _base_environment() -> dict[str, str]:
    path = os.environ.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    return {"PATH": path, "LANG": "C.UTF-8", "HOME": "/root"}


@contextlib.contextmanager
def _open_log(path: Path) -> Iterator[int]:
    """Open a log to append to, moving a full one aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)


def _cancel(unit: _Unit) -> None:
    if unit.task is not None:
        unit.task.cancel()
        unit.task = None


def _signal(pid: int, number: signal.Signals) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    if not pid:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return not stat.rpartition(")")[2].lstrip().startswith("Z")


async def _wait_pidfd(pid: int) -> None:
    """Wait for the end of a process that is not our child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
