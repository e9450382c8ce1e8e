"""The table of all operations; the entries for machines, volumes and images are here."""

from collections.abc import Callable
from typing import TypeVar

from nuage.iaas import (
    building,
    copies,
    energy,
    fabric,
    images,
    infrastructure,
    machines,
    past,
    people,
    provenance,
    public_addresses,
    revoking,
    volumes,
)
from nuage.iaas.operations import Operation, OperationTable, Run, Shown, any_scope, anywhere
from nuage.iaas.site import Site
from nuage.ids import SiteId
from nuage.model.image import Image
from nuage.model.placement import Decision
from nuage.model.vm import Vm
from nuage.model.volume import Volume
from nuage.trust.permissions import Scope

TABLE = OperationTable()

B = TypeVar("B")
R = TypeVar("R")

VMS = "/v1/iaas/{iaas}/vms"
VOLUMES = "/v1/iaas/{iaas}/volumes"


for _module in (
    building,
    copies,
    energy,
    fabric,
    infrastructure,
    past,
    people,
    provenance,
    public_addresses,
    revoking,
):
    _module.enter(TABLE)


def _vm(
    name: str,
    action: str,
    verb: str,
    path: str,
    body: type[B],
    result: type[R],
    run: Run[B, R],
    summary: str,
    *,
    home: Callable[[Site, B], SiteId | None] = anywhere,
    status: int = 200,
) -> None:
    scope: Callable[[Site, B], Scope | None] = (
        machines.vm_scope if name.startswith("vm.") else volumes.volume_scope  # type: ignore[assignment]
    )
    TABLE.add(
        Operation(
            name=name,
            verb=verb,
            path=path,
            body=body,
            result=result,
            action=action,
            summary=summary,
            run=run,
            scope=scope,
            home=home,
            status=status,
        )
    )


_vm(
    "vm.list",
    "vm.read",
    "GET",
    VMS,
    machines.ListVms,
    list[Shown[Vm]],
    machines.list_vms,
    "List VMs",
)
_vm(
    "vm.create",
    "vm.create",
    "POST",
    VMS,
    machines.CreateVm,
    machines.CreatedVm,
    machines.create_vm,
    "Place and create a VM",
    status=202,
)
_vm(
    "vm.show",
    "vm.read",
    "GET",
    VMS + "/{vm}",
    machines.NameVm,
    Shown[Vm],
    machines.show_vm,
    "Show a VM",
)
_vm(
    "vm.explain",
    "vm.explain",
    "GET",
    VMS + "/{vm}/decision",
    machines.NameVm,
    Decision,
    machines.explain_vm,
    "Tell why a VM is where it is: scores and refusals",
)
for _name, _run, _summary in (
    ("start", machines.start_vm, "Start a VM"),
    ("stop", machines.stop_vm, "Stop a VM"),
    ("reboot", machines.reboot_vm, "Reboot a VM"),
):
    _vm(
        f"vm.{_name}",
        "vm.power",
        "POST",
        VMS + "/{vm}/" + _name,
        machines.NameVm,
        Shown[Vm],
        _run,
        _summary,
        home=machines.vm_home,
        status=202,
    )
_vm(
    "vm.resize",
    "vm.write",
    "PUT",
    VMS + "/{vm}/shape",
    machines.ResizeVm,
    Shown[Vm],
    machines.resize_vm,
    "Change a VM's shape",
    home=machines.vm_home,
)
_vm(
    "vm.migrate",
    "vm.migrate",
    "POST",
    VMS + "/{vm}/migrate",
    machines.MigrateVm,
    machines.CreatedVm,
    machines.migrate_vm,
    "Move a running VM live, to another site if asked",
    home=machines.vm_home,
    status=202,
)
_vm(
    "vm.delete",
    "vm.delete",
    "DELETE",
    VMS + "/{vm}",
    machines.NameVm,
    Shown[Vm],
    machines.delete_vm,
    "Delete a VM and its boot volume",
    home=machines.vm_home,
    status=202,
)
_vm(
    "vm.console",
    "vm.console",
    "GET",
    VMS + "/{vm}/console",
    machines.ReadConsole,
    machines.ConsoleLog,
    machines.read_console,
    "Read the end of a VM's console",
    home=machines.vm_home,
)
_vm(
    "volume.list",
    "volume.read",
    "GET",
    VOLUMES,
    volumes.ListVolumes,
    list[Shown[Volume]],
    volumes.list_volumes,
    "List volumes",
)
_vm(
    "volume.create",
    "volume.create",
    "POST",
    VOLUMES,
    volumes.CreateVolume,
    Shown[Volume],
    volumes.create_volume,
    "Make an empty volume",
    status=202,
)
_vm(
    "volume.show",
    "volume.read",
    "GET",
    VOLUMES + "/{volume}",
    volumes.NameVolume,
    Shown[Volume],
    volumes.show_volume,
    "Show a volume",
)
_vm(
    "volume.where",
    "volume.read",
    "GET",
    VOLUMES + "/{volume}/where",
    volumes.NameVolume,
    list[volumes.CopyPlace],
    volumes.where_volume,
    "Say where each copy of a volume rests, and under whose law",
)
_vm(
    "volume.attach",
    "volume.write",
    "POST",
    VOLUMES + "/{volume}/attach",
    volumes.AttachVolume,
    Shown[Volume],
    volumes.attach_volume,
    "Give a volume to a VM",
    home=volumes.volume_home,
)
_vm(
    "volume.detach",
    "volume.write",
    "POST",
    VOLUMES + "/{volume}/detach",
    volumes.NameVolume,
    Shown[Volume],
    volumes.detach_volume,
    "Take a volume from its VM",
    home=volumes.volume_home,
)
_vm(
    "volume.grow",
    "volume.write",
    "PUT",
    VOLUMES + "/{volume}/size",
    volumes.GrowVolume,
    Shown[Volume],
    volumes.grow_volume,
    "Make a volume larger",
    home=volumes.volume_home,
)
_vm(
    "volume.delete",
    "volume.delete",
    "DELETE",
    VOLUMES + "/{volume}",
    volumes.NameVolume,
    type(None),
    volumes.delete_volume,
    "Delete a free volume and its copies",
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
