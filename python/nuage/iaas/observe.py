"""What nodes report → what becomes of the records. Pure: index and report in, acts out.

Only the home of a record acts on it; a report changes nothing unless it says something new.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

from nuage.iaas.epochs import next_local
from nuage.iaas.index import FederationIndex
from nuage.iaas.movement import Whereabouts
from nuage.ids import NodeId, SiteId, VmId
from nuage.model.desired import HeadReport, IonodeReport, VmReport, VnodeReport
from nuage.model.infrastructure import Node, NodePower
from nuage.model.record import Noun
from nuage.model.status import DiskStatus, Migration, NodeStatus, SpaceAlarm, space_alarm
from nuage.model.vm import PowerWish, Vm, VmState
from nuage.model.volume import Volume, VolumeState
from nuage.storage.heads import head_set, is_settled
from nuage.units import format_size

HEAD_READY = "ready"
HEAD_FAILED = "failed"
ALARMS = tuple(SpaceAlarm)  # the worst last
FREE_CHANGE_MIN = 0.01  # of the disk; smaller changes of free space are not worth a record


@dataclass(frozen=True, slots=True)
class Save:
    """Write a record of this site; `text` is the line for the event stream, "" for none."""

    value: Noun
    what: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Remove:
    """A VM is gone from its node: remove it and what was its own."""

    vm_id: VmId


@dataclass(frozen=True, slots=True)
class Grant:
    """The target waits for the VM's memory: promise it, then let the source switch."""

    vm_id: VmId


@dataclass(frozen=True, slots=True)
class Take:
    """The VM runs at its target: enter it here under its new epoch."""

    vm_id: VmId


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A migration failed, or is being given up (`reason` ""): the VM stays unless it has gone.

    `source` is what its node says, having taken the wish `revision`.
    """

    vm_id: VmId
    reason: str
    source: Whereabouts
    revision: int


@dataclass(frozen=True, slots=True)
class Departed:
    """The source has handed over; QEMU's own figure of the guest's pause."""

    vm_id: VmId
    downtime_ms: float


Act: TypeAlias = Save | Remove | Grant | Take | GiveUp | Departed


def vnode_acts(index: FederationIndex, report: VnodeReport) -> list[Act]:
    """Return what a V-node's report makes this site do."""
    acts: list[Act] = []
    for seen in report.vms:
        vm = index.find_value(Vm, seen.vm_id)
        if seen.orphan and vm is not None and seen.migrated and seen.downtime_ms:
            acts.append(Departed(vm.vm_id, seen.downtime_ms))  # the wish was quicker than its word
        if seen.orphan or vm is None:
            continue
        migration = index.find_value(Migration, seen.vm_id)
        if migration is not None and migration.target_node == report.node_id:
            acts += _arrival_acts(vm, migration, seen)
        elif seen.migrated:
            acts.append(Departed(vm.vm_id, seen.downtime_ms))
            if index.home("vm", vm.vm_id) == index.site_id:
                acts += _left_acts(vm, migration, report.wish_revision)
        elif vm.node_id == report.node_id and index.home("vm", vm.vm_id) == index.site_id:
            acts += _vm_acts(vm, migration, _named(index, vm, seen), report.wish_revision)
    return acts


def _named(index: FederationIndex, vm: Vm, seen: VmReport) -> VmReport:
    """Return what a node says of a VM with its volumes' names: nodes know ids only."""
    if not seen.failure:
        return seen
    failure = seen.failure
    for volume_id in vm.volumes:
        volume = index.find_value(Volume, volume_id)
        if volume is not None:
            failure = failure.replace(volume_id, volume.name)
    return replace(seen, failure=failure)


