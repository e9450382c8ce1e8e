"""A site's controller: API, catalogue, feeds, Local and Master Agent, reconcilers. Wiring only."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

import structlog
from aiohttp import web
from prometheus_client import generate_latest

from nuage.api.consoles import Consoles
from nuage.api.dispatch import OPERATION_METHOD, Carried, Dispatcher
from nuage.api.events import Announcement, EventRing, Owners
from nuage.api.http import Doors, build_application, runner_of
from nuage.catalogue.follow import FeedFollower
from nuage.channel import ChannelServer, Handlers, Peer, current_request_id, parse_address
from nuage.clock import Clock, SystemClock
from nuage.daemon.access import Access, Audit, AuditExport, known_user
from nuage.daemon.configuration import ControllerConfiguration
from nuage.daemon.energy import EnergyKeeper, Surroundings
from nuage.daemon.energy_metrics import EnergyMetrics
from nuage.daemon.fabric_desk import FabricDesk
from nuage.daemon.fencing import Machines, NodeFence, Outlets
from nuage.daemon.guardian import Guardian, lease_until_s, read_held, write_held
from nuage.daemon.hardware import PduLogins, redfish_bmcs
from nuage.daemon.heads import HeadWatch
from nuage.daemon.images import IMAGE_STREAM, ControllerImages, ImageChunk, ImageFolder, ReadImage
from nuage.daemon.joining import Welcoming, first_user, own_number, service_hosts
from nuage.daemon.key_desk import KeyDesk
from nuage.daemon.ledgers import keep_ledgers, open_ledgers, serve_ledgers
from nuage.daemon.metrics import ControllerMetrics
from nuage.daemon.nodes import NodeSessions, Reactions
from nuage.daemon.placing import DraftingPlacer, LocalPlacing, PlacementOnChannels
from nuage.daemon.process import Tasks, new_registry
from nuage.daemon.quorum import open_etcd, open_quorum
from nuage.daemon.reconciler import Reconciler
from nuage.daemon.releases import Releases
from nuage.daemon.seat import has_seat, open_catalogue, open_seat
from nuage.daemon.secret_desk import SecretDesk
from nuage.daemon.site_keys import site_renewal
from nuage.daemon.sites import IndexedReplicas, SiteLinks
from nuage.daemon.trust_desk import Distrusting, TrustDesk
from nuage.errors import Unavailable
from nuage.iaas.contract_watch import ContractWatch
from nuage.iaas.dismantling import CLEAR_AWAY_METHOD, ClearAway, clear_away
from nuage.iaas.fabric_keys import FabricKeySet, KeyRoll
from nuage.iaas.fabric_wishes import FabricContext
from nuage.iaas.heads import HeadKeeper
from nuage.iaas.hosts import tell_new_logins
from nuage.iaas.index import Change, FederationIndex
from nuage.iaas.movement import (
    DECIDED_METHOD,
    GIVE_UP_METHOD,
    HERE_METHOD,
    PAUSED_NOTICE,
    AskDecided,
    AskHere,
    MigrationGivenUp,
    Movement,
    Paused,
)
from nuage.iaas.removal import VOLUME_LEFT_METHOD, VolumeLeft, volume_left
from nuage.iaas.site import Distrust, Site
from nuage.iaas.wishes import WishContext, host_login, target_login
from nuage.ids import NodeId, RackId, SiteId, VmId
from nuage.model.desired import ChapWish, IonodeReport, VnodeReport
from nuage.model.identity import User
from nuage.model.infrastructure import Datacenter, Node, NodeRole, Rack
from nuage.model.trust import SiteTrust
from nuage.model.vm import Vm
from nuage.model.volume import Volume
from nuage.placement.local_agent import LocalAgent
from nuage.placement.master_agent import MasterAgent
from nuage.placement.placer import Placer
from nuage.placement.policies import PolicyBook
from nuage.placement.rack_agents import RackAgents, SiteAgent
from nuage.quorum.lease import LeaseHolder
from nuage.quorum.model import LeaseTiming, Ownership
from nuage.trust.audit import AuditLog
from nuage.trust.datakeys import Keyring
from nuage.trust.files import write_atomically
from nuage.trust.renewal import Renewer, own_authority, register_renewal
from nuage.trust.site_renewal import register_authority_renewal
from nuage.trust.store import TrustStore
from nuage.trust.tokens import TokenChecker, TokenIssuer

SESSION_FILE: Final = "lease-session"
HELD_FILE: Final = "lease-held.json"
EVENTS_STREAM: Final = "events"
LEASE_REFRESH_S: Final = 2.0
AUDIT_SEAL_S: Final = 60.0
log = structlog.get_logger("controller")


@dataclass(frozen=True, slots=True)
class FollowEvents:
    """Another site follows this one's event stream."""


