"""Errors as HTTP: the one place that knows status codes."""

from collections.abc import Mapping
from typing import Final

from nuage.errors import (
    Conflict,
    CorruptData,
    Forbidden,
    InvalidRequest,
    LocalProtocolError,
    NoCandidate,
    NotFound,
    NuageError,
    QuotaExceeded,
    RemoteProtocolError,
    SovereigntyViolation,
    TimedOut,
    Unauthenticated,
    Unavailable,
)

# Order matters: the first class that fits gives the status.
STATUS: Final[tuple[tuple[type[NuageError], int], ...]] = (
    (InvalidRequest, 400),
    (Unauthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (SovereigntyViolation, 422),
    (NoCandidate, 422),
    (QuotaExceeded, 422),
    (Unavailable, 503),
    (TimedOut, 504),
    (RemoteProtocolError, 502),
    (CorruptData, 500),
    (LocalProtocolError, 500),
)
DETAILS: Final = ("field", "kind", "name", "rule", "resource", "limit", "used", "asked",
                  "site_id", "retry_after_s", "revision", "epoch")  # fmt: skip


def status_of(error: NuageError) -> int:
    """Return the HTTP status that tells a client whose move it is."""
    return next((status for cls, status in STATUS if isinstance(error, cls)), 500)


def document_of(error: NuageError) -> Mapping[str, object]:
    """Return the JSON body of an error: code, message, hint and the error's own fields."""
    document: dict[str, object] = {"code": error.code, "message": error.message}
    if error.hint:
        document["hint"] = error.hint
    for name in DETAILS:
        value = getattr(error, name, None)
        if value not in (None, ""):
            document[name] = value
    if isinstance(error, NoCandidate):
        document["refusals"] = [
            {"candidate": candidate, "rule": rule, "reason": reason}
            for candidate, rule, reason in error.refusals
        ]
    return document
