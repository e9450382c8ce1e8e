"""Use cases on the copies of volumes: go on with what is left, replace one, move the head.

A volume whose disks are lost stands still until its owner accepts the loss: an empty disk never
passes for it.

Each is a decision of the owner, kept in the site's signed audit log as every change is. What
follows from it is taken step by step by the volume's home (`iaas.heads`).
"""

from dataclasses import dataclass, replace

from nuage.errors import Conflict, InvalidRequest, NotFound
from nuage.iaas.epochs import next_local
from nuage.iaas.heads import HeadKeeper, choose_place
from nuage.iaas.operations import Operation, OperationTable, Shown, iaas_scope
from nuage.iaas.showing import show
from nuage.iaas.site import Site
from nuage.iaas.volumes import volume_home, volume_of
from nuage.ids import NodeId, SiteId
from nuage.model.contract import AckPolicy
from nuage.model.iaas import Iaas
from nuage.model.volume import ReplicaPlace, Volume, VolumeState
from nuage.storage.heads import next_head, whole_copies
from nuage.trust.permissions import Principal

PAIR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DegradeVolume:
    """Go on without the copies that do not answer, or without that on node `without`."""

    iaas: str
    volume: str
    without: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceCopy:
    """Have another node keep a copy instead of `node`; `to` "": the best that may."""

    iaas: str
    volume: str
    node: str
    to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveVolume:
    """Open a volume's head at the copy on a node, or at a site."""

    iaas: str
    volume: str
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptLoss:
    """Go on with what the copies of a lost volume have, be it nothing."""

    iaas: str
    volume: str


def _require_ready(volume: Volume) -> None:
    if volume.state is not VolumeState.READY:
        raise Conflict(f"volume {volume.name} is {volume.state.value}")


def _require_settled(volume: Volume) -> None:
    _require_ready(volume)
    if volume.settled_epoch != volume.epoch or volume.without or volume.catching_up:
        raise Conflict(
            f"the copies of {volume.name} are being changed already",
            hint=f"`nuage volume show {volume.name}` tells how far that is",
        )


async def degrade_volume(site: Site, _principal: Principal, body: DegradeVolume) -> Shown[Volume]:
    """Go on with the copies that are left; the others are brought up to date once they answer."""
    volume = volume_of(site, body.iaas, body.volume)
    _require_ready(volume)
    keeper = HeadKeeper(site)
    gone = _gone(volume, keeper, body.without)
    if not gone:
        raise Conflict(
            f"every copy of {volume.name} answers",
            hint="name one with --without to go on without it all the same",
        )
    kept = replace(
        volume,
        without=tuple(dict.fromkeys((*volume.without, *gone))),
        catching_up=tuple(n for n in volume.catching_up if n not in gone),
        failure="",
    )
    left = [place for place in whole_copies(kept) if place.node_id not in gone]
    counted = volume.whole or tuple(place.node_id for place in volume.replicas)
    if volume.ack_policy is AckPolicy.ANY_2_OF_3 and len(left) < PAIR and len(counted) > PAIR:
        raise Conflict(
            f"the copy of {volume.name} that is left may lack what the other two acknowledged",
            hint="bring one of them back",
        )
    if volume.head in {place.node_id for place in left}:
        await site.save(replace(kept, epoch=next_local(volume.epoch)))
    else:
        place = next_head(kept, is_usable=keeper.is_usable, near=None)
        if place is None:
            raise Conflict(f"no copy of {volume.name} that is left may go on")
        await keeper.open_at(kept, place, "by decision, with what is left")
    told = f"{volume.name} goes on without {', '.join(gone)}, by decision"
    site.announce("volume", volume.volume_id, "degraded", told)
    return show(site, volume_of(site, body.iaas, body.volume))


def _gone(volume: Volume, keeper: HeadKeeper, without: str) -> list[NodeId]:
    left = [p.node_id for p in volume.replicas if p.node_id not in volume.without]
    if not without:
        return [node_id for node_id in left if not keeper.is_usable(node_id)]
    if without not in left:
        raise NotFound("copy", without, hint=f"there is {', '.join(left)}")
    return [NodeId(without)]