def _left_acts(vm: Vm, migration: Migration | None, revision: int) -> list[Act]:
    """The VM has left its source; what came of it at its target may have ended at once."""
    if vm.is_let_go:  # nothing of it is here any more: its target may start it, or runs it
        return [] if vm.state is VmState.STOPPED else [Save(replace(vm, state=VmState.STOPPED))]
    if vm.migrating_to is None or migration is None or not migration.failure:
        return []
    return [GiveUp(vm.vm_id, f"target: {migration.failure}", Whereabouts.GONE, revision)]


def _arrival_acts(vm: Vm, migration: Migration, seen: VmReport) -> list[Act]:
    if seen.state is VmState.RUNNING and seen.epoch == migration.target_epoch:
        return [Take(vm.vm_id)]
    changed = replace(
        migration,
        address=seen.migration_address or migration.address,
        failure=seen.failure or migration.failure,
    )
    return [] if changed == migration else [Save(changed)]


def _vm_acts(vm: Vm, migration: Migration | None, seen: VmReport, revision: int) -> list[Act]:
    if seen.epoch != vm.epoch:
        return []  # the node has not taken the newest wish yet
    if seen.state is VmState.DELETED:
        return [Remove(vm.vm_id)] if vm.wish is PowerWish.DELETED else []
    if vm.migrating_to is not None:
        return _departure_acts(vm, migration, seen, revision)
    if vm.state is VmState.MIGRATING:
        return []  # placement of its target is under way
    known = (vm.state, vm.failure, vm.disk_slots, vm.restart_count)
    if known == (seen.state, seen.failure, seen.disk_slots, seen.restart_count):
        return []  # as most are in most reports
    changed = replace(
        vm, state=seen.state, failure=seen.failure, disk_slots=seen.disk_slots,
        restart_count=seen.restart_count,
    )  # fmt: skip
    if seen.restart_count > vm.restart_count:
        text = f"{vm.name} had ended, unasked, and is started anew"
        return [Save(changed, "restarted", text)]
    text = f"{vm.name} is {seen.state.value}" + (f": {seen.failure}" if seen.failure else "")
    return [Save(changed, seen.state.value, text)]


def _departure_acts(
    vm: Vm, migration: Migration | None, seen: VmReport, revision: int
) -> list[Act]:
    if vm.is_let_go:
        ended = seen.state in (VmState.STOPPED, VmState.FAILED) or seen.is_lost
        changed = replace(vm, state=VmState.STOPPED) if ended else vm
        return [] if changed == vm else [Save(changed)]
    source = Whereabouts.HERE
    if seen.state is VmState.MIGRATING:
        source = Whereabouts.GONE if seen.is_lost else Whereabouts.LEAVING
    reason = seen.failure
    if not reason and migration is not None and migration.failure:
        reason = f"target: {migration.failure}"
    if not reason and seen.state in (VmState.STOPPED, VmState.FAILED):
        reason = f"the VM is {seen.state.value} at its source"
    acts: list[Act] = [GiveUp(vm.vm_id, reason, source, revision)]
    if not reason and migration is not None and migration.address:
        acts.append(Grant(vm.vm_id))
    return acts


def ionode_acts(index: FederationIndex, report: IonodeReport) -> list[Act]:
    """Return what an IO-node's report makes this site do to volumes."""
    acts: list[Act] = []
    for head in report.heads:
        volume = index.find_value(Volume, head.volume_id)
        if volume is None or volume.head != report.node_id or volume.epoch != head.epoch:
            continue
        if index.home("volume", volume.volume_id) == index.site_id:
            acts += _volume_acts(index, volume, head)
    return acts


