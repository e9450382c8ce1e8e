"""Echoes beside a tunnel: on the provider's line, between the tunnel's own addresses and ports.

Acts, but for `LineForm`. A tunnel in user space costs each end a dozen wake-ups a packet;
its echoes go around it, and the kernel's `line_in` (bpf/line.h) answers and notes them. What
swallows the tunnel's packets swallows these. They prove the line, not the tunnel: Hellos and BFD
inside do that, slowly.
"""

import ctypes
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from nuage.network.echo import ECHO_BYTES
from nuage.network.wire import internet_checksum

LINE_MAGIC: Final = 0x4E754563  # no WireGuard message begins so: those begin with 1 to 4
IP_TTL_MAX: Final = 255  # it comes back with what is left
IP_TOS_CONTROL: Final = 0xC0  # class selector 6, RFC 4594 §3.2
SO_ATTACH_FILTER: Final = 26
UDP_BYTES: Final = 8
_TAKE_NOTHING: Final = struct.pack("=HBBI", 6, 0, 0, 0)  # classic BPF: return 0


@dataclass(frozen=True, slots=True)
class LineEnd:
    """A tunnel's end as the line sees it. `end`: 0 where the site's id sorts low, else 1."""

    here: str
    there: str
    udp_port: int
    end: int


class LineForm:
    """Makes the UDP datagrams of a line's echoes.

    ::

        UDP: port, port, length, checksum | magic:32 | end that asks:32 | content:128
    """

    def __init__(self, line: LineEnd) -> None:
        size = UDP_BYTES + 8 + ECHO_BYTES
        here, there = ip_address(line.here).packed, ip_address(line.there).packed
        self._head = struct.pack(">HHH", line.udp_port, line.udp_port, size)
        self._mark = struct.pack(">II", LINE_MAGIC, line.end)
        pseudo = here + there + struct.pack(">II", size, socket.IPPROTO_UDP)
        self._sum = ~internet_checksum(pseudo + self._head + self._mark) & 0xFFFF

    def datagram(self, content: bytes) -> bytes:
        """Return the datagram of an echo of ECHO_BYTES."""
        checksum = internet_checksum(content, self._sum) or 0xFFFF
        return self._head + checksum.to_bytes(2, "big") + self._mark + content


class LineSocket:
    """Sends echoes on a line; what comes back is the kernel's business."""

    def __init__(self, line: LineEnd) -> None:
        """Open it in the calling thread's network namespace.

        Raises:
            OSError: not allowed to, or the address is not one of ours.
        """
        self.line = line
        self._form = LineForm(line)
        self._to = (line.there, 0)
        six = ip_address(line.here).version == 6
        family = socket.AF_INET6 if six else socket.AF_INET
        raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP)
        try:
            raw.setblocking(False)  # noqa: FBT003 - the socket module's own signature
            program = ctypes.create_string_buffer(_TAKE_NOTHING)
            pointer = struct.pack("HL", 1, ctypes.addressof(program))
            raw.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)
            if six:
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, IP_TTL_MAX)
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, IP_TOS_CONTROL)
            else:
                raw.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, IP_TTL_MAX)
                raw.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, IP_TOS_CONTROL)
            raw.bind((line.here, 0))
        except OSError:
            raw.close()
            raise
        self._raw = raw

    def send(self, content: bytes) -> None:
        """Send an echo; what the kernel refuses now is lost, as on a wire."""
        with suppress(OSError):
            self._raw.sendto(self._form.datagram(content), self._to)

    def close(self) -> None:
        """Close the socket."""
        self._raw.close()
