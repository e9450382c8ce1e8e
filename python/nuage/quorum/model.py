"""The quorum's words, its contract, and the inequality that keeps two owners apart.

The inequality (docs/protocols/quorum.md §3). A site may act on what it owns until
`hold_s` after it *sent* its last renewal that succeeded, by its own monotonic clock; others
may take over once etcd's lease of `ttl_s` has expired. With clocks that run at most
`drift_max` apart from true time, `stop_s` to stop a VM, and one election of etcd's leader in
between (an old leader may answer a renewal for `election_s` after a new one was elected):

    hold_s · (1 + drift_max) + stop_s + election_s  ≤  ttl_s / (1 + drift_max)

`LeaseTiming` refuses any other choice.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol

from nuage.errors import Conflict, InvalidRequest
from nuage.ids import SiteId

NOBODY: Final = SiteId("")
TTL_S: Final = 15  # shorter takes over sooner, and makes a slow WAN look like a dead site
DRIFT_MAX: Final = 0.002  # four times what NTP calls broken (500 ppm)
STOP_S: Final = 2.0  # QEMU killed and its disk closed; measured well below one second
ELECTION_S: Final = 2.0  # etcd's election time-out on a WAN (member.py)
RENEWALS_PER_HOLD: Final = 4  # three may fail in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTiming:
    """A site lease's times. `hold_s` is derived, never chosen."""

    ttl_s: float = TTL_S
    drift_max: float = DRIFT_MAX
    stop_s: float = STOP_S
    election_s: float = ELECTION_S

    def __post_init__(self) -> None:
        if not 0.0 <= self.drift_max < 0.5:
            raise InvalidRequest("drift_max is a fraction below a half", field="drift_max")
        if self.hold_s <= self.stop_s:
            raise InvalidRequest(
                f"a lease of {self.ttl_s:g} s leaves {self.hold_s:.1f} s to hold it, "
                f"too little beside {self.stop_s:g} s to stop and {self.election_s:g} s to elect",
                field="ttl_s",
            )

    @property
    def hold_s(self) -> float:
        """Return how long after sending a renewal its sender may act on it."""
        margin_s = self.stop_s + self.election_s
        return (self.ttl_s / (1.0 + self.drift_max) - margin_s) / (1.0 + self.drift_max)

    @property
    def renew_every_s(self) -> float:
        """Return the pause between renewals."""
        return self.hold_s / RENEWALS_PER_HOLD


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLease:
    """A site's lease as the quorum has it. `remaining_s` counts to its expiry there."""

    site: SiteId
    session: str
    remaining_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """Who owns an object, since which epoch. `owner` "": released, the epoch is kept.

    `heir` "": nobody. Else what is owned may have gone there already, so nobody takes it over
    before both leases have expired, but the heir itself.
    """

    kind: str
    id: str
    owner: SiteId
    epoch: int
    heir: SiteId = NOBODY


class LeaseHeld(Conflict):
    """A takeover came too early: the site's lease has not expired."""

    code = "lease_held"


class LeaseLost(Conflict):
    """The caller's own site holds no lease: it may not claim or take over."""

    code = "lease_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumEvent:
    """Something changed: an ownership, or a site's lease came (`lease_held`) or went."""

    ownership: Ownership | None = None
    site: SiteId | None = None
    lease_held: bool = False


class Quorum(Protocol):
    """Leases and owners across sites. Every driver passes `tests/contract/quorum`.

    Any call may raise Unavailable (no majority is reached: nothing was done) or TimedOut
    (the effect is unknown: ask `owner` and decide again).
    """

    async def renew_site_lease(self, session: str) -> float:
        """Renew this site's lease (or take it) under `session`; return its seconds there.

        The caller notes its clock before the call: see `LeaseHolder`.

        Raises:
            LeaseHeld: another session of this site holds it; wait for it to expire.
        """
        ...

    async def site_leases(self) -> tuple[SiteLease, ...]:
        """Return the leases held now, by site; a site that is absent holds none."""
        ...

    async def holders(self) -> frozenset[SiteId]:
        """Return the sites that hold a lease: one question, where `site_leases` asks of each."""
        ...

    async def claim(self, kind: str, id: str, owner: SiteId, *, expected_epoch: int) -> Ownership:
        """Make `owner` own an object that nobody owns; `expected_epoch` 0: a new one.

        The epoch rises by one. Claiming again what one claimed under `expected_epoch` and
        got, returns it: a lost answer may be asked for again.

        Raises:
            StaleEpoch: its epoch is another; `epoch` says which.
            Conflict: somebody owns it.
            LeaseLost: `owner` holds no lease.
        """
        ...

    async def owner(self, kind: str, id: str) -> Ownership | None:
        """Return who owns an object, None when it was never claimed."""
        ...

    async def owners_of(self, site: SiteId) -> tuple[Ownership, ...]:
        """Return what a site owns, by kind and id."""
        ...

    async def transfer(
        self, kind: str, id: str, *, from_site: SiteId, to_site: SiteId, expected_epoch: int
    ) -> Ownership:
        """Hand an object over; called by its owner, who has stopped acting on it.

        Raises:
            StaleEpoch, Conflict: `from_site` does not own it under `expected_epoch`.
            LeaseLost: `to_site` holds no lease.
        """
        ...

    async def promise(
        self, kind: str, id: str, *, owner: SiteId, heir: SiteId, expected_epoch: int
    ) -> Ownership:
        """Name who an object may go to without another word; called by its owner.

        The epoch stays. `heir` "" takes a promise back: only when it can not have gone.

        Raises:
            StaleEpoch, Conflict: `owner` does not own it under `expected_epoch`.
            LeaseLost: `heir` holds no lease.
        """
        ...

    async def inherit(
        self, kind: str, id: str, *, owner: SiteId, heir: SiteId, expected_epoch: int
    ) -> Ownership:
        """Own what was promised and has come; called by the heir. The epoch rises by one.

        Raises:
            StaleEpoch, Conflict: it is not `owner`'s under `expected_epoch`, promised to `heir`.
            LeaseLost: `heir` holds no lease.
        """
        ...

    async def takeover(
        self, kind: str, id: str, *, from_site: SiteId, by_site: SiteId, expected_epoch: int
    ) -> Ownership:
        """Take an object from a site whose lease has expired, checked in one transaction.

        Raises:
            LeaseHeld: `from_site`, or an heir that is another site, still holds its lease.
            LeaseLost: `by_site` holds none.
            StaleEpoch, Conflict: `from_site` does not own it under `expected_epoch`.
        """
        ...

    async def release(self, kind: str, id: str, *, owner: SiteId, expected_epoch: int) -> None:
        """Give an object up for good (it was deleted).

        Its epoch is kept, so that no old owner can come back under it.

        Raises:
            StaleEpoch, Conflict: `owner` does not own it under `expected_epoch`.
        """
        ...

    def watch(self) -> AsyncIterator[QuorumEvent]:
        """Yield what changes from now on. After a gap of any kind, everything is told anew."""
        ...

    async def close(self) -> None:
        """Release connections; leases run out by themselves."""
        ...
