"""Which IO-nodes keep the copies of a volume. Pure: values in, places out.

The contract decides (`model.contract.refusal_of_site`); among the nodes it allows, the head goes
near the VM and the other copies first to other sites, the nearest first, so that a synchronous
copy costs the least round trip; then to the node with the most free space.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import asin, cos, radians, sin, sqrt

from nuage.errors import InvalidRequest, NoCandidate
from nuage.ids import NodeId, SiteId
from nuage.model.contract import Contract, DiskRule, Limits, refusal_of_site
from nuage.model.infrastructure import Datacenter, Node
from nuage.model.status import FREE_SHARE_MIN, DiskStatus, NodeStatus
from nuage.model.volume import ReplicaPlace, Volume

EARTH_RADIUS_KM = 6371.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IonodeSpace:
    """An IO-node that may take a copy, and what it has for one contract.

    `free_bytes` and `total_bytes` are of its disk that would take the copy; `refusal` says why
    none would: the rule and the reason.
    """

    node_id: NodeId
    site_id: SiteId
    free_bytes: int
    total_bytes: int
    is_usable: bool = True
    refusal: tuple[str, str] | None = None


def space_of(node: Node, status: NodeStatus, rule: DiskRule, *, reserved: Limits) -> IonodeSpace:
    """Return what an IO-node has for a copy under `rule`, where others have `reserved` of a disk.

    A node that has told nothing of its disks counts as one disk of any class.
    """
    able = [disk for disk in status.disks if rule.disk_class in (None, disk.disk_class)]
    roomy = [disk for disk in able if disk.free_bytes >= disk.total_bytes * FREE_SHARE_MIN]
    free = [disk for disk in roomy if _may_reserve(disk, rule.reservation, reserved)]
    refusal = None
    if status.disks and not able and rule.disk_class is not None:
        refusal = ("disk.disk_class", f"it has no {rule.disk_class.value} disk")
    elif roomy and not free:
        refusal = ("disk.reservation", "others have reserved what its disks do")
    best = max(free or able, key=lambda disk: disk.free_bytes, default=None)
    return IonodeSpace(
        node_id=node.node_id,
        site_id=node.site_id,
        free_bytes=status.free_bytes if best is None else best.free_bytes,
        total_bytes=status.total_bytes if best is None else best.total_bytes,
        is_usable=status.connected and not node.maintenance,
        refusal=refusal,
    )


def _may_reserve(disk: DiskStatus, asked: Limits, reserved: Limits) -> bool:
    """Tell whether a disk still does what is asked of it; of one not measured nobody knows."""
    return all(
        not getattr(asked, kind)
        or not getattr(disk.capacity, kind)
        or getattr(asked, kind) + getattr(reserved, kind) <= getattr(disk.capacity, kind)
        for kind in ("operations_per_s", "bytes_per_s")
    )


def distance_km(one: Datacenter, other: Datacenter) -> float:
    """Return the great-circle distance between two sites."""
    lat1, lat2 = radians(one.latitude_deg), radians(other.latitude_deg)
    half_lat = (lat2 - lat1) / 2
    half_lon = radians(other.longitude_deg - one.longitude_deg) / 2
    chord = sin(half_lat) ** 2 + cos(lat1) * cos(lat2) * sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_KM * asin(sqrt(chord))


def choose_places(
    contract: Contract,
    *,
    size_bytes: int,
    near: SiteId,
    sites: Iterable[Datacenter],
    nodes: Sequence[IonodeSpace],
) -> tuple[ReplicaPlace, ...]:
    """Return the places of a new volume's copies, the head's first, which is at the site `near`.

    A volume's home is the site of its head, which alone commands it.

    Raises:
        NoCandidate: no set of nodes meets the contract, or none of them is at `near`; each refusal
            is kept.
    """
    by_site = {site.site_id: site for site in sites}
    home = by_site[near]
    refusals: list[tuple[str, str, str]] = []
    able: list[IonodeSpace] = []
    for node in sorted(nodes, key=lambda n: n.node_id):
        refusal = refusal_of_site(contract, by_site[node.site_id])
        if refusal is not None:
            refusals.append((node.node_id, refusal.rule, refusal.reason))
        elif not node.is_usable:
            refusals.append((node.node_id, "not-connected", "the node does not answer its site"))
        elif node.refusal is not None:
            refusals.append((node.node_id, *node.refusal))
        elif node.free_bytes - size_bytes < node.total_bytes * FREE_SHARE_MIN:
            refusals.append((node.node_id, "space", f"{node.free_bytes} bytes are free"))
        else:
            able.append(node)

    def order(node: IonodeSpace) -> tuple[float, int, str]:
        return (distance_km(home, by_site[node.site_id]), -node.free_bytes, node.node_id)

    able.sort(key=order)
    chosen: list[IonodeSpace] = []
    for node in able:  # one copy in each of the nearest sites
        if len(chosen) < contract.copy_sites and all(c.site_id != node.site_id for c in chosen):
            chosen.append(node)
    for node in able:  # the rest on further nodes, near first
        if len(chosen) < contract.copies and node not in chosen:
            chosen.append(node)
    site_count = len({node.site_id for node in chosen})
    if len(chosen) < contract.copies or site_count < contract.copy_sites:
        raise NoCandidate(
            f"{contract.copies} copies in {contract.copy_sites} sites asked; "
            f"{len(able)} IO-nodes in {len({n.site_id for n in able})} sites can take one",
            refusals=refusals,
            hint="free space, heal a site, or change the contract",
        )
    if chosen[0].site_id != near:
        if all(node.site_id != near for node in nodes):
            refusals.append((near, "head", "it has no IO-node"))
        raise NoCandidate(
            f"no IO-node of {near} may serve the volume",
            refusals=refusals,
            hint="ask another site, or see `nuage node list`",
        )
    return tuple(ReplicaPlace(node_id=node.node_id, site_id=node.site_id) for node in chosen)


def choose_another(
    contract: Contract,
    volume: Volume,
    *,
    near: SiteId,
    sites: Iterable[Datacenter],
    nodes: Sequence[IonodeSpace],
    wanted: NodeId | None = None,
) -> ReplicaPlace:
    """Return where one more copy of `volume` rests: `wanted` if it may, else the best.

    A site that holds none of the copies that stay comes first, if the contract asks for more sites
    than they lie in; then the nearest; then the node with the most free space.

    Raises:
        InvalidRequest: `wanted` holds a copy already.
        NoCandidate: no node may take it; each refusal is kept.
    """
    held = {place.node_id for place in volume.replicas}
    if wanted in held:
        raise InvalidRequest(f"{wanted} holds a copy of {volume.name} already", field="node")
    staying = {p.site_id for p in volume.replicas if p.node_id not in volume.leaving}
    by_site = {site.site_id: site for site in sites}
    refusals: list[tuple[str, str, str]] = []
    able: list[IonodeSpace] = []
    for node in sorted(nodes, key=lambda n: n.node_id):
        if node.node_id in held or wanted not in (None, node.node_id):
            continue
        refusal = refusal_of_site(contract, by_site[node.site_id])
        if refusal is not None:
            refusals.append((node.node_id, refusal.rule, refusal.reason))
        elif not node.is_usable:
            refusals.append((node.node_id, "not-connected", "the node does not answer its site"))
        elif node.refusal is not None:
            refusals.append((node.node_id, *node.refusal))
        elif node.free_bytes < node.total_bytes * FREE_SHARE_MIN:
            refusals.append((node.node_id, "space", f"{node.free_bytes} bytes are free"))
        elif len(staying | {node.site_id}) < min(contract.copy_sites, len(staying) + 1):
            refusals.append((node.node_id, "copy_sites", "another site must hold this copy"))
        else:
            able.append(node)
    if not able:
        raise NoCandidate(
            f"no other IO-node can take a copy of {volume.name}",
            refusals=refusals,
            hint="free space, add an IO-node, or change the contract",
        )
    home = by_site[near]
    best = min(
        able,
        key=lambda node: (
            node.site_id in staying,
            distance_km(home, by_site[node.site_id]),
            -node.free_bytes,
            node.node_id,
        ),
    )
    return ReplicaPlace(node_id=best.node_id, site_id=best.site_id)
