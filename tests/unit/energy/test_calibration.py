from collections.abc import Iterator

import pytest

from nuage.energy import calibration
from nuage.errors import CorruptData


def ticking(*durations_s: float) -> Iterator[float]:
    now_s = 0.0
    for duration_s in durations_s:
        yield now_s
        now_s += duration_s
        yield now_s


def test_flops_are_hpl_s_operations_over_the_best_time() -> None:
    clock = ticking(2.0, 0.5, 1.0)
    found = calibration.calibrate(lambda: next(clock), order=60, runs=3)
    assert found.flops == pytest.approx(calibration.operations(60) / 0.5)
    assert calibration.operations(60) == pytest.approx(2 / 3 * 60**3 + 2 * 60**2)
    assert 0.0 <= found.residual < 16.0


def test_a_machine_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "RESIDUAL_MAX", 0.0)
    clock = ticking(1.0)
    with pytest.raises(CorruptData):
        calibration.calibrate(lambda: next(clock), order=10, runs=1)
