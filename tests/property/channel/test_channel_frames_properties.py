"""Bytes in, frames out: however they are cut, and whatever they are."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuage.channel.failures import error_of, failure_of
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
    decode_frame,
    encode_frame,
)
from nuage.channel.machine import ChannelMachine
from nuage.errors import NoCandidate, NuageError, RemoteProtocolError

ids = st.integers(0, 2**40)
text = st.text(max_size=20)
bodies = st.builds(
    lambda value: msgspec.Raw(msgspec.msgpack.encode(value)),
    st.one_of(st.none(), st.integers(0, 99), st.text(max_size=40), st.lists(st.integers(0, 9))),
)
frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Hello, ids, ids, text),
    st.builds(Request, ids, text, text, ids, bodies),
    st.builds(Response, ids, bodies),
    st.builds(Failure, ids, st.tuples(text), text, text, bodies),
    st.builds(Notify, text, text, bodies),
    st.builds(Subscribe, ids, text, text, ids, bodies),
    st.builds(Item, ids, bodies),
    st.builds(Credit, ids, ids),
    st.builds(End, ids),
    st.builds(Cancel, ids),
    st.builds(Ping, ids),
    st.builds(Pong, ids),
    st.builds(Bye, text),
)


def read_all(reader: FrameReader) -> list[bytes]:
    found = []
    while (frame := reader.next_frame()) is not None:
        found.append(encode_frame(frame))
    return found


@given(frames)
@settings(deadline=None)
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    encoded = encode_frame(frame)
    again = decode_frame(encoded[4:])
    assert type(again) is type(frame)
    assert encode_frame(again) == encoded


@given(st.lists(frames, max_size=6), st.data())
@settings(deadline=None)
def test_a_stream_gives_the_same_frames_however_it_is_cut(
    sent: list[Frame], data: st.DataObject
) -> None:
    encoded = [encode_frame(frame) for frame in sent]
    stream, encoded_ping = b"".join(encoded), encode_frame(Ping(7))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    for edges in ([0, *cuts, len(stream)], range(len(stream) + 1)):
        reader, found = FrameReader(FRAME_BYTES_MAX), []
        for start, end in zip(edges, [*edges][1:], strict=False):
            reader.receive(stream[start:end])
            found += read_all(reader)
        assert found == encoded
        reader.receive(encoded_ping)
        assert read_all(reader) == [encoded_ping], "nothing of the stream was kept"


@given(chunks=st.lists(st.binary(max_size=64), max_size=8), with_hello=st.booleans())
@settings(deadline=None)
def test_a_machine_fed_with_anything_raises_our_error_at_most(
    *, chunks: list[bytes], with_hello: bool
) -> None:
    machine = ChannelMachine(now_s=0)
    if with_hello:
        machine.receive(encode_frame(Hello(1, 1)), 0)
    try:
        for chunk in chunks:
            machine.receive(len(chunk).to_bytes(4, "big") + chunk, 0)
            machine.receive(chunk, 0)
    except RemoteProtocolError:
        pass


@given(st.lists(frames, max_size=12))
@settings(deadline=None)
def test_a_machine_fed_with_any_frames_raises_our_error_at_most(sent: list[Frame]) -> None:
    machine = ChannelMachine(now_s=0)
    machine.receive(encode_frame(Hello(1, 1)), 0)
    machine.request("x", b"\xc0", request_id="", budget_ms=0)
    machine.subscribe("y", b"\xc0", request_id="", credit=1)
    try:
        for frame in sent:
            machine.receive(encode_frame(frame), 0)
    except RemoteProtocolError:
        pass


def test_nesting_without_end_is_not_a_frame() -> None:
    with pytest.raises(RemoteProtocolError):
        decode_frame(b"\x93\x02\x01" + b"\x91" * 100_000 + b"\xc0")


@given(st.text(max_size=30), st.lists(st.tuples(text, text, text), max_size=3))
@settings(deadline=None)
def test_an_error_crosses_whole(message: str, refusals: list[tuple[str, str, str]]) -> None:
    sent = NoCandidate(message, refusals=refusals, hint="wait")
    again = error_of(failure_of(1, sent))
    assert type(again) is NoCandidate
    assert (again.message, again.hint, again.refusals) == (message, "wait", tuple(refusals))


@given(st.lists(text, max_size=3).map(tuple), text, bodies)
@settings(deadline=None)
def test_any_failure_frame_gives_an_error_of_ours(
    codes: tuple[str, ...], message: str, fields: msgspec.Raw
) -> None:
    assert isinstance(error_of(Failure(1, codes, message, "", fields)), NuageError)
