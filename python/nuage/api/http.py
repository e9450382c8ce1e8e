"""The operations as HTTP routes, images in, events out.

Answers are ``{"site": …, "request_id": …, "result": …}``; errors ``{"site": …, "request_id": …,
"error": {…}}``. Every answer names the site that gave it and carries ``X-Request-Id``.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

import msgspec
import structlog
from aiohttp import web

from nuage.api.consoles import Consoles
from nuage.api.dispatch import Caller, Dispatcher, invalid_body
from nuage.api.doors import DOORS, Health, LogIn, Token
from nuage.api.errors import document_of, status_of
from nuage.api.events import EventRing, may_see
from nuage.api.openapi import openapi_document
from nuage.errors import UNREADABLE, InvalidRequest, NuageError, Unauthenticated
from nuage.iaas.doors import TABLE
from nuage.iaas.operations import Operation
from nuage.iaas.site import Site
from nuage.ids import new_id
from nuage.model.console import SCROLLBACK_BYTES
from nuage.trust.permissions import Scope
from nuage.trust.tokens import TOKEN_CHARS_MAX

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

BODY_BYTES_MAX: Final = (
    1024 * 1024
)  # user data is the largest part: cloud-init's own limit is 16 KiB
REQUEST_ID: Final = web.RequestKey("request_id", str)
UPLOAD_CHUNK_BYTES: Final = 256 * 1024
EVENTS_LAST_MAX: Final = 1000
FIELD_BYTES_MAX: Final = TOKEN_CHARS_MAX + 1024  # of a header: a token, and the words around it
EVENTS_SILENT_S: Final = 15.0  # then who follows is told that there is nothing new, but a site


class TokenIssuer(Protocol):
    """Gives tokens to users who know their secret."""

    async def issue(self, name: str, secret: str) -> str:
        """Return a token.

        Raises:
            Unauthenticated: no such user, a wrong secret, or a disabled user.
        """
        ...


class AuditFiles(Protocol):
    """This site's audit log, for auditors to take along."""

    def names(self) -> list[str]:
        """Return the log's files in order."""
        ...

    def path(self, name: str) -> Path:
        """Return one file.

        Raises:
            NotFound: there is none of that name.
        """
        ...

    def keys(self) -> bytes:
        """Return the sites' public keys as the offline verifier reads them."""
        ...


