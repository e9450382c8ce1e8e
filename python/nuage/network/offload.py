"""Segmentation and GRO of an interface (SIOCETHTOOL).

Segmentation is off on trunks: a frame that arrives as TRILL cannot be segmented any more, so
nothing longer than the MTU may leave a RBridge. With TSO and GSO off at its trunks the kernel cuts
a guest's super-frame there, each piece with a header of its own (docs/design/dataplane.md).
"""

import array
import fcntl
import socket
import struct
from contextlib import suppress
from typing import Final

SIOCETHTOOL: Final = 0x8946
ETHTOOL_STSO: Final = 0x0000001F
ETHTOOL_SGSO: Final = 0x00000024
ETHTOOL_SGRO: Final = 0x0000002C


def disable_segmentation(interface: str) -> None:
    """Switch TSO and GSO off; an interface that has neither is fine as it is."""
    for command in (ETHTOOL_STSO, ETHTOOL_SGSO):
        with suppress(OSError):
            _set(interface, command, 0)


def enable_gro(interface: str) -> None:
    """Switch GRO on.

    Raises:
        OSError: no such interface, or it has none.
    """
    _set(interface, ETHTOOL_SGRO, 1)


def _set(interface: str, command: int, value: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        words = array.array("B", struct.pack("=II", command, value))
        address, _ = words.buffer_info()
        fcntl.ioctl(
            control.fileno(), SIOCETHTOOL, struct.pack("16sP8x", interface.encode(), address)
        )
