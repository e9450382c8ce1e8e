"""Use cases on datacenters, racks and nodes: the single shared vision (paper §II-A)."""

import math
from collections import Counter
from dataclasses import dataclass, replace

from nuage.iaas.operations import (
    Operation,
    OperationTable,
    Shown,
    any_scope,
    anywhere,
    node_home,
    node_scope,
)
from nuage.iaas.showing import show
from nuage.iaas.site import Site
from nuage.ids import NodeId, SiteId
from nuage.model.infrastructure import Datacenter, Node, Pdu, Rack
from nuage.model.status import NodeStatus
from nuage.model.vm import Vm, VmState
from nuage.model.volume import Volume
from nuage.trust.permissions import Principal, Scope, is_allowed

CUT_OFF_AFTER_S = 5.0  # of silence: five heartbeats of a feed


def answers(site: Site, node_id: NodeId) -> bool:
    """Tell whether a node answers, as far as this site knows."""
    status = site.index.find_value(NodeStatus, node_id)
    if status is None or not status.connected:
        return False
    return site.age_of(status.site_id) < CUT_OFF_AFTER_S


@dataclass(frozen=True, slots=True)
class ListSites:
    """Ask for all datacenters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """A datacenter, and how well this site knows it now.

    Of all its IO-nodes: the bytes of their disks, how many are free, how many are promised to
    volumes with copies there, and how many may be.
    """

    datacenter: Datacenter
    reachable: bool
    age_s: float | None
    vm_running_count: int
    node_connected_count: int
    node_count: int
    disk_bytes: int = 0
    free_bytes: int = 0
    promised_bytes: int = 0
    promise_bytes_max: int = 0


async def list_sites(site: Site, _principal: Principal, _body: ListSites) -> list[SiteView]:
    """Show every datacenter with the age of what is known of it."""
    statuses = site.index.values(NodeStatus)
    connected = {status.node_id for status in statuses if status.connected}
    nodes = site.index.values(Node)
    vms = site.index.values(Vm)
    views = []
    for datacenter in sorted(site.index.values(Datacenter), key=lambda d: d.site_id):
        age_s = site.age_of(datacenter.site_id)
        local = [node for node in nodes if node.site_id == datacenter.site_id]
        stores = [s for s in statuses if s.site_id == datacenter.site_id and s.total_bytes]
        views.append(
            SiteView(
                datacenter=datacenter,
                reachable=age_s < CUT_OFF_AFTER_S,
                age_s=None if math.isinf(age_s) else round(age_s, 3),
                vm_running_count=sum(
                    vm.site_id == datacenter.site_id and vm.state is VmState.RUNNING for vm in vms
                ),
                node_connected_count=sum(node.node_id in connected for node in local),
                node_count=len(local),
                disk_bytes=sum(status.total_bytes for status in stores),
                free_bytes=sum(status.free_bytes for status in stores),
                promised_bytes=sum(site.index.promises.on(node.node_id) for node in local),
                promise_bytes_max=sum(status.promise_bytes_max for status in stores),
            )
        )
    return views


@dataclass(frozen=True, slots=True)
class ListLeases:
    """Ask the quorum who holds its lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """What the quorum has of a datacenter now.

    `remaining_s` counts to its lease's expiry there, None when it holds none; `owned` counts by
    kind what it owns under an epoch: after the lease others may take that over.
    """

    site_id: SiteId
    remaining_s: float | None
    owned: dict[str, int]


async def list_leases(site: Site, _principal: Principal, _body: ListLeases) -> list[LeaseView]:
    """Show each datacenter's lease, and what it owns in the quorum.

    Raises:
        Unavailable, TimedOut: no majority of the members is reached from here.
    """
    held = {lease.site: lease.remaining_s for lease in await site.quorum.site_leases()}
    known = {datacenter.site_id for datacenter in site.index.values(Datacenter)}
    views = []
    for site_id in sorted(known | set(held)):
        owned = Counter(owned.kind for owned in await site.quorum.owners_of(site_id))
        remaining_s = round(held[site_id], 3) if site_id in held else None
        views.append(LeaseView(site_id=site_id, remaining_s=remaining_s, owned=dict(owned)))
    return views


