"""Runs an operation here, or carries it to its home site, with the caller's own token.

The home checks the token again with its own keys: no site takes another's word for who asks.
"""

import re
from dataclasses import dataclass
from typing import Protocol

import msgspec

from nuage.errors import UNREADABLE, InvalidRequest, Moving, NuageError
from nuage.iaas.dismantling import is_past, with_past
from nuage.iaas.doors import TABLE
from nuage.iaas.operations import Operation
from nuage.iaas.site import Site, begun_anew
from nuage.ids import SiteId
from nuage.model.iaas import Iaas, PastIaas
from nuage.trust.permissions import EVERYWHERE, Principal, Scope, is_allowed, require, scopes_of

CARRY_TIMEOUT_S = 10.0
MOVING_WAIT_S = 20.0  # a head whose node is lost opens within 3; a client's patience is 60
MOVING_POLL_S = 0.25
DETAIL_CHARS_MAX = 500
OPERATION_METHOD = "operation"
_MISSING = re.compile(r"missing required field `(\w+)`")


class Authenticator(Protocol):
    """Says whose token it is, from local keys and what the feeds last brought."""

    def principal_of(self, token: str) -> Principal:
        """Return the caller.

        Raises:
            Unauthenticated: the token is not one of ours, has expired, or was voided.
        """
        ...


