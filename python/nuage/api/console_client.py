"""A VM's console from a program: the WebSocket of `api.consoles`, for people and for scripts."""

import asyncio
import json
import ssl
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import aiohttp

from nuage.api.client import ApiError, Client
from nuage.errors import TimedOut, Unavailable

OPEN_TIMEOUT_S: Final = 15.0
TEXT_CHARS_MAX: Final = 256 * 1024  # of output that nobody has asked for yet
SILENT_HINT: Final = (
    "its guest may be booting, or not read: `nuage vm show` and `nuage vm console` tell"
)


class ConsoleStream:
    """One console, attached. Use as an async context."""

    def __init__(self, client: Client, vm_path: str, *, after_bytes: int | None = None) -> None:
        self._client = client
        self._path = f"{vm_path}/console/stream"
        self._query = {} if after_bytes is None else {"after_bytes": str(after_bytes)}
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._typed_bytes = 0
        self.taken_bytes = 0

    async def __aenter__(self) -> Self:
        endpoint = self._client.endpoint
        connector: aiohttp.BaseConnector
        if endpoint.startswith("unix:"):
            connector = aiohttp.UnixConnector(endpoint.removeprefix("unix:"))
            base = "http://localhost"
        else:
            context = ssl.create_default_context(cafile=self._client.ca_file or None)
            connector, base = aiohttp.TCPConnector(ssl=context), endpoint.rstrip("/")
        self._session = aiohttp.ClientSession(connector=connector)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                self._socket = await self._upgrade(base)
        except TimeoutError:
            await self._session.close()
            raise TimedOut(
                "attaching to the console", after_s=OPEN_TIMEOUT_S, hint=SILENT_HINT
            ) from None
        except BaseException:
            await self._session.close()
            raise
        return self

    async def _upgrade(self, base: str) -> aiohttp.ClientWebSocketResponse:
        assert self._session is not None
        token = self._client.token
        headers = {"Authorization": f"Bearer {token}"}
        try:
            return await self._session.ws_connect(
                base + quote(self._path), headers=headers, params=self._query
            )
        except aiohttp.WSServerHandshakeError:
            # aiohttp drops the body of a refusal: ask again as a plain request, and hear why. An
            # expired token is renewed by that, and what is left is that a console is a WebSocket.
            try:
                self._client.get(self._path, **self._query)
            except ApiError:
                if self._client.token == token:
                    raise
            return await self._upgrade(base)
        except aiohttp.ClientConnectionError as error:
            raise Unavailable(
                f"{self._client.endpoint} cannot be reached: {error}",
                hint="is the site up? `nuage lab status` tells for a lab",
            ) from error

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._session is not None:
            await self._session.close()

    async def read(self) -> bytes | None:
        """Return what the guest wrote next, b"" when it took keys; None once the console ended.

        Raises:
            ApiError: the console broke off, and why.
        """
        assert self._socket is not None
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return bytes(message.data)
        if message.type is not aiohttp.WSMsgType.TEXT:
            return None
        document = json.loads(message.data)
        if "error" in document:
            raise ApiError(document["error"], "", 0)
        self.taken_bytes = int(document["taken"])
        return b""

    async def send(self, keys: bytes) -> None:
        """Send keys; they are typed in order."""
        assert self._socket is not None
        await self._socket.send_bytes(keys)
        self._typed_bytes += len(keys)

    @property
    def is_all_taken(self) -> bool:
        """Tell whether the guest has taken all that was typed, as far as was read."""
        return self.taken_bytes >= self._typed_bytes


class Console:
    """The same for plain blocking code: type, and wait for what the guest says."""

    def __init__(self, client: Client, vm_path: str, *, after_bytes: int | None = None) -> None:
        self._stream = ConsoleStream(client, vm_path, after_bytes=after_bytes)
        self._runner = asyncio.Runner()
        self.text = ""

    def __enter__(self) -> Self:
        try:
            self._runner.run(self._stream.__aenter__())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._runner.run(self._stream.__aexit__(None, None, None))
        self._runner.close()

    def type(self, text: str, timeout_s: float = OPEN_TIMEOUT_S) -> None:
        """Type `text`; return once the guest has taken it.

        Raises:
            TimedOut: it does not read.
        """

        async def typed() -> None:
            await self._stream.send(text.encode())
            await self._read_until(lambda: self._stream.is_all_taken)

        self._run(typed(), "typing on a console", timeout_s)

    def wait_for(self, text: str, timeout_s: float) -> str:
        """Return all that was read so far once it holds `text`.

        Raises:
            TimedOut: it never does.
        """
        self._run(
            self._read_until(lambda: text in self.text), f"a console to say {text!r}", timeout_s
        )
        return self.text

    async def _read_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            data = await self._stream.read()
            if data is None:
                raise Unavailable("the console ended", hint="did the VM stop?")
            self.text = (self.text + data.decode("utf-8", errors="replace"))[-TEXT_CHARS_MAX:]

    def _run(self, work: Coroutine[object, object, None], what: str, timeout_s: float) -> None:
        async def bounded() -> None:
            try:
                async with asyncio.timeout(timeout_s):
                    await work
            except TimeoutError:
                raise TimedOut(what, after_s=timeout_s, hint=SILENT_HINT) from None

        self._runner.run(bounded())
