"""Epochs in two parts: the quorum's above, the home's own below.

A VM's epoch is ``quorum_epoch × EPOCH_STEP + local``. While a site is the home it raises the
local part alone (a restart on another of its nodes), even when cut off; a change of home takes
the next quorum epoch and so outranks whatever the old home did meanwhile.

What never changed its home is in no quorum: its home owns it under quorum epoch 1, as if it had
claimed it. So a site that is cut off can create, and creating asks no majority.
"""

from typing import Final

EPOCH_STEP: Final = 1 << 20
FIRST_EPOCH: Final = EPOCH_STEP


def next_local(epoch: int) -> int:
    """Return the epoch after a move inside the home site."""
    return epoch + 1


def next_owner(epoch: int) -> int:
    """Return the epoch after a change of home."""
    return (epoch // EPOCH_STEP + 1) * EPOCH_STEP


def quorum_part(epoch: int) -> int:
    """Return the quorum's epoch within `epoch`; 1 for what never changed its home."""
    return epoch // EPOCH_STEP
