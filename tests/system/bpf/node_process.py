"""Nodes whose fabric is a process of its own, in a namespace each (`fabric_node`)."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from nuage.model.fabric import FabricReport

WAIT_S = 120.0
NODE_PROGRAM = Path(__file__).with_name("fabric_node.py")


def configured(folder: Path, *, site: str, address: str, is_edge: bool, more: str = "") -> Path:
    """Write the TOML file of the node that is called like its folder; return its path."""
    folder.mkdir(exist_ok=True)
    role = "edge" if is_edge else "vnode"
    path = folder / f"{role}.toml"
    path.write_text(
        f'state_dir = "{folder / "state"}"\ntrust_dir = "{folder}"\ncontroller = "nobody"\n'
        f'plane = "kernel"\n{more}'
        f'[node]\nnode_id = "{folder.name}"\nsite_id = "{site}"\nrack_id = "rack"\n'
        f'name = "{folder.name}"\nroles = ["{role}"]\naddress = "{address}"\n'
    )
    return path


def until(is_so: Callable[[], bool], what: str) -> float:
    """Wait until something is so; return how long that took."""
    begun_s = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun_s < WAIT_S, what
        time.sleep(0.1)  # noqa: TID251 - waits for processes
    return time.monotonic() - begun_s


class NodeProcess:
    """A node's daemon: started, told, killed. Its plane stays, pinned below `pins`."""

    def __init__(self, space: str, pins: Path, configuration: Path, *, mounts: str = "") -> None:
        self._space, self._configuration = space, configuration
        self._mounts = mounts or f"mount --bind {pins} /sys/fs/bpf"
        self._process: subprocess.Popen[str]

    def start(self) -> None:
        program = f"{self._mounts} && exec {sys.executable} {NODE_PROGRAM}"
        within = ("ip", "netns", "exec", self._space, "sh", "-c", f'{program} "$@"', "sh")
        with self._configuration.with_suffix(".log").open("a") as log:
            self._process = subprocess.Popen(
                (*within, str(self._configuration)), stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
        assert self._answer() == "started"

    def _answer(self) -> str:
        """Return the next answer; the log of what it runs comes by the same way."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() in ("started", "done") or line.startswith("{"):
                return line.strip()
        raise AssertionError(f"{self._configuration} ended")

    def tell(self, order: dict[str, object]) -> str:
        """Give an order; return the answer."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(msgspec.json.encode(order).decode() + "\n")
        stdin.flush()
        return self._answer()

    def report(self) -> FabricReport:
        """Return the fabric as the node sees it."""
        return msgspec.json.decode(self.tell({"tell": True}), type=FabricReport)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
