"""Records → what each node shall do. Pure: the same index gives the same wish.

A V-node is told of the VMs whose record names it, and of those on their way to it. An IO-node is
told of the copies and heads that volumes of any site name it for; a site commands its own nodes
only, so a copy in another site appears there as soon as the feed has brought the volume's record.
"""

import hmac
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias, TypeVar

from nuage.iaas.epochs import FIRST_EPOCH, next_local, next_owner
from nuage.iaas.erasure import erased_copies, is_gone
from nuage.iaas.index import FederationIndex
from nuage.ids import IaasId, NodeId, VmId, VolumeId
from nuage.model.contract import LIMITS_OF_CLASS, Contract, CutOffRule, disk_rule, within
from nuage.model.desired import (
    ChapWish,
    DaemonWish,
    DiskWish,
    HeadWish,
    IncomingMigration,
    IonodeWish,
    OutgoingMigration,
    PathState,
    PathWish,
    PortGroup,
    PortWish,
    ReplicaPeer,
    ReplicaWish,
    VmWish,
    VnodeWish,
)
from nuage.model.history import CloneOrigin
from nuage.model.iaas import Iaas, IaasKey
from nuage.model.image import Image
from nuage.model.infrastructure import Node, portal_group_of
from nuage.model.network import Port, Segment
from nuage.model.placement import Decision
from nuage.model.status import Migration, NodeStatus
from nuage.model.vm import PowerWish, Vm, VmState
from nuage.model.volume import Volume, VolumeState
from nuage.storage.heads import former_set, head_set, is_settled
from nuage.trust.shared_secrets import SharedSecrets

T = TypeVar("T")
CHAP_SECRET_CHARS = 32  # hexadecimal; RFC 7143 §12.1.4 asks for 96 bits or more


class Leave(Enum):
    """How far the source of a migration may go now."""

    NONE = "none"  # what it was allowed is taken back
    SEND = "send"
    SWITCH = "switch"  # and hand the VM over, as soon as all but the last state is sent


Kept: TypeAlias = dict[str, tuple[tuple[object, ...], T]]


@dataclass(frozen=True, slots=True)
class KeptCopy:
    """What a node does for a volume, and from what that was worked out."""

    replica: ReplicaWish | None = None
    replica_of: tuple[object, ...] | None = None
    head: HeadWish | None = None
    head_of: tuple[object, ...] | None = None
    path: PathWish | None = None


