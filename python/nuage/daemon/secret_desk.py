"""The controllers' shared secret: fetched from another controller once a new one has begun.

A datacenter is revoked where the root's key is. There the next secret is made and kept before the
revocation is published; `SiteTrust.secret_generation` then tells the other sites that there is one,
and each asks a site that has it, over a channel that the revoked have lost. The answer carries the
root's revocation list too, which is taken in first: nobody holds a secret, and so nobody can pass
it on, without knowing who was shut out of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from nuage.channel import Handlers, Peer
from nuage.clock import Clock
from nuage.daemon.process import Tasks
from nuage.daemon.trust_desk import TrustDesk
from nuage.errors import NuageError
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import OtherSites
from nuage.ids import SiteId
from nuage.model.infrastructure import NodeRole
from nuage.model.trust import SiteTrust
from nuage.trust.shared_secrets import SharedSecrets
from nuage.trust.store import TrustStore

SECRETS_METHOD: Final = "trust.secrets"
ASK_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 1.0  # until a site that has it can be reached
log = structlog.get_logger("secrets")


@dataclass(frozen=True, slots=True)
class AskSecrets:
    """A controller asks another for what controllers share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsTold:
    """All secrets of a controller, and the root's list that says who shall not have them."""

    secrets: dict[int, bytes] = field(repr=False)
    root_revocations_pem: str


class SecretDesk:
    """Keeps `secrets` up to date. `on_news` hears of a new one."""

    def __init__(
        self,
        secrets: SharedSecrets,
        store: TrustStore,
        trust: TrustDesk,
        index: FederationIndex,
        others: OtherSites,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self.secrets = secrets
        self._store = store
        self._trust = trust
        self._index = index
        self._others = others
        self._tasks = tasks
        self._clock = clock
        self._is_fetching = False
        self.on_news: Callable[[], None] = lambda: None

    def register(self, handlers: Handlers) -> None:
        """Let other controllers ask."""

        @handlers.method(SECRETS_METHOD, AskSecrets, roles={NodeRole.CONTROLLER})
        async def told(_peer: Peer, _body: AskSecrets) -> SecretsTold:
            return SecretsTold(
                secrets=self.secrets.held(), root_revocations_pem=self._trust.root_list
            )

    @property
    def wanted(self) -> int:
        """Return the generation of the newest secret that a site still believed says it has."""
        said = (t.secret_generation for t in self._documents())
        return max((self.secrets.newest, *said))

    def usable(self, generation: int) -> int:
        """Return the highest generation of keys up to `generation` whose secret is here."""
        wanted = self.wanted
        return generation if self.secrets.newest >= wanted else min(generation, wanted - 1)

    def look(self) -> None:
        """Fetch what is missing; call whenever a site has published its trust."""
        if self.secrets.newest < self.wanted and not self._is_fetching:
            self._is_fetching = True
            self._tasks.start("secrets", self._fetch())

    def begin(self, generation: int) -> None:
        """Make the next secret, in force from a generation of keys on, and keep it."""
        self.secrets.begin(generation)
        self._keep()

    def _keep(self) -> None:
        self._store.keep_shared_secrets(self.secrets)
        self.on_news()

    def _documents(self) -> list[SiteTrust]:
        return [t for t in self._index.values(SiteTrust) if self._trust.is_believed(t.site_id)]

    async def _fetch(self) -> None:
        try:
            while (wanted := self.wanted) > self.secrets.newest:
                holders = (t.site_id for t in self._documents() if t.secret_generation >= wanted)
                for site_id in sorted(holders):
                    if await self._fetch_from(site_id):
                        break
                else:
                    await self._clock.sleep(RETRY_S)
        finally:
            self._is_fetching = False

    async def _fetch_from(self, site_id: SiteId) -> bool:
        try:
            told = await self._others.ask(
                site_id, SECRETS_METHOD, AskSecrets(), SecretsTold, timeout_s=ASK_TIMEOUT_S
            )
            self._trust.take_root_list(told.root_revocations_pem)
            is_news = self.secrets.take(told.secrets)
        except NuageError as error:
            log.warning("secret not told", by=site_id, error=error.message)
            return False
        if not is_news:
            return False
        log.info("a new shared secret", generation=self.secrets.newest, told_by=site_id)
        self._keep()
        return True
