"""Counts add up: every node answers every bid once; promises never exceed a node."""

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.placement.placement_builders import request, site, vector

from nuage.energy.electrical import PowerLimit
from nuage.ids import NodeId, VmId
from nuage.model.vm import VmShape
from nuage.placement.local_agent import LocalAgent, Reservation, SiteConditions
from nuage.placement.node_rules import REFUSALS_MAX

NODES = tuple(NodeId(f"marne-v{n}") for n in range(5))
vectors = st.builds(
    vector,
    st.sampled_from(NODES),
    sent_s=st.floats(0, 40),
    vcpu_free=st.integers(0, 12),
    memory_free_mib=st.integers(0, 8192),
    in_service=st.booleans(),
    maintenance=st.booleans(),
    booted=st.booleans(),
    running=st.sets(st.sampled_from([VmId("vm-1"), VmId("vm-2")])).map(tuple),
)
requests = st.builds(
    request,
    st.integers(1, 12),
    shape=st.builds(VmShape, vcpu_count=st.integers(1, 4), memory_mib=st.integers(64, 4096)),
    nodes_excluded=st.sets(st.sampled_from(NODES)).map(tuple),
    vms_apart=st.sets(st.sampled_from([VmId("vm-1"), VmId("vm-3")])).map(tuple),
)
steps = st.lists(st.one_of(vectors, st.tuples(requests, st.sampled_from(NODES))), max_size=40)

POLICIES = ("power", "green", "performance", "cursor", "spread", "random")
# More than are refused one by one, so that refusals are also told by rule.
many = [NodeId(f"marne-v{n:02}") for n in range(REFUSALS_MAX + 6)]
limits = st.builds(
    PowerLimit,
    name=st.sampled_from(["A", "B"]),
    limit_watts=st.floats(0, 4_000),
    node_ids=st.sets(st.sampled_from(many), min_size=1).map(frozenset),
)
changes = st.one_of(
    st.builds(
        vector,
        st.sampled_from(many),
        sent_s=st.floats(0, 1),
        vcpu_free=st.integers(0, 12),
        power_watts=st.floats(0, 300),
        cpu_utilisation=st.floats(0, 1),
        requests_served=st.integers(0, 1),
        mean_power_watts=st.floats(1, 300),
        flops=st.sampled_from([1e9, 2e9]),
        booted=st.booleans(),
        vcpu_overcommit=st.sampled_from([1.0, 4.0]),
    ),
    st.tuples(st.integers(1, 6), st.sampled_from(many)),
    st.tuples(st.just("release"), st.integers(1, 6)),
    st.tuples(st.just("conditions"), st.floats(1, 2)),
    st.tuples(st.just("limits"), st.lists(limits, max_size=2)),
    st.tuples(st.just("service"), st.sets(st.sampled_from(many))),
    st.tuples(st.just("forget"), st.sampled_from(many)),
)


def _change(agent: LocalAgent, change: object) -> None:
    match change:
        case ("release", int(number)):
            agent.release(request(number).request_id)
        case ("conditions", float(pue)):
            agent.set_conditions(SiteConditions(pue=pue))
        case ("limits", found):
            agent.set_power_limits(found)  # type: ignore[arg-type]
        case ("service", node_ids):
            agent.set_in_service(node_ids)  # type: ignore[arg-type]
        case ("forget", node_id):
            agent.forget(node_id)  # type: ignore[arg-type]
        case (int(number), node_id):
            agent.reserve(request(number), node_id, 1.0)  # type: ignore[arg-type]
        case _:
            agent.update(change)  # type: ignore[arg-type]


@given(st.lists(changes, max_size=30), st.sampled_from(POLICIES))
def test_what_an_agent_keeps_between_requests_is_what_it_would_find_anew(
    changes: list[object], policy: str
) -> None:
    """One agent is asked after each change, the other only at the end."""
    asked, silent = (LocalAgent(site(), reservation_s=1e9, estimates_max=4) for _ in range(2))
    wanted = request(99, shape=VmShape(vcpu_count=2, memory_mib=64), policy=policy)
    for node in many:
        for agent in (asked, silent):
            agent.update(vector(node))
    for change in changes:
        asked.bid(wanted, 1.0)
        for agent in (asked, silent):
            _change(agent, change)
    assert asked.bid(wanted, 1.0) == silent.bid(wanted, 1.0)


@given(steps, st.floats(0, 60))
def test_every_node_answers_once_and_no_promise_exceeds_it(
    steps: list[object], later_s: float
) -> None:
    agent = LocalAgent(site(), reservation_s=1e9)
    for step in steps:
        if isinstance(step, tuple):
            wanted, node = step
            bid = agent.bid(wanted, 40.0)
            named = [e.node_id for e in bid.estimates] + [r.node_id for r in bid.refusals]
            if agent.nodes:
                assert sorted(named, key=str) == sorted((v.node_id for v in agent.nodes), key=str)
            able = {estimate.node_id for estimate in bid.estimates}
            new = all(hold.request_id != wanted.request_id for hold in agent.reservations)
            outcome = agent.reserve(wanted, node, 40.0)
            if new:
                assert isinstance(outcome, Reservation) == (node in able)
        else:
            agent.update(step)  # type: ignore[arg-type]
    bid = agent.bid(request(99, shape=VmShape(vcpu_count=1, memory_mib=64)), later_s)
    for estimate in bid.estimates:
        assert estimate.costs["vcpu_free"] >= 1
        assert estimate.costs["memory_free_mib"] >= 64
        assert estimate.costs["marginal_watts"] >= 0
