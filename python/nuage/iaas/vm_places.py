"""Where a VM's owner lets it run: fences and bans, over nodes, racks and sites by name.

A rule keeps the places' ids, not the nodes that they are made of now: a node that joins a fenced
rack later is within the fence.
"""

from collections.abc import Sequence
from typing import Final

from nuage.errors import InvalidRequest, NotFound
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import Site
from nuage.ids import NodeId, RequestId, new_id
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Datacenter, Node, NodeRole
from nuage.model.placement import VmRequest
from nuage.model.vm import Vm

PLACES_MAX: Final = 64  # of one rule; a rack or a site is one


def place_ids(index: FederationIndex, names: Sequence[str], *, rule: str) -> tuple[str, ...]:
    """Return the ids of the nodes, racks and sites named.

    Raises:
        NotFound: a name is of none of them.
    """
    if len(names) > PLACES_MAX:
        raise InvalidRequest(f"a {rule} names at most {PLACES_MAX} places", field=rule)
    nodes = index.values(Node)
    places = {node.rack_id for node in nodes} | {each.site_id for each in index.values(Datacenter)}
    found = []
    for name in names:
        matches = [n.node_id for n in nodes if name in (n.node_id, n.name)]
        if name in places:
            found.append(name)
        elif len(matches) == 1:
            found.append(matches[0])
        else:
            raise NotFound("node, rack or site", name, hint="`nuage node list` shows them")
    return tuple(dict.fromkeys(found))


def nodes_at(index: FederationIndex, places: Sequence[str]) -> tuple[NodeId, ...]:
    """Return the V-nodes at some places; of places that are gone, names that no node has.

    So a fence around a rack that was taken out keeps its VMs off every node.
    """
    if not places:
        return ()
    inside = tuple(
        node.node_id
        for node in index.values(Node)
        if NodeRole.VNODE in node.roles
        and not {node.node_id, node.rack_id, node.site_id}.isdisjoint(places)
    )
    return inside or tuple(NodeId(place) for place in places)


def request_for(site: Site, iaas: Iaas, vm: Vm) -> VmRequest:
    """Return what agents are asked for a VM by its contract and rules, nearness left out."""
    return VmRequest(
        request_id=RequestId(new_id("req", site.entropy)),
        vm_id=vm.vm_id,
        iaas_id=iaas.iaas_id,
        shape=vm.shape,
        contract=iaas.contract,
        preference=vm.preference,
        nodes_excluded=() if vm.node_id is None else (vm.node_id,),
        nodes_fenced=nodes_at(site.index, vm.fence),
        nodes_banned=nodes_at(site.index, vm.ban),
        vms_apart=vm.apart,
    )
