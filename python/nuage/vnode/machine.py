"""The agent's decisions: memory and what is seen in, at most one act out. Synchronous and pure.

Theory of operation: for each VM, `plan` compares the last wish with what the hypervisor shows and
returns the next act and the moment to look again. The runner performs it, tells `after_act` how it
went, observes anew and asks again. Nothing is remembered of acts that are not in the memory, so a
crash between deciding and acting, or acting and remembering, only makes the agent look again.

Fault model: the agent, its controller or a guest's process may stop at any moment; the wish may be
old; the clock may jump. What must hold whatever happens:

- a guest that has switched, or may have, never runs here again without a higher epoch;
- a guest whose memory has not all arrived never runs here;
- a guest whose lease ends is stopped before the end;
- a guest that does not run is started only on a wish that came since the agent began: its node
  may have been switched off for good, and its VM started elsewhere;
- an orphan is reported and left alone while it runs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from nuage.model.desired import DiskWish, VmWish
from nuage.model.vm import PowerWish
from nuage.vnode.hypervisor import (
    Disk,
    FileDisk,
    GuestSeen,
    IscsiDisk,
    MigrationLimits,
    MigrationSeen,
    MigrationStatus,
    NbdDisk,
    RunState,
)
from nuage.vnode.memory import Arrival, GuestMemory, HandOver

STOP_GRACE_S: Final = 30.0  # ACPI's answer; a Debian guest needs 5 to 15 s to end its services
PRESS_AGAIN_S: Final = 5.0  # a guest that was still booting did not hear the first press
LEASE_MARGIN_S: Final = 2.0  # a SIGKILL takes ms; the rest is for clocks that disagree
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
# Tries to reach a disk, of which the last comes after 7 s: a head that moves is open by then, and
# one that lets this VM in only once its IO-node has heard of it has heard.
TRIES_UNTOLD: Final = 4
CRASH_FORGIVEN_AFTER_S: Final = 600.0  # a guest that ran this long starts counting anew
IO_RETRY_S: Final = 1.0  # a lost disk is tried again this often
IO_CALM_S: Final = 5.0  # a guest that ran this long after it was let go on has its disk again
DISK_LOST: Final = "a disk is lost or full; the guest waits"
UNREADABLE_TOLD_S: Final = 600.0  # after the last block of which the guest heard
DETACH_RETRY_S: Final = 10.0  # a guest that ignored the unplug request is asked again
# Of its memory, until a guest that is sent is taken for one that never all goes: twice what QEMU
# needs to slow it down to a hundredth, by a tenth after each second pass (`auto-converge`).
MEMORY_SENT_MAX: Final = 40
MIGRATION_STALL_S: Final = 10.0  # no byte for this long: the link is cut
SWITCH_WAIT_S: Final = 5.0  # the guest is paused meanwhile; the quorum answers within 1 s


@dataclass(frozen=True, slots=True)
class Start:
    """Start the guest from its disks."""


@dataclass(frozen=True, slots=True)
class StartIncoming:
    """Start the guest waiting for its memory, which comes under `secret`.

    From `source_address`, and from nowhere else; "" where that is not known.
    """

    secret: str = field(repr=False)
    source_address: str = ""


@dataclass(frozen=True, slots=True)
class PressPower:
    """Ask the guest to switch itself off."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End the guest's process."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove what is left of the guest."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop the guest's CPUs."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Let the guest go on."""


@dataclass(frozen=True, slots=True)
class Attach:
    """Plug a disk in."""

    slot: int
    disk: DiskWish


@dataclass(frozen=True, slots=True)
class Detach:
    """Unplug a disk."""

    slot: int


@dataclass(frozen=True, slots=True)
class Repoint:
    """Reach a disk by another portal."""

    slot: int
    disk: DiskWish


@dataclass(frozen=True, slots=True)
class Balloon:
    """Ask the guest to make do with less memory."""

    memory_mib: int


@dataclass(frozen=True, slots=True)
class Migrate:
    """Begin to send the guest away."""

    address: str
    limits: MigrationLimits
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class MigrateContinue:
    """Let the guest go as soon as all but its last state is sent: it is promised to its target."""


@dataclass(frozen=True, slots=True)
class MigrateCancel:
    """Give up sending."""


Act: TypeAlias = (
    Start | StartIncoming | PressPower | Kill | Forget | Pause | Resume | Attach | Detach | Repoint
    | Balloon | Migrate | MigrateContinue | MigrateCancel
)  # fmt: skip
DiskOf: TypeAlias = Callable[[DiskWish], Disk]

_ENDED: Final = frozenset({None, RunState.SHUT_DOWN, RunState.GONE})
_IN_FLIGHT: Final = frozenset({HandOver.SENDING, HandOver.READY, HandOver.GRANTED})
_NEVER: Final = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The next act on one VM (None: nothing to do), and when to look again at the latest."""

    memory: GuestMemory
    act: Act | None = None
    look_again_s: float = _NEVER


