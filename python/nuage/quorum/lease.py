"""What a site knows by itself of its lease, and the loop that keeps it.

`LeaseView` is asked before anything that only an owner may do. The seconds that it has left
answer each report of an agent: it stops fail-over VMs when these have passed by its own clock,
with no word from anybody. It is conservative: a renewal counts from when it was sent, and
only when the quorum confirmed it.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Final, TypeAlias

import structlog

from nuage.clock import Clock
from nuage.errors import NuageError
from nuage.ids import EntropySource, SiteId
from nuage.quorum.model import LeaseHeld, LeaseTiming, Ownership, Quorum

_LOG: Final = structlog.get_logger(__name__)

RETRY_S: Final = 0.5  # after a failed renewal; about 20 tries within one hold


Acquired: TypeAlias = Callable[[tuple[Ownership, ...]], None]


class LeaseView:
    """Answers "do I still hold my lease, and until when by my monotonic clock?"."""

    def __init__(self, timing: LeaseTiming) -> None:
        self.timing = timing
        self._held_until_s = float("-inf")
        self._generation = 0

    @property
    def generation(self) -> int:
        """Return a count that rises with each gap in the lease.

        What was learnt of owners under an older generation is void: others may have taken
        over in between.
        """
        return self._generation

    @property
    def held_until_s(self) -> float:
        """Return the last moment, on this site's monotonic clock, to act as an owner."""
        return self._held_until_s

    def renewed(self, *, sent_monotonic_s: float, ttl_s: float) -> None:
        """Note a renewal that succeeded, sent at that time; `ttl_s` is what the quorum gave.

        A quorum that gives less than agreed shortens the hold by as much.
        """
        if sent_monotonic_s >= self._held_until_s:
            self._generation += 1
        lacking_s = max(0.0, self.timing.ttl_s - ttl_s)
        until_s = sent_monotonic_s + self.timing.hold_s - lacking_s
        self._held_until_s = max(self._held_until_s, until_s)

    def dropped(self) -> None:
        """Note that the lease was found lost."""
        self._held_until_s = float("-inf")

    def is_held(self, monotonic_s: float) -> bool:
        """Tell whether the lease is held at `monotonic_s`."""
        return monotonic_s < self._held_until_s

    def remaining_s(self, monotonic_s: float) -> float:
        """Return the seconds left, 0 when it is not held."""
        return max(0.0, self._held_until_s - monotonic_s)


class LeaseHolder:
    """Renews this site's lease for as long as it runs.

    `session` names the holder: keep it on disk, so that a restarted controller carries on
    without a gap; with a new one it waits for its predecessor's lease to expire. Several
    controllers of a site share one.

    After a gap others may have taken over. `acquired` is therefore called with what this
    site still owns *before* the view says that the lease is held: nothing that is absent
    from it may be resumed.
    """

    def __init__(
        self,
        quorum: Quorum,
        site: SiteId,
        *,
        clock: Clock,
        timing: LeaseTiming,
        session: str = "",
        acquired: Acquired | None = None,
        entropy: EntropySource = os.urandom,
    ) -> None:
        self._quorum = quorum
        self._site = site
        self._clock = clock
        self._acquired = acquired
        self.session = session or entropy(8).hex()
        self.view = LeaseView(timing)
        self.failure = ""

    async def renew_once(self) -> bool:
        """Try one renewal; tell whether it succeeded."""
        sent_s = self._clock.monotonic_s()
        had_gap = not self.view.is_held(sent_s)
        try:
            ttl_s = await self._quorum.renew_site_lease(self.session)
            if had_gap and self._acquired is not None:
                self._acquired(await self._quorum.owners_of(self._site))
        except NuageError as error:
            if isinstance(error, LeaseHeld):
                self.view.dropped()
            if error.message != self.failure:
                _LOG.warning("site lease not renewed", site=self._site, error=error.message)
            self.failure = error.message
            return False
        if not had_gap and not self.view.is_held(self._clock.monotonic_s()):
            return False  # the answer came after the hold ended: go through `acquired`
        self.view.renewed(sent_monotonic_s=sent_s, ttl_s=ttl_s)
        self.failure = ""
        return True

    async def hold(self) -> None:
        """Renew for ever; cancel the task to stop (the lease then runs out)."""
        timing = self.view.timing
        while True:
            try:
                async with asyncio.timeout(timing.hold_s):
                    renewed = await self.renew_once()
            except TimeoutError:
                renewed = False
            await self._clock.sleep(timing.renew_every_s if renewed else RETRY_S)
