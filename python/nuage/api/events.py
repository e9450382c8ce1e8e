"""The live event stream: a bounded ring that readers follow from any number it still holds.

A line about an object of an IaaS is shown to those who may read that IaaS, one about a node to
those who may read nodes of its site, all others to everybody who is known.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from nuage.clock import Clock
from nuage.iaas.index import Change, FederationIndex
from nuage.ids import IaasId, SiteId
from nuage.model.record import KINDS, iaas_of
from nuage.trust.permissions import Principal, Scope, is_allowed

EVENTS_KEPT_MAX = 10_000  # about 3 MB; a day of an idle federation, minutes of a stormy one
OWN_LINGER_S = 0.05  # gathers a burst into one message to each other site; eyes are slower
OWNERS_KEPT_MAX = 1_000  # of deleted objects: their lines follow within milliseconds
OWN_LINES_MAX = 500  # in one message: some 150 KB, far below the channel's largest frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """One line of the stream. `number` rises by one per site since its controller started."""

    site: SiteId
    number: int
    at_s: float
    kind: str
    id: str
    what: str
    text: str
    request_id: str = ""
    iaas_id: IaasId | None = None


# Objects that an IaaS has; a line about one whose IaaS is not known is for the federation's eyes.
_TENANTS: Final = frozenset(
    {"iaas", "vm", "volume", "segment", "port", "security-group", "address"}
)


def may_see(principal: Principal, line: Announcement) -> bool:
    """Tell whether a line is for the principal's eyes."""
    if line.kind == "node":
        return is_allowed(principal, "node.read", Scope(site_id=line.site))
    if line.iaas_id is not None or line.kind in _TENANTS:
        return is_allowed(principal, "iaas.read", Scope(iaas_id=line.iaas_id))
    return True


class Owners:
    """Whose an object is that a line tells of, for a while after it was deleted as well."""

    def __init__(self, index: FederationIndex) -> None:
        self._index = index
        self._deleted: dict[str, IaasId] = {}

    def on_change(self, change: Change) -> None:
        """Keep the owner of what was deleted."""
        if change.before is None or change.after is not None:
            return
        owner = iaas_of(change.before.value)
        if owner is not None:
            self._deleted.pop(change.id, None)
            self._deleted[change.id] = owner
            if len(self._deleted) > OWNERS_KEPT_MAX:
                del self._deleted[next(iter(self._deleted))]

    def of(self, kind: str, object_id: str) -> IaasId | None:
        """Return the IaaS of an object, None when it has none or nobody knows any more."""
        for each in (kind, "erasure"):  # lines about erased volumes name the volume
            # What lines are about is not always recorded: a site, for one, is no kind of record.
            record = self._index.find(each, object_id) if each in KINDS else None
            if record is not None:
                return iaas_of(record.value)
        return self._deleted.get(object_id)


def _everything(_line: Announcement) -> bool:
    return True


class EventRing:
    """Keeps the last announcements of this site and of those it hears."""

    def __init__(self, site: SiteId, clock: Clock, *, kept_max: int = EVENTS_KEPT_MAX) -> None:
        self._site = site
        self._clock = clock
        self._kept: deque[Announcement] = deque(maxlen=kept_max)
        self._next_index = 0  # of the line that comes next, counted since the start
        self._next_number = 1
        self._changed = asyncio.Event()
        self._own_changed = asyncio.Event()

    def announce(
        self,
        kind: str,
        object_id: str,
        what: str,
        text: str,
        request_id: str = "",
        iaas_id: IaasId | None = None,
    ) -> Announcement:
        """Put a line of this site on the stream."""
        line = Announcement(
            site=self._site,
            number=self._next_number,
            at_s=self._clock.now_s(),
            kind=kind,
            id=object_id,
            what=what,
            text=text,
            request_id=request_id,
            iaas_id=iaas_id,
        )
        self._next_number += 1
        self.take(line)
        self._own_changed.set()
        self._own_changed = asyncio.Event()
        return line

    def take(self, line: Announcement) -> None:
        """Put another site's line on the stream."""
        self._kept.append(line)
        self._next_index += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def last(
        self, count: int, shown: Callable[[Announcement], bool] = _everything
    ) -> list[Announcement]:
        """Return the last `count` of the lines that are `shown`, oldest first."""
        newest_first = list(islice(filter(shown, reversed(self._kept)), max(0, count)))
        return newest_first[::-1]

    async def follow(
        self, *, last: int = 0, shown: Callable[[Announcement], bool] = _everything
    ) -> AsyncIterator[Announcement]:
        """Yield the last `last` of the lines that are `shown`, then each new one of them.

        A reader too slow misses the oldest.
        """
        past, index = self.last(last, shown), self._next_index
        for line in past:
            yield line
        while True:
            changed = self._changed
            lines, index = self.last(self._next_index - index), self._next_index
            for line in filter(shown, lines):
                yield line
            if index >= self._next_index:
                await changed.wait()

    async def follow_own(self) -> AsyncIterator[tuple[Announcement, ...]]:
        """Yield this site's new lines, together what is announced within `OWN_LINGER_S`."""
        number = self._next_number
        while True:
            changed = self._own_changed
            if number >= self._next_number:
                await changed.wait()
                await self._clock.sleep(OWN_LINGER_S)
            fresh = self._own_since(number)
            number = self._next_number
            for first in range(0, len(fresh), OWN_LINES_MAX):
                yield tuple(fresh[first : first + OWN_LINES_MAX])

    def _own_since(self, number: int) -> list[Announcement]:
        """Return this site's lines from `number` on that are still kept."""
        fresh: list[Announcement] = []
        for line in reversed(self._kept):
            if len(fresh) >= self._next_number - number:
                break
            if line.site == self._site:
                fresh.append(line)
        return fresh[::-1]
