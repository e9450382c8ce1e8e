"""Whole sites in one process: the product's controllers, with played nodes, wires and clocks.

Real: catalogue, feeds, index, quorum rules, lease holder, guardian, reconciler, movement, Local and
Master Agents, dispatcher, every use case; on the nodes the agents' machines (`vnode.machine`,
`ionode.plan`). Played: hypervisors, storage daemons, BMCs, lines, clocks, users.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from math import inf
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from nuage.api.dispatch import OPERATION_METHOD, Caller, Carried, Dispatcher
from nuage.catalogue.feed import FeedMessage, FeedRequest
from nuage.catalogue.follow import FeedFollower, serve_feed
from nuage.catalogue.memory import MemoryCatalogue
from nuage.catalogue.replica import MemoryReplicas
from nuage.channel import Handlers, Peer
from nuage.daemon.guardian import Guardian, Held, lease_until_s
from nuage.daemon.heads import HeadWatch
from nuage.daemon.nodes import NodeSessions, ReportTaken
from nuage.daemon.placing import DraftingPlacer, LocalPlacing, PlacementOnChannels
from nuage.daemon.process import Tasks
from nuage.daemon.reconciler import Reconciler
from nuage.daemon.releases import Releases
from nuage.daemon.sites import IndexedReplicas
from nuage.errors import Forbidden, NotFound, NuageError, TimedOut, Unavailable
from nuage.iaas import erasure
from nuage.iaas.dismantling import CLEAR_AWAY_METHOD, ClearAway, clear_away
from nuage.iaas.heads import HeadKeeper
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
from nuage.iaas.site import Site
from nuage.iaas.templates import Templates
from nuage.iaas.wishes import WishContext, host_login, target_login
from nuage.ids import NodeId, SiteId, UserId, VmId
from nuage.model.desired import IonodeReport, VnodeReport
from nuage.model.identity import Grant, Role
from nuage.model.infrastructure import Datacenter, Node
from nuage.model.record import Record
from nuage.model.vm import Vm
from nuage.placement.local_agent import LocalAgent
from nuage.placement.master_agent import MasterAgent
from nuage.placement.placer import Placer
from nuage.placement.policies import PolicyBook
from nuage.quorum.lease import LeaseHolder
from nuage.quorum.memory import MemoryHub, MemoryQuorum
from nuage.quorum.model import LeaseTiming, Ownership, QuorumEvent, SiteLease
from nuage.simulation.virtual_time import SkewedClock
from nuage.simulation.wires import Machine, Wires
from nuage.trust.permissions import Principal
from nuage.trust.shared_secrets import SharedSecrets

if TYPE_CHECKING:
    from tests.simulation.federation.nodes import SimIonode, SimVnode

R = TypeVar("R")
QUORUM_TIMEOUT_S = 2.0
ADMIN = Principal(
    UserId("user-1"), "ada",
    tuple(Grant(role, "*") for role in (Role.NUAGE_ADMIN, Role.IAAS_ADMIN)),
)  # fmt: skip
TIMING = LeaseTiming()
SECRETS = SharedSecrets({0: b"k" * 32})
RELEASE_LOOK_S = 4.0  # so that a run need not wait minutes for what nobody owns


class Everybody:
    """Knows one caller, and writes nothing down."""

    def principal_of(self, token: str) -> Principal:
        if token != "ada":
            raise Forbidden("nobody of that name")
        return ADMIN

    def note(self, **_fields: str) -> None:
        return


class SimTasks(Tasks):
    """Background tasks that end with their machine; a bug in one ends the run."""

    def __init__(self, machine: Machine, bugs: list[BaseException]) -> None:
        super().__init__()
        self._machine = machine
        self._bugs = bugs

    def keep(self, name: str, run: Callable[[], Coroutine[object, object, None]]) -> None:
        async def again() -> None:
            while True:
                with suppress(NuageError):
                    await self._watched(run())
                await asyncio.sleep(self.RESTART_DELAY_S)

        self._machine.spawn(again())

    def start(self, name: str, work: Coroutine[object, object, None]) -> None:
        async def once() -> None:
            with suppress(NuageError):
                await self._watched(work)

        self._machine.spawn(once())

    async def _watched(self, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except (NuageError, asyncio.CancelledError):
            raise
        except BaseException as error:
            self._bugs.append(error)
            raise


class SimQuorum:
    """One site's door to the majority: a majority of sites must be linked to this one."""

    def __init__(self, world: "Sites", site: SiteId) -> None:
        self._world = world
        self._site = site
        self._inner = MemoryQuorum(site, world.hub)

    async def _ask(self, act: Callable[[], Coroutine[Any, Any, R]]) -> R:
        await asyncio.sleep(self._world.wires.delay_s())
        if not self._world.has_majority(self._site):
            await asyncio.sleep(QUORUM_TIMEOUT_S)
            raise Unavailable("no majority of the quorum's members can be reached")
        try:
            answer: R | NuageError = await act()
        except NuageError as error:
            answer = error
        await asyncio.sleep(self._world.wires.delay_s())
        if not self._world.has_majority(self._site):
            await asyncio.sleep(QUORUM_TIMEOUT_S)
            raise TimedOut("quorum", after_s=QUORUM_TIMEOUT_S)
        if isinstance(answer, NuageError):
            raise answer
        return answer

    async def renew_site_lease(self, session: str) -> float:
        return await self._ask(lambda: self._inner.renew_site_lease(session))

    async def site_leases(self) -> tuple[SiteLease, ...]:
        return await self._ask(self._inner.site_leases)

    async def holders(self) -> frozenset[SiteId]:
        return await self._ask(self._inner.holders)

    async def claim(self, kind: str, id: str, owner: SiteId, *, expected_epoch: int) -> Ownership:
        return await self._ask(
            lambda: self._inner.claim(kind, id, owner, expected_epoch=expected_epoch)
        )

    async def owner(self, kind: str, id: str) -> Ownership | None:
        return await self._ask(lambda: self._inner.owner(kind, id))

    async def owners_of(self, site: SiteId) -> tuple[Ownership, ...]:
        return await self._ask(lambda: self._inner.owners_of(site))

    async def transfer(
        self, kind: str, id: str, *, from_site: SiteId, to_site: SiteId, expected_epoch: int
    ) -> Ownership:
        return await self._world.transferring(
            self._site,
            lambda: self._ask(
                lambda: self._inner.transfer(
                    kind, id, from_site=from_site, to_site=to_site, expected_epoch=expected_epoch
                )
            ),
        )

    async def promise(
        self, kind: str, id: str, *, owner: SiteId, heir: SiteId, expected_epoch: int
    ) -> Ownership:
        return await self._ask(
            lambda: self._inner.promise(
                kind, id, owner=owner, heir=heir, expected_epoch=expected_epoch
            )
        )

    async def inherit(
        self, kind: str, id: str, *, owner: SiteId, heir: SiteId, expected_epoch: int
    ) -> Ownership:
        return await self._ask(
            lambda: self._inner.inherit(
                kind, id, owner=owner, heir=heir, expected_epoch=expected_epoch
            )
        )

    async def takeover(
        self, kind: str, id: str, *, from_site: SiteId, by_site: SiteId, expected_epoch: int
    ) -> Ownership:
        owned = await self._ask(
            lambda: self._inner.takeover(
                kind, id, from_site=from_site, by_site=by_site, expected_epoch=expected_epoch
            )
        )
        self._world.counts["takeover"] += 1
        return owned

    async def release(self, kind: str, id: str, *, owner: SiteId, expected_epoch: int) -> None:
        await self._ask(
            lambda: self._inner.release(kind, id, owner=owner, expected_epoch=expected_epoch)
        )

    def watch(self) -> AsyncIterator[QuorumEvent]:
        return self._inner.watch()

    async def close(self) -> None:
        return


