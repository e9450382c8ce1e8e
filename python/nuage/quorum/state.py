"""The rules of leases and owners as a machine: what the majority holds, without a network.

Used by the in-memory driver and the simulation. The etcd driver says the same rules as
compares of one transaction; one contract suite runs on both.
"""

from dataclasses import dataclass, field

from nuage.errors import Conflict, StaleEpoch
from nuage.ids import SiteId
from nuage.quorum.model import NOBODY, LeaseHeld, LeaseLost, Ownership, QuorumEvent, SiteLease


@dataclass(slots=True)
class _Held:
    session: str
    expires_s: float


@dataclass(slots=True)
class QuorumState:
    """Leases and owners. `now_s` of each call is the leader's monotonic clock."""

    ttl_s: float
    events: list[QuorumEvent] = field(default_factory=list)
    _leases: dict[SiteId, _Held] = field(default_factory=dict)
    _owners: dict[tuple[str, str], Ownership] = field(default_factory=dict)

    def expire(self, now_s: float) -> None:
        """Drop the leases whose time is over."""
        for site in [site for site, held in self._leases.items() if held.expires_s <= now_s]:
            del self._leases[site]
            self.events.append(QuorumEvent(site=site))

    def extend_all(self, now_s: float) -> None:
        """Give every lease its full time: what etcd does when it elects a leader."""
        for held in self._leases.values():
            held.expires_s = now_s + self.ttl_s

    def renew(self, site: SiteId, session: str, now_s: float) -> float:
        """Renew or take a site's lease; return its seconds."""
        self.expire(now_s)
        held = self._leases.get(site)
        if held is None:
            self._leases[site] = _Held(session, now_s + self.ttl_s)
            self.events.append(QuorumEvent(site=site, lease_held=True))
        elif held.session != session:
            raise lease_held_by_another(site)
        else:
            held.expires_s = now_s + self.ttl_s
        return self.ttl_s

    def leases(self, now_s: float) -> tuple[SiteLease, ...]:
        """Return the leases held now."""
        self.expire(now_s)
        return tuple(
            SiteLease(site=site, session=held.session, remaining_s=held.expires_s - now_s)
            for site, held in sorted(self._leases.items())
        )

    def owner(self, kind: str, id: str) -> Ownership | None:
        """Return who owns an object."""
        return self._owners.get((kind, id))

    def owners_of(self, site: SiteId) -> tuple[Ownership, ...]:
        """Return what a site owns."""
        found = [owned for owned in self._owners.values() if owned.owner == site]
        return tuple(sorted(found, key=lambda owned: (owned.kind, owned.id)))

    def all_owners(self) -> tuple[Ownership, ...]:
        """Return every ownership known, released ones too."""
        return tuple(self._owners.values())

    def claim(
        self, kind: str, id: str, owner: SiteId, *, expected_epoch: int, now_s: float
    ) -> Ownership:
        """See `Quorum.claim`."""
        current = self._owners.get((kind, id))
        wanted = Ownership(kind=kind, id=id, owner=owner, epoch=expected_epoch + 1)
        if current == wanted:
            return wanted
        require_owner(current, kind, id, NOBODY, expected_epoch)
        self._require_lease(owner, now_s)
        return self._set(wanted)

    def move(
        self,
        kind: str,
        id: str,
        *,
        from_site: SiteId,
        to_site: SiteId,
        expected_epoch: int,
        now_s: float,
        from_expired: bool,
    ) -> Ownership:
        """See `Quorum.transfer`, and with `from_expired` `Quorum.takeover`."""
        current = self._owners.get((kind, id))
        wanted = Ownership(kind=kind, id=id, owner=to_site, epoch=expected_epoch + 1)
        if current == wanted:
            return wanted
        require_owner(current, kind, id, from_site, expected_epoch)
        self._require_lease(to_site, now_s)
        for site in holders_before(current, to_site) if from_expired else ():
            if site in self._leases:
                raise lease_still_held(site)
        return self._set(wanted)

    def promise(
        self, kind: str, id: str, *, owner: SiteId, heir: SiteId, expected_epoch: int, now_s: float
    ) -> Ownership:
        """See `Quorum.promise`."""
        current = self._owners.get((kind, id))
        wanted = Ownership(kind=kind, id=id, owner=owner, epoch=expected_epoch, heir=heir)
        if current == wanted:
            return wanted
        require_owner(current, kind, id, owner, expected_epoch)
        if heir != NOBODY:
            self._require_lease(heir, now_s)
        return self._set(wanted)

    def inherit(
        self, kind: str, id: str, *, owner: SiteId, heir: SiteId, expected_epoch: int, now_s: float
    ) -> Ownership:
        """See `Quorum.inherit`."""
        current = self._owners.get((kind, id))
        wanted = Ownership(kind=kind, id=id, owner=heir, epoch=expected_epoch + 1)
        if current == wanted:
            return wanted
        require_owner(current, kind, id, owner, expected_epoch)
        require_heir(current, kind, id, heir)
        self._require_lease(heir, now_s)
        return self._set(wanted)

    def release(self, kind: str, id: str, *, owner: SiteId, expected_epoch: int) -> None:
        """See `Quorum.release`."""
        current = self._owners.get((kind, id))
        released = Ownership(kind=kind, id=id, owner=NOBODY, epoch=expected_epoch)
        if current == released:
            return
        require_owner(current, kind, id, owner, expected_epoch)
        self._set(released)

    def _require_lease(self, site: SiteId, now_s: float) -> None:
        self.expire(now_s)
        if site not in self._leases:
            raise lease_lost(site)

    def _set(self, ownership: Ownership) -> Ownership:
        self._owners[ownership.kind, ownership.id] = ownership
        self.events.append(QuorumEvent(ownership=ownership))
        return ownership


