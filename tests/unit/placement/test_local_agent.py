from typing import Any

import pytest
from tests.unit.placement.placement_builders import request, site, vector

from nuage.energy.electrical import PowerLimit
from nuage.ids import NodeId, RequestId, SiteId, VmId
from nuage.model.contract import Contract
from nuage.model.infrastructure import Operator
from nuage.model.placement import EstimationVector, Refusal
from nuage.model.vm import VmShape
from nuage.placement.columns import COLUMN_NAMES
from nuage.placement.local_agent import LocalAgent, Reservation, SiteConditions


def agent(*vectors: EstimationVector, **changes: Any) -> LocalAgent:
    built = LocalAgent(site(**changes))
    for each in vectors or (vector("marne-v1"), vector("marne-v2")):
        built.update(each)
    return built


def rule_of(local: LocalAgent, now_s: float = 0.0, **changes: Any) -> dict[str | None, str]:
    bid = local.bid(request(**changes), now_s)
    return {refusal.node_id: refusal.rule for refusal in bid.refusals}


def test_every_node_that_breaks_no_rule_is_a_candidate_with_all_columns() -> None:
    bid = agent().bid(request(), 1.0)
    assert [e.node_id for e in bid.estimates] == ["marne-v1", "marne-v2"]
    assert bid.refusals == ()
    assert tuple(bid.estimates[0].costs) == COLUMN_NAMES


@pytest.mark.parametrize(
    ("contract", "changes", "rule"),
    [
        (Contract(sites=(SiteId("lyon"),)), {}, "sites"),
        (Contract(data_countries=("FR",)), {"country": "DE"}, "data_countries"),
        (
            Contract(operator_countries=("FR",)),
            {"operator": Operator("Acme", "US")},
            "operator_countries",
        ),
        (Contract(tier_min=4), {}, "tier_min"),
    ],
)
def test_a_site_outside_the_contract_refuses_whole(
    contract: Contract, changes: dict[str, Any], rule: str
) -> None:
    assert rule_of(agent(**changes), contract=contract) == {None: rule}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"site_wanted": SiteId("lyon")}, "site_wanted"),
        ({"node_wanted": NodeId("lyon-v1")}, "node_wanted"),
        ({"sites_near_data": (SiteId("lyon"),)}, "near_data"),
        ({"vms_near": (VmId("vm-9"),)}, "near"),
    ],
)
def test_a_site_that_the_request_excludes_refuses_whole(changes: dict[str, Any], rule: str) -> None:
    assert rule_of(agent(), **changes) == {None: rule}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"maintenance": True}, "maintenance"),
        ({"in_service": False}, "out_of_service"),
        ({"vcpu_free": 0}, "vcpu"),
        ({"memory_free_mib": 1023}, "memory"),
        ({"sent_s": -31.0}, "stale"),
        ({"running": (VmId("vm-7"),)}, "apart"),
    ],
)
def test_a_node_that_breaks_a_rule_says_which(changes: dict[str, Any], rule: str) -> None:
    local = agent(vector("marne-v1", **changes), vector("marne-v2"))
    assert rule_of(local, vms_apart=(VmId("vm-7"),)) == {"marne-v1": rule}


def test_excluded_and_unwanted_nodes_are_refused_by_name() -> None:
    assert rule_of(agent(), nodes_excluded=(NodeId("marne-v2"),)) == {"marne-v2": "excluded"}
    assert rule_of(agent(), node_wanted=NodeId("marne-v2")) == {"marne-v1": "node_wanted"}


def test_a_fence_and_a_ban_refuse_the_nodes_that_they_leave_out() -> None:
    fenced = (NodeId("marne-v2"), NodeId("lyon-v1"))
    assert rule_of(agent(), nodes_fenced=fenced) == {"marne-v1": "fence"}
    assert rule_of(agent(), nodes_banned=(NodeId("marne-v2"),)) == {"marne-v2": "ban"}
    assert rule_of(agent(), nodes_fenced=(NodeId("lyon-v1"),)) == {None: "fence"}
    refused = agent().reserve(request(nodes_fenced=fenced), NodeId("marne-v1"), 0.0)
    assert isinstance(refused, Refusal)
    assert refused.rule == "fence"


