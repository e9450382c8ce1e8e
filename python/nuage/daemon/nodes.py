"""Sessions of this site's nodes: wishes go down as a stream, reports come up as calls.

A wish is a whole desired state; a node that was away gets the newest when it subscribes, never a
backlog. A node that is silent for `NODE_LOST_AFTER_S` is announced as lost; one whose agent said
goodbye, as each does that is stopped in order, only after `RESTARTS_WITHIN_S`. Whether its silence
may cost it its power is another question (`NodeSessions.why_not_fence`): it is not answered from a
controller that has only just begun, was stalled, or hears nobody at all.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import structlog

from nuage.channel import ChannelServer, Handlers, Peer
from nuage.clock import Clock
from nuage.errors import Forbidden, Unavailable
from nuage.ids import NodeId, SiteId
from nuage.model.desired import IonodeReport, IonodeWish, VnodeReport, VnodeWish
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.status import NODE_LOST_AFTER_S

R = TypeVar("R")
IN_DOUBT_AFTER_S: Final = 2.5  # IO-nodes report every second
RESTARTS_WITHIN_S: Final = 15.0  # an agent that said goodbye; a new release is unpacked by then
GOODBYE_METHOD: Final = "node.goodbye"
WATCH_EVERY_S: Final = 1.0
STALLED_S: Final = 2.0  # a watch that comes so late tells that this process did not run
START_GRACE_S: Final = 30.0  # for nodes not heard since the controller began
RETURN_GRACE_S: Final = 15.0  # after a stall, or silence of all: above `channel`'s longest back-off
log = structlog.get_logger("nodes")


@dataclass(frozen=True, slots=True)
class FollowWishes:
    """A node asks for its wishes."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """A node's agent is stopped in order; what it looks after goes on, and it is back soon."""


@dataclass(frozen=True, slots=True)
class ReportTaken:
    """The site has the report. `lease_s` counts from when the report was sent; 0: none held.

    It is worth something for the VMs of wishes of that `lease_term` and later ones.
    """

    lease_s: float = 0.0
    lease_term: int = 0


class Numbered(Protocol):
    """A wish: newer ones have higher numbers."""

    @property
    def revision(self) -> int:
        """Return its number."""
        ...


W = TypeVar("W", bound=Numbered)


class WishSlot(Generic[W]):
    """The newest wish of a node; readers wait for a newer one."""

    def __init__(self) -> None:
        self._wish: W | None = None
        self._withheld = 0
        self._changed = asyncio.Event()

    @property
    def wish(self) -> W | None:
        """Return the newest wish, if there is one to be told."""
        return self._wish

    def withhold(self) -> None:
        """Tell nothing from now on, until a wish is put after as many `release`s."""
        self._wish = None
        self._withheld += 1

    def release(self) -> None:
        """Let the next wish be told."""
        self._withheld -= 1

    def put(self, wish: W) -> None:
        """Replace the wish, unless it is withheld."""
        if self._withheld:
            return
        self._wish = wish
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self) -> AsyncIterator[W]:
        """Yield the wish, and then each newer one, skipping those that were replaced."""
        sent = -1
        while True:
            changed = self._changed
            if self._wish is not None and self._wish.revision > sent:
                sent = self._wish.revision
                yield self._wish
            else:
                await changed.wait()


@dataclass(slots=True)
class Reactions:
    """What the controller does about its nodes."""

    hello: Callable[[Node], Awaitable[None]]
    vnode_report: Callable[[VnodeReport], None]
    ionode_report: Callable[[IonodeReport], None]
    subscribed: Callable[[NodeId, NodeRole], None]
    goodbye: Callable[[NodeId], None]
    lost: Callable[[NodeId], None]
    lease_s: Callable[[], float]
    lease_term: Callable[[], int]

    def taken(self) -> ReportTaken:
        """Return the answer to a node that spoke."""
        return ReportTaken(self.lease_s(), self.lease_term())


