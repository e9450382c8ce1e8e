"""Records → what each RBridge shall do. Pure: the same index gives the same wish.

Inside a site its V-nodes and edges are joined each to each, up to `MESH_NODES_MAX`; a larger
site is joined by racks, whose first node leads to the others' first and to the edges. Between
sites each pair of edges has a trunk over each provider that both have a line to. Both ends work
the numbers out alike, from records that both have.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_interface
from typing import Final, TypeAlias, TypeVar

from nuage.iaas.fabric_keys import FabricKeySet
from nuage.iaas.index import FederationIndex
from nuage.iaas.lisp_wishes import lisp_wish
from nuage.ids import IaasId, NodeId, PortId, SecurityGroupId, SegmentId, SiteId
from nuage.model.contract import QosClass
from nuage.model.fabric import (
    FabricWish,
    LinkWish,
    PortRulesWish,
    RuleWish,
    SiteTrunkWish,
    StationWish,
)
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Datacenter, Node, NodeRole, ProviderLine
from nuage.model.network import AddressPool, Port, PublicAddress, SecurityGroup, Segment
from nuage.model.status import Migration
from nuage.model.vm import Vm, VmState
from nuage.trust.shared_secrets import SharedSecrets

T = TypeVar("T")
MESH_NODES_MAX: Final = 32  # a plane has 64 trunks: half for the site, half for other sites
TRUNKS_PER_PAIR_MAX: Final = 16
SITE_VNI_MIN: Final = 4096  # below: trunks between sites, by their number
SITE_VNIS: Final = (1 << 24) - SITE_VNI_MIN
LINK_LOCAL: Final = "fe80::/10"
RBRIDGE_ROLES: Final = (NodeRole.VNODE, NodeRole.EDGE)


Kept: TypeAlias = dict[PortId, tuple[tuple[object, ...], T]]


@dataclass(slots=True)
class KeptPorts:
    """What was worked out for each port, and from what: most stay as they are.

    All RBridges of a site are told of the same stations, each time one of them changes.
    """

    stations: dict[SegmentId, Kept[StationWish]] = field(default_factory=dict)
    rules: dict[NodeId, Kept[PortRulesWish]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FabricContext:
    """What fabric wishes need beside the records.

    `keys` sign what RBridges tell each other; each site's LISP key derives from `secrets`.
    """

    index: FederationIndex
    site_id: SiteId
    keys: FabricKeySet
    secrets: SharedSecrets
    kept: KeptPorts = field(default_factory=KeptPorts)


def is_rbridge(node: Node) -> bool:
    """Tell whether a node is a V-node or an edge."""
    return any(role in RBRIDGE_ROLES for role in node.roles)


def fabric_wish(
    context: FabricContext,
    node_id: NodeId,
    revision: int,
    *,
    shared: dict[SegmentId, tuple[StationWish, ...]] | None = None,
) -> FabricWish:
    """Return all that the RBridge of `node_id` shall do.

    `shared` takes and gives the stations of segments, for wishes made in the same turn.
    """
    shared = {} if shared is None else shared
    index = context.index
    node = index.value(Node, node_id)
    local = local_vms(index, node_id)
    segments = {port.segment_id for vm in local for port in index.ports_of(vm)}
    for segment_id in segments - shared.keys():
        shared[segment_id] = _stations(context, segment_id)
    return FabricWish(
        revision=revision,
        key=context.keys.key,
        key_id=context.keys.key_id,
        old_keys=tuple(context.keys.old.items()),
        links=site_links(index.values(Node), node),
        trunks=site_trunks(index, node) if NodeRole.EDGE in node.roles else (),
        stations=tuple(
            station for segment_id in sorted(segments) for station in shared[segment_id]
        ),
        ports=_ports_of(context, node_id, local),
        lisp=lisp_wish(index, node, local, context.secrets, context.keys),
        maintenance=node.maintenance,
    )


def local_vms(index: FederationIndex, node_id: NodeId) -> list[Vm]:
    """Return the VMs that a node runs or that are on their way to it."""
    arriving = (
        index.find_value(Vm, migration.vm_id)
        for migration in index.on_node(Migration, node_id)
        if migration.target_node == node_id
    )
    found = {vm.vm_id: vm for vm in (*index.on_node(Vm, node_id), *arriving) if vm is not None}
    return [found[vm_id] for vm_id in sorted(found)]


# Trunks ---------------------------------------------------------------------------------------


def site_links(nodes: Iterable[Node], node: Node) -> tuple[LinkWish, ...]:
    """Return the trunks of `node` inside its site."""
    local = sorted(
        (n for n in nodes if n.site_id == node.site_id and is_rbridge(n) and n.address),
        key=lambda n: n.node_id,
    )
    peers = local if len(local) <= MESH_NODES_MAX else _by_racks(local, node)
    return tuple(
        LinkWish(node_id=peer.node_id, address=peer.address, vni=pair_vni(node, peer))
        for peer in peers
        if peer.node_id != node.node_id
    )


def _by_racks(local: list[Node], node: Node) -> list[Node]:
    heads: dict[str, Node] = {}
    for each in local:
        if NodeRole.EDGE not in each.roles:
            heads.setdefault(each.rack_id, each)
    leaders = {head.node_id for head in heads.values()}
    leaders |= {each.node_id for each in local if NodeRole.EDGE in each.roles}
    if node.node_id in leaders:
        return [n for n in local if n.node_id in leaders or n.rack_id == node.rack_id]
    return [n for n in local if n.rack_id == node.rack_id]


def pair_vni(one: Node, other: Node) -> int:
    """Return the number of the trunk between two nodes of a site, the same from both ends."""
    low, high = sorted((one.node_id, other.node_id))
    digest = hashlib.sha256(f"{low} {high}".encode()).digest()
    return SITE_VNI_MIN + int.from_bytes(digest[:8], "big") % SITE_VNIS


def site_trunks(index: FederationIndex, node: Node) -> tuple[SiteTrunkWish, ...]:
    """Return the trunks of an edge to the edges of other sites."""
    numbers = {d.site_id: d.number for d in index.values(Datacenter)}
    edges = [n for n in index.values(Node) if NodeRole.EDGE in n.roles and n.lines]
    here = [n for n in edges if n.site_id == node.site_id]
    trunks: list[SiteTrunkWish] = []
    for site_id in sorted({n.site_id for n in edges} - {node.site_id}):
        if site_id not in numbers or node.site_id not in numbers:
            continue
        there = [n for n in edges if n.site_id == site_id]
        trunks.extend(_pair_trunks(node, here, there, numbers))
    return tuple(trunks)


def _pair_trunks(
    node: Node, here: list[Node], there: list[Node], numbers: dict[SiteId, int]
) -> list[SiteTrunkWish]:
    low_first = numbers[here[0].site_id] < numbers[there[0].site_id]
    lows, highs = (here, there) if low_first else (there, here)
    first = (numbers[lows[0].site_id] * 16 + numbers[highs[0].site_id]) * TRUNKS_PER_PAIR_MAX + 1
    ways = sorted(
        (
            (low, high, one, other)
            for low in lows
            for high in highs
            for one, other in _lines(low, high)
        ),
        key=lambda way: (way[0].node_id, way[1].node_id, way[2].provider, way[3].provider),
    )
    trunks = []
    for slot, (low, high, one, other) in enumerate(ways[:TRUNKS_PER_PAIR_MAX]):
        mine, peer, ours, theirs = (low, high, one, other) if low_first else (high, low, other, one)
        encrypted = not (mine.bare_trunks and peer.bare_trunks)
        if mine.node_id != node.node_id or (encrypted and not (peer.trunk_key and node.trunk_key)):
            continue
        trunks.append(
            SiteTrunkWish(
                number=first + slot,
                here=ours,
                there=theirs,
                there_site=peer.site_id,
                there_node=peer.node_id,
                public_key=peer.trunk_key if encrypted else "",
                encrypted=encrypted,
            )
        )
    return trunks


def _lines(low: Node, high: Node) -> list[tuple[ProviderLine, ProviderLine]]:
    """Pair the lines of two edges: by provider where they share one, else the first of each."""
    theirs = {line.provider: line for line in high.lines}
    shared = [(line, theirs[line.provider]) for line in low.lines if line.provider in theirs]
    return shared or [(low.lines[0], high.lines[0])]


@lru_cache(maxsize=65_536)
def _host(address: str) -> str:
    return str(ip_interface(address).ip)


# Stations and ports ---------------------------------------------------------------------------


def _stations(context: FabricContext, segment_id: SegmentId) -> tuple[StationWish, ...]:
    index = context.index
    segment = index.find_value(Segment, segment_id)
    if segment is None:
        return ()
    old = context.kept.stations.get(segment_id, {})
    kept = context.kept.stations[segment_id] = {}
    for port in index.of_iaas(Port, segment.iaas_id):
        vm = None if port.vm_id is None else index.find_value(Vm, port.vm_id)
        if port.segment_id != segment_id or vm is None:
            continue
        facts = (port, segment.label, vm.node_id, vm.state is VmState.MIGRATING)
        known = old.get(port.port_id)
        if known is None or known[0] != facts:
            known = (facts, _station(port, segment, vm))
        kept[port.port_id] = known
    return tuple(station for _, station in kept.values())


def _station(port: Port, segment: Segment, vm: Vm) -> StationWish:
    return StationWish(
        label=segment.label,
        mac=port.mac,
        addresses=tuple(_host(a) for a in port.addresses),
        node_id=vm.node_id,
        moving=vm.state is VmState.MIGRATING,
    )


def _ports_of(
    context: FabricContext, node_id: NodeId, local: Iterable[Vm]
) -> tuple[PortRulesWish, ...]:
    index = context.index
    old = context.kept.rules.get(node_id, {})
    kept = context.kept.rules[node_id] = {}
    found = []
    tenants: dict[IaasId, tuple[QosClass, list[PublicAddress]]] = {}
    for vm in local:
        if vm.iaas_id not in tenants:
            iaas = index.find_value(Iaas, vm.iaas_id)
            qos_class = QosClass.SILVER if iaas is None else iaas.contract.qos_class
            tenants[vm.iaas_id] = (qos_class, index.of_iaas(PublicAddress, vm.iaas_id))
        qos_class, owned = tenants[vm.iaas_id]
        for port_id in vm.ports:
            port = index.find_value(Port, port_id)
            segment = None if port is None else index.find_value(Segment, port.segment_id)
            if port is None or segment is None:
                continue
            public = tuple(each.address for each in owned if each.port_id == port_id)
            facts = (port, segment, vm.name, qos_class, public)
            known = old.get(port_id)
            if known is None or known[0] != facts or port.security_groups:
                rules = _port_rules(index, port, segment, vm.name, qos_class)
                known = (facts, replace(rules, public_addresses=public))
            kept[port_id] = known
            found.append(known[1])
    return tuple(found)


def _port_rules(
    index: FederationIndex, port: Port, segment: Segment, hostname: str, qos_class: QosClass
) -> PortRulesWish:
    return PortRulesWish(
        port_id=port.port_id,
        hostname=hostname,
        cidr=segment.cidr,
        qos_class=qos_class,
        rules=rules_of(index, port, segment),
        rate_mbit=port.rate_mbit,
    )


def rules_of(index: FederationIndex, port: Port, segment: Segment) -> tuple[RuleWish, ...]:
    """Return what a port lets through: by its groups, or else everything of its own segment.

    Everything may go out unless a group of the port says what may; answers pass in any case.
    """
    everything_out = RuleWish(ingress=False)
    if not port.security_groups:
        remotes = (segment.cidr, LINK_LOCAL)
        return (everything_out, *(RuleWish(ingress=True, remote=remote) for remote in remotes))
    groups = [index.find_value(SecurityGroup, group_id) for group_id in port.security_groups]
    allowed = [rule for group in groups if group is not None for rule in group.rules]
    rules = tuple(
        RuleWish(
            ingress=rule.ingress,
            protocol=rule.protocol,
            remote=remote,
            port_first=rule.port_first,
            port_last=rule.port_last,
        )
        for rule in allowed
        for remote in _remotes(index, port.iaas_id, rule.remote, rule.remote_group)
    )
    return rules if any(not rule.ingress for rule in allowed) else (everything_out, *rules)


def _remotes(
    index: FederationIndex, iaas_id: IaasId, remote: str, group: SecurityGroupId | None
) -> list[str]:
    if not group:
        return [remote]
    return [
        _host(address)
        for port in index.of_iaas(Port, iaas_id)
        if group in port.security_groups
        for address in port.addresses
    ]


# Who is concerned -----------------------------------------------------------------------------


# The kinds that fabric wishes are made of.
CONCERNING = frozenset({
    Node, Datacenter, AddressPool, PublicAddress, Vm, Port, Segment, SecurityGroup, Iaas, Migration,
})  # fmt: skip


def concerned_rbridges(index: FederationIndex, site_id: SiteId, value: object) -> set[NodeId]:
    """Return this site's nodes whose fabric wish may differ once `value` has changed."""
    match value:
        case Node():
            is_edge = NodeRole.EDGE in value.roles
            if value.site_id != site_id and not is_edge:
                return set()
            mine = _rbridges(index, site_id)  # an edge elsewhere is a map-server for all
            same_site = value.site_id == site_id
            public = bool(index.values(AddressPool))
            return {n.node_id for n in mine if same_site or public or NodeRole.EDGE in n.roles}
        case Datacenter():
            return _edges(index, site_id)
        case AddressPool():
            return {n.node_id for n in _rbridges(index, site_id)}
        case PublicAddress():
            return _nodes_of_iaas(index, site_id, value.iaas_id) | _edges(index, site_id)
        case Vm() | Port():
            found = _nodes_of_iaas(index, site_id, value.iaas_id)
            has_public = index.has_any(PublicAddress, value.iaas_id)
            return found | (_edges(index, site_id) if has_public else set())
        case Segment() | SecurityGroup() | Iaas():
            return _nodes_of_iaas(index, site_id, value.iaas_id)
        case Migration():
            vm = index.find_value(Vm, value.vm_id)
            found = set() if vm is None else _nodes_of_iaas(index, site_id, vm.iaas_id)
            return found | _local(index, site_id, {value.target_node, value.source_node})
        case _:
            return set()


def _rbridges(index: FederationIndex, site_id: SiteId) -> list[Node]:
    return [n for n in index.values(Node) if n.site_id == site_id and is_rbridge(n)]


def _edges(index: FederationIndex, site_id: SiteId) -> set[NodeId]:
    return {n.node_id for n in _rbridges(index, site_id) if NodeRole.EDGE in n.roles}


def _nodes_of_iaas(index: FederationIndex, site_id: SiteId, iaas_id: IaasId) -> set[NodeId]:
    return _local(index, site_id, index.vm_nodes(iaas_id))


def _local(index: FederationIndex, site_id: SiteId, nodes: Collection[NodeId]) -> set[NodeId]:
    here = index.nodes_at(site_id)
    return {node_id for node_id in nodes if node_id in here}


def is_news(before: object, after: object) -> bool:
    """Tell whether a change matters to the fabric: most changes of a VM do not."""
    if not (isinstance(before, Vm) and isinstance(after, Vm)):
        return before != after
    return _fabric_part(before) != _fabric_part(after)


def _fabric_part(vm: Vm) -> tuple[object, ...]:
    moving = vm.state is VmState.MIGRATING
    return (vm.node_id, vm.migrating_to, vm.ports, vm.name, moving, vm.epoch)
