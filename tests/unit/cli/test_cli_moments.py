"""Moments of a volume's past as people write them."""

from datetime import datetime, timedelta

import pytest

from nuage.cli.moments import read_moment
from nuage.errors import InvalidRequest

DAY_S = 86_400


def time_of(text: str) -> float:
    (found,) = read_moment(text).values()
    assert isinstance(found, float)
    return found


def test_a_write_and_a_mark_are_told_by_their_signs() -> None:
    assert read_moment("#1234") == {"sequence": 1234}
    assert read_moment(" @before the upgrade ") == {"mark": "before the upgrade"}


def test_times_are_local_and_a_time_of_day_is_the_last_that_has_been() -> None:
    now = datetime.now().astimezone()
    assert time_of("2026-03-01T18:00") == datetime(2026, 3, 1, 18).astimezone().timestamp()
    assert time_of("2026-03-01 18:00:30") == time_of("2026-03-01T18:00:30")
    for hours in (1, -1):  # an hour ago, and an hour from now
        then = now + timedelta(hours=hours)
        assert 0 <= now.timestamp() - time_of(f"{then:%H:%M:%S}") <= DAY_S + 7200
    assert time_of("1700000000.5") == 1_700_000_000.5


def test_a_while_ago_is_any_duration() -> None:
    newest, oldest = time_of("90s ago"), time_of("2h ago")
    assert abs(newest - oldest - (7200 - 90)) < 60


@pytest.mark.parametrize("text", ["", "@", "#x", "yesterday", "25:00", "2026-13-01", "3 moons ago"])
def test_anything_else_is_refused_with_what_may_be_written(text: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_moment(text)
    assert "@MARK" in str(refusal.value.hint)