def iscsi_disk(wish: DiskWish) -> Disk:
    """Return how QEMU reaches a volume: the standard door, iSCSI."""
    return IscsiDisk(
        volume_id=wish.volume_id, portal=wish.portal, iqn=wish.iqn,
        chap_user=wish.chap_user, chap_secret=wish.chap_secret,
        chap_generation=wish.chap_generation, far_node=wish.far_node,
        sector_bytes=wish.sector_bytes,
    )  # fmt: skip


def backoff_s(count: int) -> float:
    """Return how long to wait after the `count`-th failure in a row."""
    return min(BACKOFF_FIRST_S * 2.0 ** (max(count, 1) - 1), BACKOFF_MAX_S)


def plan(
    memory: GuestMemory,
    seen: GuestSeen | None,
    now_s: float,
    disk_of: DiskOf = iscsi_disk,
    *,
    may_start: bool = True,
) -> Plan:
    """Return the next act on one VM. `seen` is None when the hypervisor has no such guest.

    `may_start`: the wish was heard since the agent began (`AgentMemory.heard`).
    """
    planned = _plan(memory, seen, now_s, disk_of)
    if isinstance(planned.act, Start) and not may_start:
        return Plan(memory=memory)
    return planned


def _plan(memory: GuestMemory, seen: GuestSeen | None, now_s: float, disk_of: DiskOf) -> Plan:
    state = None if seen is None else seen.state
    wish = memory.wish
    if now_s < memory.hold_until_s <= now_s + BACKOFF_MAX_S and not _lease_is_over(wish, now_s):
        return Plan(memory=memory, look_again_s=memory.hold_until_s)
    if not memory.in_wish:
        return _plan_orphan(memory, state)
    if wish.wish is PowerWish.DELETED:
        return _plan_deleted(memory, state)
    if _lease_is_over(wish, now_s) and not _has_leave(wish, state):
        if state is None and not memory.started_s and wish.incoming is None:
            return Plan(memory=memory)  # its site has not claimed it yet: it waits, nothing failed
        hand_over = memory.hand_over
        if hand_over in {HandOver.SENDING, HandOver.READY}:
            hand_over = HandOver.FAILED  # it was ended before any leave was given
        stopped = replace(
            memory, running_seen=False, failure="its lease ended", hand_over=hand_over
        )
        return Plan(memory=stopped, act=None if state in _ENDED else Kill())
    planned = _plan_moves(memory, seen, now_s, disk_of)
    if planned is None:
        planned = _plan_power(memory, seen, now_s, disk_of)
    if wish.lease_until_s:
        stop_s = wish.lease_until_s - LEASE_MARGIN_S
        planned = replace(planned, look_again_s=_earliest(planned.look_again_s, stop_s))
    return planned


def _earliest(first_s: float, second_s: float) -> float:
    return min(moment for moment in (first_s or second_s, second_s or first_s))