def _volume_acts(index: FederationIndex, volume: Volume, head: HeadReport) -> list[Act]:
    if index.is_shredded(volume.iaas_id):
        return []  # of a head that has not heard of it yet; `iaas.heads` says how it stands
    if head.state == HEAD_READY and head.portal:
        if is_settled(volume) and (volume.portal, volume.failure) == (head.portal, ""):
            return []  # as most are in most reports
        changed = replace(volume, state=VolumeState.READY, portal=head.portal, failure="")
        if volume.settled_epoch != volume.epoch:
            asked = head_set(volume)
            changed = replace(
                changed,
                settled_epoch=volume.epoch,
                settled_policy=asked.policy,
                whole=asked.acknowledging,
            )
        text = f"volume {volume.name} is ready"
    elif head.lacks_origin and volume.image_id is not None and not volume.whole:
        changed = replace(volume, origin=None, epoch=next_local(volume.epoch))
        text = f"volume {volume.name} is filled from its image: its template is not there"
    elif head.state == HEAD_FAILED:
        state = VolumeState.FAILED if volume.state is VolumeState.CREATING else volume.state
        state = VolumeState.LOST if head.is_lost else state
        # That nobody may take over is said behind it (`iaas.heads`); it stays as the reason does.
        is_known = volume.failure.startswith(f"{head.failure};")
        changed = replace(volume, state=state, failure=volume.failure if is_known else head.failure)
        text = f"volume {volume.name}: {head.failure}"
    else:
        return []
    if changed == volume:
        return []
    acts: list[Act] = [Save(changed, changed.state.value, text)]
    vm = None if volume.vm_id is None else index.find_value(Vm, volume.vm_id)
    waits = vm is not None and vm.state is VmState.STARTING and vm.failure != changed.failure
    if vm is not None and waits and index.home("vm", vm.vm_id) == index.site_id:
        told = f"waits for {volume.name}: {changed.failure}" if changed.failure else ""
        acts.append(Save(replace(vm, failure=told)))
    return acts


def node_status(
    index: FederationIndex,
    node_id: NodeId,
    *,
    connected: bool,
    now_s: float,
    restarting: bool = False,
    vnode: VnodeReport | None = None,
    ionode: IonodeReport | None = None,
) -> list[Act]:
    """Return the act that keeps a node's status record true, or none when it is."""
    known = index.find_value(NodeStatus, node_id)
    site_id = SiteId(index.site_id)
    before = known or NodeStatus(node_id=node_id, site_id=site_id, connected=False, since_s=0.0)
    after = before  # as most are after most reports
    if known is None or before.connected != connected:
        after = replace(after, connected=connected, since_s=now_s)
    if before.restarting != restarting:
        after = replace(after, restarting=restarting)
    if vnode is not None:
        orphans = tuple(sorted(seen.vm_id for seen in vnode.vms if _is_orphan(seen)))
        accelerator = vnode.estimate.accelerator
        if (before.accelerator, before.orphans) != (accelerator, orphans):
            after = replace(after, accelerator=accelerator, orphans=orphans)
        if before.unreadable != vnode.unreadable:
            after = replace(after, unreadable=vnode.unreadable)
    if ionode is not None:
        if before.replica_addresses != ionode.replica_addresses:
            after = replace(after, replica_addresses=ionode.replica_addresses)
        if before.portals != ionode.portals:
            after = replace(after, portals=ionode.portals)
        if before.daemon_versions != ionode.daemon_versions:
            after = replace(after, daemon_versions=ionode.daemon_versions)
        disks = _disks(before.disks, ionode)
        if disks != before.disks:
            after = replace(
                after,
                disks=disks,
                free_bytes=sum(disk.free_bytes for disk in disks),
                total_bytes=sum(disk.total_bytes for disk in disks),
                alarm=max((disk.alarm for disk in disks), key=ALARMS.index, default=ALARMS[0]),
            )
        if before.overcommit_ratio != ionode.overcommit_ratio:
            after = replace(after, overcommit_ratio=ionode.overcommit_ratio)
        left_bytes = after.promise_bytes_max - index.promises.on(node_id)
        alarm = space_alarm(before.promise_alarm, left_bytes, after.promise_bytes_max)
        if before.promise_alarm is not alarm:
            after = replace(after, promise_alarm=alarm)
    if after is known:
        return []
    return [Save(after, *_status_line(index, before, after, is_new=known is None))]


