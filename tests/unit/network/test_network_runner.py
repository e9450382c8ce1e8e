"""The loop around an RBridge: a socket that is full has to wait its turn."""

import asyncio
import os
from typing import Any, cast

from nuage.network.fabric_event import CarrierChanged
from nuage.network.forwarding import PortNumber
from nuage.network.runner import FRAMES_PER_WAKE_MAX, FabricRunner, LinkState, RunnerPorts

PORT = PortNumber(1)
WORK_S = 0.2  # that each batch takes


class Endless:
    """A socket that always has a frame."""

    def __init__(self) -> None:
        self.reads = 0
        self._read, write = os.pipe()
        os.write(write, b"x")
        os.close(write)

    def fileno(self) -> int:
        return self._read

    def receive(self) -> bytes | None:
        self.reads += 1
        return b"frame"

    def send(self, frame: bytes) -> None:
        raise AssertionError(frame)

    def close(self) -> None:
        os.close(self._read)


class Busy:
    """An RBridge, its plane and its clock: a batch of frames takes `WORK_S`."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def handle_all(self, events: list[object], _now_s: float) -> tuple[()]:
        self.now_s += WORK_S if events else 0.0
        return ()

    def tick(self, _now_s: float) -> tuple[()]:
        return ()

    def next_deadline_s(self) -> float:
        return 3600.0

    def take_echoes(self) -> tuple[()]:
        return ()


async def test_a_socket_that_has_more_than_is_read_at_once_waits_as_long_as_that_took() -> None:
    """Who runs before all others must not take all: others carry the echoes of its trunks."""
    busy, full = cast(Any, Busy()), Endless()
    runner = FabricRunner(busy, busy, clock=busy, ports=RunnerPorts({PORT: (full,)}, {}))
    runner.start()
    began_s = asyncio.get_running_loop().time()
    for _ in range(20):
        await asyncio.wait_for(asyncio.to_thread(lambda: None), 5)
    if asyncio.get_running_loop().time() - began_s < WORK_S:
        assert full.reads <= 2 * FRAMES_PER_WAKE_MAX
    while full.reads <= FRAMES_PER_WAKE_MAX:
        await asyncio.to_thread(lambda: None)
    assert asyncio.get_running_loop().time() - began_s >= WORK_S * 0.9
    runner.stop()


class Links:
    """Interfaces that come and go: each look tells what was not told yet."""

    def __init__(self) -> None:
        self.news: list[LinkState] = []

    def receive(self) -> list[LinkState]:
        """Return what was told since the last call."""
        news, self.news = self.news, []
        return news


class Listening(Busy):
    """An RBridge that notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, bool]] = []

    def handle_all(self, events: list[object], _now_s: float) -> tuple[()]:
        self.told += [(e.port, e.up) for e in events if isinstance(e, CarrierChanged)]
        return ()


def test_interfaces_of_guests_that_are_gone_are_not_kept() -> None:
    listening, links = Listening(), Links()
    bridge, watch = cast(Any, listening), cast(Any, links)
    ports = RunnerPorts({PORT: ()}, {}, links=watch, indexes={7: PORT})
    vanished: list[None] = []
    runner = FabricRunner(
        bridge, bridge, clock=bridge, ports=ports, vanished=lambda: vanished.append(None)
    )
    for index in range(100, 200):  # taps of guests: each goes down, then away
        links.news += [LinkState(index, up=False), LinkState(index, up=False, gone=True)]
    runner._links_changed()
    assert runner._down == set()
    assert not vanished

    links.news = [LinkState(7, up=False, gone=True)]  # the trunk's own
    runner._links_changed()
    links.news = [LinkState(8, up=True)]
    runner._links_changed()
    assert (listening.told, runner._down) == ([(PORT, False)], {7})
    assert len(vanished) == 1, "a trunk's interface is made again, whatever state it was in"
