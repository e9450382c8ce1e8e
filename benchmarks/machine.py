"""What the figures were measured on, and how much the processes cost: read from /proc."""

import atexit
import contextlib
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LOOP_COUNT = 1_000_000


def describe() -> str:
    """Return the machine in one line, with its load: figures of a busy machine are too high."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_kib = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"machine: {model}, {os.cpu_count()} cores, {memory_kib / 1024**2:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}, load {load}, "
        f"a loop of a million takes {loop_cpu_ms():.0f} ms of CPU"
    )


def loop_cpu_ms() -> float:
    """Return what a fixed loop of Python costs now: the cores of a rented machine are not always
    equally fast, and figures of different hours compare only by the ratio of this one.
    """
    return sorted(_loop_s(LOOP_COUNT) for _ in range(3))[1] * 1000


def _loop_s(count: int) -> float:
    begun_s = time.thread_time()
    total = 0
    for number in range(count):
        total += number & 7
    return time.thread_time() - begun_s


class Pace:
    """What the loop costs while a run goes on, when both threads of a core may be busy."""

    def __init__(self) -> None:
        self._samples_s: list[float] = []

    def sample(self) -> None:
        """Time a fiftieth of the loop; a millisecond."""
        self._samples_s.append(_loop_s(LOOP_COUNT // 50))

    @property
    def loop_ms(self) -> float:
        """Return what the loop took on average, in ms of CPU."""
        return sum(self._samples_s) / max(len(self._samples_s), 1) * 50_000


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def machine_busy_seconds() -> float:
    """Return the CPU seconds that the whole machine has used since its start."""
    fields = [int(f) for f in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / TICKS_PER_S


@dataclass(frozen=True)
class Memory:
    """Resident and proportional size; the latter counts a shared page once among its users."""

    rss_mib: float
    pss_mib: float


def memory_of(pid: int) -> Memory:
    """Return a process's memory."""
    values = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) / 1024
    return Memory(values["Rss"], values["Pss"])


def switches_of(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep: its wake-ups."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                count += int(line.split()[1])
    return count


def blocks_written_of(pid: int) -> int:
    """Return how many blocks of 4 KiB a process has had written."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes"):
            return int(line.split()[1]) // 4096
    return 0


def percentile(values: list[float], share: float) -> float:
    """Return the value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def cpu_seconds_of_self() -> float:
    """Return the CPU time of this process."""
    return cpu_seconds(os.getpid())


def go_first(pid: int) -> None:
    """Let a process and its session run before everybody else's (root): for a busy machine.

    The session may be that of a shell which lives on: it goes back when this program ends.
    """
    group = Path(f"/proc/{pid}/autogroup")
    former = group.read_text().split()[-1]
    group.write_text("-19")

    def go_back() -> None:
        with contextlib.suppress(OSError):
            group.write_text(former)

    atexit.register(go_back)
    os.setpriority(os.PRIO_PROCESS, pid, -10)


def pids_of_lab(name: str) -> list[int]:
    """Return every process of a lab: those in its nodes' cgroups, and its hardware's."""
    inside, path = f"/nuage-lab/{name}/", f"/nuage/lab/{name}"
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            groups = (directory / "cgroup").read_text()
            command = (directory / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if command and (inside in groups or f"{path}/" in command or f"{path}\0" in command):
            found.append(int(directory.name))
    return sorted(found)


def command_of(pid: int) -> str:
    """Return what a process is, in a word or two: a daemon's role, else its program."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if "nuage.cli.main" in words:
        return words[words.index("nuage.cli.main") + 1]
    if "-m" in words[:3]:
        return words[words.index("-m") + 1]
    return Path(words[0]).name
