"""`nuage volume show`: what copies keep aside of their logs."""

from nuage.cli.showing import Row
from nuage.cli.storage import kept_aside


def test_a_copy_that_keeps_part_of_its_log_aside_is_named_with_the_command_that_ends_it() -> None:
    conditions: list[Row] = [
        {"node_id": "io-1", "quarantine_bytes": 12288},
        {"node_id": "io-2", "quarantine_bytes": 0},
        {"node_id": "io-3"},  # of a controller of before
    ]
    lines = kept_aside(conditions, "data")
    assert lines[0] == "io-1 keeps 12 KiB of its log aside"
    assert lines[-1] == "  nuage volume scrub data"
    assert len(lines) == 4
    assert kept_aside(conditions[1:], "data") == []