def _lease_is_over(wish: VmWish, now_s: float) -> bool:
    return wish.lease_until_s > 0 and now_s >= wish.lease_until_s - LEASE_MARGIN_S


def _has_leave(wish: VmWish, state: RunState | None) -> bool:
    """Tell whether a guest that stands still may go to whom the quorum gave it to.

    It runs nowhere until then, so it takes no lease of the source's.
    """
    outgoing = wish.outgoing
    return state is RunState.SWITCHING and outgoing is not None and outgoing.may_switch


def _plan_orphan(memory: GuestMemory, state: RunState | None) -> Plan:
    """A VM that is in no wish is left alone, unless it never was, or no longer is, a VM here."""
    if state is None:
        return Plan(memory=memory)
    if state is RunState.HANDED_OVER and memory.hand_over in _IN_FLIGHT:
        # All was sent, and the wish has gone on before that was seen here.
        memory = replace(memory, hand_over=HandOver.DONE)
    never_ran = memory.arrival in {Arrival.WAITING, Arrival.FAILED}
    is_cleared = never_ran or memory.hand_over is HandOver.DONE
    if state in _ENDED and (is_cleared or memory.has_left):
        return Plan(memory=memory, act=Forget())
    if is_cleared:
        may_end = state in {RunState.INCOMING, RunState.HANDED_OVER}
        return Plan(memory=memory, act=Kill() if may_end else None)
    if memory.hand_over in {HandOver.SENDING, HandOver.READY}:
        return Plan(memory=replace(memory, hand_over=HandOver.NONE), act=MigrateCancel())
    return Plan(memory=memory)  # with leave it is the target's, or a fresh wish will tell


def _plan_deleted(memory: GuestMemory, state: RunState | None) -> Plan:
    if state is None:
        return Plan(memory=memory)
    return Plan(memory=memory, act=Forget() if state in _ENDED else Kill())


# --- moving ------------------------------------------------------------------------------------


def _plan_moves(
    memory: GuestMemory, seen: GuestSeen | None, now_s: float, disk_of: DiskOf
) -> Plan | None:
    """Plan a migration; None when none is on its way and the power wish decides."""
    state = None if seen is None else seen.state
    if memory.wish.incoming is not None and memory.arrival is not Arrival.ARRIVED:
        return _plan_arrival(memory, seen)
    if state is RunState.INCOMING:
        # The wish no longer speaks of an arrival: what waits here never ran.
        return Plan(memory=replace(memory, arrival=Arrival.NONE), act=Kill())
    if state is RunState.HANDED_OVER and memory.hand_over is not HandOver.DONE:
        memory = replace(
            memory, hand_over=HandOver.DONE,
            hand_over_epoch=memory.hand_over_epoch or memory.wish.epoch,
        )  # fmt: skip
    if memory.hand_over in {HandOver.DONE, HandOver.BROKEN}:
        return _plan_handed_over(memory, state)
    if memory.hand_over in _IN_FLIGHT:
        return _plan_departure(memory, seen, now_s, disk_of)
    return _plan_leave(memory, seen, now_s, disk_of)


def _plan_arrival(memory: GuestMemory, seen: GuestSeen | None) -> Plan:
    state = None if seen is None else seen.state
    if memory.arrival is Arrival.NONE:
        if state in _ENDED:
            waiting = replace(
                memory, arrival=Arrival.WAITING, hand_over=HandOver.NONE, running_seen=False
            )  # what ran here before went away since
            incoming = memory.wish.incoming
            assert incoming is not None, "nothing arrives without"
            act = StartIncoming(incoming.secret, incoming.source_address)
            return Plan(memory=waiting, act=act)
        if state is RunState.HANDED_OVER or memory.hand_over in {HandOver.DONE, HandOver.BROKEN}:
            return Plan(memory=memory, act=Kill())  # the VM comes back: its old shell goes first
        if state is RunState.INCOMING:
            return Plan(memory=replace(memory, arrival=Arrival.WAITING))
        return Plan(memory=replace(memory, arrival=Arrival.ARRIVED))
    if memory.arrival is Arrival.WAITING and state in _ENDED:
        told = seen.failure if seen is not None else ""
        failed = replace(
            memory, arrival=Arrival.FAILED, failure=f"the VM did not arrive: {told}".rstrip(": ")
        )
        return Plan(memory=failed)
    if memory.arrival is Arrival.WAITING and state is not RunState.INCOMING:
        return Plan(memory=replace(memory, arrival=Arrival.ARRIVED, running_seen=True))
    return Plan(memory=memory)