def _disks(before: tuple[DiskStatus, ...], report: IonodeReport) -> tuple[DiskStatus, ...]:
    """Return how the disks stand, as they stood before where little has changed."""
    known = {disk.name: disk for disk in before}
    disks = []
    for seen in report.disks:
        was = known.get(seen.name)
        alarm = SpaceAlarm.NONE if was is None else was.alarm
        now = DiskStatus(
            name=seen.name,
            disk_class=seen.disk_class,
            free_bytes=seen.free_bytes,
            total_bytes=seen.total_bytes,
            capacity=seen.capacity,
            for_bases=seen.for_bases,
            alarm=space_alarm(alarm, seen.free_bytes, seen.total_bytes),
        )
        if was is not None and now != was:
            moved = abs(was.free_bytes - seen.free_bytes)
            is_little = moved <= FREE_CHANGE_MIN * seen.total_bytes
            now = was if is_little and replace(now, free_bytes=was.free_bytes) == was else now
        disks.append(now)
    return tuple(disks)


def _is_orphan(seen: VmReport) -> bool:
    """Tell whether a VM runs on a node that should not run it.

    What was handed over is in no wish for the moment that its process takes to end.
    """
    runs = seen.state in (VmState.RUNNING, VmState.STARTING, VmState.STOPPING, VmState.MIGRATING)
    return seen.orphan and runs and not seen.migrated


def _status_line(
    index: FederationIndex, before: NodeStatus, after: NodeStatus, *, is_new: bool
) -> tuple[str, str]:
    node = index.find_value(Node, after.node_id)
    name = after.node_id if node is None else node.name
    fresh = sorted(set(after.orphans) - set(before.orphans))
    if fresh:
        return "orphans", f"node {name} runs what it should not: {', '.join(fresh)}; left running"
    fresh = sorted(set(after.unreadable) - set(before.unreadable))
    if fresh:
        told = f"node {name} cannot read what it kept of {', '.join(fresh)}"
        return "unreadable", f"{told}: see guests/ID/guest.json in its state_dir; left as it is"
    alarms = {disk.name: disk.alarm for disk in before.disks}
    changed = [
        disk for disk in after.disks if disk.alarm is not alarms.get(disk.name, SpaceAlarm.NONE)
    ]
    lines = [_space_line(name, disk) for disk in changed]
    if before.promise_alarm is not after.promise_alarm:
        lines.append(_promise_line(name, after, index.promises.on(after.node_id)))
    if lines:
        return "space", "; ".join(lines)
    if is_new or before.connected != after.connected:
        sleeps = node is not None and node.power is NodePower.OFF
        word = "connected" if after.connected else "off" if sleeps else "lost"
        return word, f"node {name} is {word}"
    if before.restarting != after.restarting:
        word = "restarting" if after.restarting else "back"
        return word, f"the agent of node {name} is {word}"
    return "", ""


def _promise_line(name: str, status: NodeStatus, promised_bytes: int) -> str:
    promised = f"{format_size(promised_bytes)} of {format_size(status.promise_bytes_max)}"
    told = f"of node {name} {promised} are promised to volumes"
    if status.promise_alarm is SpaceAlarm.NONE:
        return f"{told}: it takes more again"
    soon = "soon takes" if promised_bytes < status.promise_bytes_max else "takes"
    help_text = "add disks or IO-nodes, or raise its overcommit_ratio"
    return f"{told}: it {soon} no new ones; {help_text}"


def _space_line(name: str, disk: DiskStatus) -> str:
    free = f"{format_size(disk.free_bytes)} of {format_size(disk.total_bytes)} are free"
    told = f"{disk.name} ({disk.disk_class.value}) of node {name}"
    if disk.alarm is SpaceAlarm.NONE:
        return f"disk {told} has space again: {free}"
    help_text = "add disks, shorten journals, or move copies away"
    return f"disk {told} is {disk.alarm.value} on space: {free}; {help_text}"
