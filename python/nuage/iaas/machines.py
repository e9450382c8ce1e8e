"""Use cases on VMs. Creating and moving go through placement; the rest is a wish written down."""

import contextlib
import math
from dataclasses import dataclass, replace

from nuage.channel import current_request_id
from nuage.errors import Conflict, InvalidRequest, NotFound, NuageError, Unavailable
from nuage.iaas.building import DEFAULT_SEGMENT, require_quota
from nuage.iaas.epochs import next_local
from nuage.iaas.keys import require_key
from nuage.iaas.movement import claimed, waits_for
from nuage.iaas.operations import Operation, OperationTable, Shown, anywhere, iaas_scope
from nuage.iaas.showing import show
from nuage.iaas.site import ArrivalDraft, Site, VmDraft, begun_anew
from nuage.iaas.vm_places import place_ids, request_for
from nuage.iaas.volumes import new_volume, require_bootable, require_free, volume_of
from nuage.iaas.wishes import is_decided
from nuage.ids import IaasId, PortId, SiteId, VmId, new_id
from nuage.model.console import READ_METHOD, ConsoleLog, ConsoleRequest
from nuage.model.contract import CutOffRule
from nuage.model.iaas import Iaas
from nuage.model.image import Image, ImageState
from nuage.model.infrastructure import Datacenter, Node
from nuage.model.network import Port, Segment
from nuage.model.placement import Decision, VmRequest
from nuage.model.vm import PowerWish, Vm, VmShape, VmState
from nuage.model.volume import Volume
from nuage.trust.permissions import Principal

CONSOLE_BYTES_MAX = 256 * 1024
NODE_ASK_TIMEOUT_S = 5.0
DECISION_LOOKS = 30
DECISION_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVm:
    """Create a VM; with `image` it gets a boot volume of its own, with `volume` an existing one.

    `volume_bytes` 0 takes the image's size. `near` and `apart` name VMs of the same IaaS, `fence`
    and `ban` nodes, racks and sites.
    """

    iaas: str
    name: str
    image: str = ""
    volume: str = ""
    volume_bytes: int = 0
    shape: VmShape = VmShape()
    segment: str = DEFAULT_SEGMENT
    user_data: str = ""
    ssh_keys: tuple[str, ...] = ()
    site: str = ""
    node: str = ""
    near: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    fence: tuple[str, ...] = ()
    ban: tuple[str, ...] = ()
    preference: float = 0.0
    policy: str = ""


@dataclass(frozen=True, slots=True)
class NameVm:
    """Name a VM of an IaaS by id or name."""

    iaas: str
    vm: str


@dataclass(frozen=True, slots=True)
class ListVms:
    """Ask for the VMs of an IaaS."""

    iaas: str


@dataclass(frozen=True, slots=True)
class ResizeVm:
    """Change a VM's shape; it takes effect when the VM next starts."""

    iaas: str
    vm: str
    shape: VmShape


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleVm:
    """Change where a VM may run; what is None stays, an empty list lifts that rule."""

    iaas: str
    vm: str
    fence: tuple[str, ...] | None = None
    ban: tuple[str, ...] | None = None
    near: tuple[str, ...] | None = None
    apart: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateVm:
    """Move a running VM to another node, of another site if so said, without stopping it.

    It stays if its memory has not gone `within_s` seconds; 0: only if it never would.
    """

    iaas: str
    vm: str
    site: str = ""
    node: str = ""
    policy: str = ""
    within_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedVm:
    """A VM accepted, and why it goes where it goes."""

    vm: Shown[Vm]
    decision: Decision


@dataclass(frozen=True, slots=True)
class ReadConsole:
    """Ask for a VM's console: its end, or what came after `after_bytes`."""

    iaas: str
    vm: str
    bytes_max: int = CONSOLE_BYTES_MAX
    after_bytes: int = -1


def vm_of(site: Site, iaas: str, vm: str) -> Vm:
    """Return the VM named within an IaaS."""
    return site.index.named(Vm, vm, site.index.iaas_named(iaas).iaas_id)


def _node_named(site: Site, name: str) -> Node:
    matches = [n for n in site.index.values(Node) if name in (n.node_id, n.name)]
    if len(matches) != 1:
        raise NotFound("node", name, hint="`nuage node list` shows their ids")
    return matches[0]


