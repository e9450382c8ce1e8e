"""Disks that will not come back: somebody says so, and what lay there gets its end in the ledger.

A node cannot tell a disk that is lost from one that is away, so a person has to. The word is signed
by the site, stands in the node's record, travels with its wish, and goes into the receipt of each
segment that the node then tells as lost (`ionode.losses`).
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from nuage.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unavailable
from nuage.iaas.disks import NameNode
from nuage.iaas.operations import Operation, OperationTable, node_home, node_scope
from nuage.iaas.provenance import shelf_of
from nuage.iaas.site import Site
from nuage.ids import NodeId
from nuage.ionode.receipts import ReceiptBatch
from nuage.model.desired import AbsentDisk
from nuage.model.infrastructure import DiskLoss, LostDisk, Node, NodeRole
from nuage.model.status import NodeStatus
from nuage.trust.ledger_index import OnDisk
from nuage.trust.permissions import Principal

STILL_OPEN: Final = "told within a minute, once no storage daemon has it open: reboot the node"


@dataclass(frozen=True, slots=True)
class NameDisk:
    """Name a disk of an IO-node, by what receipts call it."""

    node: NodeId
    serial: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskStanding:
    """How a disk stands: `state` is ``in service``, ``away``, ``back``, ``lost`` or ``erased``.

    By the site's ledgers `segment_count` segments of `volume_count` volumes lie there, and
    `lost_count` were lost with it. `name` is its place ("": not known), `reason` why it is not in
    service. `declared_by` and `declared_s`: it was declared lost; `erase`: it is to be erased.
    """

    serial: str
    state: str
    name: str = ""
    reason: str = ""
    segment_count: int = 0
    volume_count: int = 0
    lost_count: int = 0
    declared_by: str = ""
    declared_s: float = 0.0
    erase: bool = False


async def list_disks(site: Site, _principal: Principal, body: NameNode) -> list[DiskStanding]:
    """Show the disks that an IO-node has, had, and lost.

    Raises:
        InvalidRequest: it is no IO-node.
    """
    return await _standings(site, _ionode(site, body.node))


async def _standings(site: Site, node: Node) -> list[DiskStanding]:
    held = await asyncio.to_thread(shelf_of(site).disks_of, node.node_id)
    report = site.ionodes_seen.get(node.node_id)
    serving = {} if report is None else {disk.serial: disk.name for disk in report.disks}
    absent = {} if report is None else {disk.serial: disk for disk in report.absent_disks}
    lost = {disk.loss.disk_serial: disk for disk in node.lost_disks}
    return [
        standing_of(
            serial,
            on_disk=held.get(serial, OnDisk()),
            serving_as=serving.get(serial),
            absent=absent.get(serial),
            word=lost.get(serial),
        )
        for serial in sorted({*held, *serving, *absent, *lost} - {""})
    ]


def standing_of(
    serial: str,
    *,
    on_disk: OnDisk,
    serving_as: str | None,
    absent: AbsentDisk | None,
    word: LostDisk | None,
) -> DiskStanding:
    """Return how a disk stands.

    By what the ledgers say of it, the place where it is in service, why it is not, and somebody's
    word that it is lost.
    """
    state, name, reason = "away", "", ""
    if serving_as is not None:
        state, name = "in service", serving_as
    elif absent is not None:
        state, name, reason = "back" if absent.is_back else "away", absent.name, absent.reason
    if word is not None and state == "away":
        is_over = word.erase and not (on_disk.segment_count or on_disk.lost_count)
        state = "erased" if is_over else "lost"
        reason = STILL_OPEN if on_disk.segment_count else ""
    return DiskStanding(
        serial=serial,
        state=state,
        name=name,
        reason=reason,
        segment_count=on_disk.segment_count,
        volume_count=on_disk.volume_count,
        lost_count=on_disk.lost_count,
        declared_by="" if word is None else word.loss.declared_by,
        declared_s=0.0 if word is None else word.loss.time_ms / 1000,
        erase=word is not None and word.erase,
    )


async def declare_lost(site: Site, principal: Principal, body: NameDisk) -> DiskStanding:
    """Take a person's word for it that a disk is lost for good.

    Raises:
        NotFound: nobody knows such a disk of this node.
        Conflict: it answers.
        Unavailable: the node does not answer, which alone can tell.
    """
    node = _ionode(site, body.node)
    standing = await _require_disk(site, node, body.serial)
    if standing.declared_by:
        return standing
    status = site.index.find_value(NodeStatus, node.node_id)
    report = site.ionodes_seen.get(node.node_id)
    if report is not None and not all(disk.serial for disk in report.disks):
        raise Unavailable(
            f"the agent of {node.name} is too old to say which of its disks answer",
            hint="bring it up to date first",
        )
    if report is None or status is None or not status.connected:
        raise Unavailable(
            f"{node.name} does not answer, and it alone can tell whether disk {body.serial} does",
            hint="start it first; a node that is gone with its disks: `nuage node revoke`",
        )
    if standing.state in ("in service", "back"):
        raise Conflict(
            f"disk {body.serial} of {node.name} answers: {standing.reason or standing.state}",
            hint="take it out first; what it holds is gone for the ledger from then on",
        )
    loss = DiskLoss(
        site_id=site.site_id,
        node_id=node.node_id,
        disk_serial=body.serial,
        declared_by=principal.name,
        time_ms=int(site.clock.now_s() * 1000),
    )
    signed = LostDisk(loss=shelf_of(site).sign_loss(loss))
    await site.save(replace(node, lost_disks=(*node.lost_disks, signed)))
    text = (
        f"{principal.name} declared disk {body.serial} of {node.name} lost:"
        f" {standing.segment_count} segments of {standing.volume_count} volumes lay there"
    )
    site.announce("node", node.node_id, "disk-lost", text)
    return await _require_disk(site, site.index.value(Node, node.node_id), body.serial)


async def erase_disk(site: Site, principal: Principal, body: NameDisk) -> DiskStanding:
    """Have all erased that lies on a disk that was declared lost and is back.

    Raises:
        NotFound: nobody knows such a disk of this node.
        Conflict: it was not declared lost.
    """
    node = _ionode(site, body.node)
    standing = await _require_disk(site, node, body.serial)
    if not standing.declared_by:
        raise Conflict(
            f"disk {body.serial} of {node.name} was not declared lost: it holds what is in use",
            hint=f"what it holds counts as kept; `nuage node drain {node.name}` moves it elsewhere",
        )
    lost_disks = tuple(
        replace(disk, erase=disk.erase or disk.loss.disk_serial == body.serial)
        for disk in node.lost_disks
    )
    await site.save(replace(node, lost_disks=lost_disks))
    text = f"{principal.name} has disk {body.serial} of {node.name}, which was lost, erased"
    site.announce("node", node.node_id, "disk-erase", text)
    return replace(standing, erase=True)


async def _require_disk(site: Site, node: Node, serial: str) -> DiskStanding:
    standings = {standing.serial: standing for standing in await _standings(site, node)}
    if serial not in standings:
        known = ", ".join(standings) or "none"
        raise NotFound("disk", serial, hint=f"known of {node.name}: {known}")
    return standings[serial]


def _ionode(site: Site, node_id: NodeId) -> Node:
    node = site.index.value(Node, node_id)
    if NodeRole.IONODE not in node.roles:
        raise InvalidRequest(f"{node.name} is no IO-node", field="node")
    return node


def require_declared(site: Site, batch: ReceiptBatch) -> None:
    """Raise Forbidden unless all that a batch tells as lost was declared lost here."""
    for receipt in batch.receipts:
        if receipt.declaration is None:
            continue
        node = site.index.value(Node, receipt.node_id)
        if all(disk.loss != receipt.declaration for disk in node.lost_disks):
            raise Forbidden(f"disk {receipt.disk_serial} of {node.name} was not declared lost")


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="node.disks",
            verb="GET",
            path="/v1/nodes/{node}/disks",
            body=NameNode,
            result=list[DiskStanding],
            action="node.read",
            summary="Show the disks that an IO-node has, had and lost, and what lies on each",
            run=list_disks,
            scope=node_scope,
            home=node_home,
        )
    )
    table.add(
        Operation(
            name="node.disk-lost",
            verb="POST",
            path="/v1/nodes/{node}/disk-lost",
            body=NameDisk,
            result=DiskStanding,
            action="node.maintain",
            summary="Say that a disk is lost for good: the ledger tells what was lost with it",
            run=declare_lost,
            scope=node_scope,
            home=node_home,
        )
    )
    table.add(
        Operation(
            name="node.disk-erase",
            verb="POST",
            path="/v1/nodes/{node}/disk-erase",
            body=NameDisk,
            result=DiskStanding,
            action="node.maintain",
            summary="Erase a disk that was declared lost and is back",
            run=erase_disk,
            scope=node_scope,
            home=node_home,
        )
    )
