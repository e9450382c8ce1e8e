"""The calling side of the channel: one connection that mends itself.

Theory of operation. `start` begins a task that connects, says hello, and waits for the end;
then it waits a jittered, growing delay and connects again, until `close`. Calls made while
there is no connection fail at once with Unavailable: whoever calls knows whether to wait
(`wait_ready`), to ask elsewhere, or to tell the user.
"""

import asyncio
import ssl
from collections.abc import Callable
from enum import Enum
from random import Random
from typing import Final, TypeVar

import structlog

from nuage.channel.handlers import Handlers
from nuage.channel.identity import Admission, Expected, Identity, admit_all
from nuage.channel.peer import CALL_TIMEOUT_S, STREAM_CREDIT, Peer
from nuage.channel.protocol import HANDSHAKE_TIMEOUT_S, ChannelProtocol
from nuage.channel.subscription import Subscription
from nuage.clock import Clock
from nuage.errors import Forbidden, InvalidRequest, NuageError, TimedOut, Unavailable

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 10.0  # a healed site is back within this
CONNECT_TIMEOUT_S: Final = 10.0

T = TypeVar("T")
log: Final = structlog.get_logger("nuage.channel")


class ChannelState(Enum):
    """What a client is doing."""

    CONNECTING = "connecting"
    READY = "ready"
    WAITING = "waiting"  # until the next attempt
    CLOSED = "closed"


