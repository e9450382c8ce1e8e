"""The lease's arithmetic, a site's own view of it, and what it may act on."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.catalogue.catalogue_makers import MARNE, RENNES, HandClock

from nuage.errors import InvalidRequest
from nuage.ids import SiteId
from nuage.quorum.holdings import Holdings
from nuage.quorum.lease import LeaseHolder, LeaseView
from nuage.quorum.memory import MemoryHub, MemoryQuorum
from nuage.quorum.model import LeaseTiming, Ownership

TIMING = LeaseTiming()


def owned(id: str, epoch: int = 1, owner: SiteId = MARNE) -> Ownership:
    return Ownership(kind="vm", id=id, owner=owner, epoch=epoch)


@given(
    ttl_s=st.floats(5.0, 120.0),
    drift_max=st.floats(0.0, 0.05),
    stop_s=st.floats(0.0, 5.0),
    election_s=st.floats(0.0, 5.0),
    holder_rate=st.floats(-1.0, 1.0),
    leader_rate=st.floats(-1.0, 1.0),
)
def test_a_hold_ends_and_the_vm_is_stopped_before_a_takeover(
    ttl_s: float,
    drift_max: float,
    stop_s: float,
    election_s: float,
    holder_rate: float,
    leader_rate: float,
) -> None:
    """The inequality of docs/protocols/quorum.md §3, for any clocks within the drift."""
    try:
        timing = LeaseTiming(ttl_s=ttl_s, drift_max=drift_max, stop_s=stop_s, election_s=election_s)
    except InvalidRequest:
        return
    # A clock that runs at rate r shows r seconds per true second; 1/(1+d) <= r <= 1+d.
    slow_holder = (1.0 + drift_max) ** holder_rate
    leader = (1.0 + drift_max) ** leader_rate
    stopped_after_true_s = timing.hold_s / slow_holder + stop_s
    taken_over_after_true_s = ttl_s / leader
    assert stopped_after_true_s + election_s <= taken_over_after_true_s + 1e-9


def test_a_lease_too_short_for_its_margins_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        LeaseTiming(ttl_s=5.0)
    assert caught.value.field == "ttl_s"
    assert 10.0 < TIMING.hold_s < 11.0


def test_a_renewal_counts_from_when_it_was_sent() -> None:
    view = LeaseView(TIMING)
    assert not view.is_held(0.0)
    view.renewed(sent_monotonic_s=100.0, ttl_s=TIMING.ttl_s)
    assert view.held_until_s == 100.0 + TIMING.hold_s
    view.renewed(sent_monotonic_s=90.0, ttl_s=TIMING.ttl_s)
    assert view.held_until_s == 100.0 + TIMING.hold_s
    view.renewed(sent_monotonic_s=104.0, ttl_s=TIMING.ttl_s - 5.0)
    assert view.held_until_s == 100.0 + TIMING.hold_s, "a quorum that gives less adds less"
    assert view.remaining_s(105.0) == pytest.approx(TIMING.hold_s - 5.0)
    assert view.generation == 1
    view.renewed(sent_monotonic_s=200.0, ttl_s=TIMING.ttl_s)
    assert view.generation == 2
    view.dropped()
    assert not view.is_held(200.0)


async def test_a_holder_learns_what_it_owns_before_it_holds_again() -> None:
    clock = HandClock()
    hub = MemoryHub(clock=clock, timing=TIMING)
    marne, rennes = MemoryQuorum(MARNE, hub), MemoryQuorum(RENNES, hub)
    told: list[tuple[Ownership, ...]] = []
    holder = LeaseHolder(marne, MARNE, clock=clock, timing=TIMING, acquired=told.append)
    assert await holder.renew_once()
    await marne.claim("vm", "vm-1", MARNE, expected_epoch=0)
    await marne.claim("vm", "vm-2", MARNE, expected_epoch=0)
    assert told == [()]
    hub.cut.add(MARNE)
    assert not await holder.renew_once()
    assert "majority" in holder.failure
    assert holder.view.is_held(clock.time_s), "one failed renewal changes nothing"
    clock.time_s += TIMING.hold_s
    assert not holder.view.is_held(clock.time_s)
    clock.time_s += TIMING.ttl_s - TIMING.hold_s
    await rennes.renew_site_lease("r")
    await rennes.takeover("vm", "vm-1", from_site=MARNE, by_site=RENNES, expected_epoch=1)
    hub.cut.clear()
    assert await holder.renew_once()
    assert told == [(), (owned("vm-2"),)]
    assert holder.view.generation == 2
    await holder.give_up()
    assert [lease.site for lease in await rennes.site_leases()] == [RENNES]


async def test_a_lost_answer_holds_nothing() -> None:
    clock = HandClock()
    hub = MemoryHub(clock=clock, timing=TIMING)
    holder = LeaseHolder(MemoryQuorum(MARNE, hub), MARNE, clock=clock, timing=TIMING)
    hub.answers_lost.add(MARNE)
    assert not await holder.renew_once()
    assert not holder.view.is_held(clock.time_s)
    hub.answers_lost.clear()
    holding = asyncio.create_task(holder.hold())
    for _ in range(50):
        await asyncio.sleep(0)
    assert holder.view.is_held(clock.time_s)
    holding.cancel()


def held() -> Holdings:
    holdings = Holdings(LeaseView(TIMING))
    holdings.acquired([owned("vm-1"), owned("vm-2", epoch=4)])
    holdings.view.renewed(sent_monotonic_s=0.0, ttl_s=TIMING.ttl_s)
    return holdings


def test_only_what_is_owned_under_a_held_lease_may_be_acted_on() -> None:
    holdings = held()
    assert holdings.epoch("vm", "vm-2", 1.0) == 4
    assert holdings.epoch("vm", "vm-3", 1.0) is None
    assert holdings.epoch("vm", "vm-1", TIMING.hold_s) is None
    assert [ownership.id for ownership in holdings.all(1.0)] == ["vm-1", "vm-2"]
    holdings.view.renewed(sent_monotonic_s=100.0, ttl_s=TIMING.ttl_s)
    assert holdings.all(101.0) == (), "after a gap nothing, until the quorum was asked"


def test_what_is_leaving_is_nobodys_to_run_until_the_answer_is_definite() -> None:
    holdings = held()
    ticket = holdings.ticket()
    holdings.begin_transfer("vm", "vm-1", 1)
    assert holdings.epoch("vm", "vm-1", 1.0) is None
    assert not holdings.learned(ticket, [owned("vm-1")])
    assert holdings.learned(holdings.ticket(), [owned("vm-1")])
    assert holdings.epoch("vm", "vm-1", 1.0) is None, "it may still take effect"
    holdings.concluded("vm", "vm-1", owned("vm-1", epoch=2))
    assert holdings.epoch("vm", "vm-1", 1.0) == 2
    holdings.begin_transfer("vm", "vm-1", 2)
    holdings.concluded("vm", "vm-1", None)
    assert holdings.epoch("vm", "vm-1", 1.0) is None


def test_an_answer_that_was_overtaken_does_not_count() -> None:
    holdings = held()
    older, newer = holdings.ticket(), holdings.ticket()
    assert holdings.learned(newer, [owned("vm-2", epoch=4)])
    assert not holdings.learned(older, [owned("vm-1"), owned("vm-2", epoch=4)])
    asked = holdings.ticket()
    assert holdings.gained(asked, owned("vm-3"))
    assert holdings.gained(asked, owned("vm-4"))
    holdings.begin_transfer("vm", "vm-3", 1)
    holdings.concluded("vm", "vm-3", None)
    assert not holdings.gained(asked, owned("vm-3"))
    holdings.view.renewed(sent_monotonic_s=100.0, ttl_s=TIMING.ttl_s)
    assert not holdings.gained(asked, owned("vm-5"))
