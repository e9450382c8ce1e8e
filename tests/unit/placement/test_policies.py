from collections.abc import Iterator
from importlib.metadata import EntryPoint
from math import exp
from typing import Any

import numpy as np
import pytest
from tests.unit.placement.placement_builders import request

from nuage.errors import InvalidRequest, LocalProtocolError
from nuage.ids import NodeId, SiteId
from nuage.model.placement import Estimate, VmRequest
from nuage.placement.columns import Columns, FloatArray, columns_of
from nuage.placement.policies import BUILT_IN, Policy, PolicyBook, scored


def columns(**values: list[float]) -> Columns:
    count = len(next(iter(values.values())))
    names = tuple(NodeId(f"n{index}") for index in range(count))
    defaults = {
        "pue": [1.0] * count, "booted": [1.0] * count, "cpu_count": [12.0] * count,
        "idle_watts": [50.0] * count,
    }  # fmt: skip
    arrays = {name: np.array(column) for name, column in (defaults | values).items()}
    return Columns(names, (SiteId("marne"),) * count, arrays)


def first(policy: str, candidates: Columns, **changes: Any) -> str:
    scores = scored(PolicyBook().require(policy), candidates, request(**changes))
    return str(candidates.node_ids[scores.index(min(scores))])


class QuietFirst:
    """The guide's example: least noise near the offices."""

    name = "quiet"

    def score(self, columns: Columns, request: VmRequest) -> FloatArray:
        return np.nan_to_num(columns["noise_db"], nan=np.inf)


@pytest.mark.parametrize(
    ("policy", "candidates"),
    [
        ("power", columns(marginal_watts=[20.0, 18.0], pue=[1.0, 1.05], flops=[1e9, 1e9])),
        ("power", columns(marginal_watts=[10.0, 18.0], flops=[1e9, 2e9])),
        ("power", columns(marginal_watts=[20.0, 18.0], flops=[0.0, 0.0])),
        ("performance", columns(flops=[1e9, 2e9])),
        ("cost", columns(cost_eur_per_h=[0.2, 0.1])),
        ("carbon", columns(carbon_g_per_h=[2.0, 1.0])),
        ("spread", columns(vm_count=[2.0, 1.0], cpu_utilisation=[0.0, 0.9])),
        ("pack", columns(vcpu_free=[4.0, 3.0])),
        ("pack", columns(vcpu_free=[1.0, 12.0], booted=[0.0, 1.0])),
    ],
)
def test_each_policy_prefers_what_its_name_says(policy: str, candidates: Columns) -> None:
    assert first(policy, candidates) == "n1"


@pytest.mark.parametrize(("flops", "peak_watts"), [(0.0, 200.0), (1e9, 0.0)])
def test_green_explores_a_node_without_history_then_goes_by_measured_watts(
    flops: float, peak_watts: float
) -> None:
    known = {
        "flops": [1e9, flops, 1e9], "peak_watts": [200.0, peak_watts, 200.0],
        "vm_count": [0.0] * 3, "booted": [1.0] * 3,
    }  # fmt: skip
    served = columns(**known, requests_served=[5.0, 0.0, 5.0], mean_power_watts=[90.0, 0.0, 80.0])
    assert first("green", served) == "n1"
    known["flops"] = [1e9] * 3
    explored = columns(
        **known, requests_served=[5.0, 1.0, 5.0], mean_power_watts=[90.0, 120.0, 80.0]
    )
    assert first("green", explored) == "n2"


@pytest.mark.parametrize(("peak_watts", "elected"), [(79.0, "n1"), (81.0, "n0")])
def test_green_lets_a_calibrated_node_without_history_wait_for_its_turn(
    peak_watts: float, elected: str
) -> None:
    """The other was seen to draw 80 W."""
    candidates = columns(
        flops=[1e9] * 2, peak_watts=[200.0, peak_watts], vm_count=[3.0, 0.0],
        requests_served=[5.0, 0.0], mean_power_watts=[80.0, 0.0],
    )  # fmt: skip
    assert first("green", candidates) == elected


def test_green_takes_equal_machines_for_equal_whatever_each_has_served() -> None:
    """The second was seen at part load: 110 W at 40 %, which on its line is 200 W at full load."""
    alike = columns(
        flops=[1e9] * 3, peak_watts=[200.0] * 3, vm_count=[8.0, 0.0, 2.0],
        requests_served=[9.0] * 3, mean_power_watts=[200.0, 110.0, 118.0],
        mean_utilisation=[1.0, 0.4, 0.4],
    )  # fmt: skip
    first_score, second, hungry = scored(PolicyBook().require("green"), alike, request())
    assert first_score == second < hungry