def require_owner(
    current: Ownership | None, kind: str, id: str, owner: SiteId, expected_epoch: int
) -> None:
    """Raise unless `owner` (`NOBODY`: nobody) owns the object under `expected_epoch`.

    Raises:
        StaleEpoch: the epoch is another.
        Conflict: the owner is another.
    """
    epoch = current.epoch if current is not None else 0
    if epoch != expected_epoch:
        raise StaleEpoch(
            f"{kind} {id} is at epoch {epoch}, not {expected_epoch}", epoch=epoch,
            hint="read its owner again",
        )  # fmt: skip
    holder = current.owner if current is not None else NOBODY
    if holder != owner:
        raise Conflict(
            f"{kind} {id} belongs to {holder or 'nobody'}, not {owner or 'nobody'}",
            hint="read its owner again",
        )


def require_heir(current: Ownership | None, kind: str, id: str, heir: SiteId) -> None:
    """Raise Conflict unless an object is promised to `heir`."""
    promised = NOBODY if current is None else current.heir
    if promised != heir:
        raise Conflict(
            f"{kind} {id} is promised to {promised or 'nobody'}, not {heir}",
            hint="read its owner again",
        )


def holders_before(current: Ownership | None, by_site: SiteId) -> tuple[SiteId, ...]:
    """Return the sites that may act on an object, and whose leases `by_site` waits for."""
    if current is None:
        return ()
    return tuple(
        dict.fromkeys(
            site for site in (current.owner, current.heir) if site not in (NOBODY, by_site)
        )
    )


def lease_lost(site: SiteId) -> LeaseLost:
    """Return the refusal of a site without a lease."""
    return LeaseLost(
        f"site {site} holds no lease: it may own nothing new", hint="wait for its next renewal"
    )


def lease_still_held(site: SiteId) -> LeaseHeld:
    """Return the refusal of a takeover that comes too early."""
    return LeaseHeld(
        f"site {site} still holds its lease", hint="it can be taken over once that has expired"
    )


def lease_held_by_another(site: SiteId) -> LeaseHeld:
    """Return the refusal of a second session of a site."""
    return LeaseHeld(
        f"another session of site {site} holds its lease",
        hint="it expires by itself once that session has ended",
    )
