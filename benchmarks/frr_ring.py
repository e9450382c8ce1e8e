"""A ring of IP routers that FRR runs, IS-IS with BFD: the peer beside ours in `cut_gap`.

Each router is a network namespace with its own zebra, bfdd and isisd, started by hand with all
their files in one folder; nothing of the machine's own FRR is touched. They run real-time at the
lowest priority, as our daemons do, as the package's own user. SPF runs at once after a change (RFC 8405's
first delay 0, then 20 ms).
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.system.bpf.bpf_netns import inside, run

BIN = Path("/usr/lib/frr")
DAEMONS = ("zebra", "bfdd", "isisd")
USER = "frr"
SOCKET_WAIT_S = 20.0
STOP_WAIT_S = 10.0


def why_not() -> str:
    """Return why there can be no such ring here, empty when there can."""
    missing = [name for name in DAEMONS if not (BIN / name).exists()]
    return f"FRR is not installed: no {BIN / missing[0]} (Debian: frr)" if missing else ""


@dataclass(frozen=True)
class Timers:
    """BFD's, in milliseconds; both directions."""

    interval_ms: int
    multiplier: int


def link_address(link: int, end: int) -> str:
    """Return the address of an end (0: right of a router, 1: left of the next) of a link."""
    return f"10.72.{link}.{end + 1}"


def host_address(number: int) -> str:
    """Return the address of the host behind a router."""
    return f"10.71.{number}.2"


def configuration(number: int, timers: Timers) -> dict[str, str]:
    """Return what each daemon of a router reads."""
    links = "".join(
        f"interface {name}\n"
        " ip router isis cut\n"
        " isis circuit-type level-1\n"
        " isis network point-to-point\n"
        " isis hello-interval 1\n"
        " isis bfd\n"
        " isis bfd profile cut\n"
        "exit\n"
        for name in ("left", "right")
    )
    return {
        "zebra": f"hostname r{number}\n",
        "bfdd": "bfd\n"
        " profile cut\n"
        f"  detect-multiplier {timers.multiplier}\n"
        f"  receive-interval {timers.interval_ms}\n"
        f"  transmit-interval {timers.interval_ms}\n"
        " exit\n"
        "exit\n",
        "isisd": f"hostname r{number}\n"
        f"{links}"
        "interface guest\n"
        " ip router isis cut\n"
        " isis passive\n"
        "exit\n"
        "router isis cut\n"
        f" net 49.0001.0000.0000.000{number + 1}.00\n"
        " is-type level-1\n"
        " lsp-gen-interval 1\n"
        " spf-interval 1\n"
        " spf-delay-ietf init-delay 0 short-delay 20 long-delay 100 holddown 400"
        " time-to-learn 100\n"
        "exit\n",
    }


@dataclass
class FrrRing:
    """The daemons of all routers, and whether they have all found each other."""

    nodes: list[str]
    timers: Timers
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="cut-frr-")))
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Give the links their addresses and start the daemons.

        Raises:
            SystemExit: a daemon ends at once; its words are shown.
        """
        count = len(self.nodes)
        self.folder.chmod(0o755)  # the daemons are not root
        for n, node in enumerate(self.nodes):
            for setting in ("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"):
                run("ip", "netns", "exec", node, "sysctl", "-qw", setting)
            for name, address in (
                ("right", f"{link_address(n, 0)}/30"),
                ("left", f"{link_address((n - 1) % count, 1)}/30"),
                ("guest", f"10.71.{n}.1/24"),
            ):
                run("ip", "-n", node, "addr", "add", address, "dev", name)
        for n, node in enumerate(self.nodes):
            self._start_router(n, node)

    def _start_router(self, number: int, node: str) -> None:
        home = self.folder / node
        home.mkdir()
        shutil.chown(home, USER, USER)
        for name, text in configuration(number, self.timers).items():
            file = home / f"{name}.conf"
            file.write_text(text)
            words = [
                "ip", "netns", "exec", node, "chrt", "-r", "1", str(BIN / name),
                "-f", str(file), "-i", str(home / f"{name}.pid"), "-z", str(home / "zserv"),
                "--vty_socket", str(home), "-P", "0",
                "--log", f"file:{home / name}.log",
            ]  # fmt: skip
            if name == "bfdd":
                words += ["--bfdctl", str(home / "bfdd.sock")]
            with (home / f"{name}.out").open("wb") as out:
                self._running.append(subprocess.Popen(words, stdout=out, stderr=out))
            self._await(home, name)

    def _await(self, home: Path, name: str) -> None:
        deadline_s = time.monotonic() + SOCKET_WAIT_S
        while not (home / f"{name}.vty").exists():
            if self._running[-1].poll() is not None or time.monotonic() > deadline_s:
                told = (home / f"{name}.out").read_text()
                self.stop()
                raise SystemExit(f"FRR's {name} does not start: {told}")
            time.sleep(0.05)

    def is_whole(self) -> bool:
        """Tell whether all BFD sessions are up and the hosts are reached by the direct link."""
        return all(
            self._sessions(node).count("up") == 2 and self._goes_straight(n, node)
            for n, node in enumerate(self.nodes)
        )

    def _sessions(self, node: str) -> list[str]:
        words = ("vtysh", "--vty_socket", str(self.folder / node), "-c", "show bfd peers json")
        told = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        try:
            return [peer["status"] for peer in json.loads(told[told.find("[") :])]
        except (ValueError, KeyError, TypeError):
            return []

    def _goes_straight(self, number: int, node: str) -> bool:
        neighbour = (number + 1) % len(self.nodes)
        told = inside(node, "ip", "route", "get", host_address(neighbour)).stdout
        return " dev right " in told

    def stop(self) -> None:
        """End the daemons."""
        for process in reversed(self._running):
            process.terminate()
        for process in self._running:
            try:
                process.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def version() -> str:
    """Return which FRR is measured."""
    words = (str(BIN / "zebra"), "--version")
    told = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return told.splitlines()[0] if told else f"FRR in {BIN}, pid {os.getpid()}"
