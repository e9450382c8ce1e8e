"""A node's processes as one thing: a cgroup (version 2) that counts their CPU and ends them all.

Version 2 is used wherever it is mounted (`/sys/fs/cgroup`, or `…/unified` on a machine that
still has version 1 beside it). Its base counters (`cpu.stat`) and `cgroup.kill` need no
controller, so nothing has to be delegated. `cgroup.kill` ends every process at one stroke,
QEMU and double-forked children included, which is what losing power means.
"""

import contextlib
import time
from pathlib import Path
from typing import Final

from nuage.errors import Unavailable

ROOT_NAME: Final = "nuage-lab"
REMOVE_TRIES_MAX: Final = 200  # killed processes are reaped within milliseconds
REMOVE_PAUSE_S: Final = 0.01


def mount_point() -> Path:
    """Return where cgroup version 2 is mounted, or raise Unavailable."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        fields = line.split(" ")
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise Unavailable(
        "cgroup version 2 is not mounted: the lab counts and ends a node's processes with it",
        hint="mount -t cgroup2 none /sys/fs/cgroup/unified",
    )


class Cgroup:
    """One cgroup: a node's, or the parent of a lab's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_lab(cls, lab_name: str) -> "Cgroup":
        """Return the cgroup that is the parent of all nodes of a lab."""
        return cls(mount_point() / ROOT_NAME / lab_name)

    def child(self, name: str) -> "Cgroup":
        """Return the cgroup below."""
        return Cgroup(self.path / name)

    def create(self) -> None:
        """Make it, with its parents."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"no cgroup can be made at {self.path}: {error}",
                hint="in a container, mount cgroup version 2 writable",
            ) from error

    def enter(self) -> None:
        """Move this process into it."""
        (self.path / "cgroup.procs").write_text("0", encoding="ascii")

    def cpu_seconds(self) -> float:
        """Return the CPU time that its processes have used; 0 when it does not exist."""
        try:
            text = (self.path / "cpu.stat").read_text(encoding="ascii")
        except OSError:
            return 0.0
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            if name == "usage_usec":
                return int(value) / 1e6
        return 0.0

    def pids(self) -> list[int]:
        """Return its processes, those below it included."""
        found: list[int] = []
        for procs in self.path.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found += [int(line) for line in procs.read_text(encoding="ascii").split()]
        return found

    def populated(self) -> bool:
        """Tell whether any process is left in it or below."""
        try:
            return "populated 1" in (self.path / "cgroup.events").read_text(encoding="ascii")
        except OSError:
            return False

    def kill(self) -> None:
        """End everything in it at once (SIGKILL)."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1", encoding="ascii")

    def remove(self) -> None:
        """End everything in it and remove it and those below."""
        if not self.path.exists():
            return
        self.kill()
        for _ in range(REMOVE_TRIES_MAX):
            if not self.populated():
                break
            time.sleep(REMOVE_PAUSE_S)  # noqa: TID251 - waits on the kernel, not on a clock
        below = [entry for entry in self.path.rglob("*") if entry.is_dir()]
        for directory in [*sorted(below, key=lambda p: len(p.parts), reverse=True), self.path]:
            with contextlib.suppress(OSError):
                directory.rmdir()
        if self.path.exists():
            raise Unavailable(f"cgroup {self.path} still has processes after cgroup.kill")
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()  # the last lab takes the common parent along
