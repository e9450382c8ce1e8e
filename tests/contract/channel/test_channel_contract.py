"""What every channel does, over memory and over loopback TLS alike."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.contextvars import bound_contextvars

from nuage.channel import (
    ChannelClient,
    ChannelServer,
    Handlers,
    Identity,
    Peer,
    current_request_id,
    memory_pair,
)
from nuage.clock import SystemClock
from nuage.errors import (
    CorruptData,
    Forbidden,
    InvalidRequest,
    NoCandidate,
    NotFound,
    NuageError,
    RemoteProtocolError,
    StaleEpoch,
    TimedOut,
    Unavailable,
)
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole
from nuage.trust.pki import pem_of
from nuage.trust.store import TrustStore

CONTROLLER = Identity(FederationId("fr"), SiteId("marne"), NodeRole.CONTROLLER, NodeId("c1"))
VNODE = Identity(FederationId("fr"), SiteId("marne"), NodeRole.VNODE, NodeId("v1"))


@dataclass(frozen=True)
class Sum:
    left: int
    right: int


@dataclass
class Seen:
    notices: list[str] = field(default_factory=list)
    noticed: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    sent_count: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)


def server_handlers(seen: Seen) -> Handlers:
    handlers = Handlers()

    @handlers.method("add", Sum)
    async def add(peer: Peer, body: Sum) -> int:
        return body.left + body.right

    @handlers.method("who", type(None))
    async def who(peer: Peer, body: None) -> tuple[str, str]:
        return str(peer.identity), current_request_id()

    @handlers.method("fail", str)
    async def fail(peer: Peer, body: str) -> None:
        raise {
            "stale": StaleEpoch("moved on", epoch=7, hint="stop"),
            "nobody": NoCandidate("no", refusals=[("v1", "memory", "4 of 8 GiB")]),
            "corrupt": CorruptData("bad", where="block 3"),
        }.get(body, NotFound("vm", body))

    @handlers.method("bug", type(None))
    async def bug(peer: Peer, body: None) -> None:
        raise ZeroDivisionError("the secret is 42")

    @handlers.method("hang", type(None))
    async def hang(peer: Peer, body: None) -> None:
        seen.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.stopped.set()

    @handlers.method("commit", type(None), runs_to_end=True)
    async def commit(peer: Peer, body: None) -> None:
        seen.started.set()
        await seen.released.wait()
        seen.stopped.set()

    @handlers.method("controllers-only", type(None), roles={NodeRole.CONTROLLER})
    async def controllers_only(peer: Peer, body: None) -> None:
        raise AssertionError("not reached")

    @handlers.method("call-back", type(None))
    async def call_back(peer: Peer, body: None) -> int:
        return await peer.call("double", 21, int)

    @handlers.notice("said", str)
    async def said(peer: Peer, body: str) -> None:
        seen.notices.append(body)
        seen.noticed.set()

    @handlers.stream("count", int)
    async def count(peer: Peer, body: int) -> AsyncIterator[int]:
        try:
            for number in range(body):
                seen.sent_count += 1
                yield number
        finally:
            seen.stopped.set()

    @handlers.stream("count-then-fail", int)
    async def count_then_fail(peer: Peer, body: int) -> AsyncIterator[int]:
        yield body
        raise CorruptData("torn", where="segment 9")

    return handlers


def client_handlers() -> Handlers:
    handlers = Handlers()

    @handlers.method("double", int)
    async def double(peer: Peer, body: int) -> int:
        return 2 * body

    return handlers


@dataclass
class Ends:
    """`client` calls; `server` is the other end; `seen` is what its handlers did."""

    client: Peer
    server: Peer
    seen: Seen


@asynccontextmanager
async def memory_ends(seen: Seen) -> AsyncIterator[Ends]:
    pair = memory_pair(
        client_handlers(),
        server_handlers(seen),
        identity_a=VNODE,
        identity_b=CONTROLLER,
        clock=SystemClock(),
    )
    yield Ends(pair.a, pair.b, seen)
    pair.a.close()
    await pair.b.wait_closed()
    await asyncio.sleep(0)


@asynccontextmanager
async def tls_ends(seen: Seen, directory: Path) -> AsyncIterator[Ends]:
    clock = SystemClock()
    controller, vnode = TrustStore(directory / "c1"), TrustStore(directory / "v1")
    controller.found(CONTROLLER, now_s=clock.now_s())
    key = Ed25519PrivateKey.generate()
    chain_pem = controller.issue(key.public_key(), VNODE, now_s=clock.now_s())
    vnode.install(root_pem=pem_of(controller.root()), chain_pem=chain_pem, key=key)
    connected: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
    server = ChannelServer(
        controller.server_context(), server_handlers(seen), clock, on_peer=connected.set_result
    )
    await server.listen("127.0.0.1", 0)
    client = ChannelClient(
        f"127.0.0.1:{server.port}", vnode.client_context(), client_handlers(), clock
    )
    async with client:
        peer = await client.wait_ready(5)
        yield Ends(peer, await connected, seen)
    await server.close()


@pytest.fixture(params=["memory", "tls"])
async def ends(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ends]:
    seen = Seen()
    made = memory_ends(seen) if request.param == "memory" else tls_ends(seen, tmp_path)
    async with made as both:
        yield both


async def test_a_call_is_answered_with_the_type_asked_for(ends: Ends) -> None:
    assert await ends.client.call("add", Sum(2, 3), int) == 5


async def test_many_calls_at_once_each_get_their_own_answer(ends: Ends) -> None:
    answers = await asyncio.gather(*(ends.client.call("add", Sum(n, n), int) for n in range(500)))
    assert answers == [2 * n for n in range(500)]


async def test_both_sides_may_call(ends: Ends) -> None:
    assert await ends.server.call("double", 4, int) == 8
    assert await ends.client.call("call-back", None, int) == 42


async def test_the_request_id_crosses(ends: Ends) -> None:
    with bound_contextvars(request_id="req-1"):
        assert await ends.client.call("who", None, tuple[str, str]) == (str(VNODE), "req-1")
    assert (await ends.client.call("who", None, tuple[str, str]))[1] == ""


async def test_an_error_is_raised_again_with_its_class_and_fields(ends: Ends) -> None:
    with pytest.raises(StaleEpoch, match="moved on") as stale:
        await ends.client.call("fail", "stale", type(None))
    assert (stale.value.epoch, stale.value.hint) == (7, "stop")
    with pytest.raises(NoCandidate) as nobody:
        await ends.client.call("fail", "nobody", type(None))
    assert nobody.value.refusals == (("v1", "memory", "4 of 8 GiB"),)
    with pytest.raises(NotFound) as missing:
        await ends.client.call("fail", "vm-1", type(None))
    assert (missing.value.kind, missing.value.name) == ("vm", "vm-1")


async def test_a_bug_in_a_handler_is_told_without_its_text(ends: Ends) -> None:
    with pytest.raises(NuageError) as told:
        await ends.client.call("bug", None, type(None))
    assert "42" not in told.value.message
    assert await ends.client.call("add", Sum(1, 1), int) == 2


async def test_a_name_nobody_registered_is_not_found(ends: Ends) -> None:
    with pytest.raises(NotFound):
        await ends.client.call("nonsense", None, int)


async def test_a_body_of_another_type_is_refused_by_field(ends: Ends) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await ends.client.call("add", {"left": 1, "right": "two"}, int)
    assert refused.value.field == "right"


async def test_an_answer_of_another_type_breaks_the_protocol(ends: Ends) -> None:
    with pytest.raises(RemoteProtocolError):
        await ends.client.call("add", Sum(1, 2), str)


async def test_a_method_for_other_roles_is_forbidden(ends: Ends) -> None:
    with pytest.raises(Forbidden, match="controllers-only"):
        await ends.client.call("controllers-only", None, type(None))


async def test_a_call_that_hangs_times_out_and_stops_the_handler(ends: Ends) -> None:
    with pytest.raises(TimedOut):
        await ends.client.call("hang", None, type(None), timeout_s=0.02)
    await ends.seen.stopped.wait()


async def test_a_cancelled_call_stops_the_handler(ends: Ends) -> None:
    calling = asyncio.ensure_future(ends.client.call("hang", None, type(None)))
    await ends.seen.started.wait()
    calling.cancel()
    await ends.seen.stopped.wait()
    assert await ends.client.call("add", Sum(1, 1), int) == 2


async def test_what_must_not_stop_half_way_outlives_its_caller(ends: Ends) -> None:
    calling = asyncio.ensure_future(ends.client.call("commit", None, type(None)))
    await ends.seen.started.wait()
    ends.client.close("gone")
    with pytest.raises(TimedOut):
        await calling
    await ends.server.wait_closed()
    ends.seen.released.set()
    await ends.seen.stopped.wait()


async def test_a_notice_arrives(ends: Ends) -> None:
    ends.client.notify("said", "hello")
    await ends.seen.noticed.wait()
    assert ends.seen.notices == ["hello"]


async def test_a_notice_nobody_registered_does_no_harm(ends: Ends) -> None:
    ends.client.notify("nonsense", "hello")
    assert await ends.client.call("add", Sum(1, 1), int) == 2


async def test_a_stream_gives_all_its_items_in_order(ends: Ends) -> None:
    items = [item async for item in ends.client.subscribe("count", 1000, int, credit=7)]
    assert items == list(range(1000))


async def test_a_slow_consumer_holds_the_sender_back(ends: Ends) -> None:
    async with ends.client.subscribe("count", 10_000, int, credit=10) as stream:
        assert await anext(stream) == 0
        await ends.client.call("add", Sum(1, 1), int)
        assert ends.seen.sent_count <= 12


async def test_leaving_a_stream_stops_its_source(ends: Ends) -> None:
    async with ends.client.subscribe("count", 10_000, int, credit=4) as stream:
        async for item in stream:
            if item == 9:
                break
    await ends.seen.stopped.wait()


async def test_a_dropped_stream_stops_its_source(ends: Ends) -> None:
    async for item in ends.client.subscribe("count", 10_000, int, credit=4):
        if item == 9:
            break
    await ends.seen.stopped.wait()


async def test_a_stream_that_fails_raises_after_its_items(ends: Ends) -> None:
    stream = ends.client.subscribe("count-then-fail", 3, int)
    assert await anext(stream) == 3
    with pytest.raises(CorruptData) as failed:
        await anext(stream)
    assert failed.value.where == "segment 9"


async def test_a_large_body_arrives_whole(ends: Ends) -> None:
    with pytest.raises(NotFound) as echoed:
        await ends.client.call("fail", "x" * 3_000_000, type(None))
    assert len(echoed.value.name) == 3_000_000


async def test_closing_fails_what_is_in_flight_as_unknown(ends: Ends) -> None:
    calling = asyncio.ensure_future(ends.client.call("hang", None, type(None)))
    await ends.seen.started.wait()
    ends.server.close("maintenance")
    with pytest.raises(TimedOut, match="maintenance"):
        await calling
    await ends.seen.stopped.wait()
    with pytest.raises(Unavailable):
        await ends.client.call("add", Sum(1, 1), int)


async def test_closing_ends_streams_as_unavailable(ends: Ends) -> None:
    stream = ends.client.subscribe("count", 10_000, int, credit=2)
    assert await anext(stream) == 0
    ends.server.close("maintenance")
    with pytest.raises(Unavailable):
        async for _ in stream:
            pass