@dataclass(slots=True)
class KeptWishes:
    """What was worked out for each VM and volume of a node, and from what: most stay as they are.

    A node's wish is made anew with each change, of thousands of volumes where one changed. Whoever
    knows which (`changed`, ids of VMs and volumes) has only those looked at, and what is new there.
    """

    vms: dict[NodeId, Kept[VmWish | None]] = field(default_factory=dict)
    copies: dict[NodeId, dict[VolumeId, KeptCopy]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WishContext:
    """What wishes need beside the records.

    `secrets` are shared by the federation's controllers; CHAP secrets derive from them, so that
    they never travel in a feed, for each of the `key_generations` that hold now: VMs log in under
    the first, heads let in under all. `leave` says how far a VM on its way may go.
    """

    index: FederationIndex
    secrets: SharedSecrets
    lease_until_s: Callable[[VmId], float]
    leave: Callable[[VmId], Leave]
    lease_term: Callable[[], int] = lambda: 0
    key_generations: Callable[[], tuple[int, ...]] = lambda: (0,)
    kept: KeptWishes = field(default_factory=KeptWishes)


def _derived(secrets: SharedSecrets, user: str, generation: int) -> ChapWish:
    digest = hmac.digest(secrets.of(generation), f"chap:{user}".encode(), "sha256")
    return ChapWish(user=user, secret=digest.hex()[:CHAP_SECRET_CHARS])


def chap_login(
    secrets: SharedSecrets, volume_id: VolumeId, epoch: int, generation: int = 0
) -> ChapWish:
    """Return how a VM logs in at a volume under one of its epochs and a generation of keys.

    The secret derives from that of the controllers (HMAC-SHA-256, cut to 128 bits), anew with each
    generation (`fabric_keys`): what a node or a datacenter that was revoked knew opens nothing.
    """
    user = f"{volume_id}.{epoch}" + (f".{generation}" if generation else "")
    return _derived(secrets, user, generation)


def host_login(secrets: SharedSecrets, volume: Volume, generation: int = 0) -> ChapWish:
    """Return how the host that has a volume logs in; as for a VM, but under its attachment."""
    assert volume.host is not None, "asked of volumes that a host has"
    user = f"{volume.volume_id}.{volume.host.login}" + (f".{generation}" if generation else "")
    return _derived(secrets, user, generation)


def target_login(secrets: SharedSecrets, volume: Volume, generation: int = 0) -> ChapWish | None:
    """Return by what the target proves itself to the volume's host; None: to nobody.

    It must be another secret than the host's (RFC 7143 §9.2.1).
    """
    if volume.host is None or not volume.host.mutual:
        return None
    user = f"target.{host_login(secrets, volume, generation).user}"
    return _derived(secrets, user, generation)


def vnode_wish(
    context: WishContext, node_id: NodeId, revision: int, changed: Collection[str] | None = None
) -> VnodeWish:
    """Return all that the V-node `node_id` shall run. `changed` None: anything may have."""
    index = context.index
    arriving = {m.vm_id: m for m in index.on_node(Migration, node_id) if m.target_node == node_id}
    wishes, withheld = [], []
    old = context.kept.vms.get(node_id, {})
    kept = context.kept.vms[node_id] = {}
    for vm in index.on_node(Vm, node_id):
        if vm.vm_id not in arriving and vm.state is not VmState.DELETED:
            known = old.get(vm.vm_id)
            if known is None or changed is None or vm.vm_id in changed:
                facts = _vm_facts(context, vm, node_id)
                if known is None or known[0] != facts:
                    known = (facts, _vm_wish(context, vm, node_id))
            kept[vm.vm_id] = known
            if known[1] is None:
                withheld.append(vm.vm_id)
            else:
                wishes.append(_with_departure(context, vm, known[1]))
    for migration in arriving.values():
        wish = _arrival_wish(context, migration, node_id)
        if wish is None:
            withheld.append(migration.vm_id)
        else:
            wishes.append(wish)
    return VnodeWish(
        revision=revision,
        vms=tuple(wishes),
        lease_term=context.lease_term(),
        withheld=tuple(withheld),
    )


def _arrival_wish(context: WishContext, migration: Migration, node_id: NodeId) -> VmWish | None:
    """Return the wish for a VM on its way here, or None while it cannot be made ready for."""
    index = context.index
    vm = index.find_value(Vm, migration.vm_id)
    if vm is None or not _may_come(index, vm, migration):
        return None
    wish = _vm_wish(context, replace(vm, epoch=migration.target_epoch), node_id)
    if wish is None:
        return None
    source = index.find_value(Node, migration.source_node)
    incoming = IncomingMigration(
        source_node_id=migration.source_node,
        source_address="" if source is None else source.address,
        source_epoch=migration.source_epoch,
        disk_slots=vm.disk_slots,
        secret=_move_secret(context, migration),
    )
    return replace(wish, incoming=incoming)


def _may_come(index: FederationIndex, vm: Vm, migration: Migration) -> bool:
    """Tell whether a target may make ready: QEMU opens the disks, and gives up where it cannot.

    The source says MIGRATING before it asks for a place, and its feed keeps the order: whoever has
    heard that knows how the source's disks stood then.
    """
    if migration.address or migration.failure:
        return True  # it is ready, or was
    return vm.state is VmState.MIGRATING and disk_waited_for(index, vm) is None


def disk_waited_for(index: FederationIndex, vm: Vm) -> Volume | None:
    """Return a volume of `vm` that nobody reaches now: it opens anew, or a copy catches up."""
    volumes = (index.find_value(Volume, volume_id) for volume_id in vm.volumes)
    return next((v for v in volumes if v is not None and (v.failure or not is_settled(v))), None)


def _with_departure(context: WishContext, vm: Vm, wish: VmWish) -> VmWish:
    if vm.migrating_to is None or vm.is_let_go:
        return wish
    migration = context.index.find_value(Migration, vm.vm_id)
    leave = context.leave(vm.vm_id)
    if migration is None or migration.failure or not migration.address or leave is Leave.NONE:
        return wish
    outgoing = OutgoingMigration(
        target_node_id=migration.target_node,
        address=migration.address,
        may_switch=leave is Leave.SWITCH,
        within_s=vm.move_within_s,
        secret=_move_secret(context, migration),
    )
    return replace(wish, outgoing=outgoing)


def _move_secret(context: WishContext, migration: Migration) -> str:
    """Return the TLS key under which a guest's memory goes (64 hexadecimal digits).

    The controllers of both ends derive it alike, anew for each epoch (HMAC-SHA-256).
    """
    secrets = context.secrets
    move = f"move:{migration.vm_id}:{migration.target_epoch}"
    return hmac.digest(secrets.of(secrets.newest), move.encode(), "sha256").hex()


def _vm_facts(context: WishContext, vm: Vm, node_id: NodeId) -> tuple[object, ...]:
    """Return all that `_vm_wish` looks at, to be compared with what it was made of last."""
    index = context.index
    ports = [index.find_value(Port, port_id) for port_id in vm.ports]
    volumes = [index.find_value(Volume, volume_id) for volume_id in vm.volumes]
    return (
        vm,
        index.find_value(Iaas, vm.iaas_id),
        is_decided(index, vm),
        context.lease_until_s(vm.vm_id),
        context.key_generations()[0],
        *ports,
        *(None if p is None else index.find_value(Segment, p.segment_id) for p in ports),
        *volumes,
        *("" if v is None else _far_node(index, v, node_id) for v in volumes),
    )


def _vm_wish(context: WishContext, vm: Vm, node_id: NodeId) -> VmWish | None:
    """Return a node's wish for `vm`, or None while one of its volumes is not ready."""
    index = context.index
    iaas = index.find_value(Iaas, vm.iaas_id)
    if iaas is None or not is_decided(index, vm):
        return None
    generation = context.key_generations()[0]
    disks = []
    for volume_id in vm.volumes:
        volume = index.find_value(Volume, volume_id)
        if vm.wish is PowerWish.DELETED and (volume is None or not volume.portal):
            continue
        if volume is None or volume.state is not VolumeState.READY or not volume.portal:
            return None
        login = chap_login(context.secrets, volume_id, vm.epoch, generation)
        disks.append(
            DiskWish(
                volume_id=volume_id,
                portal=volume.portal,
                iqn=volume.iqn,
                chap_user=login.user,
                chap_secret=login.secret,
                chap_generation=generation,
                epoch=volume.epoch,
                size_bytes=volume.size_bytes,
                far_node=_far_node(index, volume, node_id),
                sector_bytes=volume.sector_bytes,
            )
        )
    fails_over = iaas.contract.cut_off is CutOffRule.FAIL_OVER
    return VmWish(
        vm_id=vm.vm_id,
        iaas_id=vm.iaas_id,
        name=vm.name,
        shape=vm.shape,
        wish=PowerWish.STOPPED if vm.is_let_go else vm.wish,
        epoch=vm.epoch,
        disks=tuple(disks),
        ports=_port_wishes(index, vm),
        request_id=vm.request_id,
        user_data=vm.user_data,
        ssh_keys=vm.ssh_keys,
        reboot_count=vm.reboot_count,
        qos_class=iaas.contract.qos_class,
        lease_until_s=context.lease_until_s(vm.vm_id) if fails_over else 0.0,
    )


def _far_node(index: FederationIndex, volume: Volume, node_id: NodeId) -> str:
    """Return the node whose portal a volume has, where that is at another site than `node_id`.

    While a head opens elsewhere, the portal is that of the head before.
    """
    here = index.find_value(Node, node_id)
    serving = (place for place in volume.replicas if _has_portal(index, volume, place.node_id))
    place = next(serving, None)
    is_far = here is not None and place is not None and place.site_id != here.site_id
    return place.node_id if place is not None and is_far else ""


def _has_portal(index: FederationIndex, volume: Volume, node_id: NodeId) -> bool:
    if is_settled(volume):
        return node_id == volume.head
    status = index.find_value(NodeStatus, node_id)
    return status is not None and status.portals.get(volume.iaas_id) == volume.portal


def is_decided(index: FederationIndex, vm: Vm) -> bool:
    """Tell whether a new VM is where the decision says: another site may have entered it too."""
    if vm.epoch != FIRST_EPOCH or vm.wish is PowerWish.DELETED:
        return True
    record = index.find("decision", vm.vm_id)
    if record is None or not isinstance(record.value, Decision):
        return False
    return record.epoch > 0 or record.value.elected_site == vm.site_id  # above 0: of a later move


def _port_wishes(index: FederationIndex, vm: Vm) -> tuple[PortWish, ...]:
    wishes = []
    for port_id in vm.ports:
        port = index.find_value(Port, port_id)
        segment = None if port is None else index.find_value(Segment, port.segment_id)
        if port is None or segment is None:
            continue
        wishes.append(
            PortWish(
                port_id=port_id,
                segment_id=segment.segment_id,
                label=segment.label,
                mac=port.mac,
                addresses=port.addresses,
                gateway=segment.gateway,
                mtu_bytes=segment.mtu_bytes,
            )
        )
    return tuple(wishes)


def ionode_wish(
    context: WishContext, node_id: NodeId, revision: int, changed: Collection[str] | None = None
) -> IonodeWish:
    """Return all that the IO-node `node_id` shall keep and serve. `changed` as in `vnode_wish`."""
    index = context.index
    replicas, heads, paths = _copies_on(context, node_id, changed)
    erased: dict[IaasId, list[VolumeId]] = defaultdict(list)
    labels: dict[IaasId, int] = {}
    for erasure in erased_copies(index, node_id):
        erased[erasure.iaas_id].append(erasure.volume_id)
        labels[erasure.iaas_id] = erasure.label
    daemons = []
    for iaas_id in sorted({*replicas, *heads, *erased}):
        iaas = index.find_value(Iaas, iaas_id)
        if iaas is not None or iaas_id in erased:
            daemons.append(
                DaemonWish(
                    iaas_id=iaas_id,
                    label=labels.get(iaas_id, 0) if iaas is None else iaas.label,
                    replicas=tuple(replicas[iaas_id]),
                    heads=tuple(heads[iaas_id]),
                    paths=tuple(paths[iaas_id]),
                    erased=tuple(erased[iaas_id]),
                    key_id=_key_id(index, iaas_id),
                    disk=disk_rule(Contract() if iaas is None else iaas.contract),
                )
            )
    node = index.find_value(Node, node_id)
    nodes = () if node is None else sorted(index.nodes_at(node.site_id))
    near = (index.find_value(Node, each) for each in nodes)
    neighbours = tuple(each.address for each in near if each is not None and each.address)
    return IonodeWish(
        revision=revision,
        daemons=tuple(daemons),
        neighbours=neighbours,
        lost_disks=() if node is None else node.lost_disks,
    )


def _copies_on(
    context: WishContext, node_id: NodeId, changed: Collection[str] | None
) -> tuple[
    dict[IaasId, list[ReplicaWish]], dict[IaasId, list[HeadWish]], dict[IaasId, list[PathWish]]
]:
    """Return copies, heads and paths of a node; what did not change is as it was worked out."""
    paths: dict[IaasId, list[PathWish]] = defaultdict(list)
    replicas: dict[IaasId, list[ReplicaWish]] = defaultdict(list)
    heads: dict[IaasId, list[HeadWish]] = defaultdict(list)
    old = context.kept.copies.get(node_id, {})
    kept = context.kept.copies[node_id] = {}
    for volume in context.index.on_node(Volume, node_id):
        known = old.get(volume.volume_id)
        # What starts from another volume's past waits for that one, which may be of any node.
        look = changed is None or volume.volume_id in changed or volume.origin is not None
        if known is None or look:
            known = _copy_on(context, volume, node_id, known or KeptCopy())
        kept[volume.volume_id] = known
        if known.replica is not None:
            replicas[volume.iaas_id].append(known.replica)
        if known.head is not None:
            heads[volume.iaas_id].append(known.head)
        if known.path is not None:
            paths[volume.iaas_id].append(known.path)
    return replicas, heads, paths


def _copy_on(context: WishContext, volume: Volume, node_id: NodeId, known: KeptCopy) -> KeptCopy:
    """Return what a node shall do for a volume; `known`: what it was to do before."""
    index = context.index
    is_leaving = volume.state is VolumeState.DELETING or is_gone(index, volume)
    if is_leaving or _waits_for_origin(index, volume):
        return KeptCopy()
    replica, replica_of, head, head_of = None, None, None, None
    if any(place.node_id == node_id for place in volume.replicas):
        origin = _origin(index, volume, node_id)
        replica_of = (volume, origin, _is_encrypted(index, volume.iaas_id))
        replica = known.replica
        if known.replica_of != replica_of:
            replica = _replica_wish(volume, node_id, origin, encrypted=replica_of[2])
    if volume.head == node_id:
        head_of, head = _head_facts(context, volume), known.head
        if known.head_of != head_of:
            head = _head_wish(context, volume)
    path = _path_wish(context, volume, node_id) if replica is not None else None
    return KeptCopy(replica, replica_of, head, head_of, path)


def _replica_wish(
    volume: Volume, node_id: NodeId, origin: CloneOrigin | None, *, encrypted: bool
) -> ReplicaWish:
    return ReplicaWish(
        volume_id=volume.volume_id,
        iaas_id=volume.iaas_id,
        size_bytes=volume.size_bytes,
        journal=volume.journal,
        origin=origin,
        encrypted=encrypted,
        leads=volume.head == node_id,
        joins=bool(volume.whole),
        epoch=volume.epoch,
        sector_bytes=volume.sector_bytes,
    )


def _is_encrypted(index: FederationIndex, iaas_id: IaasId) -> bool:
    iaas = index.find_value(Iaas, iaas_id)
    return iaas is not None and iaas.encrypted


def _key_id(index: FederationIndex, iaas_id: IaasId) -> str:
    key = index.find_value(IaasKey, iaas_id)
    return "" if key is None else key.key_id


def _waits_for_origin(index: FederationIndex, volume: Volume) -> bool:
    """Tell whether what a new volume starts from is itself still being made."""
    if volume.origin is None or volume.state is not VolumeState.CREATING:
        return False
    origin = index.find_value(Volume, volume.origin.volume_id)
    return origin is not None and origin.state is VolumeState.CREATING


def _origin(index: FederationIndex, volume: Volume, node_id: NodeId) -> CloneOrigin | None:
    """Return the past that this node's copy starts from; later copies are filled from others.

    Once the volume was written to, a copy vouches for nothing however it starts (`joins`).
    """
    origin = volume.origin
    if origin is None or node_id not in origin.nodes:
        return None
    is_there = index.find_value(Volume, origin.volume_id) is not None
    return origin if is_there or not volume.whole else None


def _head_facts(context: WishContext, volume: Volume) -> tuple[object, ...]:
    """Return all that `_head_wish` looks at, to be compared with what it was made of last."""
    index = context.index
    statuses = (index.find_value(NodeStatus, place.node_id) for place in volume.replicas)
    vm = None if volume.vm_id is None else index.find_value(Vm, volume.vm_id)
    return (
        volume,
        None if vm is None else (vm.epoch, vm.state is VmState.MIGRATING),
        context.key_generations(),
        index.find_value(Iaas, volume.iaas_id),
        index.is_shredded(volume.iaas_id),
        None if volume.image_id is None else index.find_value(Image, volume.image_id),
        *(None if s is None else s.replica_addresses.get(volume.iaas_id) for s in statuses),
    )


def _head_wish(context: WishContext, volume: Volume) -> HeadWish | None:
    """Return the wish for a head; None while another copy's daemon has no known address.

    None as well once nobody can read the volume any more.
    """
    index = context.index
    if index.is_shredded(volume.iaas_id):
        return None
    peers = []
    asked = head_set(volume)
    nodes = [place.node_id for place in asked.members]
    if volume.head is None or volume.head not in nodes:
        return None
    for place in asked.members:
        if place.node_id == volume.head:
            continue
        status = index.find_value(NodeStatus, place.node_id)
        address = "" if status is None else status.replica_addresses.get(volume.iaas_id, "")
        if not address:
            return None
        peers.append(ReplicaPeer(node_id=place.node_id, site_id=place.site_id, address=address))
    iaas = index.find_value(Iaas, volume.iaas_id)
    contract = Contract() if iaas is None else iaas.contract
    is_fresh = volume.state is VolumeState.CREATING and volume.origin is None
    image = index.find_value(Image, volume.image_id) if is_fresh and volume.image_id else None
    return HeadWish(
        volume_id=volume.volume_id,
        iaas_id=volume.iaas_id,
        epoch=volume.epoch,
        policy=asked.policy,
        replicas=tuple(peers),
        position=nodes.index(volume.head),
        accepts_loss=volume.loss_accepted_epoch == volume.epoch,
        former=former_set(volume),
        iqn=volume.iqn,
        chap=_initiators(context, volume),
        initiators=() if volume.host is None else (volume.host.initiator,),
        groups=() if volume.host is None else _port_groups(volume, volume.head),
        chap_own=_own_login(context, volume),
        image_sha256="" if image is None else image.sha256,
        limits=within(volume.limits, LIMITS_OF_CLASS[contract.qos_class]),
        rpo=contract.rpo,
        bound=tuple(peer.node_id for peer in peers if peer.node_id not in volume.catching_up),
    )


def _path_wish(context: WishContext, volume: Volume, node_id: NodeId) -> PathWish | None:
    """Return the path by which a host may go on should the head come here, None: there is none.

    A node whose portals count as the head's shows nothing: it would say that it serves.
    """
    is_used = volume.host is not None and volume.state is VolumeState.READY
    if not is_used or volume.head in (None, node_id) or node_id in volume.leaving:
        return None
    groups = _port_groups(volume, node_id)
    if groups[0].state is not PathState.STANDBY:
        return None
    assert volume.host is not None
    return PathWish(
        volume_id=volume.volume_id,
        iaas_id=volume.iaas_id,
        iqn=volume.iqn,
        chap=_initiators(context, volume),
        initiators=(volume.host.initiator,),
        groups=groups,
        chap_own=_own_login(context, volume),
    )


def _port_groups(volume: Volume, own: NodeId) -> tuple[PortGroup, ...]:
    """Return the paths of a volume's host, that of `own` first: by the head, or by a copy."""
    serving = None if volume.head is None else portal_group_of(volume.head)
    tags = sorted({portal_group_of(place.node_id) for place in volume.replicas})
    groups = [
        PortGroup(tag, PathState.OPTIMIZED if tag == serving else PathState.STANDBY) for tag in tags
    ]
    return tuple(sorted(groups, key=lambda group: group.tag != portal_group_of(own)))


def _own_login(context: WishContext, volume: Volume) -> ChapWish | None:
    """Return the target's own login: under the new keys at once, since it can have but one."""
    return target_login(context.secrets, volume, context.key_generations()[0])


def _initiators(context: WishContext, volume: Volume) -> tuple[ChapWish, ...]:
    """Return who may log in: the VM's epoch, and during a migration those that may follow.

    While keys roll, each under the old keys and the new.
    """
    if volume.host is not None:
        return tuple(host_login(context.secrets, volume, g) for g in context.key_generations())
    vm = None if volume.vm_id is None else context.index.find_value(Vm, volume.vm_id)
    if vm is None:
        return ()
    epochs = [vm.epoch]
    if vm.state is VmState.MIGRATING:
        epochs += [next_local(vm.epoch), next_owner(vm.epoch)]
    return tuple(
        chap_login(context.secrets, volume.volume_id, epoch, generation)
        for generation in context.key_generations()
        for epoch in epochs
    )
