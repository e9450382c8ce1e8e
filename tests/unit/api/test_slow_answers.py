"""Who waits at a terminal hears after a while that the client does."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from tests.unit.api.unix_door import unix_door

from nuage.api import client as api_client
from nuage.api.client import Client


def test_an_answer_that_takes_long_is_told_of_once_and_a_quick_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_client, "SLOW_S", 0.2)

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(float(request.query["after_s"]))
        return web.json_response({"result": "done"})

    app = web.Application()
    app.router.add_get("/v1/vms", answer)
    told: list[str] = []
    with unix_door(app, tmp_path) as endpoint:
        client = Client(endpoint)
        assert client.get("/v1/vms", after_s=0.3) == "done", "nobody wants to hear of it"
        client.slow = lambda: told.append("slow")
        assert client.get("/v1/vms", after_s="0") == "done"
        assert told == []
        assert client.get("/v1/vms", after_s=0.5) == "done"
    assert told == ["slow"]
