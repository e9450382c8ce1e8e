"""The TCP ports of a node's storage daemons: chosen once, and kept over restarts.

The door for TLS is the port after the portal's: V-nodes of other sites go by that
(`model.desired.DiskWish`).
"""

import socket
from pathlib import Path
from typing import Final

import msgspec

from nuage.errors import Unavailable
from nuage.trust.files import write_atomically

PORT_MIN: Final = 21_000
PORT_MAX: Final = 28_999


class DaemonPorts(msgspec.Struct, frozen=True):
    """The TCP ports of one IaaS's daemon on this node."""

    iscsi: int
    replica: int


def choose_ports(path: Path, taken: set[int]) -> DaemonPorts:
    """Return the ports kept in `path`, chosen at the first time among those nobody has."""
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=DaemonPorts)
    free = [port for port in range(PORT_MIN, PORT_MAX, 2) if port not in taken]
    for port in free:
        if _is_free(port) and _is_free(port + 1):
            ports = DaemonPorts(iscsi=port, replica=port + 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, msgspec.json.encode(ports))
            return ports
    raise Unavailable("no ports are left for another storage daemon on this node")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def taken_ports(run_dir: Path) -> set[int]:
    """Return the ports that other daemons of this node have kept."""
    ports: set[int] = set()
    for file in run_dir.glob("*.ports"):
        kept = msgspec.json.decode(file.read_bytes(), type=DaemonPorts)
        ports |= {kept.iscsi, kept.replica}
    return ports