class Backoff:
    """Delays between attempts: doubling, capped, spread over half their length."""

    def __init__(self, prng: Random) -> None:
        self._prng = prng
        self._ceiling_s = BACKOFF_FIRST_S

    def reset(self) -> None:
        """Begin again: the last attempt succeeded."""
        self._ceiling_s = BACKOFF_FIRST_S

    def next_s(self) -> float:
        """Return how long to wait now."""
        ceiling_s = self._ceiling_s
        self._ceiling_s = min(BACKOFF_MAX_S, ceiling_s * 2)
        return ceiling_s * self._prng.uniform(0.5, 1.0)


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` (``[::1]:7000`` for IPv6).

    Raises:
        InvalidRequest: it is not such an address.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidRequest(f"{address!r} is not host:port", field="address")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def accepts(address: str, *, timeout_s: float) -> bool:
    """Tell whether somebody takes a connection at ``host:port``, which is closed at once."""
    host, port = parse_address(address)
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


class ChannelClient:
    """A channel to one daemon, kept open. Has the calls of `Peer`.

    `address` may hold several, with commas between: they are tried in turn.
    """

    def __init__(
        self,
        address: str,
        ssl_context: ssl.SSLContext,
        handlers: Handlers,
        clock: Clock,
        *,
        expected: Expected | None = None,
        admit: Admission = admit_all,
        on_state: Callable[[ChannelState, str], None] | None = None,
        prng: Random | None = None,
    ) -> None:
        self._addresses = address.split(",")
        self._turn = 0
        self.state = ChannelState.CLOSED
        for each in self._addresses:
            parse_address(each)
        self._ssl_context = ssl_context
        self._handlers = handlers
        self._clock = clock
        self._expected = expected
        self._admit = admit
        self._on_state = on_state
        self._backoff = Backoff(prng or Random())
        self._reason = "not started"
        self._retry_at_s = 0.0
        self._peer: Peer | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def address(self) -> str:
        """Return the address that is tried or connected now."""
        return self._addresses[self._turn]

    def start(self) -> None:
        """Begin to connect, and to connect again whenever the channel is lost."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Close the channel for good."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        self._peer = None
        self._ready.clear()
        self._set_state(ChannelState.CLOSED, "closed")

    async def __aenter__(self) -> "ChannelClient":
        self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def wait_ready(self, timeout_s: float) -> Peer:
        """Wait until the channel is open and return the peer.

        Raises:
            Unavailable: it is not open within `timeout_s`; the message says why not.
        """
        waiting = asyncio.ensure_future(self._ready.wait())
        sleeping = asyncio.ensure_future(self._clock.sleep(timeout_s))
        try:
            await asyncio.wait({waiting, sleeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            sleeping.cancel()
        return self.peer

    @property
    def peer(self) -> Peer:
        """Return the peer that is connected now.

        Raises:
            Unavailable: there is none; the message says why, and when the next attempt is.
        """
        if self._peer is None or self._peer.is_closed:
            whom = f"{self._expected} at {self.address}" if self._expected else self.address
            raise Unavailable(
                f"no channel to {whom}: {self._reason}",
                retry_after_s=max(0.1, self._retry_at_s - self._clock.monotonic_s()),
            )
        return self._peer

    @property
    def is_ready(self) -> bool:
        """Tell whether a call made now would be sent."""
        return self._peer is not None and not self._peer.is_closed

    async def call(
        self, method: str, body: object, result_type: type[T], timeout_s: float = CALL_TIMEOUT_S
    ) -> T:
        """Call the peer that is connected now; see `Peer.call`."""
        return await self.peer.call(method, body, result_type, timeout_s)

    def notify(self, method: str, body: object) -> None:
        """Tell the peer that is connected now; see `Peer.notify`."""
        self.peer.notify(method, body)

    def subscribe(
        self, method: str, body: object, item_type: type[T], *, credit: int = STREAM_CREDIT
    ) -> Subscription[T]:
        """Follow a stream of the peer that is connected now; see `Peer.subscribe`."""
        return self.peer.subscribe(method, body, item_type, credit=credit)

    # The loop -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._set_state(ChannelState.CONNECTING, "connecting")
            try:
                reason = await self._connect_once()
            except (OSError, NuageError) as error:
                reason = _told(error)
            self._peer = None
            self._ready.clear()
            delay_s = self._backoff.next_s()
            self._retry_at_s = self._clock.monotonic_s() + delay_s
            self._set_state(ChannelState.WAITING, reason)
            self._turn = (self._turn + 1) % len(self._addresses)
            await self._clock.sleep(delay_s)

    async def _connect_once(self) -> str:
        """Connect, stay until the connection is over, and return why it is."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Peer] = loop.create_future()
        opened.add_done_callback(_retrieved)
        protocol = ChannelProtocol(
            handlers=self._handlers,
            clock=self._clock,
            admit=self._admit_expected,
            on_open=lambda peer: None if opened.done() else opened.set_result(peer),
            on_closed=lambda peer: _settle(opened, _lost_early(peer)),
            on_refused=lambda error: _settle(opened, error),
        )
        try:
            peer = await self._hello(protocol, opened)
            self._peer = peer
            self._backoff.reset()
            self._set_state(ChannelState.READY, f"connected to {peer.identity}")
            self._ready.set()
            return await peer.wait_closed()
        finally:
            if protocol.peer is not None:
                protocol.peer.close("the client closes")
            await protocol.wait_lost()

    async def _hello(self, protocol: ChannelProtocol, opened: asyncio.Future[Peer]) -> Peer:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(
                    lambda: protocol,
                    *parse_address(self.address),
                    ssl=self._ssl_context,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                )
                return await opened
        except TimeoutError:
            raise TimedOut(f"connecting to {self.address}", after_s=CONNECT_TIMEOUT_S) from None

    def _admit_expected(self, identity: Identity, certificate_der: bytes) -> None:
        if self._expected is not None:
            refusal = self._expected.refusal_of(identity)
            if refusal:
                raise Forbidden(
                    f"{self.address} is {identity}: {refusal}",
                    hint="the address belongs to another daemon now; correct it",
                )
        self._admit(identity, certificate_der)

    def _set_state(self, state: ChannelState, reason: str) -> None:
        self._reason = reason
        if state is self.state:
            return
        self.state = state
        log.info("channel.state", address=self.address, state=state.value, reason=reason)
        if self._on_state is not None:
            self._on_state(state, reason)


def _settle(opened: asyncio.Future[Peer], error: NuageError) -> None:
    if not opened.done():
        opened.set_exception(error)


def _lost_early(peer: Peer) -> NuageError:
    return Unavailable(
        f"the connection ended before hello: {peer.close_reason}",
        hint="the server may not believe our certificate: its log says why",
    )


def _retrieved(opened: asyncio.Future[Peer]) -> None:
    """Mark the future's error as seen: it is told through `_connect_once`."""
    if not opened.cancelled():
        opened.exception()


def _told(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return str(error) or type(error).__name__
