"""The doors of the API that are not operations: log-in, streams, files, what programs watch.

Everything else is read off `iaas.doors.TABLE`. `http` opens both, `openapi` describes both.
"""

from dataclasses import dataclass, field
from typing import Final

from nuage.api.events import Announcement

JSON: Final = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogIn:
    """What a user shows to get a token."""

    name: str
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a user gets for it: to be sent as `Authorization: Bearer TOKEN`."""

    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a controller says of itself that answers at all."""

    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One door. `query` maps each parameter to what it means; `result` is what JSON answers hold.

    `body` is a type of JSON, or the media type of what is sent as it is. `needs_token` False:
    anybody may come. `errors` are the statuses that it can answer with.
    """

    name: str
    verb: str
    path: str
    summary: str
    query: dict[str, str] = field(default_factory=dict)
    body: type | str | None = None
    result: type | None = None
    media: str = JSON
    status: int = 200
    needs_token: bool = True
    errors: tuple[int, ...] = (401,)


DOORS: Final = (
    Door(
        name="token.create", verb="POST", path="/v1/tokens", summary="Log in: get a token",
        body=LogIn, result=Token, status=201, needs_token=False, errors=(400, 401),
    ),
    Door(
        name="image.upload", verb="PUT", path="/v1/images/{image}/data",
        summary="Send the bytes of an image that was announced",
        body="application/octet-stream", result=dict, errors=(400, 401, 403, 404, 409, 503),
    ),
    Door(
        name="event.follow", verb="GET", path="/v1/events",
        summary="Follow what happens, as server-sent events, or read the last lines",
        query={"last": "how many past lines come first", "follow": "0: only those, as JSON"},
        result=list[Announcement], media="text/event-stream", errors=(400, 401),
    ),
    Door(
        name="vm.attach", verb="GET", path="/v1/iaas/{iaas}/vms/{vm}/console/stream",
        summary="Open a VM's serial console (a WebSocket)",
        query={"after_bytes": "from where of its output; negative: from so far before its end"},
        status=101, media="", errors=(400, 401, 403, 404, 409, 503),
    ),
    Door(
        name="audit.list", verb="GET", path="/v1/audit",
        summary="Seal this site's audit log, and list its files",
        result=list[str], errors=(401, 403),
    ),
    Door(
        name="audit.keys", verb="GET", path="/v1/audit/keys",
        summary="Read the sites' public keys, for the offline verifier",
        media="application/json", errors=(401, 403),
    ),
    Door(
        name="audit.file", verb="GET", path="/v1/audit/files/{name}",
        summary="Read one file of this site's audit log",
        media="application/octet-stream", errors=(401, 403, 404),
    ),
    Door(
        name="openapi", verb="GET", path="/v1/openapi.json", summary="Read this description",
        needs_token=False, errors=(),
    ),
    Door(
        name="health", verb="GET", path="/healthz", summary="Tell whether the controller answers",
        result=Health, needs_token=False, errors=(),
    ),
    Door(
        name="metrics", verb="GET", path="/metrics", summary="Read the controller's metrics",
        media="text/plain", needs_token=False, errors=(),
    ),
)  # fmt: skip
