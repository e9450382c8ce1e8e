"""What `nuage iaas set` makes of a contract, and when the copies are there."""

import pytest

from nuage.cli.contracts import change_copies, is_short

NOTHING: dict[str, object] = {"copies": None, "copy_sites": None, "ack_policy": None}


@pytest.mark.parametrize(
    ("before", "options", "after"),
    [
        ((2, 2, "all"), {}, (2, 2, "all")),
        ((2, 2, "all"), {"copies": 3}, (3, 2, "any-2-of-3")),
        ((2, 2, "local"), {"copies": 3}, (3, 2, "local")),
        ((2, 2, "all"), {"copies": 3, "copy_sites": 3, "ack_policy": "metro"}, (3, 3, "metro")),
        ((3, 3, "any-2-of-3"), {"copies": 1}, (1, 1, "local")),
        ((3, 1, "any-2-of-3"), {"copy_sites": 2}, (3, 2, "any-2-of-3")),
    ],
)
def test_what_goes_with_so_many_copies_is_changed_along(
    before: tuple[int, int, str], options: dict[str, object], after: tuple[int, int, str]
) -> None:
    names = ("copies", "copy_sites", "ack_policy")
    contract: dict[str, object] = dict(zip(names, before, strict=True))
    change_copies(contract, NOTHING | options)
    assert tuple(contract[name] for name in names) == after


def test_a_copy_counts_once_it_has_everything() -> None:
    replicas = [{"node_id": name} for name in ("a", "b", "c")]
    volume: dict[str, object] = {
        "replicas": replicas[:2], "without": [], "catching_up": [], "leaving": [],
    }  # fmt: skip
    assert not is_short(volume, 2)
    assert is_short(volume, 3)
    coming = volume | {"replicas": replicas, "without": ["c"], "catching_up": ["c"]}
    assert is_short(coming, 3)
    assert is_short(coming | {"without": []}, 3)
    assert not is_short(coming | {"without": [], "catching_up": []}, 3)
    assert is_short(volume | {"replicas": replicas, "leaving": ["a"]}, 3)
