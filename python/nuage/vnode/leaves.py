"""Leave to switch, on disk by one write: the guest stands still until it is.

The agent's memory is a file that is written anew and renamed, which costs the disk several commits.
A hand-over cannot wait for that. So leave is first noted on a slip, one block that is there already
and is written over in place::

    CRC-32 of the rest, big-endian: 4 | JSON, padded with spaces to SLIP_BYTES

The memory follows when leave has been passed on. Read at the start, a slip counts for what the
memory still says was being sent, to the same address, in the same attempt, under the same epoch.
One whose checksum does not hold was never finished, so its leave was not passed on.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from nuage.errors import UNREADABLE
from nuage.ids import VmId
from nuage.vnode.memory import AgentMemory, GuestMemory, HandOver

SLIP_BYTES: Final = 4096  # a page of the disk's cache; some twenty guests that switch at once
CRC_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Leave:
    """That a VM may go, in one attempt to send it."""

    vm_id: VmId
    epoch: int
    address: str
    attempt: int


def leave_of(guest: GuestMemory) -> Leave:
    """Return the leave that a guest was given."""
    return Leave(
        guest.wish.vm_id, guest.hand_over_epoch, guest.hand_over_address, guest.hand_over_attempt
    )


def encode_slip(leaves: Iterable[Leave]) -> bytes | None:
    """Return a slip, or None when it does not hold so many."""
    payload = msgspec.json.encode(tuple(leaves)).ljust(SLIP_BYTES - CRC_BYTES)
    if len(payload) > SLIP_BYTES - CRC_BYTES:
        return None
    return crc32(payload).to_bytes(CRC_BYTES, "big") + payload


def decode_slip(data: bytes) -> tuple[Leave, ...]:
    """Return the leaves of a slip; none when it was never written or not finished."""
    payload = data[CRC_BYTES:]
    if len(data) != SLIP_BYTES or crc32(payload) != int.from_bytes(data[:CRC_BYTES], "big"):
        return ()
    try:
        return msgspec.json.decode(payload, type=tuple[Leave, ...])
    except UNREADABLE:
        return ()  # of another release, that had no hand-over under way when it ended


def with_leaves(memory: AgentMemory, leaves: Iterable[Leave]) -> AgentMemory:
    """Return the memory with the leaves that it does not have yet."""
    guests = dict(memory.guests)
    for leave in leaves:
        guest = guests.get(leave.vm_id)
        if guest is not None and guest.hand_over is HandOver.SENDING and leave_of(guest) == leave:
            guests[leave.vm_id] = replace(guest, hand_over=HandOver.GRANTED)
    return replace(memory, guests=guests)


class LeaveSlip:
    """The slip of one agent."""

    def __init__(self, path: Path) -> None:
        """Open the slip, or make it."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DSYNC | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size != SLIP_BYTES:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, bytes(SLIP_BYTES), 0)  # its block is there before it is needed

    def read(self) -> tuple[Leave, ...]:
        """Return what was noted last."""
        return decode_slip(os.pread(self._fd, SLIP_BYTES, 0))

    def note(self, guests: Iterable[GuestMemory]) -> bool:
        """Note that these may go; durable when this returns True, not done when False."""
        slip = encode_slip(leave_of(guest) for guest in guests)
        return slip is not None and os.pwrite(self._fd, slip, 0) == SLIP_BYTES

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)