async def create_vm(site: Site, _principal: Principal, body: CreateVm) -> CreatedVm:
    """Place a new VM and have it created at the elected site (the paper's five steps)."""
    iaas = site.index.iaas_named(body.iaas)
    require_key(site, iaas.iaas_id)
    if site.index.is_name_taken(Vm, body.name, iaas.iaas_id):
        raise Conflict(f"there is a VM named {body.name!r} in {iaas.name} already")
    vm_id = VmId(new_id("vm", site.entropy))
    volumes, near_data = _boot_volume(site, iaas, vm_id, body)
    fresh_bytes = sum(v.size_bytes for v in volumes) if not body.volume else 0
    require_quota(site, iaas, asked=(1, body.shape.vcpu_count, body.shape.memory_mib, fresh_bytes))
    segment = site.index.named(Segment, body.segment, iaas.iaas_id)
    vm = Vm(
        vm_id=vm_id,
        iaas_id=iaas.iaas_id,
        name=body.name,
        shape=body.shape,
        volumes=tuple(volume.volume_id for volume in volumes),
        segment_id=segment.segment_id,
        user_data=body.user_data,
        ssh_keys=body.ssh_keys,
        near=tuple(vm_of(site, body.iaas, name).vm_id for name in body.near),
        apart=tuple(vm_of(site, body.iaas, name).vm_id for name in body.apart),
        fence=place_ids(site.index, body.fence, rule="fence"),
        ban=place_ids(site.index, body.ban, rule="ban"),
        preference=body.preference,
        asked_at=site.site_id,
        request_id=current_request_id(),
    )
    at_site = body.site or (site.index.home("volume", vm.volumes[0]) if body.volume else "")
    request = _request(site, iaas, vm, site_name=at_site, node_name=body.node, policy=body.policy)
    draft = VmDraft(
        vm=vm,
        volumes=() if body.volume else tuple(volumes),
        port_id=PortId(new_id("port", site.entropy)),
    )
    site.deciding.add(vm_id)
    try:
        decision = await site.placer.place(replace(request, sites_near_data=near_data), draft)
        await site.save(decision)
    finally:
        site.deciding.discard(vm_id)
    site.announce("vm", vm_id, "placed", f"{vm.name} goes to {decision.elected}")
    return CreatedVm(vm=show(site, site.index.value(Vm, vm_id)), decision=decision)


def _boot_volume(
    site: Site, iaas: Iaas, vm_id: VmId, body: CreateVm
) -> tuple[list[Volume], tuple[SiteId, ...]]:
    if body.volume and body.image:
        raise InvalidRequest("give an image or a volume, not both", field="volume")
    if body.volume:
        volume = volume_of(site, body.iaas, body.volume)
        require_free(site, volume)
        require_bootable(volume)
        return [volume], tuple({place.site_id for place in volume.replicas})
    if not body.image:
        raise InvalidRequest("a VM boots from an image or a volume", field="image")
    image = image_of(site, iaas.iaas_id, body.image)
    if body.volume_bytes and body.volume_bytes < image.size_bytes:
        raise InvalidRequest(
            f"the image needs {image.size_bytes} bytes, the volume has {body.volume_bytes}",
            field="volume_bytes",
        )
    volume = new_volume(
        site,
        iaas,
        name=f"{body.name}-boot",
        size_bytes=body.volume_bytes or image.size_bytes,
        image_id=image.image_id,
        vm_id=vm_id,
    )
    return [volume], ()


def image_of(site: Site, iaas_id: IaasId, name: str) -> Image:
    """Return an image of the IaaS, or a public one, that is ready."""
    try:
        image = site.index.named(Image, name, iaas_id)
    except NotFound as error:
        with contextlib.suppress(NotFound):
            return _ready(site.index.named(Image, name))
        raise NotFound("image", name, hint="`nuage image list` shows those you may use") from error
    return _ready(image)


def _ready(image: Image) -> Image:
    if image.state is not ImageState.READY:
        raise Conflict(f"image {image.name} is {image.state.value}")
    return image


def _request(
    site: Site, iaas: Iaas, vm: Vm, *, site_name: str, node_name: str, policy: str
) -> VmRequest:
    node = _node_named(site, node_name) if node_name else None
    wanted = site.index.value(Datacenter, site_name).site_id if site_name else None
    return replace(
        request_for(site, iaas, vm),
        site_wanted=wanted or (node.site_id if node else None),
        node_wanted=node.node_id if node else None,
        vms_near=vm.near,
        policy=policy,
    )


