"""The single shared vision: the own catalogue and all replicas as one, each part with its age.

Of an object that moved, several sites hold a record: the quorum's word decides when it is
known here, else the higher epoch. The others are shadowed: kept, shown on demand, never
deleted by anybody but their home.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from nuage.catalogue import codec
from nuage.catalogue.replica import Replicas
from nuage.catalogue.store import Catalogue
from nuage.errors import Conflict, NotFound
from nuage.ids import SiteId
from nuage.model.record import KINDS, Record

# What the quorum says of an object, as far as known here: (owner, epoch).
Arbiter: TypeAlias = Callable[[str, str], tuple[SiteId, int] | None]
AgeOf: TypeAlias = Callable[[SiteId], float | None]

ABSENT_HINT: Final = "a site that is cut off may have it; see `nuage site list`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A record as seen from here. `age_s` 0: ours; None: its site was never heard.

    `shadowed_by` names the home whose record counts instead, "" when this one does.
    """

    record: Record
    age_s: float | None
    shadowed_by: str = ""

    @property
    def site(self) -> SiteId:
        """Return the record's home."""
        return self.record.home


class AmbiguousName(Conflict):
    """Several objects bear the name; `candidates` lists (id, site, IaaS) of each."""

    code = "ambiguous_name"

    def __init__(self, kind: str, name: str, candidates: tuple[tuple[str, str, str], ...]) -> None:
        listed = ", ".join(f"{id} at {site}" for id, site, _ in candidates)
        super().__init__(
            f"{len(candidates)} objects of kind {kind} are named {name!r}: {listed}",
            hint="say its id, or its IaaS",
        )
        self.candidates = candidates


class FederationView:
    """One read view over everything this site knows."""

    def __init__(
        self,
        catalogue: Catalogue,
        replicas: Replicas,
        *,
        age_of: AgeOf,
        arbiter: Arbiter | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._replicas = replicas
        self._age_of = age_of
        self._arbiter = arbiter

    async def find(self, kind: str, id: str) -> Sighting | None:
        """Return the record that counts, or None."""
        claims = await self._claims(kind, id)
        return self._sighting(self._winner(kind, id, claims), "") if claims else None

    async def get(self, kind: str, id: str) -> Sighting:
        """Return the record that counts.

        Raises:
            NotFound: no site has it, as far as known here.
        """
        found = await self.find(kind, id)
        if found is None:
            raise NotFound(
                kind, id, hint="a site that is cut off may have it; see `nuage site list`"
            )
        return found

    async def claims(self, kind: str, id: str) -> tuple[Sighting, ...]:
        """Return every site's record of an object, the one that counts first."""
        claims = await self._claims(kind, id)
        if not claims:
            return ()
        winner = self._winner(kind, id, claims)
        losers = sorted((c for c in claims if c is not winner), key=_precedence, reverse=True)
        return (
            self._sighting(winner, ""),
            *(self._sighting(loser, winner.home) for loser in losers),
        )

    async def list(
        self,
        kind: str,
        *,
        site: SiteId | None = None,
        iaas_id: str | None = None,
        name: str | None = None,
        where: Callable[[Record], bool] | None = None,
    ) -> tuple[Sighting, ...]:
        """Return the records that count and match, one an object, by id."""
        found: list[Sighting] = []
        for record in await self._matches(kind, iaas_id, name):
            claims = await self._claims(kind, record.id)
            if len(claims) > 1 and self._winner(kind, record.id, claims) is not record:
                continue
            if (site is None or record.home == site) and (where is None or where(record)):
                found.append(self._sighting(record, ""))
        return tuple(sorted(found, key=lambda sighting: sighting.record.id))

    async def lookup(self, kind: str, id_or_name: str, *, iaas_id: str | None = None) -> Sighting:
        """Return the object with this id, else the one with this name.

        Raises:
            NotFound: there is none, as far as known here.
            AmbiguousName: several bear the name; each is listed.
        """
        by_id = await self.find(kind, id_or_name)
        if by_id is not None and iaas_id in (None, codec.iaas_of(by_id.record.value)):
            return by_id
        named = await self.list(kind, name=id_or_name, iaas_id=iaas_id)
        if len(named) > 1:
            raise AmbiguousName(
                kind,
                id_or_name,
                tuple((s.record.id, s.site, codec.iaas_of(s.record.value)) for s in named),
            )
        if not named:
            raise NotFound(kind, id_or_name, hint=ABSENT_HINT)
        return named[0]

    async def shadowed(self) -> tuple[Sighting, ...]:
        """Return our own records that another home's outrank: what a returning site reports."""
        found: list[Sighting] = []
        for kind in KINDS:
            for record in await self._catalogue.list(kind):
                claims = await self._claims(kind, record.id)
                winner = self._winner(kind, record.id, claims)
                if winner is not record:
                    found.append(self._sighting(record, winner.home))
        return tuple(found)

    def ages(self) -> dict[SiteId, float | None]:
        """Return the age of each site's part; ours is 0."""
        others = {site: self._age_of(site) for site in self._replicas.sites()}
        return {self._catalogue.site: 0.0, **others}

    async def _claims(self, kind: str, id: str) -> Sequence[Record]:
        found = [await self._catalogue.find(kind, id)]
        for site in self._replicas.sites():
            table = self._replicas.table(site)
            if table is not None:
                found.append(table.find(kind, id))
        return [record for record in found if record is not None]

    async def _matches(self, kind: str, iaas_id: str | None, name: str | None) -> Iterable[Record]:
        found = list(await self._catalogue.list(kind, iaas_id=iaas_id, name=name))
        for site in self._replicas.sites():
            table = self._replicas.table(site)
            if table is not None:
                found += table.select(kind, iaas_id=iaas_id, name=name)
        return found

    def _winner(self, kind: str, id: str, claims: Sequence[Record]) -> Record:
        if len(claims) == 1:
            return claims[0]
        word = self._arbiter(kind, id) if self._arbiter is not None else None
        if word is not None:
            owner, epoch = word
            for record in claims:
                if record.home == owner and record.epoch >= epoch:
                    return record
            # The owner's record has not arrived; a claim beyond the quorum's epoch is no claim.
            honest = [record for record in claims if record.epoch <= epoch]
            claims = honest or claims
        return max(claims, key=_precedence)

    def _sighting(self, record: Record, shadowed_by: str) -> Sighting:
        age_s = 0.0 if record.home == self._catalogue.site else self._age_of(record.home)
        return Sighting(record=record, age_s=age_s, shadowed_by=shadowed_by)


def _precedence(record: Record) -> tuple[int, float, str]:
    """Higher epoch, then later change (what bears no epoch), then the home's name."""
    return record.epoch, record.changed_s, record.home
