"""A disk divided among daemons: nothing given twice, nothing kept back, reservations kept."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuage.ids import IaasId
from nuage.ionode.shares import AWAKE_S, DIVIDE_EVERY_S, Claim, Divider, Used, divide
from nuage.model.contract import DiskRule, Limits

RATES = st.integers(0, 10_000)
CLAIMS = st.builds(
    Claim,
    weight=st.integers(1, 1000),
    reservation=RATES,
    limit=st.one_of(st.just(math.inf), RATES),
    demand=st.one_of(st.just(math.inf), RATES),
)
CAPACITIES = st.integers(1, 20_000)
NOISY, QUIET = IaasId("iaas-noisy"), IaasId("iaas-quiet")


def wanted(claim: Claim) -> float:
    return min(claim.demand, claim.limit)


@given(CAPACITIES, st.lists(CLAIMS, max_size=8))
def test_what_is_given_is_asked_for_and_there(capacity: int, claims: list[Claim]) -> None:
    given_ = divide(capacity, claims)
    assert sum(given_) <= capacity * (1 + 1e-9)
    for share, claim in zip(given_, claims, strict=True):
        assert 0 <= share <= wanted(claim) * (1 + 1e-9)


@given(CAPACITIES, st.lists(CLAIMS, min_size=1, max_size=8))
def test_nothing_is_kept_back_while_somebody_wants_it(capacity: int, claims: list[Claim]) -> None:
    total = sum(wanted(claim) for claim in claims)
    assert sum(divide(capacity, claims)) == pytest.approx(min(capacity, total))


@given(CAPACITIES, st.lists(CLAIMS, min_size=1, max_size=8))
def test_a_reservation_is_kept_and_only_too_many_are_cut(
    capacity: int, claims: list[Claim]
) -> None:
    reserved = sum(claim.reservation for claim in claims)
    cut = min(1.0, capacity / reserved) if reserved else 1.0
    for share, claim in zip(divide(capacity, claims), claims, strict=True):
        assert share >= min(wanted(claim), claim.reservation * cut) * (1 - 1e-9)


@given(CAPACITIES, st.lists(CLAIMS, min_size=2, max_size=8))
def test_beyond_reservations_the_hungry_get_by_weight(capacity: int, claims: list[Claim]) -> None:
    free = [Claim(weight=c.weight, limit=c.limit, demand=c.demand) for c in claims]
    given_ = divide(capacity, free)
    levels = [
        share / claim.weight
        for share, claim in zip(given_, free, strict=True)
        if share < wanted(claim) * (1 - 1e-9)
    ]
    assert all(level == pytest.approx(levels[0]) for level in levels)


@given(CAPACITIES, st.lists(CLAIMS, min_size=1, max_size=8), st.data())
def test_who_asks_for_less_takes_from_nobody(
    capacity: int, claims: list[Claim], data: st.DataObject
) -> None:
    """So a share that is lent away is a gain for the others: their own is never less for it."""
    at = data.draw(st.integers(0, len(claims) - 1))
    less = [
        Claim(weight=c.weight, reservation=c.reservation, limit=c.limit, demand=0.0)
        if number == at
        else c
        for number, c in enumerate(claims)
    ]
    for number, (before, after) in enumerate(
        zip(divide(capacity, claims), divide(capacity, less), strict=True)
    ):
        assert number == at or after >= before * (1 - 1e-9) - 1e-6


class Disk:
    """A disk of 1000 operations a second and two daemons that take what they want and may."""

    def __init__(self, **rules: DiskRule) -> None:
        self.divider = Divider(Limits(operations_per_s=1000))
        self.rules = {IaasId(f"iaas-{name}"): rule for name, rule in rules.items()}
        self.used = dict.fromkeys(self.rules, Used())
        self.now_s = 0.0
        self.limits = dict.fromkeys(self.rules, 0)

    def run(self, periods: int, **wants: int) -> dict[IaasId, int]:
        """Let each take what it wants a second, as far as it may; return what it may at the end."""
        for _ in range(periods):
            self.now_s += DIVIDE_EVERY_S
            for name, used in self.used.items():
                want = wants.get(name.removeprefix("iaas-"), 0)
                may = self.limits[name] or want
                taken = int(min(want, may) * DIVIDE_EVERY_S)
                self.used[name] = Used(
                    operations=used.operations + taken, held=used.held + (want > may)
                )
                self.divider.note(name, self.used[name], self.now_s)
            shares = self.divider.divide(self.rules, self.now_s)
            self.limits = {name: share.limits.operations_per_s for name, share in shares.items()}
        return self.limits


def reserving(operations: int, weight: int = 1) -> DiskRule:
    return DiskRule(weight=weight, reservation=Limits(operations_per_s=operations))


def test_a_noisy_neighbour_cannot_take_what_is_reserved() -> None:
    disk = Disk(noisy=DiskRule(weight=1), quiet=reserving(700))
    limits = disk.run(4, noisy=100_000, quiet=700)
    assert limits[QUIET] >= 700
    assert limits[NOISY] <= 300


def test_an_idle_share_is_lent_and_back_within_one_period() -> None:
    disk = Disk(noisy=DiskRule(weight=1), quiet=reserving(700))
    disk.run(4, noisy=100_000, quiet=700)
    asleep = int(AWAKE_S / DIVIDE_EVERY_S) + 1
    assert disk.run(asleep, noisy=100_000)[NOISY] == 0, "alone, it has all there is"
    assert disk.run(2, noisy=100_000, quiet=700)[NOISY] <= 300


def test_what_the_reserved_one_leaves_goes_to_the_other() -> None:
    disk = Disk(noisy=DiskRule(weight=1), quiet=reserving(700))
    limits = disk.run(4, noisy=100_000, quiet=80)
    assert 800 <= limits[NOISY] <= 920
    assert limits[QUIET] >= 700, "and it has its own at once when it wants it"


def test_weights_divide_what_nobody_has_reserved() -> None:
    disk = Disk(noisy=DiskRule(weight=1), quiet=DiskRule(weight=4))
    limits = disk.run(4, noisy=100_000, quiet=100_000)
    assert (limits[NOISY], limits[QUIET]) == (200, 800)


def test_a_limit_holds_even_for_who_is_alone() -> None:
    disk = Disk(noisy=DiskRule(weight=1, limit=Limits(operations_per_s=50)))
    assert disk.run(3, noisy=1000)[NOISY] == 50


def test_a_disk_that_was_not_measured_holds_nobody_back() -> None:
    disk = Disk(noisy=DiskRule(weight=1), quiet=reserving(700))
    disk.divider.capacity = Limits()
    assert set(disk.run(4, noisy=100_000, quiet=700).values()) == {0}


def test_a_daemon_that_began_anew_is_counted_from_there() -> None:
    disk = Disk(noisy=DiskRule(weight=1), quiet=reserving(700))
    disk.run(4, noisy=100_000, quiet=700)
    disk.used[QUIET] = Used()
    disk.divider.note(QUIET, Used(), disk.now_s + DIVIDE_EVERY_S)
    share = disk.divider.divide(disk.rules, disk.now_s + DIVIDE_EVERY_S)[QUIET]
    assert share.operations_per_s == 0
