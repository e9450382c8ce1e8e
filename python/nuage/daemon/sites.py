"""Channels to the other sites, and the feeds that run over them.

A site is known from its `Datacenter` record, or first from the answer to joining; the list is
kept in ``peers.json`` so that a cold start needs nobody. When a channel opens the site says who it
is (`site.hello`), so that a new site is followed by those that never heard of it. It also says
whom it knows, again whenever it learns of one more: two sites that join at the same time hear of
each other through the site that let them in. Hearsay only adds addresses; who answers there is
proved by its certificate.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from ssl import SSLContext
from typing import Final, TypeVar

import msgspec
import structlog

from nuage.catalogue.feed import (
    ApplyBatch,
    Cursor,
    FeedItems,
    FeedMessage,
    FeedRequest,
    ReplaceReplica,
)
from nuage.catalogue.follow import FeedFollower, serve_feed, serve_replica
from nuage.catalogue.replica import Replicas
from nuage.catalogue.store import Catalogue
from nuage.catalogue.table import Table
from nuage.channel import Admission, ChannelClient, ChannelState, Expected, Handlers, Peer
from nuage.clock import Clock
from nuage.daemon.process import Tasks
from nuage.errors import NotFound, SiteUnreachable, Unavailable
from nuage.iaas.index import Change, FederationIndex
from nuage.ids import FederationId, SiteId
from nuage.model.infrastructure import Datacenter, NodeRole
from nuage.trust.files import write_atomically

R = TypeVar("R")
FEED_STREAM: Final = "catalogue.feed"
REPLICA_STREAM: Final = "catalogue.replica"
HELLO_METHOD: Final = "site.hello"
HELLO_TIMEOUT_S: Final = 5.0
log = structlog.get_logger("sites")


@dataclass(frozen=True, slots=True)
class AskOwn:
    """A site asks what another knows of it (`daemon.restore`)."""


@dataclass(frozen=True, slots=True)
class SiteHello:
    """A site says who it is, where its controllers listen, and where it finds the others."""

    datacenter: Datacenter
    known: dict[SiteId, str] = field(default_factory=dict)


class IndexedReplicas:
    """Replicas that show in the index what they take in (`catalogue.replica.Replicas`).

    `on_fed` hears of each batch: whose, and when its oldest change was made there.
    """

    def __init__(
        self,
        inner: Replicas,
        index: FederationIndex,
        on_change: Callable[[Change], None],
        on_fed: Callable[[SiteId, float], None] = lambda _site_id, _changed_s: None,
    ) -> None:
        self._inner = inner
        self._index = index
        self._on_change = on_change
        self._on_fed = on_fed

    def sites(self) -> tuple[SiteId, ...]:
        """Return the sites that have a replica."""
        return self._inner.sites()

    def cursor(self, site: SiteId) -> Cursor:
        """Return up to where a replica goes."""
        return self._inner.cursor(site)

    def table(self, site: SiteId) -> Table | None:
        """Return a replica's records."""
        return self._inner.table(site)

    async def apply(self, effect: ApplyBatch | ReplaceReplica) -> None:
        """Store an effect durably, then show it."""
        await self._inner.apply(effect)
        if isinstance(effect, ReplaceReplica):
            for change in self._index.replace_site(effect.site, effect.records):
                self._on_change(change)
            return
        for record in effect.records:
            self._on_change(self._index.put(record))
        if effect.records:
            self._on_fed(effect.site, min(record.changed_s for record in effect.records))
        for kind, object_id in effect.deleted:
            self._on_change(self._index.remove(kind, object_id, effect.site))

    async def forget(self, site: SiteId) -> None:
        """Drop a replica."""
        await self._inner.forget(site)
        for change in self._index.replace_site(site, ()):
            self._on_change(change)


@dataclass(slots=True)
class _Link:
    client: ChannelClient
    address: str


