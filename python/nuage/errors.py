"""The exception tree, sorted by what the caller does about it.

::

    NuageError
    ├── InvalidRequest         the request is wrong: name the field, change it, ask again
    ├── NotFound               the thing named does not exist (here, or anywhere known)
    ├── Conflict               somebody else changed it first: read again, decide again
    │   └── StaleEpoch         ownership moved on: stop, you no longer own it
    ├── Forbidden              the caller's role does not allow it
    │   └── Unauthenticated    the caller is not known, or no longer
    ├── SovereigntyViolation   a contract forbids it; nothing was done
    ├── NoCandidate            every candidate refused; each refusal is kept
    ├── QuotaExceeded          a contract's quota is used up
    ├── Unavailable            not now: try again (retry_after_s), or elsewhere
    │   ├── SiteUnreachable    the home site of the object cannot be reached
    │   ├── Moving             what is asked about is on its way: doors wait for it (`api.dispatch`)
    │   ├── Locked             the data key is not here: whoever holds it must give it
    │   └── Lost               what was kept is on no disk any more: its owner decides
    ├── TimedOut               no answer in time; the effect is unknown
    ├── LocalProtocolError     we used a protocol wrongly: a bug of ours
    ├── RemoteProtocolError    the peer used a protocol wrongly: close the connection
    └── CorruptData            bytes at rest do not verify

HTTP codes exist in `api/errors.py` only. `code` is the stable, machine-readable name a
client may match on; the message is for people and says what was tried, on what, and
what would help.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

import msgspec

# What msgspec raises on bytes that are no document: not only its own error.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class NuageError(Exception):
    """Base of all errors that a caller may handle."""

    code: ClassVar[str] = "error"
    request_id = ""  # which request it answered, where it comes from the API

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidRequest(NuageError):
    """The request is wrong; `field` names where (dotted path, "" for the whole)."""

    code = "invalid_request"

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class NotFound(NuageError):
    """There is no such object."""

    code = "not_found"

    def __init__(self, kind: str, name: str, *, hint: str = "") -> None:
        super().__init__(f"no {kind} {name!r}" if name else f"there is no {kind}", hint=hint)
        self.kind = kind
        self.name = name


class Conflict(NuageError):
    """The object changed since the caller read it; `revision` is the one stored now."""

    code = "conflict"

    def __init__(self, message: str, *, revision: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.revision = revision


class StaleEpoch(Conflict):
    """Ownership has moved on: the caller acts under an epoch older than `epoch`."""

    code = "stale_epoch"

    def __init__(self, message: str, *, epoch: int, hint: str = "") -> None:
        super().__init__(message, revision=0, hint=hint)
        self.epoch = epoch


class Forbidden(NuageError):
    """The caller's roles do not allow this."""

    code = "forbidden"


class Unauthenticated(Forbidden):
    """The caller did not prove who they are."""

    code = "unauthenticated"


class SovereigntyViolation(NuageError):
    """A contract forbids it; `rule` is the name of the rule that does."""

    code = "sovereignty_violation"

    def __init__(self, message: str, *, rule: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.rule = rule


class NoCandidate(NuageError):
    """No candidate accepted; `refusals` keeps (candidate, rule, reason) of each."""

    code = "no_candidate"

    def __init__(
        self, message: str, *, refusals: Sequence[tuple[str, str, str]] = (), hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.refusals = tuple(refusals)


class QuotaExceeded(NuageError):
    """A quota of the contract is used up."""

    code = "quota_exceeded"

    def __init__(self, resource: str, *, limit: int, used: int, asked: int) -> None:
        super().__init__(
            f"quota of {resource}: {used} of {limit} in use, {asked} more asked",
            hint="delete something, or have the contract changed",
        )
        self.resource = resource
        self.limit = limit
        self.used = used
        self.asked = asked


class Unavailable(NuageError):
    """Not now; try again after `retry_after_s` seconds."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class SiteUnreachable(Unavailable):
    """The home site `site_id` cannot be reached from here."""

    code = "site_unreachable"

    def __init__(self, site_id: str, *, doing: str, retry_after_s: float = 5.0) -> None:
        super().__init__(
            f"site {site_id!r} cannot be reached ({doing})",
            retry_after_s=retry_after_s,
            hint="`nuage site list` shows which sites are cut off and for how long",
        )
        self.site_id = site_id


class Moving(Unavailable):
    """What is asked about is on its way to another node or site, and nothing was done.

    Whoever raises it has changed nothing: what was asked for is begun anew.
    """

    code = "moving"


class Locked(Unavailable):
    """What is asked for lies encrypted under a key that is not here."""

    code = "locked"


class Lost(Unavailable):
    """What was kept is on no disk any more; only its owner can decide what then."""

    code = "lost"


class TimedOut(NuageError):
    """No answer within the time allowed; whether it took effect is unknown."""

    code = "timed_out"

    def __init__(self, doing: str, *, after_s: float, hint: str = "") -> None:
        super().__init__(f"no answer within {after_s:g} s ({doing})", hint=hint)
        self.after_s = after_s


class LocalProtocolError(NuageError):
    """We used a protocol wrongly: a bug of ours."""

    code = "local_protocol_error"


class RemoteProtocolError(NuageError):
    """The peer used a protocol wrongly; close the connection."""

    code = "remote_protocol_error"


class CorruptData(NuageError):
    """Bytes at rest do not verify; `where` names them."""

    code = "corrupt_data"

    def __init__(self, message: str, *, where: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.where = where
