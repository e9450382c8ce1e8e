"""Giving up what is kept about what was deleted: who owns it in the quorum, why a VM went where.

What this site owns there, and no site has a record of any more, is gone: a VM's record goes when
its node has told that it runs no more, a volume's erasure when its last copy is erased. So are the
decisions on VMs that this site took: each site that took one has its own. So nothing
has to be remembered by whoever deletes; a controller that dies in between, or one of an earlier
version that released nothing, leaves what the next look finds.

An absence tells only if all is seen: every site that was not revoked must have been heard a moment
ago, by a whole replica, and the record must have been missing at the look before as well. What
arrives here, or was just given to this site, has a record at its former home until it has one here.
"""

from collections.abc import Callable
from typing import Final

import structlog

from nuage.catalogue.store import CHANGES_PER_WRITE_MAX
from nuage.errors import Conflict
from nuage.iaas.site import Site
from nuage.ids import SiteId, VmId
from nuage.model.infrastructure import Datacenter
from nuage.model.placement import Decision
from nuage.quorum.model import Ownership

LOOK_EVERY_S: Final = 60.0  # it reads all owners; what is released late does no harm
FRESH_S: Final = 10.0  # heartbeats come every few seconds
RECORDS: Final = {"vm": ("vm", "migration"), "volume": ("volume", "erasure")}
log = structlog.get_logger("releases")


class Releases:
    """Looks for what is owned or was decided here and is gone; one per controller.

    `knows` tells whether a site's replica is whole here, `is_revoked` whether nobody listens to
    a site any more. `released` hears of each VM.
    """

    def __init__(
        self,
        site: Site,
        *,
        knows: Callable[[SiteId], bool],
        is_revoked: Callable[[SiteId], bool],
        released: Callable[[VmId], None],
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._site = site
        self._knows = knows
        self._is_revoked = is_revoked
        self._released = released
        self._look_every_s = look_every_s
        self._missed: set[Ownership] = set()  # at the last look
        self._pointless: dict[str, Decision] = {}  # at the last look

    async def watch(self) -> None:
        """Look again and again; runs for ever."""
        while True:
            await self._site.clock.sleep(self._look_every_s)
            if self._site.holds_lease():
                await self.look()

    async def look(self) -> None:
        """Release what was missing at the last look too.

        Raises:
            Unavailable, TimedOut: no majority answers; the next look finds the rest.
        """
        owned = await self._site.quorum.owners_of(self._site.site_id)
        missed = {each for each in owned if not self._has_record(each.kind, each.id)}
        due, self._missed = missed & self._missed, missed
        pointless = self._decisions_on_nothing()
        old, self._pointless = pointless.keys() & self._pointless.keys(), pointless
        if not (due or old) or not await self._sees_all():
            return
        for each in sorted(due, key=lambda owned: (owned.kind, owned.id)):
            await self._release(each)
        decisions = [pointless[vm_id] for vm_id in sorted(old)]
        for begin in range(0, len(decisions), CHANGES_PER_WRITE_MAX):
            await self._site.delete(*decisions[begin : begin + CHANGES_PER_WRITE_MAX])

    async def _release(self, owned: Ownership) -> None:
        try:
            await self._site.quorum.release(
                owned.kind, owned.id, owner=self._site.site_id, expected_epoch=owned.epoch
            )
        except Conflict as error:  # another look tells
            log.info("not released", kind=owned.kind, id=owned.id, reason=error.message)
            return
        log.info("released", kind=owned.kind, id=owned.id, epoch=owned.epoch)
        if owned.kind == "vm":
            self._released(VmId(owned.id))

    def _decisions_on_nothing(self) -> dict[str, Decision]:
        """Return this site's decisions on VMs that no site has a record of, by VM."""
        own = (record.value for record in self._site.index.own_copies("decision"))
        return {
            decision.vm_id: decision
            for decision in own
            if isinstance(decision, Decision)
            and not self._has_record("vm", decision.vm_id)
            and decision.vm_id not in self._site.deciding
        }

    def _has_record(self, kind: str, object_id: str) -> bool:
        kinds = RECORDS.get(kind)
        if kinds is None:
            return True  # of a later version, which knows what to do with it
        return any(self._site.index.find(each, object_id) is not None for each in kinds)

    async def _sees_all(self) -> bool:
        site = self._site
        known = {datacenter.site_id for datacenter in site.index.values(Datacenter)}
        others = (known | await site.quorum.holders()) - {site.site_id}
        return all(
            self._knows(other) and site.age_of(other) <= FRESH_S
            for other in others
            if not self._is_revoked(other)
        )
