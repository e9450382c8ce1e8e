"""Keys of the fabric roll: at each time a key signs that the others accept."""

from itertools import pairwise

from nuage.iaas.fabric_keys import (
    DROP_AFTER_S,
    SETTLE_S,
    SIGN_AFTER_S,
    KeyRoll,
    fabric_key,
    key_id_of,
)
from nuage.trust.shared_secrets import SharedSecrets

SECRET = b"s" * 32


def settled() -> KeyRoll:
    roll = KeyRoll(SharedSecrets({0: SECRET}))
    assert roll.learn(0, 0.0)
    return roll


def test_a_new_key_is_accepted_before_it_signs_and_the_old_one_ends() -> None:
    roll = settled()
    assert roll.learn(1, 100.0)
    assert not roll.learn(1, 101.0)
    seen = []
    now_s: float | None = 100.0
    while now_s is not None:
        keys = roll.keys(now_s)
        seen.append((now_s, keys.key_id, sorted(keys.old)))
        assert keys.key == fabric_key(SECRET, keys.key_id - 1)
        now_s = roll.next_s(now_s)
    assert seen == [
        (100.0, 1, [2]),
        (100.0 + SIGN_AFTER_S, 2, [1]),
        (100.0 + DROP_AFTER_S, 2, []),
    ]


def test_a_site_that_learns_seconds_later_accepts_what_the_first_signs() -> None:
    """Not a moment at which one signs what the other refuses, or the other way round."""
    for late_s in (0.0, 0.2, SIGN_AFTER_S - 0.1):
        early, late = settled(), settled()
        early.learn(1, 100.0)
        late.learn(1, 100.0 + late_s)
        for tick in range(1, 1400):
            now_s = 100.0 + late_s + tick / 10
            for one, other in pairwise((early.keys(now_s), late.keys(now_s), early.keys(now_s))):
                assert one.key_id in {other.key_id, *other.old}, (late_s, now_s)


def test_a_controller_that_begins_signs_with_the_newest_at_once() -> None:
    roll = KeyRoll(SharedSecrets({0: SECRET}))
    roll.learn(3, 50.0)
    roll.learn(4, 50.0 + SETTLE_S / 2)  # a replica that was read a moment later
    keys = roll.keys(50.0 + SETTLE_S / 2)
    assert (keys.key_id, sorted(keys.old)) == (key_id_of(4), [key_id_of(2), key_id_of(3)])
    assert roll.keys(60.0 + DROP_AFTER_S).old == {}


def test_two_rolls_on_one_another_keep_what_still_signs_somewhere() -> None:
    roll = settled()
    roll.learn(1, 100.0)
    roll.learn(2, 102.0)
    assert (roll.keys(102.0).key_id, sorted(roll.keys(102.0).old)) == (1, [2, 3])
    assert roll.keys(102.0 + SIGN_AFTER_S).key_id == 3


def test_generations_have_keys_of_their_own_and_the_first_is_as_it_was() -> None:
    keys = {fabric_key(SECRET, generation) for generation in range(50)}
    assert len(keys) == 50
    assert fabric_key(SECRET) == fabric_key(SECRET, 0)
    assert all(
        0 < key_id_of(generation) < 1 << 16 for generation in (0, 1, 65_534, 65_535, 1 << 40)
    )
    assert fabric_key(SECRET) not in repr(settled().keys(1.0))