class SiteLinks:
    """This site's channels to all the others (`iaas.site.OtherSites`)."""

    def __init__(
        self,
        *,
        federation_id: FederationId,
        datacenter: Datacenter,
        ssl_context: SSLContext,
        handlers: Handlers,
        admit: Admission,
        clock: Clock,
        peers_file: Path,
        tasks: Tasks,
        on_known: Callable[[SiteId], None],
    ) -> None:
        self._federation_id = federation_id
        self._datacenter = datacenter
        self._ssl_context = ssl_context
        self._handlers = handlers
        self._admit = admit
        self._clock = clock
        self._peers_file = peers_file
        self._tasks = tasks
        self._on_known = on_known
        self._links: dict[SiteId, _Link] = {}
        self._follower: FeedFollower | None = None
        self._addresses: dict[SiteId, str] = {}

    def start(self, follower: FeedFollower) -> None:
        """Begin to keep channels to every peer known from before, and to follow them."""
        self._follower = follower
        if self._peers_file.exists():
            known = msgspec.json.decode(self._peers_file.read_bytes(), type=dict[SiteId, str])
            for site_id, address in known.items():
                self.know(site_id, (address,))

    def know(self, site_id: SiteId, addresses: Iterable[str]) -> None:
        """Take in where a site's controllers listen; the one that serves is found by trying."""
        address = ",".join(addresses)
        if site_id == self._datacenter.site_id or not address:
            return
        link = self._links.get(site_id)
        if link is not None and link.address == address:
            return
        self._addresses[site_id] = address
        write_atomically(self._peers_file, msgspec.json.encode(self._addresses))
        if link is not None:
            self._tasks.start(f"close {site_id}", link.client.close())
        client = ChannelClient(
            address,
            self._ssl_context,
            self._handlers,
            self._clock,
            expected=Expected(self._federation_id, site_id=site_id, role=NodeRole.CONTROLLER),
            admit=self._admit,
            on_state=self._state_of(site_id),
        )
        self._links[site_id] = _Link(client, address)
        client.start()
        if link is None and self._follower is not None:
            follower = self._follower
            self._tasks.keep(f"feed {site_id}", lambda: follower.follow(site_id))
            self._on_known(site_id)
            for other, reached in self._links.items():
                if other != site_id and reached.client.is_ready:
                    self._tasks.start(f"hello {other}", self._say_hello(other))

    def _state_of(self, site_id: SiteId) -> Callable[[ChannelState, str], None]:
        def changed(state: ChannelState, reason: str) -> None:
            log.info("channel", peer=site_id, state=state.value, reason=reason)
            if state is ChannelState.READY:
                self._tasks.start(f"hello {site_id}", self._say_hello(site_id))

        return changed

    async def _say_hello(self, site_id: SiteId) -> None:
        await self.ask(
            site_id,
            HELLO_METHOD,
            SiteHello(self._datacenter, dict(self._addresses)),
            type(None),
            timeout_s=HELLO_TIMEOUT_S,
        )

    def register(self, handlers: Handlers, catalogue: Catalogue, replicas: Replicas) -> None:
        """Enter what other sites ask: our feed, what we know of them, and to know theirs."""
        controllers = {NodeRole.CONTROLLER}
        items = FeedItems()

        @handlers.stream(FEED_STREAM, FeedRequest, roles=controllers)
        async def feed(_peer: Peer, request: FeedRequest) -> AsyncIterator[FeedMessage]:
            async for message in serve_feed(catalogue, request, clock=self._clock, items=items):
                yield message

        @handlers.stream(REPLICA_STREAM, AskOwn, roles=controllers)
        async def replica(peer: Peer, _body: AskOwn) -> AsyncIterator[FeedMessage]:
            of = peer.identity.site_id
            async for message in serve_replica(replicas, of, clock=self._clock):
                yield message

        @handlers.method(HELLO_METHOD, SiteHello, roles=controllers)
        async def hello(peer: Peer, body: SiteHello) -> None:
            if body.datacenter.site_id == peer.identity.site_id:
                self.know(body.datacenter.site_id, body.datacenter.addresses)
                for site_id, address in body.known.items():
                    if site_id not in self._links:
                        self.know(site_id, (address,))

    async def ask(
        self, site_id: SiteId, method: str, body: object, result: type[R], *, timeout_s: float
    ) -> R:
        """Ask another site's controller."""
        return await self._peer(site_id, method).call(method, body, result, timeout_s)

    def tell(self, site_id: SiteId, method: str, body: object) -> None:
        """Send another site's controller a notice that may be lost."""
        self._peer(site_id, method).notify(method, body)

    def subscribe_feed(self, site_id: SiteId, request: FeedRequest) -> AsyncIterator[FeedMessage]:
        """Follow another site's feed (`catalogue.follow.Subscribe`)."""
        return self._peer(site_id, FEED_STREAM).subscribe(FEED_STREAM, request, FeedMessage)

    def subscribe(
        self, site_id: SiteId, method: str, body: object, item_type: type[R]
    ) -> AsyncIterator[R]:
        """Follow any stream of another site's controller."""
        return self._peer(site_id, method).subscribe(method, body, item_type)

    def peers(self) -> tuple[Peer, ...]:
        """Return who answers at the channels that are open now."""
        return tuple(link.client.peer for link in self._links.values() if link.client.is_ready)

    def site_ids(self) -> tuple[SiteId, ...]:
        """Return the other sites known, in order."""
        return tuple(sorted(self._links))

    def age_of(self, site_id: SiteId) -> float:
        """Return the seconds since a site was heard: 0.0 for ours, infinity for never."""
        if site_id == self._datacenter.site_id:
            return 0.0
        age_s = None if self._follower is None else self._follower.age_s(site_id)
        return inf if age_s is None else age_s

    def _peer(self, site_id: SiteId, doing: str) -> Peer:
        link = self._links.get(site_id)
        if link is None:
            raise NotFound("site", site_id, hint="`nuage site list` shows the sites known here")
        try:
            return link.client.peer
        except Unavailable as error:
            raise SiteUnreachable(
                site_id, doing=doing, retry_after_s=error.retry_after_s
            ) from error

    async def close(self) -> None:
        """Close every channel."""
        for link in self._links.values():
            await link.client.close()