def test_green_tries_the_better_calibrated_first() -> None:
    both_new = columns(
        flops=[1e9, 2e9], peak_watts=[200.0] * 2, vm_count=[0.0] * 2, booted=[1.0] * 2,
        requests_served=[0.0] * 2, mean_power_watts=[0.0] * 2,
    )  # fmt: skip
    assert first("green", both_new) == "n1"


@pytest.mark.parametrize(("vm_count", "booted"), [(1.0, 1.0), (0.0, 0.0)])
def test_green_neither_fills_nor_wakes_a_node_to_explore_it(vm_count: float, booted: float) -> None:
    """Its calibration (200 W) stands in, and the node that was seen to draw 90 W is better."""
    candidates = columns(
        flops=[1e9] * 2, peak_watts=[200.0] * 2, vm_count=[vm_count, 3.0], booted=[booted, 1.0],
        requests_served=[0.0, 5.0], mean_power_watts=[0.0, 90.0],
    )  # fmt: skip
    assert first("green", candidates) == "n1"


def test_the_cursor_goes_from_the_fastest_to_the_thriftiest() -> None:
    fast_and_hungry = columns(
        flops=[400e9, 200e9],
        marginal_watts=[60.0, 20.0],
        boot_time_s=[0.0, 0.0],
        boot_energy_joules=[0.0, 0.0],
    )
    assert first("cursor", fast_and_hungry, preference=-1.0) == "n0"
    assert first("cursor", fast_and_hungry, preference=1.0) == "n1"


def test_the_cursor_at_zero_is_time_times_energy() -> None:
    candidates = columns(
        flops=[12 * 18.4e9], marginal_watts=[10.0], boot_time_s=[9.0], boot_energy_joules=[9.0]
    )
    (score,) = scored(PolicyBook().require("cursor"), candidates, request())
    assert exp(score) == pytest.approx(600.0 * 6000.0)


def test_random_is_the_same_for_the_same_request_and_differs_between_requests() -> None:
    candidates = columns(flops=[1.0] * 50)
    policy = PolicyBook().require("random")
    assert scored(policy, candidates, request(1)) == scored(policy, candidates, request(1))
    assert len({first("random", candidates, number=n) for n in range(40)}) > 15


def test_a_plug_in_is_loaded_from_its_entry_point() -> None:
    here = f"{QuietFirst.__module__}:QuietFirst"
    book = PolicyBook.load([EntryPoint("quiet", here, "nuage.placement_policies")])
    assert "quiet" in book
    estimates = [
        Estimate(node_id=NodeId(name), site_id=SiteId("marne"), costs=costs)
        for name, costs in (
            ("a", {"pue": 1.0}),
            ("b", {"noise_db": 40.0}),
            ("c", {"noise_db": 30.0}),
        )
    ]
    scores = scored(book.require("quiet"), columns_of(estimates), request())
    assert scores == [float("inf"), 40.0, 30.0]


def test_built_ins_are_there_without_any_entry_point_and_the_default_is_power() -> None:
    book = PolicyBook.load([])
    assert sorted(book) == sorted(cls().name for cls in BUILT_IN)
    assert book.require("").name == "power"
    with pytest.raises(InvalidRequest):
        book.require("nothing")


def test_what_is_no_policy_is_refused_by_name() -> None:
    with pytest.raises(LocalProtocolError, match="collections:OrderedDict"):
        PolicyBook.load([EntryPoint("x", "collections:OrderedDict", "nuage.placement_policies")])


def test_a_policy_that_returns_another_shape_is_named() -> None:
    class Wrong:
        name = "wrong"

        def score(self, columns: Columns, request: VmRequest) -> FloatArray:
            return np.zeros(3)

    with pytest.raises(LocalProtocolError, match="wrong"):
        scored(Wrong(), columns(flops=[1.0]), request())


def test_every_built_in_is_registered_as_an_entry_point() -> None:
    declared = set(_declared())
    assert declared == {cls().name for cls in BUILT_IN}
    assert all(isinstance(cls(), Policy) for cls in BUILT_IN)


def _declared() -> Iterator[str]:
    import tomllib
    from pathlib import Path

    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    yield from tomllib.loads(text)["project"]["entry-points"]["nuage.placement_policies"]
