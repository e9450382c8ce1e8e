"""Days made from a seed in PlanetLab's format; the real traces are external data."""

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from nuage.errors import InvalidRequest
from nuage.simulation.consolidation import PackedByMemory, Steady, Threshold, pack_memory
from nuage.simulation.planetlab import (
    HOST_MEMORY_MB,
    HOSTS,
    Datacenter,
    Day,
    load_day,
    memory_bound_kwh,
    run_day,
    whole_vms_bound_kwh,
)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    folder = tmp_path_factory.mktemp("20110303")
    prng = Random(7)
    for number in range(80):
        level = prng.randrange(1, 30)
        lines = []
        for _ in range(288):
            level = min(max(level + prng.randrange(-6, 7), 0), 60)
            lines.append(str(level))
        (folder / f"vm{number:03}").write_text("\n".join(lines) + "\n")
    return load_day(folder)


def test_a_day_is_read_by_file_name_and_sized_by_quarter(day: Day) -> None:
    assert day.demand.shape == (80, 288)
    assert Counter(day.vm_mips.tolist()) == {2500.0: 20, 2000.0: 20, 1000.0: 20, 500.0: 20}
    assert day.demand.max() <= 0.6 * 2500


@pytest.mark.parametrize("content", ["1\n" * 287, "1\n" * 287 + "101\n", "some\n" * 288])
def test_what_is_no_trace_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "broken").write_text(content)
    with pytest.raises(InvalidRequest, match="broken"):
        load_day(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        load_day(tmp_path)


def test_moving_little_costs_less_and_disturbs_less_than_a_threshold(day: Day) -> None:
    steady = run_day(day, Steady(), honest=False)
    threshold = run_day(day, Threshold(), honest=False)
    assert steady.energy_kwh < threshold.energy_kwh
    assert steady.migration_count < threshold.migration_count / 2
    assert steady.slav < threshold.slav


def test_the_same_day_gives_the_same_result(day: Day) -> None:
    assert run_day(day, Steady(), honest=False) == run_day(day, Steady(), honest=False)


def test_under_honest_rules_memory_holds_and_the_bound_is_near(day: Day) -> None:
    center = Datacenter(day, enforce_memory=True)
    PackedByMemory().begin(center)
    assert (center.place >= 0).all()
    assert (center.load(day.vm_memory_mb) <= HOST_MEMORY_MB).all()
    result = run_day(day, PackedByMemory(), honest=True)
    bound = whole_vms_bound_kwh(day, hosts=round(result.host_count_mean))
    assert memory_bound_kwh(day) <= bound <= result.energy_kwh <= 1.03 * bound
    assert (result.migration_count, result.boot_count) == (0, 0)


def test_beyond_four_hundred_hosts_the_bound_pays_for_what_idles_higher() -> None:
    """512 VMs that fill a host each: 400 G4s, 112 G5s, and the knee of the G5s' curve."""
    mips, memory = np.full(512, 2000.0), np.full(512, HOST_MEMORY_MB)
    asleep = Day(np.zeros((512, 288)), mips, memory)
    assert whole_vms_bound_kwh(asleep, 512) == pytest.approx((400 * 86 + 112 * 93.7) * 24 / 1000)
    busy = Day(np.full((512, 288), 112 * 1596.0 / 512), mips, memory)  # 30 % of the G5s
    assert whole_vms_bound_kwh(busy, 512) == pytest.approx((400 * 86 + 112 * 105) * 24 / 1000)


def test_packing_is_exact() -> None:
    assert len(pack_memory({1740.0: 526, 870.0: 263, 613.0: 263})) == 329
    assert len(pack_memory({4096.0: 3})) == 3
    content = pack_memory({1740.0: 5, 613.0: 3})
    assert all(sum(host) <= HOST_MEMORY_MB for host in content)
    held = Counter(size for host in content for size in host)
    assert held[1740.0] >= 5
    assert held[613.0] >= 3


def test_no_host_draws_without_a_vm_under_cloudsim_s_rules(day: Day) -> None:
    center = Datacenter(day, enforce_memory=False)
    Steady().begin(center)
    watts = center.watts()
    assert len(watts) == HOSTS
    assert np.array_equal(watts > 0, center.active())
