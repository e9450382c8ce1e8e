"""QMP's byte stream: cut anywhere, it says the same."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuage.errors import RemoteProtocolError
from nuage.vnode.qmp import Answer, Event, Greeting, Message, QmpReader, encode_command

LINES = [
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}}}\r\n',
    b'{"return": {}, "id": 1}\r\n',
    b'{"timestamp": {"seconds": 1}, "event": "STOP"}\r\n',
    b'{"error": {"class": "GenericError", "desc": "no"}, "id": 2}\r\n',
]
MESSAGES: list[Message] = [
    Greeting((7, 2, 22)),
    Answer(1, {}, None),
    Event("STOP", {}),
    Answer(2, None, ("GenericError", "no")),
]


@given(st.lists(st.integers(min_value=0, max_value=len(b"".join(LINES)))))
def test_the_stream_cut_anywhere_gives_the_same_messages(cuts: list[int]) -> None:
    stream = b"".join(LINES)
    places = [0, *sorted(cuts), len(stream)]
    reader = QmpReader()
    got = [m for a, b in pairwise(places) for m in reader.receive(stream[a:b])]
    assert got == MESSAGES


@given(st.binary(min_size=1, max_size=80))
def test_garbage_is_told_or_waited_for_but_never_crashes(data: bytes) -> None:
    reader = QmpReader()
    try:
        reader.receive(data + b"\n")
    except RemoteProtocolError:
        return


@pytest.mark.parametrize("line", [b"[]", b"{}", b"nonsense", b'{"QMP": 1}'])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        QmpReader().receive(line + b"\n")


def test_a_command_is_one_line() -> None:
    encoded = encode_command(3, "cont", {"text": "a\nb"})
    assert encoded.count(b"\n") == 1
    assert json.loads(encoded) == {"execute": "cont", "id": 3, "arguments": {"text": "a\nb"}}
