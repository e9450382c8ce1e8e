"""A disk is measured by what a journal would do to it."""

from pathlib import Path

from nuage.ionode.probe import best_of, measure
from nuage.model.contract import Limits


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    found = measure(tmp_path)
    assert found.operations_per_s > 0
    assert found.bytes_per_s > 0
    assert list(tmp_path.iterdir()) == []


def test_the_best_that_was_ever_seen_counts() -> None:
    busy, idle = Limits(operations_per_s=5, bytes_per_s=900), Limits(operations_per_s=70)
    assert best_of(busy, idle) == Limits(operations_per_s=70, bytes_per_s=900)
