"""What becomes of a VM's belongings once it is gone from its node."""

from dataclasses import dataclass, replace

from nuage.iaas.erasure import delete_with_copies
from nuage.iaas.site import Site
from nuage.ids import VmId, VolumeId
from nuage.model.network import Port
from nuage.model.record import Noun
from nuage.model.vm import Vm
from nuage.model.volume import Volume

VOLUME_LEFT_METHOD = "volume.left"
ASK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeLeft:
    """Tells the home of a volume that the VM that used it is gone."""

    volume_id: VolumeId
    vm_id: VmId


async def remove_vm(site: Site, vm_id: VmId) -> None:
    """Remove a VM's record, its ports and its boot volume; other volumes become free.

    A volume whose home cannot be reached is told later: the VM's record stays until then, so
    that nothing is forgotten.
    """
    vm = site.index.find_value(Vm, vm_id)
    if vm is None:
        return
    for volume_id in vm.volumes:
        volume = site.index.find_value(Volume, volume_id)
        if volume is None:
            continue
        home = site.index.home("volume", volume_id)
        left = VolumeLeft(volume_id=volume_id, vm_id=vm_id)
        if home == site.site_id:
            await volume_left(site, left)
        else:
            await site.others.ask(
                home, VOLUME_LEFT_METHOD, left, type(None), timeout_s=ASK_TIMEOUT_S
            )
    gone: list[Noun] = [vm]
    for port_id in vm.ports:
        port = site.index.find_value(Port, port_id)
        if port is not None and site.index.home("port", port_id) == site.site_id:
            gone.append(port)
    await site.delete(*gone)
    site.announce("vm", vm_id, "deleted", f"{vm.name} is deleted")


async def volume_left(site: Site, left: VolumeLeft) -> None:
    """Delete the boot volume of a VM that is gone; free any other."""
    volume = site.index.find_value(Volume, left.volume_id)
    if volume is None or volume.vm_id != left.vm_id:
        return
    if volume.image_id is not None:
        await delete_with_copies(site, volume)
    else:
        await site.save(replace(volume, vm_id=None))
