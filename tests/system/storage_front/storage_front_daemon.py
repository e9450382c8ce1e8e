"""A real storage daemon on loopback, as the tests of this folder drive it."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.channel.identity import Identity
from nuage.trust import pki
from nuage.trust.files import write_atomically

START_TIMEOUT_S = 10.0
MIB = 1 << 20
IQN = "iqn.2015-01.fr.nuage:test"
SECRET = "a-secret-of-24-characters"

Json = dict[str, object]


class Refused(Exception):
    """The daemon's error answer; `code` is its code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def free_port() -> int:
    """Return a TCP port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Tls:
    """A node's identity in `folder`, as `cert.pem`, `key.pem`, `ca.pem` and `crl.pem`."""

    folder: Path
    authority: pki.Authority
    identity: Identity

    def issue(self) -> x509.Certificate:
        """Give the node a new key and certificate, put in place as its agent does."""
        key = Ed25519PrivateKey.generate()
        leaf = pki.issue_daemon(self.authority, key.public_key(), self.identity, now_s=time.time())
        write_atomically(self.folder / "key.pem", pki.pem_of_key(key), secret=True)
        chain = pki.pem_of(leaf, self.authority.certificate)
        write_atomically(self.folder / "cert.pem", chain.encode())
        return leaf

    def believe(self, lists: str) -> None:
        """Put revocation lists in place."""
        write_atomically(self.folder / "crl.pem", lists.encode())


@dataclass
class Daemon:
    """One process; `restart` starts it again on the same ports and data."""

    binary: Path
    folder: Path
    iscsi: list[int]
    nbd: int
    replica: int = 0
    tls: Tls | None = None
    group: int = 1
    more: list[str] = field(default_factory=list)  # of the command line
    host: str = "127.0.0.1"  # as initiators see this machine
    bound: str = "127.0.0.1"  # where it listens
    inside: tuple[str, ...] = ()  # the command that runs it elsewhere, in a namespace
    process: subprocess.Popen[bytes] | None = None
    lines: list[Json] = field(default_factory=list)

    def start(self) -> None:
        """Run the daemon and connect to its control socket."""
        self.folder.mkdir(exist_ok=True)
        portals = ",".join(f"{self.bound}:{port}" for port in self.iscsi)
        command = [*self.inside, str(self.binary), "--dir", str(self.folder / "data"), *self.more]
        command += ["--control", str(self.folder / "control"), "--iscsi", portals]
        command += ["--nbd", f"127.0.0.1:{self.nbd},unix:{self.folder / 'nbd'}"]
        portals = ",".join(f"{self.host}:{port}" for port in self.iscsi)
        command += ["--portal-group", str(self.group), "--advertise", portals]
        if self.tls is not None:
            command += ["--replica", f"{self.bound}:{self.replica}"]
            for name in ("cert", "key", "ca", "crl"):
                command += [f"--tls-{name}", str(self.tls.folder / f"{name}.pem")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(self.folder / "control"))
                break
            except OSError:
                self._socket.close()
                if self.process.poll() is not None or time.monotonic() > deadline_s:
                    raise AssertionError(self.log) from None
                time.sleep(0.02)  # noqa: TID251 - a real process comes up
        self._file = self._socket.makefile("rw")

    @property
    def log(self) -> str:
        """What the daemon has written."""
        return (self.folder / "log").read_text()

    def ask(self, op: str, **fields: object) -> Json:
        """Return the answer to a request; other lines go to `lines`."""
        self._file.write(json.dumps({"id": 1, "op": op, **fields}) + "\n")
        self._file.flush()
        for line in self._file:
            answer: Json = json.loads(line)
            match answer:
                case {"error": {"code": str(code), "message": str(message)}}:
                    raise Refused(code, message)
                case {"ok": dict(ok)}:
                    return ok
                case _:
                    self.lines.append(answer)
        raise AssertionError(self.log)

    def begin(self, op: str, **fields: object) -> None:
        """Ask without waiting for an answer, which may never come."""
        self._file.write(json.dumps({"id": 1, "op": op, **fields}) + "\n")
        self._file.flush()

    def head(self, volume: str = "v") -> Json:
        """Return a volume's head as `status` shows it."""
        head = self.ask("status", volume=volume)["head"]
        assert isinstance(head, dict)
        return head

    def wait_until_open(self, volume: str = "v", timeout_s: float = 15.0) -> None:
        """Wait until a replicated head serves."""
        deadline_s = time.monotonic() + timeout_s
        while self.head(volume)["state"] != "open":
            assert time.monotonic() < deadline_s, (self.head(volume), self.log)
            time.sleep(0.05)  # noqa: TID251 - a real process

    def url(self, path: int = 0) -> str:
        """Return the iSCSI URL of the volume's LUN over one of the portals."""
        return f"iscsi://127.0.0.1:{self.iscsi[path]}/{IQN}/0"

    def kill(self) -> None:
        """End the process as a crash does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._hang_up()

    def stop(self) -> int:
        """End the process in good order; its exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(timeout=20)
        self._hang_up()
        return status

    def release(self) -> None:
        """Leave nothing running."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._hang_up()
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def _hang_up(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self._file.close()
        with contextlib.suppress(AttributeError):
            self._socket.close()


def need(program: str) -> None:
    """Skip where a Debian program is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