class Controller:
    """One controller, from configuration to running."""

    def __init__(self, configuration: ControllerConfiguration, clock: Clock | None = None) -> None:
        self._configuration = configuration
        self._clock = clock or SystemClock()
        self._tasks = Tasks()
        self._store = TrustStore(configuration.trust_dir)
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._metrics = ControllerMetrics(new_registry())

    async def start(self) -> Callable[[], Awaitable[None]]:
        """Start everything, in order of dependence; return what stops it.

        At a site with several controllers this waits until none of the others serves.
        """
        if has_seat(self._configuration):
            seat = open_seat(self._configuration, self._clock)
            await seat.take()
            self._closers.append(seat.leave)
        self._datacenter = replace(
            self._configuration.datacenter, number=own_number(self._configuration)
        )
        await self._open_state()
        self._wire_agents()
        self._wire_sites()
        self._wire_site()
        self._wire_nodes()
        await self._publish_self()
        await self._listen()
        return self.stop

    async def stop(self) -> None:
        """Stop in the reverse order; the lease runs out by itself, VMs go on."""
        await self._tasks.close()
        for close in reversed(self._closers):
            await close()

    # State ----------------------------------------------------------------------------------------

    async def _open_state(self) -> None:
        configuration = self._configuration
        state_dir = configuration.state_dir
        state_dir.mkdir(parents=True, exist_ok=True)
        self._identity = self._store.identity()
        self.site_id = configuration.datacenter.site_id
        self._trust = TrustDesk(self._store, self._clock)
        self._catalogue, replicas, closing = await open_catalogue(configuration, self._clock)
        self._closers += [each.close for each in closing]
        self.index = FederationIndex(self.site_id)
        _, records = self._catalogue.all_records()
        for record in records:
            self.index.put(record)
        for site_id in replicas.sites():
            table = replicas.table(site_id)
            if table is not None:
                self.index.replace_site(site_id, table.all_records())
        self._replicas = IndexedReplicas(
            replicas,
            self.index,
            self._on_change,
            lambda site, changed_s: self._metrics.fed(site, self._clock.now_s() - changed_s),
        )
        self.events = EventRing(self.site_id, self._clock)
        self._owners = Owners(self.index)
        audit_log = AuditLog(
            state_dir / "audit",
            site_id=self.site_id,
            key=self._store.signer_key,
            now_s=self._clock.now_s,
        )
        self._audit = Audit(audit_log, self._tasks)
        self._closers.append(self._close_audit)
        self._ledgers = open_ledgers(state_dir, self._store, self._clock)
        self._closers.append(self._close_ledgers)

    async def _close_ledgers(self) -> None:
        self._ledgers.close()

    async def _close_audit(self) -> None:
        self._audit.close()

    # Rooms ----------------------------------------------------------------------------------------

    def _wire_agents(self) -> None:
        policies = PolicyBook.load(default=self._configuration.policy)
        agent: SiteAgent = LocalAgent(self._datacenter, policies=policies)
        if self._configuration.rack_agents:
            agent = RackAgents(
                self._datacenter, self._rack_of, policies=policies,
                make=lambda site: LocalAgent(site, policies=policies),
            )  # fmt: skip
        self._local = LocalPlacing(agent, self._clock)
        self._master = MasterAgent(policies=policies)

    def _rack_of(self, node_id: NodeId) -> RackId:
        node = self.index.find_value(Node, node_id)
        return RackId("") if node is None else node.rack_id

    def _wire_sites(self) -> None:
        self._handlers = Handlers()
        self.links = SiteLinks(
            federation_id=self._identity.federation_id,
            datacenter=self._datacenter,
            ssl_context=self._store.client_context(),
            handlers=self._handlers,
            admit=self._trust.book.revocations.admit,
            clock=self._clock,
            peers_file=self._configuration.state_dir / "peers.json",
            tasks=self._tasks,
            on_known=self._hear_events,
        )
        self.links.register(self._handlers, self._catalogue, self._replicas)
        self._secrets = SecretDesk(
            self._store.shared_secrets(), self._store, self._trust, self.index, self.links,
            self._tasks, self._clock,
        )  # fmt: skip
        self._keys = KeyDesk(
            self.index, KeyRoll(self._secrets.secrets), self._tasks, self._clock,
            usable=self._secrets.usable,
        )  # fmt: skip
        self._secrets.register(self._handlers)
        self._local.register(self._handlers)
        self._transport = PlacementOnChannels(
            self.site_id,
            self._local,
            self.links,
            self._clock,
            show=lambda record: self._on_change(self.index.put(record)),
        )
        self._placer = Placer(
            self._master, self._transport, self._clock, sites=self._reachable_sites
        )
        self._closers.append(self.links.close)

    def _reachable_sites(self) -> tuple[SiteId, ...]:
        return (self.site_id, *self.links.site_ids())

    def _wire_site(self) -> None:
        configuration = self._configuration
        timing = LeaseTiming()
        self._quorum = open_quorum(configuration, self._clock, timing)
        self._closers.append(self._quorum.close)
        self._holder = LeaseHolder(
            self._quorum,
            self.site_id,
            clock=self._clock,
            timing=timing,
            session=_kept_session(configuration.state_dir / SESSION_FILE),
            acquired=self._lease_acquired,
        )
        write_atomically(
            configuration.state_dir / SESSION_FILE, self._holder.session.encode(), secret=True
        )
        self._sessions = NodeSessions(self.site_id, self._clock)
        self.site = Site(
            site_id=self.site_id,
            clock=self._clock,
            index=self.index,
            catalogue=self._catalogue,
            quorum=self._quorum,
            others=self.links,
            nodes=self._sessions,
            placer=DraftingPlacer(self._placer, self._transport),
            announce=self._announce,
            on_change=self._on_change,
            age_of=self.links.age_of,
            ledgers=self._ledgers,
            keyring=Keyring(self._secrets.secrets),
            host_login=self._host_login,
            target_login=self._target_login,
            is_revoked=self._trust.is_revoked,
        )
        self._local.serve(self.site)
        self._movement = Movement(self.site)
        self._contracts = ContractWatch(self.site)
        self._heads = HeadWatch(
            self.site,
            HeadKeeper(
                self.site,
                replace_lost_after_s=configuration.replace_lost_after_s,
                is_away=self._sessions.is_away,
            ),
            self._sessions,
            self._tasks,
            on_lost=self._ionode_lost,
        )
        fence = self._wire_power()
        self._guardian = Guardian(
            self.site,
            self._holder.view,
            fence,
            self._clock,
            ears=self._sessions,
            on_owned=self._touch_all,
            take_over_heads=self._heads.take_over,
            switch_on=fence.switch_on,
            succeed=self._movement.succeed,
            before=read_held(configuration.state_dir / HELD_FILE),
            keep=lambda held: write_held(configuration.state_dir / HELD_FILE, held),
        )
        self._reconciler = Reconciler(
            self.site, self._wish_context(), self._sessions, self._movement, self._tasks
        )
        self._wire_energy()
        self._wire_fabric()
        self._serve_other_sites()

    def _wire_power(self) -> NodeFence:
        configuration, clock = self._configuration, self._clock
        self._open_bmc = redfish_bmcs(configuration.bmc_login_file, clock)
        logins = PduLogins(configuration.bmc_login_file, configuration.energy.snmp_login_file)
        urls = configuration.energy.pdus.items()
        self._pdus = {rack: logins.opener(url, clock) for rack, url in urls}
        outlets = Outlets(self._pdus, clock)
        self.site.machines = Machines(self._open_bmc, outlets)
        return NodeFence(self._open_bmc, clock, outlets if configuration.fence_by_outlets else None)

    def _host_login(self, volume: Volume) -> ChapWish:
        return host_login(self._secrets.secrets, volume, self._keys.generations()[0])

    def _target_login(self, volume: Volume) -> ChapWish | None:
        return target_login(self._secrets.secrets, volume, self._keys.generations()[0])

    def _wish_context(self) -> WishContext:
        return WishContext(
            index=self.index,
            secrets=self._secrets.secrets,
            lease_until_s=lease_until_s(self._guardian, self._clock),
            leave=self._movement.leave,
            lease_term=lambda: self._guardian.lease_term,
            key_generations=self._keys.generations,
        )

    def _wire_fabric(self) -> None:
        secrets = self._secrets.secrets
        self._fabric = FabricDesk(
            FabricContext(self.index, self.site_id, FabricKeySet(""), secrets),
            self._sessions,
            self._tasks,
            self._clock,
            keys=self._keys.keys,
            edge_lives=self._reconciler.take_edge_report,
            announce=self._announce,
        )
        self._reconciler.listen(self._fabric.on_change)
        self._fabric.register(self._handlers)
        self._secrets.on_news = self._secret_came
        self._keys.on_roll = self._keys_rolled
        self._hosts_know: int | None = None  # the generation of their secrets

    def _keys_rolled(self) -> None:
        """Have all that derives from the federation's keys made anew, where it changes."""
        self._fabric.keys_changed()
        self._touch_all()
        signs = self._keys.generations()[0]
        if self._hosts_know not in (None, signs):
            tell_new_logins(self.site)
        self._hosts_know = signs

    def _secret_came(self) -> None:
        """Have all that derives from the controllers' secret made anew, where it changes."""
        self._keys.look()
        self._keys_rolled()
        if self._keys.newest >= self._secrets.secrets.newest and self.site.distrust is not None:
            # Somebody began the same generation meanwhile, of the secret before: one that differs.
            self._tasks.start("keys roll", self._roll_keys(self.site.distrust))

    async def _roll_keys(self, distrust: Distrust) -> None:
        await distrust.roll_keys()

    def _wire_energy(self) -> None:
        around = Surroundings(
            site=self.site,
            agent=self._local.agent,
            datacenter=self._datacenter,
            clock=self._clock,
            tasks=self._tasks,
            is_connected=self._sessions.is_connected,
            on_lost=self._node_gone,
            reachable_sites=self._reachable_sites,
            open_bmc=self._open_bmc,
            pdus=self._pdus,
        )
        self._energy = EnergyKeeper(self._configuration, around)
        self._energy_metrics = EnergyMetrics(self._metrics.registry)
        self.site.steering = self._energy
        self._closers.append(self._energy.close)

    def _lease_acquired(self, owned: Sequence[Ownership]) -> None:
        self._guardian.acquired(owned)

    def _serve_other_sites(self) -> None:
        controllers = {NodeRole.CONTROLLER}
        serve_ledgers(self._handlers, self.site, self._ledgers)
        self._heads.register(self._handlers)

        @self._handlers.method(VOLUME_LEFT_METHOD, VolumeLeft, roles=controllers)
        async def left(_peer: Peer, body: VolumeLeft) -> None:
            await volume_left(self.site, body)

        @self._handlers.method(CLEAR_AWAY_METHOD, ClearAway, roles=controllers)
        async def taken_down(_peer: Peer, body: ClearAway) -> None:
            await clear_away(self.site, body)

        @self._handlers.method(GIVE_UP_METHOD, MigrationGivenUp, roles=controllers)
        async def given_up(_peer: Peer, body: MigrationGivenUp) -> None:
            await self._movement.drop(body)

        @self._handlers.method(DECIDED_METHOD, AskDecided, roles=controllers)
        async def decided(_peer: Peer, body: AskDecided) -> bool:
            return self._movement.was_decided(body.vm_id)

        @self._handlers.method(HERE_METHOD, AskHere, roles=controllers)
        async def here(_peer: Peer, body: AskHere) -> bool:
            return self._movement.is_here(body.vm_id)

        @self._handlers.notice(PAUSED_NOTICE, Paused, roles=controllers)
        async def paused(_peer: Peer, body: Paused) -> None:
            await self._movement.note_pause(body)

        @self._handlers.stream(EVENTS_STREAM, FollowEvents, roles=controllers)
        async def events(_peer: Peer, _body: FollowEvents) -> AsyncIterator[object]:
            async for lines in self.events.follow_own():
                yield lines

    # Nodes ----------------------------------------------------------------------------------------

    def _wire_nodes(self) -> None:
        self._server = ChannelServer(
            self._store.server_context(),
            self._handlers,
            self._clock,
            admit=self._trust.book.revocations.admit,
        )
        self._trust.guard(self._server, self.links)
        self._trust.register(self._handlers)
        has_member = bool(self._configuration.quorum.peer_url)
        self.site.distrust = Distrusting(
            self._trust,
            self._store,
            self.site,
            self._server,
            (lambda: open_etcd(self._configuration)) if has_member else None,
            self._secrets.begin,
        )
        self._sessions.serve_on(self._server)
        self._sessions.register(
            self._handlers,
            Reactions(
                hello=self._node_hello,
                vnode_report=self._vnode_report,
                ionode_report=self._ionode_report,
                subscribed=lambda node_id, _role: self._reconciler.touch((node_id,)),
                goodbye=self._node_goodbye,
                lost=self._node_lost,
                lease_s=self._guardian.lease_s,
                lease_term=lambda: self._guardian.lease_term,
            ),
        )
        book = self._trust.book
        register_renewal(self._handlers, self._store, book.revocations, self._clock)
        register_authority_renewal(self._handlers, self._store, book, self._clock)
        for node in self.index.values(Node):
            if node.site_id == self.site_id:
                self._sessions.expect(node.node_id)

    async def _node_hello(self, node: Node) -> None:
        known = self.index.find_value(Node, node.node_id)
        node = replace(node, lost_disks=())  # that is for its site to say
        if known is not None:
            node = replace(
                node,
                maintenance=known.maintenance,
                draining=known.draining,
                power=known.power,
                revoked_generation=known.revoked_generation,
                lost_disks=known.lost_disks,
            )
        if self.index.find_value(Rack, node.rack_id) is None:
            rack = Rack(rack_id=node.rack_id, site_id=self.site_id, name=node.rack_id)
            await self.site.save(rack)
        if known != node:
            await self.site.save(node)

    def _vnode_report(self, report: VnodeReport) -> None:
        node = self.index.find_value(Node, report.node_id)
        vector = replace(
            report.estimate,
            sent_s=self._clock.now_s(),
            maintenance=node is not None and node.maintenance,
        )
        believed = self._energy.take_report(report, vector)
        if believed is not None:
            self._local.agent.update(believed)
        self._reconciler.take_vnode_report(report)

    def _ionode_report(self, report: IonodeReport) -> None:
        self._reconciler.take_ionode_report(report)
        self._heads.take_report(report)

    def _ionode_lost(self, node_id: NodeId) -> None:
        self._reconciler.node_lost(node_id)

    def _node_goodbye(self, node_id: NodeId) -> None:
        if not self._energy.is_asleep(node_id):  # else it goes off
            self._sessions.expect_back(node_id)
            self._reconciler.node_restarts(node_id)

    def _node_lost(self, node_id: NodeId) -> None:
        self._reconciler.node_lost(node_id)
        if not self._energy.is_asleep(node_id):
            self._node_gone(node_id)

    def _node_gone(self, node_id: NodeId) -> None:
        self._local.agent.forget(node_id)
        self._tasks.start(f"lost {node_id}", self._guardian.node_lost(node_id))

    def _touch_all(self) -> None:
        self._reconciler.touch(
            node.node_id for node in self.index.values(Node) if node.site_id == self.site_id
        )

    # Changes --------------------------------------------------------------------------------------

    def _on_change(self, change: Change) -> None:
        self._owners.on_change(change)
        self.site.forget(change)
        self._reconciler.on_change(change)
        self._energy.on_change(change)
        value = None if change.after is None else change.after.value
        if isinstance(value, SiteTrust):
            if value.site_id != self.site_id:
                self._trust.take(value)
                self._secrets.look()
            self._keys.look()
        elif isinstance(value, Datacenter) and value.site_id != self.site_id:
            self.links.know(value.site_id, value.addresses)
        elif isinstance(value, Vm) and self._movement.has_left(value.vm_id):
            self._tasks.start(f"tidy {value.vm_id}", self._movement.tidy(value.vm_id))
        if change.kind == "vm" and change.after is None:
            self._local.agent.release_vm(VmId(change.id))
            self._movement.forget(VmId(change.id))
            self._guardian.released(VmId(change.id))

    def _announce(self, kind: str, object_id: str, what: str, text: str) -> None:
        owner = self._owners.of(kind, object_id)
        self.events.announce(kind, object_id, what, text, current_request_id(), owner)
        log.info("event", kind=kind, id=object_id, what=what, text=text)

    def _hear_events(self, site_id: SiteId) -> None:
        self._tasks.keep(f"events {site_id}", lambda: self._follow_events(site_id))

    async def _follow_events(self, site_id: SiteId) -> None:
        while True:
            try:
                groups = self.links.subscribe(
                    site_id, EVENTS_STREAM, FollowEvents(), tuple[Announcement, ...]
                )
                async for lines in groups:
                    for line in lines:
                        self.events.take(line)
            except Unavailable:
                pass  # the site is cut off; its lines come again with the channel
            await self._clock.sleep(LEASE_REFRESH_S)

    # Start ----------------------------------------------------------------------------------------

    async def _publish_self(self) -> None:
        if self.index.find_value(Datacenter, self.site_id) != self._datacenter:
            await self.site.save(self._datacenter)
        await self._trust.publish(self.site, self._audit.seal_line)
        admin = first_user(self._configuration.state_dir)
        if admin is not None and self.index.find_value(User, admin.user_id) is None:
            await self.site.save(admin)
        for site_trust in self.index.values(SiteTrust):
            if site_trust.site_id != self.site_id:
                self._trust.take(site_trust)
        self._secrets.look()
        self._keys.look()

    async def _listen(self) -> None:
        configuration = self._configuration
        await self._server.listen(*parse_address(configuration.channel_listen))
        self._closers.append(self._server.close)
        welcoming = Welcoming(self.site, self._store, configuration, self._clock)
        self._closers.append(await welcoming.listen())
        await self._serve_api()
        follower = FeedFollower(
            self._replicas,
            reader=self.site_id,
            subscribe=self.links.subscribe_feed,
            clock=self._clock,
        )
        self.links.start(follower)
        for datacenter in self.index.values(Datacenter):
            self.links.know(datacenter.site_id, datacenter.addresses)
        self._keep_tasks()

    def _keep_tasks(self) -> None:
        self._tasks.keep("nodes", self._sessions.watch)
        self._energy.start(self._handlers)
        self._tasks.keep("lease", self._holder.hold)
        self._tasks.keep("guardian", self._guardian.watch)
        self._tasks.keep("movement", self._movement.watch)
        releases = Releases(
            self.site,
            knows=lambda site_id: bool(self._replicas.cursor(site_id).incarnation),
            is_revoked=self._trust.is_revoked,
            released=self._guardian.released,
        )
        self._tasks.keep("releases", releases.watch)
        self._tasks.keep("contracts", self._contracts.watch)
        self._heads.start()
        self._tasks.keep("lease refresh", self._refresh_leases)
        renewer = Renewer(
            self._store, own_authority(self._store, self._clock), self._clock, Random()
        )
        self._tasks.keep("renewal", renewer.run)
        site_keys = site_renewal(self._store, self._trust, self.site, lambda: self._audit.seal_line)
        self._tasks.keep("site keys", site_keys.run)
        self._tasks.keep("audit seal", self._seal_audit)
        keep_ledgers(self._tasks, self._ledgers, self._clock)
        self._tasks.keep("service certificate", self._renew_service)

    async def _refresh_leases(self) -> None:
        """Send fail-over VMs' new lease down before the old one ends."""
        while True:
            await self._clock.sleep(LEASE_REFRESH_S)
            nodes = {
                vm.node_id
                for vm in self.index.values(Vm)
                if self._guardian.may_run(vm.vm_id) and vm.node_id is not None
            }
            self._reconciler.touch(nodes)

    async def _renew_service(self) -> None:
        while True:
            now_s = self._clock.now_s()
            if self._store.service_is_due(now_s):
                self._store.issue_service(service_hosts(self._configuration), now_s=now_s)
                self._api_context.load_cert_chain(*self._store.service_files)
            await self._clock.sleep(3600.0)

    async def _seal_audit(self) -> None:
        while True:
            await self._clock.sleep(AUDIT_SEAL_S)
            await self._audit.sync()
            await self._trust.publish(self.site, self._audit.seal_line)

    async def _serve_api(self) -> None:
        access = Access(
            checker_keys=TokenChecker(self._trust.book, known_user(self.index, self.links.age_of)),
            issuer=TokenIssuer(
                federation_id=self._identity.federation_id,
                site_id=self.site_id,
                key=self._store.signer_key,
            ),
            index=self.index,
            clock=self._clock,
        )
        dispatcher = Dispatcher(self.site, access, self._audit)
        images = ControllerImages(
            ImageFolder(self._configuration.state_dir / "images"),
            self.site,
            dispatcher,
            self._fetch_image,
        )
        images.register(self._handlers)
        consoles = Consoles(self.site, dispatcher)
        consoles.register(self._handlers)

        @self._handlers.method(
            OPERATION_METHOD, Carried, roles={NodeRole.CONTROLLER}, runs_to_end=True
        )
        async def operation(_peer: Peer, carried: Carried) -> bytes:
            return await dispatcher.perform_carried(carried)

        def render() -> bytes:
            ages = {str(site): self.links.age_of(site) for site in self.links.site_ids()}
            self._metrics.refresh(self.index, ages, self._guardian.lease_s())
            self._metrics.show_checks(self._contracts.last)
            self._energy_metrics.refresh(self.index, self._energy.books.ledger.rows())
            return generate_latest(self._metrics.registry)

        application = build_application(
            Doors(
                site=self.site,
                dispatcher=dispatcher,
                issuer=access,
                images=images,
                events=self.events,
                consoles=consoles,
                audit=AuditExport(
                    self._configuration.state_dir / "audit", self._audit, self._trust.book
                ),
                metrics=render,
                answered=self._metrics.answered,
            )
        )
        runner = runner_of(application)
        await runner.setup()
        self._closers.append(runner.cleanup)
        for listen in self._configuration.api_listen:
            await self._add_listener(runner, listen)

    async def _add_listener(self, runner: web.AppRunner, listen: str) -> None:
        if listen.startswith("unix:"):
            path = Path(listen.removeprefix("unix:"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            await web.UnixSite(runner, str(path)).start()
            path.chmod(0o600)
            return
        host, port = parse_address(listen)
        self._api_context = self._store.api_context()
        await web.TCPSite(runner, host, port, ssl_context=self._api_context).start()

    def _fetch_image(self, site_id: SiteId, ask: ReadImage) -> AsyncIterator[ImageChunk]:
        return self.links.subscribe(site_id, IMAGE_STREAM, ask, ImageChunk)


def _kept_session(path: Path) -> str:
    return path.read_text() if path.exists() else ""
