"""A QEMU process that outlives the agent: launched apart, recognised again, ended by its pid.

A process is known by pid, start time in clock ticks and the machine's boot id; the three together
are never reused, so an agent that comes back cannot mistake another process for a guest.
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
BACKLOG: Final = 4  # one client at a time; others wait or are told


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMark:
    """What tells one process from all others."""

    pid: int
    start_ticks: int
    boot_id: str


def boot_id() -> str:
    """Return the id of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat_fields(pid: int) -> list[str] | None:
    """Return /proc/PID/stat after the name in parentheses, or None when there is no process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def mark_of(pid: int) -> ProcessMark | None:
    """Return the mark of a living process; None when it is gone or a zombie."""
    fields = _stat_fields(pid)
    if fields is None or fields[0] in {"Z", "X"}:
        return None
    return ProcessMark(pid=pid, start_ticks=int(fields[19]), boot_id=boot_id())


def is_alive(mark: ProcessMark) -> bool:
    """Tell whether the marked process still runs."""
    return mark_of(mark.pid) == mark


def cpu_seconds(pid: int) -> float:
    """Return the CPU time a process has used, user and system."""
    fields = _stat_fields(pid)
    return 0.0 if fields is None else (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def listen_unix(path: Path, user: int) -> socket.socket:
    """Return a listening Unix socket at `path` (of any length), mode 0600."""
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    path.chmod(0o600)
    if user:
        os.chown(path, user, user)
    listener.listen(BACKLOG)
    return listener


def launch(
    arguments: Sequence[str], *, folder: Path, log: Path, pass_fds: Sequence[int],
    user: int, groups: Sequence[int], environment: Mapping[str, str],
) -> int:  # fmt: skip
    """Start a process in a session of its own; return its pid. No signal to us reaches it.

    It runs as `user`, in a group of the same number and in `groups`; 0: as we do. `environment` is
    added to our own.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(arguments),
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            user=user or None,
            group=user or None,
            extra_groups=groups if user else None,
        )
    child.returncode = 0  # it outlives us on purpose: Python shall neither warn nor wait
    return child.pid


def reap(pid: int) -> bool:
    """Take a child's exit status off the system; tell whether it is no child of ours any more."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


async def wait_gone(mark: ProcessMark, timeout_s: float) -> bool:
    """Wait until the process has ended; False when it has not within `timeout_s`."""
    try:
        handle = os.pidfd_open(mark.pid)
    except ProcessLookupError:
        return True
    try:
        if not is_alive(mark):
            return True
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        loop.add_reader(handle, lambda: None if ended.done() else ended.set_result(None))
        try:
            async with asyncio.timeout(timeout_s):
                await ended
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(handle)
        return True
    finally:
        os.close(handle)


def kill(mark: ProcessMark) -> None:
    """Send SIGKILL to the marked process, and to no other that may have got its pid."""
    try:
        handle = os.pidfd_open(mark.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(mark):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
