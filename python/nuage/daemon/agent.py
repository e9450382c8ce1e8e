"""What every agent does alike: one channel to its controller, wishes down, reports up.

The channel comes and goes; the agent behind it goes on with its last wish either way.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from random import Random
from typing import Final, Generic, TypeVar

import structlog

from nuage import __version__
from nuage.channel import ChannelClient, ChannelState, Expected, Handlers
from nuage.clock import Clock
from nuage.daemon.agent_trust import TRUST_STREAM, AgentTrust, TrustWish
from nuage.daemon.configuration import AgentConfiguration
from nuage.daemon.nodes import GOODBYE_METHOD, FollowWishes, Goodbye, ReportTaken
from nuage.daemon.process import Tasks
from nuage.errors import Conflict, NuageError, Unavailable
from nuage.model.infrastructure import NodeRole
from nuage.trust.renewal import RENEW_METHOD, RenewAnswer, Renewer, RenewRequest
from nuage.trust.store import TrustStore

WishT = TypeVar("WishT")
ReportT = TypeVar("ReportT")
AnyWish = TypeVar("AnyWish")
REPORT_EVERY_S: Final = 2.0
CALL_TIMEOUT_S: Final = 5.0
GOODBYE_TIMEOUT_S: Final = (
    1.0  # it saves the controller a doubt, and is not worth a stop that waits
)
RETRY_S: Final = 0.5
TERMS_MAX: Final = 4
log = structlog.get_logger("agent")


class HeardLeases:
    """How long the site's lease holds, by this node's monotonic clock.

    Each answer counts from when what it answers was sent, so a late one is worth less, and no
    clock needs to agree with another. Between two terms other sites may have taken VMs over: a
    wish rests on its own term's lease and on those before it, never on a later one's.
    """

    def __init__(self) -> None:
        self._until_s: dict[int, float] = {}

    def hear(self, term: int, until_s: float) -> None:
        """Note what an answer told."""
        self._until_s[term] = max(until_s, self._until_s.get(term, until_s))
        if len(self._until_s) > TERMS_MAX:
            del self._until_s[min(self._until_s)]

    def until_s(self, term: int) -> float | None:
        """Return until when a wish of `term` holds; None when nothing was heard of any lease."""
        if not self._until_s:
            return None
        known = (until_s for heard, until_s in self._until_s.items() if heard <= term)
        return max(known, default=float("-inf"))


class AgentChannel(Generic[WishT, ReportT]):
    """Keeps an agent and its controller in touch."""

    def __init__(
        self,
        configuration: AgentConfiguration,
        role: NodeRole,
        handlers: Handlers,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._node = replace(configuration.node, version=__version__)
        self._role = role
        self._tasks = tasks
        self._clock = clock
        self._store = TrustStore(configuration.trust_dir)
        identity = self._store.identity()
        self._opened = asyncio.Event()
        self.trust = AgentTrust(self._store)
        self.leases = HeardLeases()
        self.client = ChannelClient(
            configuration.controller,
            self._store.client_context(),
            handlers,
            clock,
            expected=Expected(
                identity.federation_id, site_id=identity.site_id, role=NodeRole.CONTROLLER
            ),
            admit=self.trust.admit,
            on_state=self._state_changed,
        )

    def _state_changed(self, state: ChannelState, reason: str) -> None:
        log.info("controller", state=state.value, reason=reason)
        if state is ChannelState.READY:
            self._opened.set()

    def start(
        self,
        *,
        wish_type: type[WishT],
        take_wish: Callable[[WishT], Awaitable[None]],
        reports: Callable[[], AsyncIterator[ReportT]],
        wishes: str = "",
    ) -> None:
        """Begin to talk. `wishes` names the stream of wishes: the role's own when left out."""
        self.client.start()
        stream = wishes or f"{self._role.value}.wishes"
        self._tasks.keep(
            "wishes", lambda: self._follow(stream, wish_type, take_wish, says_hello=True)
        )
        self.follow(TRUST_STREAM, TrustWish, self._take_trust)
        self._tasks.keep("reports", lambda: self._report(reports))
        renewer = Renewer(self._store, self._renew, self._clock, Random())
        self._tasks.keep("renewal", renewer.run)

    def follow(
        self, stream: str, wish_type: type[AnyWish], take_wish: Callable[[AnyWish], Awaitable[None]]
    ) -> None:
        """Follow one more stream of wishes."""
        self._tasks.keep(
            stream, lambda: self._follow(stream, wish_type, take_wish, says_hello=False)
        )

    async def _take_trust(self, wish: TrustWish) -> None:
        self.trust.take(wish, self.client)

    async def _renew(self, request: RenewRequest) -> RenewAnswer:
        return await self.client.call(RENEW_METHOD, request, RenewAnswer)

    async def _wait_open(self) -> None:
        while not self.client.is_ready:
            self._opened.clear()
            await self._opened.wait()

    async def _follow(
        self,
        name: str,
        wish_type: type[AnyWish],
        take_wish: Callable[[AnyWish], Awaitable[None]],
        *,
        says_hello: bool,
    ) -> None:
        while True:
            await self._wait_open()
            try:
                if says_hello:
                    await self.client.call("node.hello", self._node, ReportTaken, CALL_TIMEOUT_S)
                stream = self.client.subscribe(name, FollowWishes(), wish_type)
                async for wish in stream:
                    try:
                        await take_wish(wish)
                    except Conflict as error:
                        log.warning("wish refused", reason=error.message)
            except NuageError as error:
                log.info("wishes interrupted", reason=error.message)
                await self._clock.sleep(RETRY_S)

    async def _report(self, reports: Callable[[], AsyncIterator[ReportT]]) -> None:
        async for report in reports():
            sent_s = self._clock.monotonic_s()
            try:
                taken = await self.client.call(
                    f"{self._role.value}.report", report, ReportTaken, CALL_TIMEOUT_S
                )
            except Unavailable:
                await self._wait_open()
                continue
            except NuageError as error:
                log.warning("report refused", reason=error.message)
                continue
            if taken.lease_s > 0:
                self.leases.hear(taken.lease_term, sent_s + taken.lease_s)

    async def close(self) -> None:
        """Say goodbye to the controller: it does not take the silence to come for a loss."""
        with contextlib.suppress(NuageError):
            await self.client.call(GOODBYE_METHOD, Goodbye(), type(None), GOODBYE_TIMEOUT_S)
        await self.client.close()
