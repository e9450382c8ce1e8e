"""What an IO-node that does not answer keeps from its volumes, and who ends that by which command.

Worked out from the records alone: it is asked for when the node can say nothing, perhaps never
again. What goes on by itself is only counted.
"""

from dataclasses import dataclass

from nuage.iaas.erasure import erased_copies, is_gone
from nuage.iaas.infrastructure import answers
from nuage.iaas.site import Site
from nuage.ids import NodeId
from nuage.model.contract import AckPolicy
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.volume import Volume
from nuage.storage.heads import PAIR, serves_without, whole_copies


@dataclass(frozen=True, slots=True, kw_only=True)
class AtStake:
    """A volume that stands still: how many whole copies answer elsewhere, and what helps."""

    volume: str
    iaas: str
    other_copies: int
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentNode:
    """What lies on a node that does not answer.

    `at_stake` are volumes that stand still until somebody acts, those without another copy first;
    `going_on_count` others go on from other copies. `unerased` are copies that are to be erased:
    nobody knows whether they were. `made_anew` says when the node's copies are made elsewhere.
    """

    at_stake: tuple[AtStake, ...]
    going_on_count: int
    unerased: tuple[str, ...]
    made_anew: str


def silence_of(site: Site, node: Node) -> SilentNode | None:
    """Return what an IO-node that does not answer keeps from its volumes; None: it answers."""
    if NodeRole.IONODE not in node.roles or answers(site, node.node_id):
        return None
    volumes = [
        volume
        for volume in site.index.on_node(Volume, node.node_id)
        if not volume.is_template and not is_gone(site.index, volume)
    ]
    found = [_at_stake(site, volume, node.node_id) for volume in volumes]
    at_stake = [row for row in found if row is not None]
    return SilentNode(
        at_stake=tuple(sorted(at_stake, key=lambda row: (row.other_copies, row.iaas, row.volume))),
        going_on_count=len(found) - len(at_stake),
        unerased=tuple(sorted(e.name for e in erased_copies(site.index, node.node_id))),
        made_anew=_made_anew(node),
    )


def _at_stake(site: Site, volume: Volume, node_id: NodeId) -> AtStake | None:
    others = [
        place
        for place in whole_copies(volume)
        if place.node_id != node_id and answers(site, place.node_id)
    ]
    help_text = _help(volume, node_id, len(others))
    if not help_text:
        return None
    iaas = site.index.find_value(Iaas, volume.iaas_id)
    return AtStake(
        volume=volume.name,
        iaas=volume.iaas_id if iaas is None else iaas.name,
        other_copies=len(others),
        help=help_text,
    )


def _help(volume: Volume, node_id: NodeId, other_count: int) -> str:
    """Return who must do what for a volume to go on; "": it does by itself."""
    name = volume.name
    counted = volume.whole or tuple(place.node_id for place in volume.replicas)
    if other_count == 0 and node_id in (p.node_id for p in whole_copies(volume)):
        return (
            f"bring the node or its disks back, or `nuage volume delete {name}` (import an export"
            f" instead), or join it anew with empty disks and `nuage volume accept-loss {name}`"
        )
    if volume.ack_policy is AckPolicy.ANY_2_OF_3 and len(counted) > PAIR > other_count:
        return "bring this node back, or the other one: the copy that is left may lack writes"
    if node_id not in volume.without and not serves_without(volume, node_id):
        return f"its writes wait for this copy: `nuage volume degrade {name}`"
    return ""


def _made_anew(node: Node) -> str:
    if node.is_revoked:
        return "at once, since it is revoked"
    if node.maintenance:
        return (
            f"never while it is in maintenance: `nuage node maintenance {node.name} off`, or"
            f" `nuage node revoke {node.name}` if it does not come back"
        )
    return (
        "once it was silent for 15 minutes (`replace_lost_after_s`), or at once by"
        f" `nuage node revoke {node.name}`"
    )
