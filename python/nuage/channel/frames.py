"""The frames of the channel: bytes in, frames out (docs/protocols/channel.md §2, §3).

Knows no socket, clock or method. A frame is::

    0      4                4 + length
    +------+----------------------+
    | len  | MessagePack array    |    len: unsigned, big-endian, of the array alone
    +------+----------------------+

The array begins with the frame's kind. `body` stays undecoded (`Raw`): only whoever knows
the method knows its type.
"""

from typing import Final, TypeAlias

import msgspec
from msgspec import Raw, Struct

from nuage.errors import UNREADABLE, LocalProtocolError, RemoteProtocolError

LENGTH_BYTES: Final = 4
FRAME_BYTES_MAX: Final = 16 * 1024 * 1024  # a whole desired state of a node fits many times
HELLO_BYTES_MAX: Final = 4096  # before the peer has said hello it may not make us keep more


class Hello(Struct, array_like=True, tag=0, frozen=True):
    """First frame of each side: the versions it speaks."""

    version_min: int
    version_max: int
    software: str = ""


class Request(Struct, array_like=True, tag=1, frozen=True):
    """A call. `budget_ms` is what is left of the caller's deadline; 0 is none."""

    id: int
    method: str
    request_id: str
    budget_ms: int
    body: Raw


class Response(Struct, array_like=True, tag=2, frozen=True):
    """The answer to the call `id`."""

    id: int
    body: Raw


class Failure(Struct, array_like=True, tag=3, frozen=True):
    """The call or the stream `id` failed.

    `codes` begins with the error's own code, then its parents': an older peer that does not
    know the first still finds one that it knows.
    """

    id: int
    codes: tuple[str, ...]
    message: str
    hint: str
    fields: Raw


class Notify(Struct, array_like=True, tag=4, frozen=True):
    """One way: no answer, no promise that it was acted upon."""

    method: str
    request_id: str
    body: Raw


class Subscribe(Struct, array_like=True, tag=5, frozen=True):
    """Ask for a stream of items; the peer may send `credit` of them unasked."""

    id: int
    method: str
    request_id: str
    credit: int
    body: Raw


class Item(Struct, array_like=True, tag=6, frozen=True):
    """One item of the stream `id`; uses one credit."""

    id: int
    body: Raw


class Credit(Struct, array_like=True, tag=7, frozen=True):
    """Allow `count` more items of the stream `id`."""

    id: int
    count: int


class End(Struct, array_like=True, tag=8, frozen=True):
    """The stream `id` is complete."""

    id: int


class Cancel(Struct, array_like=True, tag=9, frozen=True):
    """The caller no longer wants the call or the stream `id`."""

    id: int


class Ping(Struct, array_like=True, tag=10, frozen=True):
    """Are you there?"""

    nonce: int


class Pong(Struct, array_like=True, tag=11, frozen=True):
    """Yes."""

    nonce: int


class Bye(Struct, array_like=True, tag=12, frozen=True):
    """The sender closes the connection, and why."""

    reason: str


Frame: TypeAlias = (
    Hello
    | Request
    | Response
    | Failure
    | Notify
    | Subscribe
    | Item
    | Credit
    | End
    | Cancel
    | Ping
    | Pong
    | Bye
)

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Frame]] = msgspec.msgpack.Decoder(Frame)


def encode_frame(frame: Frame) -> bytes:
    """Return `frame` with its length before it.

    Raises:
        LocalProtocolError: it is longer than `FRAME_BYTES_MAX`; send less at a time.
    """
    payload = _encoder.encode(frame)
    if len(payload) > FRAME_BYTES_MAX:
        raise LocalProtocolError(
            f"a {type(frame).__name__} of {len(payload)} bytes does not fit a frame",
            hint=f"a frame carries at most {FRAME_BYTES_MAX} bytes; send a stream",
        )
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def decode_frame(payload: bytes | memoryview) -> Frame:
    """Return the frame in `payload` (without its length).

    Raises:
        RemoteProtocolError: it is not a frame.
    """
    try:
        return _decoder.decode(payload)
    except UNREADABLE as error:
        raise RemoteProtocolError(f"the peer sent what is not a frame: {error}") from error


class FrameReader:
    """Splits a byte stream into frames; keeps what is not yet complete."""

    __slots__ = ("_bytes_max", "_rest")

    def __init__(self, bytes_max: int = HELLO_BYTES_MAX) -> None:
        self._rest = bytearray()
        self._bytes_max = bytes_max

    def allow(self, bytes_max: int) -> None:
        """Let the frames from now on have up to `bytes_max` bytes."""
        self._bytes_max = bytes_max

    def receive(self, data: bytes) -> None:
        """Take `data` in; `next_frame` gives what it completes."""
        self._rest += data

    def next_frame(self) -> Frame | None:
        """Return the next complete frame, or None until more arrives.

        Raises:
            RemoteProtocolError: too long or not a frame; close the connection.
        """
        rest = self._rest
        if len(rest) < LENGTH_BYTES:
            return None
        length = int.from_bytes(rest[:LENGTH_BYTES], "big")
        if length > self._bytes_max:
            raise RemoteProtocolError(
                f"the peer announced a frame of {length} bytes; at most {self._bytes_max} now"
            )
        end = LENGTH_BYTES + length
        if len(rest) < end:
            return None
        payload = bytes(rest[LENGTH_BYTES:end])
        del rest[:end]  # from the front: CPython moves a pointer, not the bytes
        return decode_frame(payload)