class ImageSink(Protocol):
    """Takes the bytes of an image in; see `daemon.images`."""

    async def receive(self, caller: Caller, image_id: str, chunks: AsyncIterator[bytes]) -> object:
        """Store the bytes, finish the image's record, return it as shown."""
        ...


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Hears of every answer: the operation's name, "ok" or the error's code, the seconds it took.
Answered = Callable[[str, str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """What the routes act through."""

    site: Site
    dispatcher: Dispatcher
    issuer: TokenIssuer
    images: ImageSink
    events: EventRing
    consoles: Consoles
    audit: AuditFiles
    metrics: Callable[[], bytes]
    answered: Answered = field(default=lambda _operation, _outcome, _took_s: None)


def runner_of(application: web.Application) -> web.AppRunner:
    """Return what serves an application: a request may carry the longest token there is."""
    return web.AppRunner(application, access_log=None, max_field_size=FIELD_BYTES_MAX)


def build_application(doors_: Doors) -> web.Application:
    """Return the aiohttp application of one controller."""
    routes = _Routes(doors_)
    table: list[tuple[str, str, str, Handler]] = [
        (operation.name, operation.verb, operation.path, routes.of(operation))
        for operation in TABLE.all()
    ]
    behind: dict[str, Handler] = {
        "token.create": routes.log_in,
        "image.upload": routes.upload,
        "event.follow": routes.follow_events,
        "vm.attach": routes.attach,
        "audit.list": routes.list_audit,
        "audit.keys": routes.audit_keys,
        "audit.file": routes.audit_file,
        "openapi": routes.describe,
        "health": routes.health,
        "metrics": routes.show_metrics,
    }
    table += [(door.name, door.verb, door.path, behind[door.name]) for door in DOORS]
    names = {(verb, path): name for name, verb, path, _ in table}
    answering = _Answering(doors_.site, doors_.answered, names)
    application = web.Application(
        middlewares=[answering.middleware], client_max_size=BODY_BYTES_MAX
    )
    for _, verb, path, handler in table:
        application.router.add_route(verb, path, handler)
    return application


class _Answering:
    """Gives every request an id, and every error its document; counts both."""

    def __init__(
        self, site: Site, answered: Answered, names: Mapping[tuple[str, str], str]
    ) -> None:
        self._site = site
        self._answered = answered
        self._names = names

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = request.headers.get("X-Request-Id", "")
        request_id = asked if is_request_id(asked) else new_id("req", self._site.entropy)
        request[REQUEST_ID] = request_id
        begun_s = self._site.clock.monotonic_s()
        outcome = "bug"
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                response = await handler(request)
                outcome = "ok"
            except NuageError as error:
                outcome = error.code
                response = self._error(request_id, status_of(error), dict(document_of(error)))
                if isinstance(error, Unauthenticated):
                    response.headers["WWW-Authenticate"] = "Bearer"
            except web.HTTPException as error:
                outcome = str(error.status)
                if error.status < 400:
                    raise
                message = f"{request.method} {request.path}: {error.reason}"
                document: dict[str, object] = {"code": "http", "message": message}
                if error.status == 404:
                    document["hint"] = "/v1/openapi.json lists what there is"
                response = self._error(request_id, error.status, document)
            finally:
                took_s = self._site.clock.monotonic_s() - begun_s
                self._answered(self._name_of(request), outcome, took_s)
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
        return response

    def _name_of(self, request: web.Request) -> str:
        resource = request.match_info.route.resource
        path = "" if resource is None else resource.canonical
        return self._names.get((request.method, path), "unknown")

    def _error(self, request_id: str, status: int, document: dict[str, object]) -> web.Response:
        body = {"site": self._site.site_id, "request_id": request_id, "error": document}
        return json_response(body, status)


def is_request_id(text: str) -> bool:
    """Tell whether a client's own request id may be used: short and harmless in a log."""
    return 0 < len(text) <= 64 and all(c.isalnum() or c in "-_." for c in text)


def json_response(body: object, status: int = 200) -> web.Response:
    """Return `body` as a JSON response."""
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )


class _Routes:
    def __init__(self, doors_: Doors) -> None:
        self._doors = doors_

    def of(self, operation: Operation[object, object]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            body = await _body_of(request, operation)
            answer = await self._doors.dispatcher.perform(operation, body, _caller(request))
            document = {
                "site": answer.site,
                "request_id": request[REQUEST_ID],
                "result": answer.result,
            }
            return json_response(document, operation.status)

        return handle

    async def log_in(self, request: web.Request) -> web.Response:
        try:
            body = msgspec.json.decode(await request.read(), type=LogIn)
        except msgspec.ValidationError as error:
            raise invalid_body(error) from None
        except UNREADABLE as error:
            raise InvalidRequest(f"the body is not JSON: {error}") from None
        token = await self._doors.issuer.issue(body.name, body.secret)
        return self._result(request, Token(token=token), 201)

    async def upload(self, request: web.Request) -> web.Response:
        caller = _caller(request)
        self._doors.dispatcher.require_known(caller)
        shown = await self._doors.images.receive(
            caller,
            request.match_info["image"],
            request.content.iter_chunked(UPLOAD_CHUNK_BYTES),
        )
        return self._result(request, shown, 200)

    async def follow_events(self, request: web.Request) -> web.StreamResponse:
        caller = _caller(request)
        shown = partial(may_see, self._doors.dispatcher.require_known(caller))
        last = min(_query_int(request, "last", 0), EVENTS_LAST_MAX)
        if request.query.get("follow", "1") == "0":
            return self._result(request, self._doors.events.last(last, shown), 200)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        lines = self._doors.events.follow(last=last, shown=shown)
        upcoming = asyncio.ensure_future(anext(lines))
        try:
            while True:
                done, _ = await asyncio.wait({upcoming}, timeout=EVENTS_SILENT_S)
                if not done:
                    await response.write(b": nothing new\n\n")
                    continue
                line = upcoming.result()
                upcoming = asyncio.ensure_future(anext(lines))
                data = msgspec.json.encode(line)
                await response.write(b"event: %s\ndata: %s\n\n" % (line.kind.encode(), data))
        except ConnectionResetError:
            return response  # who followed has hung up
        finally:
            upcoming.cancel()

    async def attach(self, request: web.Request) -> web.StreamResponse:
        after_bytes = request.query.get("after_bytes", str(-SCROLLBACK_BYTES))
        if not after_bytes.removeprefix("-").isdecimal():
            raise InvalidRequest(f"{after_bytes!r} is not a number", field="after_bytes")
        return await self._doors.consoles.serve(request, _caller(request), int(after_bytes))

    def _require_auditor(self, request: web.Request) -> None:
        scope = Scope(site_id=self._doors.site.site_id)
        self._doors.dispatcher.require(_caller(request), "audit.read", scope)

    async def list_audit(self, request: web.Request) -> web.Response:
        self._require_auditor(request)
        return self._result(request, self._doors.audit.names(), 200)

    async def audit_keys(self, request: web.Request) -> web.Response:
        self._require_auditor(request)
        return web.Response(body=self._doors.audit.keys(), content_type="application/json")

    async def audit_file(self, request: web.Request) -> web.FileResponse:
        self._require_auditor(request)
        return web.FileResponse(self._doors.audit.path(request.match_info["name"]))

    async def describe(self, _request: web.Request) -> web.Response:
        return json_response(openapi_document())

    async def health(self, request: web.Request) -> web.Response:
        return self._result(request, Health(status="ok"), 200)

    async def show_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._doors.metrics(), content_type="text/plain", charset="utf-8")

    def _result(self, request: web.Request, result: object, status: int) -> web.Response:
        site_id = self._doors.site.site_id
        document = {"site": site_id, "request_id": request[REQUEST_ID], "result": result}
        return json_response(document, status)


def _caller(request: web.Request) -> Caller:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated(
            "the request carries no token",
            hint="send `Authorization: Bearer TOKEN`; POST /v1/tokens gives one",
        )
    return Caller(
        token=token.strip(), request_id=request[REQUEST_ID], from_address=request.remote or "unix"
    )


def _query_int(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise InvalidRequest(f"{text!r} is not a number", field=name)
    return int(text)


async def _body_of(request: web.Request, operation: Operation[object, object]) -> object:
    """Merge path, query (GET, DELETE) or JSON body into the operation's type."""
    parameters = dict(request.match_info)
    if operation.verb in ("GET", "DELETE"):
        values: dict[str, object] = {**request.query, **parameters}
        return _convert(values, operation, is_text=True)
    data = await request.read()
    try:
        document = msgspec.json.decode(data) if data else {}
    except UNREADABLE as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest("the body is not a JSON object")
    for name, value in parameters.items():
        if document.setdefault(name, value) != value:
            raise InvalidRequest(
                f"the path says {value!r}, the body {document[name]!r}", field=name
            )
    return _convert(document, operation, is_text=False)


def _convert(
    values: dict[str, object], operation: Operation[object, object], *, is_text: bool
) -> object:
    known = {field.name for field in fields(cast("type[DataclassInstance]", operation.body))}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InvalidRequest(
            f"no field {unknown[0]!r} here",
            field=unknown[0],
            hint=f"there is {', '.join(sorted(known)) or 'none'}",
        )
    try:
        return msgspec.convert(values, operation.body, strict=not is_text)
    except msgspec.ValidationError as error:
        raise invalid_body(error) from None
