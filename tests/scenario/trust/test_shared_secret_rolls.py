"""A datacenter is revoked: the others share a new secret, each fetches it, and it does not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from tests.scenario.trust.test_revocation_everywhere import eventually, site_of
from tests.scenario.trust.test_trust_scenarios import CLOCK, LYON, MARNE, Host, host, serving
from tests.unit.iaas.iaas_makers import record

from nuage.channel import ChannelClient, Expected, Handlers
from nuage.daemon.process import Tasks
from nuage.daemon.secret_desk import SECRETS_METHOD, AskSecrets, SecretDesk, SecretsTold
from nuage.daemon.trust_desk import Distrusting, TrustDesk
from nuage.errors import NuageError, SiteUnreachable
from nuage.iaas.site import OtherSites, Site
from nuage.ids import NodeId, SiteId
from nuage.model.infrastructure import NodeRole
from nuage.model.trust import SiteTrust
from nuage.trust.join import join_site
from nuage.trust.store import TrustStore

__all__ = ["host"]
R = TypeVar("R")
RENNES = SiteId("rennes")


class Wires:
    """The channels of one controller to the others (`iaas.site.OtherSites`), as far as asked."""

    def __init__(self, store: TrustStore, trust: TrustDesk) -> None:
        self._store = store
        self._trust = trust
        self.ports: dict[SiteId, int] = {}

    async def ask(
        self, site_id: SiteId, method: str, body: object, result: type[R], *, timeout_s: float
    ) -> R:
        if site_id not in self.ports:
            raise SiteUnreachable(site_id, doing=method)
        client = ChannelClient(
            f"127.0.0.1:{self.ports[site_id]}", self._store.client_context(), Handlers(), CLOCK,
            expected=Expected(
                self._store.federation_id(), site_id=site_id, role=NodeRole.CONTROLLER
            ),
            admit=self._trust.book.revocations.admit,
        )  # fmt: skip
        client.start()
        try:
            await client.wait_ready(timeout_s)
            return await client.peer.call(method, body, result, timeout_s)
        finally:
            await client.close()

    def peers(self) -> tuple[Any, ...]:
        return ()


@dataclass
class Controller:
    """What a controller has of this, on real channels."""

    store: TrustStore
    trust: TrustDesk
    site: Site
    secrets: SecretDesk
    wires: Wires
    revoking: Distrusting
    told: list[int]

    def hear(self, document: SiteTrust) -> None:
        """Take what the feed of another site brought."""
        known = self.site.index.find("trust", document.site_id)
        revision = 1 if known is None else known.revision + 1
        self.site.index.put(record(document, home=document.site_id, revision=revision))
        self.trust.take(document)
        self.secrets.look()


@asynccontextmanager
async def controller(store: TrustStore) -> AsyncIterator[Controller]:
    trust, tasks, handlers = TrustDesk(store, CLOCK), Tasks(), Handlers()
    site, wires = site_of(store.identity().site_id), Wires(store, trust)
    secrets = SecretDesk(
        store.shared_secrets(), store, trust, site.index, cast(OtherSites, wires), tasks, CLOCK
    )
    told: list[int] = []
    secrets.on_news = lambda: told.append(secrets.secrets.newest)
    secrets.register(handlers)
    async with serving(store, handlers, admit=trust.book.revocations.admit) as server:
        trust.guard(server, cast(Any, SimpleNamespace(peers=wires.peers)))
        wires.ports[store.identity().site_id] = server.port
        yield Controller(
            store, trust, site, secrets, wires,
            Distrusting(trust, store, site, server, None, secrets.begin), told,
        )  # fmt: skip
        await tasks.close()


async def joined(host: Host, directory: Path, site_id: SiteId) -> TrustStore:
    store = TrustStore(directory)
    await join_site(host.invite_site(site_id), store, NodeId("c9"), CLOCK)
    store.keep_shared_secrets(host.store.shared_secrets())  # as the welcome brings it
    return store


@asynccontextmanager
async def federation(host: Host, tmp_path: Path) -> AsyncIterator[tuple[Controller, ...]]:
    lyon_store = await joined(host, tmp_path / "lyon", LYON)
    rennes_store = await joined(host, tmp_path / "rennes", RENNES)
    async with (
        controller(host.store) as marne,
        controller(lyon_store) as lyon,
        controller(rennes_store) as rennes,
    ):
        three = (marne, lyon, rennes)
        ports = {c.store.identity().site_id: c.wires.ports.popitem()[1] for c in three}
        for one in three:
            one.wires.ports.update(ports)
            for other in [other for other in three if other is not one]:
                one.hear(other.store.site_trust())
        yield three


async def test_a_revoked_datacenter_learns_nothing_of_the_secret_that_follows(
    host: Host, tmp_path: Path
) -> None:
    async with federation(host, tmp_path) as (marne, lyon, rennes):
        before = lyon.secrets.secrets.held()
        await marne.revoking.revoke_site(RENNES)
        assert marne.store.shared_secrets().newest == 1, "kept before it is published"
        assert marne.told == [1]
        published = marne.site.index.value(SiteTrust, MARNE)
        assert (published.key_generation, published.secret_generation) == (1, 1)
        lyon.hear(published)
        assert lyon.secrets.usable(1) == 0, "no key of the new secret before it is here"
        await eventually(lambda: lyon.told == [1])
        assert lyon.secrets.usable(1) == 1
        kept = lyon.store.shared_secrets().held()
        assert kept == marne.secrets.secrets.held()
        assert kept == {**before, 1: kept[1]}
        assert kept[1] != before[0]
        # The revoked one hears of it, by whatever way, and asks everybody.
        rennes.hear(published)
        for site_id in (MARNE, LYON):
            with pytest.raises(NuageError):
                await rennes.wires.ask(
                    site_id, SECRETS_METHOD, AskSecrets(), SecretsTold, timeout_s=5.0
                )
        assert rennes.store.shared_secrets().held() == before


async def test_who_fetches_the_secret_from_a_third_site_hears_who_was_shut_out(
    host: Host, tmp_path: Path
) -> None:
    """Lyon is cut off from where it was decided: it gets secret and revocation from Rennes."""
    async with federation(host, tmp_path) as (marne, lyon, rennes):
        nancy = SiteId("nancy")
        nancy_store = await joined(host, tmp_path / "nancy", nancy)
        for one in (marne, lyon, rennes):
            one.hear(nancy_store.site_trust())
        await marne.revoking.revoke_site(nancy)
        rennes.hear(marne.site.index.value(SiteTrust, MARNE))
        await eventually(lambda: rennes.told == [1])
        del lyon.wires.ports[MARNE]
        assert lyon.trust.is_believed(nancy)
        lyon.hear(rennes.store.site_trust())
        await eventually(lambda: lyon.told == [1])
        assert not lyon.trust.is_believed(nancy)
        assert lyon.secrets.secrets.held() == marne.secrets.secrets.held()


async def test_what_a_revoked_datacenter_says_of_secrets_stops_nobody(
    host: Host, tmp_path: Path
) -> None:
    """It may have published any number before: nobody waits for a secret that only it has."""
    async with federation(host, tmp_path) as (marne, lyon, rennes):
        await marne.revoking.revoke_site(RENNES)
        lyon.hear(marne.site.index.value(SiteTrust, MARNE))
        await eventually(lambda: lyon.told == [1])
        claim = rennes.store.site_trust()
        lyon.hear(SiteTrust(**{**as_fields(claim), "secret_generation": 99}))
        assert lyon.secrets.wanted == 1
        assert lyon.secrets.usable(7) == 7


def as_fields(document: SiteTrust) -> dict[str, Any]:
    return {name: getattr(document, name) for name in SiteTrust.__dataclass_fields__}
