"""HTTP in front of the Redfish services: one aiohttp application for all devices of a lab.

Which device is meant is told by the address and port that the client connected to. Faults
(silent, slow) are played here, as is authentication: a session's `X-Auth-Token` or Basic.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ssl import SSLContext
from typing import Final

from aiohttp import web

from nuage.clock import Clock
from nuage.errors import NuageError
from nuage.lab.redfish_service import ROOT, Document, Json, RedfishError, RedfishService
from nuage.lab.rig import Fault

BODY_BYTES_MAX: Final = 64 * 1024
SILENCE_MAX_S: Final = 600.0  # a silent BMC holds a connection for so long, then drops it
_PUBLIC: Final = frozenset({"/redfish", ROOT, f"{ROOT}/odata", f"{ROOT}/$metadata"})
_SESSIONS: Final = f"{ROOT}/SessionService/Sessions"


@dataclass(frozen=True, slots=True)
class Device:
    """A BMC or PDU at an address. `fault` and `dead` are asked at each request."""

    service: RedfishService
    fault: Callable[[], Fault]
    dead: Callable[[], bool]


class RedfishServer:
    """Serves devices on sockets that the caller made (in whatever namespace)."""

    def __init__(self, clock: Clock, tls: SSLContext | None) -> None:
        self._clock = clock
        self._tls = tls
        self._devices: dict[tuple[str, int], Device] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Prepare the application; sockets come by `serve`."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()

    async def serve(self, listener: socket.socket, device: Device) -> None:
        """Answer for `device` on a listening socket."""
        assert self._runner is not None, "start() comes first"
        address, port = listener.getsockname()[:2]
        self._devices[address, port] = device
        await web.SockSite(self._runner, listener, ssl_context=self._tls).start()

    async def stop(self) -> None:
        """Close every socket."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None, "a request has a connection"
        device = self._devices[request.transport.get_extra_info("sockname")[:2]]
        fault = device.fault()
        if fault.silent or device.dead():
            await self._clock.sleep(SILENCE_MAX_S)
            request.transport.abort()
            raise asyncio.CancelledError
        if fault.slow_s:
            await self._clock.sleep(fault.slow_s)
        try:
            return await self._dispatch(request, device.service)
        except RedfishError as error:
            headers = {"WWW-Authenticate": 'Basic realm="redfish"'} if error.status == 401 else {}
            return _json(error.body(), error.status, headers)
        except NuageError as error:
            wrong = RedfishError(400, "Base.1.18.GeneralError", error.message)
            return _json(wrong.body(), 400)

    async def _dispatch(self, request: web.Request, service: RedfishService) -> web.Response:
        path = request.path.rstrip("/") or "/"
        if request.method in ("GET", "HEAD") and path in _PUBLIC:
            return _public(path, service)
        if request.method == "POST" and path in (_SESSIONS, f"{_SESSIONS}/Members"):
            return self._log_in(service, await _body(request))
        self._authenticate(request, service)
        match request.method:
            case "GET" | "HEAD":
                return _json(_query(request.query, service, service.get(path)))
            case "PATCH":
                return _json(service.patch(path, await _body(request)))
            case "POST":
                service.post(path, await _body(request))
                return web.Response(status=204, headers={"OData-Version": "4.0"})
            case "DELETE" if path.startswith(_SESSIONS + "/"):
                service.get(path)
                del service.accounts.sessions[path.rpartition("/")[2]]
                return web.Response(status=204, headers={"OData-Version": "4.0"})
            case _:
                raise RedfishError(
                    405, "Base.1.18.OperationNotAllowed", f"{request.method} of {path}"
                )

    def _authenticate(self, request: web.Request, service: RedfishService) -> None:
        token = request.headers.get("X-Auth-Token", "")
        if token and service.accounts.by_token(token, self._clock.monotonic_s()):
            return
        if service.accounts.basic(request.headers.get("Authorization", "")):
            return
        raise RedfishError(401, "Base.1.18.NoValidSession", "log in first: session or Basic")

    def _log_in(self, service: RedfishService, body: Mapping[str, Json]) -> web.Response:
        user, password = body.get("UserName"), body.get("Password")
        if not (isinstance(user, str) and isinstance(password, str)):
            raise RedfishError(
                400, "Base.1.18.PropertyMissing", "a login has UserName and Password"
            )
        if not service.accounts.matches(user, password):
            raise RedfishError(401, "Base.1.18.ResourceAtUriUnauthorized", "wrong user or password")
        session = service.accounts.open(self._clock.monotonic_s())
        where = f"{_SESSIONS}/{session.session_id}"
        return _json(service.get(where), 201, {"X-Auth-Token": session.token, "Location": where})


def _public(path: str, service: RedfishService) -> web.Response:
    if path == "/redfish":
        return _json({"v1": f"{ROOT}/"})
    root = service.get(ROOT)
    if path == ROOT:
        return _json({**root, "@odata.id": f"{ROOT}/"})
    if path.endswith("$metadata"):
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n<edmx:Edmx xmlns:edmx='
            '"http://docs.oasis-open.org/odata/ns/edmx" Version="4.0"/>\n'
        )
        return web.Response(text=text, content_type="application/xml")
    links: list[Json] = [
        {"name": name, "kind": "Singleton", "url": value["@odata.id"]}
        for name, value in root.items()
        if isinstance(value, dict) and "@odata.id" in value
    ]
    return _json({"@odata.context": f"{ROOT}/$metadata", "value": links})


def _query(query: Mapping[str, str], service: RedfishService, document: Document) -> Document:
    """Apply `only` and `$expand` (one level, members of a collection)."""
    unknown = [name for name in query if name.startswith("$") and name != "$expand"]
    if unknown:
        raise RedfishError(
            501, "Base.1.18.QueryParameterOutOfRange", f"{', '.join(unknown)} is not supported"
        )
    members = document.get("Members")
    if not isinstance(members, list):
        if "only" in query:
            raise RedfishError(
                400, "Base.1.18.QueryNotSupportedOnResource", "`only` is for collections"
            )
        return document
    if "only" in query and len(members) == 1:
        return service.get(_target(members[0]))
    if "$expand" in query:
        return {**document, "Members": [service.get(_target(member)) for member in members]}
    return document


def _target(member: Json) -> str:
    assert isinstance(member, dict), "our own collections hold links"
    target = member["@odata.id"]
    assert isinstance(target, str), "a link is a path"
    return target


async def _body(request: web.Request) -> Mapping[str, Json]:
    raw = await request.read()
    try:
        body = json.loads(raw or b"{}")
    except ValueError as error:
        raise RedfishError(
            400, "Base.1.18.MalformedJSON", f"the body is not JSON: {error}"
        ) from None
    if not isinstance(body, dict):
        raise RedfishError(400, "Base.1.18.MalformedJSON", "the body is to be a JSON object")
    return body


def _json(
    document: Document, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.json_response(
        document, status=status, headers={"OData-Version": "4.0", **(headers or {})}
    )
