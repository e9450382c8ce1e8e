"""Step 5 of placement at the elected site: what a commitment enters in its catalogue.

All of it runs at the site that was elected, after its Local Agent has kept the room.

An answer may be lost, and the Master Agent then elects another site: a new VM may stand in two
catalogues. Hence it starts only where the decision says (`wishes`), its volumes and ports have ids
of the site that enters them, and the site that was not elected drops its record (`Movement`).
"""

from dataclasses import replace
from ipaddress import IPv4Address

from nuage.errors import Conflict
from nuage.iaas.addresses import free_number, host_number, mac_of
from nuage.iaas.epochs import FIRST_EPOCH, next_local, next_owner
from nuage.iaas.site import ArrivalDraft, Draft, RestartDraft, Site, VmDraft
from nuage.iaas.templates import made_here
from nuage.iaas.volumes import require_free
from nuage.ids import NodeId, PortId, VmId, VolumeId, new_id
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Datacenter
from nuage.model.network import Port, Segment
from nuage.model.record import Noun
from nuage.model.status import Migration
from nuage.model.vm import Vm, VmState
from nuage.model.volume import Volume


async def enter(site: Site, node_id: NodeId, draft: Draft) -> None:
    """Enter what `draft` brings, as one durable unit.

    Raises:
        NuageError: this site cannot; the Master Agent goes to its next candidate.
    """
    match draft:
        case VmDraft():
            await _enter_vm(site, node_id, draft)
        case ArrivalDraft():
            await _enter_arrival(site, node_id, draft)
        case RestartDraft():
            await _enter_restart(site, node_id, draft)


async def _enter_vm(site: Site, node_id: NodeId, draft: VmDraft) -> None:
    iaas = site.index.value(Iaas, draft.vm.iaas_id)
    volumes = [made_here(site, iaas, volume) for volume in draft.volumes]
    if not draft.volumes:
        volumes = [_attached(site, volume_id, draft.vm.vm_id) for volume_id in draft.vm.volumes]
    port = _port(site, draft)
    vm = replace(
        draft.vm,
        node_id=node_id,
        site_id=site.site_id,
        state=VmState.STARTING,
        epoch=FIRST_EPOCH,
        volumes=tuple(volume.volume_id for volume in volumes),
        ports=() if port is None else (port.port_id,),
    )
    values: list[Noun] = [vm, *volumes]
    if port is None:
        await site.save(*values, unique_name=True)
        return
    promised = site.addresses_promised.setdefault(port.segment_id, set())
    numbers = {host_number(address) for address in port.addresses}
    promised |= numbers
    try:
        await site.save(*values, port, unique_name=True)
    finally:
        promised -= numbers
        if not promised:
            site.addresses_promised.pop(port.segment_id, None)


def _attached(site: Site, volume_id: VolumeId, vm_id: VmId) -> Volume:
    """Return a volume that exists, given to a VM that is entered along with it."""
    volume = site.index.value(Volume, volume_id)
    if site.index.home("volume", volume_id) != site.site_id:
        raise Conflict(f"volume {volume.name} has its head at another site")
    require_free(site, volume)
    return replace(volume, vm_id=vm_id)


def _port(site: Site, draft: VmDraft) -> Port | None:
    if draft.port_id is None or draft.vm.segment_id is None:
        return None
    segment = site.index.value(Segment, draft.vm.segment_id)
    used = site.index.addresses(segment.segment_id)
    promised = site.addresses_promised.get(segment.segment_id, set())
    site_number = site.index.value(Datacenter, site.site_id).number
    number = free_number(segment, site_number, used, promised)
    address = f"{IPv4Address(number)}/{segment.cidr.partition('/')[2]}"
    port_id = PortId(new_id("port", site.entropy))
    return Port(
        port_id=port_id,
        iaas_id=draft.vm.iaas_id,
        segment_id=segment.segment_id,
        vm_id=draft.vm.vm_id,
        mac=mac_of(port_id),
        addresses=(address,),
    )


async def _enter_arrival(site: Site, node_id: NodeId, draft: ArrivalDraft) -> None:
    known = site.index.find_value(Migration, draft.vm_id)
    if known is not None and not known.failure:
        raise Conflict(f"{draft.vm_id} is on its way to {known.target_node} already")
    if known is not None and site.index.home("migration", draft.vm_id) == site.site_id:
        await site.delete(known)
    stays = draft.source_site == site.site_id
    epoch = next_local(draft.source_epoch) if stays else next_owner(draft.source_epoch)
    await site.save(
        Migration(
            vm_id=draft.vm_id,
            source_site=draft.source_site,
            source_node=draft.source_node,
            target_node=node_id,
            source_epoch=draft.source_epoch,
            target_epoch=epoch,
        )
    )


async def _enter_restart(site: Site, node_id: NodeId, draft: RestartDraft) -> None:
    vm = (
        site.index.find_value(Vm, draft.vm.vm_id) or draft.vm
    )  # its owner may have changed it since
    if vm.epoch >= draft.epoch:
        raise Conflict(f"{vm.name} is under epoch {vm.epoch} already")
    restarted = replace(
        vm,
        node_id=node_id,
        site_id=site.site_id,
        state=VmState.STARTING,
        epoch=draft.epoch,
        migrating_to=None,
        failure="",
    )
    await site.save_moving(restarted, *site.index.ports_of(vm), epoch=draft.epoch)
