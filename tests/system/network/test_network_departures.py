"""What comes to a tap whose guest stands still is kept from that moment on, and nothing else."""

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from nuage.daemon.fabric_departures import Departures
from nuage.ids import PortId
from nuage.lab import kernel
from nuage.network.wire import mac_bytes

pytestmark = pytest.mark.system
GUEST = mac_bytes("06:00:00:00:00:01")
OTHER = mac_bytes("06:00:00:00:00:02")
PORT = PortId("port-1")
TAP = "tap-leaves"


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"nq{os.getpid()}leaves"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no network namespaces here")
    try:
        for words in (
            ("link", "add", TAP, "type", "veth", "peer", "name", "guest"),
            ("link", "set", TAP, "up"),
            ("link", "set", "guest", "up"),
        ):
            subprocess.run(["ip", "-n", name, *words], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


class Towards:
    """Sends frames to a guest, as the fabric's programs do: out of the tap's host side."""

    def __init__(self) -> None:
        self._raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._raw.bind((TAP, 0))

    def send(self, mac: bytes, text: bytes) -> bytes:
        """Send a frame; return it."""
        frame = mac + OTHER + b"\x08\x00" + text.ljust(46)
        self._raw.send(frame)
        return frame

    def close(self) -> None:
        """Send no more."""
        self._raw.close()


async def _depart() -> None:
    departures = Departures()
    towards = Towards()
    try:
        _judge(departures, towards)
    finally:
        departures.end_all()
        towards.close()


def _judge(departures: Departures, towards: Towards) -> None:
    departures.begin(PORT, TAP, GUEST)
    towards.send(GUEST, b"before")
    stopped_s = time.time()
    wanted = [towards.send(GUEST, b"while nobody knows yet")]
    assert not departures.is_still(PORT)
    departures.stand_still(PORT, stopped_s)
    assert departures.is_still(PORT)
    towards.send(OTHER, b"to somebody else")
    wanted.append(towards.send(GUEST, b"after"))
    assert departures.end(PORT) == wanted
    assert PORT not in departures
    assert departures.end(PORT) == []
    departures.begin(PORT, TAP, GUEST)
    towards.send(GUEST, b"to a guest that stays after all")
    assert departures.end(PORT) == []


def test_what_comes_after_the_stop_is_kept_however_late_that_is_told(namespace: str) -> None:
    kernel.inside(namespace, lambda: asyncio.run(_depart()))
