"""Send requests to any member of an etcd cluster; move to another when one does not answer.

An error says what is known. A read is tried at each endpoint in turn; the whole call is
bounded by `timeout_s`. A write that may have reached etcd is never sent again: its effect is
unknown and the caller gets `TimedOut`, reads, and decides. Only when the connection could
not be made at all is a write tried elsewhere.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeVar

import aiohttp
import msgspec

from nuage.errors import (
    UNREADABLE,
    Conflict,
    InvalidRequest,
    NotFound,
    RemoteProtocolError,
    TimedOut,
    Unavailable,
)
from nuage.etcd.messages import (
    Compare,
    Document,
    Failure,
    KeepAlive,
    KeyEvent,
    Lease,
    MemberList,
    Op,
    RangeResult,
    TxnResult,
    WatchEnvelope,
    b64,
    compare_document,
    op_document,
    prefix_end,
)

T = TypeVar("T")

TIMEOUT_S: Final = 5.0  # of one request; above a WAN round trip and an election begun
CONNECT_TIMEOUT_S: Final = 2.0
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024  # a range of a whole catalogue is read in pages
WATCH_IDLE_S: Final = 20.0  # a silent watch is resumed at another member: this one may be cut off
WATCH_RETRY_S: Final = 0.5

# gRPC's status codes, as the gateway passes them on.
_NOT_FOUND: Final = 5
_FULL: Final = 8
_REFUSED: Final = frozenset({3, 9, 11, 16})  # invalid, precondition, out of range, unauthenticated


# Refusals given before anything was proposed, though gRPC calls them "unavailable".
_DECLINED: Final = ("unhealthy cluster", "too many requests")


class Declined(Unavailable):
    """A member answered that it does not want to now; nothing was done."""


class WatchCompacted(Conflict):
    """The revision to watch from is no longer kept; `revision` is the oldest that is."""

    code = "watch_compacted"


class EtcdClient:
    """A client of one cluster. `endpoints` are URLs; the first that answers is kept."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        if not endpoints:
            raise InvalidRequest("an etcd client needs one endpoint at least", field="endpoints")
        self._endpoints = [endpoint.rstrip("/") for endpoint in endpoints]
        self._preferred = 0
        self._tls = tls
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Return the endpoints, the one in use first."""
        return tuple(self._endpoints[self._preferred :] + self._endpoints[: self._preferred])

    async def range(
        self,
        key: bytes,
        *,
        prefix: bool = False,
        range_end: bytes = b"",
        limit: int = 0,
        revision: int = 0,
        serializable: bool = False,
    ) -> RangeResult:
        """Read a key, a prefix or [key, range_end); `serializable` asks one member alone."""
        document: Document = {
            "key": b64(key),
            "range_end": b64(prefix_end(key) if prefix else range_end),
            "limit": str(limit),
            "revision": str(revision),
            "serializable": serializable,
        }
        return await self._call("kv/range", document, RangeResult, repeatable=True)

    async def txn(
        self,
        compares: Sequence[Compare] = (),
        success: Sequence[Op] = (),
        failure: Sequence[Op] = (),
        *,
        read_only: bool = False,
    ) -> TxnResult:
        """Run one branch atomically; `read_only` says that no branch writes."""
        document: Document = {
            "compare": [compare_document(compare) for compare in compares],
            "success": [op_document(op) for op in success],
            "failure": [op_document(op) for op in failure],
        }
        return await self._call("kv/txn", document, TxnResult, repeatable=read_only)

    async def compact(self, revision: int) -> None:
        """Forget what the store was before `revision`."""
        await self._call("kv/compaction", {"revision": str(revision)}, RangeResult, repeatable=True)

    async def lease_grant(self, ttl_s: int) -> Lease:
        """Return a new lease; etcd may lengthen `ttl_s`. A lost answer leaves one to expire."""
        return await self._call("lease/grant", {"TTL": str(ttl_s)}, Lease, repeatable=True)

    async def lease_keepalive(self, lease_id: int) -> int:
        """Renew a lease; return the seconds it now has, 0 when it exists no more."""
        document: Document = {"ID": str(lease_id)}
        found = await self._call("lease/keepalive", document, KeepAlive, repeatable=True)
        return max(0, found.result.ttl_s)

    async def lease_remaining_s(self, lease_id: int) -> int:
        """Return the seconds a lease still has, 0 when it exists no more."""
        document: Document = {"ID": str(lease_id)}
        return max(
            0, (await self._call("lease/timetolive", document, Lease, repeatable=True)).ttl_s
        )

    async def lease_revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys.

        Raises:
            NotFound: there is no such lease (any more).
        """
        await self._call("lease/revoke", {"ID": str(lease_id)}, Lease, repeatable=False)

    async def member_list(self) -> MemberList:
        """Return the members of the cluster."""
        return await self._call("cluster/member/list", {}, MemberList, repeatable=True)

    async def member_add(self, peer_urls: Sequence[str]) -> MemberList:
        """Add a member that has not started; the answer's `member` is it."""
        document: Document = {"peerURLs": list(peer_urls)}
        return await self._call("cluster/member/add", document, MemberList, repeatable=False)

    async def member_remove(self, member_id: int) -> MemberList:
        """Remove a member."""
        document: Document = {"ID": str(member_id)}
        return await self._call("cluster/member/remove", document, MemberList, repeatable=False)

    async def answers(self, urls: Sequence[str]) -> bool:
        """Tell whether anything answers at one of `urls`, members that need not be endpoints."""
        other = EtcdClient(urls, tls=self._tls, timeout_s=CONNECT_TIMEOUT_S) if urls else None
        if other is None:
            return False
        try:
            await other.range(b"/", serializable=True)
        except (Unavailable, TimedOut):
            return False
        finally:
            await other.close()
        return True

    async def watch(
        self, key: bytes, *, prefix: bool = False, start_revision: int
    ) -> AsyncIterator[tuple[KeyEvent, ...]]:
        """Yield the changes from `start_revision` on, each transaction whole, for ever.

        Resumes by itself at another member when one dies or falls silent.

        Raises:
            WatchCompacted: the store no longer keeps what comes next; read, and watch anew.
        """
        revision = start_revision
        pending: list[KeyEvent] = []
        while True:
            try:
                async for result in self._watch_once(key, prefix=prefix, revision=revision):
                    for event in result:
                        if pending and pending[-1].kv.mod_revision != event.kv.mod_revision:
                            yield tuple(pending)
                            pending = []
                        pending.append(event)
                    if pending:
                        yield tuple(pending)
                        revision = pending[-1].kv.mod_revision + 1
                        pending = []
            except (Unavailable, RemoteProtocolError, aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(WATCH_RETRY_S)
            pending = []
            self._preferred = (self._preferred + 1) % len(self._endpoints)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # ---- transport ----

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._tls if self._tls is not None else True)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    async def _call(self, path: str, document: Document, cls: type[T], *, repeatable: bool) -> T:
        """Post to the endpoints in turn until one answers."""
        body = msgspec.json.encode(document)
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        last: Exception | None = None
        for endpoint in self.endpoints:
            left_s = deadline_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                break
            try:
                async with asyncio.timeout(
                    left_s if not repeatable else min(left_s, self._share_s)
                ):
                    answer = await self._post(endpoint, path, body, cls)
            except aiohttp.ClientConnectorError as error:
                last = error  # nothing was sent: any request may go elsewhere
            except (TimeoutError, aiohttp.ClientError, Unavailable) as error:
                if not repeatable and not isinstance(error, Declined):
                    raise TimedOut(f"etcd {path} at {endpoint}", after_s=self._timeout_s) from error
                last = error
            else:
                if endpoint in self._endpoints:
                    self._preferred = self._endpoints.index(endpoint)
                return answer
        raise Unavailable(
            f"no etcd member answers ({path} at {', '.join(self._endpoints)}: {last})",
            hint="`nuage quorum-member` runs a site's member: its log says why it is silent",
        ) from last

    @property
    def _share_s(self) -> float:
        """Return how long one endpoint may take, so that the others get their turn."""
        return max(self._timeout_s / len(self._endpoints), CONNECT_TIMEOUT_S)

    async def _post(self, endpoint: str, path: str, body: bytes, cls: type[T]) -> T:
        timeout = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        async with self._open_session().post(
            f"{endpoint}/v3/{path}", data=body, timeout=timeout
        ) as response:
            if response.content_length is not None and response.content_length > ANSWER_BYTES_MAX:
                raise RemoteProtocolError(f"etcd {path} answers {response.content_length} bytes")
            answer = await response.read()
            if response.status != 200:
                raise _refusal(path, response.status, answer)
        return _decode(answer, cls, path)

    async def _watch_once(
        self, key: bytes, *, prefix: bool, revision: int
    ) -> AsyncIterator[tuple[KeyEvent, ...]]:
        endpoint = self._endpoints[self._preferred]
        create: Document = {
            "key": b64(key),
            "range_end": b64(prefix_end(key) if prefix else b""),
            "start_revision": str(revision),
        }
        request: Document = {"create_request": create}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=WATCH_IDLE_S
        )
        async with self._open_session().post(
            f"{endpoint}/v3/watch", data=msgspec.json.encode(request), timeout=timeout
        ) as response:
            if response.status != 200:
                raise _refusal("watch", response.status, await response.read())
            buffer = bytearray()
            async for chunk in response.content.iter_any():
                buffer += chunk
                if len(buffer) > ANSWER_BYTES_MAX:
                    raise RemoteProtocolError(f"a watch message above {ANSWER_BYTES_MAX} bytes")
                *lines, rest = bytes(buffer).split(b"\n")
                buffer = bytearray(rest)
                for line in lines:
                    if line:
                        yield _watch_events(line)


