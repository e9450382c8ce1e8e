"""The disks of IO-nodes: who has which share of them, and what was lost. Known at their site."""

from dataclasses import dataclass, replace
from typing import Final

from nuage.iaas.operations import Operation, OperationTable, node_home, node_scope
from nuage.iaas.silent_nodes import SilentNode, silence_of
from nuage.iaas.site import Site
from nuage.ids import IaasId, NodeId, VolumeId
from nuage.model.desired import (
    AbsentDisk,
    IonodeReport,
    LostBlocks,
    ReplicaReport,
    RetiredCopy,
    ShareReport,
)
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Node
from nuage.model.status import NodeStatus
from nuage.model.vm import Vm
from nuage.model.volume import Volume
from nuage.trust.permissions import Principal
from nuage.units import format_size

NOTHING_LOST: Final = LostBlocks()


@dataclass(frozen=True, slots=True)
class NameNode:
    """Name a node by its id."""

    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldUp:
    """A volume whose copies do not move, why, and what would help."""

    volume: str
    iaas: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDetail:
    """A node, its last facts, and who has which share of its disks. `names` are of the IaaSes.

    `held_up` are the volumes whose copies do not move off it, each with the reason;
    `promised_bytes` the sizes of all with copies there, of `promise_bytes_max` at most. `silent`
    is what waits for an IO-node that does not answer.
    """

    node: Node
    status: NodeStatus | None
    vm_count: int
    copy_count: int
    shares: tuple[ShareReport, ...]
    names: dict[str, str]
    held_up: tuple[HeldUp, ...] = ()
    promised_bytes: int = 0
    promise_bytes_max: int = 0
    silent: SilentNode | None = None


async def show_node(site: Site, _principal: Principal, body: NameNode) -> NodeDetail:
    """Show a node of this site."""
    node = site.index.value(Node, body.node)
    report = site.ionodes_seen.get(node.node_id)
    shares = () if report is None else report.shares
    known = ((s.iaas_id, site.index.find_value(Iaas, s.iaas_id)) for s in shares)
    volumes = site.index.on_node(Volume, node.node_id)
    status = site.index.find_value(NodeStatus, node.node_id)
    return NodeDetail(
        node=node,
        status=status,
        vm_count=len(site.index.on_node(Vm, node.node_id)),
        copy_count=len(volumes),
        shares=shares,
        names={iaas_id: iaas.name for iaas_id, iaas in known if iaas is not None},
        held_up=tuple(_held_up(site, volume) for volume in volumes if volume.held_up),
        promised_bytes=site.index.promises.on(node.node_id),
        promise_bytes_max=0 if status is None else status.promise_bytes_max,
        silent=silence_of(site, node),
    )


def _held_up(site: Site, volume: Volume) -> HeldUp:
    iaas = site.index.find_value(Iaas, volume.iaas_id)
    name = volume.iaas_id if iaas is None else iaas.name
    return HeldUp(volume=volume.name, iaas=name, reason=volume.held_up)


def note_report(site: Site, report: IonodeReport) -> None:
    """Keep what an IO-node of this site says, and announce what has been lost on its disks."""
    before = site.ionodes_seen.get(report.node_id)
    known = {} if before is None else {r.volume_id: r for r in before.replicas}
    replicas = tuple(_as_known(r, known.get(r.volume_id)) for r in report.replicas)
    _announce_absent(site, report, () if before is None else before.absent_disks)
    _announce_outdated(site, report, () if before is None else before.outdated)
    site.ionodes_seen[report.node_id] = replace(report, replicas=replicas)
    for replica in replicas:
        former = known.get(replica.volume_id)
        was = NOTHING_LOST if former is None else former.lost or NOTHING_LOST
        now = replica.lost or NOTHING_LOST
        if now.block_count > was.block_count or now.segment_count > was.segment_count:
            _announce_loss(site, report.node_id, replica.volume_id, now)
        kept_bytes = 0 if former is None else former.quarantine_bytes or 0
        if (replica.quarantine_bytes or 0) > kept_bytes:
            _announce_quarantine(site, report.node_id, replica)
        _announce_retired(site, report.node_id, replica, () if former is None else former.retired)


def _as_known(replica: ReplicaReport, former: ReplicaReport | None) -> ReplicaReport:
    """Return it with what cannot be told now as it was."""
    if former is None:
        return replica
    kept_bytes = replica.quarantine_bytes
    return replace(
        replica,
        lost=former.lost if replica.lost is None else replica.lost,
        quarantine_bytes=former.quarantine_bytes if kept_bytes is None else kept_bytes,
    )


