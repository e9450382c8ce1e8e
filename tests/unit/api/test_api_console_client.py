"""Typing on a console ends once the guest has taken the keys, whatever it says meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from tests.unit.api.unix_door import unix_door

from nuage.api.client import Client
from nuage.api.console_client import Console
from nuage.errors import TimedOut


async def _quick_guest(request: web.Request) -> web.WebSocketResponse:
    """Answer keys before it tells that they were taken, then say nothing more."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_bytes(b"prompt# ")
        await socket.send_json({"taken": len(message.data)})
    return socket


@pytest.fixture
def door(tmp_path: Path) -> Iterator[str]:
    app = web.Application()
    app.router.add_get("/console/stream", _quick_guest)
    with unix_door(app, tmp_path) as endpoint:
        yield endpoint


def test_a_guest_that_says_nothing_is_told_with_what_may_be_the_matter(door: str) -> None:
    with Console(Client(door), "") as console, pytest.raises(TimedOut) as silent:
        console.wait_for("login:", 0.02)
    assert "booting" in silent.value.hint


def test_typing_ends_though_the_guest_is_silent_after_it_took_the_keys(door: str) -> None:
    with Console(Client(door), "") as console:
        console.type("\x03", timeout_s=10.0)
        assert console.text == "prompt# "
