"""Two sites joined by one line: a V-node at the first, an IO-node at the second, in namespaces."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.system.storage_front.storage_front_daemon import Tls

from nuage.channel.identity import Identity
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole
from nuage.trust import pki

VNODE, IONODE = "10.93.1.20", "10.93.2.120"
HOST = "10.93.2.30"  # of the IO-node's site
PORTAL_PORT = 21_000
CAPTURE_TIMEOUT_S = 10.0


@dataclass
class Federation:
    """A root, and nodes of its sites with their files."""

    folder: Path
    name: FederationId = field(default=FederationId("france"))

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._root = pki.make_root(self.name, time.time())

    def node(self, site: str, role: NodeRole, node: str) -> Tls:
        """Return a node's identity, in a folder of its own."""
        site_id, key = SiteId(site), Ed25519PrivateKey.generate()
        authority = pki.Authority(
            pki.issue_site_authority(
                self._root, key.public_key(), federation_id=self.name, site_id=site_id,
                now_s=time.time(),
            ),
            key,
        )  # fmt: skip
        folder = self.folder / node
        folder.mkdir()
        tls = Tls(folder, authority, Identity(self.name, site_id, role, NodeId(node)))
        tls.issue()
        tls.believe("")
        (folder / "ca.pem").write_text(pki.pem_of(self._root.certificate))
        return tls


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@dataclass
class Line:
    """The line between the sites. Each end's interface is `wan`."""

    vnode: str
    ionode: str

    def inside(self, namespace: str) -> tuple[str, ...]:
        """Return the command that runs another one in a namespace."""
        return ("ip", "netns", "exec", namespace)

    @contextlib.contextmanager
    def captured(self, file: Path) -> Iterator[None]:
        """Write all that crosses the line to `file`."""
        command = [
            *self.inside(self.vnode),
            "tcpdump",
            "--immediate-mode",
            "-B",
            "32768",
            "-i",
            "wan",
            "-U",
            "-w",
        ]
        with (file.with_suffix(".log")).open("wb") as told:
            process = subprocess.Popen([*command, str(file)], stderr=told)
        deadline_s = time.monotonic() + CAPTURE_TIMEOUT_S
        while "listening" not in file.with_suffix(".log").read_text():
            assert time.monotonic() < deadline_s
            time.sleep(0.02)  # noqa: TID251 - a real process comes up
        try:
            yield
        finally:
            size_bytes, still = -1, 0
            while still < 3:  # it lags behind on a busy machine
                time.sleep(0.2)  # noqa: TID251
                known, size_bytes = size_bytes, file.stat().st_size
                still = still + 1 if known == size_bytes else 0
            process.send_signal(signal.SIGINT)
            process.wait(timeout=CAPTURE_TIMEOUT_S)

    def on_vnode(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command on the V-node."""
        return subprocess.run(
            [*self.inside(self.vnode), *command],
            capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip

    def script(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a script of this folder on the V-node."""
        return self.on_vnode(sys.executable, str(Path(__file__).with_name(name)), *words)


@contextlib.contextmanager
def two_sites() -> Iterator[Line]:
    """Make both namespaces and the line, and take them away again."""
    line = Line(f"nqv{os.getpid() % 10000}", f"nqi{os.getpid() % 10000}")
    try:
        for namespace in (line.vnode, line.ionode):
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("link", "add", "wan", "netns", line.vnode, "type", "veth", "peer", "wan", "netns", line.ionode)  # fmt: skip # noqa: E501
        for namespace, own, other in (
            (line.vnode, VNODE, "10.93.2.0/24"), (line.ionode, IONODE, "10.93.1.0/24"),
        ):  # fmt: skip
            _ip("-n", namespace, "addr", "add", f"{own}/32", "dev", "wan")
            _ip("-n", namespace, "link", "set", "wan", "up")
            _ip("-n", namespace, "route", "add", other, "dev", "wan", "src", own)
        _ip("-n", line.ionode, "addr", "add", f"{HOST}/32", "dev", "lo")
        yield line
    finally:
        for namespace in (line.vnode, line.ionode):
            subprocess.run(["ip", "netns", "del", namespace], check=False)
