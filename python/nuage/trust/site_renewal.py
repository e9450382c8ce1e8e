"""A site's own keys renewed on their own: its signing key by itself, its authority by the root.

*The signing key.* At half its life the next one is made and its certificate published. The site
signs with it only `ANNOUNCED_S` later, so that every site knows it from the feeds before it meets
a token of it; one that was away for longer learns it with the first feed that reaches it. The
earlier certificates stay published for good, so what they signed is verified by the key of its
time.

*The authority* keeps its key: at half its life the root signs it again, where the root's key is.
Nothing that the authority has issued or signed is to be made anew. When the root's key cannot be
had, the site asks again each day, and says so from `WARN_S` before the end.

*The root* is renewed by nobody: an event says so from `WARN_ROOT_S` before its end.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from cryptography import x509

from nuage.channel.handlers import Handlers
from nuage.channel.peer import Peer
from nuage.clock import Clock
from nuage.errors import Forbidden, NuageError
from nuage.ids import SiteId
from nuage.model.infrastructure import NodeRole
from nuage.trust.book import TrustBook
from nuage.trust.pki import (
    DAY_S,
    not_after_s,
    not_before_s,
    public_key_of,
    public_key_of_request,
)
from nuage.trust.renewal import RenewAnswer, RenewRequest
from nuage.trust.store import TrustStore

RENEW_AUTHORITY_METHOD: Final = "trust.renew_authority"
ANNOUNCED_S: Final = 30 * DAY_S  # a datacenter rarely stays cut off for longer
LAST_MOMENT_S: Final = DAY_S  # of the key in use: an unknown key is better than one out of date
WARN_S: Final = 365 * DAY_S
WARN_ROOT_S: Final = 3 * 365 * DAY_S
REMIND_S: Final = 7 * DAY_S
ASK_EVERY_S: Final = DAY_S
CHECK_S: Final = 3600.0

log: Final = structlog.get_logger("nuage.trust")

AskRoot = Callable[[RenewRequest], Awaitable[RenewAnswer]]


class SiteRenewal:
    """Keeps the keys of one site fresh; run `run` as a task of its controller.

    `ask_root` has the root sign the authority again. `publish` tells the other sites what
    `TrustStore.site_trust` says. `announce(what, text)` puts a line on the event stream.
    """

    def __init__(
        self,
        store: TrustStore,
        clock: Clock,
        ask_root: AskRoot,
        publish: Callable[[], Awaitable[None]],
        announce: Callable[[str, str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._ask_root = ask_root
        self._publish = publish
        self._announce = announce
        self._ask_authority_s = 0.0
        self._reminded_s: dict[str, float] = {}

    async def run(self) -> None:
        """Renew whatever is due, for ever."""
        while True:
            try:
                await self.step()
            except (NuageError, OSError) as error:
                log.error("trust.site_renewal_failed", error=str(error))
            await self._clock.sleep(CHECK_S)

    async def step(self) -> None:
        """Do what is due now."""
        now_s = self._clock.now_s()
        await self._renew_signer(now_s)
        await self._renew_authority(now_s)
        root_end_s = not_after_s(self._store.root())
        if root_end_s - now_s < WARN_ROOT_S:
            text = (
                f"the federation's root ends in {_days(root_end_s - now_s)} and cannot be renewed"
            )
            self._remind("root-expires", text, now_s)

    async def _renew_signer(self, now_s: float) -> None:
        store = self._store
        signer, following = store.signer(), store.next_signer()
        if following is None or not_before_s(following) > now_s:  # made while the clock was wrong
            if not _is_past_half(signer, now_s):
                return
            store.prepare_signer(now_s=now_s)
            following = store.next_signer()
            assert following is not None, "it was just prepared"
            await self._publish()
            self._announce("signer-published", "the site's next signing key is published")
        is_known = now_s >= not_before_s(following) + ANNOUNCED_S
        if is_known or now_s >= not_after_s(signer) - LAST_MOMENT_S:
            store.use_next_signer()
            self._announce("signer-renewed", "the site signs with its new key")

    async def _renew_authority(self, now_s: float) -> None:
        authority = self._store.authority().certificate
        if not _is_past_half(authority, now_s) or now_s < self._ask_authority_s:
            return
        self._ask_authority_s = now_s + ASK_EVERY_S
        site_id = self._store.identity().site_id
        try:
            answer = await self._ask_root(RenewRequest(self._store.begin_site(site_id)))
            self._store.renew_authority(answer.chain_pem)
        except NuageError as error:
            left_s = not_after_s(authority) - now_s
            log.warning("trust.authority_not_renewed", error=error.message, left_s=left_s)
            if left_s < WARN_S:
                told = f"{site_id}'s authority ends in {_days(left_s)}: {error.message}"
                self._remind("authority-expires", told, now_s)
            return
        await self._publish()
        self._announce("authority-renewed", f"the root has renewed {site_id}'s authority")

    def _remind(self, what: str, text: str, now_s: float) -> None:
        if now_s >= self._reminded_s.get(what, 0.0) + REMIND_S:
            self._reminded_s[what] = now_s
            self._announce(what, text)


def register_authority_renewal(
    handlers: Handlers, store: TrustStore, book: TrustBook, clock: Clock
) -> None:
    """Let the sites' controllers have their authority renewed here, if the root's key is here."""

    @handlers.method(RENEW_AUTHORITY_METHOD, RenewRequest, roles={NodeRole.CONTROLLER})
    async def renew(peer: Peer, body: RenewRequest) -> RenewAnswer:
        book.revocations.admit(peer.identity, peer.certificate_der)
        return renewed_authority(store, book, peer.identity.site_id, body, now_s=clock.now_s())


def renewed_authority(
    store: TrustStore, book: TrustBook, site_id: SiteId, request: RenewRequest, *, now_s: float
) -> RenewAnswer:
    """Return the authority of `site_id` signed again by the root, whose key `store` holds.

    Raises:
        Forbidden: the request is of another key than the site's authority has.
        NotFound: the site has published no authority.
        Unavailable: the root's key is not here.
    """
    key = public_key_of_request(request.request_pem)
    if key != public_key_of(book.authority_of(site_id)):
        raise Forbidden(f"the request is not of the key of {site_id}'s authority")
    return RenewAnswer(store.admit_site(site_id, key, now_s=now_s))


def _is_past_half(certificate: x509.Certificate, now_s: float) -> bool:
    return now_s > (not_before_s(certificate) + not_after_s(certificate)) / 2


def _days(left_s: float) -> str:
    return f"{max(0, int(left_s // DAY_S))} days"
