"""A few kills under load; `tests/torture/test_kills.py` has hundreds."""

import math

import pytest
from tests.system.storage_front.block_history import BlockHistories
from tests.system.storage_front.kills import Kills
from tests.system.storage_front.storage_front_daemon import Daemon

pytestmark = pytest.mark.system


def test_what_was_answered_outlives_ten_kills_in_any_order(three_sites: list[Daemon]) -> None:
    kills = Kills(three_sites, seed=1, ack="durable")
    try:
        kills.durable_round()
        kills.require_one_chain()
    finally:
        kills.end()


def history(*acts: tuple[str, int, float, float]) -> BlockHistories:
    made = BlockHistories()
    made.known(0, 0)
    for kind, value, begin_s, end_s in acts:
        note = made.wrote if kind == "write" else made.read
        note(0, value, begin_s, end_s)
    return made


@pytest.mark.parametrize(
    "acts",
    [
        pytest.param([("write", 1, 1, 2), ("read", 0, 3, 4)], id="a lost write"),
        pytest.param([("write", 1, 1, 9), ("read", 1, 2, 3), ("read", 0, 4, 5)], id="stale"),
        pytest.param([("read", 1, 1, 2), ("write", 1, 3, 4)], id="of the future"),
        pytest.param([("read", 7, 1, 2)], id="of nowhere"),
        pytest.param(
            [("write", 1, 1, math.inf), ("read", 1, 3, 4), ("read", 0, 5, 6)], id="gone again"
        ),
        pytest.param(
            [("write", 1, 1, 2), ("write", 2, 3, 4), ("read", 2, 5, 6), ("read", 1, 7, 8)],
            id="back from the dead",
        ),
    ],
)
def test_what_no_disk_shows_is_found(acts: list[tuple[str, int, float, float]]) -> None:
    assert history(*acts).faults()


@pytest.mark.parametrize(
    "acts",
    [
        pytest.param([("write", 1, 1, 2), ("read", 1, 3, 4)], id="in order"),
        pytest.param([("write", 1, 1, 5), ("read", 0, 2, 3), ("read", 1, 4, 6)], id="meanwhile"),
        pytest.param([("write", 1, 1, math.inf), ("read", 0, 3, 4)], id="never done"),
        pytest.param([("write", 1, 1, math.inf), ("read", 0, 3, 4), ("read", 1, 5, 6)], id="late"),
        pytest.param(
            [("write", 1, 1, 5), ("write", 2, 2, 6), ("read", 2, 7, 8)], id="either order"
        ),
    ],
)
def test_what_a_disk_may_show_is_none(acts: list[tuple[str, int, float, float]]) -> None:
    assert history(*acts).faults() == []


def test_after_a_loss_of_memory_only_what_was_flushed_must_be_there() -> None:
    made = history(("write", 1, 1, 2), ("write", 2, 3, 4), ("write", 3, 5, 6))
    assert made.faults_after_loss(0, 1, flushed_s=4.5)
    assert made.faults_after_loss(0, 9, flushed_s=0)
    for value in (2, 3):
        assert made.faults_after_loss(0, value, flushed_s=4.5) == []
