"""How the copies of a volume stand with themselves: what their passes found, and a pass at once.

A copy is asked through the controller of its node's site. One that does not answer is shown so,
never left out.
"""

import asyncio
from dataclasses import dataclass

from nuage.errors import NuageError
from nuage.iaas.operations import Operation, OperationTable, iaas_scope
from nuage.iaas.site import Site
from nuage.iaas.volumes import NameVolume, volume_home, volume_of
from nuage.ids import IaasId, NodeId, SiteId, VolumeId
from nuage.model.volume import ReplicaPlace, Volume
from nuage.trust.permissions import Principal

CONDITION_METHOD = "volume.condition"
ASK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AskCondition:
    """A controller asks a node, or the node's controller, about a copy; `begin`: read it whole."""

    node_id: NodeId
    iaas_id: IaasId
    volume_id: VolumeId
    begin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyCondition:
    """A copy, when it was last read whole (0: never), and what was found in it.

    `lost` are runs (first block, count) of 4 KiB blocks that no copy has any more, `lost_segments`
    cannot be read at all: replace the copy. `quarantine_bytes` of its log it has put aside.
    `failure`: it did not answer.
    """

    node_id: NodeId
    site_id: SiteId
    last_s: float = 0.0
    done_bytes: int = 0
    total_bytes: int = 0
    found: int = 0
    mended: int = 0
    waiting: int = 0
    lost: tuple[tuple[int, int], ...] = ()
    lost_segments: tuple[int, ...] = ()
    quarantine_bytes: int = 0
    failure: str = ""


async def condition_here(site: Site, ask: AskCondition) -> CopyCondition:
    """Ask a node of this site about a copy."""
    return await site.nodes.ask(
        ask.node_id, CONDITION_METHOD, ask, CopyCondition, timeout_s=ASK_TIMEOUT_S
    )


async def _condition(
    site: Site, volume: Volume, place: ReplicaPlace, *, begin: bool
) -> CopyCondition:
    ask = AskCondition(
        node_id=place.node_id,
        iaas_id=volume.iaas_id,
        volume_id=volume.volume_id,
        begin=begin,
    )
    try:
        if place.site_id == site.site_id:
            return await condition_here(site, ask)
        return await site.others.ask(
            place.site_id, CONDITION_METHOD, ask, CopyCondition, timeout_s=ASK_TIMEOUT_S
        )
    except NuageError as error:
        return CopyCondition(node_id=place.node_id, site_id=place.site_id, failure=error.message)


async def _conditions(site: Site, body: NameVolume, *, begin: bool) -> list[CopyCondition]:
    volume = volume_of(site, body.iaas, body.volume)
    asked = (_condition(site, volume, place, begin=begin) for place in volume.replicas)
    return list(await asyncio.gather(*asked))


async def show_conditions(
    site: Site, _principal: Principal, body: NameVolume
) -> list[CopyCondition]:
    """Show how each copy of a volume stands with itself."""
    return await _conditions(site, body, begin=False)


async def scrub_volume(site: Site, _principal: Principal, body: NameVolume) -> list[CopyCondition]:
    """Have each copy of a volume read itself whole, at once."""
    return await _conditions(site, body, begin=True)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    path = "/v1/iaas/{iaas}/volumes/{volume}"
    table.add(
        Operation(
            name="volume.conditions",
            verb="GET",
            path=path + "/conditions",
            body=NameVolume,
            result=list[CopyCondition],
            action="volume.read",
            summary="Tell when each copy of a volume was last read whole, and what was found",
            run=show_conditions,
            scope=iaas_scope,
            home=volume_home,
        )
    )
    table.add(
        Operation(
            name="volume.scrub",
            verb="POST",
            path=path + "/scrub",
            body=NameVolume,
            result=list[CopyCondition],
            action="volume.move",
            summary="Have each copy of a volume read itself whole, and mend what has rotted",
            run=scrub_volume,
            scope=iaas_scope,
            home=volume_home,
            status=202,
        )
    )
