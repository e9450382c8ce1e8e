"""Tokens and the audit log of a controller, behind the ports of `api`."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from nuage.clock import Clock
from nuage.daemon.process import Tasks
from nuage.errors import NotFound
from nuage.iaas.dismantling import is_past
from nuage.iaas.index import FederationIndex
from nuage.ids import SiteId, UserId, new_id
from nuage.model.identity import User
from nuage.trust.audit import AuditEntry, AuditLog
from nuage.trust.book import TrustBook, keys_document
from nuage.trust.permissions import Principal
from nuage.trust.secrets import while_others_run
from nuage.trust.tokens import KnownUser, TokenChecker, TokenIssuer, require_log_in
from nuage.trust.verify import audit_segments

SYNC_DELAY_S: Final = 0.02  # entries of a burst share one flush to disk


class Access:
    """Checks and issues tokens (`api.dispatch.Authenticator`, `api.http.TokenIssuer`)."""

    def __init__(
        self,
        *,
        checker_keys: TokenChecker,
        issuer: TokenIssuer,
        index: FederationIndex,
        clock: Clock,
    ) -> None:
        self._checker = checker_keys
        self._issuer = issuer
        self._index = index
        self._clock = clock

    def principal_of(self, token: str) -> Principal:
        """Return whose token it is, with what they may do now."""
        return self._checker.check(token, now_s=self._clock.now_s())

    async def issue(self, name: str, secret: str) -> str:
        """Return a token for a user who knows their secret; the hashing runs on a thread.

        It carries no role on an IaaS that is gone (`iaas.dismantling.with_past`).
        """
        try:
            user: User | None = self._index.named(User, name)
        except NotFound:
            user = None
        known = await while_others_run(require_log_in, user, secret)
        lasting = tuple(g for g in known.grants if not is_past(self._index, g.scope))
        known = replace(known, grants=lasting)
        return self._issuer.issue(known, token_id=new_id("tok"), now_s=self._clock.now_s())


def known_user(
    index: FederationIndex, age_of: Callable[[SiteId], float]
) -> Callable[[UserId], KnownUser | None]:
    """Return the look-up that a token checker needs."""

    def find(user_id: UserId) -> KnownUser | None:
        user = index.find_value(User, user_id)
        if user is None:
            return None
        return KnownUser(user, age_s=age_of(index.home("user", user_id)))

    return find


class Audit:
    """Appends at once, makes durable in groups (`api.dispatch.AuditTrail`).

    What is noted is in the kernel's hands before the caller hears of it: a killed controller
    leaves no acknowledged act out. The flush to disk runs on a thread, for it takes milliseconds,
    and touches nothing but the descriptor; only this thread writes.
    """

    def __init__(self, log: AuditLog, tasks: Tasks) -> None:
        self._log = log
        self._tasks = tasks
        self._is_due = False
        self._turn = asyncio.Lock()
        self._flushing = threading.Lock()  # held by the thread: its descriptor stays open

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
        entry = AuditEntry(
            who=who,
            action=what,
            target=on,
            source=from_address,
            request_id=request_id,
            outcome=outcome,
            detail=detail,
        )
        self._log.append(entry)
        if not self._is_due:
            self._is_due = True
            self._tasks.start("audit sync", self._sync_soon())

    async def _sync_soon(self) -> None:
        await asyncio.sleep(SYNC_DELAY_S)
        self._is_due = False
        await self.sync()

    async def sync(self) -> None:
        """Make what was noted durable, and seal when it is time."""
        async with self._turn:
            await asyncio.to_thread(self._flush)
            with self._flushing:
                self._log.seal_if_due()

    def _flush(self) -> None:
        with self._flushing:
            self._log.flush()

    @property
    def seal_line(self) -> str:
        """Return the last seal, which other sites keep."""
        return self._log.head.seal

    def seal(self) -> None:
        """Sign all that was noted, now."""
        with self._flushing:  # a thread whose task was cancelled may still go on
            self._log.seal()

    def close(self) -> None:
        """Seal and close the log."""
        with self._flushing:  # a thread whose task was cancelled may still go on
            self._log.close()


class AuditExport:
    """A site's audit log as files (`api.http.AuditFiles`)."""

    def __init__(self, directory: Path, audit: Audit, book: TrustBook) -> None:
        self._directory = directory
        self._audit = audit
        self._book = book

    def names(self) -> list[str]:
        """Seal what is open, and return the files in order."""
        self._audit.seal()
        return [path.name for path in audit_segments(self._directory)]

    def path(self, name: str) -> Path:
        """Return one file."""
        for path in audit_segments(self._directory):
            if path.name == name:
                return path
        raise NotFound("audit file", name)

    def keys(self) -> bytes:
        """Return every site's public keys."""
        return keys_document(self._book.public_keys())
