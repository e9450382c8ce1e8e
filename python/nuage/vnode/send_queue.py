"""Keeps what QEMU sends of a guest's memory from waiting in the kernel.

QEMU holds a guest still once what is left takes less than its limit to send, and takes for sent
what a socket has taken. A socket takes megabytes, which a line between sites needs a quarter of a
second for: the guest would stand still all that time, and QEMU would not know. A send queue that
holds little beyond what is on its way keeps QEMU's word. The kernel has one value for a network
namespace and none that QEMU could be told to set on its socket.
"""

from pathlib import Path
from typing import Final

import structlog

NOTSENT_LOWAT: Final = Path("/proc/sys/net/ipv4/tcp_notsent_lowat")
UNBOUNDED: Final = 2**32 - 1  # the kernel's default
# 1 ms of 1 Gb/s, 10 ms of 100 Mb/s: less wakes the sender more often than fast lines can bear.
UNSENT_BYTES_MAX: Final = 128 * 1024

_log = structlog.get_logger("nuage.vnode")


def shorten_send_queues(setting: Path = NOTSENT_LOWAT) -> None:
    """Bound what sockets of this network namespace keep unsent, unless the operator has."""
    try:
        if int(setting.read_text()) == UNBOUNDED:
            setting.write_text(f"{UNSENT_BYTES_MAX}\n")
    except (OSError, ValueError) as error:
        _log.warning("send queues stay long: guests pause longer than told", error=str(error))
