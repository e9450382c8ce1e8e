"""Changes → wishes for this site's nodes; reports → acts on this site's records.

Theory of operation. A change of the index names the nodes whose wish may differ; they are marked
dirty and rendered together at the end of the loop's turn, so a burst of changes costs each node
one wish, of which only the VMs and volumes that changed are worked out anew. Rendering takes a
fortieth of the process at most: after a turn that took long the next one waits, and gathers what
changes meanwhile. A report becomes acts (`iaas.observe`); acts on one
VM run one after another, acts on different VMs side by side. Every act is idempotent: what fails
is logged and comes again with the next report, which a node sends at least every two seconds.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import Final

import structlog

from nuage.catalogue.codec import id_of, kind_of
from nuage.daemon.nodes import NodeSessions
from nuage.daemon.process import Tasks
from nuage.errors import NuageError
from nuage.iaas.index import Change, FederationIndex, nodes_of
from nuage.iaas.movement import Movement
from nuage.iaas.observe import (
    Act,
    Departed,
    GiveUp,
    Grant,
    Remove,
    Save,
    Take,
    ionode_acts,
    node_status,
    vnode_acts,
)
from nuage.iaas.removal import remove_vm
from nuage.iaas.site import Site
from nuage.iaas.wishes import WishContext, ionode_wish, vnode_wish
from nuage.ids import NodeId
from nuage.model.desired import IonodeReport, VnodeReport
from nuage.model.iaas import Iaas, IaasKey
from nuage.model.image import Image
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.network import Port, Segment
from nuage.model.placement import Decision
from nuage.model.record import Noun
from nuage.model.status import Migration, NodeStatus
from nuage.model.vm import Vm
from nuage.model.volume import Erasure, Volume

# The kinds that wishes are made of.
CONCERNING: Final = frozenset({
    Vm, Migration, Volume, Erasure, Node, NodeStatus, Decision, Port, Iaas, IaasKey, Segment, Image,
})  # fmt: skip
RENDER_REST: Final = 40.0  # wait so many times what rendering took
RENDER_REST_S_MAX: Final = 0.5  # a node hears of a change within this, however large its wish
log = structlog.get_logger("reconciler")


class Reconciler:
    """Keeps this site's nodes and its records in step."""

    def __init__(
        self,
        site: Site,
        context: WishContext,
        sessions: NodeSessions,
        movement: Movement,
        tasks: Tasks,
    ) -> None:
        self._site = site
        self._context = context
        self._sessions = sessions
        self._movement = movement
        self._tasks = tasks
        self._dirty: set[NodeId] = set()
        self._changed: dict[NodeId, set[str]] = {}  # since its last wish; absent: anything may have
        self._rest_until_s = 0.0
        self._revision = 0
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._listeners: list[Callable[[Change], None]] = []

    def listen(self, listener: Callable[[Change], None]) -> None:
        """Let `listener` hear every change of the index too."""
        self._listeners.append(listener)

    # Changes → wishes ---------------------------------------------------------------------------

    def on_change(self, change: Change) -> None:
        """Mark the nodes that a change concerns."""
        if change.before is change.after:
            return
        for listener in self._listeners:
            listener(change)
        for record in (change.before, change.after):
            if record is not None:
                self._concern(record.value)
        arrival = None if change.after is None else change.after.value
        if isinstance(arrival, Migration) and self._may_leave(arrival):
            self._begin([Grant(arrival.vm_id)])  # else with the next report of its node

    def _may_leave(self, arrival: Migration) -> bool:
        """Tell whether a target waits for a VM of ours."""
        record = self._site.index.find("vm", arrival.vm_id)
        is_ours = record is not None and record.home == self._site.site_id
        return is_ours and bool(arrival.address) and not arrival.failure

    def _concern(self, value: Noun) -> None:
        if type(value) not in CONCERNING:
            return
        index = self._site.index
        nodes = concerned_nodes(index, value) & index.nodes_at(self._site.site_id)
        objects = concerned_objects(value)
        if isinstance(value, Segment | Image):  # looked at by wishes that change for other reasons
            self._changed.clear()
        elif objects is None:
            self._forget_changes(nodes)
        else:
            for node_id in nodes:
                if node_id in self._changed:
                    self._changed[node_id].update(objects)
        self._mark(nodes)

    def _forget_changes(self, node_ids: Iterable[NodeId]) -> None:
        for node_id in node_ids:
            self._changed.pop(node_id, None)

    def touch(self, node_ids: Iterable[NodeId]) -> None:
        """Have the wishes of these nodes rendered from scratch at the end of this turn, or soon."""
        touched = set(node_ids)
        self._forget_changes(touched)
        self._mark(touched)

    def _mark(self, node_ids: Iterable[NodeId]) -> None:
        was_clean = not self._dirty
        self._dirty.update(node_ids)
        if not was_clean or not self._dirty:
            return
        wait_s = self._rest_until_s - self._site.clock.monotonic_s()
        if wait_s <= 0:
            asyncio.get_running_loop().call_soon(self._flush)
        else:
            self._tasks.start("wishes", self._flush_after(wait_s))

    async def _flush_after(self, wait_s: float) -> None:
        await self._site.clock.sleep(wait_s)
        self._flush()

    def _flush(self) -> None:
        begun_s = self._site.clock.monotonic_s()
        dirty, self._dirty = self._dirty, set()
        self._render(dirty)
        ended_s = self._site.clock.monotonic_s()
        rest_s = (ended_s - begun_s) * RENDER_REST
        self._rest_until_s = ended_s + min(rest_s, RENDER_REST_S_MAX)

    def _render(self, dirty: Collection[NodeId]) -> None:
        for node_id in sorted(dirty):
            node = self._site.index.find_value(Node, node_id)
            if node is None or node.site_id != self._site.site_id:
                continue
            slot = self._sessions.slot(node_id)
            changed, revision = self._changed.get(node_id), self._next_revision()
            if NodeRole.VNODE in node.roles:
                slot.put(vnode_wish(self._context, node_id, revision, changed))
            elif NodeRole.IONODE in node.roles:
                slot.put(ionode_wish(self._context, node_id, revision, changed))
            self._changed[node_id] = set()

    def _next_revision(self) -> int:
        """Return a number above all before, also across restarts of this controller."""
        self._revision = max(self._revision + 1, int(self._site.clock.now_s() * 1000))
        return self._revision

    # Reports → acts -------------------------------------------------------------------------------

    def take_vnode_report(self, report: VnodeReport) -> None:
        """Act on what a V-node reports."""
        acts = vnode_acts(self._site.index, report)
        acts += self._status_acts(report.node_id, vnode=report)
        self._begin(acts)

    def take_ionode_report(self, report: IonodeReport) -> None:
        """Act on what an IO-node reports."""
        acts = ionode_acts(self._site.index, report)
        acts += self._status_acts(report.node_id, ionode=report)
        self._begin(acts)

    def take_edge_report(self, node_id: NodeId) -> None:
        """Write down that an edge lives."""
        self._begin(self._status_acts(node_id))

    def node_restarts(self, node_id: NodeId) -> None:
        """Write down that a node's agent said goodbye, and is expected back."""
        now_s = self._site.clock.now_s()
        self._begin(
            node_status(self._site.index, node_id, connected=True, restarting=True, now_s=now_s)
        )

    def node_lost(self, node_id: NodeId) -> None:
        """Write down that a node is silent."""
        self._begin(
            node_status(self._site.index, node_id, connected=False, now_s=self._site.clock.now_s())
        )

    def _status_acts(
        self,
        node_id: NodeId,
        *,
        vnode: VnodeReport | None = None,
        ionode: IonodeReport | None = None,
    ) -> list[Act]:
        return node_status(
            self._site.index,
            node_id,
            connected=True,
            now_s=self._site.clock.now_s(),
            vnode=vnode,
            ionode=ionode,
        )

    def _begin(self, acts: Iterable[Act]) -> None:
        for act in acts:
            key = _key(act)
            if not self._locks[key].locked():  # else the same act is under way: it comes again
                self._tasks.start(f"act {key}", self._perform(key, act))

    async def _perform(self, key: str, act: Act) -> None:
        async with self._locks[key]:
            try:
                await self._act(act)
            except NuageError as error:
                log.warning("act failed", act=type(act).__name__, on=key, error=error.message)
        if not self._locks[key].locked():
            del self._locks[key]

    async def _act(self, act: Act) -> None:
        match act:
            case Save(value=value, what=what, text=text):
                await self._site.save(value)
                if text:
                    self._site.announce(kind_of(value), id_of(value), what, text)
            case Remove(vm_id=vm_id):
                await remove_vm(self._site, vm_id)
            case Grant(vm_id=vm_id):
                if await self._movement.grant(vm_id):
                    # Its guest may soon stand still for it: no rest before this wish.
                    self._render(nodes_of(self._site.index.value(Vm, vm_id)))
            case Take(vm_id=vm_id):
                await self._movement.take(vm_id)
            case GiveUp(vm_id=vm_id, reason=reason, source=source, revision=revision):
                if await self._movement.give_up(vm_id, reason, source=source, revision=revision):
                    self._render(nodes_of(self._site.index.value(Vm, vm_id)))
                    self._movement.taken_back(vm_id, self._revision)
            case Departed(vm_id=vm_id, downtime_ms=downtime_ms):
                await self._movement.departed(vm_id, downtime_ms)


