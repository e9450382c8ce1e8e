"""An attached console follows its VM, and gives the terminal back when the VM stops."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from tests.unit.api.unix_door import unix_door

from nuage.api.client import Client
from nuage.cli import console

Typist = Callable[[bytes], object]


class Place:
    """A site's door with one VM, whose console ends once and is elsewhere afterwards."""

    def __init__(self, type_keys: Typist) -> None:
        self.states = ["running", "migrating", "running"]  # as they are asked for
        self.joined = 0
        self.refusals_left = 2  # of one attempt: it asks again to hear why
        self.heard = b""
        self._type_keys = type_keys

    async def show(self, _request: web.Request) -> web.Response:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        vm = {"name": "web1", "state": state, "node_id": "lyon-v1"}
        return web.json_response({"result": vm, "site": "lyon"})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        if self.joined and self.refusals_left:
            self.refusals_left -= 1
            return web.json_response({"error": {"message": "not here yet"}}, status=409)
        self.joined += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.joined == 1:
            await socket.send_bytes(b"before ")
            self._type_keys(b"lost")
            await socket.close()
            return socket
        await socket.send_bytes(b"after ")
        self._type_keys(b"ls")
        async for message in socket:
            self.heard += message.data
            self._type_keys(console.LEAVE)
        return socket


@pytest.fixture
def type_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Typist]:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "rb", buffering=0) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(console, "REJOIN_POLL_S", 0.2)
        yield lambda keys: os.write(ours, keys)
    os.close(ours)


@pytest.fixture
def place(type_keys: Typist) -> Place:
    return Place(type_keys)


@pytest.fixture
def client(place: Place, tmp_path: Path) -> Iterator[Client]:
    app = web.Application()
    app.router.add_get("/web1", place.show)
    app.router.add_get("/web1/console/stream", place.stream)
    with unix_door(app, tmp_path) as endpoint:
        yield Client(endpoint)


def test_a_console_is_joined_again_where_its_vm_runs_on(
    place: Place, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    console.attach(client, "/web1")
    shown = capfd.readouterr()
    assert "before " in shown.out
    assert "after " in shown.out
    assert "[web1 runs on lyon-v1]" in shown.err
    assert shown.err.rstrip().endswith("left the console; the VM goes on")
    assert place.heard == b"ls"  # what was typed while it was away reached nobody


def test_a_console_whose_vm_stopped_gives_the_terminal_back(
    place: Place, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    place.states = ["running", "stopped"]
    console.attach(client, "/web1")
    assert "the console ended: web1 is stopped" in capfd.readouterr().err
