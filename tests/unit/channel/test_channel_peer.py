"""Peers under a clock that the test turns: deadlines, silence, a black hole."""

import asyncio

import pytest

from nuage.channel import Handlers, Identity, Peer, memory_pair
from nuage.channel.machine import LOST_AFTER_S, PING_AFTER_S
from nuage.errors import TimedOut, Unavailable
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole

A = Identity(FederationId("fr"), SiteId("marne"), NodeRole.VNODE, NodeId("a"))
B = Identity(FederationId("fr"), SiteId("marne"), NodeRole.CONTROLLER, NodeId("b"))
TURNS = 20  # of the loop: enough for whatever a step sets off


class TurnedClock:
    """Stands still until the test turns it."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return self._now_s

    async def sleep(self, delay_s: float) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now_s + delay_s, waiting))
        await waiting

    async def turn(self, delay_s: float) -> None:
        """Let time pass, waking whoever sleeps until then."""
        end_s = self._now_s + delay_s
        while True:
            await settle()
            due = [entry for entry in self._sleepers if entry[0] <= end_s]
            if not due:
                break
            wake_s, waiting = min(due, key=lambda entry: entry[0])
            self._sleepers.remove((wake_s, waiting))
            self._now_s = max(self._now_s, wake_s)
            if not waiting.done():
                waiting.set_result(None)
        self._now_s = end_s


async def settle() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


class BlackHole:
    """A transport whose bytes arrive nowhere."""

    closed = False

    def write(self, data: bytes, /) -> None:
        return

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


async def test_each_call_times_out_at_its_own_deadline() -> None:
    clock = TurnedClock()
    peer = Peer(identity=B, handlers=Handlers(), clock=clock)
    peer.connection_made(BlackHole())
    calls = {
        timeout_s: asyncio.ensure_future(peer.call("m", None, int, timeout_s=timeout_s))
        for timeout_s in (3.0, 1.0, 2.0)
    }
    for timeout_s in (1.0, 2.0, 3.0):
        await clock.turn(0.9)
        assert not calls[timeout_s].done()
        await clock.turn(0.1)
        with pytest.raises(TimedOut, match=f"within {timeout_s:g} s"):
            await calls[timeout_s]
    peer.close()
    await settle()


async def test_a_peer_that_falls_silent_is_lost_and_its_calls_with_it() -> None:
    clock, transport = TurnedClock(), BlackHole()
    peer = Peer(identity=B, handlers=Handlers(), clock=clock)
    peer.connection_made(transport)
    calling = asyncio.ensure_future(peer.call("m", None, int, timeout_s=1000))
    await clock.turn(LOST_AFTER_S - 1)
    assert not peer.is_closed
    await clock.turn(PING_AFTER_S)
    assert (peer.is_closed, transport.closed) == (True, True)
    with pytest.raises(TimedOut, match="silent for too long"):
        await calling
    with pytest.raises(Unavailable):
        peer.notify("n", None)


async def test_idle_peers_stay_for_ever() -> None:
    clock = TurnedClock()
    pair = memory_pair(Handlers(), Handlers(), identity_a=A, identity_b=B, clock=clock)
    await clock.turn(20 * LOST_AFTER_S)
    assert (pair.a.is_closed, pair.b.is_closed) == (False, False)
    pair.cut()
    assert (pair.a.close_reason, pair.b.is_closed) == ("cut", True)
    await settle()


async def test_callers_wait_while_the_peer_does_not_read() -> None:
    clock = TurnedClock()
    peer = Peer(identity=B, handlers=Handlers(), clock=clock)
    peer.connection_made(BlackHole())
    peer.pause_writing()
    calling = asyncio.ensure_future(peer.call("m", None, int, timeout_s=5))
    await clock.turn(5)
    with pytest.raises(TimedOut, match="sending 'm'"):
        await calling
    peer.close()
    await settle()