@dataclass(frozen=True, slots=True)
class ListNodes:
    """Ask for nodes, of one site or of all."""

    site: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node and its last facts. The volumes of `held_up_count` of its copies cannot move now.

    `promised_bytes` are the sizes of all volumes with copies there, of `promise_bytes_max` at most.
    """

    node: Node
    status: NodeStatus | None
    vm_count: int
    copy_count: int = 0
    held_up_count: int = 0
    promised_bytes: int = 0
    promise_bytes_max: int = 0


async def list_nodes(site: Site, principal: Principal, body: ListNodes) -> list[NodeView]:
    """Show nodes with their last facts: all to whom it may, an operator's own to an operator."""
    return [
        NodeView(
            node=node,
            status=(status := site.index.find_value(NodeStatus, node.node_id)),
            vm_count=len(site.index.on_node(Vm, node.node_id)),
            copy_count=len(site.index.on_node(Volume, node.node_id)),
            held_up_count=sum(bool(v.held_up) for v in site.index.on_node(Volume, node.node_id)),
            promised_bytes=site.index.promises.on(node.node_id),
            promise_bytes_max=0 if status is None else status.promise_bytes_max,
        )
        for node in sorted(site.index.values(Node), key=lambda n: (n.site_id, n.name))
        if body.site in ("", node.site_id)
        and is_allowed(principal, "node.read", Scope(site_id=node.site_id))
    ]


@dataclass(frozen=True, slots=True)
class SetMaintenance:
    """Take a node out of service, or back: no new VM goes to one in maintenance."""

    node: NodeId
    maintenance: bool


async def set_maintenance(site: Site, _principal: Principal, body: SetMaintenance) -> Shown[Node]:
    """Write the wish; the planner drains, placement refuses."""
    node = replace(site.index.value(Node, body.node), maintenance=body.maintenance)
    await site.save(node)
    word = "in maintenance" if body.maintenance else "in service"
    site.announce("node", node.node_id, "maintenance", f"node {node.name} is {word}")
    return show(site, node)


@dataclass(frozen=True, slots=True)
class ListRacks:
    """Ask for racks and their power distribution units."""

    site: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RackView:
    """A rack with what is in it."""

    rack: Rack
    nodes: tuple[str, ...]
    pdus: tuple[Pdu, ...]


async def list_racks(site: Site, principal: Principal, body: ListRacks) -> list[RackView]:
    """Show the racks, the unit of administration; to an operator their own."""
    nodes = sorted(site.index.values(Node), key=lambda n: n.name)
    pdus = sorted(site.index.values(Pdu), key=lambda p: p.name)
    return [
        RackView(
            rack=rack,
            nodes=tuple(node.name for node in nodes if node.rack_id == rack.rack_id),
            pdus=tuple(pdu for pdu in pdus if pdu.rack_id == rack.rack_id),
        )
        for rack in sorted(site.index.values(Rack), key=lambda r: (r.site_id, r.name))
        if body.site in ("", rack.site_id)
        and is_allowed(principal, "rack.read", Scope(site_id=rack.site_id))
    ]


def _named_or_any(_site: Site, body: ListNodes | ListRacks) -> Scope | None:
    """Ask for the role at the site that is named; without one each sees what is theirs."""
    return Scope(site_id=SiteId(body.site)) if body.site else None


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="site.list",
            verb="GET",
            path="/v1/sites",
            body=ListSites,
            result=list[SiteView],
            action="datacenter.read",
            summary="List the datacenters with the age of what is known of each",
            run=list_sites,
            scope=any_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="site.leases",
            verb="GET",
            path="/v1/leases",
            body=ListLeases,
            result=list[LeaseView],
            action="datacenter.read",
            summary="List the leases that the quorum holds, and what each datacenter owns there",
            run=list_leases,
            scope=any_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="node.list",
            verb="GET",
            path="/v1/nodes",
            body=ListNodes,
            result=list[NodeView],
            action="node.read",
            summary="List nodes with their last facts",
            run=list_nodes,
            scope=_named_or_any,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="node.maintenance",
            verb="PUT",
            path="/v1/nodes/{node}/maintenance",
            body=SetMaintenance,
            result=Shown[Node],
            action="node.maintain",
            summary="Take a node out of service or back",
            run=set_maintenance,
            scope=node_scope,
            home=node_home,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="rack.list",
            verb="GET",
            path="/v1/racks",
            body=ListRacks,
            result=list[RackView],
            action="rack.read",
            summary="List racks and what is in them",
            run=list_racks,
            scope=_named_or_any,
            home=anywhere,
        )
    )
