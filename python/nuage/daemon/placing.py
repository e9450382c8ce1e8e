"""The Master and Local Agent of a controller, on the channels between sites.

Bids and commitments to this site are plain calls; to others they travel as one message for all
requests of a turn. A commitment carries the draft of what the elected site shall enter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from structlog.contextvars import bound_contextvars

from nuage.catalogue.feed import FeedItem, admit, item_of
from nuage.channel import Handlers, Peer, current_request_id
from nuage.clock import Clock
from nuage.errors import NoCandidate, NuageError, SiteUnreachable, TimedOut
from nuage.iaas.arrivals import enter
from nuage.iaas.site import ArrivalDraft, Draft, OtherSites, Site
from nuage.ids import NodeId, RequestId, SiteId
from nuage.model.infrastructure import NodeRole
from nuage.model.placement import Bid, Decision, Refusal, VmRequest
from nuage.model.record import Record
from nuage.placement.placer import Placer
from nuage.placement.rack_agents import SiteAgent
from nuage.storage.places import PROMISED

BIDS_METHOD: Final = "placement.bids"
COMMIT_METHOD: Final = "placement.commit"
RELEASE_NOTICE: Final = "placement.release"
MIN_WAIT_S: Final = 0.05
REFUSALS_TOLD: Final = 4  # of IO-nodes, in the one line that a decision keeps of a site
log = structlog.get_logger("placing")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskBids:
    """Requests of one turn, for one site."""

    requests: tuple[VmRequest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskCommit:
    """An election, for the elected site."""

    node_id: NodeId
    request: VmRequest
    draft: Draft


@dataclass(frozen=True, slots=True, kw_only=True)
class AskRelease:
    """A promise that is not needed."""

    node_id: NodeId
    request_id: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The elected site's word: no refusal when the VM stands in its catalogue.

    `items` are the records it entered, so that the asking site need not wait for its feed.
    """

    refusal: Refusal | None
    items: tuple[FeedItem, ...] = ()


class LocalPlacing:
    """Answers for this site's Local Agent, to its own Master Agent and to others'."""

    def __init__(self, agent: SiteAgent, clock: Clock) -> None:
        self.agent = agent
        self._clock = clock
        self._site: Site | None = None

    def serve(self, site: Site) -> None:
        """Name the site into whose catalogue elections are entered."""
        self._site = site

    def bids(self, requests: tuple[VmRequest, ...]) -> tuple[Bid, ...]:
        """Answer requests from the table."""
        now_s = self._clock.now_s()
        return tuple(self.agent.bid(request, now_s) for request in requests)

    async def commit(self, ask: AskCommit) -> Refusal | None:
        """Keep room, enter the draft, confirm; give the room back when that fails."""
        assert self._site is not None
        kept = self.agent.reserve(ask.request, ask.node_id, self._clock.now_s())
        if isinstance(kept, Refusal):
            return kept
        try:
            await enter(self._site, ask.node_id, ask.draft)
        except NuageError as error:
            self.agent.release(ask.request.request_id, ask.node_id)
            return _refusal(self._site.site_id, ask.node_id, error)
        self.agent.confirm(ask.request.request_id)
        log.info("committed", vm=ask.request.vm_id, on=ask.node_id)
        return None

    def _entered(self, ask: AskCommit) -> tuple[FeedItem, ...]:
        assert self._site is not None
        kind = "migration" if isinstance(ask.draft, ArrivalDraft) else "vm"
        record = self._site.index.find(kind, ask.request.vm_id)
        return () if record is None else (item_of(record),)

    def register(self, handlers: Handlers) -> None:
        """Enter the methods that other sites' Master Agents call."""
        controllers = {NodeRole.CONTROLLER}

        @handlers.method(BIDS_METHOD, AskBids, roles=controllers)
        async def bids(_peer: Peer, ask: AskBids) -> tuple[Bid, ...]:
            return self.bids(ask.requests)

        @handlers.method(COMMIT_METHOD, AskCommit, roles=controllers, runs_to_end=True)
        async def commit(_peer: Peer, ask: AskCommit) -> Committed:
            refusal = await self.commit(ask)
            return Committed(refusal=refusal, items=self._entered(ask) if refusal is None else ())

        @handlers.notice(RELEASE_NOTICE, AskRelease, roles=controllers)
        async def release(_peer: Peer, ask: AskRelease) -> None:
            self.agent.release(ask.request_id, ask.node_id)


