"""RAPL on a tree of files that looks like the kernel's."""

from pathlib import Path

import pytest

from nuage.vnode.rapl import RaplMeter

RANGE_UJ = 262_143_328_850  # of a Xeon


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, delay_s: float) -> None:
        raise NotImplementedError(delay_s)


def zone(root: Path, path: str, name: str, energy_uj: int) -> Path:
    """Write one zone; return its counter."""
    folder = root / path
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    counter = folder / "energy_uj"
    counter.write_text(f"{energy_uj}\n")
    return counter


def test_packages_and_their_memory_add_up_and_cores_are_not_counted_twice(tmp_path: Path) -> None:
    one = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    two = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 1_000_000)
    cores = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    clock = Clock()
    meter = RaplMeter(clock, tmp_path)
    assert meter() is None, "one look is no power yet"
    for counter, energy_uj in ((one, 85_000_000), (two, 60_000_000), (memory, 9_000_000),
                               (cores, 70_000_000)):  # fmt: skip
        counter.write_text(f"{energy_uj}\n")
    clock.time_s += 2.0
    reading = meter()
    assert reading is not None
    assert (reading.watts, reading.source, reading.read_s) == (74.0, "rapl", 1002.0)


def test_the_platform_s_own_counter_is_preferred(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    whole = zone(tmp_path, "intel-rapl:1", "psys", 0)
    clock = Clock()
    meter = RaplMeter(clock, tmp_path)
    meter()
    whole.write_text("120000000\n")
    clock.time_s += 1.0
    reading = meter()
    assert reading is not None
    assert reading.watts == pytest.approx(120.0)


def test_a_counter_that_wraps_goes_on_and_one_that_is_reset_says_nothing(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 50_000_000)
    clock = Clock()
    meter = RaplMeter(clock, tmp_path)
    meter()
    counter.write_text("49999999\n")  # 100 J on, over the end
    clock.time_s += 1.0
    wrapped = meter()
    assert wrapped is not None
    assert wrapped.watts == pytest.approx(100.0)
    counter.write_text("3\n")  # the driver was loaded anew: that would be 262 kW
    clock.time_s += 1.0
    assert meter() == wrapped, "the last window that was whole"
    clock.time_s += 30.0
    counter.unlink()
    assert meter() is None, "and then it is too old"


def test_a_machine_without_counters_has_no_such_meter(tmp_path: Path) -> None:
    meter = RaplMeter(Clock(), tmp_path / "powercap")
    assert not meter.is_there
    assert meter() is None


def test_counters_are_not_read_more_often_than_helps(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    clock = Clock()
    meter = RaplMeter(clock, tmp_path)
    meter()
    counter.write_text("50000000\n")
    clock.time_s += 0.2
    assert meter() is None
