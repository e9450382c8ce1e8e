"""Guests that stand still here before they go on elsewhere, and what comes for them meanwhile.

From the pause to the first frame at the target nobody can deliver: here the guest is stopped, there
its state has not arrived. What comes in that time would be lost, and a TCP sender that loses all
that is on its way waits 200 ms (RFC 6298 says a second) before it tries again, longer than the
guest itself stands still. So a socket on the old tap keeps it, bounded, until the fabric has heard
the guest's announcement from its new place; then it is sent after the guest.

The socket is opened a little before the pause, when the hypervisor says that the end is near: the
first frame to be missed is the one that counts, an acknowledgement on its way. What the guest has
had before it stopped is left out, by the kernel's time of each frame.
"""

import asyncio
import socket
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from nuage.ids import PortId
from nuage.network.runner import ETH_P_ALL, FRAME_BYTES_MAX, PACKET_OUTGOING, SOL_PACKET
from nuage.network.stray import VNET_HEADER, made_whole

PACKET_VNET_HDR: Final = 15
SO_TIMESTAMPNS: Final = 35
TIMESTAMP: Final = struct.Struct("qq")
KEPT_BYTES_MAX: Final = 4 * 1024 * 1024  # with the kernel's own share: some 2,500 full frames
KEPT_FRAMES_MAX: Final = 4096
DRAIN_EVERY_S: Final = 0.01  # before the pause: at 1 Gb/s the kernel holds 30 ms of it
WINDOW_S: Final = 0.1  # that a pause may be told late
LOOK_EVERY_S: Final = 0.002
FOLLOW_MAX_S: Final = 3.0  # then records have told everybody, and senders have tried again


@dataclass(slots=True)
class _Departure:
    mac: bytes
    kept: socket.socket
    frames: deque[tuple[float, bytes]] = field(
        default_factory=lambda: deque(maxlen=KEPT_FRAMES_MAX)
    )
    still_since_s: float | None = None  # of the wall's clock, as the kernel stamps frames
    timer: asyncio.TimerHandle | None = None


class Departures:
    """The ports of this node whose guests are on their way out."""

    def __init__(self) -> None:
        self._by_port: dict[PortId, _Departure] = {}

    def __contains__(self, port_id: PortId) -> bool:
        return port_id in self._by_port

    def is_still(self, port_id: PortId) -> bool:
        """Tell whether the port's guest stands still, to go on elsewhere."""
        departure = self._by_port.get(port_id)
        return departure is not None and departure.still_since_s is not None

    def still_since_s(self, port_id: PortId) -> float:
        """Return since when it does, by the wall's clock."""
        return self._by_port[port_id].still_since_s or 0.0

    def begin(self, port_id: PortId, tap: str, mac: bytes) -> None:
        """Listen to a tap: its guest may stand still at any moment.

        Raises:
            OSError: the tap is gone.
        """
        kept = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KEPT_BYTES_MAX)
        kept.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        kept.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        kept.bind((tap, ETH_P_ALL))
        kept.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        self._by_port[port_id] = departure = _Departure(mac, kept)
        self._drain(departure)

    def _drain(self, departure: _Departure) -> None:
        """Take what came; before the pause, forget what is older than the window."""
        _read(departure)
        frames = departure.frames
        while frames and frames[0][0] < frames[-1][0] - WINDOW_S:
            frames.popleft()
        loop = asyncio.get_running_loop()
        departure.timer = loop.call_later(DRAIN_EVERY_S, self._drain, departure)

    def stand_still(self, port_id: PortId, at_s: float) -> None:
        """Keep what came to a port since its guest stopped, and what will."""
        departure = self._by_port[port_id]
        departure.still_since_s = at_s
        if departure.timer is not None:
            departure.timer.cancel()

    def end(self, port_id: PortId) -> list[bytes]:
        """Return what was kept, oldest first, and keep no more."""
        departure = self._by_port.pop(port_id, None)
        if departure is None:
            return []
        if departure.timer is not None:
            departure.timer.cancel()
        _read(departure)
        departure.kept.close()
        since_s = departure.still_since_s
        if since_s is None:
            return []
        whole = (made_whole(data) for at_s, data in departure.frames if at_s >= since_s)
        return [frame for frame in whole if frame is not None and frame[:6] == departure.mac]

    def end_all(self) -> None:
        """Let go of all."""
        for port_id in list(self._by_port):
            self.end(port_id)


def _read(departure: _Departure) -> None:
    while True:
        try:
            data, told, _, address = departure.kept.recvmsg(
                VNET_HEADER.size + FRAME_BYTES_MAX, socket.CMSG_SPACE(TIMESTAMP.size)
            )
        except OSError:
            return  # nothing more, or the tap went
        if address[2] == PACKET_OUTGOING and told:
            seconds, nanoseconds = TIMESTAMP.unpack_from(told[0][2])
            departure.frames.append((seconds + nanoseconds / 1e9, data))
