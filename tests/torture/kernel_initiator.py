"""A guest with Debian's kernel and open-iscsi, given commands over a serial port."""

import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
HOST = "10.0.2.2"  # this machine's loopback, as QEMU's user network shows it
BOOT_TIMEOUT_S = 300.0
COMMAND_TIMEOUT_S = 180.0


def initiator_image() -> Path:
    """Return the guest's initramfs; skip where its packages cannot be had."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools/initiator/build.py")],
        capture_output=True, text=True, timeout=BOOT_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"the initiator's guest is not built: {done.stderr.strip()[-200:]}")
    return Path(done.stdout.strip())


@dataclass
class Failed(Exception):
    """A command ended with a status that is not 0."""

    command: str
    status: int
    text: str

    def __str__(self) -> str:
        return f"{self.command}: status {self.status}\n{self.text}"


class Initiator:
    """One running guest."""

    def __init__(self, image: Path, folder: Path) -> None:
        self._console = folder / "console"
        path = folder / "commands"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()
            server.settimeout(BOOT_TIMEOUT_S)
            self._process = subprocess.Popen(
                ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35",
                 "-m", "384", "-nodefaults", "-nographic", "-no-reboot",
                 "-serial", f"file:{self._console}",
                 "-chardev", f"socket,id=commands,path={path}", "-serial", "chardev:commands",
                 "-kernel", str(image.parent / "vmlinuz"), "-initrd", str(image),
                 "-append", "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable",
                 "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile="],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self._socket, _ = server.accept()
        self._pending = b""
        self._until(b"==ready", BOOT_TIMEOUT_S)

    def _until(self, start: bytes, timeout_s: float) -> tuple[list[bytes], bytes]:
        """Return the lines before the one that begins so, and that one."""
        deadline_s = time.monotonic() + timeout_s
        lines: list[bytes] = []
        while True:
            *whole, self._pending = self._pending.split(b"\n")
            for index, line in enumerate(whole):
                if line.startswith(start):
                    self._pending = b"\n".join([*whole[index + 1 :], self._pending])
                    return lines, line
                lines.append(line.rstrip(b"\r"))
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, (lines, self._console.read_text(errors="replace")[-2000:])
            self._socket.settimeout(left_s)
            data = self._socket.recv(65536)
            assert data, self._console.read_text(errors="replace")[-2000:]
            self._pending += data

    def run(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a line of shell and return what it printed.

        Raises:
            Failed: its status is not 0.
        """
        self._socket.sendall(command.encode() + b"\n")
        lines, end = self._until(b"==end", timeout_s)
        text = b"\n".join(lines).decode(errors="replace").rstrip("\n")
        if status := int(end.split()[1]):
            raise Failed(command, status, text)
        return text

    def wait_for(self, command: str) -> str:
        """Run a line again until it succeeds."""
        deadline_s = time.monotonic() + COMMAND_TIMEOUT_S
        while True:
            try:
                return self.run(command)
            except Failed as failed:
                if time.monotonic() > deadline_s:
                    raise AssertionError(str(failed)) from failed
                time.sleep(0.2)  # noqa: TID251 - a real kernel works on it

    def end(self) -> None:
        """Switch the guest off."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
