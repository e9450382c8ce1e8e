"""Emptying an IO-node: its copies of volumes move to others, one by one, and then it holds nothing.

The wish is in the node's record. Each volume's home sees it there and takes the steps
(`iaas.heads`): the head moves first, if it lies there; a copy is begun elsewhere and filled; only
when it has everything is that on the node erased. All of it is in records: a controller that
starts again goes on where it was.
"""

from dataclasses import dataclass, replace

from nuage.errors import InvalidRequest, NoCandidate
from nuage.iaas.heads import choose_place
from nuage.iaas.operations import Operation, OperationTable, Shown, node_home, node_scope
from nuage.iaas.promises import Promises
from nuage.iaas.showing import show
from nuage.iaas.site import Site
from nuage.ids import NodeId
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.volume import Volume
from nuage.trust.permissions import Principal


@dataclass(frozen=True, slots=True)
class DrainNode:
    """Have an IO-node emptied, or let it take copies again."""

    node: NodeId
    draining: bool


async def drain_node(site: Site, _principal: Principal, body: DrainNode) -> Shown[Node]:
    """Write the wish, if every contract leaves the node's copies another place.

    Raises:
        InvalidRequest: it is no IO-node.
        NoCandidate: a copy has no other place; each refusal is kept.
    """
    known = site.index.value(Node, body.node)
    if NodeRole.IONODE not in known.roles:
        raise InvalidRequest(f"{known.name} is no IO-node", field="node")
    node = replace(known, maintenance=body.draining, draining=body.draining)
    if body.draining:
        _require_places(site, node)
    await site.save(node)
    word = "is emptied: its copies move to others" if body.draining else "takes copies again"
    site.announce("node", node.node_id, "draining", f"node {node.name} {word}")
    return show(site, node)


def _require_places(site: Site, node: Node) -> None:
    coming = Promises()
    for volume in site.index.on_node(Volume, node.node_id):
        iaas = site.index.find_value(Iaas, volume.iaas_id)
        is_there = any(place.node_id == node.node_id for place in volume.replicas)
        if iaas is None or not is_there or node.node_id in volume.leaving:
            continue
        leaving = replace(volume, leaving=(*volume.leaving, node.node_id))
        try:
            place = choose_place(site, iaas, leaving, coming=coming)
        except NoCandidate as error:
            raise NoCandidate(
                f"{volume.name} of {iaas.name} cannot leave {node.name}: {error.message}",
                refusals=error.refusals,
                hint=error.hint,
            ) from error
        coming.add(place.node_id, volume.iaas_id, volume.size_bytes)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="node.drain",
            verb="PUT",
            path="/v1/nodes/{node}/draining",
            body=DrainNode,
            result=Shown[Node],
            action="node.maintain",
            summary="Move all copies of volumes off an IO-node, or let it take some again",
            run=drain_node,
            scope=node_scope,
            home=node_home,
            is_one_write=True,
        )
    )
