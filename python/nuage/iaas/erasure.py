"""Deleting for good: by the explicit word of a volume's home, node by node, and never by absence.

A copy that is in no wish is kept. What shall go stands in an `Erasure`, which the home enters along
with the deletion and which travels with the feeds. Each node named in it erases its copy and
reports so; its site tells the home, which strikes it out. The record is gone with the last one,
and with the last record of a volume that was deleted: a former home has one until it hears where
the volume went, and would else take it for the truth, with copies that are gone.
"""

from dataclasses import dataclass, replace

from nuage.catalogue.codec import id_of, kind_of
from nuage.catalogue.store import ABSENT, Delete, Put
from nuage.errors import NotFound
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import Site, begun_anew
from nuage.ids import NodeId, VolumeId
from nuage.model.desired import IonodeReport
from nuage.model.iaas import Iaas
from nuage.model.record import Noun
from nuage.model.volume import Erasure, ReplicaPlace, Volume

ERASED_METHOD = "volume.erased"
ASK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyErased:
    """Tells the home of an erasure that a node has erased its copy."""

    volume_id: VolumeId
    node_id: NodeId


def erasure_of(
    site: Site, volume: Volume, places: tuple[ReplicaPlace, ...], *, is_deleted: bool
) -> Put:
    """Return the change that has `places` erased, with what was to be erased already."""
    known = site.index.find("erasure", volume.volume_id)
    mine = known is not None and known.home == site.site_id
    before = known.value if known is not None else None
    old = before.places if isinstance(before, Erasure) and mine else ()
    iaas = site.index.find_value(Iaas, volume.iaas_id)
    erasure = Erasure(
        volume_id=volume.volume_id,
        iaas_id=volume.iaas_id,
        name=volume.name,
        label=0 if iaas is None else iaas.label,
        places=tuple(dict.fromkeys((*old, *places))),
        is_deleted=is_deleted,
        volume_epoch=volume.epoch,
    )
    return Put(value=erasure, expected=known.revision if known is not None and mine else ABSENT)


async def delete_with_copies(site: Site, *values: Noun) -> None:
    """Delete this site's records of `values`; the copies of volumes among them are erased."""
    changes: list[Put | Delete] = []
    for value in values:
        changes.append(Delete(kind=kind_of(value), id=id_of(value)))
        if isinstance(value, Volume) and value.replicas:
            changes.append(erasure_of(site, value, value.replicas, is_deleted=True))
    await site.commit(changes)


def is_gone(index: FederationIndex, volume: Volume) -> bool:
    """Tell whether a volume was deleted, though some site still has a record of it."""
    erasure = index.find_value(Erasure, volume.volume_id)
    return erasure is not None and erasure.is_deleted and volume.epoch <= erasure.volume_epoch


def erased_copies(index: FederationIndex, node_id: NodeId) -> list[Erasure]:
    """Return the erasures that name a node whose copy no living volume names."""
    found = []
    for erasure in index.on_node(Erasure, node_id):
        volume = index.find_value(Volume, erasure.volume_id)
        kept = volume is not None and not is_gone(index, volume)
        if not kept or all(place.node_id != node_id for place in volume_places(volume)):
            found.append(erasure)
    return found


def volume_places(volume: Volume | None) -> tuple[ReplicaPlace, ...]:
    """Return where the copies of a volume are, none when there is no volume."""
    return () if volume is None else volume.replicas


async def take_report(site: Site, report: IonodeReport) -> None:
    """Strike out what a node of this site has erased, here or at the erasure's home."""
    for volume_id in report.erased:
        erasure = site.index.find_value(Erasure, volume_id)
        if erasure is None or all(p.node_id != report.node_id for p in erasure.places):
            continue
        done = CopyErased(volume_id=volume_id, node_id=report.node_id)
        home = site.index.home("erasure", volume_id)
        if home == site.site_id:
            await copy_erased(site, done)
        else:
            await site.others.ask(home, ERASED_METHOD, done, type(None), timeout_s=ASK_TIMEOUT_S)


async def copy_erased(site: Site, done: CopyErased) -> None:
    """Strike a node out of an erasure of this site.

    Raises:
        LostRace: others write it all the time; the node says so again with its next report.
    """
    await begun_anew(site, lambda: _strike_out(site, done))


async def _strike_out(site: Site, done: CopyErased) -> None:
    erasure = site.index.find_value(Erasure, done.volume_id)
    if erasure is None or site.index.home("erasure", done.volume_id) != site.site_id:
        return
    left = tuple(place for place in erasure.places if place.node_id != done.node_id)
    if len(left) == len(erasure.places):
        return
    struck = replace(erasure, places=left)
    if left or _is_known(site.index, struck):
        await site.save(struck)
        _tell_erased(site, struck, done.node_id)
    else:
        await _end(site, struck, last=done.node_id)


def _tell_erased(site: Site, erasure: Erasure, node_id: NodeId) -> None:
    """Say it once it is written: where another node's word came first, it is written again."""
    site.announce("volume", erasure.volume_id, "erased", f"{erasure.name}: erased on {node_id}")


async def end_done(site: Site) -> None:
    """End this site's erasures that waited only for a former home to forget the volume."""
    for record in list(site.index.records("erasure")):
        erasure = record.value
        if record.home != site.site_id or not isinstance(erasure, Erasure) or erasure.places:
            continue
        if not _is_known(site.index, erasure):
            await _end(site, erasure)


def _is_known(index: FederationIndex, erasure: Erasure) -> bool:
    return erasure.is_deleted and index.find("volume", erasure.volume_id) is not None


async def _end(site: Site, erasure: Erasure, *, last: NodeId | None = None) -> None:
    try:
        await site.delete(erasure)
    except NotFound:
        return  # by somebody else, just now: a node says that it has erased until that was heard
    if last is not None:
        _tell_erased(site, erasure, last)
    told = "no copy is left" if erasure.is_deleted else "what was to be erased is erased"
    site.announce("volume", erasure.volume_id, "gone", f"{erasure.name}: {told}")
