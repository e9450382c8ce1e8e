"""One end of a channel as a synchronous machine: bytes and wishes in, bytes and frames out.

Theory of operation. Each side opens with `Hello`; the version used is the highest both speak.
From then on both sides may call, notify and subscribe. A side numbers its own calls and
streams upwards from 1, in one sequence; answers carry that number back, so no number means two
things. A call ends by Response, Failure or the caller's Cancel; a stream by End, Failure or
Cancel. Because Cancel crosses answers on the wire, an answer to a number that is no longer open
is dropped; one to a number never used breaks the protocol.

Fault model. The peer is authenticated but may be wrong, old or hostile: whatever it sends, this
machine raises RemoteProtocolError at most, and keeps no more than its named limits. The
connection may die at any byte; then everything open is lost and its effect unknown, which the
caller is told.

Knows no socket, task or clock; `now_s` is any monotonic clock's.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from msgspec import Raw

from nuage.channel.failures import failure_of
from nuage.channel.frames import (
    FRAME_BYTES_MAX,
    Bye,
    Cancel,
    Credit,
    End,
    Failure,
    Frame,
    FrameReader,
    Hello,
    Item,
    Notify,
    Ping,
    Pong,
    Request,
    Response,
    Subscribe,
    encode_frame,
)
from nuage.errors import LocalProtocolError, NuageError, RemoteProtocolError, Unavailable

VERSION_MIN: Final = 1
VERSION_MAX: Final = 1
CALLS_IN_FLIGHT_MAX: Final = 4096  # a controller with 168 nodes' reports and API calls in one burst
STREAMS_MAX: Final = 256  # feeds and event streams, a few per peer
CREDIT_MAX: Final = 65536
PING_AFTER_S: Final = 2.0  # of silence
LOST_AFTER_S: Final = 6.0  # of silence: two pings; a node is lost and a site cut off as soon


class ChannelPhase(Enum):
    """Life of a connection."""

    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Opened:
    """Both sides have said hello and speak `version`."""

    version: int
    software: str


Event: TypeAlias = (
    Opened | Request | Response | Failure | Notify | Subscribe | Item | Credit | End | Cancel | Bye
)


class ChannelMachine:
    """One end of one connection; see the module for how it works."""

    def __init__(
        self,
        *,
        now_s: float,
        versions: tuple[int, int] = (VERSION_MIN, VERSION_MAX),
        software: str = "",
    ) -> None:
        self.phase = ChannelPhase.GREETING
        self._versions = versions
        self._reader = FrameReader()
        self._out: list[bytes] = []
        self._next_id = 1
        self._calls: set[int] = set()
        self._streams: dict[int, int] = {}  # ours: items the peer may still send
        self._peer_last_id = 0
        self._serving: set[int] = set()
        self._feeding: dict[int, int] = {}  # the peer's streams: items we may still send
        self._heard_s = self._ticked_s = now_s
        self._pinged = 0
        self._send(Hello(versions[0], versions[1], software))

    # What the owner does ------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """Return what has to go out now, and forget it."""
        out = self._out
        if len(out) == 1:
            data = out[0]
            out.clear()
            return data
        data = b"".join(out)
        out.clear()
        return data

    @property
    def has_data(self) -> bool:
        """Tell whether something has to go out."""
        return bool(self._out)

    def request(self, method: str, body: bytes, *, request_id: str, budget_ms: int) -> int:
        """Open a call and return its number.

        Raises:
            Unavailable: too many calls are open already.
        """
        if len(self._calls) >= CALLS_IN_FLIGHT_MAX:
            raise Unavailable(f"{CALLS_IN_FLIGHT_MAX} calls wait for this peer already")
        call_id = self._next_id
        self._send(Request(call_id, method, request_id, budget_ms, Raw(body)))
        self._next_id = call_id + 1
        self._calls.add(call_id)
        return call_id

    def subscribe(self, method: str, body: bytes, *, request_id: str, credit: int) -> int:
        """Open a stream whose peer may send `credit` items, and return its number.

        Raises:
            Unavailable: too many streams are open already.
        """
        if not 1 <= credit <= CREDIT_MAX:
            raise LocalProtocolError(f"credit {credit} is not 1 to {CREDIT_MAX}")
        if len(self._streams) >= STREAMS_MAX:
            raise Unavailable(f"{STREAMS_MAX} streams are open to this peer already")
        stream_id = self._next_id
        self._send(Subscribe(stream_id, method, request_id, credit, Raw(body)))
        self._next_id = stream_id + 1
        self._streams[stream_id] = credit
        return stream_id

    def notify(self, method: str, body: bytes, *, request_id: str) -> None:
        """Tell the peer something; there is no answer."""
        self._send(Notify(method, request_id, Raw(body)))

    def cancel(self, call_id: int) -> None:
        """Give up a call or a stream of ours; nothing of it is reported any more."""
        if call_id in self._calls:
            self._calls.remove(call_id)
        elif self._streams.pop(call_id, None) is None:
            return
        self._send(Cancel(call_id))

    def grant(self, stream_id: int, count: int) -> None:
        """Allow the peer `count` more items of a stream of ours; nothing when it has ended."""
        credit = self._streams.get(stream_id)
        if credit is not None:
            self._streams[stream_id] = credit + count
            self._send(Credit(stream_id, count))

    def respond(self, call_id: int, body: bytes) -> None:
        """Answer the peer's call; nothing when the peer has cancelled it."""
        if call_id in self._serving:
            self._send(Response(call_id, Raw(body)))
            self._serving.remove(call_id)

    def fail(self, call_id: int, error: NuageError) -> None:
        """Answer the peer's call, or end its stream, with an error."""
        if call_id in self._serving:
            self._serving.remove(call_id)
        elif self._feeding.pop(call_id, None) is None:
            return
        self._send(failure_of(call_id, error))

    def credit_of(self, stream_id: int) -> int:
        """Return how many items of the peer's stream may be sent now; -1 when it is over."""
        return self._feeding.get(stream_id, -1)

    def item(self, stream_id: int, body: bytes) -> None:
        """Send one item of the peer's stream.

        Raises:
            LocalProtocolError: there is no credit; ask `credit_of` first.
        """
        credit = self._feeding.get(stream_id, 0)
        if credit < 1:
            raise LocalProtocolError(f"stream {stream_id} has no credit")
        self._send(Item(stream_id, Raw(body)))
        self._feeding[stream_id] = credit - 1

    def end(self, stream_id: int) -> None:
        """Complete the peer's stream."""
        if self._feeding.pop(stream_id, None) is not None:
            self._send(End(stream_id))

    def bye(self, reason: str) -> None:
        """Say why the connection is about to be closed."""
        if self.phase is not ChannelPhase.CLOSED:
            self._send(Bye(reason))
            self.phase = ChannelPhase.CLOSED

    def tick(self, now_s: float) -> bool:
        """Ping a silent peer; return False when it has been silent for too long.

        To be called every `PING_AFTER_S`. What a call comes late by, this process did not run: that
        is no silence of the peer's, whose bytes may wait in the socket.
        """
        self._heard_s += max(0.0, now_s - self._ticked_s - PING_AFTER_S)
        self._ticked_s = now_s
        silent_s = now_s - self._heard_s
        if silent_s >= LOST_AFTER_S:
            return False
        if silent_s >= PING_AFTER_S and self.phase is ChannelPhase.OPEN:
            self._pinged += 1
            self._send(Ping(self._pinged))
        return True

    # What the peer does -------------------------------------------------------------------

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Return the events that `data` completes, in order.

        Raises:
            RemoteProtocolError: the peer broke the protocol; say bye and close. Events of
                earlier frames in `data` are lost with the connection.
        """
        self._heard_s = now_s
        reader = self._reader
        reader.receive(data)
        events: list[Event] = []
        while self.phase is not ChannelPhase.CLOSED:
            frame = reader.next_frame()
            if frame is None:
                break
            event = self._take(frame)
            if event is not None:
                events.append(event)
        return events

    def _take(self, frame: Frame) -> Event | None:
        if self.phase is ChannelPhase.GREETING:
            return self._greet(frame)
        match frame:
            case Request() | Subscribe():
                return self._opened_by_peer(frame)
            case Response() | Failure() | Item() | End():
                return self._answered(frame)
            case Notify():
                return frame
            case Credit(id=stream_id, count=count):
                return self._credited(frame) if stream_id in self._feeding and count else None
            case Cancel(id=call_id):
                self._serving.discard(call_id)
                self._feeding.pop(call_id, None)
                return frame
            case Ping(nonce=nonce):
                self._send(Pong(nonce))
                return None
            case Pong():
                return None
            case Bye():
                self.phase = ChannelPhase.CLOSED
                return frame
            case Hello():
                raise RemoteProtocolError("the peer said hello twice")

    def _greet(self, frame: Frame) -> Event | None:
        if isinstance(frame, Bye):
            self.phase = ChannelPhase.CLOSED
            return frame
        if not isinstance(frame, Hello):
            raise RemoteProtocolError(f"{type(frame).__name__} before hello")
        lowest, highest = self._versions
        version = min(highest, frame.version_max)
        if version < max(lowest, frame.version_min):
            raise RemoteProtocolError(
                f"the peer speaks versions {frame.version_min} to {frame.version_max} of the "
                f"channel, this side {lowest} to {highest}",
                hint="upgrade the older side; neighbours may differ by one release",
            )
        self.phase = ChannelPhase.OPEN
        self._reader.allow(FRAME_BYTES_MAX)
        return Opened(version, frame.software)

    def _opened_by_peer(self, frame: Request | Subscribe) -> Event | None:
        if frame.id <= self._peer_last_id:
            raise RemoteProtocolError(f"call {frame.id} after call {self._peer_last_id}")
        self._peer_last_id = frame.id
        if isinstance(frame, Request):
            if len(self._serving) >= CALLS_IN_FLIGHT_MAX:
                self._send(failure_of(frame.id, Unavailable("too many calls at once")))
                return None
            self._serving.add(frame.id)
            return frame
        if not 1 <= frame.credit <= CREDIT_MAX:
            raise RemoteProtocolError(f"a stream with a credit of {frame.credit}")
        if len(self._feeding) >= STREAMS_MAX:
            self._send(failure_of(frame.id, Unavailable("too many streams at once")))
            return None
        self._feeding[frame.id] = frame.credit
        return frame

    def _answered(self, frame: Response | Failure | Item | End) -> Event | None:
        frame_id = frame.id
        if frame_id >= self._next_id or frame_id < 1:
            raise RemoteProtocolError(f"an answer to call {frame_id}, which was never made")
        if isinstance(frame, Item):
            credit = self._streams.get(frame_id)
            if credit is None:
                return None
            if credit < 1:
                raise RemoteProtocolError(f"an item of stream {frame_id} without credit")
            self._streams[frame_id] = credit - 1
            return frame
        if frame_id in self._calls and not isinstance(frame, End):
            self._calls.remove(frame_id)
            return frame
        if self._streams.pop(frame_id, None) is not None:
            if isinstance(frame, Response):
                raise RemoteProtocolError(f"a response to stream {frame_id}")
            return frame
        return None

    def _credited(self, frame: Credit) -> Event:
        credit = self._feeding[frame.id] + frame.count
        if frame.count < 0 or credit > CREDIT_MAX:
            raise RemoteProtocolError(f"stream {frame.id} credited to {credit}")
        self._feeding[frame.id] = credit
        return frame

    def _send(self, frame: Frame) -> None:
        if self.phase is ChannelPhase.CLOSED:
            return  # an answer that came too late
        self._out.append(encode_frame(frame))
