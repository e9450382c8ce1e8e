"""Which IO-nodes keep the copies of a volume. Pure: values in, places out.

The contract decides (`model.contract.refusal_of_site`); among the nodes it allows, the head goes
near the VM and the other copies first to other sites, the nearest first, so that a synchronous
copy costs the least round trip; then to the node that is least full, of what may be promised of it
or of its disk: a burst of new volumes, which are all empty yet, spreads.

Space is taken as it is written (thin). So a node may be promised more than it has, by the ratio
that its operator says: a copy goes nowhere, and no volume grows, where its size and what is
promised there already would be more than the disks times that ratio.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import asin, cos, radians, sin, sqrt
from typing import Final, TypeAlias

from nuage.errors import InvalidRequest, NoCandidate
from nuage.ids import NodeId, SiteId
from nuage.model.contract import Contract, DiskClass, DiskRule, Limits, refusal_of_site
from nuage.model.infrastructure import Datacenter, Node
from nuage.model.status import FREE_SHARE_MIN, DiskStatus, NodeStatus
from nuage.model.volume import ReplicaPlace, Volume
from nuage.units import format_size

EARTH_RADIUS_KM = 6371.0
PROMISED: Final = "promised"
HELP_PROMISED: Final = (
    "ask for less, delete volumes, add disks or IO-nodes, raise `overcommit_ratio` in the "
    "IO-node's configuration, or let the contract go elsewhere"
)


PromisedOn: TypeAlias = Callable[[NodeId, DiskClass | None], int]
"""Bytes promised of a node: to all, or to those whose contract asks for a class of disks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What may be promised of an IO-node's disks: of all (`disk_class` None), or of one class.

    Old data of faster disks rests on the disk that takes it, so that disk counts in each class. No
    volume may be larger than what one journal finds, `largest_bytes`, by the same ratio.
    """

    disk_class: DiskClass | None
    total_bytes: int
    largest_bytes: int
    ratio: float

    @property
    def max_bytes(self) -> int:
        """Return how much may be promised."""
        return int(self.total_bytes * self.ratio)

    def shortage(self, more_bytes: int, size_bytes: int, *, promised_bytes: int) -> str:
        """Say by how much it falls short of `more_bytes` for a volume of `size_bytes`; "": not."""
        disks = "its disks" if self.disk_class is None else f"its {self.disk_class.value} disks"
        too_few_bytes = promised_bytes + more_bytes - self.max_bytes
        if too_few_bytes > 0:
            return (
                f"{format_size(promised_bytes)} of {format_size(self.max_bytes)} are promised"
                f" ({format_size(self.total_bytes)} on {disks} × {self.ratio:g}),"
                f" {format_size(too_few_bytes)} too few are left"
            )
        too_few_bytes = size_bytes - int(self.largest_bytes * self.ratio)
        if too_few_bytes > 0:
            return (
                f"one volume has at most {format_size(self.largest_bytes)} of {disks}"
                f" × {self.ratio:g}, {format_size(too_few_bytes)} too few"
            )
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IonodeSpace:
    """An IO-node that may take a copy, and what it has for one contract.

    `free_bytes` and `total_bytes` are of its disk that would take the copy; `refusal` says why
    none would: the rule and the reason. `bounds` are what may be promised of it; there is none of
    a node that has told nothing of its disks.
    """

    node_id: NodeId
    site_id: SiteId
    free_bytes: int
    total_bytes: int
    is_usable: bool = True
    refusal: tuple[str, str] | None = None
    bounds: tuple[Bound, ...] = ()

    def fullness(self, promised_on: PromisedOn) -> float:
        """Return the share that is taken, of its disk or of what may be promised: the greater."""
        used = 1.0 - self.free_bytes / self.total_bytes if self.total_bytes else 0.0
        promised = (
            promised_on(self.node_id, bound.disk_class) / bound.max_bytes
            for bound in self.bounds
            if bound.max_bytes
        )
        return max([used, *promised])

    def shortage(self, more_bytes: int, size_bytes: int, promised_on: PromisedOn) -> str:
        """Say why it may not be promised `more_bytes` for a volume of `size_bytes`; "": it may."""
        for bound in self.bounds:
            promised_bytes = promised_on(self.node_id, bound.disk_class)
            told = bound.shortage(more_bytes, size_bytes, promised_bytes=promised_bytes)
            if told:
                return told
        return ""


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
    classes = (None,) if rule.disk_class is None else (None, rule.disk_class)
    return IonodeSpace(
        node_id=node.node_id,
        site_id=node.site_id,
        free_bytes=status.free_bytes if best is None else best.free_bytes,
        total_bytes=status.total_bytes if best is None else best.total_bytes,
        is_usable=status.connected and not node.maintenance,
        refusal=refusal,
        bounds=tuple(_bound(status, disk_class) for disk_class in classes) if able else (),
    )


def _bound(status: NodeStatus, disk_class: DiskClass | None) -> Bound:
    journals = [disk for disk in status.disks if disk_class in (None, disk.disk_class)]
    bases = [disk for disk in status.disks if disk.for_bases]
    together = [{disk.name: disk for disk in (journal, *bases)} for journal in journals]
    every = {disk.name: disk for disk in (*journals, *bases)}
    return Bound(
        disk_class=disk_class,
        total_bytes=_sum(every.values()),
        largest_bytes=max(_sum(disks.values()) for disks in together),
        ratio=status.overcommit_ratio,
    )


def _sum(disks: Iterable[DiskStatus]) -> int:
    return sum(disk.total_bytes for disk in disks)


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


def _refusal(
    contract: Contract, node: IonodeSpace, datacenter: Datacenter
) -> tuple[str, str, str] | None:
    """Return why a node takes no copy, however small, or None."""
    refusal = refusal_of_site(contract, datacenter)
    if refusal is not None:
        return node.node_id, refusal.rule, refusal.reason
    if not node.is_usable:
        return node.node_id, "not-connected", "the node does not answer its site"
    if node.refusal is not None:
        return node.node_id, *node.refusal
    if node.free_bytes < node.total_bytes * FREE_SHARE_MIN:
        return node.node_id, "space", f"{format_size(node.free_bytes)} are free"
    return None


@dataclass(frozen=True, slots=True)
class Ranked:
    """The nodes that take copies near a site under a contract, those of one distance together.

    `refusals` are of the others; `has_ionode`: the site has one, whatever it says.
    """

    able: tuple[tuple[IonodeSpace, ...], ...]
    refusals: tuple[tuple[str, str, str], ...]
    has_ionode: bool


def rank_places(
    contract: Contract,
    *,
    near: SiteId,
    sites: Iterable[Datacenter],
    nodes: Sequence[IonodeSpace],
) -> Ranked:
    """Return who takes copies under a contract; it holds until a node or a datacenter changes."""
    by_site = {site.site_id: site for site in sites}
    home = by_site[near]
    refusals = []
    able: dict[float, list[IonodeSpace]] = {}
    for node in sorted(nodes, key=lambda n: n.node_id):
        datacenter = by_site[node.site_id]
        refusal = _refusal(contract, node, datacenter)
        if refusal is None:
            able.setdefault(distance_km(home, datacenter), []).append(node)
        else:
            refusals.append(refusal)
    return Ranked(
        tuple(tuple(able[distance]) for distance in sorted(able)),
        tuple(refusals),
        any(node.site_id == near for node in nodes),
    )


def choose_places(
    contract: Contract,
    ranked: Ranked,
    *,
    size_bytes: int,
    near: SiteId,
    promised_on: PromisedOn,
) -> tuple[ReplicaPlace, ...]:
    """Return the places of a new volume's copies, the head's first, which is at the site `near`.

    A volume's home is the site of its head, which alone commands it.

    Raises:
        NoCandidate: no set of nodes meets the contract and may be promised as much, or none of
            them is at `near`; each refusal is kept.
    """
    short: dict[NodeId, str] = {}

    def fits(node: IonodeSpace) -> bool:
        if node.node_id not in short:
            short[node.node_id] = node.shortage(size_bytes, size_bytes, promised_on)
        return not short[node.node_id]

    def best_first() -> Iterator[IonodeSpace]:
        for nodes in ranked.able:
            yield from sorted(nodes, key=lambda node: _order(node, promised_on))

    chosen: dict[NodeId, IonodeSpace] = {}
    chosen_sites: set[SiteId] = set()
    ordered, passed_by = best_first(), []
    for node in ordered:  # one copy in each of the nearest sites
        if node.site_id not in chosen_sites and fits(node):
            chosen[node.node_id] = node
            chosen_sites.add(node.site_id)
            if len(chosen) == contract.copy_sites:
                break
        else:
            passed_by.append(node)
    for node in chain(passed_by, ordered):  # the rest on further nodes, near first
        if len(chosen) == contract.copies:
            break
        if fits(node):
            chosen[node.node_id] = node
    is_met = len(chosen) == contract.copies and len(chosen_sites) == contract.copy_sites
    if is_met and next(iter(chosen.values())).site_id == near:
        return tuple(ReplicaPlace(node_id=n.node_id, site_id=n.site_id) for n in chosen.values())
    able = [node for nodes in ranked.able for node in nodes if fits(node)]
    refusals: list[tuple[str, str, str]] = list(ranked.refusals)
    refusals += [(node_id, PROMISED, told) for node_id, told in short.items() if told]
    refusals.sort()
    if is_met:
        if not ranked.has_ionode:
            refusals.append((near, "head", "it has no IO-node"))
        raise NoCandidate(
            f"no IO-node of {near} may serve the volume",
            refusals=refusals,
            hint=help_with(refusals, "ask another site, or see `nuage node list`"),
        )
    raise NoCandidate(
        f"{contract.copies} copies in {contract.copy_sites} sites asked; "
        f"{len(able)} IO-nodes in {len({n.site_id for n in able})} sites can take one",
        refusals=refusals,
        hint=help_with(refusals, "free space, heal a site, or change the contract"),
    )


def _order(node: IonodeSpace, promised_on: PromisedOn) -> tuple[float, int, NodeId]:
    return node.fullness(promised_on), -node.free_bytes, node.node_id


def help_with(refusals: Iterable[tuple[str, str, str]], other: str) -> str:
    """Return what helps: of what is promised more than of anything else, where that refused."""
    return HELP_PROMISED if any(rule == PROMISED for _, rule, _ in refusals) else other


def choose_another(
    contract: Contract,
    volume: Volume,
    *,
    near: SiteId,
    sites: Iterable[Datacenter],
    nodes: Sequence[IonodeSpace],
    promised_on: PromisedOn,
    wanted: NodeId | None = None,
) -> ReplicaPlace:
    """Return where one more copy of `volume` rests: `wanted` if it may, else the best.

    A site that holds none of the copies that stay comes first, if the contract asks for more sites
    than they lie in; then the nearest; then the node that is least full.

    Raises:
        InvalidRequest: `wanted` holds a copy already.
        NoCandidate: no node may take it; each refusal is kept.
    """
    held = {place.node_id for place in volume.replicas}
    if wanted in held:
        raise InvalidRequest(f"{wanted} holds a copy of {volume.name} already", field="node")
    staying = {p.site_id for p in volume.replicas if p.node_id not in volume.leaving}
    by_site = {site.site_id: site for site in sites}
    size_bytes = volume.size_bytes
    refusals: list[tuple[str, str, str]] = []
    able: list[IonodeSpace] = []
    for node in sorted(nodes, key=lambda n: n.node_id):
        if node.node_id in held or wanted not in (None, node.node_id):
            continue
        refusal = _refusal(contract, node, by_site[node.site_id])
        if refusal is not None:
            refusals.append(refusal)
        elif len(staying | {node.site_id}) < min(contract.copy_sites, len(staying) + 1):
            refusals.append((node.node_id, "copy_sites", "another site must hold this copy"))
        elif told := node.shortage(size_bytes, size_bytes, promised_on):
            refusals.append((node.node_id, PROMISED, told))
        else:
            able.append(node)
    if not able:
        raise NoCandidate(
            f"no other IO-node can take a copy of {volume.name}",
            refusals=refusals,
            hint=help_with(refusals, "free space, add an IO-node, or change the contract"),
        )
    home = by_site[near]
    best = min(
        able,
        key=lambda node: (
            node.site_id in staying,
            distance_km(home, by_site[node.site_id]),
            _order(node, promised_on),
        ),
    )
    return ReplicaPlace(node_id=best.node_id, site_id=best.site_id)
