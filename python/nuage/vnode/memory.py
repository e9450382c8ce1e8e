"""What the agent remembers of each VM, and how a new wish changes it. Pure values.

The memory is the agent's only state of its own; it is kept on the node's disk, so that an agent
that was killed goes on where it was, without its controller.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from nuage.ids import VmId
from nuage.model.desired import VmWish, VnodeWish


class HandOver(Enum):
    """How far an outgoing migration has come, as the agent knows it.

    ::

        NONE ─► SENDING ─► READY ─► GRANTED ─► DONE     never runs here again without a new epoch
                   │         │          ├────► BROKEN   ended here: whether it has gone is unknown
                   └─────────┴──────────┴────► FAILED   runs here, as before

    READY: it stands still, for leave has not come in time. GRANTED: it goes by itself, as soon as
    all but its last state is sent; leave that comes while memory flows makes it so at once.
    """

    NONE = "none"
    SENDING = "sending"
    READY = "ready"
    GRANTED = "granted"
    DONE = "done"
    BROKEN = "broken"
    FAILED = "failed"


class Arrival(Enum):
    """How far an incoming migration has come."""

    NONE = "none"
    WAITING = "waiting"
    ARRIVED = "arrived"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMemory:
    """One VM. Moments are wall-clock seconds, because they outlive the process; 0.0 is never.

    `has_left`: the last wish has it no more because it is no VM of this node any more.
    """

    wish: VmWish = field(repr=False)
    in_wish: bool = True
    has_left: bool = False
    reboots_done: int = 0
    started_s: float = 0.0
    stop_deadline_s: float = 0.0
    running_seen: bool = False
    restart_count: int = 0
    switched_off: bool = False
    crash_count: int = 0
    restart_after_s: float = 0.0
    hold_until_s: float = 0.0
    fault_count: int = 0
    retry_s: float = 0.0
    hand_over: HandOver = HandOver.NONE
    hand_over_epoch: int = 0
    hand_over_address: str = ""
    hand_over_attempt: int = 0
    sending_s: float = 0.0  # since when its memory has been on its way
    taken_back: str = ""  # why it is to stay after all, once QEMU has not switched
    progress_bytes: int = 0
    progress_s: float = 0.0
    arrival: Arrival = Arrival.NONE
    balloon_mib: int = 0
    failure: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentMemory:
    """All VMs, and the revision of the last wish taken.

    `heard`: that wish came since this agent began. It is not kept on disk: a node that was off may
    have lost its VMs to others meanwhile, so what does not run is started on a fresh word only.
    `withheld` is what that wish could not tell of (`VnodeWish.withheld`).
    """

    revision: int = 0
    guests: dict[VmId, GuestMemory] = field(default_factory=dict)
    heard: bool = False
    withheld: tuple[VmId, ...] | None = None


def take_wish(memory: AgentMemory, wish: VnodeWish) -> AgentMemory:
    """Return the memory after `wish`; what it says of a VM under a lower epoch is refused."""
    wanted: Mapping[VmId, VmWish] = {vm.vm_id: vm for vm in wish.vms}
    guests = {
        vm_id: _take_vm(known, wanted[vm_id]) if vm_id in wanted else _orphaned(known, wish)
        for vm_id, known in memory.guests.items()
    }
    for vm_id, vm in wanted.items():
        if vm_id not in guests:
            guests[vm_id] = GuestMemory(wish=vm, reboots_done=vm.reboot_count)
    return AgentMemory(revision=wish.revision, guests=guests, heard=True, withheld=wish.withheld)


def is_no_vm_here(memory: AgentMemory, vm_id: VmId) -> bool:
    """Tell whether the last wish says that a guest which nobody remembers is no VM of this node."""
    is_told = memory.heard and memory.withheld is not None and vm_id not in memory.withheld
    return is_told and vm_id not in memory.guests


def _orphaned(known: GuestMemory, wish: VnodeWish) -> GuestMemory:
    has_left = wish.withheld is not None and known.wish.vm_id not in wish.withheld
    return replace(known, in_wish=False, has_left=has_left)


def _take_vm(known: GuestMemory, new: VmWish) -> GuestMemory:
    old = known.wish
    if new.epoch < old.epoch:
        told = f"a wish under epoch {new.epoch} was refused: epoch {old.epoch} is known here"
        return replace(known, in_wish=True, has_left=False, refused=told)
    taken = replace(known, wish=new, in_wish=True, has_left=False, refused="")
    if new.wish is not old.wish or new.reboot_count > old.reboot_count:
        taken = replace(taken, switched_off=False, crash_count=0, restart_after_s=0.0)
    if new.incoming is not None and new.incoming != old.incoming:
        taken = replace(taken, arrival=Arrival.NONE, failure="")
    if new != old:
        taken = replace(taken, hold_until_s=0.0, fault_count=0)  # what failed may work now
    return taken


def forget(memory: AgentMemory, vm_id: VmId) -> AgentMemory:
    """Return the memory without one VM."""
    guests = {known: guest for known, guest in memory.guests.items() if known != vm_id}
    return replace(memory, guests=guests)


def remember(memory: AgentMemory, guest: GuestMemory) -> AgentMemory:
    """Return the memory with one VM's part replaced."""
    return replace(memory, guests={**memory.guests, guest.wish.vm_id: guest})


def lasting(memory: AgentMemory) -> AgentMemory:
    """Return what must be on disk: without what the next look shows anyway.

    SENDING and READY recover alike, and a write to disk at READY would lengthen the guest's pause.
    """
    guests = {
        vm_id: replace(
            guest,
            progress_bytes=0,
            progress_s=0.0,
            hand_over=HandOver.SENDING if guest.hand_over is HandOver.READY else guest.hand_over,
        )
        for vm_id, guest in memory.guests.items()
    }
    return replace(memory, guests=guests, heard=False, withheld=None)
