"""A map-server and three tunnel routers on real sockets of the loopback: an EID moves."""

import asyncio
from ipaddress import IPv4Address, ip_address, ip_network
from random import Random

import pytest
from tests.data.network.lisp_tables import LispPlane, Tunnelled

from nuage.clock import SystemClock
from nuage.network.forwarding import PortNumber
from nuage.network.lisp_event import EidArrived
from nuage.network.lisp_message import Eid, LispKey, XtrName, host_eid
from nuage.network.lisp_runner import LispRunner
from nuage.network.map_server import EidAllowance, MapServer
from nuage.network.xtr import Xtr, XtrConfig

pytestmark = pytest.mark.system
SERVER = "127.94.0.1"
ROUTERS = ("127.94.0.2", "127.94.0.3", "127.94.0.4")
KEY = LispKey(b"loopback")
EID = IPv4Address("203.0.113.5")
CLIENT = IPv4Address("203.0.113.9")
PACKET = b"\x45" + bytes(11) + CLIENT.packed + EID.packed


async def until_sent_to(plane: LispPlane, rloc: str, clock: SystemClock) -> float:
    """Send a packet every millisecond until it goes to `rloc`; return how long that took."""
    start_s = clock.monotonic_s()
    while True:
        out = plane.lisp.encapsulate(7, PACKET)
        if isinstance(out, Tunnelled) and out.rloc == rloc:
            return clock.monotonic_s() - start_s
        assert clock.monotonic_s() - start_s < 5.0
        await asyncio.sleep(0.001)


async def test_an_eid_moves_between_real_sockets() -> None:
    clock = SystemClock()
    now_s = clock.monotonic_s()
    server = MapServer(ip_address(SERVER), now_s)
    allowed = EidAllowance(Eid(7, ip_network("203.0.113.0/24")), frozenset({bytes(8)}))
    server.allow([allowed], {bytes(8): KEY})
    planes = [LispPlane() for _ in ROUTERS]
    runners = [LispRunner(clock=clock, plane=LispPlane(), server=server)]
    for number, (rloc, plane) in enumerate(zip(ROUTERS, planes, strict=True)):
        config = XtrConfig(
            ip_address(rloc),
            XtrName(bytes(15) + bytes((number,))),
            ((ip_address(SERVER),),),
            KEY,
            int(clock.now_s() * 1e6),
        )
        runners.append(LispRunner(clock=clock, plane=plane, xtr=Xtr(config, Random(number), now_s)))
    try:
        for runner, address in zip(runners, (SERVER, *ROUTERS), strict=True):
            await runner.start(address)
        eid = host_eid(7, EID)
        runners[1].give(EidArrived(eid, PortNumber(1), bytes(6), 1))
        assert await until_sent_to(planes[2], ROUTERS[0], clock) < 1.0
        gaps_s = []
        for move in range(20):
            to = (move + 1) % 2
            runners[1 + to].give(EidArrived(eid, PortNumber(1), bytes(6), move + 2))
            gaps_s.append(await until_sent_to(planes[2], ROUTERS[to], clock))
            await asyncio.sleep(0.02)
        gaps_s.sort()
        print(f"20 moves: median {gaps_s[10] * 1e3:.1f} ms, p95 {gaps_s[18] * 1e3:.1f} ms")  # noqa: T201
        assert gaps_s[18] <= 0.1
        assert [record.version for record in server.registered()] == [21]
    finally:
        for runner in runners:
            runner.stop()
        await asyncio.sleep(0)  # transports close on the next turn of the loop
