"""Where a lab keeps what must outlive its processes: paths, cuts, services, pids.

::

    <state>/description.json   what the lab was built from
    <state>/hardware.pid       pid and start time of the hardware process
    <state>/control.sock       its socket
    <state>/bmc.pem, bmc.key   certificate of all BMCs and PDUs, self-signed, and its key
    <state>/cuts.json          lines that are cut
    <state>/weather.json       outside temperatures that were set
    <state>/nodes/<node>/      services.json, <service>.pid, log/<service>.log, bpf/
    <disks>/<node>/<disk>/     a directory for each disk: what is in it survives power cycles
"""

import os
from pathlib import Path
from typing import Final

import msgspec

from nuage.errors import InvalidRequest
from nuage.lab.cabling import Cut
from nuage.lab.control import Service
from nuage.lab.description import LabDescription
from nuage.lab.kernel import process_start

STATE_ROOT: Final = Path("/run/nuage/lab")
DISK_ROOT: Final = Path("/var/lib/nuage/lab")
SOCKET_PATH_BYTES_MAX: Final = 107  # sockaddr_un


class StateDirectory:
    """The files of one lab."""

    def __init__(self, path: Path, disks: Path) -> None:
        self.path = path
        self.disks = disks
        if len(os.fsencode(self.socket)) > SOCKET_PATH_BYTES_MAX:
            raise InvalidRequest(
                f"{self.socket} is too long for a Unix socket ({SOCKET_PATH_BYTES_MAX} bytes)",
                field="state_dir",
                hint="choose a shorter state directory",
            )

    @classmethod
    def of(cls, lab_name: str, path: Path | None) -> "StateDirectory":
        """Return the lab's directory: the given one, or the machine's place for labs."""
        if path is None:
            return cls(STATE_ROOT / lab_name, DISK_ROOT / lab_name)
        return cls(path, path / "disks")

    @property
    def socket(self) -> Path:
        """Return the control socket."""
        return self.path / "control.sock"

    @property
    def pidfile(self) -> Path:
        """Return the hardware process's pid file."""
        return self.path / "hardware.pid"

    @property
    def certificate(self) -> Path:
        """Return the certificate that all BMCs and PDUs show: trust this and no other."""
        return self.path / "bmc.pem"

    @property
    def key(self) -> Path:
        """Return the key of the certificate."""
        return self.path / "bmc.key"

    @property
    def built(self) -> Path:
        """Return the mark of a fabric that was built to the end."""
        return self.path / "built"

    def node(self, node: str) -> Path:
        """Return a node's directory."""
        return self.path / "nodes" / node

    def log(self, node: str, service: str) -> Path:
        """Return the file that a service's output goes to."""
        return self.node(node) / "log" / f"{service}.log"

    def disk(self, node: str, disk: str) -> Path:
        """Return the directory that stands for a node's disk."""
        return self.disks / node / disk

    def bpf(self, node: str) -> Path:
        """Return where the node's BPF file system is mounted."""
        return self.node(node) / "bpf"

    def load_description(self) -> LabDescription | None:
        """Return what the lab was built from, or None when there is no lab."""
        try:
            raw = (self.path / "description.json").read_bytes()
        except OSError:
            return None
        return msgspec.json.decode(raw, type=LabDescription)

    def save_description(self, description: LabDescription) -> None:
        """Keep what the lab is built from."""
        write_whole(self.path / "description.json", msgspec.json.encode(description))

    def load_cuts(self) -> frozenset[Cut]:
        """Return the lines that are cut."""
        try:
            raw = (self.path / "cuts.json").read_bytes()
        except OSError:
            return frozenset()
        return frozenset(msgspec.json.decode(raw, type=list[Cut]))

    def save_cuts(self, cuts: frozenset[Cut]) -> None:
        """Keep which lines are cut."""
        write_whole(self.path / "cuts.json", msgspec.json.encode(sorted(cuts)))

    def load_weather(self) -> dict[str, float]:
        """Return the temperatures that were set."""
        try:
            return msgspec.json.decode(
                (self.path / "weather.json").read_bytes(), type=dict[str, float]
            )
        except OSError:
            return {}

    def save_weather(self, celsius: dict[str, float]) -> None:
        """Keep the temperatures."""
        write_whole(self.path / "weather.json", msgspec.json.encode(celsius))

    def load_services(self, node: str) -> tuple[Service, ...]:
        """Return what a node's init starts."""
        try:
            raw = (self.node(node) / "services.json").read_bytes()
        except OSError:
            return ()
        return tuple(msgspec.json.decode(raw, type=list[Service]))

    def save_services(self, node: str, services: tuple[Service, ...]) -> None:
        """Keep what a node's init starts."""
        directory = self.node(node)
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / "services.json", msgspec.json.encode(services))


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file at one stroke: a reader sees the old or the new, never half."""
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(data)
    beside.replace(path)


def write_pid(path: Path, pid: int) -> None:
    """Note a process by pid and start time, so that a reused pid is never taken for it."""
    write_whole(path, f"{pid} {process_start(pid)}\n".encode())


def read_pid(path: Path) -> int | None:
    """Return the pid noted at `path` if that very process still runs."""
    try:
        fields = path.read_text(encoding="ascii").split()
        pid, start = int(fields[0]), int(fields[1])
    except (OSError, ValueError, IndexError):
        return None
    return pid if process_start(pid) == start else None
