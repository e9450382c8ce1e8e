from collections.abc import Callable
from typing import TypeAlias

import pytest
from tests.unit.placement.placement_builders import request, site, vector

from nuage.ids import NodeId, RackId, RequestId, SiteId, VmId
from nuage.model.contract import Contract
from nuage.model.infrastructure import Datacenter
from nuage.model.placement import Refusal
from nuage.model.vm import VmShape
from nuage.placement.local_agent import LocalAgent, Reservation, SiteConditions
from nuage.placement.rack_agents import RackAgents

Agent: TypeAlias = LocalAgent | RackAgents


def rack_of(node_id: NodeId) -> RackId:
    """Odd nodes stand in r1, even ones in r0."""
    return RackId(f"r{int(node_id.rpartition('v')[2]) % 2}")


def racked(place: Datacenter) -> RackAgents:
    return RackAgents(place, rack_of)


@pytest.fixture(params=[LocalAgent, racked], ids=["site", "racks"])
def make(request: pytest.FixtureRequest) -> Callable[[Datacenter], Agent]:
    """One suite for both: a Master Agent cannot tell them apart."""
    chosen: Callable[[Datacenter], Agent] = request.param
    return chosen


def filled(
    make: Callable[[Datacenter], Agent], count: int = 4, capacity: float = 18_000.0
) -> Agent:
    agent = make(site(power_capacity_watts=capacity))
    for n in range(1, count + 1):
        agent.update(vector(f"marne-v{n}", running=(VmId(f"old-{n}"),)))
    return agent


def test_all_nodes_bid(make: Callable[[Datacenter], Agent]) -> None:
    bid = filled(make).bid(request(), 0.0)
    assert sorted(e.node_id for e in bid.estimates) == [f"marne-v{n}" for n in range(1, 5)]
    assert bid.refusals == ()


def test_the_site_s_capacity_spans_racks(make: Callable[[Datacenter], Agent]) -> None:
    agent = filled(make, capacity=265.0)  # 4 × 60 W, and 12.4 W a VM
    assert isinstance(agent.reserve(request(1), NodeId("marne-v1"), 0.0), Reservation)
    assert isinstance(agent.reserve(request(2), NodeId("marne-v2"), 0.0), Reservation)
    refused = agent.reserve(request(3), NodeId("marne-v3"), 0.0)
    assert isinstance(refused, Refusal)
    assert refused.rule == "electrical"
    assert {r.rule for r in agent.bid(request(3), 0.0).refusals} == {"electrical"}
    assert agent.release(RequestId("req-1"))
    assert isinstance(agent.reserve(request(3), NodeId("marne-v3"), 0.0), Reservation)


def test_near_and_apart_span_racks(make: Callable[[Datacenter], Agent]) -> None:
    agent = filled(make)
    near = agent.bid(request(vms_near=(VmId("old-1"),)), 0.0)
    assert len(near.estimates) == 4
    away = agent.bid(request(vms_near=(VmId("old-9"),)), 0.0)
    assert [r.rule for r in away.refusals] == ["near"]
    apart = agent.bid(request(vms_apart=(VmId("old-1"), VmId("old-2"))), 0.0)
    assert sorted((r.node_id, r.rule) for r in apart.refusals if r.node_id) == [
        ("marne-v1", "apart"),
        ("marne-v2", "apart"),
    ]


def test_a_promise_moves_between_racks_until_it_is_confirmed(
    make: Callable[[Datacenter], Agent],
) -> None:
    agent = filled(make)
    agent.reserve(request(), NodeId("marne-v1"), 0.0)
    agent.reserve(request(), NodeId("marne-v2"), 0.0)
    assert [h.node_id for h in agent.reservations] == ["marne-v2"]
    assert agent.confirm(RequestId("req-1")) is not None
    refused = agent.reserve(request(), NodeId("marne-v3"), 0.0)
    assert isinstance(refused, Refusal)
    assert refused.rule == "placed"
    assert not agent.release(RequestId("req-1"), NodeId("marne-v1"))
    assert agent.release_vm(VmId("vm-1")) == 1
    assert agent.confirm(RequestId("req-1")) is None


def test_refusals_of_the_whole_site_are_told_once(make: Callable[[Datacenter], Agent]) -> None:
    for changes in (
        {"contract": Contract(sites=(SiteId("lyon"),))},
        {"node_wanted": NodeId("lyon-v1")},
    ):
        assert len(filled(make).bid(request(**changes), 0.0).refusals) == 1
    empty = make(site()).bid(request(), 0.0)
    assert [r.rule for r in empty.refusals] == ["no_vnode"]


def test_rules_conditions_and_curves_reach_every_node(make: Callable[[Datacenter], Agent]) -> None:
    agent = filled(make)
    agent.set_conditions(SiteConditions(pue=2.0))
    agent.set_power_limits(())
    agent.set_power_curve(NodeId("marne-v1"), [10.0] * 11)
    agent.set_in_service({NodeId("marne-v1")}, reason="heat")
    agent.update(vector("marne-v6"))
    bid = agent.bid(request(), 0.0)
    assert [(e.node_id, e.costs["pue"], e.costs["marginal_watts"]) for e in bid.estimates] == [
        ("marne-v1", 2.0, 0.0)
    ]
    agent.forget(NodeId("marne-v1"))
    assert agent.bid(request(), 0.0).estimates == ()
    assert len(agent.nodes) == 4


def test_many_racks_send_on_their_best_only() -> None:
    agent = filled(racked, count=40)
    bid = agent.bid(request(policy="pack", shape=VmShape(vcpu_count=2, memory_mib=64)), 0.0)
    assert len(bid.estimates) == 16
