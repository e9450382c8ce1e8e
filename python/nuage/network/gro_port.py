"""The veth pair in which stripped TCP is joined into super-frames (`bpf/gro.h` says how and why).

Acts: makes the interfaces, in the network namespace of the calling process. They stand while no
daemon runs, as trunks do.
"""

import os
import socket
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from nuage.network.offload import disable_segmentation, enable_gro
from nuage.tool import run_tool

QUEUES_MAX: Final = 64  # processors beyond share
NAME_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class GroPort:
    """Both ends: what is sent into one comes, joined, out of the other."""

    into: str
    out_of: str
    queues: int


def gro_port_of(node_id: str) -> GroPort:
    """Return the pair of a node. Nodes of one namespace have one each."""
    digits = sha256(f"gro {node_id}".encode()).hexdigest()[:NAME_DIGITS]
    queues = min(os.cpu_count() or 1, QUEUES_MAX)
    return GroPort(f"ngi{digits}", f"ngo{digits}", queues)


async def stand_up(port: GroPort) -> None:
    """Make the pair, unless it is there.

    Raises:
        Unavailable: the kernel refuses; the message has its words.
        TimedOut: `ip` does not answer.
    """
    try:
        socket.if_nametoindex(port.into)
    except OSError:
        queues = ("numtxqueues", str(port.queues), "numrxqueues", str(port.queues))
        await run_tool(
            ("ip", "link", "add", port.into, *queues, "type", "veth",
             "peer", "name", port.out_of, *queues)
        )  # fmt: skip
    disable_segmentation(port.into)  # veth joins only what comes from an end without it
    enable_gro(port.out_of)
    for name in (port.into, port.out_of):
        _no_ipv6(name)
        await run_tool(("ip", "link", "set", name, "mtu", "65535", "up"))


def _no_ipv6(name: str) -> None:
    """Keep the host from speaking there; where it has no IPv6 it does not."""
    setting = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    if setting.exists():
        setting.write_text("1")