def _plan_handed_over(memory: GuestMemory, state: RunState | None) -> Plan:
    """After leave was given only a higher epoch makes this copy the one again."""
    if memory.wish.outgoing is None and memory.wish.epoch > memory.hand_over_epoch:
        back = replace(
            memory, hand_over=HandOver.NONE, running_seen=False, failure="", arrival=Arrival.NONE
        )
        if state in _ENDED:
            return Plan(memory=back, look_again_s=memory.hold_until_s)
        stopped = memory.wish.wish is PowerWish.STOPPED
        return Plan(memory=back, act=Kill() if stopped else Resume())
    runs = memory.hand_over is HandOver.BROKEN and state is RunState.RUNNING
    return Plan(memory=memory, act=Pause() if runs else None)


def _plan_leave(
    memory: GuestMemory, seen: GuestSeen | None, now_s: float, disk_of: DiskOf
) -> Plan | None:
    outgoing = memory.wish.outgoing
    if outgoing is None:
        if memory.hand_over is HandOver.FAILED:
            memory = replace(memory, hand_over=HandOver.NONE, failure="")
            return Plan(memory=memory, look_again_s=now_s)
        return None
    tried = (memory.hand_over_address, memory.hand_over_attempt)
    if memory.hand_over is HandOver.FAILED and tried == (outgoing.address, outgoing.attempt):
        return None
    if seen is None or seen.state is not RunState.RUNNING:
        return None
    if _plan_repoint(memory, seen, disk_of) is not None:
        return None  # first: a guest whose disk does not answer cannot stand still and go
    sending = replace(
        memory, hand_over=HandOver.SENDING, hand_over_epoch=memory.wish.epoch,
        hand_over_address=outgoing.address, hand_over_attempt=outgoing.attempt,
        progress_bytes=0, progress_s=now_s, sending_s=now_s, taken_back="", failure="",
    )  # fmt: skip
    limits = MigrationLimits(
        downtime_ms_max=outgoing.downtime_ms_max,
        bandwidth_bytes_per_s_max=outgoing.bandwidth_bytes_per_s_max,
    )
    return Plan(memory=sending, act=Migrate(outgoing.address, limits, outgoing.secret))