def test_a_preserved_vcpu_takes_a_cores_whole_share() -> None:
    """Twelve cores sold four times: 48 vCPUs, of which six preserved ones take half."""
    local = agent(vector(vcpu_free=48, vcpu_overcommit=4.0))
    half = VmShape(vcpu_count=8, memory_mib=64, preserved_vcpus=6)
    promise = local.reserve(request(1, shape=half), NodeId("marne-v1"), 0.0)
    assert isinstance(promise, Reservation)
    free = local.bid(request(2), 0.0).estimates[0].costs["vcpu_free"]
    assert free == 48 - (2 + 6 * 4)
    assert rule_of(local, number=3, shape=half) == {"marne-v1": "preserve"}
    local.release(request(1).request_id)
    assert rule_of(local, number=3, shape=half) == {}


def test_of_many_nodes_each_rule_is_told_once_with_how_many_break_it() -> None:
    full = [vector(f"marne-v{number:03}", vcpu_free=0) for number in range(80)]
    small = [vector(f"marne-v{number:03}", memory_free_mib=8) for number in range(80, 90)]
    bid = agent(*full, *small, vector("marne-v099")).bid(request(), 0.0)
    assert [(r.rule, r.node_id, r.node_count) for r in bid.refusals] == [
        ("vcpu", None, 80), ("memory", None, 10),
    ]  # fmt: skip
    assert "marne-v000: 0 vCPUs free, 1 asked" in bid.refusals[0].reason


def test_a_rule_takes_nodes_out_of_service_at_once_and_gives_its_reason() -> None:
    local = agent()
    local.set_in_service({NodeId("marne-v1")}, reason="heat: half of the nodes")
    bid = local.bid(request(), 0.0)
    assert [(r.node_id, r.reason) for r in bid.refusals] == [
        ("marne-v2", "heat: half of the nodes")
    ]
    local.set_in_service(None)
    assert local.bid(request(), 0.0).refusals == ()


def test_a_branch_at_its_limit_refuses_and_is_named() -> None:
    local = agent()
    local.set_power_limits(
        [PowerLimit(name="branch 1", limit_watts=65.0, node_ids=frozenset({NodeId("marne-v1")}))]
    )
    bid = local.bid(request(), 0.0)
    assert [(r.node_id, r.rule) for r in bid.refusals] == [("marne-v1", "electrical")]
    assert "branch 1 has 5 W left" in bid.refusals[0].reason


def test_the_site_s_own_capacity_is_a_limit() -> None:
    assert set(rule_of(agent(power_capacity_watts=125.0)).values()) == {"electrical"}


def test_a_candidate_costs_its_marginal_watts_times_pue_times_price() -> None:
    local = agent()
    local.set_conditions(SiteConditions(pue=1.5, price_eur_per_mwh=100.0, carbon_g_per_kwh=40.0))
    costs = local.bid(request(shape=VmShape(vcpu_count=6, memory_mib=64)), 0.0).estimates[0].costs
    assert costs["marginal_watts"] == pytest.approx(74.5)  # half of 205 - 56 W
    assert costs["cost_eur_per_h"] == pytest.approx(74.5 * 1.5 * 100.0 / 1e6)
    assert costs["carbon_g_per_h"] == pytest.approx(74.5 * 1.5 * 40.0 / 1000.0)


def test_waking_a_node_costs_its_idle_draw_and_its_boot() -> None:
    local = agent(vector(booted=False, power_watts=0.0, boot_energy_joules=36_000.0))
    costs = local.bid(request(), 0.0).estimates[0].costs
    assert costs["marginal_watts"] == pytest.approx(149 / 12 + 56 + 10)


def test_a_calibrated_curve_replaces_the_line() -> None:
    local = agent(vector())
    local.set_power_curve(NodeId("marne-v1"), [50, 90, *[100.0] * 9])
    costs = local.bid(request(shape=VmShape(vcpu_count=12, memory_mib=64)), 0.0).estimates[0].costs
    assert costs["marginal_watts"] == pytest.approx(50.0)


def test_a_promise_is_not_promised_twice() -> None:
    local = agent(vector(memory_free_mib=1500))
    first = local.reserve(request(1), NodeId("marne-v1"), 0.0)
    assert isinstance(first, Reservation)
    second = local.reserve(request(2), NodeId("marne-v1"), 0.0)
    assert isinstance(second, Refusal)
    assert second.rule == "memory"
    assert rule_of(local, number=3) == {"marne-v1": "memory"}