def _announce_absent(site: Site, report: IonodeReport, before: tuple[AbsentDisk, ...]) -> None:
    node = report.node_id
    known = site.index.find_value(Node, node)
    lost = {disk.loss.disk_serial for disk in (() if known is None else known.lost_disks)}
    fresh = set(report.absent_disks) - set(before)
    for disk in sorted(fresh, key=lambda disk: disk.serial):
        told = f"disk {disk.name} ({disk.serial}) of {node}: {disk.reason}"
        if disk.serial in lost:
            help_text = f"take it out, or wipe it: `nuage node disk-erase {node} {disk.serial}`"
            site.announce("node", node, "lost-disk-back", f"{told}; {help_text}")
        elif disk.is_back:
            site.announce("node", node, "disk-back", told)
        else:
            help_text = f"lost for good? `nuage node disk-lost {node} {disk.serial}`"
            site.announce("node", node, "disk-away", f"{told}; {help_text}")
    names = {disk.serial: disk.name for disk in report.disks}
    for disk in before:
        if disk.serial in names:
            text = f"disk {names[disk.serial]} ({disk.serial}) of {node} is in service again"
            site.announce("node", node, "disk-back", text)


def _announce_loss(site: Site, node_id: NodeId, volume_id: VolumeId, lost: LostBlocks) -> None:
    volume = site.index.find_value(Volume, volume_id)
    name = volume_id if volume is None else volume.name
    parts = []
    if lost.block_count:
        parts.append(
            f"{lost.block_count} blocks of 4 KiB are lost: they rotted and no copy has them"
        )
    if lost.segment_count:
        parts.append(f"{lost.segment_count} segments cannot be read: replace the copy")
    text = f"{name} on {node_id}: {'; '.join(parts)} (nuage volume show {name})"
    site.announce("volume", volume_id, "blocks-lost", text)


def _announce_quarantine(site: Site, node_id: NodeId, replica: ReplicaReport) -> None:
    volume = site.index.find_value(Volume, replica.volume_id)
    name = replica.volume_id if volume is None else volume.name
    text = (
        f"{name} on {node_id}: {format_size(replica.quarantine_bytes or 0)} of its log, refused by "
        "a newer head or damaged, is kept aside; it is erased once the copy was read whole without "
        f"damage and another one is there: now by `nuage volume scrub {name}`"
    )
    site.announce("volume", replica.volume_id, "quarantine-kept", text)


def _announce_outdated(site: Site, report: IonodeReport, before: tuple[IaasId, ...]) -> None:
    node = report.node_id
    for iaas_id in sorted(set(report.outdated) - set(before)):
        iaas = site.index.find_value(Iaas, iaas_id)
        name = iaas_id if iaas is None else iaas.name
        text = (
            f"disks of {node} have changed, and the storage daemon of {name} there serves volumes: "
            "it takes them in once it serves none; or end it there: it starts again at once"
        )
        site.announce("node", node, "disk-waits", text)


def _announce_retired(
    site: Site, node_id: NodeId, replica: ReplicaReport, before: tuple[RetiredCopy, ...]
) -> None:
    volume = site.index.find_value(Volume, replica.volume_id)
    name = replica.volume_id if volume is None else volume.name
    for copy in sorted(set(replica.retired) - set(before), key=lambda copy: copy.since_s):
        text = (
            f"{name} on {node_id}: a second copy came back with disk {copy.disk}; the one on "
            f"{replica.disk} goes on, the other is kept aside until that one is proven whole"
        )
        if copy.disk == replica.disk:
            text = (
                f"{name} on {node_id}: its copy on disk {copy.disk} cannot be read (the storage "
                "daemon's log says why) and is kept aside; it is made anew from another copy"
            )
        site.announce("volume", replica.volume_id, "copy-retired", text)
    for copy in sorted(set(before) - set(replica.retired), key=lambda copy: copy.since_s):
        text = (
            f"{name} on {node_id}: the copy that was kept aside on disk {copy.disk} is erased; the "
            f"one on {replica.disk} is proven whole"
        )
        site.announce("volume", replica.volume_id, "retired-erased", text)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="node.show",
            verb="GET",
            path="/v1/nodes/{node}",
            body=NameNode,
            result=NodeDetail,
            action="node.read",
            summary="Show a node, its disks, and who has which share of them",
            run=show_node,
            scope=node_scope,
            home=node_home,
        )
    )