def _plan_departure(
    memory: GuestMemory, seen: GuestSeen | None, now_s: float, disk_of: DiskOf
) -> Plan | None:
    if seen is None or seen.state in _ENDED:
        if memory.hand_over is HandOver.GRANTED:
            return Plan(memory=_broken(memory, "QEMU ended during the hand-over"))
        return Plan(memory=_failed(memory, "the guest ended while it was sent"), look_again_s=now_s)
    migration = seen.migration
    granted = memory.hand_over is HandOver.GRANTED
    match migration.status:
        case MigrationStatus.COMPLETED:
            return Plan(memory=replace(memory, hand_over=HandOver.DONE, failure=""))
        case MigrationStatus.FAILED | MigrationStatus.CANCELLED:
            # The target has not all of it: QEMU fails when a byte was not sent, and is told to
            # cancel only while it is not switching.
            told = migration.failure or f"the migration was {migration.status.value}"
            return Plan(memory=_failed(memory, memory.taken_back or told), look_again_s=now_s)
        case MigrationStatus.DEVICE:
            return _watch_progress(replace(memory, hand_over=HandOver.GRANTED), migration, now_s)
        case _:
            pass
    if memory.taken_back:
        if now_s < memory.retry_s <= now_s + IO_RETRY_S:
            return Plan(memory=memory, look_again_s=memory.retry_s)
        return _take_back(memory, memory.taken_back, now_s)
    outgoing = memory.wish.outgoing
    if outgoing is None or outgoing.address != memory.hand_over_address:
        return _take_back(memory, "the migration was withdrawn", now_s)
    if migration.status is not MigrationStatus.SWITCHING:
        mended = _plan_disks_of_sent(memory, seen, now_s, disk_of)
        if mended is not None:
            return mended
    if (outgoing.may_switch and not granted) or (granted and not migration.has_leave):
        leave = replace(memory, hand_over=HandOver.GRANTED, progress_s=now_s)
        return Plan(memory=leave, act=MigrateContinue(), look_again_s=now_s + IO_RETRY_S)
    if migration.status is MigrationStatus.SWITCHING:
        return _plan_ready(memory, now_s)
    too_long = _why_it_never_goes(memory, seen, now_s)
    if too_long:
        return _take_back(memory, too_long, now_s)
    return _watch_progress(memory, migration, now_s)


def _plan_disks_of_sent(
    memory: GuestMemory, seen: GuestSeen, now_s: float, disk_of: DiskOf
) -> Plan | None:
    """Lead a guest that is being sent to a disk whose head has moved; None: it reaches them all.

    QEMU waits for what is in flight before it lets the guest go: it would stand still for ever. One
    that stopped for a lost disk goes on, unless it has had leave: it may be about to switch.
    """
    repointed = _plan_repoint(memory, seen, disk_of)
    if repointed is not None:
        return replace(repointed, look_again_s=now_s + IO_RETRY_S)
    if seen.state is RunState.IO_ERROR and memory.hand_over is HandOver.SENDING:
        return _plan_retry(memory, now_s)
    return None


def _take_back(memory: GuestMemory, told: str, now_s: float) -> Plan:
    """Take a guest back; one that has had leave may have begun to switch: the next look tells."""
    if memory.hand_over is HandOver.GRANTED:
        tried = replace(memory, taken_back=told, retry_s=now_s + IO_RETRY_S)
        return Plan(memory=tried, act=MigrateCancel(), look_again_s=tried.retry_s)
    return Plan(memory=_failed(memory, told), act=MigrateCancel())


def _why_it_never_goes(memory: GuestMemory, seen: GuestSeen, now_s: float) -> str:
    """Return why the memory of a guest that is being sent is not waited for any longer, or ""."""
    within_s = 0.0 if memory.wish.outgoing is None else memory.wish.outgoing.within_s
    if within_s and now_s - memory.sending_s >= within_s:
        return f"its memory has not all gone within {within_s:g} s"
    memory_bytes = seen.shape.memory_mib << 20
    if seen.migration.transferred_bytes > MEMORY_SENT_MAX * memory_bytes:
        return (
            f"{MEMORY_SENT_MAX} times its memory was sent, and it writes more than goes"
            " meanwhile; stop it first, or move it when it has less to do"
        )
    return ""


def _plan_ready(memory: GuestMemory, now_s: float) -> Plan:
    if memory.hand_over is HandOver.GRANTED:
        return Plan(memory=memory, look_again_s=now_s + IO_RETRY_S)  # it is switching
    if memory.hand_over is HandOver.SENDING:
        memory = replace(memory, hand_over=HandOver.READY, progress_s=now_s)
    if now_s >= memory.progress_s + SWITCH_WAIT_S:
        told = f"no leave to switch came within {SWITCH_WAIT_S:g} s"
        return _take_back(memory, told, now_s)
    return Plan(memory=memory, look_again_s=memory.progress_s + SWITCH_WAIT_S)


