import pytest
from tests.unit.energy.greendiet_rules import GREENDIET_RULES

from nuage.energy.rules import (
    ShareController,
    nodes_in_service,
    rehearse,
)
from nuage.errors import InvalidRequest
from nuage.ids import NodeId
from nuage.model.energy import SharePlan, ShareRule

CALM = {"temperature_c": 20.0, "price_index": 0.4}


def test_heat_takes_nodes_out_at_once_and_gives_them_back_slowly() -> None:
    controller = ShareController(GREENDIET_RULES)
    hot = controller.decide(CALM | {"temperature_c": 25.1}, 0.0)
    assert (hot.share, hot.because) == (0.2, ("heat",))
    still = controller.decide(CALM | {"temperature_c": 24.5}, 60.0)
    assert still.share == 0.2  # within the hysteresis
    cooler = controller.decide(CALM, 120.0)
    assert (cooler.wanted, cooler.because) == (1.0, ())
    assert cooler.share == pytest.approx(0.25)


def test_a_dear_hour_ramps_down() -> None:
    controller = ShareController(GREENDIET_RULES)
    controller.decide(CALM, 0.0)
    dear = controller.decide(CALM | {"price_index": 0.9}, 60.0)
    assert dear.share == pytest.approx(0.95)
    assert (dear.wanted, dear.because[0]) == (0.4, "dear")
    assert controller.decide(CALM | {"price_index": 0.9}, 6000.0).share == pytest.approx(0.4)
    assert controller.decide(CALM | {"price_index": 0.6}, 9000.0).wanted == 0.7


def test_a_plan_holds_between_its_dates_and_the_lowest_share_wins() -> None:
    plan = SharePlan(name="generator test", begin_s=100.0, end_s=200.0, share=0.5)
    controller = ShareController(GREENDIET_RULES, [plan], ramp_per_min=60.0)
    assert controller.decide(CALM, 99.0).wanted == 1.0
    assert controller.decide(CALM, 100.0).because == ("generator test",)
    assert controller.decide(CALM | {"price_index": 0.9}, 150.0).because == ("dear",)
    assert controller.decide(CALM, 200.0).wanted == 1.0


def test_a_figure_that_is_missing_changes_nothing_and_is_named() -> None:
    controller = ShareController(GREENDIET_RULES)
    controller.decide({"temperature_c": 30.0, "price_index": 0.1}, 0.0)
    blind = controller.decide({}, 1000.0)
    assert blind.share == 0.2
    assert blind.missing == ("temperature_c", "price_index")


def test_a_rehearsal_changes_nothing() -> None:
    controller = ShareController(GREENDIET_RULES)
    foreseen = [(hour * 3600.0, {"temperature_c": 20.0 + hour, "price_index": 0.1})
                for hour in range(10)]  # fmt: skip
    shares = [decision.share for decision in rehearse(controller, foreseen)]
    assert shares == [1.0] * 6 + [0.2] * 4
    assert controller.share == 1.0
    assert controller.decide(CALM, 0.0).because == ()


def test_the_most_efficient_nodes_stay() -> None:
    nodes = [NodeId(f"n{index}") for index in range(5)]
    assert nodes_in_service(nodes, 0.2) == {"n0"}
    assert nodes_in_service(nodes, 0.21) == {"n0", "n1"}
    assert nodes_in_service(nodes, 0.0, keep=[nodes[4]]) == {"n4"}
    assert nodes_in_service(nodes, 1.0) == set(nodes)


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        ShareRule(name="x", figure="t", above=1.0, share=1.1)
    with pytest.raises(InvalidRequest):
        ShareRule(name="x", figure="t", above=1.0, share=1.0, hysteresis=-1.0)
    with pytest.raises(InvalidRequest):
        SharePlan(name="x", begin_s=1.0, end_s=1.0, share=0.5)
    with pytest.raises(InvalidRequest):
        SharePlan(name="x", begin_s=1.0, end_s=2.0, share=-0.5)
