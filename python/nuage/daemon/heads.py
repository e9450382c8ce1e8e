"""Watches the IO-nodes of a site, so that a lost head opens elsewhere within moments.

An agent that falls silent, or whose channel closes, is only in doubt: it may be restarting while
its storage daemons serve. So the heads' own portals are tried. A portal that refuses or does not
answer twice in a row is taken for lost; if that was wrong, the copies' promise stops the old head
all the same. A head that was to open there waits for the agent, whatever serves beside it: it opens
at another copy. Beside that, slow steps (`iaas.heads`) are looked for now and then.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from nuage.channel import Handlers, Peer, accepts
from nuage.daemon.nodes import NodeSessions
from nuage.daemon.process import Tasks
from nuage.errors import NuageError
from nuage.iaas.conditions import (
    CONDITION_METHOD,
    AskCondition,
    CopyCondition,
    condition_here,
)
from nuage.iaas.erasure import ERASED_METHOD, CopyErased, copy_erased, take_report
from nuage.iaas.heads import TAKE_HEAD_METHOD, HeadKeeper, TakeHead
from nuage.iaas.keys import UNLOCK_METHOD, UnlockHere, give_keys, unlock_here
from nuage.iaas.rekeying import KeyWatch
from nuage.iaas.site import Site
from nuage.iaas.templates import Templates
from nuage.ids import NodeId, SiteId
from nuage.model.desired import IonodeReport
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.volume import Volume, VolumeState
from nuage.storage.heads import is_settled

WATCH_EVERY_S: Final = 0.2
LOOK_EVERY_S: Final = 1.0
PROBE_TIMEOUT_S: Final = 0.3  # a portal of the same site accepts within a millisecond
PROBES: Final = 2
PROBE_REST_S: Final = 0.1
OPENS_WITHIN_S: Final = 1.0  # of doubt: an agent that was cut off is back, one that begins is not
log = structlog.get_logger("heads")


class HeadWatch:
    """The loops around one site's `HeadKeeper`."""

    def __init__(
        self,
        site: Site,
        keeper: HeadKeeper,
        sessions: NodeSessions,
        tasks: Tasks,
        *,
        on_lost: Callable[[NodeId], None],
    ) -> None:
        self._on_lost = on_lost
        self._site = site
        self._keeper = keeper
        self._sessions = sessions
        self._tasks = tasks
        self._lost: set[NodeId] = set()
        self._doubted_s: dict[NodeId, float] = {}  # since when
        self._keys = KeyWatch(site)

    def register(self, handlers: Handlers) -> None:
        """Answer other sites."""
        controllers = {NodeRole.CONTROLLER}

        @handlers.method(TAKE_HEAD_METHOD, TakeHead, roles=controllers, runs_to_end=True)
        async def take(_peer: Peer, asked: TakeHead) -> None:
            await self._keeper.take(asked)

        @handlers.method(CONDITION_METHOD, AskCondition, roles=controllers)
        async def condition(_peer: Peer, asked: AskCondition) -> CopyCondition:
            return await condition_here(self._site, asked)

        @handlers.method(UNLOCK_METHOD, UnlockHere, roles=controllers)
        async def unlock(_peer: Peer, asked: UnlockHere) -> None:
            unlock_here(self._site, asked)

        @handlers.method(ERASED_METHOD, CopyErased, roles=controllers)
        async def erased(_peer: Peer, done: CopyErased) -> None:
            await copy_erased(self._site, done)

    def start(self) -> None:
        """Begin to watch."""
        self._tasks.keep("heads", self._watch)
        self._tasks.keep("copies", self._look)
        self._tasks.keep("templates", Templates(self._site).watch)

    def take_report(self, report: IonodeReport) -> None:
        """Hear what an IO-node of this site reports."""
        if report.node_id in self._lost:
            self._lost.discard(report.node_id)
            log.info("IO-node is back", node=report.node_id)
        self._keeper.take_report(report)
        if report.locked:
            self._tasks.start(f"keys {report.node_id}", give_keys(self._site, report))
        if report.erased:
            self._tasks.start(f"erased {report.node_id}", take_report(self._site, report))
        for head in report.heads:
            if head.state != "failed" or not head.failure or head.is_lost or head.is_locked:
                continue  # lost wherever it opens; a key is given here, or unlocked for all sites
            for volume in self._keeper.heads_on(report.node_id):
                if (volume.volume_id, volume.epoch) == (head.volume_id, head.epoch):
                    failed = self._failed(volume.volume_id, head.failure)
                    self._tasks.start(f"failed {volume.volume_id}", failed)

    async def _failed(self, volume_id: str, reason: str) -> None:
        for volume in self._keeper.own():
            if volume.volume_id == volume_id and volume.state is VolumeState.READY:
                await self._keeper.head_failed(volume, reason)

    async def _watch(self) -> None:
        while True:
            await self._site.clock.sleep(WATCH_EVERY_S)
            doubtful = [
                node.node_id
                for node in self._site.index.values(Node)
                if node.site_id == self._site.site_id
                and NodeRole.IONODE in node.roles
                and node.node_id not in self._lost
                and self._sessions.is_in_doubt(node.node_id)
            ]
            await self.look_into(doubtful)

    async def look_into(self, doubtful: Sequence[NodeId]) -> None:
        """Look whether the heads of all nodes that are in doubt now still serve."""
        now_s = self._site.clock.monotonic_s()
        self._doubted_s = {node_id: self._doubted_s.get(node_id, now_s) for node_id in doubtful}
        await asyncio.gather(*(self._look_into(node_id) for node_id in doubtful))

    async def _look_into(self, node_id: NodeId) -> None:
        volumes = self._keeper.heads_on(node_id)
        looked_at = volumes
        if self._sessions.is_connected(node_id):
            # One that opens still has the portal where it was before, which tells of another node.
            looked_at = [volume for volume in volumes if is_settled(volume)] or volumes
        portals = sorted({volume.portal for volume in looked_at if volume.portal})
        node = self._site.index.find_value(Node, node_id)
        is_revoked = node is not None and node.is_revoked  # its portals may answer: to nobody's use
        if not is_revoked and (
            not portals or all(await asyncio.gather(*(answers(p) for p in portals)))
        ):
            await self._open_elsewhere(node_id, [v for v in volumes if not is_settled(v)])
            return
        if not self._sessions.is_in_doubt(node_id):
            return
        self._lost.add(node_id)
        log.warning("IO-node lost", lost=node_id, heads=len(volumes))
        self._on_lost(node_id)
        try:
            await self._keeper.node_lost(node_id)
        except NuageError as error:
            log.warning("heads not moved", lost=node_id, error=error.message)

    async def _open_elsewhere(self, node_id: NodeId, opening: Sequence[Volume]) -> None:
        """Have the heads that wait for an agent open at other copies, once it was away for long."""
        now_s = self._site.clock.monotonic_s()
        if not opening or now_s - self._doubted_s.get(node_id, now_s) < OPENS_WITHIN_S:
            return
        if not self._sessions.is_in_doubt(node_id):
            return
        reason = f"the agent of its IO-node {node_id} is away"
        moved = [await self._keeper.open_elsewhere(volume, reason) for volume in opening]
        if any(moved):
            self._on_lost(node_id)  # other sites would send them back

    async def _look(self) -> None:
        while True:
            await self._site.clock.sleep(LOOK_EVERY_S)
            for node_id in list(self._lost):  # what could not be moved at once
                await self._keeper.node_lost(node_id)
            await self._keys.look()
            await self._keeper.look()

    async def take_over(self, alive: frozenset[SiteId]) -> None:
        """Take heads over from sites whose lease has run out."""
        await self._keeper.take_over(alive)


async def answers(portal: str) -> bool:
    """Tell whether anything accepts connections at ``host:port``, with one more try."""
    delays_s = [attempt * PROBE_REST_S for attempt in range(PROBES)]
    return any(await asyncio.gather(*(_accepts(portal, after_s) for after_s in delays_s)))


async def _accepts(portal: str, after_s: float) -> bool:
    """Try a portal in a moment. A silent one costs the last try's time, not the sum of all."""
    await asyncio.sleep(after_s)
    return await accepts(portal, timeout_s=PROBE_TIMEOUT_S)