async def list_vms(site: Site, _principal: Principal, body: ListVms) -> list[Shown[Vm]]:
    """Show an IaaS's VMs, by name."""
    iaas = site.index.iaas_named(body.iaas)
    vms = sorted(site.index.of_iaas(Vm, iaas.iaas_id), key=lambda vm: vm.name)
    return [show(site, vm) for vm in vms]


async def show_vm(site: Site, _principal: Principal, body: NameVm) -> Shown[Vm]:
    """Show one VM."""
    return show(site, vm_of(site, body.iaas, body.vm))


async def explain_vm(site: Site, _principal: Principal, body: NameVm) -> Decision:
    """Show the decision that placed a VM last: its scores and every refusal."""
    vm = vm_of(site, body.iaas, body.vm)
    return site.index.value(Decision, vm.vm_id)


def _require_settled(site: Site, vm: Vm) -> None:
    """Refuse to change a VM whose next home may already have taken its record as it was."""
    iaas = site.index.find_value(Iaas, vm.iaas_id)
    fails_over = iaas is not None and iaas.contract.cut_off is CutOffRule.FAIL_OVER
    if fails_over and not site.holds_lease():
        raise Unavailable(
            f"{vm.name} fails over, and site {site.site_id} is cut off from the majority:"
            " another site may have started it",
            retry_after_s=5.0,
            hint="ask a site that is not cut off, or wait until this one is back",
        )
    if vm.migrating_to is not None or vm.state is VmState.MIGRATING:
        raise Conflict(f"{vm.name} is migrating", hint="wait for its end, then ask again")


async def _decided(site: Site, vm: Vm, *, is_deleted: bool) -> Vm:
    """Return the VM once it is known that it is to be: one that nobody decided is dropped.

    Nobody believes a site that was revoked: what it was asked for can only be deleted.
    """
    if vm.asked_at is not None and site.is_revoked(vm.asked_at) and not is_decided(site.index, vm):
        if is_deleted:
            return vm
        raise Conflict(
            f"whether {vm.name} is to be was for site {vm.asked_at} to say, which is revoked",
            hint="it is dropped within a minute; create it again",
        )
    for _ in range(DECISION_LOOKS):
        if vm.asked_at is None or is_decided(site.index, vm):
            return vm
        await site.clock.sleep(DECISION_LOOK_EVERY_S)
        vm = site.index.value(Vm, vm.vm_id)
    raise Unavailable(
        f"whether {vm.name} is to be, site {vm.asked_at} has not said yet",
        retry_after_s=5.0,
        hint="ask again; a machine that is never decided is dropped",
    )


async def _set(site: Site, vm: Vm, what: str, **fields: object) -> Shown[Vm]:
    vm = await _decided(site, vm, is_deleted=fields.get("wish") is PowerWish.DELETED)
    _require_settled(site, vm)
    changed = replace(vm, request_id=current_request_id(), **fields)  # type: ignore[arg-type]
    await site.save(changed)
    site.announce("vm", vm.vm_id, what, f"{vm.name}: {what}")
    return show(site, changed)


async def start_vm(site: Site, _principal: Principal, body: NameVm) -> Shown[Vm]:
    """Want a VM running."""
    vm = vm_of(site, body.iaas, body.vm)
    require_key(site, vm.iaas_id)
    return await _set(site, vm, "start", wish=PowerWish.RUNNING, failure="")


async def stop_vm(site: Site, _principal: Principal, body: NameVm) -> Shown[Vm]:
    """Want a VM stopped: asked by ACPI first, then forced."""
    vm = vm_of(site, body.iaas, body.vm)
    return await _set(site, vm, "stop", wish=PowerWish.STOPPED)


async def reboot_vm(site: Site, _principal: Principal, body: NameVm) -> Shown[Vm]:
    """Want a VM rebooted once."""
    vm = vm_of(site, body.iaas, body.vm)
    if vm.wish is not PowerWish.RUNNING:
        raise Conflict(f"{vm.name} is not meant to run", hint=f"nuage vm start {vm.name}")
    return await _set(site, vm, "reboot", reboot_count=vm.reboot_count + 1)