class AuditTrail(Protocol):
    """Where every change and every refusal is written down."""

    def note(
        self,
        *,
        who: str,
        what: str,
        on: str,
        outcome: str,
        request_id: str,
        from_address: str,
        detail: str = "",
    ) -> None:
        """Append an entry."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """An operation on its way to its home; the body is JSON, as the answer will be."""

    operation: str
    token: str
    body: bytes
    request_id: str
    from_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an operation gave, and which site gave it."""

    site: SiteId
    result: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and from where."""

    token: str
    request_id: str
    from_address: str


class Dispatcher:
    """The way from any door to the use cases."""

    def __init__(self, site: Site, authenticator: Authenticator, audit: AuditTrail) -> None:
        self._site = site
        self._authenticator = authenticator
        self._audit = audit

    async def perform(
        self, operation: Operation[object, object], body: object, caller: Caller
    ) -> Answer:
        """Run `operation` at its home and return its answer.

        Where it is about something that is on its way it waits, and is begun anew.

        Raises:
            NuageError: as the use case, or SiteUnreachable naming the home.
        """
        principal = self._authenticator.principal_of(caller.token)
        clock = self._site.clock
        deadline_s = clock.monotonic_s() + MOVING_WAIT_S
        while True:
            try:
                return await self._perform(operation, body, principal, caller)
            except Moving as error:
                if clock.monotonic_s() >= deadline_s:
                    scope = operation.scope(self._site, body)
                    self._note(operation, principal, scope, caller, error)
                    raise
            await clock.sleep(MOVING_POLL_S)  # its home may be another site by then

    async def _perform(
        self,
        operation: Operation[object, object],
        body: object,
        principal: Principal,
        caller: Caller,
    ) -> Answer:
        home = self._home(operation, body)
        if home is not None and home != self._site.site_id:
            carried = Carried(
                operation=operation.name,
                token=caller.token,
                body=msgspec.json.encode(body),
                request_id=caller.request_id,
                from_address=caller.from_address,
            )
            answer = await self._site.others.ask(
                home, OPERATION_METHOD, carried, bytes, timeout_s=CARRY_TIMEOUT_S
            )
            return Answer(site=home, result=msgspec.Raw(answer))
        return Answer(
            site=self._site.site_id, result=await self._run(operation, body, principal, caller)
        )

    async def perform_carried(self, carried: Carried) -> bytes:
        """Run an operation that another site carried here; return its answer as JSON."""
        operation = TABLE.get(carried.operation)
        body = decode_body(operation, carried.body)
        principal = self._authenticator.principal_of(carried.token)
        caller = Caller(
            token=carried.token, request_id=carried.request_id, from_address=carried.from_address
        )
        return msgspec.json.encode(await self._run(operation, body, principal, caller))

    def require_known(self, caller: Caller) -> Principal:
        """Return who asks, for doors that are not operations."""
        return self._authenticator.principal_of(caller.token)

    def require(self, caller: Caller, action: str, scope: Scope | None) -> Principal:
        """Return who asks, if their roles allow `action` in `scope` (None: anywhere)."""
        principal = self.require_known(caller)
        self._check(principal, action, scope)
        return principal

    def enter(self, what: str, action: str, scope: Scope, caller: Caller) -> None:
        """Let a caller through a door that is no operation; written down like one.

        Raises:
            NuageError: they may not.
        """
        principal = self.require_known(caller)
        error: NuageError | None = None
        try:
            self._check(principal, action, scope)
        except NuageError as refusal:
            error = refusal
            raise
        finally:
            self._write_down(what, principal, scope, caller, error)

    def _check(self, principal: Principal, action: str, scope: Scope | None) -> None:
        if _may(principal, action, scope):
            return
        index = self._site.index
        is_of_past = scope is None or (scope.iaas_id is not None and is_past(index, scope.iaas_id))
        if is_of_past and _may(with_past(index, principal), action, scope):
            return
        require(principal, action, EVERYWHERE if scope is None else scope, self._named)

    def _named(self, scope: str) -> str:
        index = self._site.index
        iaas = index.find_value(Iaas, scope) or index.find_value(PastIaas, scope)
        return scope if iaas is None else iaas.name

    def _home(self, operation: Operation[object, object], body: object) -> SiteId | None:
        return operation.home(self._site, body)

    async def _run(
        self,
        operation: Operation[object, object],
        body: object,
        principal: Principal,
        caller: Caller,
    ) -> object:
        scope = operation.scope(self._site, body)
        try:
            self._check(principal, operation.action, scope)
            if operation.is_one_write:
                result = await begun_anew(
                    self._site, lambda: operation.run(self._site, principal, body)
                )
            else:
                result = await operation.run(self._site, principal, body)
        except Moving:
            raise  # nothing was done yet: whoever waits for it writes down how it ends
        except NuageError as error:
            self._note(operation, principal, scope, caller, error)
            raise
        self._note(operation, principal, scope, caller, None)
        return result

    def _note(
        self,
        operation: Operation[object, object],
        principal: Principal,
        scope: Scope | None,
        caller: Caller,
        error: NuageError | None,
    ) -> None:
        if not operation.is_read or error is not None:
            self._write_down(operation.name, principal, scope, caller, error)

    def _write_down(
        self,
        what: str,
        principal: Principal,
        scope: Scope | None,
        caller: Caller,
        error: NuageError | None,
    ) -> None:
        self._audit.note(
            who=principal.name,
            what=what,
            on="anywhere" if scope is None else str(scope),
            outcome="ok" if error is None else error.code,
            detail="" if error is None else error.message[:DETAIL_CHARS_MAX],
            request_id=caller.request_id,
            from_address=caller.from_address,
        )


def _may(principal: Principal, action: str, scope: Scope | None) -> bool:
    if scope is None:
        return bool(scopes_of(principal, action))
    return is_allowed(principal, action, scope)


def decode_body(operation: Operation[object, object], data: bytes) -> object:
    """Read a JSON body as the operation's type.

    Raises:
        InvalidRequest: it is not JSON, or a field is missing, unknown or of the wrong kind.
    """
    try:
        return msgspec.json.decode(data, type=operation.body)
    except msgspec.ValidationError as error:
        raise invalid_body(error) from None
    except UNREADABLE as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def invalid_body(error: msgspec.ValidationError) -> InvalidRequest:
    """Turn msgspec's complaint into one that names the field."""
    message, _, path = str(error).partition(" - at `$")
    if isinstance(error.__cause__, InvalidRequest):
        return error.__cause__
    field = path.rstrip("`").lstrip(".")
    missing = _MISSING.search(message)
    if missing is not None:
        field = f"{field}.{missing[1]}" if field else missing[1]
    return InvalidRequest(message, field=field)
