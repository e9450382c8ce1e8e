"""The campus as one RBridge tells it to people. Pure: from what the machine holds to a view."""

from collections.abc import Iterable, Mapping

from nuage.network.circuit import Circuit
from nuage.network.fabric_event import FabricView, NeighbourView, NodeView
from nuage.network.forwarding import Nickname
from nuage.network.isis_tlv import SystemId
from nuage.network.routes import Routes
from nuage.network.topology import NodeFacts


def hostname_of(nodes: Mapping[SystemId, NodeFacts], system_id: SystemId | None) -> str:
    """Return how people know a RBridge; its system ID when it has not said."""
    if system_id is None:
        return ""
    facts = nodes.get(system_id)
    return facts.hostname if facts else system_id.hex()


def view_of(
    me: SystemId,
    nickname: Nickname,
    nodes: Mapping[SystemId, NodeFacts],
    circuits: Iterable[Circuit],
    routes: Routes | None,
    *,
    lsp_count: int,
    counters: Mapping[str, int],
) -> FabricView:
    """Return the campus as seen by RBridge `me`."""
    return FabricView(
        system_id=me.hex(),
        nickname=nickname,
        tree=routes.tree if routes else Nickname(0),
        tree_root=hostname_of(nodes, routes.tree_root) if routes else "",
        neighbours=tuple(_neighbour(circuit, nodes) for circuit in circuits),
        nodes=tuple(
            _node(system_id, facts, nodes, routes) for system_id, facts in sorted(nodes.items())
        ),
        lsp_count=lsp_count,
        counters=dict(counters),
    )


def _neighbour(circuit: Circuit, nodes: Mapping[SystemId, NodeFacts]) -> NeighbourView:
    return NeighbourView(
        port=circuit.trunk.port,
        state=circuit.state.value,
        system_id=circuit.neighbour.hex() if circuit.neighbour else "",
        nickname=circuit.neighbour_nickname,
        hostname=hostname_of(nodes, circuit.neighbour),
        bfd=circuit.bfd.state.name.lower() if circuit.bfd else "",
        mtu_bytes=circuit.mtu_tested_bytes,
        metric=circuit.metric,
        narrow=circuit.narrow,
    )


def _node(
    system_id: SystemId,
    facts: NodeFacts,
    nodes: Mapping[SystemId, NodeFacts],
    routes: Routes | None,
) -> NodeView:
    return NodeView(
        system_id=system_id.hex(),
        hostname=facts.hostname,
        nicknames=tuple(record.nickname for record in facts.nicknames),
        reachable=routes is not None and system_id in routes.reachable,
        distance=routes.distance.get(system_id) if routes else None,
        tree_parent=hostname_of(nodes, routes.parents.get(system_id)) if routes else "",
        overload=facts.overload,
        label_count=len(facts.labels),
    )
