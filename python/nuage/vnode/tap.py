"""Opening a tap device, so that an unprivileged QEMU gets a descriptor and no capability."""

import fcntl
import os
import struct
from typing import Final

TUNSETIFF: Final = 0x400454CA
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000  # lets the guest hand over large segments whole


def open_tap(name: str) -> int:
    """Attach to tap `name` in the present network namespace, making it when it is not there.

    Raises:
        OSError: no right to, or another process holds it.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH14x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        fcntl.ioctl(fd, TUNSETIFF, request)
    except OSError:
        os.close(fd)
        raise
    return fd