def _refusal(site_id: SiteId, node_id: NodeId, error: NuageError) -> Refusal:
    """Return why a commitment failed: of the whole site, where no V-node of it would help."""
    if not isinstance(error, NoCandidate):
        return Refusal(site_id=site_id, node_id=node_id, rule=error.code, reason=error.message)
    refusals = sorted(error.refusals, key=lambda refusal: refusal[1] != PROMISED)
    told = "; ".join(f"{who}: {reason}" for who, _, reason in refusals[:REFUSALS_TOLD])
    return Refusal(
        site_id=site_id,
        node_id=None,
        rule=PROMISED if refusals and refusals[0][1] == PROMISED else error.code,
        reason=f"{error.message}: {told}" if told else error.message,
    )


class PlacementOnChannels:
    """`placement.placer.PlacementTransport` over the channels to other sites."""

    def __init__(
        self,
        site_id: SiteId,
        local: LocalPlacing,
        others: OtherSites,
        clock: Clock,
        *,
        show: Callable[[Record], None],
    ) -> None:
        self._site_id = site_id
        self._show = show
        self._local = local
        self._others = others
        self._clock = clock
        self.drafts: dict[RequestId, Draft] = {}
        self.asked_by: dict[RequestId, str] = {}  # the API request behind each, for logs

    async def ask(
        self, site_id: SiteId, requests: tuple[VmRequest, ...], deadline_s: float
    ) -> tuple[Bid, ...]:
        """Return a site's bids, one per request in their order."""
        if site_id == self._site_id:
            return self._local.bids(requests)
        try:
            return await self._others.ask(
                site_id,
                BIDS_METHOD,
                AskBids(requests=requests),
                tuple[Bid, ...],
                timeout_s=self._left_s(deadline_s),
            )
        except TimedOut as error:
            raise SiteUnreachable(site_id, doing="asking for bids") from error

    async def commit(
        self, site_id: SiteId, node_id: NodeId, request: VmRequest, deadline_s: float
    ) -> Refusal | None:
        """Have the elected site commit."""
        # A round is shared: what runs here may stand in another request's context.
        with bound_contextvars(request_id=self.asked_by.get(request.request_id, "")):
            return await self._commit(site_id, node_id, request, deadline_s)

    async def _commit(
        self, site_id: SiteId, node_id: NodeId, request: VmRequest, deadline_s: float
    ) -> Refusal | None:
        draft = self.drafts[request.request_id]
        ask = AskCommit(node_id=node_id, request=request, draft=draft)
        if site_id == self._site_id:
            return await self._local.commit(ask)
        try:
            answer = await self._others.ask(
                site_id, COMMIT_METHOD, ask, Committed, timeout_s=self._left_s(deadline_s)
            )
        except TimedOut as error:
            raise SiteUnreachable(site_id, doing="committing a placement") from error
        for item in answer.items:
            record = admit(item, site_id)
            if isinstance(record, Record):
                self._show(record)
        return answer.refusal

    async def release(self, site_id: SiteId, node_id: NodeId, request_id: RequestId) -> None:
        """Give a promise back."""
        if site_id == self._site_id:
            self._local.agent.release(request_id, node_id)
        else:
            self._others.tell(
                site_id, RELEASE_NOTICE, AskRelease(node_id=node_id, request_id=request_id)
            )

    def _left_s(self, deadline_s: float) -> float:
        return max(deadline_s - self._clock.monotonic_s(), MIN_WAIT_S)


class DraftingPlacer:
    """`iaas.site.Placer`: places a request and has its draft entered where it is elected."""

    def __init__(self, placer: Placer, transport: PlacementOnChannels) -> None:
        self._placer = placer
        self._transport = transport

    async def place(self, request: VmRequest, draft: Draft) -> Decision:
        """Run steps 2 to 5."""
        self._transport.drafts[request.request_id] = draft
        self._transport.asked_by[request.request_id] = current_request_id()
        try:
            return await self._placer.place(request)
        finally:
            del self._transport.drafts[request.request_id]
            del self._transport.asked_by[request.request_id]
