"""The client against Debian's etcd on loopback."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.etcd.etcd_process import EtcdMember, etcd_cluster, free_port, patient_client

from nuage.errors import InvalidRequest, NotFound, TimedOut, Unavailable
from nuage.etcd.client import EtcdClient, WatchCompacted
from nuage.etcd.messages import (
    DeleteOp,
    EventType,
    KeyEvent,
    PutOp,
    RangeOp,
    absent,
    prefix_end,
    unchanged,
)


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[list[EtcdMember]]:
    async with etcd_cluster(tmp_path) as members:
        yield members


@pytest.fixture
async def client(members: list[EtcdMember]) -> AsyncIterator[EtcdClient]:
    client = patient_client(*(member.client_url for member in members))
    yield client
    await client.close()


async def take(client: EtcdClient, start_revision: int, count: int) -> list[KeyEvent]:
    events: list[KeyEvent] = []
    async for batch in client.watch(b"k", prefix=True, start_revision=start_revision):
        events += batch
        if len(events) >= count:
            break
    return events


def test_the_end_of_a_prefix_is_the_next_key_that_has_it_not() -> None:
    assert prefix_end(b"a/") == b"a0"
    assert prefix_end(b"a\xff") == b"b"
    assert prefix_end(b"\xff") == b"\x00"


async def test_a_transaction_writes_only_when_its_compares_hold(client: EtcdClient) -> None:
    key = b"k/\x00\xff"
    made = await client.txn((absent(key),), (PutOp(key, b"\x01\x02"),))
    assert made.succeeded
    again = await client.txn((absent(key),), (PutOp(key, b"no"),), (RangeOp(key),))
    assert not again.succeeded
    (kv,) = again.kvs(0)
    assert (kv.key, kv.value, kv.version) == (key, b"\x01\x02", 1)
    assert (await client.txn((unchanged(kv),), (DeleteOp(key),))).succeeded
    assert not (await client.txn((unchanged(kv),), (DeleteOp(key),))).succeeded
    assert (await client.range(key)).kvs == ()


async def test_a_range_is_read_in_pages(client: EtcdClient) -> None:
    await client.txn((), [PutOp(f"k/{i:02}".encode(), b"v") for i in range(30)])
    first = await client.range(b"k/", prefix=True, limit=20)
    assert first.more
    assert len(first.kvs) == 20
    rest = await client.range(first.kvs[-1].key + b"\x00", range_end=prefix_end(b"k/"))
    assert [kv.key for kv in first.kvs + rest.kvs] == [f"k/{i:02}".encode() for i in range(30)]


async def test_a_lease_binds_keys_until_it_is_revoked(client: EtcdClient) -> None:
    lease = await client.lease_grant(60)
    assert lease.ttl_s == 60
    await client.txn((), (PutOp(b"k", b"v", lease.id),))
    assert await client.lease_keepalive(lease.id) == 60
    assert 0 < await client.lease_remaining_s(lease.id) <= 60
    await client.lease_revoke(lease.id)
    assert (await client.range(b"k")).kvs == ()
    assert await client.lease_keepalive(lease.id) == 0
    assert await client.lease_remaining_s(lease.id) == 0
    with pytest.raises(NotFound):
        await client.lease_revoke(lease.id)


async def test_a_watch_starts_in_the_past_and_goes_on(client: EtcdClient) -> None:
    first = (await client.txn((), (PutOp(b"k1", b"a"), PutOp(b"k2", b"b")))).header.revision
    await client.txn((), (DeleteOp(b"k1"),))
    watching = asyncio.create_task(take(client, first, 4))
    await client.txn((), (PutOp(b"k3", b"c"),))
    events = await watching
    assert [(event.type, event.kv.key) for event in events] == [
        (EventType.PUT, b"k1"),
        (EventType.PUT, b"k2"),
        (EventType.DELETE, b"k1"),
        (EventType.PUT, b"k3"),
    ]


async def test_a_watch_says_when_the_past_is_gone(client: EtcdClient) -> None:
    for _ in range(5):
        revision = (await client.txn((), (PutOp(b"k", b"a"),))).header.revision
    await client.compact(revision)
    with pytest.raises(WatchCompacted) as caught:
        await take(client, 1, 1)
    assert caught.value.revision == revision


async def test_a_watch_resumes_when_the_member_restarts(
    client: EtcdClient, members: list[EtcdMember]
) -> None:
    revision = (await client.txn((), (PutOp(b"k1", b"a"),))).header.revision
    watching = asyncio.create_task(take(client, revision, 2))
    await asyncio.sleep(0)
    await members[0].kill()
    await members[0].start()
    while True:
        try:
            await client.txn((), (PutOp(b"k2", b"b"),))
            break
        except (Unavailable, TimedOut):
            await asyncio.sleep(0.05)
    assert [event.kv.key for event in await watching] == [b"k1", b"k2"]


async def test_requests_move_to_a_member_that_answers(members: list[EtcdMember]) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    client = EtcdClient([dead, members[0].client_url])
    await client.txn((), (PutOp(b"k", b"v"),))
    assert client.endpoints[0] == members[0].client_url
    await client.close()
    alone = EtcdClient([dead])
    with pytest.raises(Unavailable, match=dead):
        await alone.range(b"k")
    await alone.close()


async def test_a_write_without_an_answer_is_of_unknown_effect() -> None:
    """A server that takes the request and closes: the client must not send it again."""
    seen: list[bytes] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n"))
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    client = EtcdClient([f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/"])
    with pytest.raises(TimedOut):
        await client.txn((), (PutOp(b"k", b"v"),))
    assert len(seen) == 1
    with pytest.raises(Unavailable):
        await client.range(b"k")
    await client.close()
    server.close()


async def test_a_refused_request_says_why(client: EtcdClient) -> None:
    with pytest.raises(InvalidRequest, match="duplicate key"):
        await client.txn((), (PutOp(b"k", b"1"), PutOp(b"k", b"2")))
    with pytest.raises(NotFound, match="lease"):
        await client.txn((), (PutOp(b"k", b"1", 4711),))
    with pytest.raises(InvalidRequest):
        EtcdClient([])