def _key(act: Act) -> str:
    if isinstance(act, Save):
        kind, object_id = kind_of(act.value), id_of(act.value)
        return object_id if kind in ("vm", "migration") else f"{kind} {object_id}"
    return act.vm_id


def concerned_nodes(index: FederationIndex, value: Noun) -> set[NodeId]:
    """Return the nodes whose wish may differ once `value` has changed."""
    concerned = set(nodes_of(value))
    match value:
        case Vm():
            concerned |= _heads(index, value) | _targets(index, value)
        case Migration():
            vm = index.find_value(Vm, value.vm_id)
            concerned |= set() if vm is None else _heads(index, vm) | set(nodes_of(vm))
        case Volume():
            vm = None if value.vm_id is None else index.find_value(Vm, value.vm_id)
            concerned |= set() if vm is None else set(nodes_of(vm)) | _targets(index, vm)
        case Node():  # its site's IO-nodes know their neighbours
            near = (index.find_value(Node, node_id) for node_id in index.nodes_at(value.site_id))
            io = {node.node_id for node in near if node and NodeRole.IONODE in node.roles}
            concerned |= io
        case NodeStatus():
            for volume in index.on_node(Volume, value.node_id):
                concerned |= set() if volume.head is None else {volume.head}
        case Decision():
            vm = index.find_value(Vm, value.vm_id)
            concerned |= set() if vm is None else set(nodes_of(vm))
        case Port():
            vm = None if value.vm_id is None else index.find_value(Vm, value.vm_id)
            concerned |= set() if vm is None else set(nodes_of(vm))
        case Iaas() | IaasKey():
            for vm in index.of_iaas(Vm, value.iaas_id):
                concerned |= set(nodes_of(vm))
            for volume in index.of_iaas(Volume, value.iaas_id):
                concerned |= set(nodes_of(volume))
        case _:
            pass
    return concerned


def concerned_objects(value: Noun) -> tuple[str, ...] | None:
    """Return the VMs and volumes whose part of a wish `value` decides; None: any of its nodes'."""
    match value:
        case Vm():
            return (value.vm_id, *value.volumes)
        case Volume():
            return (value.volume_id, value.vm_id or "")
        case Decision() | Port():
            return (value.vm_id or "",)
        case _:
            return None


def _heads(index: FederationIndex, vm: Vm) -> set[NodeId]:
    volumes = (index.find_value(Volume, volume_id) for volume_id in vm.volumes)
    return {volume.head for volume in volumes if volume is not None and volume.head is not None}


def _targets(index: FederationIndex, vm: Vm) -> set[NodeId]:
    migration = index.find_value(Migration, vm.vm_id)
    return set() if migration is None else {migration.target_node}
