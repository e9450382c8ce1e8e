"""A VM's console as a WebSocket, from whatever site was asked.

``GET /v1/iaas/{iaas}/vms/{vm}/console/stream``, upgraded. Binary messages carry the console's
bytes, both ways. Text messages of the server are JSON: ``{"taken": n}`` says that the guest has
taken all of the first n bytes that were typed; ``{"error": {…}}`` is the last one before it closes.
The query's ``after_bytes`` says from where on: negative counts from the end.

The caller's own token goes with the first leg to the VM's home, which checks it and names the
session; keys come under that name over the same channel only.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import msgspec
from aiohttp import WSMsgType, web

from nuage.api.dispatch import Caller, Dispatcher
from nuage.api.errors import document_of
from nuage.channel import Handlers, Peer, Subscription
from nuage.errors import Forbidden, InvalidRequest, NuageError
from nuage.iaas.consoles import (
    KEYS_BYTES_MAX,
    TYPE_TIMEOUT_S,
    follow_console,
    type_on_console,
)
from nuage.iaas.machines import vm_of
from nuage.iaas.site import Site
from nuage.ids import SiteId, VmId, new_id
from nuage.model.console import FollowConsole, TypeOnConsole
from nuage.model.infrastructure import NodeRole
from nuage.trust.permissions import Scope

OPEN_METHOD: Final = "console.open"
KEYS_METHOD: Final = "console.keys"
ATTACH: Final = "vm.attach"  # as the audit log names it
MESSAGE_BYTES_MAX: Final = 64 * 1024  # a paste; it is typed in parts


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenConsole:
    """A caller attaches to a console; the home checks the token itself."""

    session: str
    iaas: str
    vm: str
    after_bytes: int
    token: str
    request_id: str
    from_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleKeys:
    """Keys of a session."""

    session: str
    keys: bytes


class Consoles:
    """Both ends of the way between sites, and the WebSocket at its beginning."""

    def __init__(self, site: Site, dispatcher: Dispatcher) -> None:
        self._site = site
        self._dispatcher = dispatcher
        self._open: dict[tuple[SiteId, str], VmId] = {}

    def register(self, handlers: Handlers) -> None:
        """Serve the other sites' doors."""
        controllers = {NodeRole.CONTROLLER}

        @handlers.stream(OPEN_METHOD, OpenConsole, roles=controllers)
        async def opened(peer: Peer, body: OpenConsole) -> AsyncIterator[object]:
            async with aclosing(self._follow(peer.identity.site_id, body)) as output:
                async for data in output:
                    yield data

        @handlers.method(KEYS_METHOD, ConsoleKeys, roles=controllers)
        async def keys(peer: Peer, body: ConsoleKeys) -> None:
            await self._type(peer.identity.site_id, body)

    # At the VM's home -------------------------------------------------------------------------

    async def _follow(self, door: SiteId, body: OpenConsole) -> AsyncGenerator[bytes, None]:
        vm = vm_of(self._site, body.iaas, body.vm)
        caller = Caller(
            token=body.token, request_id=body.request_id, from_address=body.from_address
        )
        self._dispatcher.enter(ATTACH, "vm.console", Scope(iaas_id=vm.iaas_id), caller)
        output = follow_console(
            self._site, FollowConsole(vm_id=vm.vm_id, after_bytes=body.after_bytes)
        )
        session = (door, body.session)
        self._open[session] = vm.vm_id
        try:
            async with _ending(output):
                yield b""  # keys may come now
                async for data in output:
                    yield data
        finally:
            del self._open[session]

    async def _type(self, door: SiteId, body: ConsoleKeys) -> None:
        vm_id = self._open.get((door, body.session))
        if vm_id is None:
            raise Forbidden("no console is open under that name; attach again")
        await type_on_console(self._site, TypeOnConsole(vm_id=vm_id, keys=body.keys))

    # At the door ------------------------------------------------------------------------------

    async def serve(
        self, request: web.Request, caller: Caller, after_bytes: int
    ) -> web.StreamResponse:
        """Join a WebSocket and a console until either ends."""
        self._dispatcher.require_known(caller)
        vm = vm_of(self._site, request.match_info["iaas"], request.match_info["vm"])
        home = self._site.index.home("vm", vm.vm_id)
        body = OpenConsole(
            session=new_id("con"), iaas=vm.iaas_id, vm=vm.vm_id, after_bytes=after_bytes,
            token=caller.token, request_id=caller.request_id, from_address=caller.from_address,
        )  # fmt: skip
        output: AsyncIterator[bytes]
        if home == self._site.site_id:
            output = self._follow(home, body)
        else:
            output = self._site.others.subscribe(home, OPEN_METHOD, body, bytes)
        socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES_MAX)
        async with _ending(output):
            await anext(output)  # refusals are told as any other request's, before the upgrade
            if not socket.can_prepare(request):
                raise InvalidRequest("a console is a WebSocket", hint="`nuage vm attach` speaks it")
            await socket.prepare(request)
            await _join(socket, output, lambda keys: self._send_keys(home, body.session, keys))
        return socket

    async def _send_keys(self, home: SiteId, session: str, keys: bytes) -> None:
        body = ConsoleKeys(session=session, keys=keys)
        if home == self._site.site_id:
            await self._type(home, body)
            return
        await self._site.others.ask(home, KEYS_METHOD, body, type(None), timeout_s=TYPE_TIMEOUT_S)


SendKeys = Callable[[bytes], Awaitable[None]]


@asynccontextmanager
async def _ending(output: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """End the stream below whatever becomes of the door."""
    try:
        yield
    finally:
        if isinstance(output, AsyncGenerator | Subscription):
            await output.aclose()


async def _join(
    socket: web.WebSocketResponse, output: AsyncIterator[bytes], send_keys: SendKeys
) -> None:
    """Carry bytes both ways until one side ends; tell the client why."""
    ways = {
        asyncio.ensure_future(_show(socket, output)),
        asyncio.ensure_future(_type(socket, send_keys)),
    }
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        results = await asyncio.gather(*ways, return_exceptions=True)
    for result in results:
        if isinstance(result, NuageError):
            await _say(socket, {"error": document_of(result)})
        elif isinstance(result, Exception) and not isinstance(result, ConnectionError):
            raise result
    await socket.close()


async def _show(socket: web.WebSocketResponse, output: AsyncIterator[bytes]) -> None:
    async for data in output:
        await socket.send_bytes(data)


async def _type(socket: web.WebSocketResponse, send_keys: SendKeys) -> None:
    taken = 0
    async for message in socket:
        if message.type is not WSMsgType.BINARY:
            raise InvalidRequest("keys come as binary messages")
        for start in range(0, len(message.data), KEYS_BYTES_MAX):
            keys = message.data[start : start + KEYS_BYTES_MAX]
            await send_keys(keys)
            taken += len(keys)
            await _say(socket, {"taken": taken})


async def _say(socket: web.WebSocketResponse, document: Mapping[str, object]) -> None:
    with suppress(ConnectionError):  # who has left need not be told
        await socket.send_str(msgspec.json.encode(document).decode())