def _watch_progress(memory: GuestMemory, migration: MigrationSeen, now_s: float) -> Plan:
    if migration.transferred_bytes != memory.progress_bytes:
        memory = replace(memory, progress_bytes=migration.transferred_bytes, progress_s=now_s)
    if now_s < memory.progress_s + MIGRATION_STALL_S:
        return Plan(memory=memory, look_again_s=now_s + IO_RETRY_S)
    told = f"no byte was sent for {MIGRATION_STALL_S:g} s: the link is cut"
    if migration.status is MigrationStatus.DEVICE:
        # Whether the last bytes arrived, nobody here can know; cancelled, QEMU would run on.
        return Plan(memory=_broken(memory, told), act=Kill())
    return _take_back(memory, told, now_s)


def _failed(memory: GuestMemory, told: str) -> GuestMemory:
    return replace(memory, hand_over=HandOver.FAILED, failure=told)


def _broken(memory: GuestMemory, told: str) -> GuestMemory:
    told = f"the hand-over broke at the switch: {told}"
    return replace(memory, hand_over=HandOver.BROKEN, failure=told)


# --- power and disks ---------------------------------------------------------------------------


def _plan_power(memory: GuestMemory, seen: GuestSeen | None, now_s: float, disk_of: DiskOf) -> Plan:
    state = None if seen is None else seen.state
    wish = memory.wish
    if wish.wish is PowerWish.STOPPED:
        if state in _ENDED:
            done = replace(memory, stop_deadline_s=0.0, running_seen=False, failure="",
                           reboots_done=wish.reboot_count)  # fmt: skip
            return Plan(memory=done)
        return _plan_stop(memory, state, now_s)
    if wish.reboot_count > memory.reboots_done:
        if state in _ENDED:
            return _plan_start(replace(memory, reboots_done=wish.reboot_count), now_s)
        return _plan_stop(memory, state, now_s)
    if seen is None:
        return _plan_start_anew(memory, now_s)
    match seen.state:
        case RunState.SHUT_DOWN:
            asked = memory.stop_deadline_s > 0 or not memory.running_seen
            if memory.switched_off or not asked:
                return Plan(memory=replace(memory, switched_off=True, failure=""))
            return _plan_start(memory, now_s)
        case RunState.GONE:
            return _plan_restart(memory, seen.failure, now_s)
        case RunState.IO_ERROR:
            lost = replace(memory, failure=_lost_disk(seen))
            # Its head may have moved since: the guest would find it lost for ever.
            return _plan_repoint(lost, seen, disk_of) or _plan_retry(lost, now_s)
        case RunState.PAUSED:
            return _plan_retry(memory, now_s)
        case RunState.SWITCHING:
            return Plan(memory=memory, act=MigrateCancel(), look_again_s=now_s + IO_RETRY_S)
        case _:
            return _plan_running(memory, seen, now_s, disk_of)


def _lost_disk(seen: GuestSeen) -> str:
    volume = seen.stopped_at
    return f"{DISK_LOST}: {volume} (nuage volume show {volume})" if volume else DISK_LOST


def _unreadable(seen: GuestSeen, now_s: float) -> str:
    """Return of which volumes the guest has just been told that blocks cannot be read, or ""."""
    told = [
        f"{volume} (nuage volume show {volume})"
        for volume, at_s in seen.unreadable
        if now_s - UNREADABLE_TOLD_S < at_s
    ]
    return f"the guest was told of unreadable blocks of {', '.join(told)}" if told else ""


def _plan_start(memory: GuestMemory, now_s: float) -> Plan:
    started = replace(
        memory, started_s=now_s, stop_deadline_s=0.0, restart_after_s=0.0, running_seen=False,
        switched_off=False, balloon_mib=0, failure="", arrival=Arrival.NONE,
    )  # fmt: skip
    return Plan(memory=started, act=Start())


def _plan_start_anew(memory: GuestMemory, now_s: float) -> Plan:
    """Start a guest that is not there; count it if it ran, for nobody asked it to end."""
    if memory.running_seen:
        memory = replace(memory, restart_count=memory.restart_count + 1)
    return _plan_start(memory, now_s)


