"""The federation as this site knows it: one synchronous, indexed read model.

Fed by the site's own catalogue and by the feeds of the others; never asked to write. For what
can move (`vm`, `volume`) several homes may hold a record for a while: the highest epoch is the
truth and hides the rest until they are gone.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

from nuage.errors import InvalidRequest, NotFound, NuageError
from nuage.iaas.addresses import host_number
from nuage.iaas.promises import Promises
from nuage.ids import IaasId, NodeId, SegmentId, SiteId, VolumeId
from nuage.model.iaas import KEY_SHREDDED, Iaas, IaasKey, PastIaas
from nuage.model.infrastructure import Datacenter, Node
from nuage.model.network import Port, PublicAddress
from nuage.model.record import KIND_OF, KINDS, Noun, Record
from nuage.model.status import Migration
from nuage.model.vm import Vm
from nuage.model.volume import Erasure, Volume

N = TypeVar("N", bound=Noun)
PLACE_KINDS = frozenset({"datacenter", "node", "node-status"})
ON_NODES = frozenset({Vm, Volume, Erasure, Migration})
COUNTED = frozenset({Vm, Volume, PublicAddress, Port})


@dataclass(slots=True)
class Usage:
    """What an IaaS uses over the federation: counted as records come and go."""

    vm_count: int = 0
    vcpu_count: int = 0
    memory_mib: int = 0
    volume_bytes: int = 0
    address_count: int = 0

    def add(self, value: Noun, sign: int) -> None:
        """Count a record in (1) or out (-1)."""
        match value:
            case Vm():
                self.vm_count += sign
                self.vcpu_count += sign * value.shape.vcpu_count
                self.memory_mib += sign * value.shape.memory_mib
            case Volume(is_template=False):
                self.volume_bytes += sign * value.size_bytes
            case PublicAddress():
                self.address_count += sign
            case _:
                pass


@dataclass(frozen=True, slots=True)
class Change:
    """What one event did to the view: `before` and `after` are the records that were visible."""

    kind: str
    id: str
    before: Record | None
    after: Record | None


class FederationIndex:
    """Records of all sites by kind and id, with the look-ups that decisions need."""

    def __init__(self, site_id: SiteId) -> None:
        self.site_id = site_id
        self.places_version = 0  # grows whenever a datacenter, a node or a node's status changes
        self._nodes_at: dict[SiteId, frozenset[NodeId]] = {}  # at `_nodes_version`
        self._nodes_version = -1
        self._copies: dict[tuple[str, str], dict[SiteId, Record]] = {}
        self._visible: dict[str, dict[str, Record]] = {kind: {} for kind in KINDS}
        self._contested: set[tuple[str, str]] = set()  # what several sites have a record of
        # From here on: no entry is left of what is gone. A controller runs for years.
        self._names: dict[tuple[str, str, str], set[str]] = {}
        self._by_node: dict[tuple[str, NodeId], set[str]] = {}
        self._by_iaas: dict[tuple[str, IaasId], set[str]] = {}
        self._templates: dict[IaasId, set[VolumeId]] = {}
        self._usage: dict[IaasId, Usage] = {}
        self._vm_nodes: dict[IaasId, dict[NodeId, int]] = {}
        self._addresses: dict[SegmentId, dict[int, int]] = {}
        self.promises = Promises()  # of IO-nodes, by the volumes that are known here

    # Feeding ---------------------------------------------------------------------------------

    def put(self, record: Record) -> Change:
        """Take in what `record.home` says; return what changed in the view."""
        key = (record.kind, record.id)
        copies = self._copies.get(key)
        if copies is None:
            copies = self._copies[key] = {}
        known = copies.get(record.home)
        if known is None or known.revision <= record.revision:
            copies[record.home] = record
        return self._show(*key)

    def remove(self, kind: str, object_id: str, home: SiteId) -> Change:
        """Forget what `home` said of an object."""
        self._copies.get((kind, object_id), {}).pop(home, None)
        return self._show(kind, object_id)

    def replace_site(self, home: SiteId, records: Iterable[Record]) -> list[Change]:
        """Take in a full snapshot of one site; what it no longer has is forgotten."""
        fresh = {(record.kind, record.id): record for record in records}
        gone = [key for key, copies in self._copies.items() if home in copies and key not in fresh]
        changes = [self.remove(kind, object_id, home) for kind, object_id in gone]
        for key, record in fresh.items():  # whatever its revision: the store may be made anew
            self._copies.setdefault(key, {})[home] = record
            changes.append(self._show(*key))
        return changes

    def _show(self, kind: str, object_id: str) -> Change:
        copies = self._copies.get((kind, object_id), {})
        after: Record | None
        if len(copies) == 1:
            (after,) = copies.values()
        else:
            after = max(copies.values(), key=self._authority, default=None)
        if not copies:
            self._copies.pop((kind, object_id), None)
        if len(copies) > 1:
            self._contested.add((kind, object_id))
        elif self._contested:
            self._contested.discard((kind, object_id))
        before = self._visible[kind].get(object_id)
        if before is not after:
            if kind in PLACE_KINDS:
                self.places_version += 1
            if before is not None:
                self._unlink(before)
                del self._visible[kind][object_id]
            if after is not None:
                self._visible[kind][object_id] = after
                self._link(after)
        return Change(kind, object_id, before, after)

    def _authority(self, record: Record) -> tuple[int, bool, SiteId]:
        return record.epoch, record.home == self.site_id, record.home

    def _link(self, record: Record) -> None:
        value = record.value
        if type(value) in COUNTED:
            self._count(value, 1)
        for node_id in nodes_of(value):
            _enter(self._by_node, (record.kind, node_id), record.id)
        iaas_id = iaas_of(value)
        if iaas_id is not None:
            _enter(self._by_iaas, (record.kind, iaas_id), record.id)
        name = name_of(value)
        if name:
            _enter(self._names, (record.kind, iaas_id or "", name), record.id)

    def _unlink(self, record: Record) -> None:
        value = record.value
        if type(value) in COUNTED:
            self._count(value, -1)
        for node_id in nodes_of(value):
            _leave(self._by_node, (record.kind, node_id), record.id)
        iaas_id = iaas_of(value)
        if iaas_id is not None:
            _leave(self._by_iaas, (record.kind, iaas_id), record.id)
        name = name_of(value)
        if name:
            _leave(self._names, (record.kind, iaas_id or "", name), record.id)

    def _count(self, value: Noun, sign: int) -> None:
        match value:
            case Vm():
                self._use(value.iaas_id, value, sign)
                for node_id in (value.node_id, value.migrating_to):
                    if node_id is not None:
                        _tally(self._vm_nodes, value.iaas_id, node_id, sign)
            case Volume():
                self._use(value.iaas_id, value, sign)
                self.promises.count(value, sign)
                if value.is_template:
                    change = _enter if sign > 0 else _leave
                    change(self._templates, value.iaas_id, value.volume_id)
            case PublicAddress():
                self._use(value.iaas_id, value, sign)
            case Port():
                for address in value.addresses:
                    _tally(self._addresses, value.segment_id, host_number(address), sign)
            case _:
                pass

    def _use(self, iaas_id: IaasId, value: Noun, sign: int) -> None:
        usage = self._usage.setdefault(iaas_id, Usage())
        usage.add(value, sign)
        if usage == Usage():
            del self._usage[iaas_id]

    # Reading ---------------------------------------------------------------------------------

    def find(self, kind: str, object_id: str) -> Record | None:
        """Return the record, whichever site it comes from, or None."""
        return self._visible[kind].get(object_id)

    def find_value(self, cls: type[N], object_id: str) -> N | None:
        """Return the value of `cls` with this id, or None."""
        record = self._visible[KIND_OF[cls]].get(object_id)
        return None if record is None else cast(N, record.value)

    def value(self, cls: type[N], object_id: str) -> N:
        """Return the value of `cls` with this id.

        Raises:
            NotFound: no site that this one knows has it.
        """
        found = self.find_value(cls, object_id)
        if found is None:
            sites = sorted(self._visible["datacenter"]) if cls is Datacenter else []
            hint = f"there is {', '.join(sites)}" if sites else ""
            raise NotFound(KIND_OF[cls], object_id, hint=hint)
        return found

    def records(self, kind: str) -> Iterator[Record]:
        """Yield the visible records of a kind, in no order."""
        yield from self._visible[kind].values()

    def values(self, cls: type[N]) -> list[N]:
        """Return the visible values of a class, in no order."""
        return [cast(N, record.value) for record in self._visible[KIND_OF[cls]].values()]

    def of_iaas(self, cls: type[N], iaas_id: IaasId) -> list[N]:
        """Return what an IaaS has of one kind, in order of id."""
        kind = KIND_OF[cls]
        shown = self._visible[kind]
        return [cast(N, shown[key].value) for key in sorted(self._by_iaas.get((kind, iaas_id), ()))]

    def has_any(self, cls: type[Noun], iaas_id: IaasId) -> bool:
        """Tell whether an IaaS has something of one kind."""
        return bool(self._by_iaas.get((KIND_OF[cls], iaas_id)))

    def nodes_at(self, site_id: SiteId) -> frozenset[NodeId]:
        """Return the nodes of a site."""
        if self._nodes_version != self.places_version:
            self._nodes_version = self.places_version
            self._nodes_at.clear()
        found = self._nodes_at.get(site_id)
        if found is None:
            nodes = (node.node_id for node in self.values(Node) if node.site_id == site_id)
            found = self._nodes_at[site_id] = frozenset(nodes)
        return found

    def templates(self, iaas_id: IaasId) -> list[Volume]:
        """Return an IaaS's templates of images, in order of id: few, of thousands of volumes."""
        shown = self._visible["volume"]
        found = self._templates.get(iaas_id, ())
        return [cast(Volume, shown[volume_id].value) for volume_id in sorted(found)]

    def on_node(self, cls: type[N], node_id: NodeId) -> list[N]:
        """Return what a node runs, serves or keeps of one kind, in order of id."""
        kind = KIND_OF[cls]
        shown = self._visible[kind]
        return [cast(N, shown[key].value) for key in sorted(self._by_node.get((kind, node_id), ()))]

    def ports_of(self, vm: Vm) -> list[Port]:
        """Return the ports of a VM that are known."""
        found = (self.find_value(Port, port_id) for port_id in vm.ports)
        return [port for port in found if port is not None]

    def usage(self, iaas_id: IaasId) -> Usage:
        """Return what an IaaS uses over the federation, as far as this site knows."""
        return self._usage.get(iaas_id, Usage())

    def vm_nodes(self, iaas_id: IaasId) -> Collection[NodeId]:
        """Return the nodes that run VMs of an IaaS or to which some are on their way."""
        return self._vm_nodes.get(iaas_id, {}).keys()

    def addresses(self, segment_id: SegmentId) -> Collection[int]:
        """Return the addresses that ports of a segment hold, as numbers."""
        return self._addresses.get(segment_id, {}).keys()

    def is_shredded(self, iaas_id: IaasId) -> bool:
        """Tell whether the data key of an IaaS was destroyed, for good."""
        key = self.find_value(IaasKey, iaas_id)
        return key is not None and key.key_id == KEY_SHREDDED

    def home(self, kind: str, object_id: str) -> SiteId:
        """Return the site that answers for an object.

        Raises:
            NotFound: no site that this one knows has it.
        """
        record = self._visible[kind].get(object_id)
        if record is None:
            raise NotFound(kind, object_id)
        return record.home

    def own_copies(self, kind: str) -> list[Record]:
        """Return this site's own records of a kind, hidden ones too."""
        own = [r for r in self._visible[kind].values() if r.home == self.site_id]
        return own + [record for record in self.shadowed() if record.kind == kind]

    def hidden(self, kind: str, object_id: str) -> Record | None:
        """Return this site's record of an object if a higher epoch elsewhere hides it."""
        own = self._copies.get((kind, object_id), {}).get(self.site_id)
        return None if own is self._visible[kind].get(object_id) else own

    def shadowed(self) -> list[Record]:
        """Return the records of this site that a higher epoch elsewhere hides."""
        return [
            copies[self.site_id]
            for kind, object_id in sorted(self._contested)
            if self.site_id in (copies := self._copies[kind, object_id])
            and self._visible[kind].get(object_id) is not copies[self.site_id]
        ]

    def named(self, cls: type[N], name: str, iaas_id: IaasId | None = None) -> N:
        """Return the value whose id or name is `name`.

        Raises:
            NotFound: there is none; the hint lists near names.
            InvalidRequest: several sites have one of this name: use the id.
        """
        kind = KIND_OF[cls]
        record = self._visible[kind].get(name)
        if record is not None and (iaas_id is None or iaas_of(record.value) in (iaas_id, None)):
            return cast(N, record.value)
        found = self._names.get((kind, iaas_id or "", name), set())
        if len(found) == 1:
            return cast(N, self._visible[kind][next(iter(found))].value)
        if found:
            listed = ", ".join(sorted(found))
            raise InvalidRequest(f"several {kind}s are named {name!r}: {listed}", field=kind)
        raise self._not_found(kind, name, iaas_id)

    def _not_found(self, kind: str, name: str, iaas_id: IaasId | None) -> NuageError:
        known = sorted(
            other
            for of_kind, of_iaas, other in self._names
            if of_kind == kind and of_iaas == (iaas_id or "") and "." not in other
        )  # a name with a dot is our own: a template's
        hint = f"there is {', '.join(known[:8])}" if known else f"there is no {kind} yet"
        return NotFound(kind, name, hint=hint)

    def is_name_taken(self, cls: type[Noun], name: str, iaas_id: IaasId | None = None) -> bool:
        """Tell whether some site already has an object of this name."""
        return bool(self._names.get((KIND_OF[cls], iaas_id or "", name)))

    def iaas_named(self, name: str) -> Iaas:
        """Return the IaaS of this id or name."""
        return self.named(Iaas, name)


