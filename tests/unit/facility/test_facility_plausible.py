"""Readings that cannot be true."""

from math import inf, nan

import pytest

from nuage.facility.plausible import believable_kwh, believable_watts
from nuage.facility.ports import ImplausibleReading


@pytest.mark.parametrize(
    ("watts", "rule"), [(-0.1, "negative"), (nan, "not_a_number"), (inf, "not_a_number")]
)
def test_watts_that_nothing_draws_are_refused(watts: float, rule: str) -> None:
    with pytest.raises(ImplausibleReading) as caught:
        believable_watts(watts, "marne-r1-pdu outlet 3")
    assert caught.value.rule == rule
    assert "marne-r1-pdu outlet 3" in caught.value.message


def test_zero_watts_and_no_counter_are_fine() -> None:
    assert believable_watts(0.0, "a meter") == 0.0
    assert believable_kwh(None, "a meter") is None


@pytest.mark.parametrize("energy_kwh", [-1.0, nan, inf])
def test_a_counter_never_counts_below_nothing(energy_kwh: float) -> None:
    with pytest.raises(ImplausibleReading):
        believable_kwh(energy_kwh, "a meter")
