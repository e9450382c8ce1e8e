"""Shortest paths and the distribution tree over a `Graph` (RFC 6325 §4.5, RFC 7780 §3.4).

Pure. Dijkstra with integer keys ``distance × node count + node`` in one heap: comparing an
int is several times cheaper in CPython than comparing a tuple. First hops are bit masks, so
that equal-cost paths join with one OR.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from nuage.network.topology import Graph

UNREACHED: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class ShortestPaths:
    """From one source. `first_hops[v]` has bit i for the i-th entry of ``graph.links[source]``."""

    source: int
    distance: list[int]
    first_hops: list[int]


def shortest_paths(graph: Graph, source: int) -> ShortestPaths:
    """Return distances from `source` and all equal-cost first hops; overloaded nodes end paths."""
    count = len(graph.ids)
    links, overload = graph.links, graph.overload
    distance = [UNREACHED] * count
    first_hops = [0] * count
    distance[source] = 0
    heap = [source]
    done = bytearray(count)
    while heap:
        reached, node = divmod(heappop(heap), count)
        if done[node]:
            continue
        done[node] = 1
        if overload[node] and node != source:
            continue
        through = first_hops[node]
        for position, (other, metric) in enumerate(links[node]):
            if done[other]:
                continue
            total = reached + metric
            if total <= distance[other]:
                hops = through or 1 << position
                if total < distance[other]:
                    distance[other] = total
                    first_hops[other] = hops
                    heappush(heap, total * count + other)
                else:
                    first_hops[other] |= hops
    return ShortestPaths(source, distance, first_hops)


def distribution_tree(graph: Graph, root: int, tree_number: int = 1) -> list[int]:
    """Return the parent of each node in the tree of `root`; -1 for the root and unreached nodes.

    Among equal-cost parents, ordered by rising 7-byte ID and numbered from 0, tree j takes
    number (j - 1) modulo their count (RFC 7780 §3.4 over RFC 6325 §4.5.1): every RBridge with
    the same database computes the same tree.
    """
    count = len(graph.ids)
    links, overload = graph.links, graph.overload
    distance = [UNREACHED] * count
    parents: list[list[int]] = [[] for _ in range(count)]
    distance[root] = 0
    heap = [root]
    done = bytearray(count)
    while heap:
        reached, node = divmod(heappop(heap), count)
        if done[node]:
            continue
        done[node] = 1
        if overload[node] and node != root:
            continue
        for other, metric in links[node]:
            if done[other]:
                continue
            total = reached + metric
            if total < distance[other]:
                distance[other] = total
                parents[other] = [node]
                heappush(heap, total * count + other)
            elif total == distance[other]:
                parents[other].append(node)
    return [sorted(p)[(tree_number - 1) % len(p)] if p else -1 for p in parents]


def branches(parents: list[int], me: int) -> list[int]:
    """Return for each node the tree neighbour of `me` behind which it lies; -1: itself, nowhere.

    This is both the reverse-path table (frames of an ingress come from its branch) and what a
    branch is pruned by.
    """
    count = len(parents)
    around: list[list[int]] = [[] for _ in range(count)]
    for node, parent in enumerate(parents):
        if parent >= 0:
            around[node].append(parent)
            around[parent].append(node)
    behind = [-1] * count
    stack = [(neighbour, neighbour) for neighbour in around[me]]
    while stack:
        node, branch = stack.pop()
        behind[node] = branch
        stack.extend((other, branch) for other in around[node] if other != me and behind[other] < 0)
    return behind
