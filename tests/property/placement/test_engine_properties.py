"""The Rust engine against a plain scan in Python."""

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuage._core import PlacementEngine
from nuage.energy.power_curve import ACER_AT350_F2, HUAWEI_RH2288_V2, PowerCurve

CLASSES = ((1, 1024), (2, 4096), (4, 2048))
CURVES = (HUAWEI_RH2288_V2, ACER_AT350_F2)
WAKING_WATTS = 12.0


@dataclass
class PlainNode:
    curve: PowerCurve
    site: int
    vcpu_used: int
    memory_free_mib: int
    booted: bool

    def added_watts(self, vcpu_count: int) -> float:
        now = self.curve.at(self.vcpu_used / 12) if self.booted else 0.0
        waking = 0.0 if self.booted else WAKING_WATTS
        return self.curve.at((self.vcpu_used + vcpu_count) / 12) - now + waking


def build(prng: Random) -> tuple[PlacementEngine, list[PlainNode]]:
    engine = PlacementEngine()
    for curve in CURVES:
        engine.add_curve(list(curve.watts), waking_watts=WAKING_WATTS)
    nodes = []
    for container in range(4):
        engine.add_container(container % 2, 1e6)
        branch = engine.add_branch(1e6)
        for _ in range(prng.randrange(1, 6)):
            kind, booted = prng.randrange(2), prng.random() < 0.7
            engine.add_node(
                curve=kind, branch=branch, cpu_count=12, vcpu_free=12,
                memory_free_mib=16_384, booted=booted,
            )  # fmt: skip
            nodes.append(PlainNode(CURVES[kind], container % 2, 0, 16_384, booted))
    for vcpu_count, memory_mib in CLASSES:
        engine.add_class(vcpu_count, memory_mib)
    engine.add_contract([0, 1])
    engine.add_contract([1])
    return engine, nodes


@given(st.integers(0, 2**32))
def test_the_engine_elects_what_a_plain_scan_elects(seed: int) -> None:
    prng = Random(seed)
    engine, nodes = build(prng)
    weights = [1.0, 1.3]
    engine.set_weight(1, 1.3)
    for _ in range(60):
        size, contract = prng.randrange(3), prng.randrange(2)
        vcpu_count, memory_mib = CLASSES[size]
        able = [
            (node.added_watts(vcpu_count) * weights[node.site], index)
            for index, node in enumerate(nodes)
            if (contract == 0 or node.site == 1)
            and node.vcpu_used + vcpu_count <= 12
            and node.memory_free_mib >= memory_mib
        ]
        answer = engine.place(size, contract, 0)
        if not able:
            assert answer is None
            assert sum(count for _, count in engine.refusals(size, contract, 0)) == len(nodes)
            continue
        assert answer is not None
        assert answer[1] == pytest.approx(min(able)[0], abs=1e-9)
        assert any(index == answer[0] and score <= min(able)[0] + 1e-9 for score, index in able)
        taken = nodes[answer[0]]
        taken.vcpu_used += vcpu_count
        taken.memory_free_mib -= memory_mib
        taken.booted = True
    watts = sum(n.curve.at(n.vcpu_used / 12) for n in nodes if n.booted)
    assert engine.power_watts() == pytest.approx(watts)


def test_no_two_of_a_group_share_a_node_and_a_batch_says_who_found_none() -> None:
    engine, nodes = build(Random(1))
    found = engine.place_many([(0, 0, 7)] * (len(nodes) + 2))
    assert sorted(found[: len(nodes)]) == list(range(len(nodes)))
    assert found[len(nodes) :] == [-1, -1]
    assert dict(engine.refusals(0, 0, 7))["apart"] == len(nodes)
    engine.release(0, 0, 7, 0)
    assert engine.place(0, 0, 7) is not None


def test_a_policy_of_python_ranks_by_its_own_column() -> None:
    engine, nodes = build(Random(2))
    engine.set_scores(0, [float(-index) for index in range(len(nodes))])
    assert engine.place(0, 0, 0) == (len(nodes) - 1, float(1 - len(nodes)))
    engine.set_scores(0, None)
    engine.set_in_service(len(nodes) - 1, False)
    assert engine.node(len(nodes) - 1)[2] == 1


def test_what_does_not_exist_is_refused() -> None:
    engine, nodes = build(Random(3))
    for wrong in (
        lambda: engine.add_curve([1.0]),
        lambda: engine.place(9, 0, 0),
        lambda: engine.place(0, 9, 0),
        lambda: engine.node(len(nodes)),
        lambda: engine.set_scores(0, [1.0]),
        lambda: engine.set_weight(9, 1.0),
        lambda: engine.release(0, 0, 0, 0),
    ):
        with pytest.raises(ValueError, match=r"."):
            wrong()
