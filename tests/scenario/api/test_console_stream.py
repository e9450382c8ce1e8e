"""Somebody sits at a VM's console, at the door of whatever site, over a WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError
from tests.scenario.api.conversation import Federation
from tests.scenario.api.guest_line import VM, GuestLine, LineOnNode
from tests.scenario.api.test_api_conversations import build

from nuage.errors import Unavailable
from nuage.ids import SiteId
from nuage.model.identity import Grant, Role
from nuage.vnode.console import ConsoleHub

STREAM = "/v1/iaas/acme/vms/web/console/stream"


@pytest.fixture
async def federation(tmp_path: Path) -> AsyncIterator[tuple[Federation, GuestLine]]:
    bench = Federation()
    await bench.open()
    iaas_id = await build(bench)
    bench.tokens.know("user", Grant(Role.IAAS_USER, iaas_id))
    body = {"name": "web", "image": "guest", "site": "rennes"}
    assert (await bench.ask("POST", "/v1/iaas/acme/vms", body, who="user"))[0] == 202
    await bench.settle()
    line = GuestLine(tmp_path)
    async with line.running():
        line.say(b"booting\r\n")
        bench.sites[SiteId("rennes")].site.nodes = LineOnNode(line)
        yield bench, line
    await bench.close()


def sit(bench: Federation, at: str, who: str = "user", query: str = "") -> Any:
    return bench.clients[at].ws_connect(STREAM + query, headers={"Authorization": f"Bearer {who}"})


async def reads(socket: ClientWebSocketResponse, wanted: bytes) -> bytes:
    """Return what comes until it ends with `wanted`."""
    seen = b""
    async with asyncio.timeout(20):
        while not seen.endswith(wanted):
            message = await socket.receive()
            assert message.type in (WSMsgType.BINARY, WSMsgType.TEXT), (message, seen)
            if message.type is WSMsgType.BINARY:
                seen += message.data
    return seen


async def is_told(socket: ClientWebSocketResponse, holds: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(20):
        while True:
            message = await socket.receive()
            if message.type is WSMsgType.TEXT and holds(json.loads(message.data)):
                return json.loads(message.data)


async def test_keys_go_up_and_output_comes_down_whichever_site_is_asked(
    federation: tuple[Federation, GuestLine],
) -> None:
    bench, line = federation
    for at, said_before in (("lyon", b"booting\r\n"), ("rennes", b"hello from the guest")):
        async with sit(bench, at) as socket:
            await reads(socket, said_before)
            await socket.send_bytes(f"echo {at}\r".encode())
            await reads(socket, f"echo {at}\r".encode())
            told = await is_told(socket, lambda document: "taken" in document)
            assert told == {"taken": len(f"echo {at}\r")}
            line.say(b"hello from the guest")
            await reads(socket, b"hello from the guest")
    assert ("user", "vm.attach", "ok") in bench.tokens.notes


async def test_two_who_sit_at_one_console_see_the_same(
    federation: tuple[Federation, GuestLine],
) -> None:
    bench, line = federation
    async with sit(bench, "lyon") as one, sit(bench, "rennes") as two:
        await reads(one, b"booting\r\n")
        await reads(two, b"booting\r\n")
        await one.send_bytes(b"typed once")
        assert await reads(one, b"typed once") == await reads(two, b"typed once") == b"typed once"
    assert line.client_count == 1


async def test_a_long_paste_arrives_whole_and_in_order(
    federation: tuple[Federation, GuestLine],
) -> None:
    bench, _ = federation
    paste = b"".join(b"line %05d\n" % number for number in range(3000))
    async with sit(bench, "lyon") as socket:
        await reads(socket, b"booting\r\n")
        await socket.send_bytes(paste)
        assert await reads(socket, paste[-200:]) == paste


async def test_the_client_is_told_when_the_console_ends(
    federation: tuple[Federation, GuestLine],
) -> None:
    bench, line = federation
    async with sit(bench, "lyon") as socket:
        await reads(socket, b"booting\r\n")
        line.end()
        async with asyncio.timeout(20):
            message = await socket.receive()
        assert message.type is WSMsgType.CLOSE


async def test_who_may_not_sit_there_is_refused_before_the_upgrade(
    federation: tuple[Federation, GuestLine],
) -> None:
    bench, _ = federation
    for who, status in (("stranger", 403), ("auditor", 403), ("forged", 401)):
        with pytest.raises(WSServerHandshakeError) as refused:
            async with sit(bench, "lyon", who):
                pass
        assert refused.value.status == status
        # The same as a plain request says why: `nuage vm attach` asks so.
        assert (await bench.ask("GET", STREAM, who=who))[0] == status
    status, answer = await bench.ask("GET", STREAM, who="user")
    assert (status, answer["error"]["message"]) == (400, "a console is a WebSocket")
    status, _ = await bench.ask("GET", STREAM + "?after_bytes=soon", who="user")
    assert status == 400
    assert ("stranger", "vm.attach", "forbidden") in bench.tokens.notes
    await bench.ask("POST", "/v1/iaas/acme/vms/web/stop", who="user")
    await bench.settle()
    status, answer = await bench.ask("GET", STREAM, who="user")
    assert (status, answer["error"]["code"]) == (409, "conflict")


async def test_a_console_that_nobody_serves_says_so(tmp_path: Path) -> None:
    line = GuestLine(tmp_path)
    hub: ConsoleHub = line.hub
    with pytest.raises(Unavailable, match="cannot be opened"):
        await anext(hub.follow(VM, 0))
    async with line.running():
        line.say(b"x")
        async with aclosing(hub.follow(VM, 0)) as output:
            assert await anext(output) == b"x"
            await line.joined.wait()
