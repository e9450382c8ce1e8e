from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuage.energy.accounting import (
    SITE_ACCOUNT,
    EnergyLedger,
    NodeInterval,
    VmUse,
    millijoules_of,
    split_whole,
)
from nuage.energy.cooling import CoolingControl, CoolingModel
from nuage.energy.meters import EnergyCounter
from nuage.energy.power_curve import CurveFit, PowerCurve, line
from nuage.energy.tier import at_least
from nuage.energy.weather import ZONES, weather_normal
from nuage.errors import InvalidRequest
from nuage.ids import IaasId, SiteId, VmId

weights = st.lists(st.floats(0, 1e6), min_size=1, max_size=20)
watts = st.floats(0, 1000)


@given(st.integers(0, 10**15), weights)
def test_shares_add_up_and_are_near_their_weight(total: int, parts: list[float]) -> None:
    shares = split_whole(total, parts)
    assert sum(shares) == total
    if sum(parts) > 0 and total < 10**9:
        for share, weight in zip(shares, parts, strict=True):
            assert abs(share - total * weight / sum(parts)) < 1.001


uses = st.lists(
    st.builds(
        VmUse,
        vm_id=st.integers(0, 30).map(lambda n: VmId(f"vm-{n}")),
        iaas_id=st.sampled_from([IaasId("a"), IaasId("b")]),
        cpu_s=st.floats(0, 100),
        memory_mib=st.floats(0, 10_000),
    ),
    max_size=8,
    unique_by=lambda use: use.vm_id,
).map(tuple)
intervals = st.builds(
    NodeInterval,
    site_id=st.sampled_from([SiteId("marne"), SiteId("lyon")]),
    begin_s=st.just(0.0),
    end_s=st.floats(0, 3600),
    joules=st.floats(0, 1e6),
    idle_watts=watts,
    cpu_s=st.floats(0, 1000),
    memory_mib=st.floats(0, 100_000),
    uses=uses,
)


@given(st.lists(intervals, max_size=10))
def test_joules_of_vms_iaas_and_sites_add_up_to_the_meters(measured: list[NodeInterval]) -> None:
    ledger = EnergyLedger(zone=UTC)
    for interval in measured:
        assert sum(millijoules_of(interval).values()) == round(interval.joules * 1000)
        ledger.add(interval, pue=1.2, price_eur_per_mwh=100.0, carbon_g_per_kwh=50.0)
    meter = dict.fromkeys((SiteId("marne"), SiteId("lyon")), 0)
    for interval in measured:
        meter[interval.site_id] += round(interval.joules * 1000)
    for site_id, millijoules in meter.items():
        accounts = (account for account in ledger.state if account.site_id == site_id)
        assert sum(account.it_millijoules for account in accounts) == millijoules
    rows = ledger.rows()
    assert sum(row.facility_kwh for row in rows) == pytest.approx(
        1.2 * sum(row.it_kwh for row in rows)
    )
    assert sum(row.cost_eur for row in rows) == pytest.approx(
        0.1 * sum(row.facility_kwh for row in rows)
    )
    again = EnergyLedger(ledger.state, zone=UTC)
    assert again.rows() == rows
    vm_ids = {use.vm_id for interval in measured for use in interval.uses}
    by_vm = sum(round(ledger.vm_joules(vm_id) * 1000) for vm_id in vm_ids)
    of_iaas = sum(a.it_millijoules for a in ledger.state if a.iaas_id != SITE_ACCOUNT)
    assert by_vm == of_iaas


def test_an_impossible_interval_is_refused() -> None:
    for changes in ({"joules": -1.0}, {"end_s": -1.0}):
        with pytest.raises(InvalidRequest):
            NodeInterval(
                **({"joules": 1.0, "end_s": 1.0} | changes), site_id=SiteId("marne"), begin_s=0.0,
                idle_watts=1.0, cpu_s=1.0, memory_mib=1.0, uses=(),
            )  # fmt: skip


curves = st.lists(watts, min_size=11, max_size=11).map(sorted).map(
    lambda values: PowerCurve(watts=tuple(values))
)  # fmt: skip


@given(curves, st.floats(0, 1), st.floats(0, 1))
def test_more_load_never_draws_less(curve: PowerCurve, one: float, two: float) -> None:
    low, high = sorted((one, two))
    assert curve.at(low) <= curve.at(high) + 1e-9
    assert curve.marginal_watts(one, two) >= -1e-9
    assert curve.idle_watts - 1e-9 <= curve.at(one) <= curve.peak_watts + 1e-9


@given(st.lists(st.tuples(st.floats(-1, 2), watts), max_size=60))
def test_a_fit_is_always_a_possible_curve(readings: list[tuple[float, float]]) -> None:
    fit = CurveFit(line(50, 200), rate=1.0)
    for load, reading in readings:
        fit.take(load, reading)
    assert len(fit.curve().watts) == 11


@given(st.sampled_from(ZONES), st.sampled_from(CoolingControl), st.floats(10, 35), st.floats(0, 10))
def test_a_higher_set_point_never_costs_more(
    zone: str, control: CoolingControl, set_point_c: float, rise_k: float
) -> None:
    cool = CoolingModel(set_point_c=set_point_c, supply_rise_k=rise_k, control=control)
    warm = CoolingModel(set_point_c=set_point_c + 2.0, supply_rise_k=rise_k, control=control)
    normal = weather_normal(zone)
    assert 1.16 - 1e-9 <= warm.year(normal).pue <= cool.year(normal).pue + 1e-9 <= 1.55 + 1e-8


@given(st.lists(st.integers(0, 300_000_000), max_size=50))
def test_a_wrapping_counter_counts_every_joule(steps_uj: list[int]) -> None:
    counter = EnergyCounter(range_uj=999_999_999, power_watts_max=400.0)
    true_uj = 500_000_000
    counter.look(true_uj, 0.0)
    for index, step in enumerate(steps_uj, start=1):
        true_uj += step
        counter.look(true_uj % 1_000_000_000, float(index))
    assert counter.joules == pytest.approx(sum(steps_uj) / 1e6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 6))
def test_needing_more_sites_is_never_more_available(sites: list[float], needed: int) -> None:
    assert 0.0 <= at_least(sites, needed + 1) <= at_least(sites, needed) <= 1.0
