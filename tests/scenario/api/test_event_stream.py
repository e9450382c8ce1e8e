"""Who follows events is told that a quiet site is there, and that a lost one is not."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scenario.api.conversation import Federation

from nuage.api import http
from nuage.api.client import Client
from nuage.errors import Unavailable


async def test_a_site_where_nothing_happens_says_that_it_is_there(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "EVENTS_SILENT_S", 0.01)
    headers = {"Authorization": "Bearer admin"}
    async with (
        asyncio.timeout(60),
        federation.clients["lyon"].get("/v1/events", headers=headers) as answer,
    ):
        assert answer.status == 200
        assert (await answer.content.readline()).startswith(b": ")


async def test_a_reader_that_hangs_up_is_no_error(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http, "EVENTS_SILENT_S", 0.01)
    headers = {"Authorization": "Bearer admin"}
    client = federation.clients["lyon"]
    runner = client.server.runner
    assert runner is not None
    assert runner.server is not None
    runner.server.handler_cancellation = False  # as it is but for tests
    async with asyncio.timeout(60):
        answer = await client.get("/v1/events", headers=headers)
        await answer.content.readline()
        answer.close()
        await asyncio.sleep(0.3)  # until the site writes to nobody
    assert not [record for record in caplog.records if record.name.startswith("aiohttp")]


@pytest.fixture
def broken_site(tmp_path: Path) -> Iterator[str]:
    """A site that tells one event and is gone."""
    path = tmp_path / "api.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(4096)
            event = b': quiet\n\nevent: vm\ndata: {"text": "web runs"}\n\n'
            peer.sendall(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(event), event)
            )

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"unix:{path}"
    thread.join()
    listener.close()


def test_a_site_that_is_lost_while_it_is_followed_is_told_as_unavailable(broken_site: str) -> None:
    events = Client(broken_site).stream("/v1/events")
    assert next(events) == {"text": "web runs"}
    with pytest.raises(Unavailable, match="not heard"):
        next(events)
