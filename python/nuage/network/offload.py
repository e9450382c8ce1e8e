"""Segmentation offload of a port's interface (SIOCETHTOOL): off on trunks.

A frame that arrives as TRILL cannot be segmented any more, so nothing longer than the MTU may
leave a RBridge: with TSO and GSO off at its trunks the kernel cuts a guest's super-frame there,
each piece with a header of its own (docs/design/dataplane.md).
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


def disable_segmentation(interface: str) -> None:
    """Switch TSO and GSO off; an interface that has neither is fine as it is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in (ETHTOOL_STSO, ETHTOOL_SGSO):
            value = array.array("B", struct.pack("=II", command, 0))
            address, _ = value.buffer_info()
            request = struct.pack("16sP8x", interface.encode(), address)
            with suppress(OSError):
                fcntl.ioctl(control.fileno(), SIOCETHTOOL, request)
