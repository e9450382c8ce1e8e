"""The table of all operations; the entries for machines, volumes and images are here."""

from typing import TypeVar

from nuage.iaas import (
    building,
    conditions,
    copies,
    disks,
    draining,
    energy,
    fabric,
    hosts,
    images,
    infrastructure,
    keys,
    machines,
    past,
    people,
    provenance,
    public_addresses,
    rekeying,
    revoking,
    standing,
    transfers,
    views,
    volumes,
)
from nuage.iaas.operations import Operation, OperationTable, Shown, any_scope, anywhere
from nuage.model.image import Image
from nuage.model.placement import Decision
from nuage.model.vm import Vm
from nuage.model.volume import Volume

TABLE = OperationTable()

B = TypeVar("B")
R = TypeVar("R")

VMS = "/v1/iaas/{iaas}/vms"
VOLUMES = "/v1/iaas/{iaas}/volumes"


for _module in (
    building,
    conditions,
    copies,
    disks,
    draining,
    energy,
    fabric,
    hosts,
    infrastructure,
    keys,
    past,
    people,
    provenance,
    public_addresses,
    rekeying,
    revoking,
    transfers,
    standing,
    views,
):
    _module.enter(TABLE)


TABLE.enter(
    "vm.list",
    "GET",
    VMS,
    machines.ListVms,
    list[Shown[Vm]],
    machines.list_vms,
    "List VMs",
    action="vm.read",
    scope=machines.vm_scope,
)
TABLE.enter(
    "vm.create",
    "POST",
    VMS,
    machines.CreateVm,
    machines.CreatedVm,
    machines.create_vm,
    "Place and create a VM",
    action="vm.create",
    scope=machines.vm_scope,
    status=202,
)
TABLE.enter(
    "vm.show",
    "GET",
    VMS + "/{vm}",
    machines.NameVm,
    Shown[Vm],
    machines.show_vm,
    "Show a VM",
    action="vm.read",
    scope=machines.vm_scope,
)
TABLE.enter(
    "vm.explain",
    "GET",
    VMS + "/{vm}/decision",
    machines.NameVm,
    Decision,
    machines.explain_vm,
    "Tell why a VM is where it is: scores and refusals",
    action="vm.explain",
    scope=machines.vm_scope,
)
for _name, _run, _summary in (
    ("start", machines.start_vm, "Start a VM"),
    ("stop", machines.stop_vm, "Stop a VM"),
    ("reboot", machines.reboot_vm, "Reboot a VM"),
):
    TABLE.enter(
        f"vm.{_name}",
        "POST",
        VMS + "/{vm}/" + _name,
        machines.NameVm,
        Shown[Vm],
        _run,
        _summary,
        action="vm.power",
        scope=machines.vm_scope,
        home=machines.vm_home,
        status=202,
    )