async def replace_copy(site: Site, _principal: Principal, body: ReplaceCopy) -> Shown[Volume]:
    """Make a copy elsewhere; the one on `node` goes once the new one has everything."""
    volume = volume_of(site, body.iaas, body.volume)
    node_id, wanted = NodeId(body.node), NodeId(body.to) if body.to else None
    if all(place.node_id != body.node for place in volume.replicas):
        raise NotFound("copy", body.node, hint=", ".join(p.node_id for p in volume.replicas))
    iaas = site.index.value(Iaas, volume.iaas_id)
    if volume.catching_up == (node_id,) and node_id not in volume.whole:
        await HeadKeeper(site).fill_elsewhere(volume, iaas, node_id, wanted=wanted)
        return show(site, volume_of(site, body.iaas, body.volume))
    _require_settled(volume)
    if node_id in volume.leaving:
        raise Conflict(f"the copy on {node_id} is being replaced already")
    leaving = replace(volume, leaving=(*volume.leaving, node_id))
    if body.node == volume.head and len(whole_copies(volume)) > 1:
        if wanted is not None:
            raise Conflict(
                f"the head of {volume.name} is on {body.node}",
                hint=f"`nuage volume move {volume.name} --to …` first, or leave --to out",
            )
        choose_place(site, iaas, leaving)  # refused here if there is none
        await site.save(leaving)  # the head moves first, then a copy is begun (`iaas.heads`)
        return show(site, volume_of(site, body.iaas, body.volume))
    await HeadKeeper(site).add_copy(leaving, iaas, node_id=wanted)
    return show(site, volume_of(site, body.iaas, body.volume))


async def move_volume(site: Site, _principal: Principal, body: MoveVolume) -> Shown[Volume]:
    """Move a volume's head to a copy that has everything; I/O waits for well below a second."""
    volume = volume_of(site, body.iaas, body.volume)
    _require_settled(volume)
    places = [p for p in whole_copies(volume) if body.to in (p.node_id, p.site_id)]
    if not places:
        there = ", ".join(f"{p.node_id} at {p.site_id}" for p in whole_copies(volume))
        raise InvalidRequest(
            f"{volume.name} has no whole copy at {body.to!r}; it has {there}",
            field="to",
            hint="`nuage volume replace-copy` makes one elsewhere",
        )
    place: ReplicaPlace = places[0]
    if place.node_id == volume.head:
        raise Conflict(f"the head of {volume.name} is on {place.node_id} already")
    keeper = HeadKeeper(site)
    near = keeper.vm_site(volume)
    if near is not None and near != place.site_id and _may_lead_at(volume, near):
        raise Conflict(
            f"a VM that uses {volume.name} runs at {near}, and the head stays near it",
            hint=f"`nuage vm migrate NAME --to {place.site_id}` takes the head along",
        )
    moved = await keeper.move_head(volume, place)
    return replace(show(site, volume), value=moved, epoch=moved.epoch)


def _may_lead_at(volume: Volume, site_id: SiteId) -> bool:
    return any(
        p.site_id == site_id and p.node_id not in volume.leaving for p in whole_copies(volume)
    )


async def accept_loss(site: Site, _principal: Principal, body: AcceptLoss) -> Shown[Volume]:
    """Have a lost volume go on with what its copies have."""
    volume = volume_of(site, body.iaas, body.volume)
    if volume.state is not VolumeState.LOST:
        raise Conflict(
            f"volume {volume.name} is {volume.state.value}, not lost",
            hint="`nuage volume degrade` goes on without copies that do not answer",
        )
    epoch = next_local(volume.epoch)
    await site.save(replace(volume, epoch=epoch, loss_accepted_epoch=epoch, failure=""))
    told = f"{volume.name} goes on with what its copies have: the loss is accepted"
    site.announce("volume", volume.volume_id, "loss-accepted", told)
    return show(site, volume_of(site, body.iaas, body.volume))


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    path = "/v1/iaas/{iaas}/volumes/{volume}"
    table.add(
        Operation(
            name="volume.degrade",
            verb="POST",
            path=path + "/degrade",
            body=DegradeVolume,
            result=Shown[Volume],
            action="volume.move",
            summary="Go on with the copies of a volume that are left",
            run=degrade_volume,
            scope=iaas_scope,
            home=volume_home,
            status=202,
        )
    )
    table.add(
        Operation(
            name="volume.replace-copy",
            verb="POST",
            path=path + "/replace-copy",
            body=ReplaceCopy,
            result=Shown[Volume],
            action="volume.move",
            summary="Replace one copy of a volume, online",
            run=replace_copy,
            scope=iaas_scope,
            home=volume_home,
            status=202,
        )
    )
    table.add(
        Operation(
            name="volume.move",
            verb="POST",
            path=path + "/move",
            body=MoveVolume,
            result=Shown[Volume],
            action="volume.move",
            summary="Move a volume's head to another of its copies, online",
            run=move_volume,
            scope=iaas_scope,
            home=volume_home,
            status=202,
        )
    )
    table.add(
        Operation(
            name="volume.accept-loss",
            verb="POST",
            path=path + "/accept-loss",
            body=AcceptLoss,
            result=Shown[Volume],
            action="volume.move",
            summary="Go on with what the copies of a lost volume have",
            run=accept_loss,
            scope=iaas_scope,
            home=volume_home,
            status=202,
            is_one_write=True,
        )
    )