class SimLinks:
    """A site's channels to the others (`iaas.site.OtherSites`); the bytes are the real ones."""

    def __init__(self, world: "Sites", own: "SimSite") -> None:
        self._world = world
        self._own = own
        identity = SimpleNamespace(site_id=own.site_id)
        self._caller = cast(Peer, SimpleNamespace(identity=identity))

    async def ask(
        self, site_id: SiteId, method: str, body: object, result: type[R], *, timeout_s: float
    ) -> R:
        target = self._world.require(site_id)
        data = msgspec.msgpack.encode(body)

        async def act() -> bytes:
            entry = target.handlers.require_method(method)
            assert entry.call is not None
            return msgspec.msgpack.encode(await entry.call(self._caller, msgspec.Raw(data)))

        answer = await self._world.wires.call(
            self._own.site_id, target.machine, act, timeout_s=timeout_s, doing=method
        )
        return msgspec.msgpack.decode(answer, type=result)

    def tell(self, site_id: SiteId, method: str, body: object) -> None:
        target = self._world.require(site_id)
        self._world.wires.require_line(self._own.site_id, target.machine, method)
        data = msgspec.msgpack.encode(body)

        async def act() -> None:
            entry = target.handlers.require_notice(method)
            assert entry.call is not None
            await entry.call(self._caller, msgspec.Raw(data))

        async def send() -> None:
            with suppress(NuageError):
                await self._world.wires.call(
                    self._own.site_id, target.machine, act, timeout_s=5.0, doing=method
                )

        self._own.machine.spawn(send())

    async def subscribe(
        self, site_id: SiteId, method: str, body: object, item_type: type[R]
    ) -> AsyncIterator[R]:
        target = self._world.require(site_id)
        self._world.wires.require_line(self._own.site_id, target.machine, method)
        entry = target.handlers.require_stream(method)
        assert entry.stream is not None
        items = entry.stream(self._caller, msgspec.Raw(msgspec.msgpack.encode(body)))
        async with aclosing(cast(Any, items)):
            async for item in items:
                await asyncio.sleep(self._world.wires.delay_s())
                yield msgspec.msgpack.decode(msgspec.msgpack.encode(item), type=item_type)

    async def feed(self, site_id: SiteId, request: FeedRequest) -> AsyncIterator[FeedMessage]:
        target, wires = self._world.require(site_id), self._world.wires
        wires.require_line(self._own.site_id, target.machine, "feed")
        await asyncio.sleep(wires.delay_s())
        boots, stream = (
            target.machine.boots,
            serve_feed(target.catalogue, request, clock=target.clock),
        )
        try:
            async for message in stream:
                await asyncio.sleep(wires.delay_s())
                is_same = target.machine.boots == boots and target.machine.is_up
                if not is_same or not wires.is_up(self._own.site_id, site_id):
                    raise Unavailable("the line broke")
                yield message
        finally:
            await cast(Any, stream).aclose()