async def resize_vm(site: Site, _principal: Principal, body: ResizeVm) -> Shown[Vm]:
    """Change the shape of a VM; a running one takes it at its next start.

    Raises:
        Conflict: its node has not that much memory left.
    """
    vm = vm_of(site, body.iaas, body.vm)
    iaas = site.index.value(Iaas, vm.iaas_id)
    more_vcpus = max(0, body.shape.vcpu_count - vm.shape.vcpu_count)
    more_mib = max(0, body.shape.memory_mib - vm.shape.memory_mib)
    require_quota(site, iaas, asked=(0, more_vcpus, more_mib, 0))
    largest_mib = max((node.memory_mib for node in site.index.values(Node)), default=0)
    if 0 < largest_mib < body.shape.memory_mib:
        raise InvalidRequest(
            f"no node has {body.shape.memory_mib} MiB; the largest has {largest_mib}",
            field="memory_mib",
        )
    node = None if vm.node_id is None else site.index.find_value(Node, vm.node_id)
    if more_mib and node is not None and node.memory_mib:
        others = (v for v in site.index.values(Vm) if v.node_id == node.node_id)
        left_mib = node.memory_mib - sum(v.shape.memory_mib for v in others) + vm.shape.memory_mib
        if left_mib < body.shape.memory_mib:
            raise Conflict(
                f"{node.name} has {left_mib} MiB for {vm.name}, {body.shape.memory_mib} asked",
                hint="`nuage vm migrate` takes it to a node with more room, while it runs",
            )
    return await _set(site, vm, "resize", shape=body.shape)


async def rule_vm(site: Site, _principal: Principal, body: RuleVm) -> Shown[Vm]:
    """Change a VM's fence, ban and affinities; one that runs where it may not is moved by plan."""
    vm = vm_of(site, body.iaas, body.vm)
    changed: dict[str, tuple[str, ...]] = {}
    for rule, names in (("fence", body.fence), ("ban", body.ban)):
        if names is not None:
            changed[rule] = place_ids(site.index, names, rule=rule)
    for rule, names in (("near", body.near), ("apart", body.apart)):
        if names is not None:
            changed[rule] = tuple(vm_of(site, body.iaas, name).vm_id for name in names)
            if vm.vm_id in changed[rule]:
                raise InvalidRequest(f"{vm.name} cannot be {rule} to itself", field=rule)
    return await _set(site, vm, "rules", **changed)


async def delete_vm(site: Site, _principal: Principal, body: NameVm) -> Shown[Vm]:
    """Want a VM gone; its boot volume goes with it, other volumes are detached."""
    vm = vm_of(site, body.iaas, body.vm)
    return await _set(site, vm, "delete", wish=PowerWish.DELETED)


async def migrate_vm(site: Site, _principal: Principal, body: MigrateVm) -> CreatedVm:
    """Find a node for a running VM and send it there live."""
    vm, request, draft = await begun_anew(site, lambda: _begin_to_move(site, body))
    try:
        decision = await site.placer.place(request, draft)
    except NuageError:
        await site.save(replace(site.index.value(Vm, vm.vm_id), state=VmState.RUNNING))
        raise
    if decision.elected_site != site.site_id:
        with contextlib.suppress(NuageError):  # without a majority it is not granted either
            await claimed(site, vm.vm_id)  # now, not while the guest stands still
    told = waits_for(site, vm)
    leaving = replace(
        site.index.value(Vm, vm.vm_id),
        migrating_to=decision.elected,
        move_within_s=body.within_s,
        failure=told,
        downtime_ms=0.0,
    )
    await site.save_decision(decision, leaving, epoch=next_local(vm.epoch))
    site.announce("vm", vm.vm_id, "migrating", f"{vm.name} goes to {decision.elected}")
    return CreatedVm(vm=show(site, leaving), decision=decision)


async def _begin_to_move(site: Site, body: MigrateVm) -> tuple[Vm, VmRequest, ArrivalDraft]:
    """Note that a VM is to move; return it as it was, and what is asked for it."""
    vm = vm_of(site, body.iaas, body.vm)
    if vm.state is not VmState.RUNNING or vm.node_id is None:
        raise Conflict(f"{vm.name} is {vm.state.value}; only a running VM migrates live")
    if vm.migrating_to is not None:
        raise Conflict(f"{vm.name} is on its way to {vm.migrating_to} already")
    if not 0.0 <= body.within_s < math.inf:
        raise InvalidRequest("a time is 0 or more seconds", field="within_s")
    iaas = site.index.value(Iaas, vm.iaas_id)
    request = _request(site, iaas, vm, site_name=body.site, node_name=body.node, policy=body.policy)
    draft = ArrivalDraft(
        vm_id=vm.vm_id,
        source_site=site.site_id,
        source_node=vm.node_id,
        source_epoch=vm.epoch,
    )
    # MIGRATING first: the head then knows the initiators to come before the target logs in.
    await site.save(replace(vm, state=VmState.MIGRATING, failure=""))
    return vm, request, draft


