"""The lease's arithmetic, and a site's own view of it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.catalogue.catalogue_makers import MARNE, RENNES, HandClock

from nuage.errors import InvalidRequest
from nuage.ids import SiteId
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
