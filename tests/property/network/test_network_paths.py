"""Paths and trees against slow and obvious ones, and the same tree wherever it is computed."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from nuage.network.forwarding import (
    FibEntry,
    Label,
    Nickname,
    PortNumber,
    PruneEntry,
    RpfEntry,
    TreeEntry,
)
from nuage.network.isis_tlv import NicknameRecord
from nuage.network.reroute import BackupSearch
from nuage.network.routes import LocalAdjacency, Routes, compute_routes
from nuage.network.spf import UNREACHED, branches, distribution_tree, shortest_paths
from nuage.network.topology import Graph, NodeFacts, graph_of

seeds = st.integers(0, 2**32)


def identity(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


def random_nodes(seed: int, *, overload: bool = True) -> dict[bytes, NodeFacts]:
    prng = Random(seed)
    count = prng.randrange(2, 24)
    links: dict[int, dict[bytes, int]] = {number: {} for number in range(count)}
    for _ in range(prng.randrange(count, 3 * count)):
        a, b = prng.sample(range(count), 2)
        links[a][identity(b)] = prng.randrange(1, 5)
        if prng.random() < 0.95:  # some links are reported by one end only
            links[b][identity(a)] = prng.randrange(1, 5)
    return {
        identity(number): NodeFacts(
            system_id=identity(number),
            neighbours=neighbours,
            nicknames=(NicknameRecord(0x40, prng.randrange(4), Nickname(100 + number)),),
            labels=frozenset(prng.sample(range(1, 6), 2)),
            overload=overload and prng.random() < 0.1,
        )
        for number, neighbours in links.items()
    }


def slow_distances(graph: Graph, source: int) -> list[int]:
    """Bellman and Ford, with nothing clever."""
    distance = [UNREACHED] * len(graph.ids)
    distance[source] = 0
    for _ in graph.ids:
        for node, row in enumerate(graph.links):
            if distance[node] == UNREACHED or (graph.overload[node] and node != source):
                continue
            for other, metric in row:
                distance[other] = min(distance[other], distance[node] + metric)
    return distance


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_distances_are_the_slow_ones_and_first_hops_all_of_the_best(seed: int) -> None:
    graph = graph_of(random_nodes(seed))
    for source in range(len(graph.ids)):
        paths = shortest_paths(graph, source)
        assert paths.distance == slow_distances(graph, source)
        onward = [distances_onward(graph, hop, source) for hop, _ in graph.links[source]]
        for target in range(len(graph.ids)):
            if target == source or paths.distance[target] == UNREACHED:
                assert paths.first_hops[target] == 0
                continue
            expected = 0
            for position, (_, metric) in enumerate(graph.links[source]):
                if metric + onward[position][target] == paths.distance[target]:
                    expected |= 1 << position
            assert paths.first_hops[target] == expected


def distances_onward(graph: Graph, hop: int, source: int) -> list[int]:
    """Distances from a first hop onwards, not back through the source."""
    if graph.overload[hop]:
        return [0 if node == hop else UNREACHED for node in range(len(graph.ids))]
    links = tuple(() if node == source else row for node, row in enumerate(graph.links))
    cut = Graph(graph.ids, links, graph.overload, graph.index)
    return slow_distances(cut, hop)


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_a_tree_reaches_all_by_shortest_paths_and_takes_the_lowest_parent(seed: int) -> None:
    graph = graph_of(random_nodes(seed))
    root = seed % len(graph.ids)
    parents = distribution_tree(graph, root)
    distance = slow_distances(graph, root)
    for node, parent in enumerate(parents):
        if node == root or distance[node] == UNREACHED:
            assert parent == -1
            continue
        able = [
            other
            for other, row in enumerate(graph.links)
            if (not graph.overload[other] or other == root)
            and distance[other] != UNREACHED
            and any(v == node and distance[other] + m == distance[node] for v, m in row)
        ]
        assert parent == min(able)


def adjacencies_of(nodes: dict[bytes, NodeFacts], me: bytes) -> list[LocalAdjacency]:
    graph = graph_of(nodes)
    row = graph.links[graph.index[me]]
    return [
        LocalAdjacency(
            port=PortNumber(other + 1),
            mac=me,
            neighbour=graph.ids[other],
            neighbour_mac=graph.ids[other],
            neighbour_port=graph.index[me] + 1,
            metric=metric,
        )
        for other, metric in row
    ]


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_every_rbridge_computes_the_same_tree_and_it_carries_each_frame_once(seed: int) -> None:
    """A frame put in anywhere reaches everybody in reach once, by the tables alone."""
    nodes = random_nodes(seed, overload=False)
    tables = {
        me: compute_routes(me, nodes[me].nicknames[0].nickname, nodes, adjacencies_of(nodes, me))
        for me in nodes
    }
    graph = graph_of(nodes)
    for me, routes in tables.items():
        for other in routes.reachable:
            assert tables[other].tree == routes.tree
            assert tables[other].parents == routes.parents
        assert spread(graph, tables_by_index(graph, tables), me, None) == routes.reachable - {me}
        for label in range(1, 6):
            wanted = {i for i in routes.reachable - {me} if label in nodes[i].labels}
            reached = spread(graph, tables_by_index(graph, tables), me, Label(label))
            assert wanted <= reached


def tables_by_index(graph: Graph, tables: dict[bytes, Routes]) -> dict[int, tuple[object, ...]]:
    return {graph.index[i]: t.entries for i, t in tables.items()}


def spread(
    graph: Graph, tables: dict[int, tuple[object, ...]], source: bytes, label: Label | None
) -> set[bytes]:
    """Flood a frame by TreeEntry, RpfEntry and PruneEntry; fail when a node gets it twice."""
    start = graph.index[source]
    ingress = Nickname(100 + source[5])
    got: set[int] = set()
    queue = [(start, 0)]
    while queue:
        node, came_by = queue.pop()
        ports = {p for e in tables[node] if isinstance(e, TreeEntry) for p in e.ports}
        if node != start:
            reverse = {e.ingress: e.port for e in tables[node] if isinstance(e, RpfEntry)}
            assert came_by in ports
            assert reverse[ingress] == came_by
            assert node not in got
            got.add(node)
        if label is not None:
            wanted = {
                p
                for e in tables[node]
                if isinstance(e, PruneEntry) and e.label == label
                for p in e.ports
            }
            ports &= wanted
        queue.extend((port - 1, node + 1) for port in ports if port != came_by)
    return {graph.ids[node] for node in got}


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_unicast_follows_next_hops_to_its_end_without_a_loop(seed: int) -> None:
    nodes = random_nodes(seed)
    graph = graph_of(nodes)
    fibs = {
        me: {
            e.nickname: e.next_hops
            for e in compute_routes(
                me, Nickname(100 + me[5]), nodes, adjacencies_of(nodes, me)
            ).entries
            if isinstance(e, FibEntry)
        }
        for me in nodes
    }
    for source, fib in fibs.items():
        for nickname in fib:
            target, here, hops = identity(nickname - 100), source, 0
            while here != target:
                here = graph.ids[fibs[here][nickname][seed % len(fibs[here][nickname])].port - 1]
                hops += 1
                assert hops <= len(nodes)


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_a_backup_leads_there_without_us_by_tables_that_know_of_no_loss(seed: int) -> None:
    """Everybody else forwards as before: whatever equal hop they take, we are not met again."""
    nodes = random_nodes(seed)
    graph = graph_of(nodes)
    names = {Nickname(100 + me[5]): me for me in nodes}
    fibs: dict[bytes, dict[Nickname, FibEntry]] = {}
    for me in nodes:
        adjacencies = adjacencies_of(nodes, me)
        routes = compute_routes(me, Nickname(100 + me[5]), nodes, adjacencies)
        search = BackupSearch(me, nodes, adjacencies, names)
        while search.step():
            pass
        paths = [entry for entry in routes.entries if isinstance(entry, FibEntry)]
        fibs[me] = {entry.nickname: entry for entry in search.with_backups(paths)}
    for source, fib in fibs.items():
        for nickname, entry in fib.items():
            target = names[nickname]
            (lost,) = {hop.port for hop in entry.next_hops} if entry.backups else (0,)
            for backup in entry.backups:
                assert backup.port != lost
                met, left = set[bytes](), [graph.ids[backup.port - 1]]
                while left:
                    here = left.pop()
                    assert here != source
                    if here != target and here not in met:
                        assert fibs[here][nickname].next_hops
                        left += [graph.ids[h.port - 1] for h in fibs[here][nickname].next_hops]
                    met.add(here)
                assert target in met


def test_in_a_ring_each_side_is_the_others_backup_and_on_a_line_there_is_none() -> None:
    def paths(*links: tuple[int, int]) -> dict[Nickname, FibEntry]:
        neighbours: dict[int, dict[bytes, int]] = {n: {} for link in links for n in link}
        for a, b in links:
            neighbours[a][identity(b)] = neighbours[b][identity(a)] = 10
        nodes = {
            identity(n): NodeFacts(
                identity(n), met, nicknames=(NicknameRecord(0x40, 0, Nickname(100 + n)),)
            )
            for n, met in neighbours.items()
        }
        me, adjacencies = identity(0), adjacencies_of(nodes, identity(0))
        routes = compute_routes(me, Nickname(100), nodes, adjacencies)
        search = BackupSearch(
            me, nodes, adjacencies, {Nickname(100 + n): identity(n) for n in neighbours}
        )
        while search.step():
            pass
        found = [entry for entry in routes.entries if isinstance(entry, FibEntry)]
        return {entry.nickname: entry for entry in search.with_backups(found)}

    ring = paths((0, 1), (1, 2), (2, 0))
    assert [hop.port for hop in ring[Nickname(101)].backups] == [3]
    assert [hop.port for hop in ring[Nickname(102)].backups] == [2]
    line = paths((0, 1), (1, 2))
    assert not any(entry.backups for entry in line.values())


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_branches_divide_all_nodes_of_a_tree(seed: int) -> None:
    graph = graph_of(random_nodes(seed))
    parents = distribution_tree(graph, 0)
    inside = {0, *(node for node, parent in enumerate(parents) if parent >= 0)}
    for me in inside:
        behind = branches(parents, me)
        assert {node for node, branch in enumerate(behind) if branch >= 0} == inside - {me}
