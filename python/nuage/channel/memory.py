"""Two peers joined inside one process: for tests and for the simulation.

The bytes are the real ones, through the real machines; only TLS and TCP are missing. Delivery
is in order, one turn of the event loop after the write, and stops when the pair is cut.
"""

import asyncio
from dataclasses import dataclass

from nuage.channel.handlers import Handlers
from nuage.channel.identity import Identity
from nuage.channel.peer import Peer
from nuage.clock import Clock


class MemoryTransport:
    """Carries what one peer writes to the other."""

    def __init__(self, target: Peer) -> None:
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self.sent_bytes = 0

    def write(self, data: bytes, /) -> None:
        """Deliver `data` at the next turn of the loop."""
        if not self._closed:
            self.sent_bytes += len(data)
            self._loop.call_soon(self._deliver, data)

    def get_write_buffer_size(self) -> int:
        """Return 0: nothing waits here."""
        return 0

    def close(self) -> None:
        """End the connection after what was written."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon(self._target.connection_lost, "connection closed by peer")

    def abort(self) -> None:
        """End the connection."""
        self.close()

    def _deliver(self, data: bytes) -> None:
        if not self._target.is_closed:
            self._target.data_received(data)


@dataclass(frozen=True, slots=True)
class MemoryPair:
    """Both ends. `a` runs `handlers_a`, and `a.identity` is who B is; the reverse for `b`."""

    a: Peer
    b: Peer

    def cut(self, reason: str = "cut") -> None:
        """Lose the connection at both ends, as a broken cable does after its time-out."""
        self.a.connection_lost(reason)
        self.b.connection_lost(reason)


def memory_pair(
    handlers_a: Handlers,
    handlers_b: Handlers,
    *,
    identity_a: Identity,
    identity_b: Identity,
    clock: Clock,
) -> MemoryPair:
    """Return two joined peers; both have said hello once the loop has turned."""
    a = Peer(identity=identity_b, handlers=handlers_a, clock=clock)
    b = Peer(identity=identity_a, handlers=handlers_b, clock=clock)
    a.connection_made(MemoryTransport(b))
    b.connection_made(MemoryTransport(a))
    return MemoryPair(a, b)
