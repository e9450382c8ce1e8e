"""How a disk is divided among the storage daemons that use it. Pure: what each asks and gets.

The rules are mClock's (Gulati, Merchant, Varman, OSDI 2010) as rates: reservations first, then the
rest by weight, nobody above its limit. mClock orders each request as it comes; here each daemon
is a process of its own and is told a rate every `DIVIDE_EVERY_S`, so a rule holds on average over
that time. What somebody leaves is lent to who wants more. Its own part nobody ever loses, not
even while it is lent: who wakes has it at once, and for at most `DIVIDE_EVERY_S` the disk is
asked for more than it gives.

Operations and bytes are divided apart; a daemon keeps to both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nuage.ids import IaasId
from nuage.model.contract import NO_LIMITS, DiskRule, Limits

DIVIDE_EVERY_S: Final = 0.5  # an idle share that was lent is back after this
AWAKE_S: Final = 2.0  # who asked for nothing for so long wants nothing
HEADROOM: Final = 1.25  # what somebody took who had to wait for nothing, may grow by so much


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a daemon asks of one kind, a second. `demand` is infinite for who had to wait."""

    weight: float
    reservation: float = 0.0
    limit: float = math.inf
    demand: float = math.inf


def divide(capacity: float, claims: Sequence[Claim]) -> list[float]:
    """Return what each gets of `capacity`: no more than it asks, nor than its limit.

    Reservations that exceed the capacity are cut alike.
    """
    wanted = [min(claim.demand, claim.limit) for claim in claims]
    reserved = sum(claim.reservation for claim in claims)
    cut = min(1.0, capacity / reserved) if reserved else 1.0
    given = [min(want, claim.reservation * cut) for want, claim in zip(wanted, claims, strict=True)]
    left = capacity - sum(given)
    hungry = [at for at, want in enumerate(wanted) if want > given[at]]
    while hungry and left > 0:
        weights = sum(claims[at].weight for at in hungry)
        level = left / weights
        filled = [at for at in hungry if wanted[at] - given[at] <= level * claims[at].weight]
        for at in filled:  # they need less than their part: the rest goes on to the others
            left -= wanted[at] - given[at]
            given[at] = wanted[at]
        if not filled:
            for at in hungry:
                given[at] += level * claims[at].weight
            break
        hungry = [at for at in hungry if at not in filled]
    return given


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a daemon's clients took since it began, and how many of their requests had to wait."""

    operations: int = 0
    bytes: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a daemon may take of a disk (0: as much as there is), and what it took lately."""

    limits: Limits = NO_LIMITS
    operations_per_s: float = 0.0
    bytes_per_s: float = 0.0
    waits: bool = False


@dataclass(slots=True)
class _Pace:
    """How fast a daemon goes."""

    used: Used
    seen_s: float
    operations_per_s: float = 0.0
    bytes_per_s: float = 0.0
    waits: bool = False
    awake_until_s: float = -math.inf


class Divider:
    """Divides one disk, told now and then what each daemon has taken."""

    def __init__(self, capacity: Limits) -> None:
        self.capacity = capacity
        self._paces: dict[IaasId, _Pace] = {}
        self.shares: dict[IaasId, Share] = {}

    def note(self, iaas_id: IaasId, used: Used, now_s: float) -> None:
        """Hear what a daemon has taken since it began."""
        pace = self._paces.get(iaas_id)
        if pace is None or used.operations < pace.used.operations:  # a new one, or began anew
            self._paces[iaas_id] = _Pace(used, now_s)
            return
        passed_s = now_s - pace.seen_s
        if passed_s <= 0:
            return
        pace.operations_per_s = (used.operations - pace.used.operations) / passed_s
        pace.bytes_per_s = (used.bytes - pace.used.bytes) / passed_s
        pace.waits = used.held > pace.used.held
        if used.operations > pace.used.operations or pace.waits:
            pace.awake_until_s = now_s + AWAKE_S
        pace.used, pace.seen_s = used, now_s

    def divide(self, rules: Mapping[IaasId, DiskRule], now_s: float) -> dict[IaasId, Share]:
        """Return what each may take from now on, by its rule."""
        for gone in self._paces.keys() - rules.keys():
            del self._paces[gone]
        names = sorted(rules)
        awake = [name for name in names if self._is_awake(name, now_s)]
        operations = self._divide_kind("operations_per_s", names, rules, awake)
        bytes_ = self._divide_kind("bytes_per_s", names, rules, awake)
        self.shares = {}
        for name in names:
            pace = self._paces.get(name) or _Pace(Used(), now_s)
            limits = Limits(operations_per_s=operations[name], bytes_per_s=bytes_[name])
            self.shares[name] = Share(
                limits=limits,
                operations_per_s=pace.operations_per_s,
                bytes_per_s=pace.bytes_per_s,
                waits=pace.waits,
            )
        return self.shares

    def _is_awake(self, name: IaasId, now_s: float) -> bool:
        pace = self._paces.get(name)
        return pace is not None and now_s < pace.awake_until_s

    def _divide_kind(
        self,
        kind: str,
        names: Sequence[IaasId],
        rules: Mapping[IaasId, DiskRule],
        awake: Sequence[IaasId],
    ) -> dict[IaasId, int]:
        """Return what each may take of operations or bytes; 0: as much as there is."""
        capacity = getattr(self.capacity, kind)
        if not capacity or len(awake) < 2:  # nobody to share with: no estimate holds anybody back
            return {name: getattr(rules[name].limit, kind) for name in names}
        claims = [_claim(rules[name], kind) for name in names]
        own = divide(capacity, claims)
        asked = [
            _claim(rules[name], kind, demand=self._demand(name, kind) if name in awake else 0.0)
            for name in names
        ]
        granted = divide(capacity, asked)
        spare = capacity - sum(granted)
        if spare > 0:  # all have what they asked: they may grow into the rest
            rest = divide(spare, [
                Claim(weight=claim.weight, limit=max(0.0, claim.limit - has)) if claim.demand
                else Claim(weight=claim.weight, demand=0.0)
                for claim, has in zip(asked, granted, strict=True)
            ])  # fmt: skip
            granted = [has + more for has, more in zip(granted, rest, strict=True)]
        return {
            name: max(1, int(max(mine, has)))
            for name, mine, has in zip(names, own, granted, strict=True)
        }

    def _demand(self, name: IaasId, kind: str) -> float:
        pace = self._paces[name]
        return math.inf if pace.waits else float(getattr(pace, kind)) * HEADROOM


def _claim(rule: DiskRule, kind: str, *, demand: float = math.inf) -> Claim:
    limit = getattr(rule.limit, kind)
    return Claim(
        weight=rule.weight,
        reservation=getattr(rule.reservation, kind),
        limit=limit or math.inf,
        demand=demand,
    )
