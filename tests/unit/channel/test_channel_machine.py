"""The channel's machine, step by step, without a loop."""

from random import Random

import msgspec
import pytest

from nuage.channel.client import BACKOFF_MAX_S, Backoff, parse_address
from nuage.channel.failures import error_of, failure_of
from nuage.channel.frames import (
    HELLO_BYTES_MAX,
    Bye,
    Cancel,
    Credit,
    End,
    Failure,
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
from nuage.channel.handlers import Handlers
from nuage.channel.identity import Expected, Identity, parse_identity
from nuage.channel.machine import (
    CALLS_IN_FLIGHT_MAX,
    CREDIT_MAX,
    LOST_AFTER_S,
    PING_AFTER_S,
    STREAMS_MAX,
    ChannelMachine,
    ChannelPhase,
    Opened,
)
from nuage.errors import (
    Conflict,
    InvalidRequest,
    LocalProtocolError,
    NotFound,
    NuageError,
    RemoteProtocolError,
    StaleEpoch,
    Unavailable,
)
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole

NONE = msgspec.Raw(b"\xc0")


def opened() -> ChannelMachine:
    machine = ChannelMachine(now_s=0)
    machine.receive(encode_frame(Hello(1, 1)), 0)
    machine.data_to_send()
    return machine


def call(machine: ChannelMachine) -> int:
    return machine.request("m", b"\xc0", request_id="", budget_ms=0)


def test_both_sides_use_the_highest_version_that_both_speak() -> None:
    machine = ChannelMachine(now_s=0, versions=(2, 5))
    (event,) = machine.receive(encode_frame(Hello(1, 4, "older")), 0)
    assert event == Opened(4, "older")


def test_sides_without_a_common_version_part_with_a_reason() -> None:
    machine = ChannelMachine(now_s=0, versions=(3, 5))
    with pytest.raises(RemoteProtocolError, match=r"versions 1 to 2.*this side 3 to 5"):
        machine.receive(encode_frame(Hello(1, 2)), 0)


def test_nothing_comes_before_hello_and_hello_comes_once() -> None:
    with pytest.raises(RemoteProtocolError, match="Ping before hello"):
        ChannelMachine(now_s=0).receive(encode_frame(Ping(1)), 0)
    with pytest.raises(RemoteProtocolError, match="twice"):
        opened().receive(encode_frame(Hello(1, 1)), 0)


def test_a_stranger_cannot_make_us_keep_much() -> None:
    with pytest.raises(RemoteProtocolError, match="announced"):
        ChannelMachine(now_s=0).receive((HELLO_BYTES_MAX + 1).to_bytes(4, "big"), 0)


def test_a_silent_peer_is_pinged_then_lost() -> None:
    machine = opened()
    assert machine.tick(PING_AFTER_S - 1)
    assert not machine.has_data
    assert machine.tick(PING_AFTER_S)
    assert machine.data_to_send() == encode_frame(Ping(1))
    machine.receive(encode_frame(Pong(1)), PING_AFTER_S)
    now_s = PING_AFTER_S
    while now_s < LOST_AFTER_S:
        now_s += PING_AFTER_S
        assert machine.tick(now_s)
    assert not machine.tick(PING_AFTER_S + LOST_AFTER_S)


def test_a_peer_is_not_lost_for_the_time_in_which_this_process_did_not_run() -> None:
    machine = opened()
    assert machine.tick(PING_AFTER_S)
    now_s = PING_AFTER_S + 10 * LOST_AFTER_S
    assert machine.tick(now_s)
    silent_s = 2 * PING_AFTER_S
    while silent_s + PING_AFTER_S < LOST_AFTER_S:
        now_s, silent_s = now_s + PING_AFTER_S, silent_s + PING_AFTER_S
        assert machine.tick(now_s)
    assert not machine.tick(now_s + PING_AFTER_S)


def test_a_ping_is_answered() -> None:
    machine = opened()
    assert machine.receive(encode_frame(Ping(9)), 0) == []
    assert machine.data_to_send() == encode_frame(Pong(9))


def test_an_answer_after_the_cancel_is_dropped() -> None:
    machine = opened()
    call_id = call(machine)
    machine.cancel(call_id)
    assert machine.receive(encode_frame(Response(call_id, NONE)), 0) == []


def test_an_answer_to_nothing_breaks_the_protocol() -> None:
    for frame in (Response(1, NONE), Item(1, NONE), End(1), Response(0, NONE)):
        with pytest.raises(RemoteProtocolError, match="never made"):
            opened().receive(encode_frame(frame), 0)


def test_call_numbers_only_rise() -> None:
    machine = opened()
    machine.receive(encode_frame(Request(5, "m", "", 0, NONE)), 0)
    with pytest.raises(RemoteProtocolError, match="call 5 after call 5"):
        machine.receive(encode_frame(Request(5, "m", "", 0, NONE)), 0)


def test_items_need_credit_on_both_sides() -> None:
    machine = opened()
    stream_id = machine.subscribe("s", b"\xc0", request_id="", credit=1)
    machine.receive(encode_frame(Item(stream_id, NONE)), 0)
    with pytest.raises(RemoteProtocolError, match="without credit"):
        machine.receive(encode_frame(Item(stream_id, NONE)), 0)
    feeder = opened()
    feeder.receive(encode_frame(Subscribe(1, "s", "", 1, NONE)), 0)
    feeder.item(1, b"\xc0")
    with pytest.raises(LocalProtocolError, match="no credit"):
        feeder.item(1, b"\xc0")
    feeder.receive(encode_frame(Credit(1, 2)), 0)
    assert feeder.credit_of(1) == 2
    feeder.receive(encode_frame(Cancel(1)), 0)
    assert feeder.credit_of(1) == -1


@pytest.mark.parametrize("credit", [0, -1, CREDIT_MAX + 1])
def test_credit_has_bounds(credit: int) -> None:
    machine = opened()
    with pytest.raises(RemoteProtocolError, match="credit"):
        machine.receive(encode_frame(Subscribe(1, "s", "", credit, NONE)), 0)
    with pytest.raises(LocalProtocolError, match="credit"):
        machine.subscribe("s", b"\xc0", request_id="", credit=credit)


def test_more_calls_than_the_limit_are_refused_on_both_sides() -> None:
    machine = opened()
    for _ in range(CALLS_IN_FLIGHT_MAX):
        call(machine)
    with pytest.raises(Unavailable, match="wait for this peer"):
        call(machine)
    for number in range(1, CALLS_IN_FLIGHT_MAX + 1):
        assert machine.receive(encode_frame(Request(number, "m", "", 0, NONE)), 0)
    machine.data_to_send()
    beyond = CALLS_IN_FLIGHT_MAX + 1
    assert machine.receive(encode_frame(Request(beyond, "m", "", 0, NONE)), 0) == []
    assert b"unavailable" in machine.data_to_send()


def test_more_streams_than_the_limit_are_refused() -> None:
    machine = opened()
    for _ in range(STREAMS_MAX):
        machine.subscribe("s", b"\xc0", request_id="", credit=1)
    with pytest.raises(Unavailable):
        machine.subscribe("s", b"\xc0", request_id="", credit=1)


def test_after_goodbye_nothing_is_read_or_sent() -> None:
    machine = opened()
    (event, *rest) = machine.receive(encode_frame(Bye("upgrade")) + encode_frame(Ping(1)), 0)
    assert (event, rest, machine.phase) == (Bye("upgrade"), [], ChannelPhase.CLOSED)
    machine.notify("n", b"\xc0", request_id="")
    assert not machine.has_data


def test_a_notice_is_passed_on() -> None:
    (event,) = opened().receive(encode_frame(Notify("n", "req-1", NONE)), 0)
    assert isinstance(event, Notify)
    assert event.request_id == "req-1"


def test_an_error_of_a_newer_release_is_raised_as_its_parent() -> None:
    frame = failure_of(1, StaleEpoch("moved", epoch=7))
    newer = Failure(1, ("from_the_future", *frame.codes), frame.message, "", frame.fields)
    assert type(error_of(newer)) is StaleEpoch
    unknown = Failure(1, ("from_the_future", "conflict"), "moved", "", NONE)
    assert type(error_of(unknown)) is Conflict
    assert type(error_of(Failure(1, (), "?", "", NONE))) is NuageError


def test_an_error_cannot_overwrite_what_the_class_has() -> None:
    fields = msgspec.Raw(msgspec.msgpack.encode({"with_traceback": 1, "__class__": 2, "code": "x"}))
    error = error_of(Failure(1, ("not_found",), "no", "", fields))
    assert (type(error), error.code) == (NotFound, "not_found")
    assert callable(error.with_traceback)


def test_a_name_is_registered_once() -> None:
    handlers = Handlers()

    async def nothing(_peer: object, _body: int) -> None:
        return

    handlers.method("m", int)(nothing)
    with pytest.raises(LocalProtocolError, match="twice"):
        handlers.method("m", int)(nothing)


def test_backoff_grows_to_its_limit_and_is_spread() -> None:
    backoff = Backoff(Random(1))
    delays = [backoff.next_s() for _ in range(20)]
    assert 0.05 <= delays[0] <= 0.1
    assert all(BACKOFF_MAX_S / 2 <= delay <= BACKOFF_MAX_S for delay in delays[-5:])
    assert len(set(delays[-5:])) == 5
    backoff.reset()
    assert backoff.next_s() <= 0.1


def test_addresses_are_host_and_port() -> None:
    assert parse_address("10.0.0.1:7000") == ("10.0.0.1", 7000)
    assert parse_address("[::1]:7000") == ("::1", 7000)
    for text in ("", "host", "host:", ":1", "host:0", "host:65536", "host:x"):
        with pytest.raises(InvalidRequest, match="host:port"):
            parse_address(text)


def test_an_identity_is_read_back_from_its_uri() -> None:
    identity = Identity(FederationId("fr"), SiteId("marne"), NodeRole.VNODE, NodeId("node-1"))
    assert identity.uri == "nuage://fr/marne/vnode/node-1"
    assert parse_identity(identity.uri) == identity
    for uri in (
        "http://fr/marne/vnode/n",
        "nuage://fr/marne/vnode",
        "nuage://fr/marne/king/n",
        "nuage://fr/MARNE/vnode/n",
        "nuage://fr/marne/vnode/n?x=1",
        "nuage://fr:1/marne/vnode/n",
        "nuage:fr/marne/vnode/n",
        "",
    ):
        with pytest.raises(InvalidRequest):
            parse_identity(uri)


def test_who_is_expected_says_what_differs() -> None:
    identity = Identity(FederationId("fr"), SiteId("marne"), NodeRole.VNODE, NodeId("v1"))
    assert Expected(FederationId("fr"), site_id=SiteId("marne")).refusal_of(identity) == ""
    wanted = Expected(FederationId("fr"), role=NodeRole.CONTROLLER)
    assert wanted.refusal_of(identity) == "role is 'vnode', expected 'controller'"
    assert str(wanted) == "*/controller/*"
