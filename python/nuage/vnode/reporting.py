"""What the agent tells of each VM: the memory and the hypervisor's view as one report. Pure."""

from dataclasses import replace
from typing import Final

from nuage.ids import VmId
from nuage.model.desired import VmReport
from nuage.model.vm import PowerWish, VmState
from nuage.vnode.hypervisor import GuestSeen, MigrationStatus, RunState
from nuage.vnode.memory import Arrival, GuestMemory, HandOver

_MOVING: Final = frozenset(
    {HandOver.SENDING, HandOver.READY, HandOver.GRANTED, HandOver.DONE, HandOver.BROKEN}
)
_SEEN_STATES: Final = {
    RunState.RUNNING: VmState.RUNNING,
    RunState.PAUSED: VmState.RUNNING,
    RunState.IO_ERROR: VmState.RUNNING,
    RunState.INCOMING: VmState.STARTING,
    RunState.SWITCHING: VmState.MIGRATING,
    RunState.HANDED_OVER: VmState.STOPPED,
    RunState.SHUT_DOWN: VmState.STOPPED,
    RunState.GONE: VmState.FAILED,
}


def vm_state(memory: GuestMemory, seen: GuestSeen | None) -> VmState:
    """Return what the controller is told that the VM does."""
    ended = seen is None or seen.state in {RunState.SHUT_DOWN, RunState.GONE}
    if memory.wish.wish is PowerWish.DELETED:
        return VmState.DELETED if seen is None else VmState.STOPPING
    if memory.hand_over in _MOVING:
        return VmState.MIGRATING
    if memory.arrival is Arrival.FAILED:
        return VmState.FAILED
    if memory.arrival is Arrival.WAITING:
        return VmState.STARTING
    if memory.wish.wish is PowerWish.STOPPED:
        return VmState.STOPPED if ended else VmState.STOPPING
    if seen is None:
        return VmState.FAILED if memory.failure else VmState.STARTING
    if ended and not memory.failure and not memory.switched_off:
        return VmState.STARTING
    return _SEEN_STATES[seen.state]


def vm_report(memory: GuestMemory, seen: GuestSeen | None) -> VmReport:
    """Return the report on a VM that the agent knows."""
    # A guest that was ended while it waited for leave will not switch any more.
    ready = memory.hand_over is HandOver.READY and (
        seen is not None
        and seen.state not in {RunState.SHUT_DOWN, RunState.GONE}
        and seen.migration.status is MigrationStatus.SWITCHING
    )
    waiting = memory.arrival is Arrival.WAITING and seen is not None
    report = VmReport(
        vm_id=memory.wish.vm_id,
        state=vm_state(memory, seen),
        epoch=memory.wish.epoch,
        orphan=not memory.in_wish,
        failure=memory.refused or memory.failure,
        ready_to_switch=ready,
        migrated=memory.hand_over is HandOver.DONE,
        is_lost=memory.hand_over is HandOver.BROKEN
        and (seen is None or seen.state is not RunState.RUNNING),
        migration_address=seen.incoming_address if waiting and seen is not None else "",
        reboot_count=memory.reboots_done,
        restart_count=memory.restart_count,
    )
    return report if seen is None else _with_figures(report, seen)


def orphan_report(seen: GuestSeen) -> VmReport:
    """Return the report on a guest that no wish ever spoke of; nobody touches it."""
    report = VmReport(
        vm_id=VmId(seen.vm_id), state=_SEEN_STATES[seen.state], epoch=0, orphan=True,
        failure=seen.failure,
    )  # fmt: skip
    return _with_figures(report, seen)


def _with_figures(report: VmReport, seen: GuestSeen) -> VmReport:
    return replace(
        report,
        console_bytes=seen.console_bytes,
        migration_progress=seen.migration.progress,
        downtime_ms=seen.migration.downtime_ms,
        cpu_seconds=seen.cpu_seconds,
        disk_slots=seen.volumes,
    )


def is_news(before: VmReport | None, after: VmReport) -> bool:
    """Tell whether `after` says more than figures that change all the time."""
    if before is None:
        return True

    def essence(report: VmReport) -> tuple[object, ...]:
        return (
            report.state, report.epoch, report.orphan, report.failure, report.ready_to_switch,
            report.migrated, report.is_lost, report.migration_address, report.reboot_count,
            report.restart_count, report.downtime_ms, report.disk_slots,
        )  # fmt: skip

    return essence(before) != essence(after)
