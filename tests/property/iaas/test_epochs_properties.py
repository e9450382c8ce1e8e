"""Epochs only rise, and a change of home outranks whatever the old home did."""

from hypothesis import given
from hypothesis import strategies as st

from nuage.iaas.epochs import EPOCH_STEP, FIRST_EPOCH, next_local, next_owner, quorum_part


@given(st.integers(FIRST_EPOCH, 1 << 50))
def test_every_move_raises_the_epoch(epoch: int) -> None:
    assert next_local(epoch) == epoch + 1
    assert next_owner(epoch) > epoch
    assert quorum_part(next_owner(epoch)) == quorum_part(epoch) + 1


@given(st.integers(FIRST_EPOCH, 1 << 50), st.integers(0, EPOCH_STEP - 2))
def test_a_new_owner_outranks_any_number_of_local_moves(epoch: int, moves: int) -> None:
    start = quorum_part(epoch) * EPOCH_STEP
    assert quorum_part(start + moves) == quorum_part(start)
    assert next_owner(start + moves) > start + moves


def test_what_never_moved_is_of_quorum_epoch_one() -> None:
    assert quorum_part(FIRST_EPOCH) == 1
