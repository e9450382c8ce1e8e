"""From the campus graph to forwarding entries: the one place that decides where frames go.

Pure: the same database and adjacencies give the same tables. One distribution tree (k = 1,
which RFC 6325 §4.5 permits): the reachable nickname of highest tree-root priority, ties by
higher ID, then higher nickname; an overloaded RBridge is not chosen while another is there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nuage.network.forwarding import (
    ECMP_MAX,
    NICKNAME_UNKNOWN,
    AdjacencyEntry,
    Entry,
    FibEntry,
    Label,
    NextHop,
    Nickname,
    PortNumber,
    PruneEntry,
    RpfEntry,
    SelfEntry,
    TreeEntry,
)
from nuage.network.isis_tlv import SystemId
from nuage.network.nickname import owners
from nuage.network.spf import UNREACHED, branches, distribution_tree, shortest_paths
from nuage.network.topology import NodeFacts, graph_of

ALL_LABELS = Label(0)


@dataclass(frozen=True, slots=True)
class LocalAdjacency:
    """A trunk of ours in state Report."""

    port: PortNumber
    mac: bytes
    neighbour: SystemId
    neighbour_mac: bytes
    neighbour_port: int
    metric: int


@dataclass(frozen=True, slots=True)
class Routes:
    """What came out. `tree` and `parents` are kept for those who ask why."""

    entries: tuple[Entry, ...]
    tree: Nickname
    tree_root: SystemId | None
    parents: Mapping[SystemId, SystemId]
    reachable: frozenset[SystemId]
    distance: Mapping[SystemId, int]


def tree_port(
    me: SystemId, nodes: Mapping[SystemId, NodeFacts], parallel: Sequence[LocalAdjacency]
) -> PortNumber:
    """Return the one of parallel trunks that a tree uses.

    Both ends must choose the same: the highest port ID as the RBridge of the higher system ID
    numbers them (RFC 6325 §4.5.2), of those that neither end says are a last resort.
    """
    mine_counts = me > parallel[0].neighbour

    def rank(a: LocalAdjacency) -> tuple[bool, int]:
        here, there = (a.neighbour, a.port, a.neighbour_port), (me, a.neighbour_port, a.port)
        far = nodes.get(a.neighbour)
        shunned = here in nodes[me].last_resorts or (far is not None and there in far.last_resorts)
        return (not shunned, a.port if mine_counts else a.neighbour_port)

    return max(parallel, key=rank).port


def open_at_both_ends(
    me: SystemId, nodes: Mapping[SystemId, NodeFacts], adjacencies: Iterable[LocalAdjacency]
) -> list[LocalAdjacency]:
    """Return the trunks that may carry frames.

    Of parallel trunks the one whose far end is down is told by the far end alone.
    """
    return [
        a
        for a in adjacencies
        if (far := nodes.get(a.neighbour)) is None or far.reports(me, a.neighbour_port, a.port)
    ]


def compute_routes(
    me: SystemId,
    nickname: Nickname,
    nodes: Mapping[SystemId, NodeFacts],
    adjacencies: Sequence[LocalAdjacency],
) -> Routes:
    """Return all fabric entries of RBridge `me`."""
    graph = graph_of(nodes)
    by_neighbour: dict[SystemId, list[LocalAdjacency]] = {}
    for adjacency in open_at_both_ends(me, nodes, adjacencies):
        by_neighbour.setdefault(adjacency.neighbour, []).append(adjacency)
    entries: list[Entry] = [AdjacencyEntry(a.port, a.neighbour_mac) for a in adjacencies]
    if me not in graph.index:
        entries.append(SelfEntry(nickname, NICKNAME_UNKNOWN))
        return Routes(tuple(entries), NICKNAME_UNKNOWN, None, {}, frozenset(), {})
    paths = shortest_paths(graph, graph.index[me])
    reachable = frozenset(
        system_id for system_id, d in zip(graph.ids, paths.distance, strict=True) if d < UNREACHED
    )
    held = {
        name: (record, system_id)
        for name, (record, system_id) in owners({i: nodes[i] for i in reachable}).items()
    }
    first_hops = [graph.ids[v] for v, _ in graph.links[paths.source]]
    hop_sets: dict[int, tuple[NextHop, ...]] = {}
    for name, (_, system_id) in held.items():
        if system_id == me:
            continue
        mask = paths.first_hops[graph.index[system_id]]
        if mask not in hop_sets:
            hop_sets[mask] = _next_hops(mask, first_hops, by_neighbour)
        if hop_sets[mask]:
            entries.append(FibEntry(name, hop_sets[mask]))
    root = max(
        (
            (not nodes[system_id].overload, record.root_priority, system_id, name)
            for name, (record, system_id) in held.items()
        ),
        default=None,
    )
    parents: dict[SystemId, SystemId] = {}
    tree, root_id = NICKNAME_UNKNOWN, None
    if root is not None:
        tree, root_id = root[3], root[2]
        parent_of = distribution_tree(graph, graph.index[root_id])
        parents = {graph.ids[node]: graph.ids[p] for node, p in enumerate(parent_of) if p >= 0}
        behind = branches(parent_of, graph.index[me])
        names = {name: graph.index[system_id] for name, (_, system_id) in held.items()}
        ports = {
            graph.index[n]: tree_port(me, nodes, parallel)
            for n, parallel in by_neighbour.items()
            if n in graph.index
        }
        facts = [nodes[system_id] for system_id in graph.ids]
        entries.extend(_tree_entries(tree, behind, names, ports, facts))
    entries.append(SelfEntry(nickname, tree))
    distance = {i: d for i, d in zip(graph.ids, paths.distance, strict=True) if d < UNREACHED}
    return Routes(tuple(entries), tree, root_id, parents, reachable, distance)


def _next_hops(
    mask: int,
    first_hops: Sequence[SystemId],
    by_neighbour: Mapping[SystemId, Sequence[LocalAdjacency]],
) -> tuple[NextHop, ...]:
    """Return the ports that the first hops of `mask` mean, parallel trunks of best metric all."""
    hops: list[NextHop] = []
    for position, neighbour in enumerate(first_hops):
        if not mask >> position & 1:
            continue
        parallel = by_neighbour.get(neighbour, ())
        best = min((a.metric for a in parallel), default=0)
        hops.extend(NextHop(a.port, a.neighbour_mac, a.mac) for a in parallel if a.metric == best)
    return tuple(sorted(hops, key=lambda hop: hop.port)[:ECMP_MAX])


def _tree_entries(
    tree: Nickname,
    behind: Sequence[int],
    names: Mapping[Nickname, int],
    ports: Mapping[int, PortNumber],
    facts: Sequence[NodeFacts],
) -> list[Entry]:
    """Return the tree's ports, its reverse-path table and what prunes it."""
    in_tree = sorted({ports[branch] for branch in behind if branch in ports})
    entries: list[Entry] = [TreeEntry(tree, tuple(in_tree))]
    for name, node in names.items():
        used = facts[node].trees_used
        if behind[node] in ports and (not used or tree in used):
            entries.append(RpfEntry(tree, name, ports[behind[node]]))
    interest: dict[int, set[PortNumber]] = {}
    for node, branch in enumerate(behind):
        port = ports.get(branch)
        if port is None:
            continue
        for label in facts[node].labels:
            interest.setdefault(label, set()).add(port)
        if facts[node].all_labels:
            interest.setdefault(ALL_LABELS, set()).add(port)
    entries.extend(
        PruneEntry(tree, Label(label), tuple(sorted(found))) for label, found in interest.items()
    )
    return entries