class SimSessions(NodeSessions):
    """A controller's nodes; what it asks of them goes over the same lines as their reports."""

    def __init__(self, own: "SimSite") -> None:
        super().__init__(own.site_id, own.clock)
        self._own = own

    async def ask(
        self, node_id: NodeId, method: str, body: object, result: type[R], *, timeout_s: float
    ) -> R:
        del timeout_s
        wires, site_id = self._own.world.wires, self._own.site_id
        found = [n for n in self._own.ionodes if n.node.node_id == node_id]
        await asyncio.sleep(wires.delay_s())
        if not found or not wires.is_up(node_id, site_id):
            raise Unavailable(f"{node_id} does not answer")
        answer = await found[0].asked(method, body)
        await asyncio.sleep(wires.delay_s())
        return msgspec.convert(answer, result, from_attributes=True)


class SimSite:
    """A site: what is on its controller's disk, and the controller while it runs."""

    def __init__(self, world: "Sites", datacenter: Datacenter, clock: SkewedClock) -> None:
        self.world = world
        self.datacenter = datacenter
        self.site_id = datacenter.site_id
        self.clock = clock
        self.machine = Machine(self.site_id)
        self.entropy = world.prng.randbytes
        self.catalogue = MemoryCatalogue(self.site_id, clock=clock, entropy=self.entropy)
        self.replicas = MemoryReplicas()
        self.session = self.entropy(8).hex()
        self.held = Held()
        self.vnodes: list[SimVnode] = []
        self.ionodes: list[SimIonode] = []
        self.said: list[tuple[str, str, str, str]] = []

    # Starting -------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start the controller from its disk, as `daemon.controller` wires it."""
        self.machine.is_up = True
        self.greeted: set[NodeId] = set()
        self.tasks = SimTasks(self.machine, self.world.bugs)
        self.index = FederationIndex(self.site_id)
        for record in self.catalogue.all_records()[1]:
            self.index.put(record)
        for site_id in self.replicas.sites():
            table = self.replicas.table(site_id)
            assert table is not None
            self.index.replace_site(site_id, table.all_records())
        policies = PolicyBook()
        self.handlers = Handlers()
        self.agent = LocalAgent(self.datacenter, policies=policies)
        local = LocalPlacing(self.agent, self.clock)
        local.register(self.handlers)
        self.links = SimLinks(self.world, self)
        transport = PlacementOnChannels(
            self.site_id, local, self.links, self.clock, show=self._show
        )
        self.placer = Placer(
            MasterAgent(policies=policies), transport, self.clock, sites=self.world.all_ids
        )
        self.sessions = SimSessions(self)
        indexed = IndexedReplicas(self.replicas, self.index, self.on_change)
        self.follower = FeedFollower(
            indexed, reader=self.site_id, subscribe=self.links.feed, clock=self.clock
        )
        self.site = Site(
            site_id=self.site_id,
            clock=self.clock,
            index=self.index,
            catalogue=self.catalogue,
            quorum=SimQuorum(self.world, self.site_id),
            others=self.links,
            nodes=self.sessions,
            placer=DraftingPlacer(self.placer, transport),
            announce=self.announce,
            on_change=self.on_change,
            age_of=self.age_of,
            entropy=self.entropy,
            host_login=lambda volume: host_login(SECRETS, volume),
            target_login=lambda volume: target_login(SECRETS, volume),
        )
        local.serve(self.site)
        self._wire_decisions()
        self._serve()
        self._start()

    def _keep_held(self, held: Held) -> None:
        self.held = held

    def _wire_decisions(self) -> None:
        self.holder = LeaseHolder(
            self.site.quorum,
            self.site_id,
            clock=self.clock,
            timing=TIMING,
            session=self.session,
            acquired=self._acquired,
        )
        self.movement = Movement(self.site)
        self.heads = HeadWatch(
            self.site,
            HeadKeeper(self.site, is_away=self.sessions.is_away),
            self.sessions,
            self.tasks,
            on_lost=lambda _node: None,
        )
        self.guardian = Guardian(
            self.site,
            self.holder.view,
            self.world.fence,
            self.clock,
            ears=self.sessions,
            on_owned=self.touch_all,
            switch_on=self.world.switch_on,
            succeed=self.movement.succeed,
            before=self.held,
            keep=self._keep_held,
        )
        self.releases = Releases(
            self.site,
            knows=lambda site_id: bool(self.replicas.cursor(site_id).incarnation),
            is_revoked=lambda _site_id: False,
            released=self.guardian.released,
            look_every_s=RELEASE_LOOK_S,
        )
        context = WishContext(
            index=self.index,
            secrets=SECRETS,
            lease_until_s=lease_until_s(self.guardian, self.clock),
            leave=self.movement.leave,
            lease_term=lambda: self.guardian.lease_term,
        )
        self.reconciler = Reconciler(self.site, context, self.sessions, self.movement, self.tasks)
        everybody = Everybody()
        self.dispatcher = Dispatcher(self.site, everybody, everybody)

    def _acquired(self, owned: Sequence[Ownership]) -> None:
        self.guardian.acquired(owned)

    def _serve(self) -> None:
        self.heads.register(self.handlers)

        @self.handlers.method(VOLUME_LEFT_METHOD, VolumeLeft)
        async def left(_peer: Peer, body: VolumeLeft) -> None:
            await volume_left(self.site, body)

        @self.handlers.method(CLEAR_AWAY_METHOD, ClearAway)
        async def taken_down(_peer: Peer, body: ClearAway) -> None:
            await clear_away(self.site, body)

        @self.handlers.method(GIVE_UP_METHOD, MigrationGivenUp)
        async def given_up(_peer: Peer, body: MigrationGivenUp) -> None:
            await self.movement.drop(body)

        @self.handlers.method(DECIDED_METHOD, AskDecided)
        async def decided(_peer: Peer, body: AskDecided) -> bool:
            return self.movement.was_decided(body.vm_id)

        @self.handlers.method(HERE_METHOD, AskHere)
        async def here(_peer: Peer, body: AskHere) -> bool:
            return self.movement.is_here(body.vm_id)

        @self.handlers.notice(PAUSED_NOTICE, Paused)
        async def paused(_peer: Peer, body: Paused) -> None:
            await self.movement.note_pause(body)

        @self.handlers.method(OPERATION_METHOD, Carried)
        async def operation(_peer: Peer, carried: Carried) -> bytes:
            return await self.dispatcher.perform_carried(carried)

    def _start(self) -> None:
        for node in self.index.values(Node):
            if node.site_id == self.site_id:
                self.sessions.expect(node.node_id)
        self.sessions._on_lost = self._node_lost
        for site_id in self.world.all_ids():
            if site_id != self.site_id:
                self.tasks.keep(
                    f"feed {site_id}",
                    lambda site_id=site_id: self.follower.follow(site_id),  # type: ignore[misc]
                )
        self.tasks.keep("lease", self.holder.hold)
        self.tasks.keep("guardian", self.guardian.watch)
        self.tasks.keep("movement", self.movement.watch)
        self.tasks.keep("releases", self.releases.watch)
        if self.world.keeps_heads:
            self.heads.start()
        else:
            self.tasks.keep("templates", Templates(self.site).watch)
        self.tasks.keep("sessions", self.sessions.watch)
        self.tasks.keep("lease refresh", self._refresh_leases)
        self.tasks.start("publish", self._publish())

    async def _publish(self) -> None:
        if self.index.find_value(Datacenter, self.site_id) != self.datacenter:
            await self.site.save(self.datacenter)

    def crash(self) -> None:
        """`kill -9` of the controller; its disk and its nodes go on."""
        if self.machine.is_up:
            self.machine.crash()
            for task in list(self.placer._tasks):
                task.cancel()

    # What the controller's wiring does ----------------------------------------------------------

    def on_change(self, change: Change) -> None:
        self.world.saw(self, change)
        self.site.forget(change)
        self.reconciler.on_change(change)
        value = None if change.after is None else change.after.value
        if isinstance(value, Vm) and self.movement.has_left(value.vm_id):
            self.tasks.start("tidy", self.movement.tidy(value.vm_id))
        if change.kind == "vm" and change.after is None:
            self.agent.release_vm(VmId(change.id))
            self.movement.forget(VmId(change.id))
            self.guardian.released(VmId(change.id))

    def _show(self, record: Record) -> None:
        self.on_change(self.index.put(record))

    def announce(self, kind: str, object_id: str, what: str, text: str) -> None:
        self.said.append((kind, object_id, what, text))
        self.world.counts[f"{kind} {what}"] += 1

    def age_of(self, site_id: SiteId) -> float:
        if site_id == self.site_id:
            return 0.0
        age_s = self.follower.age_s(site_id)
        return inf if age_s is None else age_s

    def touch_all(self) -> None:
        self.reconciler.touch(
            node.node_id for node in self.index.values(Node) if node.site_id == self.site_id
        )

    async def _refresh_leases(self) -> None:
        while True:
            await self.clock.sleep(2.0)
            self.reconciler.touch(
                {
                    vm.node_id
                    for vm in self.index.values(Vm)
                    if self.guardian.may_run(vm.vm_id) and vm.node_id is not None
                }
            )

    def _node_lost(self, node_id: NodeId) -> None:
        self.agent.forget(node_id)
        self.reconciler.node_lost(node_id)
        self.tasks.start("lost", self.guardian.node_lost(node_id))

    def greet(self, node: Node) -> None:
        """Hear a node, perhaps for the first time since this controller began."""
        self.sessions._heard(node.node_id)
        if node.node_id in self.greeted:
            return
        self.greeted.add(node.node_id)
        self.tasks.start("greet", self._enter_node(node))

    async def _enter_node(self, node: Node) -> None:
        known = self.index.find_value(Node, node.node_id)
        fresh = replace(node, maintenance=known is not None and known.maintenance)
        if known != fresh:
            await self.site.save(fresh)
        self.reconciler.touch((node.node_id,))

    def take_ionode(self, report: IonodeReport) -> None:
        self.reconciler.take_ionode_report(report)
        if self.world.keeps_heads:
            self.heads.take_report(report)
        elif report.erased:
            self.tasks.start("erased", erasure.take_report(self.site, report))

    def take_vnode(self, report: VnodeReport) -> ReportTaken:
        self.agent.update(replace(report.estimate, sent_s=self.clock.now_s()))
        self.reconciler.take_vnode_report(report)
        return ReportTaken(self.guardian.lease_s(), self.guardian.lease_term)

    # What people do -------------------------------------------------------------------------------

    async def perform(self, name: str, body: object) -> object:
        """Do an operation at this site, as its API does; return the result as plain JSON."""
        from nuage.iaas.doors import TABLE

        caller = Caller(token="ada", request_id="req-1", from_address="test")
        task = self.machine.spawn(self.dispatcher.perform(TABLE.get(name), body, caller))
        return (await asyncio.shield(task)).result


