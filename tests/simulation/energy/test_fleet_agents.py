"""The product's agents over a simulated fleet keep its books as the fleet does."""

from dataclasses import replace

import pytest

from nuage.simulation.fleet_year import NODE_MEMORY_MIB, NODE_VCPUS, FleetScenario, FleetYear
from nuage.simulation.load_trace import VmSpan

SMALL = FleetScenario(node_count=16, hours=12, vm_hours_mean=3.0, policy="power")


@pytest.mark.parametrize("planner_every_h", [0, 3])
def test_agents_know_at_every_hour_what_runs_where(planner_every_h: int) -> None:
    fleet = FleetYear(replace(SMALL, planner_every_h=planner_every_h))
    assert fleet.agents is not None
    for _ in fleet.run():
        for site, agent in enumerate(fleet.agents.local_agents):
            assert agent.reservations == ()
            for vector in agent.nodes:
                number = int(vector.node_id[1:])
                sizes = [fleet.load.classes[fleet.size_of[vm]] for vm in fleet.members[number]]
                assert fleet.site_of[number] == site
                assert {int(vm) for vm in vector.running} == fleet.members[number]
                assert vector.vcpu_free == NODE_VCPUS - sum(vcpus for vcpus, _ in sizes)
                assert vector.memory_free_mib == NODE_MEMORY_MIB - sum(mib for _, mib in sizes)
                assert vector.booted == fleet.is_on[number]


def test_nodes_keep_the_dynamic_metric_of_what_they_served() -> None:
    """Two vCPUs of 24 for two hours, alone on the first node: its curve at a twelfth."""
    alone = replace(SMALL, node_count=1, zones=("H1a",), hours=4, trace=(VmSpan(0, 2, 2, 2048),))
    fleet = FleetYear(alone)
    assert fleet.agents is not None
    rows = [row for hour in fleet.run() for row in hour]
    assert [row.vms for row in rows] == [1, 1, 0, 0]
    (vector,) = fleet.agents.local_agents[0].nodes
    assert vector.requests_served == 1
    assert vector.mean_power_watts == pytest.approx(fleet.curves[0].at(2 / 24))


def test_agents_of_a_large_site_place_as_small_ones_do_and_tell_how_far_they_are() -> None:
    """Three sites of a thousand nodes: full ones are told by rule, and each VM finds its node."""
    trace = tuple(VmSpan(0, 9, 24, 2048) for _ in range(400))
    shares: list[float] = []
    wide = replace(SMALL, node_count=3_000, zones=("H1a", "H1c", "H3"), hours=1, trace=trace)
    fleet = FleetYear(wide, shares.append)
    (rows,) = fleet.run()
    assert sum(row.vms for row in rows) == sum(row.nodes_on for row in rows) == 400
    assert rows[0].refused == 0
    assert shares == sorted(shares)
    assert 0.0 <= shares[0] <= shares[-1] <= 1.0


def test_a_vm_that_no_node_can_take_is_counted_and_the_others_are_placed() -> None:
    trace = tuple(VmSpan(0, 2, vcpus, 2048) for vcpus in (20, 20, 4))
    fleet = FleetYear(replace(SMALL, node_count=1, zones=("H1a",), hours=2, trace=trace))
    rows = [row for hour in fleet.run() for row in hour]
    assert [(row.vms, row.refused) for row in rows] == [(2, 1), (2, 0)]
