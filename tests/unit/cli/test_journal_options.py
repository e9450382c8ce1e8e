"""How much history a contract keeps, as options say it, on top of what is known."""

import pytest

from nuage.cli.rates import journal_rule
from nuage.errors import InvalidRequest

NONE: dict[str, object] = {"journal_hours": None, "journal_size": None, "journal_strict": None}


def test_what_is_not_given_stays_or_is_left_to_the_default() -> None:
    known: dict[str, object] = {"window_s": 7200, "window_bytes": 1 << 30, "strict": True}
    assert journal_rule(NONE, {}) == {}
    assert journal_rule(NONE, known) == known
    given: dict[str, object] = {"journal_hours": 0.5, "journal_size": "2M", "journal_strict": False}
    assert journal_rule(given, known) == {
        "window_s": 1800,
        "window_bytes": 2 << 20,
        "strict": False,
    }


def test_what_is_no_size_is_refused_in_words() -> None:
    with pytest.raises(InvalidRequest):
        journal_rule({**NONE, "journal_size": "much"}, {})
