"""Giving up in the quorum what was deleted, so that nobody is said to own it for ever.

What this site owns there, and no site has a record of any more, is gone: a VM's record goes when
its node has told that it runs no more, a volume's erasure when its last copy is erased. So nothing
has to be remembered by whoever deletes; a controller that dies in between, or one of an earlier
version that released nothing, leaves what the next look finds.

An absence tells only if all is seen: every site that was not revoked must have been heard a moment
ago, by a whole replica, and the record must have been missing at the look before as well. What
arrives here, or was just given to this site, has a record at its former home until it has one here.
"""

from collections.abc import Callable
from typing import Final

import structlog

from nuage.errors import Conflict
from nuage.iaas.site import Site
from nuage.ids import SiteId, VmId
from nuage.model.infrastructure import Datacenter
from nuage.quorum.model import Ownership

LOOK_EVERY_S: Final = 60.0  # it reads all owners; what is released late does no harm
FRESH_S: Final = 10.0  # heartbeats come every few seconds
RECORDS: Final = {"vm": ("vm", "migration"), "volume": ("volume", "erasure")}
log = structlog.get_logger("releases")


class Releases:
    """Looks for what is owned here and gone; one per controller.

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
        site = self._site
        owned = await site.quorum.owners_of(site.site_id)
        missed = {each for each in owned if not self._has_record(each)}
        due, self._missed = missed & self._missed, missed
        if not due or not await self._sees_all():
            return
        for each in sorted(due, key=lambda owned: (owned.kind, owned.id)):
            try:
                await site.quorum.release(
                    each.kind, each.id, owner=site.site_id, expected_epoch=each.epoch
                )
            except Conflict as error:  # another look tells
                log.info("not released", kind=each.kind, id=each.id, reason=error.message)
                continue
            log.info("released", kind=each.kind, id=each.id, epoch=each.epoch)
            if each.kind == "vm":
                self._released(VmId(each.id))

    def _has_record(self, owned: Ownership) -> bool:
        kinds = RECORDS.get(owned.kind)
        if kinds is None:
            return True  # of a later version, which knows what to do with it
        return any(self._site.index.find(kind, owned.id) is not None for kind in kinds)

    async def _sees_all(self) -> bool:
        site = self._site
        known = {datacenter.site_id for datacenter in site.index.values(Datacenter)}
        others = (known | await site.quorum.holders()) - {site.site_id}
        return all(
            self._knows(other) and site.age_of(other) <= FRESH_S
            for other in others
            if not self._is_revoked(other)
        )
