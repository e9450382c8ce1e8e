from tests.unit.energy.greendiet_rules import GREENDIET_RULES
from tests.unit.placement.placement_builders import request, site, vector

from nuage.energy.rules import ShareController
from nuage.ids import NodeId, VmId
from nuage.placement.local_agent import LocalAgent
from nuage.placement.steward import SiteFigures, Steward


def steward(count: int = 5) -> tuple[LocalAgent, Steward]:
    agent = LocalAgent(site())
    for n in range(1, count + 1):
        running = (VmId(f"vm-{n}0"),) if n % 2 else ()
        agent.update(vector(f"marne-v{n}", peak_watts=200.0 + n, running=running))
    return agent, Steward(agent, ShareController(GREENDIET_RULES))


def test_a_heat_event_changes_the_very_next_bid_and_names_what_to_drain() -> None:
    agent, energy = steward()
    assert len(agent.bid(request(), 0.0).estimates) == 5
    outlook = energy.look(SiteFigures(dry_bulb_c=33.0, price_index=0.1), 0.0)
    bid = agent.bid(request(), 0.0)
    assert [estimate.node_id for estimate in bid.estimates] == ["marne-v1"]
    assert {refusal.rule for refusal in bid.refusals} == {"out_of_service"}
    assert bid.refusals[0].reason == "heat: 20% of the nodes are in service"
    assert outlook.in_service == {"marne-v1"}
    assert outlook.to_drain == ("marne-v3", "marne-v5")
    assert bid.estimates[0].costs["pue"] == 1.55


def test_nodes_with_a_promise_are_drained_too() -> None:
    agent, energy = steward()
    agent.reserve(request(), NodeId("marne-v2"), 0.0)
    outlook = energy.look(SiteFigures(dry_bulb_c=33.0), 0.0)
    assert outlook.to_drain == ("marne-v2", "marne-v3", "marne-v5")


def test_calm_gives_every_node_back_and_keeps_what_is_not_known() -> None:
    agent, energy = steward()
    energy.look(SiteFigures(dry_bulb_c=10.0, price_eur_per_mwh=80.0, carbon_g_per_kwh=30.0), 0.0)
    outlook = energy.look(SiteFigures(), 60.0)
    assert outlook.decision.share == 1.0
    assert outlook.cooling is None
    assert (outlook.conditions.pue, outlook.conditions.price_eur_per_mwh) == (1.16, 80.0)
    costs = agent.bid(request(), 0.0).estimates[0].costs
    assert costs["carbon_g_per_kwh"] == 30.0


def test_measured_efficiency_counts_once_there_is_history() -> None:
    agent, energy = steward(2)
    agent.update(
        vector("marne-v2", sent_s=1.0, peak_watts=400.0, mean_power_watts=90.0, requests_served=5)
    )
    outlook = energy.look(SiteFigures(dry_bulb_c=33.0), 0.0)
    assert outlook.in_service == {"marne-v2"}


def test_the_nodes_that_serve_stay_the_same_though_serving_makes_them_look_worse() -> None:
    agent, energy = steward(3)
    hot = SiteFigures(dry_bulb_c=33.0)
    first = energy.look(hot, 0.0).in_service
    assert first == {"marne-v1"}
    loaded = vector("marne-v1", sent_s=1.0, mean_power_watts=260.0, requests_served=9)
    agent.update(loaded)
    assert energy.look(hot, 10.0).in_service == first
    assert energy.by_efficiency()[0] == "marne-v1"
    energy.look(SiteFigures(dry_bulb_c=10.0), 20.0)
    for minute in range(1, 40):  # all come back; the next heat chooses anew
        calm = energy.look(SiteFigures(dry_bulb_c=10.0), 60.0 * minute)
    assert calm.decision.share == 1.0
    assert energy.look(hot, 3000.0).in_service == {"marne-v2"}
