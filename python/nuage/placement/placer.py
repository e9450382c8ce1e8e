"""The loop around a Master Agent: the only asynchronous file of placement.

`Placer.place` is what the rest of the product calls. How bids and commitments travel is
the caller's (`PlacementTransport`): in a controller over mutual TLS to the other sites and
by plain call to its own, in tests in memory. Requests that arrive in one turn of the event
loop share one round, so a burst costs each site one message.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from nuage.clock import Clock
from nuage.errors import NuageError
from nuage.ids import NodeId, RequestId, SiteId
from nuage.model.placement import Bid, Decision, Refusal, VmRequest
from nuage.placement.master_agent import (
    AskSite,
    BidsArrived,
    Commit,
    CommitLost,
    CommitRefused,
    Committed,
    Decided,
    Effect,
    Event,
    MasterAgent,
    Release,
    SiteFailed,
    no_candidate,
)


class PlacementTransport(Protocol):
    """Reaches the Local Agents. Any NuageError means: not known to have worked."""

    async def ask(
        self, site_id: SiteId, requests: tuple[VmRequest, ...], deadline_s: float
    ) -> tuple[Bid, ...]:
        """Return the site's bids, one per request in their order."""
        ...

    async def commit(
        self, site_id: SiteId, node_id: NodeId, request: VmRequest, deadline_s: float
    ) -> Refusal | None:
        """Have the site commit; None when it has, the refusal when it has not."""
        ...

    async def release(self, site_id: SiteId, node_id: NodeId, request_id: RequestId) -> None:
        """Tell the site to give a promise back; may be lost."""
        ...


class Placer:
    """Places VMs over the sites that `sites` names at the time of each request."""

    def __init__(
        self,
        agent: MasterAgent,
        transport: PlacementTransport,
        clock: Clock,
        *,
        sites: Callable[[], Sequence[SiteId]],
    ) -> None:
        self._agent = agent
        self._transport = transport
        self._clock = clock
        self._sites = sites
        self._pending: list[VmRequest] = []
        self._answers: dict[RequestId, asyncio.Future[Decision]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarm: tuple[float, asyncio.Task[None]] | None = None

    async def place(self, request: VmRequest) -> Decision:
        """Return the decision once the elected site has committed.

        Raises:
            NoCandidate: every candidate refused or stayed silent; each refusal is kept.
            InvalidRequest: the request names a policy that does not exist.
        """
        decision = await self.decide(request)
        if decision.elected is None:
            raise no_candidate(decision)
        return decision

    async def decide(self, request: VmRequest) -> Decision:
        """Return the decision, whether or not it elected a node."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Decision] = loop.create_future()
        self._answers[request.request_id] = answer
        if not self._pending:
            loop.call_soon(self._flush)
        self._pending.append(request)
        try:
            return await answer
        finally:
            self._answers.pop(request.request_id, None)

    async def close(self) -> None:
        """Cancel what is on its way; requests not decided stay undecided."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _flush(self) -> None:
        requests, self._pending = self._pending, []
        now_s = self._clock.monotonic_s()
        for policy in dict.fromkeys(request.policy for request in requests):
            together = [request for request in requests if request.policy == policy]
            try:
                effects = self._agent.submit(together, self._sites(), now_s)
            except NuageError as error:
                for request in together:
                    answer = self._answers.get(request.request_id)
                    if answer is not None and not answer.done():
                        answer.set_exception(error)
                continue
            self._perform(effects)

    def _take(self, event: Event) -> None:
        self._perform(self._agent.receive(event, self._clock.monotonic_s()))

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case AskSite():
                    self._start(self._ask(effect))
                case Commit():
                    self._start(self._commit(effect))
                case Release():
                    self._start(self._release(effect))
                case Decided(decision=decision):
                    answer = self._answers.get(decision.request_id)
                    if answer is not None and not answer.done():
                        answer.set_result(decision)
        self._set_alarm()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, effect: AskSite) -> None:
        try:
            bids = await self._transport.ask(effect.site_id, effect.requests, effect.deadline_s)
        except NuageError:
            self._take(SiteFailed(effect.site_id, effect.round_id))
        else:
            self._take(BidsArrived(effect.site_id, effect.round_id, bids))

    async def _commit(self, effect: Commit) -> None:
        request_id = effect.request.request_id
        try:
            refusal = await self._transport.commit(
                effect.site_id, effect.node_id, effect.request, effect.deadline_s
            )
        except NuageError as error:  # it may have taken effect all the same
            self._take(CommitLost(request_id, effect.site_id, effect.node_id, reason=error.message))
            return
        if refusal is None:
            self._take(Committed(request_id, effect.site_id, effect.node_id))
        else:
            self._take(CommitRefused(request_id, refusal))

    async def _release(self, effect: Release) -> None:
        try:
            await self._transport.release(effect.site_id, effect.node_id, effect.request_id)
        except NuageError:
            return  # the promise expires on its own

    def _set_alarm(self) -> None:
        deadline_s = self._agent.next_deadline_s()
        if self._alarm is not None:
            if deadline_s is None or self._alarm[0] <= deadline_s:
                return  # waking early is harmless, and cheaper than a task per event
            self._alarm[1].cancel()
            self._alarm = None
        if deadline_s is not None:
            task = asyncio.ensure_future(self._wake_at(deadline_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._alarm = (deadline_s, task)

    async def _wake_at(self, deadline_s: float) -> None:
        await self._clock.sleep(max(deadline_s - self._clock.monotonic_s(), 0.0))
        self._alarm = None
        self._perform(self._agent.tick(self._clock.monotonic_s()))
