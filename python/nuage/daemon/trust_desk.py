"""Who is believed at this site: what the feeds brought, and what is told on to the site's agents.

A revocation takes effect in this order: the list is on disk, it counts here (open channels of the
revoked are closed, new ones refused), then it is published; the feeds carry it to the other sites,
and each site's controller tells its agents (`agent_trust`). etcd reads `site/quorum.crl` at each
handshake.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final

import structlog
from cryptography import x509

from nuage.channel import ChannelServer, Handlers, Peer
from nuage.clock import Clock
from nuage.daemon.agent_trust import TRUST_STREAM, TrustWish
from nuage.daemon.nodes import FollowWishes, WishSlot
from nuage.daemon.sites import SiteLinks
from nuage.errors import NotFound, NuageError, Unavailable
from nuage.etcd.client import EtcdClient
from nuage.iaas.fabric_keys import newest_generation
from nuage.iaas.site import Site
from nuage.ids import NodeId, SiteId
from nuage.model.infrastructure import Datacenter, Node, NodeRole
from nuage.model.trust import SiteTrust
from nuage.quorum.member import remove_member
from nuage.trust.book import TrustBook
from nuage.trust.revocation import read_revocation_list
from nuage.trust.store import TrustStore

MEMBERS_MEET_WITHIN_S: Final = 12.0  # etcd wants its members to have been connected for 5 s
MEMBERS_ASKED_EVERY_S: Final = 1.0
log = structlog.get_logger("trust")


class TrustDesk:
    """The controller's keeper of trust (`iaas.site.Distrust`)."""

    def __init__(self, store: TrustStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.book = TrustBook(store.root())
        self._documents: dict[SiteId, SiteTrust] = {}
        self._slot: WishSlot[TrustWish] = WishSlot()
        self._revision = 0
        self._server: ChannelServer | None = None
        self._links: SiteLinks | None = None
        self.root_list = ""  # the newest of the root's revocation lists known here
        self.take(store.site_trust())

    def guard(self, server: ChannelServer, links: SiteLinks) -> None:
        """Close the channels of these two whenever somebody is revoked."""
        self._server, self._links = server, links

    def register(self, handlers: Handlers) -> None:
        """Let the site's agents follow what is believed."""
        agents = {NodeRole.VNODE, NodeRole.IONODE, NodeRole.EDGE}

        @handlers.stream(TRUST_STREAM, FollowWishes, roles=agents)
        async def documents(_peer: Peer, _body: FollowWishes) -> AsyncIterator[object]:
            async for wish in self._slot.follow():
                yield wish

    def take(self, document: SiteTrust) -> None:
        """Take a site's document in; one that does not come from the root is refused and told."""
        try:
            is_news = self.book.take(document)
        except NuageError as error:
            log.error("trust refused", of=document.site_id, error=error.message)
            return
        self._note_root_list(document.root_revocations_pem)
        told = replace(document, audit_seal="")  # of no use to an agent, and new every minute
        if self._documents.get(document.site_id) != told:
            self._documents[document.site_id] = told
            self._revision += 1
            documents = tuple(self._documents[site_id] for site_id in sorted(self._documents))
            self._slot.put(TrustWish(revision=self._revision, documents=documents))
        if is_news:
            self._refuse_revoked()

    def take_root_list(self, pem: str) -> None:
        """Take in the root's revocation list, whoever brings it.

        Raises:
            InvalidRequest, Unauthenticated: it is not the root's.
        """
        if self.book.revocations.take(pem, self.book.root, is_root=True):
            self._note_root_list(pem)
            self._refuse_revoked()

    def _note_root_list(self, pem: str) -> None:
        root = self.book.root
        if pem and read_revocation_list(pem, root)[0] == self.book.revocations.number_of(root):
            self.root_list = pem

    def is_believed(self, site_id: SiteId) -> bool:
        """Tell whether a datacenter has published its trust and was not revoked."""
        return site_id in self.book.site_ids() and not self.is_revoked(site_id)

    def is_revoked(self, site_id: SiteId) -> bool:
        """Tell whether a datacenter was revoked; of one that never published, nobody can tell."""
        if site_id not in self.book.site_ids():
            return False
        revoked = self.book.revocations.serials_of(self.book.root)
        return self.book.authority_of(site_id).serial_number in revoked

    def _refuse_revoked(self) -> None:
        revocations = self.book.revocations
        self._store.keep_quorum_list(revocations.all_serials(), now_s=self._clock.now_s())
        if self._server is not None:
            self._server.drop(revocations.to_drop(self._server.peers), "revoked")
        if self._links is not None:
            for peer in revocations.to_drop(self._links.peers()):
                peer.close("revoked")

    async def publish(self, site: Site, seal: str, *changed: Node) -> None:
        """Tell the others our keys, revocations and the last seal of our audit log."""
        self._store.raise_key_generation(newest_generation(site.index))
        trust = self._store.site_trust(audit_seal=seal)
        if changed or site.index.find_value(SiteTrust, site.site_id) != trust:
            await site.save(trust, *changed)


class Distrusting:
    """Revokes (`iaas.site.Distrust`). `open_quorum` opens a client of the quorum's members.

    `begin_secret` makes the secret that controllers share from a generation of keys on.
    """

    def __init__(
        self,
        desk: TrustDesk,
        store: TrustStore,
        site: Site,
        server: ChannelServer,
        open_quorum: Callable[[], EtcdClient] | None,
        begin_secret: Callable[[int], None],
    ) -> None:
        self._desk = desk
        self._store = store
        self._site = site
        self._server = server
        self._open_quorum = open_quorum
        self._begin_secret = begin_secret

    async def revoke_node(self, node_id: NodeId) -> None:
        """Believe nothing any more that a node of this site shows.

        Raises:
            NotFound: it never joined.
        """
        site = self._site
        shown = {
            x509.load_der_x509_certificate(peer.certificate_der).serial_number
            for peer in self._server.find_peers(site_id=site.site_id, node_id=node_id)
        }
        self._store.revoke_node(node_id, shown=shown, now_s=site.clock.now_s())
        generation = self._begin_keys()
        self._desk.take(self._store.site_trust())
        node = site.index.find_value(Node, node_id)
        if node is None:
            await self._publish()
            return
        # Nothing new goes to it, and no edge keeps a trunk with it, until it has joined again.
        distrusted = replace(node, maintenance=True, revoked_generation=generation)
        await self._publish(replace(distrusted, lines=(), trunk_key=""))

    async def revoke_site(self, site_id: SiteId) -> None:
        """Believe nothing any more that a whole datacenter shows.

        Raises:
            NotFound: no such datacenter.
            Unavailable: the federation's root key is not here.
        """
        if site_id == self._site.site_id:
            raise Unavailable(
                f"{site_id} cannot revoke itself", hint="ask another site that holds the root key"
            )
        try:
            authority = self._desk.book.authority_of(site_id)
        except NotFound:
            known = ", ".join(sorted(d.site_id for d in self._site.index.values(Datacenter)))
            raise NotFound("site", site_id, hint=f"there is {known}") from None
        self._store.revoke_site(authority, now_s=self._site.clock.now_s())
        self._begin_secret(self._begin_keys())
        self._desk.take(self._store.site_trust())
        await self._publish()
        await self._remove_member(site_id)

    async def roll_keys(self) -> int:
        """Begin the next generation of the fabric's keys; return its number."""
        generation = self._begin_keys()
        self._desk.take(self._store.site_trust())
        await self._publish()
        return generation

    def _begin_keys(self) -> int:
        known = max(newest_generation(self._site.index), self._store.key_generation)
        self._store.raise_key_generation(known + 1)
        return known + 1

    async def _remove_member(self, site_id: SiteId) -> None:
        if self._open_quorum is None:
            return
        etcd = self._open_quorum()
        try:
            await self._remove_once_connected(etcd, site_id)
        except NotFound:
            log.info("no member of the quorum", of=site_id)  # revoked a second time
        except NuageError as error:
            raise Unavailable(
                f"{site_id} is revoked, but its member is still in the quorum: {error.message}",
                hint="run the same command again",
            ) from error
        finally:
            await etcd.close()

    async def _remove_once_connected(self, etcd: EtcdClient, site_id: SiteId) -> None:
        """Remove the member; etcd lets nobody go in the seconds after its members met."""
        clock = self._site.clock
        give_up_s = clock.monotonic_s() + MEMBERS_MEET_WITHIN_S
        while True:
            try:
                return await remove_member(etcd, site_id)
            except Unavailable:
                if clock.monotonic_s() >= give_up_s:
                    raise
            await clock.sleep(MEMBERS_ASKED_EVERY_S)

    async def _publish(self, *changed: Node) -> None:
        known = self._site.index.find_value(SiteTrust, self._site.site_id)
        await self._desk.publish(self._site, "" if known is None else known.audit_seal, *changed)