class NodeSessions:
    """The nodes connected now, and what each was told last."""

    def __init__(self, site_id: SiteId, clock: Clock) -> None:
        self._site_id = site_id
        self._clock = clock
        self._slots: dict[NodeId, WishSlot[VnodeWish | IonodeWish]] = {}
        self._seen_s: dict[NodeId, float] = {}
        self._left_s: dict[NodeId, float] = {}  # said goodbye, and not heard since
        self._lost: set[NodeId] = set()
        self._awaited_s: dict[NodeId, float] = {}  # not heard yet, and since when
        self._doubt_until_s = float("-inf")  # our own ears are not to be trusted until then
        self._doubt = ""
        self._watched_s: float | None = None
        self._server: ChannelServer | None = None
        self._on_lost: Callable[[NodeId], None] = lambda _node_id: None

    def serve_on(self, server: ChannelServer) -> None:
        """Name the server whose peers these sessions are."""
        self._server = server

    def register(self, handlers: Handlers, reactions: Reactions) -> None:
        """Enter the methods that agents call."""
        agents = {NodeRole.VNODE, NodeRole.IONODE, NodeRole.EDGE}

        @handlers.method("node.hello", Node, roles=agents)
        async def hello(peer: Peer, node: Node) -> ReportTaken:
            self._require_self(peer, node.node_id)
            self._heard(node.node_id)
            await reactions.hello(node)
            return reactions.taken()

        @handlers.method(GOODBYE_METHOD, Goodbye, roles=agents)
        async def goodbye(peer: Peer, _body: Goodbye) -> None:
            self._heard(peer.identity.node_id)
            reactions.goodbye(peer.identity.node_id)

        @handlers.method("vnode.report", VnodeReport, roles={NodeRole.VNODE})
        async def vnode_report(peer: Peer, report: VnodeReport) -> ReportTaken:
            self._require_self(peer, report.node_id)
            self._heard(report.node_id)
            reactions.vnode_report(report)
            return reactions.taken()

        @handlers.method("ionode.report", IonodeReport, roles={NodeRole.IONODE})
        async def ionode_report(peer: Peer, report: IonodeReport) -> ReportTaken:
            self._require_self(peer, report.node_id)
            self._heard(report.node_id)
            reactions.ionode_report(report)
            return reactions.taken()

        @handlers.stream("vnode.wishes", FollowWishes, roles={NodeRole.VNODE})
        async def vnode_wishes(peer: Peer, _body: FollowWishes) -> AsyncIterator[object]:
            reactions.subscribed(peer.identity.node_id, NodeRole.VNODE)
            async for wish in self.slot(peer.identity.node_id).follow():
                yield wish

        @handlers.stream("ionode.wishes", FollowWishes, roles={NodeRole.IONODE})
        async def ionode_wishes(peer: Peer, _body: FollowWishes) -> AsyncIterator[object]:
            reactions.subscribed(peer.identity.node_id, NodeRole.IONODE)
            async for wish in self.slot(peer.identity.node_id).follow():
                yield wish

        self._on_lost = reactions.lost

    def slot(self, node_id: NodeId) -> WishSlot[VnodeWish | IonodeWish]:
        """Return the wish slot of a node."""
        return self._slots.setdefault(node_id, WishSlot())

    def withhold(self, node_id: NodeId) -> None:
        """Tell a node nothing while what it ran is being started elsewhere."""
        self.slot(node_id).withhold()

    def release(self, node_id: NodeId) -> None:
        """Tell a node again what it shall do, as it is worked out from now on."""
        self.slot(node_id).release()

    def was_heard_since(self, node_id: NodeId, moment_s: float) -> bool:
        """Tell whether a node spoke after a moment of the monotonic clock."""
        seen_s = self._seen_s.get(node_id)
        return seen_s is not None and seen_s >= moment_s

    def is_connected(self, node_id: NodeId) -> bool:
        """Tell whether a node is not lost: it was heard just now, or its agent restarts."""
        left_s = self._left_s.get(node_id)
        if left_s is not None and self._clock.monotonic_s() - left_s < RESTARTS_WITHIN_S:
            return True
        return self._is_heard(node_id)

    def _is_heard(self, node_id: NodeId) -> bool:
        seen_s = self._seen_s.get(node_id)
        return seen_s is not None and self._clock.monotonic_s() - seen_s < NODE_LOST_AFTER_S

    def expect_back(self, node_id: NodeId) -> None:
        """Wait longer for a node whose agent has just said goodbye."""
        self._left_s[node_id] = self._clock.monotonic_s()

    def hear(self, peer: Peer, node_id: NodeId) -> None:
        """Note that a node spoke for itself.

        Raises:
            Forbidden: it spoke for another.
        """
        self._require_self(peer, node_id)
        self._heard(node_id)

    def is_in_doubt(self, node_id: NodeId) -> bool:
        """Tell whether a node has no channel now, or has been quiet for longer than it should."""
        seen_s = self._seen_s.get(node_id)
        if seen_s is None or self._server is None:
            return False
        is_quiet = self._clock.monotonic_s() - seen_s > IN_DOUBT_AFTER_S
        return is_quiet or self.is_away(node_id)

    def is_away(self, node_id: NodeId) -> bool:
        """Tell whether a node that was heard has no channel now: it can be asked nothing."""
        if node_id not in self._seen_s or self._server is None:
            return False
        return not self._server.find_peers(node_id=node_id)

    def expect(self, node_id: NodeId) -> None:
        """Begin to wait for a node that the catalogue knows: it is lost if it stays silent."""
        now_s = self._clock.monotonic_s()
        if node_id not in self._seen_s:
            self._seen_s[node_id] = self._awaited_s[node_id] = now_s

    def why_not_fence(self, node_id: NodeId) -> str:
        """Return why a node's silence may be this controller's own deafness, or ""."""
        now_s = self._clock.monotonic_s()
        self._look_at_ourselves(now_s)
        if now_s < self._doubt_until_s:
            return self._doubt
        awaited_s = self._awaited_s.get(node_id)
        if awaited_s is not None and now_s - awaited_s < START_GRACE_S:
            return "it was not heard yet since this controller began"
        return ""

    def _look_at_ourselves(self, now_s: float) -> None:
        """Doubt what we hear when we did not run, or when all fell silent at once."""
        before_s = self._watched_s
        if before_s is not None and now_s - before_s > WATCH_EVERY_S + STALLED_S:
            self._doubt = "this controller itself was stalled"
            self._doubt_until_s = now_s + RETURN_GRACE_S
        elif not any(self._is_heard(node_id) for node_id in self._seen_s):
            self._doubt = "all nodes of the site are silent: this controller may be cut off"
            self._doubt_until_s = now_s + RETURN_GRACE_S

    async def watch(self) -> None:
        """Announce nodes that fall silent; runs for ever."""
        self._watched_s = self._clock.monotonic_s()
        while True:
            await self._clock.sleep(WATCH_EVERY_S)
            now_s = self._clock.monotonic_s()
            self._look_at_ourselves(now_s)
            self._watched_s = now_s
            for node_id in self._seen_s:
                if self.is_connected(node_id):
                    self._lost.discard(node_id)
                elif node_id not in self._lost:
                    self._lost.add(node_id)
                    log.warning("node lost", lost=node_id)
                    self._on_lost(node_id)

    async def ask(
        self, node_id: NodeId, method: str, body: object, result: type[R], *, timeout_s: float
    ) -> R:
        """Ask a node's agent (`iaas.site.Nodes`)."""
        return await self._peer(node_id).call(method, body, result, timeout_s)

    def subscribe(
        self, node_id: NodeId, method: str, body: object, item_type: type[R]
    ) -> AsyncIterator[R]:
        """Follow a stream of a node's agent (`iaas.site.Nodes`)."""
        return self._peer(node_id).subscribe(method, body, item_type)

    def _peer(self, node_id: NodeId) -> Peer:
        peers = () if self._server is None else self._server.find_peers(node_id=node_id)
        if not peers:
            raise Unavailable(
                f"node {node_id} is not connected to site {self._site_id}",
                hint="`nuage node list` shows which nodes are",
            )
        return peers[-1]

    def _require_self(self, peer: Peer, node_id: NodeId) -> None:
        if peer.identity.node_id != node_id:
            raise Forbidden(f"{peer.identity} may not speak for node {node_id}")

    def _heard(self, node_id: NodeId) -> None:
        self._awaited_s.pop(node_id, None)
        self._left_s.pop(node_id, None)
        self._seen_s[node_id] = self._clock.monotonic_s()
