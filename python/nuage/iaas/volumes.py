"""Use cases on volumes: the disks part of the storage access service (paper §II-B)."""

from dataclasses import dataclass, replace
from typing import Protocol

from nuage.errors import Conflict, InvalidRequest, NoCandidate, NotFound
from nuage.iaas.building import require_quota
from nuage.iaas.epochs import FIRST_EPOCH
from nuage.iaas.erasure import delete_with_copies
from nuage.iaas.keys import require_key
from nuage.iaas.operations import NamesIaas, Operation, OperationTable, Shown, anywhere, iaas_scope
from nuage.iaas.promises import Promises
from nuage.iaas.showing import show
from nuage.iaas.site import Site
from nuage.ids import IaasId, ImageId, NodeId, SiteId, VmId, VolumeId, new_id
from nuage.model.contract import NO_LIMITS, DiskClass, Limits
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Datacenter, Node, NodeRole, require_slug
from nuage.model.status import NodeStatus
from nuage.model.vm import Vm
from nuage.model.volume import ReplicaPlace, Volume, VolumeState
from nuage.storage.places import (
    HELP_PROMISED,
    PROMISED,
    IonodeSpace,
    PromisedOn,
    Ranked,
    choose_places,
    rank_places,
    space_of,
)
from nuage.trust.permissions import Principal
from nuage.units import SECTOR_BYTES, format_size

IQN_PREFIX = "iqn.2026-01.cloud.nuage"
GRAIN_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolume:
    """Make an empty volume, of sectors of 512 (512e) or 4096 bytes (4Kn)."""

    iaas: str
    name: str
    size_bytes: int
    sector_bytes: int = SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class NameVolume:
    """Name a volume of an IaaS by id or name."""

    iaas: str
    volume: str


@dataclass(frozen=True, slots=True)
class ListVolumes:
    """Ask for the volumes of an IaaS."""

    iaas: str


@dataclass(frozen=True, slots=True)
class AttachVolume:
    """Give a volume to a VM; it is seen at the VM's next start."""

    iaas: str
    volume: str
    vm: str


@dataclass(frozen=True, slots=True)
class GrowVolume:
    """Make a volume larger."""

    iaas: str
    volume: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LimitVolume:
    """Hold a volume to so many operations and bytes a second; 0: to its class alone."""

    iaas: str
    volume: str
    operations_per_s: int = 0
    bytes_per_s: int = 0


def volume_of(site: Site, iaas: str, volume: str) -> Volume:
    """Return the volume named within an IaaS; templates are nobody's to use."""
    found = site.index.named(Volume, volume, site.index.iaas_named(iaas).iaas_id)
    if found.is_template:
        raise NotFound("volume", volume)
    return found


def ionode_spaces(site: Site, iaas: Iaas) -> list[IonodeSpace]:
    """Return the federation's IO-nodes, and what each has for an IaaS, as known here."""
    found = (_space(site, iaas, node) for node in site.index.values(Node))
    return [space for space in found if space is not None]


def _space(site: Site, iaas: Iaas, node: Node) -> IonodeSpace | None:
    status = site.index.find_value(NodeStatus, node.node_id)
    if NodeRole.IONODE not in node.roles or status is None:
        return None
    reserved = NO_LIMITS
    if iaas.contract.disk.reservation != NO_LIMITS:
        reserved = _reserved_on(site, node.node_id, besides=iaas.iaas_id)
    return space_of(node, status, iaas.contract.disk, reserved=reserved)


def promised_on(site: Site, coming: Promises | None = None) -> PromisedOn:
    """Return what tells how much is promised of a node, here and now, and by what is `coming`."""
    every = [site.index.promises, site.promises_begun]
    if coming is not None:
        every.append(coming)

    def told(node_id: NodeId, disk_class: DiskClass | None) -> int:
        if disk_class is None:
            return sum(promises.on(node_id) for promises in every)
        return sum(
            size_bytes
            for promises in every
            for iaas_id, size_bytes in promises.by_iaas(node_id).items()
            if (iaas := site.index.find_value(Iaas, iaas_id)) is not None
            and iaas.contract.disk.disk_class is disk_class
        )

    return told


def require_promise(site: Site, iaas: Iaas, volume: Volume, *, more_bytes: int) -> None:
    """Refuse what the nodes of a volume's copies may not be promised on top of all they are.

    Raises:
        NoCandidate: some may not; each refusal is kept.
    """
    told_on = promised_on(site)
    refusals = []
    for place in volume.replicas:
        node = site.index.find_value(Node, place.node_id)
        space = None if node is None else _space(site, iaas, node)
        told = "" if space is None else space.shortage(more_bytes, volume.size_bytes, told_on)
        if told:
            refusals.append((place.node_id, PROMISED, told))
    if refusals:
        raise NoCandidate(
            f"{volume.name} needs {format_size(more_bytes)} more on each node of its copies",
            refusals=refusals,
            hint=HELP_PROMISED,
        )