def _watch_events(line: bytes) -> tuple[KeyEvent, ...]:
    envelope = _decode(line, WatchEnvelope, "watch")
    if envelope.error is not None:
        raise Unavailable(f"etcd ended a watch: {envelope.error.message}")
    if envelope.result is None:
        return ()
    if envelope.result.compact_revision:
        raise WatchCompacted(
            f"etcd keeps nothing before revision {envelope.result.compact_revision}",
            revision=envelope.result.compact_revision,
        )
    if envelope.result.canceled:
        raise Unavailable(f"etcd cancelled a watch: {envelope.result.cancel_reason}")
    return envelope.result.events


def _decode(answer: bytes, cls: type[T], path: str) -> T:
    try:
        return msgspec.json.decode(answer, type=cls, strict=False)
    except UNREADABLE as error:
        raise RemoteProtocolError(f"etcd {path} answers something else: {error}") from error


def _refusal(path: str, status: int, answer: bytes) -> Exception:
    """Return the error that an etcd refusal stands for."""
    try:
        failure = msgspec.json.decode(answer, type=Failure)
    except UNREADABLE:
        return Unavailable(f"etcd {path} answers HTTP {status}")
    message = f"etcd {path}: {failure.message}"
    if failure.code == _NOT_FOUND:
        return NotFound("etcd object", f"{path}: {failure.message}")
    if failure.code in _REFUSED:
        return InvalidRequest(message)
    if failure.code == _FULL:
        return InvalidRequest(
            message, hint="compact and defragment etcd, or raise its --quota-backend-bytes"
        )
    if any(words in failure.message for words in _DECLINED):
        return Declined(message)
    return Unavailable(message)