def _plan_restart(memory: GuestMemory, told: str, now_s: float) -> Plan:
    """Start a crashed guest again, later each time it crashes."""
    if memory.restart_after_s == 0.0:
        ran_long = memory.running_seen and now_s - memory.started_s >= CRASH_FORGIVEN_AFTER_S
        count = 1 if ran_long else memory.crash_count + 1
        memory = replace(
            memory, crash_count=count, restart_after_s=now_s + backoff_s(count),
            failure=f"the guest's process ended: {told}".rstrip(": "),
        )  # fmt: skip
    if now_s < memory.restart_after_s <= now_s + BACKOFF_MAX_S:
        return Plan(memory=memory, look_again_s=memory.restart_after_s)
    return _plan_start_anew(memory, now_s)


def _plan_stop(memory: GuestMemory, state: RunState | None, now_s: float) -> Plan:
    """Ask once, wait for the grace, then force; a guest that cannot listen is not asked."""
    if state is not RunState.RUNNING:
        return Plan(memory=replace(memory, stop_deadline_s=now_s), act=Kill())
    if memory.stop_deadline_s == 0.0:
        memory = replace(memory, stop_deadline_s=now_s + STOP_GRACE_S, retry_s=now_s)
    if not now_s < memory.stop_deadline_s <= now_s + STOP_GRACE_S:
        return Plan(memory=memory, act=Kill())
    if now_s < memory.retry_s <= now_s + PRESS_AGAIN_S:
        look_s = min(memory.retry_s, memory.stop_deadline_s)
        return Plan(memory=memory, look_again_s=look_s)
    again_s = now_s + PRESS_AGAIN_S
    return Plan(memory=replace(memory, retry_s=again_s), act=PressPower(), look_again_s=again_s)


def _plan_retry(memory: GuestMemory, now_s: float) -> Plan:
    if now_s < memory.retry_s <= now_s + IO_RETRY_S:
        return Plan(memory=memory, look_again_s=memory.retry_s)
    next_s = now_s + IO_RETRY_S
    return Plan(memory=replace(memory, retry_s=next_s), act=Resume(), look_again_s=next_s)


def _plan_running(memory: GuestMemory, seen: GuestSeen, now_s: float, disk_of: DiskOf) -> Plan:
    # Each try lets the guest run for a moment: that alone is no news.
    calm_s = memory.retry_s - IO_RETRY_S + IO_CALM_S
    waits = memory.failure.startswith(DISK_LOST) and now_s < calm_s <= now_s + IO_CALM_S
    keeps = waits or memory.hand_over is HandOver.FAILED
    failure = memory.failure if keeps else _unreadable(seen, now_s)
    # A stop that was taken back: the guest may still act on the button; then it starts anew.
    deadline_s = memory.stop_deadline_s if now_s < memory.stop_deadline_s else 0.0
    known = (memory.running_seen, memory.switched_off, memory.restart_after_s, memory.failure)
    if known != (True, False, 0.0, failure) or memory.stop_deadline_s != deadline_s:
        memory = replace(
            memory, running_seen=True, switched_off=False, restart_after_s=0.0, failure=failure,
            stop_deadline_s=deadline_s,
        )  # fmt: skip
    wanted = {disk.volume_id for disk in memory.wish.disks}
    for slot, volume_id in enumerate(seen.volumes):
        if volume_id and volume_id not in wanted:
            if now_s < memory.retry_s <= now_s + DETACH_RETRY_S:
                return Plan(memory=memory, look_again_s=memory.retry_s)
            asked = replace(memory, retry_s=now_s + DETACH_RETRY_S)
            return Plan(memory=asked, act=Detach(slot), look_again_s=asked.retry_s)
    repointed = _plan_repoint(memory, seen, disk_of)
    if repointed is not None:
        return repointed
    for disk in memory.wish.disks:
        if disk.volume_id not in seen.volumes:
            free = [slot for slot, volume in enumerate(seen.volumes) if not volume]
            return Plan(memory=memory, act=Attach(free[0] if free else len(seen.volumes), disk))
    planned = _plan_balloon(memory, seen)
    return replace(planned, look_again_s=calm_s) if waits else planned