def _reserved_on(site: Site, node_id: NodeId, *, besides: IaasId) -> Limits:
    """Return what other IaaSes with copies on a node have reserved of its disks."""
    tenants = {volume.iaas_id for volume in site.index.on_node(Volume, node_id)} - {besides}
    known = [site.index.find_value(Iaas, iaas_id) for iaas_id in tenants]
    rules = [iaas.contract.disk for iaas in known if iaas is not None]
    return Limits(
        operations_per_s=sum(rule.reservation.operations_per_s for rule in rules),
        bytes_per_s=sum(rule.reservation.bytes_per_s for rule in rules),
    )


def place_volume(site: Site, iaas: Iaas, size_bytes: int) -> tuple[ReplicaPlace, ...]:
    """Choose where the copies of a volume near this site rest.

    Raises:
        NoCandidate: no nodes may take it; each refusal is kept.
    """
    return choose_places(
        iaas.contract,
        _ranked(site, iaas),
        size_bytes=size_bytes,
        near=site.site_id,
        promised_on=promised_on(site),
    )


def _ranked(site: Site, iaas: Iaas) -> Ranked:
    """Return who takes copies of an IaaS's volumes: by contract, the same until a node changes."""
    if iaas.contract.disk.reservation != NO_LIMITS:  # others' reservations come with their volumes
        return _ranked_now(site, iaas)
    kept = site.volume_places
    if kept.version != site.index.places_version:
        kept.version = site.index.places_version
        kept.by_contract.clear()
    ranked = kept.by_contract.get(iaas.contract)
    if ranked is None:
        ranked = kept.by_contract[iaas.contract] = _ranked_now(site, iaas)
    return ranked


def _ranked_now(site: Site, iaas: Iaas) -> Ranked:
    return rank_places(
        iaas.contract,
        near=site.site_id,
        sites=site.index.values(Datacenter),
        nodes=ionode_spaces(site, iaas),
    )


def new_volume(
    site: Site,
    iaas: Iaas,
    *,
    name: str,
    size_bytes: int,
    image_id: ImageId | None = None,
    vm_id: VmId | None = None,
    sector_bytes: int = SECTOR_BYTES,
) -> Volume:
    """Return a volume that is not yet placed."""
    volume_id = VolumeId(new_id("vol", site.entropy))
    return Volume(
        volume_id=volume_id,
        iaas_id=iaas.iaas_id,
        name=name,
        size_bytes=_whole(size_bytes),
        ack_policy=iaas.contract.ack_policy,
        journal=iaas.contract.journal,
        state=VolumeState.CREATING,
        image_id=image_id,
        vm_id=vm_id,
        iqn=_iqn(iaas.iaas_id, volume_id),
        sector_bytes=sector_bytes,
    )


