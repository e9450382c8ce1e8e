"""Tokens and the audit log of a controller, behind the ports of `api`."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nuage.clock import Clock
from nuage.daemon.process import Tasks
from nuage.errors import NotFound
from nuage.iaas.index import FederationIndex
from nuage.ids import SiteId, UserId, new_id
from nuage.model.identity import User
from nuage.trust.audit import AuditEntry, AuditLog
from nuage.trust.book import TrustBook
from nuage.trust.permissions import Principal
from nuage.trust.tokens import KnownUser, TokenChecker, TokenIssuer, require_log_in
from nuage.trust.verify import audit_segments, keys_document

SYNC_DELAY_S: Final = 0.02  # entries of a burst share one flush to disk
CHECKED_MAX: Final = 4096


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
        """Return a token for a user who knows their secret; the hashing runs on a thread."""
        try:
            user: User | None = self._index.named(User, name)
        except NotFound:
            user = None
        known = await asyncio.to_thread(require_log_in, user, secret)
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
    """Appends at once, makes durable in groups (`api.dispatch.AuditTrail`)."""

    def __init__(self, log: AuditLog, tasks: Tasks) -> None:
        self._log = log
        self._tasks = tasks
        self._is_due = False

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
        self._log.append(
            AuditEntry(
                who=who,
                action=what,
                target=on,
                source=from_address,
                request_id=request_id,
                outcome=outcome,
                detail=detail,
            )
        )
        if not self._is_due:
            self._is_due = True
            self._tasks.start("audit sync", self._sync())

    async def _sync(self) -> None:
        await asyncio.sleep(SYNC_DELAY_S)
        self._is_due = False
        self._log.sync()  # on the loop: the log has one writer, and one flush serves many entries

    def close(self) -> None:
        """Seal and close the log."""
        self._log.close()


class AuditExport:
    """A site's audit log as files (`api.http.AuditFiles`)."""

    def __init__(self, directory: Path, log: AuditLog, book: TrustBook) -> None:
        self._directory = directory
        self._log = log
        self._book = book

    def names(self) -> list[str]:
        """Seal what is open, and return the files in order."""
        self._log.seal()
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
