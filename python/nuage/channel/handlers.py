"""What a daemon answers on its channels: methods, notices and streams by name.

A daemon fills one `Handlers` at start and gives it to its servers and clients::

    handlers = Handlers()

    @handlers.method("vnode.report", VnodeReport, roles={NodeRole.VNODE})
    async def take_report(peer: Peer, report: VnodeReport) -> ReportTaken: ...

Bodies are decoded and checked against the type before the function sees them.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import msgspec

from nuage.errors import UNREADABLE, Forbidden, InvalidRequest, LocalProtocolError, NotFound
from nuage.model.infrastructure import NodeRole

if TYPE_CHECKING:
    from nuage.channel.peer import Peer

BodyT = TypeVar("BodyT")
ResultT = TypeVar("ResultT")

MethodFunction: TypeAlias = Callable[["Peer", BodyT], Awaitable[ResultT]]
NoticeFunction: TypeAlias = Callable[["Peer", BodyT], Awaitable[None]]
StreamFunction: TypeAlias = Callable[["Peer", BodyT], AsyncIterator[ResultT]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One name: how to read its body, who may use it, what runs.

    `call` and `stream` return the answer's value and the items; one of them is set. What
    `runs_to_end` is not cancelled when its caller gives up or is lost.
    """

    name: str
    roles: frozenset[NodeRole] | None
    runs_to_end: bool = False
    call: Callable[["Peer", msgspec.Raw], Awaitable[object]] | None = None
    stream: Callable[["Peer", msgspec.Raw], AsyncIterator[object]] | None = None

    def require_role(self, peer: "Peer") -> None:
        """Raise Forbidden unless the peer's role may use this name."""
        if self.roles is not None and peer.identity.role not in self.roles:
            allowed = ", ".join(sorted(role.value for role in self.roles))
            raise Forbidden(f"{peer.identity} may not use {self.name!r}: it is for {allowed}")


class Handlers:
    """The table of names. Filled before the first connection, read-only after."""

    def __init__(self) -> None:
        self._methods: dict[str, Entry] = {}
        self._notices: dict[str, Entry] = {}
        self._streams: dict[str, Entry] = {}

    def method(
        self,
        name: str,
        body_type: type[BodyT],
        *,
        roles: Collection[NodeRole] | None = None,
        runs_to_end: bool = False,
    ) -> Callable[[MethodFunction[BodyT, ResultT]], MethodFunction[BodyT, ResultT]]:
        """Register the decorated function to answer calls of `name`.

        It is cancelled when the caller gives up, times out or is lost, unless `runs_to_end`:
        say so for what must not stop half-way.
        """

        def register(function: MethodFunction[BodyT, ResultT]) -> MethodFunction[BodyT, ResultT]:
            read = _body_reader(name, body_type)

            def call(peer: "Peer", body: msgspec.Raw) -> Awaitable[object]:
                return function(peer, read(body))

            entry = Entry(name, _role_set(roles), runs_to_end=runs_to_end, call=call)
            _add(self._methods, entry)
            return function

        return register

    def notice(
        self, name: str, body_type: type[BodyT], *, roles: Collection[NodeRole] | None = None
    ) -> Callable[[NoticeFunction[BodyT]], NoticeFunction[BodyT]]:
        """Register the decorated function to take notifications of `name`."""

        def register(function: NoticeFunction[BodyT]) -> NoticeFunction[BodyT]:
            read = _body_reader(name, body_type)

            def call(peer: "Peer", body: msgspec.Raw) -> Awaitable[object]:
                return function(peer, read(body))

            _add(self._notices, Entry(name, _role_set(roles), call=call))
            return function

        return register

    def stream(
        self, name: str, body_type: type[BodyT], *, roles: Collection[NodeRole] | None = None
    ) -> Callable[[StreamFunction[BodyT, ResultT]], StreamFunction[BodyT, ResultT]]:
        """Register the decorated async generator to feed subscriptions of `name`."""

        def register(function: StreamFunction[BodyT, ResultT]) -> StreamFunction[BodyT, ResultT]:
            read = _body_reader(name, body_type)

            def stream(peer: "Peer", body: msgspec.Raw) -> AsyncIterator[object]:
                return function(peer, read(body))

            _add(self._streams, Entry(name, _role_set(roles), stream=stream))
            return function

        return register

    def runs_to_end(self, name: str) -> bool:
        """Tell whether the method `name` is not to be cancelled."""
        entry = self._methods.get(name)
        return entry is not None and entry.runs_to_end

    def require_method(self, name: str) -> Entry:
        """Return the method `name`, or raise NotFound."""
        return _require(self._methods, "method", name)

    def require_stream(self, name: str) -> Entry:
        """Return the stream `name`, or raise NotFound."""
        return _require(self._streams, "stream", name)

    def require_notice(self, name: str) -> Entry:
        """Return the notice `name`, or raise NotFound."""
        return _require(self._notices, "notice", name)


def _body_reader(name: str, body_type: type[BodyT]) -> Callable[[msgspec.Raw], BodyT]:
    decoder = msgspec.msgpack.Decoder(body_type)

    def read(body: msgspec.Raw) -> BodyT:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"the body of {name!r}: {error}", field=_path(error)) from error
        except UNREADABLE as error:
            raise InvalidRequest(f"the body of {name!r} is not MessagePack") from error

    return read


def _path(error: msgspec.ValidationError) -> str:
    """Return the dotted path out of msgspec's "... - at `$.a.b`"."""
    _, _, path = str(error).rpartition("at `$")
    return path.rstrip("`").lstrip(".")


def _role_set(roles: Collection[NodeRole] | None) -> frozenset[NodeRole] | None:
    return None if roles is None else frozenset(roles)


def _add(table: dict[str, Entry], entry: Entry) -> None:
    if entry.name in table:
        raise LocalProtocolError(f"{entry.name!r} is registered twice")
    table[entry.name] = entry


def _require(table: dict[str, Entry], kind: str, name: str) -> Entry:
    try:
        return table[name]
    except KeyError:
        raise NotFound(
            kind, name, hint="the peer runs another release, or another kind of daemon"
        ) from None
