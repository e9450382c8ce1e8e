"""The loop around the LISP machines: UDP port 4342 of each RLOC, for tunnel router and server.

Which machine a datagram is for is told by its type: registers, acknowledgements and
encapsulated requests are for the server (when there is one here), the rest for the router.
What the server took of a register the router beside it hears at once.
"""

import asyncio
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import cast

from nuage.clock import Clock
from nuage.network.forwarding import LispPlane
from nuage.network.lisp_event import (
    ApplyLisp,
    DatagramReceived,
    HeardFrom,
    LispEffect,
    LispLog,
    MappingMissed,
    MappingTold,
    SendDatagram,
    XtrInput,
)
from nuage.network.lisp_message import LISP_CONTROL_PORT, Address, Eid
from nuage.network.map_server import MapServer
from nuage.network.xtr import Xtr

FOR_SERVER = (3, 5, 8)  # Map-Register, Map-Notify-Ack, Encapsulated Control Message
TICK_MIN_S = 0.001
TICK_MAX_S = 3600.0
POLL_S = 0.02  # of a plane that cannot wake us


class _Endpoint(asyncio.DatagramProtocol):
    """One address of ours (asyncio's protocol)."""

    def __init__(self, address: Address, take: Callable[[DatagramReceived], None]) -> None:
        self._address = address
        self._take = take
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # Not all loops' datagram transports derive from asyncio's class.
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Hand a datagram on."""
        self._take(DatagramReceived(ip_address(addr[0]), addr[1], data, self._address))

    def error_received(self, exc: Exception) -> None:
        """An ICMP error came: the machines' own retries and probes find out."""


class LispRunner:
    """Runs a tunnel router, a map-server, or both, on one address or several."""

    def __init__(
        self,
        *,
        clock: Clock,
        plane: LispPlane,
        xtr: Xtr | None = None,
        server: MapServer | None = None,
        tell: Callable[[LispLog], None] = lambda _log: None,
    ) -> None:
        self._clock = clock
        self._plane = plane
        self._xtr = xtr
        self._server = server
        self._tell = tell
        self._endpoints: dict[Address, _Endpoint] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._polling: asyncio.TimerHandle | None = None

    async def start(self, *addresses: str) -> None:
        """Listen on each of `addresses`, port 4342; the first is what we send from by default."""
        loop = asyncio.get_running_loop()
        for text in addresses:
            endpoint = _Endpoint(ip_address(text), self._take)
            await loop.create_datagram_endpoint(
                lambda endpoint=endpoint: endpoint,  # type: ignore[misc]
                local_addr=(text, LISP_CONTROL_PORT),
            )
            self._endpoints[ip_address(text)] = endpoint
        descriptor = self._plane.events_fileno()
        if descriptor is not None:
            loop.add_reader(descriptor, self.take_from_plane)
        elif self._xtr is not None:
            self._poll()
        self._set_timer()

    def _poll(self) -> None:
        self.take_from_plane()
        self._polling = asyncio.get_running_loop().call_later(POLL_S, self._poll)

    def take_from_plane(self) -> None:
        """Let the tunnel router know what the plane missed, and whom it heard."""
        for heard in self._plane.take_heard():
            self.give(HeardFrom(Eid(heard.instance_id, heard.prefix), heard.rloc))
        for miss in self._plane.take_misses():
            self.give(MappingMissed(miss.instance_id, miss.source, miss.destination))

    def stop(self) -> None:
        """Stop; the plane keeps what it has."""
        descriptor = self._plane.events_fileno()
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
        if self._polling is not None:
            self._polling.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for endpoint in self._endpoints.values():
            if endpoint.transport is not None:
                endpoint.transport.close()

    def _take(self, event: DatagramReceived) -> None:
        """Hand a datagram to the machine it is for."""
        now_s, kind = self._clock.monotonic_s(), event.data[0] >> 4 if event.data else 0
        if self._server is not None and kind in FOR_SERVER:
            self._perform(self._server.handle(event, now_s))
        elif self._xtr is not None:
            self._perform(self._xtr.handle(event, now_s))

    def give(self, event: XtrInput) -> None:
        """Give the tunnel router an event now."""
        if self._xtr is not None:
            self._perform(self._xtr.handle(event, self._clock.monotonic_s()))

    def _perform(self, effects: Iterable[LispEffect]) -> None:
        for effect in effects:
            match effect:
                case SendDatagram():
                    self._send(effect)
                case ApplyLisp():
                    self._plane.apply(effect.delta)
                case LispLog():
                    self._tell(effect)
                case MappingTold():
                    self.give(effect)
        self._set_timer()

    def _send(self, effect: SendDatagram) -> None:
        first = next(iter(self._endpoints.values()), None)
        endpoint = first if effect.source is None else self._endpoints.get(effect.source, first)
        if endpoint is not None and endpoint.transport is not None:
            endpoint.transport.sendto(effect.data, (str(effect.destination), effect.port))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadlines = [m.next_deadline_s() for m in (self._xtr, self._server) if m is not None]
        wait_s = min(deadlines, default=float("inf")) - self._clock.monotonic_s()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(max(wait_s, TICK_MIN_S), TICK_MAX_S), self._tick)

    def _tick(self) -> None:
        now_s = self._clock.monotonic_s()
        if self._xtr is not None:
            self._perform(self._xtr.tick(now_s))
        if self._server is not None:
            self._perform(self._server.tick(now_s))