def _plan_repoint(memory: GuestMemory, seen: GuestSeen, disk_of: DiskOf) -> Plan | None:
    """Reach the first disk whose head has moved where it is now; None when none has."""
    wanted = {disk.volume_id: disk for disk in memory.wish.disks}
    for slot, there in enumerate(seen.disks):
        disk = None if there is None else wanted.get(there.volume_id)
        if disk is not None and there is not None and not _same_way(there, disk_of(disk)):
            return Plan(memory=memory, act=Repoint(slot, disk))
    return None


def moved_again(memory: GuestMemory, under_way: Repoint | None) -> Repoint | None:
    """Return where a repointing under way leads by now; None where it leads there already."""
    if under_way is None:
        return None
    for disk in memory.wish.disks:
        if disk.volume_id == under_way.disk.volume_id and disk.portal != under_way.disk.portal:
            return Repoint(under_way.slot, disk)
    return None


def _plan_balloon(memory: GuestMemory, seen: GuestSeen) -> Plan:
    """A smaller shape takes effect at once through the balloon, a larger one at the next start."""
    target_mib = min(memory.wish.shape.memory_mib, seen.shape.memory_mib)
    if target_mib != (memory.balloon_mib or seen.shape.memory_mib):
        return Plan(memory=replace(memory, balloon_mib=target_mib), act=Balloon(target_mib))
    return Plan(memory=memory)


def _same_way(there: Disk, wanted: Disk) -> bool:
    """Tell whether two disks reach the volume by the same way, with secrets of one generation."""
    match there, wanted:
        case IscsiDisk(), IscsiDisk():
            return (there.portal, there.iqn, there.chap_generation, there.far_node) == (
                wanted.portal, wanted.iqn, wanted.chap_generation, wanted.far_node,
            )  # fmt: skip
        case NbdDisk(), NbdDisk():
            return there == wanted
        case FileDisk(), FileDisk():
            return there == wanted
        case _:
            return False


def has_ended(state: RunState) -> bool:
    """Tell whether nothing of a guest runs any more."""
    return state in _ENDED


def after_act(memory: GuestMemory, act: Act, fault: str, now_s: float) -> GuestMemory:
    """Return the memory after an act that failed with `fault` ("": it went well)."""
    if not fault:
        return replace(memory, fault_count=0, hold_until_s=0.0)
    match act:
        case StartIncoming() if memory.fault_count + 1 < TRIES_UNTOLD:
            count, fresh = memory.fault_count + 1, replace(memory, arrival=Arrival.NONE)
            return replace(fresh, fault_count=count, hold_until_s=now_s + backoff_s(count))
        case StartIncoming():
            return replace(memory, arrival=Arrival.FAILED, failure=fault)
        case Migrate():
            return _failed(memory, fault)
        case Repoint() | Resume() if memory.hand_over in _IN_FLIGHT:
            return replace(memory, hold_until_s=now_s + IO_RETRY_S)  # no reason to end the move
        case Repoint() | Attach() if memory.fault_count + 1 < TRIES_UNTOLD:
            count = memory.fault_count + 1
            return replace(memory, fault_count=count, hold_until_s=now_s + backoff_s(count))
        case Repoint():
            count, told = (
                memory.fault_count + 1,
                f"it does not reach a disk at its new place: {fault}",
            )
            return replace(
                memory, fault_count=count, hold_until_s=now_s + backoff_s(count), failure=told
            )
        case _:
            count = memory.fault_count + 1
            return replace(
                memory, fault_count=count, hold_until_s=now_s + backoff_s(count), failure=fault
            )
