"""Backups: where frames go at once when their only next hop is lost (RFC 5286).

Pure. A neighbour N is a backup of ours (S) for a destination D when its own shortest paths to D
do not lead back over us: ``distance(N, D) < distance(N, S) + distance(S, D)``. Then it does not
matter that it has not heard of the loss. The shortest detour is kept, one for each nickname; a
parallel trunk to the lost neighbour counts. Paths of several equal hops need none: the plane goes
by the other hops anyhow. Frames to many (the tree) have no backup: they wait for the routes.

A search runs a neighbour at a time (`step`), because each costs a run of Dijkstra's algorithm and
the loop that calls it has trunks to watch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from nuage.network.forwarding import FibEntry, NextHop, Nickname, PortNumber
from nuage.network.isis_tlv import SystemId
from nuage.network.routes import LocalAdjacency, open_at_both_ends
from nuage.network.spf import UNREACHED, shortest_paths
from nuage.network.topology import NodeFacts, graph_of

NODES_MAX: Final = 512  # in a larger campus a search costs more than the wait that it saves


class BackupSearch:
    """Finds the backups of one RBridge's paths."""

    def __init__(
        self,
        me: SystemId,
        nodes: Mapping[SystemId, NodeFacts],
        adjacencies: Iterable[LocalAdjacency],
        owners: Mapping[Nickname, SystemId],
    ) -> None:
        """Begin; `owners` says which RBridge holds each nickname."""
        self._graph = graph_of(nodes)
        self._owners = owners
        self._me = self._graph.index.get(me)
        self._adjacencies = [
            a
            for a in open_at_both_ends(me, nodes, adjacencies)
            if self._me is not None and a.neighbour in self._graph.index
        ]
        self._left = sorted({a.neighbour for a in self._adjacencies})
        self._distances: dict[SystemId, list[int]] = {}

    def step(self) -> bool:
        """Look from one more neighbour; return whether any are left."""
        if self._left:
            neighbour = self._left.pop()
            index = self._graph.index[neighbour]
            self._distances[neighbour] = shortest_paths(self._graph, index).distance
        return bool(self._left)

    def with_backups(self, entries: Sequence[FibEntry]) -> tuple[FibEntry, ...]:
        """Return the paths with their backups, when all neighbours have been looked from."""
        if self._me is None or not self._adjacencies:
            return tuple(replace(entry, backups=()) for entry in entries)
        mine = shortest_paths(self._graph, self._me).distance
        return tuple(replace(entry, backups=self._backups(entry, mine)) for entry in entries)

    def _backups(self, entry: FibEntry, mine: Sequence[int]) -> tuple[NextHop, ...]:
        owner = self._owners.get(entry.nickname)
        target = None if owner is None else self._graph.index.get(owner)
        if target is None or len(entry.next_hops) != 1:
            return ()
        best: tuple[int, PortNumber] | None = None
        hop: NextHop | None = None
        for adjacency in self._adjacencies:
            if adjacency.port == entry.next_hops[0].port:
                continue
            detour = self._detour(adjacency, target, mine)
            if detour is not None and (best is None or (detour, adjacency.port) < best):
                best = (detour, adjacency.port)
                hop = NextHop(adjacency.port, adjacency.neighbour_mac, adjacency.mac)
        return () if hop is None else (hop,)

    def _detour(self, adjacency: LocalAdjacency, target: int, mine: Sequence[int]) -> int | None:
        """Return the length of the way by a neighbour; None: it may come back to us, or end."""
        assert self._me is not None
        theirs = self._distances[adjacency.neighbour]
        at = self._graph.index[adjacency.neighbour]
        if self._graph.overload[at] and at != target:
            return None
        rest = theirs[target]
        if rest >= UNREACHED or rest >= theirs[self._me] + mine[target]:
            return None
        return adjacency.metric + rest
