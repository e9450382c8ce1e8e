"""The controller's side of the fabric: wishes for this site's RBridges, and their word back.

A change of the index marks the RBridges it concerns; they are rendered together at the end of
the turn, and what is as it was is not sent. Rendering has a rest of its own, so that a large
segment does not slow down the wishes for VMs.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final

from nuage.channel import Handlers, Peer
from nuage.clock import Clock
from nuage.daemon.nodes import FollowWishes, NodeSessions, ReportTaken, WishSlot
from nuage.daemon.process import Tasks
from nuage.iaas.fabric_keys import FabricKeySet
from nuage.iaas.fabric_wishes import (
    CONCERNING,
    FabricContext,
    concerned_rbridges,
    fabric_wish,
    is_news,
    is_rbridge,
)
from nuage.iaas.index import Change
from nuage.ids import NodeId, SegmentId
from nuage.model.fabric import FabricNews, FabricWish, StationWish
from nuage.model.infrastructure import Node, NodeRole

RENDER_AFTER_S: Final = 0.005  # a move changes several records in one turn
RENDER_REST: Final = 40.0  # wait so many times what rendering took
RENDER_REST_S_MAX: Final = 0.5


class FabricDesk:
    """Keeps this site's RBridges told. `keys` are those of now (`daemon.key_desk`)."""

    def __init__(
        self,
        context: FabricContext,
        sessions: NodeSessions,
        tasks: Tasks,
        clock: Clock,
        *,
        keys: Callable[[], FabricKeySet],
        edge_lives: Callable[[NodeId], None],
        announce: Callable[[str, str, str, str], None],
    ) -> None:
        self._context = context
        self._keys = keys
        self._sessions = sessions
        self._tasks = tasks
        self._clock = clock
        self._edge_lives = edge_lives
        self._announce = announce
        self._slots: dict[NodeId, WishSlot[FabricWish]] = {}
        self._sent: dict[NodeId, FabricWish] = {}
        self._dirty: set[NodeId] = set()
        self._rest_s = 0.0
        self._revision = 0

    def register(self, handlers: Handlers) -> None:
        """Enter the methods that RBridges call."""
        rbridges = {NodeRole.VNODE, NodeRole.EDGE}

        @handlers.stream("fabric.wishes", FollowWishes, roles=rbridges)
        async def wishes(peer: Peer, _body: FollowWishes) -> AsyncIterator[object]:
            node_id = peer.identity.node_id
            self._touch({node_id})
            async for wish in self._slot(node_id).follow():
                yield wish

        @handlers.method("edge.report", FabricNews, roles={NodeRole.EDGE})
        async def report(peer: Peer, news: FabricNews) -> ReportTaken:
            self._sessions.hear(peer, news.node_id)
            self._edge_lives(news.node_id)
            self._tell(news)
            return ReportTaken()

        @handlers.method("fabric.news", FabricNews, roles={NodeRole.VNODE})
        async def told(peer: Peer, news: FabricNews) -> ReportTaken:
            self._sessions.hear(peer, news.node_id)
            self._tell(news)
            return ReportTaken()

    def _tell(self, news: FabricNews) -> None:
        for line in news.lines:
            self._announce("node", news.node_id, "fabric", f"{news.node_id}: {line}")

    def _slot(self, node_id: NodeId) -> WishSlot[FabricWish]:
        return self._slots.setdefault(node_id, WishSlot())

    def on_change(self, change: Change) -> None:
        """Mark the RBridges that a change concerns."""
        before = None if change.before is None else change.before.value
        after = None if change.after is None else change.after.value
        if type(after or before) not in CONCERNING or not is_news(before, after):
            return
        context = self._context
        for value in (before, after):
            if value is not None:
                self._touch(concerned_rbridges(context.index, context.site_id, value))
        # Where a VM was and where it is: the index knows only the second by now.
        for value in (before, after):
            if value is not None:
                self._touch(self._mine(getattr(value, "node_id", None)))

    def keys_changed(self) -> None:
        """Have the wishes of this site's RBridges made with the keys of now."""
        self._touch(self._own())

    def _mine(self, node_id: object) -> set[NodeId]:
        node = None if node_id is None else self._context.index.find_value(Node, str(node_id))
        own = node is not None and node.site_id == self._context.site_id and is_rbridge(node)
        return {node.node_id} if node is not None and own else set()

    def _own(self) -> set[NodeId]:
        nodes = self._context.index.values(Node)
        return {n.node_id for n in nodes if n.site_id == self._context.site_id and is_rbridge(n)}

    def _touch(self, node_ids: set[NodeId]) -> None:
        was_clean = not self._dirty
        self._dirty |= node_ids
        if was_clean and self._dirty:
            self._tasks.start("fabric wishes", self._flush())

    async def _flush(self) -> None:
        await self._clock.sleep(max(RENDER_AFTER_S, self._rest_s))
        begun_s = self._clock.monotonic_s()
        dirty, self._dirty = self._dirty, set()
        self._context = replace(self._context, keys=self._keys())
        shared: dict[SegmentId, tuple[StationWish, ...]] = {}
        for node_id in sorted(dirty):
            self._render(node_id, shared)
        taken_s = self._clock.monotonic_s() - begun_s
        self._rest_s = min(taken_s * RENDER_REST, RENDER_REST_S_MAX)

    def _render(self, node_id: NodeId, shared: dict[SegmentId, tuple[StationWish, ...]]) -> None:
        if self._context.index.find_value(Node, node_id) is None:
            return
        self._revision = max(self._revision + 1, int(self._clock.now_s() * 1000))
        wish = fabric_wish(self._context, node_id, self._revision, shared=shared)
        sent = self._sent.get(node_id)
        if sent is not None and replace(sent, revision=self._revision) == wish:
            return
        self._sent[node_id] = wish
        self._slot(node_id).put(wish)