def _whole(size_bytes: int) -> int:
    """Return the size that a volume has when so much is asked for."""
    return -(-size_bytes // GRAIN_BYTES) * GRAIN_BYTES


def _iqn(iaas_id: IaasId, volume_id: VolumeId) -> str:
    return f"{IQN_PREFIX}:{iaas_id}:{volume_id}"


def with_own_id(site: Site, volume: Volume) -> Volume:
    """Return `volume` under an id made here: what two sites enter is never one volume."""
    volume_id = VolumeId(new_id("vol", site.entropy))
    return replace(volume, volume_id=volume_id, iqn=_iqn(volume.iaas_id, volume_id))


def placed(site: Site, iaas: Iaas, volume: Volume) -> Volume:
    """Return `volume` with its copies placed and its head at the first, under epoch 1."""
    places = place_volume(site, iaas, volume.size_bytes)
    return replace(volume, replicas=places, head=places[0].node_id, epoch=FIRST_EPOCH)


async def create_volume(site: Site, _principal: Principal, body: CreateVolume) -> Shown[Volume]:
    """Make an empty volume near this site."""
    iaas = site.index.iaas_named(body.iaas)
    require_key(site, iaas.iaas_id)
    require_slug(body.name, "name")
    if site.index.is_name_taken(Volume, body.name, iaas.iaas_id):
        raise Conflict(f"there is a volume named {body.name!r} in {iaas.name} already")
    require_quota(site, iaas, asked=(0, 0, 0, body.size_bytes))
    fresh = new_volume(
        site, iaas, name=body.name, size_bytes=body.size_bytes, sector_bytes=body.sector_bytes
    )
    volume = placed(site, iaas, fresh)
    await site.save(volume, unique_name=True)
    site.announce("volume", volume.volume_id, "created", f"volume {volume.name} of {iaas.name}")
    return show(site, volume)


async def list_volumes(site: Site, _principal: Principal, body: ListVolumes) -> list[Shown[Volume]]:
    """Show an IaaS's volumes, by name."""
    iaas = site.index.iaas_named(body.iaas)
    found = [v for v in site.index.of_iaas(Volume, iaas.iaas_id) if not v.is_template]
    volumes = sorted(found, key=lambda v: v.name)
    return [show(site, volume) for volume in volumes]


async def show_volume(site: Site, _principal: Principal, body: NameVolume) -> Shown[Volume]:
    """Show one volume."""
    return show(site, volume_of(site, body.iaas, body.volume))


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlace:
    """One copy of a volume and where it rests."""

    node: str
    site: SiteId
    place: str
    country: str
    operator: str
    operator_country: str
    is_head: bool


async def where_volume(site: Site, _principal: Principal, body: NameVolume) -> list[CopyPlace]:
    """Say where each copy of a volume rests now, and under whose law."""
    volume = volume_of(site, body.iaas, body.volume)
    places = []
    for copy in volume.replicas:
        datacenter = site.index.value(Datacenter, copy.site_id)
        places.append(
            CopyPlace(
                node=copy.node_id,
                site=copy.site_id,
                place=datacenter.place,
                country=datacenter.country,
                operator=datacenter.operator.name,
                operator_country=datacenter.operator.country,
                is_head=copy.node_id == volume.head,
            )
        )
    return places


def require_free(site: Site, volume: Volume) -> None:
    """Raise Conflict if a VM or a host has the volume."""
    user: str | None = None if volume.host is None else volume.host.initiator
    if volume.vm_id is not None:
        vm = site.index.find_value(Vm, volume.vm_id)
        user = volume.vm_id if vm is None else vm.name
    if user is not None:
        raise Conflict(f"volume {volume.name} is attached to {user}", hint="detach it first")


def require_bootable(volume: Volume) -> None:
    """Refuse a volume that a VM's firmware cannot boot from: it reads sectors of 512 bytes."""
    if volume.sector_bytes != SECTOR_BYTES:
        raise InvalidRequest(
            f"a VM boots from sectors of {SECTOR_BYTES} bytes; {volume.name} has"
            f" {volume.sector_bytes}",
            field="volume",
            hint=f"attach it as a further disk: `nuage volume attach {volume.name} VM`",
        )


async def attach_volume(site: Site, _principal: Principal, body: AttachVolume) -> Shown[Volume]:
    """Give a free volume to a VM of the same IaaS and site."""
    volume = volume_of(site, body.iaas, body.volume)
    vm = site.index.named(Vm, body.vm, volume.iaas_id)
    require_free(site, volume)
    require_key(site, volume.iaas_id)
    if not vm.volumes:
        require_bootable(volume)
    if site.index.home("vm", vm.vm_id) != site.site_id:
        raise Conflict(
            f"{vm.name} runs at {vm.site_id}, {volume.name} has its head at {site.site_id}",
            hint=f"first `nuage volume move {volume.name} --to {vm.site_id}`, if it has a copy"
            f" there, or `nuage vm migrate {vm.name} --to {site.site_id}`",
        )
    attached = replace(volume, vm_id=vm.vm_id)
    await site.save(attached, replace(vm, volumes=(*vm.volumes, volume.volume_id)))
    return show(site, attached)


async def detach_volume(site: Site, _principal: Principal, body: NameVolume) -> Shown[Volume]:
    """Take a volume from its VM, or from the host that has it: its sessions end."""
    volume = volume_of(site, body.iaas, body.volume)
    if volume.vm_id is None and volume.host is None:
        raise Conflict(f"volume {volume.name} is not attached")
    vm = None if volume.vm_id is None else site.index.find_value(Vm, volume.vm_id)
    free = replace(volume, vm_id=None, host=None)
    if vm is None:
        await site.save(free)
    else:
        left = tuple(v for v in vm.volumes if v != volume.volume_id)
        await site.save(free, replace(vm, volumes=left))
    return show(site, free)


async def grow_volume(site: Site, _principal: Principal, body: GrowVolume) -> Shown[Volume]:
    """Make a volume larger; it never shrinks."""
    volume = volume_of(site, body.iaas, body.volume)
    size_bytes = _whole(body.size_bytes)
    if size_bytes <= volume.size_bytes:
        raise InvalidRequest(
            f"{volume.name} has {volume.size_bytes} bytes; a volume only grows", field="size_bytes"
        )
    require_key(site, volume.iaas_id)
    iaas = site.index.value(Iaas, volume.iaas_id)
    require_quota(site, iaas, asked=(0, 0, 0, size_bytes - volume.size_bytes))
    grown = replace(volume, size_bytes=size_bytes)
    require_promise(site, iaas, grown, more_bytes=size_bytes - volume.size_bytes)
    await site.save(grown)
    return show(site, grown)


async def limit_volume(site: Site, _principal: Principal, body: LimitVolume) -> Shown[Volume]:
    """Set what a volume may take, within what its class allows; its head keeps to it at once."""
    volume = volume_of(site, body.iaas, body.volume)
    limits = Limits(operations_per_s=body.operations_per_s, bytes_per_s=body.bytes_per_s)
    changed = replace(volume, limits=limits)
    await site.save(changed)
    return show(site, changed)


def clones_being_made(site: Site, volume: Volume) -> list[Volume]:
    """Return the clones that some node has still to make from `volume`."""
    return [
        other
        for other in site.index.of_iaas(Volume, volume.iaas_id)
        if other.origin is not None
        and other.origin.volume_id == volume.volume_id
        and (other.state is VolumeState.CREATING or other.without or other.catching_up)
    ]


async def delete_volume(site: Site, _principal: Principal, body: NameVolume) -> None:
    """Delete a free volume and all its copies."""
    volume = volume_of(site, body.iaas, body.volume)
    if volume.vm_id is None or site.index.find_value(Vm, volume.vm_id) is not None:
        require_free(site, volume)
    begun = [v.name for v in clones_being_made(site, volume)]
    if begun:
        raise Conflict(
            f"{', '.join(begun)} is being made from {volume.name}", hint="wait until it is ready"
        )
    await delete_with_copies(site, volume)
    site.announce("volume", volume.volume_id, "deleted", f"volume {volume.name} deleted")


class NamesVolume(NamesIaas, Protocol):
    """A body that says which volume of an IaaS it is about."""

    @property
    def volume(self) -> str:
        """The volume, by name or id."""
        ...


def volume_home(site: Site, body: NamesVolume) -> SiteId:
    """Let the site that keeps the volume answer."""
    return site.index.home("volume", volume_of(site, body.iaas, body.volume).volume_id)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    path = "/v1/iaas/{iaas}/volumes"
    table.add(
        Operation(
            name="volume.list",
            verb="GET",
            path=path,
            body=ListVolumes,
            result=list[Shown[Volume]],
            action="volume.read",
            summary="List volumes",
            run=list_volumes,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="volume.create",
            verb="POST",
            path=path,
            body=CreateVolume,
            result=Shown[Volume],
            action="volume.create",
            summary="Make an empty volume",
            run=create_volume,
            scope=iaas_scope,
            home=anywhere,
            status=202,
        )
    )
    table.add(
        Operation(
            name="volume.show",
            verb="GET",
            path=path + "/{volume}",
            body=NameVolume,
            result=Shown[Volume],
            action="volume.read",
            summary="Show a volume",
            run=show_volume,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="volume.where",
            verb="GET",
            path=path + "/{volume}/where",
            body=NameVolume,
            result=list[CopyPlace],
            action="volume.read",
            summary="Say where each copy of a volume rests, and under whose law",
            run=where_volume,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="volume.attach",
            verb="POST",
            path=path + "/{volume}/attach",
            body=AttachVolume,
            result=Shown[Volume],
            action="volume.write",
            summary="Give a volume to a VM",
            run=attach_volume,
            scope=iaas_scope,
            home=volume_home,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="volume.detach",
            verb="POST",
            path=path + "/{volume}/detach",
            body=NameVolume,
            result=Shown[Volume],
            action="volume.write",
            summary="Take a volume from its VM",
            run=detach_volume,
            scope=iaas_scope,
            home=volume_home,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="volume.limit",
            verb="PUT",
            path=path + "/{volume}/limits",
            body=LimitVolume,
            result=Shown[Volume],
            action="volume.write",
            summary="Set what a volume may take, within its class",
            run=limit_volume,
            scope=iaas_scope,
            home=volume_home,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="volume.grow",
            verb="PUT",
            path=path + "/{volume}/size",
            body=GrowVolume,
            result=Shown[Volume],
            action="volume.write",
            summary="Make a volume larger",
            run=grow_volume,
            scope=iaas_scope,
            home=volume_home,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="volume.delete",
            verb="DELETE",
            path=path + "/{volume}",
            body=NameVolume,
            result=type(None),
            action="volume.delete",
            summary="Delete a free volume and its copies",
            run=delete_volume,
            scope=iaas_scope,
            home=volume_home,
        )
    )