def test_asking_again_returns_the_same_promise_and_another_node_moves_it() -> None:
    local = agent()
    first = local.reserve(request(), NodeId("marne-v1"), 0.0)
    assert local.reserve(request(), NodeId("marne-v1"), 1.0) == first
    moved = local.reserve(request(), NodeId("marne-v2"), 1.0)
    assert isinstance(moved, Reservation)
    assert [hold.node_id for hold in local.reservations] == ["marne-v2"]
    assert not local.release(RequestId("req-1"), NodeId("marne-v1"))
    local.confirm(RequestId("req-1"))
    refused = local.reserve(request(), NodeId("marne-v1"), 1.0)
    assert isinstance(refused, Refusal)
    assert refused.rule == "placed"


def test_an_unconfirmed_promise_expires_and_a_confirmed_one_waits_for_its_vm() -> None:
    local = agent(vector())
    local.reserve(request(1), NodeId("marne-v1"), 0.0)
    local.reserve(request(2), NodeId("marne-v1"), 0.0)
    assert local.confirm(RequestId("req-2")) is not None
    local.bid(request(3), 11.0)
    assert [hold.vm_id for hold in local.reservations] == ["vm-2"]
    assert local.confirm(RequestId("req-1")) is None
    local.update(vector(sent_s=12.0, vcpu_free=11, running=(VmId("vm-2"),)))
    assert local.reservations == ()


def test_an_old_vector_changes_nothing() -> None:
    local = agent(vector(sent_s=5.0))
    local.reserve(request(), NodeId("marne-v1"), 5.0)
    local.update(vector(sent_s=4.0, running=(VmId("vm-1"),), memory_free_mib=0))
    assert len(local.reservations) == 1
    assert len(local.bid(request(2), 5.0).estimates) == 1


def test_what_is_released_is_free_again() -> None:
    local = agent(vector(vcpu_free=1))
    local.reserve(request(1), NodeId("marne-v1"), 0.0)
    assert local.release_vm(VmId("vm-1")) == 1
    assert not local.release(RequestId("req-1"))
    assert isinstance(local.reserve(request(2), NodeId("marne-v1"), 0.0), Reservation)


def test_a_promised_vm_counts_for_near_and_apart() -> None:
    local = agent()
    local.reserve(request(1), NodeId("marne-v1"), 0.0)
    assert rule_of(local, number=2, vms_near=(VmId("vm-1"),)) == {}
    assert rule_of(local, number=2, vms_apart=(VmId("vm-1"),)) == {"marne-v1": "apart"}
    refused = local.reserve(request(2, vms_apart=(VmId("vm-1"),)), NodeId("marne-v1"), 0.0)
    assert isinstance(refused, Refusal)
    assert refused.rule == "apart"


def test_a_forgotten_node_is_no_candidate_and_others_keep_their_rows() -> None:
    local = agent(*(vector(f"marne-v{n}", memory_free_mib=1024 * n) for n in range(1, 21)))
    local.reserve(request(), NodeId("marne-v20"), 0.0)
    local.forget(NodeId("marne-v3"))
    local.forget(NodeId("marne-v3"))
    bid = local.bid(request(2, node_wanted=NodeId("marne-v20")), 0.0)
    assert bid.estimates[0].costs["memory_free_mib"] == 19 * 1024
    refused = local.reserve(request(3), NodeId("marne-v3"), 0.0)
    assert isinstance(refused, Refusal)
    assert refused.rule == "no_vnode"


def test_a_large_site_sends_its_best_by_the_request_s_policy_only() -> None:
    vectors = [vector(f"marne-v{n}", flops=n * 1e9) for n in range(100)]
    bid = agent(*vectors).bid(request(policy="performance"), 0.0)
    assert [e.node_id for e in bid.estimates] == [f"marne-v{n}" for n in range(99, 83, -1)]


def test_a_sed_s_own_columns_travel_with_its_estimate() -> None:
    bid = agent(vector(extra={"noise_db": 40.0}), vector("marne-v2")).bid(request(), 0.0)
    assert bid.estimates[0].costs["noise_db"] == 40.0
    assert "noise_db" not in bid.estimates[1].costs


def test_an_empty_site_says_so() -> None:
    local = LocalAgent(site())
    assert rule_of(local) == {None: "no_vnode"}
    assert local.nodes == ()


def test_a_release_that_overtakes_its_commitment_bars_it() -> None:
    local = agent()
    assert not local.release(RequestId("req-1"), NodeId("marne-v1"))
    late = local.reserve(request(), NodeId("marne-v1"), 0.0)
    assert isinstance(late, Refusal)
    assert late.rule == "released"
    assert isinstance(local.reserve(request(), NodeId("marne-v2"), 0.0), Reservation)
