"""The daemon at the other end of an open channel: call it, tell it, follow it.

A `Peer` feeds one `ChannelMachine` from one transport and runs the handlers for what the
other side asks. It does not connect and does not reconnect (`client`, `server`, `memory`).

Invariants. Every call ends: by its answer, its deadline, its caller's cancellation or the loss of
the connection. Whatever is written within one turn of the event loop leaves in one write.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

import msgspec
import structlog
from structlog.contextvars import bind_contextvars, get_contextvars, unbind_contextvars

from nuage.channel.failures import error_of
from nuage.channel.frames import (
    Bye,
    Cancel,
    Credit,
    End,
    Failure,
    Item,
    Notify,
    Request,
    Response,
    Subscribe,
)
from nuage.channel.handlers import Handlers
from nuage.channel.identity import Identity
from nuage.channel.machine import PING_AFTER_S, ChannelMachine, Event, Opened
from nuage.channel.subscription import Inbox, Subscription
from nuage.clock import Clock
from nuage.errors import UNREADABLE, NuageError, RemoteProtocolError, TimedOut, Unavailable

CALL_TIMEOUT_S: Final = 10.0  # what a caller that names none waits
STREAM_CREDIT: Final = 64  # items in flight: a round trip of 20 ms still gives 3200 items/s
WRITE_BUFFER_BYTES_MAX: Final = 64 * 1024 * 1024  # a peer that reads this slowly is lost
SOFTWARE: Final = "nuage"
NEVER_S: Final = float("inf")

T = TypeVar("T")
log: Final = structlog.get_logger("nuage.channel")

_encode: Final = msgspec.msgpack.Encoder().encode
_decoders: Final[dict[object, object]] = {}


def _decoder_of(result_type: type[T]) -> msgspec.msgpack.Decoder[T]:
    decoder = _decoders.get(result_type)
    if decoder is None:
        decoder = _decoders[result_type] = msgspec.msgpack.Decoder(result_type)
    return decoder  # type: ignore[return-value]  # the table's values follow its keys


class ByteTransport(Protocol):
    """What a Peer writes to; asyncio's transports and `memory` are."""

    def write(self, data: bytes, /) -> None:
        """Send `data` sometime soon, in order."""
        ...

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to leave."""
        ...

    def close(self) -> None:
        """Send what waits, then close."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


@dataclass(slots=True)
class _Call:
    answer: asyncio.Future[Response]
    method: str
    timeout_s: float
    deadline_s: float


@dataclass(slots=True)
class _Served:
    """A call or a stream of the peer that one of our handlers works on."""

    task: asyncio.Task[None]
    method: str
    deadline_s: float
    runs_to_end: bool = False
    credited: asyncio.Event | None = None

    def stop(self) -> None:
        """Cancel: nobody waits for it any more. What must not stop half-way goes on."""
        if not self.runs_to_end:
            self.task.cancel()


