"""A machine's power states, watts and joules."""

import pytest

from nuage.lab.description import Hardware
from nuage.lab.machine import (
    REBOOT_GAP_S,
    SHUTDOWN_PATIENCE_S,
    Effect,
    Machine,
    State,
    curve_watts,
)

HARDWARE = Hardware(
    cpu_count=2, memory_mib=1024, idle_watts=50.0, peak_watts=150.0, standby_watts=4.0,
    boot_seconds=10.0, psu_efficiency=0.8,
)  # fmt: skip


def _running(now_s: float = 0.0) -> Machine:
    machine = Machine(HARDWARE, now_s=now_s)
    machine.power_on(now_s)
    machine.advance(now_s + 10.0)
    machine.sample(now_s + 10.0, 0.0)
    assert machine.state is State.ON
    return machine


def test_a_boot_takes_its_time_and_draws_half_way_to_peak() -> None:
    machine = Machine(HARDWARE, now_s=0.0)
    assert machine.power_on(0.0) == (Effect.BUILD,)
    assert (machine.state, machine.dc_watts) == (State.POST, 100.0)
    assert machine.advance(9.9) == ()
    assert machine.advance(10.0) == (Effect.START,)
    assert machine.state is State.ON


def test_the_button_does_nothing_to_a_machine_that_is_on() -> None:
    assert _running().power_on(20.0) == ()


def test_the_outlet_sees_the_supplys_loss() -> None:
    machine = _running()
    machine.sample(20.0, 0.0)
    assert (machine.dc_watts, machine.outlet_watts) == (50.0, 62.5)


def test_power_follows_the_load_since_the_last_sample() -> None:
    machine = _running()
    machine.sample(20.0, 0.0)
    machine.sample(30.0, 5.0)  # five CPU seconds in ten, on two CPUs
    assert machine.utilisation == pytest.approx(0.25)
    assert machine.dc_watts == pytest.approx(75.0)
    machine.sample(30.1, 5.2)  # too soon to tell: the last answer stands
    assert machine.utilisation == pytest.approx(0.25)
    machine.sample(40.0, 1000.0)
    assert machine.utilisation == 1.0


def test_energy_is_the_integral_of_what_the_outlet_delivers() -> None:
    machine = Machine(HARDWARE, now_s=0.0)
    machine.sample(10.0, 0.0)  # standby: 4 W / 0.8 for 10 s
    machine.power_on(10.0)
    machine.advance(20.0)  # POST: 100 W / 0.8 for 10 s
    machine.sample(30.0, 0.0)  # idle: 50 W / 0.8 for 10 s
    machine.sample(40.0, 20.0)  # peak: 150 W / 0.8 for 10 s
    machine.force_off(40.0)
    assert machine.energy_joules == pytest.approx((4 + 100 + 50 + 150) * 10 / 0.8)


def test_a_shutdown_asks_and_a_deadline_stands_behind_it() -> None:
    machine = _running()
    assert machine.shut_down(20.0) == (Effect.TERMINATE,)
    assert machine.is_powered
    assert machine.advance(20.0 + SHUTDOWN_PATIENCE_S) == (Effect.KILL,)
    assert machine.state is State.OFF


def test_a_shutdown_that_is_obeyed_ends_early() -> None:
    machine = _running()
    machine.shut_down(20.0)
    assert machine.emptied(21.0) == (Effect.KILL,)
    assert machine.state is State.OFF
    assert machine.advance(21.0 + SHUTDOWN_PATIENCE_S) == ()


def test_a_restart_comes_back_by_itself() -> None:
    machine = _running()
    assert machine.force_restart(20.0) == (Effect.KILL,)
    assert machine.advance(20.0 + REBOOT_GAP_S) == (Effect.BUILD,)
    machine = _running()
    machine.shut_down(20.0, then_restart=True)
    assert machine.emptied(21.0) == (Effect.KILL,)
    assert machine.advance(21.0 + REBOOT_GAP_S) == (Effect.BUILD,)


def test_an_outlet_takes_the_machine_down_and_brings_it_back_as_it_was() -> None:
    machine = _running()
    assert machine.outlet(20.0, on=False) == (Effect.KILL,)
    assert (machine.state, machine.outlet_watts) == (State.DARK, 0.0)
    assert machine.power_on(21.0) == ()
    assert machine.outlet(22.0, on=True) == ()
    assert machine.advance(22.0 + REBOOT_GAP_S) == (Effect.BUILD,)
    off = Machine(HARDWARE, now_s=0.0)
    off.outlet(1.0, on=False)
    off.outlet(2.0, on=True)
    assert (off.state, off.deadline_s) == (State.OFF, None)


def test_a_shutdown_during_post_has_nobody_to_ask() -> None:
    machine = Machine(HARDWARE, now_s=0.0)
    machine.power_on(0.0)
    assert machine.shut_down(1.0) == (Effect.KILL,)
    assert machine.state is State.OFF


def test_eleven_points_are_met_exactly_and_joined_by_lines() -> None:
    points = (50.0, 70.0, 80.0, 90.0, 100.0, 110.0, 120.0, 130.0, 140.0, 145.0, 150.0)
    hardware = Hardware(
        cpu_count=1, memory_mib=1, idle_watts=50.0, peak_watts=150.0, curve_watts=points
    )
    for index, watts in enumerate(points):
        assert curve_watts(hardware, index / 10) == pytest.approx(watts)
    assert curve_watts(hardware, 0.05) == pytest.approx(60.0)
    assert curve_watts(hardware, 7.0) == 150.0


def test_the_first_load_jumps_by_epsilon() -> None:
    hardware = Hardware(
        cpu_count=1, memory_mib=1, idle_watts=50.0, peak_watts=150.0, epsilon_watts=20.0
    )
    assert curve_watts(hardware, 0.0) == 50.0
    assert curve_watts(hardware, 0.001) == pytest.approx(70.08)
    assert curve_watts(hardware, 1.0) == 150.0
