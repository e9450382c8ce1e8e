"""What the UDP sockets of a wireguard-go lack: wider buffers, and packets that may be cut.

Debian's wireguard-go leaves its sockets at the kernel's default, some 90 packets: two super-frames.
What comes more while the process is not on a processor is lost, and TCP sends it again: a tenth to
a fifth of a stream, measured (docs/guide/benchmarks.md). Later versions ask for `BUFFER_BYTES`
themselves; here it is done from outside, on a duplicate of each socket (pidfd_getfd, Linux 5.6).

Over a line narrower than 1500 bytes what a trunk promises goes in two IP fragments (`trunk`). The
kernel's WireGuard leaves "don't fragment" clear; a socket sets it unless it is told not to, and who
narrows the path would have to be heard (ICMP), which providers often prevent.
"""

import ctypes
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

BUFFER_BYTES: Final = 7 << 20  # as wireguard-go itself since 2023 (conn/controlfns.go)
SYS_PIDFD_GETFD: Final = 438  # on every architecture
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
IP_MTU_DISCOVER: Final = 10
IP_PMTUDISC_DONT: Final = 0


def prepare(tunnel: str) -> None:
    """Prepare the UDP sockets of the wireguard-go of `tunnel`, whoever started it.

    Raises:
        OSError: the kernel refuses: too old, or not allowed.
    """
    for there in sockets_of(tunnel):
        for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
            there.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        if there.family == socket.AF_INET:  # IPv6 is cut by its sender alone
            there.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)


def sockets_of(tunnel: str) -> Iterator[socket.socket]:
    """Yield a duplicate of each UDP socket of the wireguard-go of `tunnel`, open until the next.

    Raises:
        OSError: the kernel refuses: too old, or not allowed.
    """
    for pid in _processes(tunnel):
        yield from _sockets_of(pid)


def _processes(tunnel: str) -> list[int]:
    """Return the wireguard-go of a tunnel: it has put itself into the background."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # not a process, or gone
            continue
        if Path(os.fsdecode(words[0])).name == "wireguard-go" and words[1:2] == [tunnel.encode()]:
            found.append(int(process.name))
    return found


def _sockets_of(pid: int) -> Iterator[socket.socket]:
    process = os.pidfd_open(pid)
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if not str(link.readlink()).startswith("socket:"):
                continue
            with _duplicate(process, int(link.name)) as there:
                is_ip = there.family in (socket.AF_INET, socket.AF_INET6)
                if is_ip and there.type == socket.SOCK_DGRAM:
                    yield there
    finally:
        os.close(process)


def _duplicate(process: int, descriptor: int) -> socket.socket:
    """Return another process's socket as one of ours, too."""
    libc = ctypes.CDLL(None, use_errno=True)
    ours = libc.syscall(SYS_PIDFD_GETFD, process, descriptor, 0)
    if ours < 0:
        raise OSError(ctypes.get_errno(), f"descriptor {descriptor} of another process")
    return socket.socket(fileno=ours)