class Sites:
    """The sites of a run and what lies between them."""

    keeps_heads = False  # moves heads and copies by itself, as a controller does

    def __init__(self, seed: int, *, slow_share: float = 0.0) -> None:
        self.prng = Random(seed)
        self.wires = Wires(self.prng, slow_share=slow_share)
        self.hub = MemoryHub(clock=SkewedClock(), timing=TIMING)
        self.sites: dict[SiteId, SimSite] = {}
        self.bugs: list[BaseException] = []
        self.counts: dict[str, int] = _Counts()

    def all_ids(self) -> tuple[SiteId, ...]:
        return tuple(self.sites)

    def require(self, site_id: SiteId) -> SimSite:
        found = self.sites.get(site_id)
        if found is None:
            raise NotFound("site", site_id)
        return found

    def has_majority(self, site_id: SiteId) -> bool:
        linked = sum(self.wires.is_up(site_id, other) for other in self.sites)
        return 2 * linked > len(self.sites)

    async def transferring(self, site_id: SiteId, act: Callable[[], Awaitable[R]]) -> R:
        """Have the quorum give something to another site, at the asking of `site_id`."""
        del site_id
        return await act()

    def saw(self, site: SimSite, change: Change) -> None:
        """Hear of a change of an index; the checkers look here."""

    async def fence(self, node: Node) -> bool:
        """Switch a node off through its BMC; False when the BMC does not answer."""
        for site in self.sites.values():
            for vnode in site.vnodes:
                if vnode.node.node_id == node.node_id and vnode.bmc_answers:
                    vnode.power_off()
                    return True
        return False

    async def switch_on(self, node: Node) -> bool:
        """Switch a fenced node on again through its BMC."""
        for site in self.sites.values():
            for vnode in site.vnodes:
                if vnode.node.node_id == node.node_id:
                    if not vnode.bmc_answers:
                        raise Unavailable("the BMC does not answer")
                    vnode.power_on()
                    return True
        return False


class _Counts(dict[str, int]):
    def __missing__(self, key: str) -> int:
        return 0


def stand_in(**fields: object) -> Any:
    """Return an object with these fields, for what only looks at them."""
    return SimpleNamespace(**fields)
