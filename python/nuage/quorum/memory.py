"""The quorum in one process, with partitions that a test can inject."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from nuage.clock import Clock
from nuage.errors import TimedOut, Unavailable
from nuage.ids import SiteId
from nuage.quorum.model import LeaseTiming, Ownership, QuorumEvent, SiteLease
from nuage.quorum.state import QuorumState

T = TypeVar("T")


class MemoryHub:
    """What the majority holds, shared by the drivers of all sites in the process.

    `cut` sites reach nothing; for those in `answers_lost` the effect happens and the answer
    does not arrive.
    """

    def __init__(self, *, clock: Clock, timing: LeaseTiming) -> None:
        self.state = QuorumState(timing.ttl_s)
        self.clock = clock
        self.cut: set[SiteId] = set()
        self.answers_lost: set[SiteId] = set()
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Wake the watches."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_changed(self) -> None:
        """Wait for the next `notify`."""
        await self._changed.wait()


class MemoryQuorum:
    """One site's door to a `MemoryHub`."""

    def __init__(self, site: SiteId, hub: MemoryHub) -> None:
        self.site = site
        self._hub = hub

    async def renew_site_lease(self, session: str) -> float:
        """Renew or take this site's lease."""
        state = self._reach()
        return self._answer(state.renew(self.site, session, self._now_s()))

    async def site_leases(self) -> tuple[SiteLease, ...]:
        """Return the leases held now."""
        return self._answer(self._reach().leases(self._now_s()))

    async def holders(self) -> frozenset[SiteId]:
        """Return the sites that hold a lease."""
        return frozenset(lease.site for lease in await self.site_leases())

    async def claim(self, kind: str, id: str, owner: SiteId, *, expected_epoch: int) -> Ownership:
        """Make `owner` own an object that nobody owns."""
        state = self._reach()
        return self._answer(
            state.claim(kind, id, owner, expected_epoch=expected_epoch, now_s=self._now_s())
        )

    async def owner(self, kind: str, id: str) -> Ownership | None:
        """Return who owns an object."""
        return self._answer(self._reach().owner(kind, id))

    async def owners_of(self, site: SiteId) -> tuple[Ownership, ...]:
        """Return what a site owns."""
        return self._answer(self._reach().owners_of(site))

    async def transfer(
        self, kind: str, id: str, *, from_site: SiteId, to_site: SiteId, expected_epoch: int
    ) -> Ownership:
        """Hand an object over."""
        return self._move(
            kind, id, from_site=from_site, to_site=to_site, expected_epoch=expected_epoch,
            from_expired=False,
        )  # fmt: skip

    async def takeover(
        self, kind: str, id: str, *, from_site: SiteId, by_site: SiteId, expected_epoch: int
    ) -> Ownership:
        """Take an object from a site whose lease has expired."""
        return self._move(
            kind, id, from_site=from_site, to_site=by_site, expected_epoch=expected_epoch,
            from_expired=True,
        )  # fmt: skip

    async def promise(
        self, kind: str, id: str, *, owner: SiteId, heir: SiteId, expected_epoch: int
    ) -> Ownership:
        """Name who an object may go to."""
        promised = self._reach().promise(
            kind, id, owner=owner, heir=heir, expected_epoch=expected_epoch, now_s=self._now_s()
        )
        return self._answer(promised)

    async def inherit(
        self, kind: str, id: str, *, owner: SiteId, heir: SiteId, expected_epoch: int
    ) -> Ownership:
        """Own what was promised and has come."""
        inherited = self._reach().inherit(
            kind, id, owner=owner, heir=heir, expected_epoch=expected_epoch, now_s=self._now_s()
        )
        return self._answer(inherited)

    async def release(self, kind: str, id: str, *, owner: SiteId, expected_epoch: int) -> None:
        """Give an object up for good."""
        state = self._reach()
        state.release(kind, id, owner=owner, expected_epoch=expected_epoch)
        self._answer(None)

    async def watch(self) -> AsyncIterator[QuorumEvent]:
        """Yield what changes from now on."""
        position = len(self._hub.state.events)
        while True:
            events = self._hub.state.events
            while position < len(events):
                position += 1
                yield events[position - 1]
            await self._hub.wait_changed()

    async def close(self) -> None:
        """Nothing to release."""

    def _now_s(self) -> float:
        return self._hub.clock.monotonic_s()

    def _move(
        self,
        kind: str,
        id: str,
        *,
        from_site: SiteId,
        to_site: SiteId,
        expected_epoch: int,
        from_expired: bool,
    ) -> Ownership:
        moved = self._reach().move(
            kind, id, from_site=from_site, to_site=to_site, expected_epoch=expected_epoch,
            now_s=self._now_s(), from_expired=from_expired,
        )  # fmt: skip
        return self._answer(moved)

    def _reach(self) -> QuorumState:
        if self.site in self._hub.cut:
            raise Unavailable("no majority of the quorum's members can be reached")
        return self._hub.state

    def _answer(self, answer: T) -> T:
        self._hub.notify()
        if self.site in self._hub.answers_lost:
            raise TimedOut("quorum", after_s=0.0)
        return answer