K = TypeVar("K")
M = TypeVar("M")


def _enter(members: dict[K, set[M]], key: K, member: M) -> None:
    known = members.get(key)
    if known is None:
        members[key] = {member}
    else:
        known.add(member)


def _leave(members: dict[K, set[M]], key: K, member: M) -> None:
    known = members[key]
    known.discard(member)
    if not known:
        del members[key]


def _tally(counts_of: dict[K, dict[M, int]], key: K, member: M, sign: int) -> None:
    counts = counts_of.setdefault(key, {})
    counts[member] = counts.get(member, 0) + sign
    if not counts[member]:
        del counts[member]
        if not counts:
            del counts_of[key]


def nodes_of(value: Noun) -> tuple[NodeId, ...]:
    """Return the nodes that must hear of a change to `value`."""
    if type(value) not in ON_NODES:  # of most kinds: asked several times for each change
        return ()
    match value:
        case Vm():
            return () if value.node_id is None else (value.node_id,)
        case Volume():
            nodes = {place.node_id for place in value.replicas}
            if value.head is not None:
                nodes.add(value.head)
        case Erasure():
            nodes = {place.node_id for place in value.places}
        case Migration():
            nodes = {value.target_node, value.source_node}
        case _:
            return ()
    return tuple(sorted(nodes))


def iaas_of(value: Noun) -> IaasId | None:
    """Return the IaaS that `value` belongs to, if it belongs to one."""
    if isinstance(value, Iaas | PastIaas):
        return None
    return cast(IaasId | None, getattr(value, "iaas_id", None))


def name_of(value: Noun) -> str:
    """Return the name people give to `value`, or ""."""
    return cast(str, getattr(value, "name", ""))
