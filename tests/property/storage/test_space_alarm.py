"""Alarms on space: raised in time, and not rung at every byte."""

from hypothesis import given
from hypothesis import strategies as st

from nuage.model.status import ALARM_SHARES, SpaceAlarm, space_alarm

TOTAL = 10_000
ALARMS = st.sampled_from(SpaceAlarm)
FREE = st.integers(min_value=0, max_value=TOTAL)


@given(ALARMS, FREE)
def test_the_alarm_is_never_later_than_its_threshold(before: SpaceAlarm, free: int) -> None:
    alarm = space_alarm(before, free, TOTAL)
    for level, (begins, ends) in ALARM_SHARES.items():
        if free / TOTAL < begins:
            assert alarm is not SpaceAlarm.NONE
        if alarm is level:
            assert free / TOTAL < ends


@given(ALARMS, st.lists(FREE, min_size=1))
def test_the_same_space_gives_the_same_alarm_again(before: SpaceAlarm, course: list[int]) -> None:
    alarm = before
    for free in course:
        alarm = space_alarm(alarm, free, TOTAL)
        assert space_alarm(alarm, free, TOTAL) is alarm


@given(st.integers(min_value=0, max_value=499), st.integers(min_value=0, max_value=499))
def test_between_its_thresholds_an_alarm_does_not_change(one: int, other: int) -> None:
    """2000 to 2499 of 10000 lie between those of `low`."""
    for alarm in (SpaceAlarm.LOW, SpaceAlarm.NONE):
        first = space_alarm(alarm, 2_000 + one, TOTAL)
        assert space_alarm(first, 2_000 + other, TOTAL) is first is alarm


def test_a_node_without_a_disk_rings_nothing() -> None:
    assert space_alarm(SpaceAlarm.LOW, 0, 0) is SpaceAlarm.NONE