class Peer:
    """One end of an open connection. `identity` is the other side's, verified."""

    def __init__(
        self,
        *,
        identity: Identity,
        handlers: Handlers,
        clock: Clock,
        certificate_der: bytes = b"",
        on_open: Callable[["Peer"], None] | None = None,
        on_closed: Callable[["Peer"], None] | None = None,
    ) -> None:
        self.identity = identity
        self.certificate_der = certificate_der
        self.close_reason = ""
        self._handlers = handlers
        self._clock = clock
        self._on_open = on_open
        self._on_closed = on_closed
        self._machine = ChannelMachine(now_s=clock.monotonic_s(), software=SOFTWARE)
        self._transport: ByteTransport | None = None
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # handlers see the daemon's log fields, no request's
        self._context.run(unbind_contextvars, "request_id")
        self._flushing = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._calls: dict[int, _Call] = {}
        self._inboxes: dict[int, Inbox] = {}
        self._served: dict[int, _Served] = {}
        self._notices: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._watch_until_s = 0.0
        self._keeper: asyncio.Task[None] | None = None

    # For everybody ------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Tell whether the connection is over."""
        return self._closed.is_set()

    async def call(
        self, method: str, body: object, result_type: type[T], timeout_s: float = CALL_TIMEOUT_S
    ) -> T:
        """Ask the peer and return its answer.

        Raises:
            NuageError: what the peer's handler raised, of the same class.
            TimedOut: no answer in time, or the connection was lost; it may have taken effect.
            Unavailable: the connection is closed already; nothing was sent.
            RemoteProtocolError: the answer is not a `result_type`.
        """
        payload = _encode(body)
        if not self._writable.is_set():
            await self._wait_writable(method, timeout_s)
        self._require_open()
        call_id = self._machine.request(
            method, payload, request_id=current_request_id(), budget_ms=int(timeout_s * 1000)
        )
        deadline_s = self._clock.monotonic_s() + timeout_s
        answer: asyncio.Future[Response] = self._loop.create_future()
        self._calls[call_id] = _Call(answer, method, timeout_s, deadline_s)
        self._watch_deadline(deadline_s)
        self._flush_soon()
        try:
            response = await answer
        finally:
            if self._calls.pop(call_id, None) is not None:
                self._machine.cancel(call_id)
                self._flush_soon()
        return self._decoded(method, response.body, result_type)

    def notify(self, method: str, body: object) -> None:
        """Tell the peer; whether it arrives is not known.

        Raises:
            Unavailable: the connection is closed.
        """
        self._require_open()
        self._machine.notify(method, _encode(body), request_id=current_request_id())
        self._flush_soon()

    def subscribe(
        self, method: str, body: object, item_type: type[T], *, credit: int = STREAM_CREDIT
    ) -> Subscription[T]:
        """Return the items that the peer's stream `method` sends, as it sends them.

        Iterate it, or use it as an async context manager to be sure that it is cancelled.

        Raises:
            Unavailable: the connection is closed.
        """
        self._require_open()
        stream_id = self._machine.subscribe(
            method, _encode(body), request_id=current_request_id(), credit=credit
        )
        inbox = self._inboxes[stream_id] = Inbox()
        self._flush_soon()
        return Subscription(
            inbox,
            read=lambda body: self._decoded(method, body, item_type),
            grant=partial(self._grant, stream_id),
            cancel=partial(self._unsubscribe, stream_id),
            credit=credit,
        )

    def close(self, reason: str = "closed") -> None:
        """Say goodbye and close; calls in flight fail on both sides."""
        if self._closed.is_set():
            return
        self._machine.bye(reason)
        self._flush()
        if self._transport is not None:
            self._transport.close()
        self.connection_lost(reason)

    async def wait_closed(self) -> str:
        """Wait until the connection is over and return why."""
        await self._closed.wait()
        return self.close_reason

    # For the transport --------------------------------------------------------------------

    def connection_made(self, transport: ByteTransport) -> None:
        """Begin: say hello on `transport`."""
        self._transport = transport
        self._keeper = self._loop.create_task(self._keep_alive())
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the peer and act on what they complete."""
        try:
            events = self._machine.receive(data, self._clock.monotonic_s())
        except RemoteProtocolError as error:
            log.warning("channel.protocol_error", peer=str(self.identity), error=error.message)
            self.close(f"protocol error: {error.message}")
            return
        for event in events:
            self._act(event)
        if self._machine.has_data:  # a pong, a refusal; handlers flush for themselves
            self._flush_soon()

    def connection_lost(self, reason: str) -> None:
        """End everything that is open; the peer's answers will not come."""
        if self._closed.is_set():
            return
        self.close_reason = self.close_reason or reason
        self._closed.set()
        self._writable.set()
        for call in tuple(self._calls.values()):
            self._lose(call)
        for inbox in self._inboxes.values():
            inbox.error = inbox.error or Unavailable(
                f"the channel to {self.identity} is closed ({self.close_reason})"
            )
            inbox.wake()
        self._inboxes.clear()
        for task in (self._watch, self._keeper, *self._notices):
            if task is not None:
                task.cancel()
        for served in tuple(self._served.values()):
            served.stop()
        if self._on_closed is not None:
            self._on_closed(self)

    def pause_writing(self) -> None:
        """Hold back: the peer does not read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()

    # Sending ------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        data = self._machine.data_to_send()
        if not data or self._transport is None or self._closed.is_set():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > WRITE_BUFFER_BYTES_MAX:
            self._abort(f"the peer left {WRITE_BUFFER_BYTES_MAX} bytes unread")

    def _abort(self, reason: str) -> None:
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(reason)

    async def _wait_writable(self, method: str, timeout_s: float) -> None:
        waiting = self._loop.create_task(self._writable.wait())
        sleeping = self._loop.create_task(self._sleep(timeout_s))
        try:
            await asyncio.wait({waiting, sleeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            sleeping.cancel()
        if not self._writable.is_set():
            raise TimedOut(f"sending {method!r} to {self.identity}", after_s=timeout_s)

    async def _sleep(self, delay_s: float) -> None:
        await self._clock.sleep(delay_s)

    def _require_open(self) -> None:
        if self._closed.is_set():
            raise Unavailable(f"the channel to {self.identity} is closed ({self.close_reason})")

    def _decoded(self, method: str, body: msgspec.Raw, result_type: type[T]) -> T:
        try:
            return _decoder_of(result_type).decode(body)
        except UNREADABLE as error:
            raise RemoteProtocolError(
                f"{self.identity} answered {method!r} with something else: {error}",
                hint="one of the two runs another release",
            ) from error

    # Time ---------------------------------------------------------------------------------

    def _watch_deadline(self, deadline_s: float) -> None:
        """Have `_expire` run by `deadline_s`; one sleeper serves all calls."""
        if self._watch is not None and not self._watch.done():
            if self._watch_until_s <= deadline_s:
                return
            self._watch.cancel()
        self._watch_until_s = deadline_s
        self._watch = self._loop.create_task(self._watch_deadlines())

    async def _watch_deadlines(self) -> None:
        while True:
            await self._clock.sleep(max(0.0, self._watch_until_s - self._clock.monotonic_s()))
            next_s = self._expire(self._clock.monotonic_s())
            if next_s is None:
                return
            self._watch_until_s = next_s

    def _expire(self, now_s: float) -> float | None:
        """Fail what is overdue; return the next deadline, None when nothing waits."""
        next_s: float | None = None
        for call in tuple(self._calls.values()):
            if call.deadline_s <= now_s:
                doing = f"{call.method!r} at {self.identity}"
                if not call.answer.done():
                    call.answer.set_exception(TimedOut(doing, after_s=call.timeout_s))
            else:
                next_s = call.deadline_s if next_s is None else min(next_s, call.deadline_s)
        for served in tuple(self._served.values()):
            if served.deadline_s <= now_s:
                served.stop()
            elif served.deadline_s != NEVER_S:
                next_s = served.deadline_s if next_s is None else min(next_s, served.deadline_s)
        return next_s

    def _lose(self, call: _Call) -> None:
        if not call.answer.done():
            waited_s = call.timeout_s - (call.deadline_s - self._clock.monotonic_s())
            doing = f"{call.method!r} at {self.identity}; connection lost: {self.close_reason}"
            call.answer.set_exception(TimedOut(doing, after_s=max(0.0, waited_s)))

    async def _keep_alive(self) -> None:
        while True:
            await self._clock.sleep(PING_AFTER_S)
            if not self._machine.tick(self._clock.monotonic_s()):
                self._abort("the peer has been silent for too long")
                return
            self._flush_soon()

    # Receiving ----------------------------------------------------------------------------

    def _act(self, event: Event) -> None:
        match event:
            case Response(id=call_id):
                call = self._calls.pop(call_id, None)
                if call is not None and not call.answer.done():
                    call.answer.set_result(event)
            case Request(id=call_id, method=method, budget_ms=budget_ms):
                deadline_s = NEVER_S
                if budget_ms:
                    deadline_s = self._clock.monotonic_s() + budget_ms / 1000
                    self._watch_deadline(deadline_s)
                self._serve(call_id, method, self._answer(event), deadline_s)
            case Notify():
                task = self._loop.create_task(
                    self._take_notice(event), context=self._context.copy()
                )
                self._notices.add(task)
                task.add_done_callback(self._notice_done)
            case Item(id=stream_id, body=body):
                inbox = self._inboxes[stream_id]
                inbox.items.append(body)
                inbox.wake()
            case Failure():
                self._failed(event)
            case End(id=stream_id):
                inbox = self._inboxes.pop(stream_id)
                inbox.ended = True
                inbox.wake()
            case Subscribe(id=stream_id, method=method):
                served = self._serve(stream_id, method, self._feed(event), NEVER_S)
                served.credited = asyncio.Event()
            case Credit(id=stream_id):
                served_stream = self._served.get(stream_id)
                if served_stream is not None and served_stream.credited is not None:
                    served_stream.credited.set()
            case Cancel(id=call_id):
                cancelled = self._served.get(call_id)
                if cancelled is not None:
                    cancelled.stop()
            case Opened():
                if self._on_open is not None:
                    self._on_open(self)
            case Bye(reason=reason):
                self.close_reason = f"the peer said: {reason}"
                if self._transport is not None:
                    self._transport.close()
                self.connection_lost(self.close_reason)

    def _failed(self, failure: Failure) -> None:
        call = self._calls.pop(failure.id, None)
        if call is not None:
            if not call.answer.done():
                call.answer.set_exception(error_of(failure))
            return
        inbox = self._inboxes.pop(failure.id, None)
        if inbox is not None:
            inbox.error = error_of(failure)
            inbox.wake()

    def _serve(
        self, call_id: int, method: str, work: Coroutine[None, None, None], deadline_s: float
    ) -> _Served:
        task: asyncio.Task[None] = self._loop.create_task(work, context=self._context.copy())
        runs_to_end = self._handlers.runs_to_end(method)
        served = self._served[call_id] = _Served(task, method, deadline_s, runs_to_end)
        task.add_done_callback(lambda done: self._served_done(call_id, method, done))
        return served

    def _served_done(self, call_id: int, method: str, task: asyncio.Task[None]) -> None:
        self._served.pop(call_id, None)
        if task.cancelled():
            # Our own handler was cancelled, or the caller gave up: then this goes nowhere.
            error: NuageError = TimedOut(f"{method!r} was cancelled", after_s=0.0)
        else:
            failure = task.exception()
            if failure is None:
                return
            error = self._told(method, failure)
        self._machine.fail(call_id, error)
        self._flush_soon()

    def _told(self, method: str, failure: BaseException) -> NuageError:
        """Return what the caller may know of `failure`: all of ours, nothing of a bug."""
        if isinstance(failure, NuageError):
            return failure
        log.error("channel.handler_failed", method=method, exc_info=failure)
        return NuageError(f"{method!r} failed inside the peer: a bug, described in its log")

    async def _answer(self, request: Request) -> None:
        if request.request_id:
            bind_contextvars(request_id=request.request_id)
        entry = self._handlers.require_method(request.method)
        entry.require_role(self)
        assert entry.call is not None, "a method has a function"
        result = await entry.call(self, request.body)
        self._machine.respond(request.id, _encode(result))
        self._flush_soon()

    async def _take_notice(self, notice: Notify) -> None:
        if notice.request_id:
            bind_contextvars(request_id=notice.request_id)
        entry = self._handlers.require_notice(notice.method)
        entry.require_role(self)
        assert entry.call is not None, "a notice has a function"
        await entry.call(self, notice.body)

    def _notice_done(self, task: asyncio.Task[None]) -> None:
        self._notices.discard(task)
        if task.cancelled():
            return
        failure = task.exception()
        if isinstance(failure, NuageError):
            log.warning("channel.notice_refused", peer=str(self.identity), error=failure.message)
        elif failure is not None:
            log.error("channel.notice_failed", peer=str(self.identity), exc_info=failure)

    async def _feed(self, subscribe: Subscribe) -> None:
        if subscribe.request_id:
            bind_contextvars(request_id=subscribe.request_id)
        entry = self._handlers.require_stream(subscribe.method)
        entry.require_role(self)
        assert entry.stream is not None, "a stream has a function"
        credited = self._served[subscribe.id].credited
        assert credited is not None, "set before the task first runs"
        async with aclosing(_closable(entry.stream(self, subscribe.body))) as items:
            async for item in items:
                body = _encode(item)
                while self._machine.credit_of(subscribe.id) == 0:
                    credited.clear()
                    await credited.wait()
                await self._writable.wait()
                if self._machine.credit_of(subscribe.id) < 0:
                    return
                self._machine.item(subscribe.id, body)
                self._flush_soon()
        self._machine.end(subscribe.id)
        self._flush_soon()

    # For Subscription ---------------------------------------------------------------------

    def _grant(self, stream_id: int, count: int) -> None:
        self._machine.grant(stream_id, count)
        self._flush_soon()

    def _unsubscribe(self, stream_id: int) -> None:
        if self._inboxes.pop(stream_id, None) is not None:
            self._machine.cancel(stream_id)
            self._flush_soon()


def current_request_id() -> str:
    """Return the request id that logs carry here, or ""."""
    return str(get_contextvars().get("request_id", ""))


async def _closable(items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Yield from `items` and close it, whatever kind of iterator it is."""
    try:
        async for item in items:
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
