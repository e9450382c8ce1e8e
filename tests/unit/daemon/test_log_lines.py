"""A log line is one JSON object, whatever is in it."""

import json

import pytest

from nuage.daemon.process import log_line


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("Vallée", "Vallée"),
        ({"a": (1, 2.5, None)}, {"a": [1, 2.5, None]}),
        (object, repr(object)),
        (1 << 80, 1 << 80),
        ("name-\udcff", "name-\udcff"),
    ],
)
def test_every_value_is_written(value: object, written: object) -> None:
    line = log_line({"event": "said", "value": value})
    assert json.loads(line) == {"event": "said", "value": written}
    assert b"\n" not in line