TABLE.enter(
    "vm.resize",
    "PUT",
    VMS + "/{vm}/shape",
    machines.ResizeVm,
    Shown[Vm],
    machines.resize_vm,
    "Change a VM's shape",
    action="vm.write",
    scope=machines.vm_scope,
    home=machines.vm_home,
)
TABLE.enter(
    "vm.rules",
    "PUT",
    VMS + "/{vm}/rules",
    machines.RuleVm,
    Shown[Vm],
    machines.rule_vm,
    "Change where a VM may run: fence, ban, near, apart",
    action="vm.write",
    scope=machines.vm_scope,
    home=machines.vm_home,
)
TABLE.enter(
    "vm.migrate",
    "POST",
    VMS + "/{vm}/migrate",
    machines.MigrateVm,
    machines.CreatedVm,
    machines.migrate_vm,
    "Move a running VM live, to another site if asked",
    action="vm.migrate",
    scope=machines.vm_scope,
    home=machines.vm_home,
    status=202,
)
TABLE.enter(
    "vm.delete",
    "DELETE",
    VMS + "/{vm}",
    machines.NameVm,
    Shown[Vm],
    machines.delete_vm,
    "Delete a VM and its boot volume",
    action="vm.delete",
    scope=machines.vm_scope,
    home=machines.vm_home,
    status=202,
)
TABLE.enter(
    "vm.console",
    "GET",
    VMS + "/{vm}/console",
    machines.ReadConsole,
    machines.ConsoleLog,
    machines.read_console,
    "Read the end of a VM's console",
    action="vm.console",
    scope=machines.vm_scope,
    home=machines.vm_home,
)
TABLE.enter(
    "volume.list",
    "GET",
    VOLUMES,
    volumes.ListVolumes,
    list[Shown[Volume]],
    volumes.list_volumes,
    "List volumes",
    action="volume.read",
    scope=volumes.volume_scope,
)
TABLE.enter(
    "volume.create",
    "POST",
    VOLUMES,
    volumes.CreateVolume,
    Shown[Volume],
    volumes.create_volume,
    "Make an empty volume",
    action="volume.create",
    scope=volumes.volume_scope,
    status=202,
)
TABLE.enter(
    "volume.show",
    "GET",
    VOLUMES + "/{volume}",
    volumes.NameVolume,
    Shown[Volume],
    volumes.show_volume,
    "Show a volume",
    action="volume.read",
    scope=volumes.volume_scope,
)
TABLE.enter(
    "volume.where",
    "GET",
    VOLUMES + "/{volume}/where",
    volumes.NameVolume,
    list[volumes.CopyPlace],
    volumes.where_volume,
    "Say where each copy of a volume rests, and under whose law",
    action="volume.read",
    scope=volumes.volume_scope,
)
TABLE.enter(
    "volume.attach",
    "POST",
    VOLUMES + "/{volume}/attach",
    volumes.AttachVolume,
    Shown[Volume],
    volumes.attach_volume,
    "Give a volume to a VM",
    action="volume.write",
    scope=volumes.volume_scope,
    home=volumes.volume_home,
)
TABLE.enter(
    "volume.detach",
    "POST",
    VOLUMES + "/{volume}/detach",
    volumes.NameVolume,
    Shown[Volume],
    volumes.detach_volume,
    "Take a volume from its VM",
    action="volume.write",
    scope=volumes.volume_scope,
    home=volumes.volume_home,
)
TABLE.enter(
    "volume.limit",
    "PUT",
    VOLUMES + "/{volume}/limits",
    volumes.LimitVolume,
    Shown[Volume],
    volumes.limit_volume,
    "Set what a volume may take, within its class",
    action="volume.write",
    scope=volumes.volume_scope,
    home=volumes.volume_home,
)
TABLE.enter(
    "volume.grow",
    "PUT",
    VOLUMES + "/{volume}/size",
    volumes.GrowVolume,
    Shown[Volume],
    volumes.grow_volume,
    "Make a volume larger",
    action="volume.write",
    scope=volumes.volume_scope,
    home=volumes.volume_home,
)
TABLE.enter(
    "volume.delete",
    "DELETE",
    VOLUMES + "/{volume}",
    volumes.NameVolume,
    type(None),
    volumes.delete_volume,
    "Delete a free volume and its copies",
    action="volume.delete",
    scope=volumes.volume_scope,
    home=volumes.volume_home,
)
TABLE.add(
    Operation(
        name="image.list",
        verb="GET",
        path="/v1/images",
        body=images.ListImages,
        result=list[Shown[Image]],
        action="federation.read",
        summary="List the images that the caller may use",
        run=images.list_images,
        scope=any_scope,
        home=anywhere,
    )
)
TABLE.add(
    Operation(
        name="image.create",
        verb="POST",
        path="/v1/images",
        body=images.CreateImage,
        result=Shown[Image],
        action="image.write",
        summary="Announce an image; send its bytes to /v1/images/{image}/data",
        run=images.create_image,
        scope=images.image_scope,
        home=anywhere,
        status=201,
    )
)
TABLE.add(
    Operation(
        name="image.delete",
        verb="DELETE",
        path="/v1/images/{image}",
        body=images.NameImage,
        result=type(None),
        action="image.write",
        summary="Delete an image",
        run=images.delete_image,
        scope=images.image_scope,
        home=images.image_home,
    )
)
