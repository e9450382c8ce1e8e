"""Certificates renewed on their own, over the identity that is still good.

`RenewalMachine` decides when; `Renewer` is the loop that acts; `register_renewal` is the answer
of a site's controller. A controller renews from its own authority, so a cut-off site never runs
out of certificates.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.channel.handlers import Handlers
from nuage.channel.peer import Peer
from nuage.clock import Clock
from nuage.errors import NuageError
from nuage.trust.pki import (
    load_certificate,
    make_request,
    not_after_s,
    not_before_s,
    pem_of,
    public_key_of_request,
)
from nuage.trust.revocation import Revocations
from nuage.trust.store import TrustStore

RENEW_METHOD: Final = "trust.renew"
RENEW_FROM: Final = 0.5  # of the certificate's life; spread so that a site's nodes do not
RENEW_UNTIL: Final = 0.64  # all ask at once, and before two thirds of it
RETRY_FIRST_S: Final = 10.0
RETRY_MAX_S: Final = 900.0
CHECK_S: Final = 3600.0  # the wall clock may be set while we sleep

log: Final = structlog.get_logger("nuage.trust")


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """Ask the site for a certificate of a new key for the identity that asks."""

    request_pem: str


@dataclass(frozen=True, slots=True)
class RenewAnswer:
    """The new chain."""

    chain_pem: str


class RenewalMachine:
    """Decides when to renew. Times are wall-clock seconds."""

    def __init__(self, *, not_before_s: float, not_after_s: float, prng: Random) -> None:
        self._prng = prng
        self._due_s = 0.0
        self._retry_s = RETRY_FIRST_S
        self.renewed(not_before_s=not_before_s, not_after_s=not_after_s)

    @property
    def due_s(self) -> float:
        """Return when to try next."""
        return self._due_s

    def renewed(self, *, not_before_s: float, not_after_s: float) -> None:
        """A new certificate is in place."""
        share = self._prng.uniform(RENEW_FROM, RENEW_UNTIL)
        self._due_s = not_before_s + (not_after_s - not_before_s) * share
        self._retry_s = RETRY_FIRST_S

    def failed(self, now_s: float) -> None:
        """An attempt failed: try again after a growing, jittered wait."""
        self._due_s = now_s + self._retry_s * self._prng.uniform(0.5, 1.0)
        self._retry_s = min(RETRY_MAX_S, self._retry_s * 2)


Ask = Callable[[RenewRequest], Awaitable[RenewAnswer]]


class Renewer:
    """Keeps one store's certificate fresh; run `run` as a task."""

    def __init__(self, store: TrustStore, ask: Ask, clock: Clock, prng: Random) -> None:
        self._store = store
        self._ask = ask
        self._clock = clock
        leaf = store.chain()[0]
        self._machine = RenewalMachine(
            not_before_s=not_before_s(leaf), not_after_s=not_after_s(leaf), prng=prng
        )

    async def run(self) -> None:
        """Renew whenever it is due, for ever."""
        while True:
            wait_s = self._machine.due_s - self._clock.now_s()
            if wait_s > 0:
                await self._clock.sleep(min(wait_s, CHECK_S))
                continue
            await self.attempt()

    async def attempt(self) -> bool:
        """Try once, and return whether there is a new certificate."""
        identity = self._store.identity()
        key = Ed25519PrivateKey.generate()
        try:
            answer = await self._ask(RenewRequest(make_request(key, str(identity))))
            root_pem = pem_of(self._store.root())
            self._store.install(root_pem=root_pem, chain_pem=answer.chain_pem, key=key)
        except NuageError as error:
            self._machine.failed(self._clock.now_s())
            left_s = not_after_s(self._store.chain()[0]) - self._clock.now_s()
            log.warning(
                "trust.renewal_failed", error=error.message, identity=str(identity), left_s=left_s
            )
            return False
        leaf = load_certificate(answer.chain_pem)
        self._machine.renewed(not_before_s=not_before_s(leaf), not_after_s=not_after_s(leaf))
        log.info("trust.renewed", identity=str(identity))
        return True


def own_authority(store: TrustStore, clock: Clock) -> Ask:
    """Return how a controller renews its own certificate: it asks itself."""

    async def ask(request: RenewRequest) -> RenewAnswer:
        key = public_key_of_request(request.request_pem)
        return RenewAnswer(store.issue(key, store.identity(), now_s=clock.now_s()))

    return ask


def register_renewal(
    handlers: Handlers, store: TrustStore, revocations: Revocations, clock: Clock
) -> None:
    """Let the site's daemons renew at this controller."""

    @handlers.method(RENEW_METHOD, RenewRequest)
    async def renew(peer: Peer, body: RenewRequest) -> RenewAnswer:
        # Admission checked revocation at connect; it may have come since.
        revocations.admit(peer.identity, peer.certificate_der)
        key = public_key_of_request(body.request_pem)
        return RenewAnswer(store.issue(key, peer.identity, now_s=clock.now_s()))