async def read_console(site: Site, _principal: Principal, body: ReadConsole) -> ConsoleLog:
    """Fetch the end of a VM's console from the node it runs on."""
    vm = vm_of(site, body.iaas, body.vm)
    if body.bytes_max < 1:
        raise InvalidRequest("at least one byte is asked for", field="bytes_max")
    if vm.node_id is None:
        return ConsoleLog(text="", total_bytes=0)
    ask = ConsoleRequest(
        vm_id=vm.vm_id,
        bytes_max=min(body.bytes_max, CONSOLE_BYTES_MAX),
        after_bytes=body.after_bytes,
    )
    return await site.nodes.ask(
        vm.node_id, READ_METHOD, ask, ConsoleLog, timeout_s=NODE_ASK_TIMEOUT_S
    )


def port_of(site: Site, vm: Vm) -> Port:
    """Return the first port of a VM.

    Raises:
        NotFound: it has none.
    """
    for port in site.index.ports_of(vm):
        return port
    raise NotFound("port", f"of VM {vm.name}", hint="the VM was made without a network")


def vm_home(site: Site, body: NameVm | ResizeVm | RuleVm | MigrateVm | ReadConsole) -> SiteId:
    """Let the site where the VM runs answer."""
    return site.index.home("vm", vm_of(site, body.iaas, body.vm).vm_id)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    path = "/v1/iaas/{iaas}/vms"
    table.add(
        Operation(
            name="vm.list",
            verb="GET",
            path=path,
            body=ListVms,
            result=list[Shown[Vm]],
            action="vm.read",
            summary="List VMs",
            run=list_vms,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="vm.create",
            verb="POST",
            path=path,
            body=CreateVm,
            result=CreatedVm,
            action="vm.create",
            summary="Place and create a VM",
            run=create_vm,
            scope=iaas_scope,
            home=anywhere,
            status=202,
        )
    )
    table.add(
        Operation(
            name="vm.show",
            verb="GET",
            path=path + "/{vm}",
            body=NameVm,
            result=Shown[Vm],
            action="vm.read",
            summary="Show a VM",
            run=show_vm,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="vm.explain",
            verb="GET",
            path=path + "/{vm}/decision",
            body=NameVm,
            result=Decision,
            action="vm.explain",
            summary="Tell why a VM is where it is: scores and refusals",
            run=explain_vm,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    for name, run, summary in (
        ("start", start_vm, "Start a VM"),
        ("stop", stop_vm, "Stop a VM"),
        ("reboot", reboot_vm, "Reboot a VM"),
    ):
        table.add(
            Operation(
                name=f"vm.{name}",
                verb="POST",
                path=path + "/{vm}/" + name,
                body=NameVm,
                result=Shown[Vm],
                action="vm.power",
                summary=summary,
                run=run,
                scope=iaas_scope,
                home=vm_home,
                status=202,
                is_one_write=True,
            )
        )
    table.add(
        Operation(
            name="vm.resize",
            verb="PUT",
            path=path + "/{vm}/shape",
            body=ResizeVm,
            result=Shown[Vm],
            action="vm.write",
            summary="Change a VM's shape",
            run=resize_vm,
            scope=iaas_scope,
            home=vm_home,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="vm.rules",
            verb="PUT",
            path=path + "/{vm}/rules",
            body=RuleVm,
            result=Shown[Vm],
            action="vm.write",
            summary="Change where a VM may run: fence, ban, near, apart",
            run=rule_vm,
            scope=iaas_scope,
            home=vm_home,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="vm.migrate",
            verb="POST",
            path=path + "/{vm}/migrate",
            body=MigrateVm,
            result=CreatedVm,
            action="vm.migrate",
            summary="Move a running VM live, to another site if asked",
            run=migrate_vm,
            scope=iaas_scope,
            home=vm_home,
            status=202,
        )
    )
    table.add(
        Operation(
            name="vm.delete",
            verb="DELETE",
            path=path + "/{vm}",
            body=NameVm,
            result=Shown[Vm],
            action="vm.delete",
            summary="Delete a VM and its boot volume",
            run=delete_vm,
            scope=iaas_scope,
            home=vm_home,
            status=202,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="vm.console",
            verb="GET",
            path=path + "/{vm}/console",
            body=ReadConsole,
            result=ConsoleLog,
            action="vm.console",
            summary="Read the end of a VM's console",
            run=read_console,
            scope=iaas_scope,
            home=vm_home,
        )
    )
