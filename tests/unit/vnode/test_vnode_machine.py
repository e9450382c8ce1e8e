"""What the agent decides, one situation at a time."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from nuage.ids import IaasId, NodeId, VmId, VolumeId
from nuage.model.desired import (
    DiskWish,
    IncomingMigration,
    OutgoingMigration,
    VmWish,
    VnodeWish,
)
from nuage.model.vm import PowerWish, VmShape, VmState
from nuage.vnode import machine
from nuage.vnode.hypervisor import (
    GuestSeen,
    MigrationLimits,
    MigrationSeen,
    MigrationStatus,
    RunState,
)
from nuage.vnode.machine import Act, after_act, iscsi_disk, plan
from nuage.vnode.memory import (
    AgentMemory,
    Arrival,
    GuestMemory,
    HandOver,
    take_wish,
)
from nuage.vnode.reporting import vm_report

NOW_S = 1_000_000.0
OUTGOING = OutgoingMigration(
    target_node_id=NodeId("node-b"), address="10.0.0.2:49152", secret="5e" * 32
)
INCOMING = IncomingMigration(
    source_node_id=NodeId("node-a"), source_address="10.0.0.1", source_epoch=1, secret="5e" * 32
)


def disk(index: int, portal: str = "10.0.0.9:3260") -> DiskWish:
    return DiskWish(
        volume_id=VolumeId(f"volume-{index}"), portal=portal, iqn=f"iqn.x:{index}",
        chap_user="u", chap_secret="s", epoch=1, size_bytes=1 << 20,
    )  # fmt: skip


def wish(power: PowerWish = PowerWish.RUNNING, *, epoch: int = 1) -> VmWish:
    return VmWish(
        vm_id=VmId("vm-1"), iaas_id=IaasId("iaas-1"), name="web-1", shape=VmShape(), wish=power,
        epoch=epoch, disks=(disk(1),), ports=(),
    )  # fmt: skip


def seen(state: RunState = RunState.RUNNING, volumes: Iterable[int] = (1,)) -> GuestSeen:
    disks = tuple(iscsi_disk(disk(index)) for index in volumes)
    return GuestSeen(
        vm_id=VmId("vm-1"), state=state, shape=VmShape(), disks=disks,
        volumes=tuple(d.volume_id for d in disks),
    )  # fmt: skip


def moving(status: MigrationStatus, state: RunState = RunState.RUNNING) -> GuestSeen:
    return replace(seen(state), migration=MigrationSeen(status=status, transferred_bytes=1))


def remembered(asked: VmWish | None = None) -> GuestMemory:
    return GuestMemory(wish=asked or wish(), running_seen=True)


def act_on(memory: GuestMemory, guest: GuestSeen | None, now_s: float = NOW_S) -> Act | None:
    return plan(memory, guest, now_s).act


def test_a_vm_that_is_not_there_is_started() -> None:
    assert act_on(remembered(), None) == machine.Start()


def test_a_vm_that_runs_as_wished_is_left_alone() -> None:
    planned = plan(remembered(), seen(), NOW_S)
    assert planned.act is None
    assert vm_report(planned.memory, seen()).state is VmState.RUNNING


def test_a_stop_asks_then_forces() -> None:
    first = plan(remembered(wish(PowerWish.STOPPED)), seen(), NOW_S)
    assert first.act == machine.PressPower()
    again_s = NOW_S + machine.PRESS_AGAIN_S
    assert act_on(first.memory, seen(), again_s) == machine.PressPower()
    late_s = NOW_S + machine.STOP_GRACE_S
    assert act_on(first.memory, seen(), late_s) == machine.Kill()
    done = plan(first.memory, seen(RunState.SHUT_DOWN), late_s)
    assert done.act is None
    assert vm_report(done.memory, seen(RunState.SHUT_DOWN)).state is VmState.STOPPED


def test_a_paused_guest_that_shall_stop_is_not_asked() -> None:
    assert act_on(remembered(wish(PowerWish.STOPPED)), seen(RunState.PAUSED)) == machine.Kill()


def test_a_deleted_vm_is_ended_then_forgotten() -> None:
    memory = remembered(wish(PowerWish.DELETED))
    assert act_on(memory, seen()) == machine.Kill()
    assert act_on(memory, seen(RunState.SHUT_DOWN)) == machine.Forget()
    assert vm_report(memory, None).state is VmState.DELETED


def test_a_guest_that_ended_unasked_is_counted_as_started_anew() -> None:
    """Its node lost its power, say: nothing of it is there, and it ran."""
    anew = plan(remembered(), None, NOW_S)
    assert anew.act == machine.Start()
    assert vm_report(anew.memory, None).restart_count == 1
    running = plan(anew.memory, seen(RunState.RUNNING), NOW_S + 1).memory
    assert vm_report(plan(running, None, NOW_S + 2).memory, None).restart_count == 2
    asked = replace(running, wish=replace(wish(), reboot_count=1))
    assert vm_report(plan(asked, None, NOW_S + 2).memory, None).restart_count == 1
    first = GuestMemory(wish=wish())
    assert vm_report(plan(first, None, NOW_S).memory, None).restart_count == 0


def test_a_crashed_guest_comes_back_later_each_time() -> None:
    memory = remembered()
    waits = []
    for _ in range(8):
        crashed = plan(memory, seen(RunState.GONE), NOW_S)
        assert crashed.act is None
        waits.append(crashed.look_again_s - NOW_S)
        restarted = plan(crashed.memory, seen(RunState.GONE), crashed.look_again_s)
        assert restarted.act == machine.Start()
        memory = restarted.memory
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_guest_that_switched_itself_off_stays_off_until_asked() -> None:
    off = plan(remembered(), seen(RunState.SHUT_DOWN), NOW_S)
    assert off.act is None
    assert vm_report(off.memory, seen(RunState.SHUT_DOWN)).state is VmState.STOPPED
    asked = take_wish(
        AgentMemory(guests={VmId("vm-1"): off.memory}),
        VnodeWish(revision=2, vms=(replace(wish(), reboot_count=1),)),
    )
    assert act_on(asked.guests[VmId("vm-1")], seen(RunState.SHUT_DOWN)) == machine.Start()


def test_a_reboot_happens_once() -> None:
    memory = replace(remembered(replace(wish(), reboot_count=1)))
    asked = plan(memory, seen(), NOW_S)
    assert asked.act == machine.PressPower()
    started = plan(asked.memory, seen(RunState.SHUT_DOWN), NOW_S + 1)
    assert started.act == machine.Start()
    assert started.memory.reboots_done == 1
    assert act_on(started.memory, seen(), NOW_S + 2) is None


def test_a_vm_taken_anew_is_not_rebooted_for_old_requests() -> None:
    taken = take_wish(AgentMemory(), VnodeWish(revision=1, vms=(replace(wish(), reboot_count=7),)))
    assert act_on(taken.guests[VmId("vm-1")], seen()) is None


def test_a_guest_that_was_sent_away_goes_though_its_wish_went_first() -> None:
    left = replace(remembered(), in_wish=False, hand_over=HandOver.GRANTED)
    planned = plan(left, seen(RunState.HANDED_OVER), NOW_S)
    assert planned.act == machine.Kill()
    assert planned.memory.hand_over is HandOver.DONE


def test_an_orphan_is_left_alone_whatever_it_does() -> None:
    orphan = replace(remembered(), in_wish=False)
    for state in RunState:
        assert act_on(orphan, seen(state)) is None
    assert vm_report(orphan, seen()).orphan


def test_what_ended_of_a_vm_that_is_another_nodes_goes_and_what_may_come_back_stays() -> None:
    memory = AgentMemory(guests={VmId("vm-1"): remembered()})
    for withheld, act in (((), machine.Forget()), ((VmId("vm-1"),), None), (None, None)):
        orphan = take_wish(memory, VnodeWish(revision=2, vms=(), withheld=withheld))
        for state in (RunState.GONE, RunState.SHUT_DOWN):
            assert act_on(orphan.guests[VmId("vm-1")], seen(state)) == act
        assert act_on(orphan.guests[VmId("vm-1")], seen()) is None
        back = take_wish(orphan, VnodeWish(revision=3, vms=(wish(),)))
        assert act_on(back.guests[VmId("vm-1")], seen(RunState.SHUT_DOWN)) != machine.Forget()


def test_a_vm_stops_before_its_lease_ends() -> None:
    memory = remembered(replace(wish(), lease_until_s=NOW_S + 10))
    early = plan(memory, seen(), NOW_S)
    assert early.act is None
    assert early.look_again_s == NOW_S + 10 - machine.LEASE_MARGIN_S
    late = plan(memory, seen(), early.look_again_s)
    assert late.act == machine.Kill()
    assert act_on(late.memory, seen(RunState.SHUT_DOWN), NOW_S + 20) is None
    renewed = replace(late.memory, wish=replace(wish(), lease_until_s=NOW_S + 99))
    assert act_on(renewed, seen(RunState.SHUT_DOWN), NOW_S + 20) == machine.Start()


def test_a_new_vm_that_may_not_run_yet_waits_and_has_not_failed() -> None:
    """Its site claims it within seconds; what has run here tells why it does not any more."""
    fresh = GuestMemory(wish=replace(wish(), lease_until_s=1.0))
    waiting = plan(fresh, None, NOW_S)
    assert waiting.act is None
    assert (vm_report(waiting.memory, None).state, waiting.memory.failure) == (VmState.STARTING, "")
    claimed = replace(waiting.memory, wish=replace(wish(), lease_until_s=NOW_S + 10))
    assert act_on(claimed, None) == machine.Start()
    ended = plan(replace(fresh, started_s=NOW_S - 1), None, NOW_S)
    assert ended.memory.failure == "its lease ended"


def test_a_lease_is_kept_even_while_an_act_is_held_back() -> None:
    memory = replace(remembered(replace(wish(), lease_until_s=NOW_S + 1)), hold_until_s=NOW_S + 30)
    assert act_on(memory, seen()) == machine.Kill()


def test_a_lower_epoch_is_refused_and_said() -> None:
    memory = AgentMemory(guests={VmId("vm-1"): remembered(wish(epoch=5))})
    after = take_wish(memory, VnodeWish(revision=1, vms=(wish(PowerWish.DELETED, epoch=4),)))
    kept = after.guests[VmId("vm-1")]
    assert kept.wish.wish is PowerWish.RUNNING
    assert act_on(kept, seen()) is None
    assert "epoch 4 was refused" in vm_report(kept, seen()).failure


def test_disks_follow_the_wish() -> None:
    both = remembered(replace(wish(), disks=(disk(1), disk(2))))
    assert act_on(both, seen(volumes=(1,))) == machine.Attach(1, disk(2))
    assert act_on(remembered(), seen(volumes=(1, 2))) == machine.Detach(1)
    moved = remembered(replace(wish(), disks=(disk(1, "10.0.0.8:3260"),)))
    assert act_on(moved, seen()) == machine.Repoint(0, disk(1, "10.0.0.8:3260"))


@pytest.mark.parametrize(
    ("disks", "act", "told_last"),
    [
        ((disk(1, "10.0.0.8:3260"),), machine.Repoint, "not reach a disk at its new place: QEMU"),
        ((disk(1), disk(2)), machine.Attach, "QEMU refused blockdev-add"),
    ],
)
def test_a_disk_that_does_not_let_in_at_once_is_no_news(
    disks: tuple[DiskWish, ...], act: type[machine.Act], told_last: str
) -> None:
    """Its head opens elsewhere just now, or its IO-node has not heard yet whom to let in."""
    memory = remembered(replace(wish(), disks=disks))
    told, now_s = [], NOW_S
    for _ in range(machine.TRIES_UNTOLD):
        planned = plan(memory, seen(), now_s)
        assert planned.act is not None
        assert isinstance(planned.act, act)
        memory = after_act(planned.memory, planned.act, "QEMU refused blockdev-add", now_s)
        told.append(vm_report(memory, seen()).failure)
        now_s = memory.hold_until_s
    assert told[:-1] == [""] * (machine.TRIES_UNTOLD - 1)
    assert told_last in told[-1]
    assert now_s - NOW_S > 5.0


def test_a_new_name_to_log_in_with_does_not_touch_a_disk() -> None:
    renamed = replace(disk(1), chap_user="other", chap_secret="new")
    assert act_on(remembered(replace(wish(), disks=(renamed,))), seen()) is None


def test_a_running_guest_logs_in_anew_when_secrets_are_replaced() -> None:
    fresh = replace(disk(1), chap_user="other", chap_secret="new", chap_generation=1)
    again = machine.Repoint(0, fresh)
    assert act_on(remembered(replace(wish(), disks=(fresh,))), seen()) == again


def test_a_lost_disk_is_tried_again_and_told() -> None:
    waiting = plan(remembered(), seen(RunState.IO_ERROR), NOW_S)
    assert waiting.act == machine.Resume()
    assert act_on(waiting.memory, seen(RunState.IO_ERROR), NOW_S + 0.1) is None
    assert machine.DISK_LOST in vm_report(waiting.memory, seen(RunState.IO_ERROR)).failure
    back = plan(waiting.memory, seen(), NOW_S + 6)
    assert vm_report(back.memory, seen()).failure == ""


def test_a_guest_that_stops_for_its_disk_again_and_again_is_told_once() -> None:
    memory, told = remembered(), []
    for tenth in range(60):  # it is let go on each second, and stops again at its next write
        state = RunState.RUNNING if tenth % 10 == 1 else RunState.IO_ERROR
        planned = plan(memory, seen(state), NOW_S + tenth / 10)
        told.append(vm_report(planned.memory, seen(state)).failure)
        memory = planned.memory
    assert set(told) == {machine.DISK_LOST}
    runs = plan(memory, seen(), NOW_S + 6.5)
    assert vm_report(runs.memory, seen()).failure == machine.DISK_LOST
    calm = plan(runs.memory, seen(), runs.look_again_s)
    assert vm_report(calm.memory, seen()).failure == ""


def test_the_volume_for_which_a_guest_waits_is_told() -> None:
    stopped = replace(seen(RunState.IO_ERROR), stopped_at=VolumeId("volume-1"))
    waiting = plan(remembered(), stopped, NOW_S).memory
    told = f"{machine.DISK_LOST}: volume-1 (nuage volume show volume-1)"
    assert vm_report(waiting, stopped).failure == told
    runs = replace(stopped, state=RunState.RUNNING)
    assert vm_report(plan(waiting, runs, NOW_S + 1).memory, runs).failure == told
    calm_s = NOW_S + machine.IO_CALM_S + 1
    assert vm_report(plan(waiting, runs, calm_s).memory, runs).failure == ""


def test_what_a_guest_cannot_read_is_told_for_a_while_and_stops_nothing() -> None:
    hears = replace(seen(), unreadable=((VolumeId("volume-1"), NOW_S),))
    planned = plan(remembered(), hears, NOW_S + 1)
    assert planned.act is None
    assert "unreadable blocks of volume-1" in vm_report(planned.memory, hears).failure
    later = plan(planned.memory, hears, NOW_S + machine.UNREADABLE_TOLD_S)
    assert vm_report(later.memory, hears).failure == ""


def test_a_disk_that_is_lost_is_looked_for_where_its_head_is_now() -> None:
    moved = disk(1, "10.0.0.8:3260")
    lost = remembered(replace(wish(), disks=(moved,)))
    assert act_on(lost, seen(RunState.IO_ERROR)) == machine.Repoint(0, moved)
    found = replace(seen(RunState.IO_ERROR), disks=(iscsi_disk(moved),))
    assert act_on(lost, found) == machine.Resume()


def test_a_smaller_shape_inflates_the_balloon_once() -> None:
    memory = remembered(replace(wish(), shape=VmShape(memory_mib=128)))
    planned = plan(memory, seen(), NOW_S)
    assert planned.act == machine.Balloon(128)
    assert act_on(planned.memory, seen()) is None


# --- moving away -------------------------------------------------------------------------------


def departing() -> GuestMemory:
    return remembered(replace(wish(), outgoing=OUTGOING))


def granted() -> GuestMemory:
    asked = replace(wish(), outgoing=replace(OUTGOING, may_switch=True))
    return replace(
        remembered(asked), hand_over=HandOver.GRANTED, hand_over_epoch=1,
        hand_over_address=OUTGOING.address, progress_s=NOW_S,
    )  # fmt: skip


def with_leave(status: MigrationStatus, state: RunState = RunState.RUNNING) -> GuestSeen:
    moved = moving(status, state)
    return replace(moved, migration=replace(moved.migration, has_leave=True))


def test_a_guest_is_sent_and_halts_until_it_may_switch() -> None:
    sending = plan(departing(), seen(), NOW_S)
    assert sending.act == machine.Migrate(OUTGOING.address, MigrationLimits(), OUTGOING.secret)
    ready = plan(sending.memory, moving(MigrationStatus.SWITCHING, RunState.SWITCHING), NOW_S)
    assert ready.act is None
    report = vm_report(ready.memory, moving(MigrationStatus.SWITCHING, RunState.SWITCHING))
    assert report.ready_to_switch
    assert report.state is VmState.MIGRATING
    allowed = replace(ready.memory, wish=granted().wish)
    switched = plan(allowed, moving(MigrationStatus.SWITCHING, RunState.SWITCHING), NOW_S)
    assert switched.act == machine.MigrateContinue()
    assert switched.memory.hand_over is HandOver.GRANTED
    done = plan(switched.memory, moving(MigrationStatus.COMPLETED, RunState.HANDED_OVER), NOW_S)
    assert done.act is None
    assert vm_report(done.memory, seen(RunState.HANDED_OVER)).migrated


def test_a_guest_is_sent_once_it_reaches_its_disks() -> None:
    moved = disk(1, "10.0.0.8:3260")
    leaves = remembered(replace(wish(), disks=(moved,), outgoing=OUTGOING))
    assert act_on(leaves, seen()) == machine.Repoint(0, moved)
    reaches = replace(seen(), disks=(iscsi_disk(moved),))
    assert isinstance(act_on(leaves, reaches), machine.Migrate)


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.PAUSED, RunState.IO_ERROR])
def test_a_guest_that_is_being_sent_is_led_to_a_disk_that_moves(state: RunState) -> None:
    moved = disk(1, "10.0.0.8:3260")
    flows = moving(MigrationStatus.ACTIVE, state)
    sending = plan(departing(), seen(), NOW_S).memory
    for leave in (sending, granted()):
        follows = replace(leave, wish=replace(leave.wish, disks=(moved,)))
        planned = plan(follows, flows, NOW_S)
        assert planned.act == machine.Repoint(0, moved)
        mute = after_act(planned.memory, planned.act, "QEMU did not answer", NOW_S)
        assert vm_report(mute, flows).failure == "", "a reason to give the move up"
        assert act_on(mute, flows) is None
        assert act_on(mute, flows, NOW_S + machine.IO_RETRY_S) == machine.Repoint(0, moved)


def test_a_guest_that_is_being_sent_goes_on_after_a_lost_disk_unless_it_may_switch() -> None:
    flows = moving(MigrationStatus.ACTIVE, RunState.IO_ERROR)
    sending = plan(departing(), seen(), NOW_S).memory
    assert act_on(sending, flows) == machine.Resume()
    halted = replace(flows, migration=replace(flows.migration, status=MigrationStatus.SWITCHING))
    assert act_on(sending, halted) is None
    goes = with_leave(MigrationStatus.ACTIVE, RunState.IO_ERROR)
    assert act_on(granted(), goes) is None, "it would run at both ends"


def test_a_break_before_leave_leaves_the_guest_running_here() -> None:
    sending = replace(plan(departing(), seen(), NOW_S).memory)
    failed = plan(sending, moving(MigrationStatus.FAILED), NOW_S)
    assert failed.act is None
    report = vm_report(failed.memory, moving(MigrationStatus.FAILED))
    assert report.state is VmState.RUNNING
    assert report.failure
    assert act_on(failed.memory, moving(MigrationStatus.FAILED)) is None  # not tried again
    again = replace(failed.memory, wish=replace(wish(), outgoing=replace(OUTGOING, attempt=1)))
    assert isinstance(act_on(again, seen()), machine.Migrate)


def test_leave_that_comes_while_memory_flows_is_passed_on_at_once() -> None:
    sending = plan(departing(), seen(), NOW_S).memory
    allowed = plan(replace(sending, wish=granted().wish), moving(MigrationStatus.ACTIVE), NOW_S)
    assert allowed.act == machine.MigrateContinue()
    assert allowed.memory.hand_over is HandOver.GRANTED
    goes = with_leave(MigrationStatus.ACTIVE)
    assert act_on(allowed.memory, goes) is None
    assert vm_report(allowed.memory, goes).state is VmState.MIGRATING
    assert act_on(allowed.memory, moving(MigrationStatus.ACTIVE)) == machine.MigrateContinue()
    assert act_on(allowed.memory, with_leave(MigrationStatus.DEVICE, RunState.SWITCHING)) is None


def test_a_break_after_leave_leaves_the_guest_running_here_if_qemu_says_so() -> None:
    failed = plan(granted(), moving(MigrationStatus.FAILED), NOW_S)
    assert failed.act is None
    assert failed.memory.hand_over is HandOver.FAILED
    assert vm_report(failed.memory, moving(MigrationStatus.FAILED)).state is VmState.RUNNING


def test_a_guest_that_may_have_gone_waits_for_a_new_epoch() -> None:
    for ended in (None, seen(RunState.GONE), seen(RunState.SHUT_DOWN)):
        broken = plan(granted(), ended, NOW_S)
        assert broken.act is None
        assert broken.memory.hand_over is HandOver.BROKEN
        assert vm_report(broken.memory, ended).is_lost
    assert act_on(broken.memory, seen(RunState.RUNNING)) == machine.Pause()
    assert not vm_report(broken.memory, seen(RunState.RUNNING)).is_lost
    same_epoch = replace(broken.memory, wish=wish(epoch=1))
    assert act_on(same_epoch, seen(RunState.PAUSED)) is None
    new_epoch = replace(broken.memory, wish=wish(epoch=3))
    assert act_on(new_epoch, seen(RunState.PAUSED)) == machine.Resume()


def test_a_guest_that_handed_over_never_runs_here_under_its_old_epoch() -> None:
    done = replace(granted(), hand_over=HandOver.DONE)
    for power in (PowerWish.RUNNING, PowerWish.STOPPED):
        kept = replace(done, wish=wish(power, epoch=1))
        for state in (RunState.HANDED_OVER, RunState.GONE, RunState.SHUT_DOWN):
            assert act_on(kept, seen(state)) is None
    taken_back = replace(done, wish=wish(epoch=3))
    assert act_on(taken_back, seen(RunState.HANDED_OVER)) == machine.Resume()


def test_a_shell_that_handed_over_is_cleared_when_nobody_wants_it() -> None:
    done = replace(granted(), hand_over=HandOver.DONE, in_wish=False)
    assert act_on(done, seen(RunState.HANDED_OVER)) == machine.Kill()
    assert act_on(done, seen(RunState.SHUT_DOWN)) == machine.Forget()


def test_no_leave_in_time_takes_the_guest_back() -> None:
    sending = plan(departing(), seen(), NOW_S).memory
    waiting = moving(MigrationStatus.SWITCHING, RunState.SWITCHING)
    ready = plan(sending, waiting, NOW_S).memory
    late = plan(ready, waiting, NOW_S + machine.SWITCH_WAIT_S)
    assert late.act == machine.MigrateCancel()
    assert late.memory.hand_over is HandOver.FAILED


def test_leave_that_comes_after_the_migration_was_given_up_does_nothing() -> None:
    failed = replace(granted(), hand_over=HandOver.FAILED)
    assert act_on(failed, moving(MigrationStatus.CANCELLED)) is None


def test_a_last_state_that_stalls_ends_the_guest_here() -> None:
    """Cancelled, QEMU would let it run, though all of it may have arrived."""
    switching = with_leave(MigrationStatus.DEVICE, RunState.SWITCHING)
    first = plan(granted(), switching, NOW_S)
    assert first.act is None
    stalled = plan(first.memory, switching, NOW_S + machine.MIGRATION_STALL_S)
    assert stalled.act == machine.Kill()
    assert stalled.memory.hand_over is HandOver.BROKEN
    assert act_on(stalled.memory, seen(RunState.SHUT_DOWN)) is None


def test_a_stalled_stream_is_given_up_with_leave_too() -> None:
    active = with_leave(MigrationStatus.ACTIVE)
    stalled = plan(plan(granted(), active, NOW_S).memory, active, NOW_S + 10)
    assert stalled.act == machine.MigrateCancel()
    assert stalled.memory.hand_over is HandOver.GRANTED
    kept = plan(stalled.memory, moving(MigrationStatus.CANCELLED), NOW_S + 10)
    assert kept.memory.hand_over is HandOver.FAILED
    assert "link is cut" in kept.memory.failure
    gone = plan(stalled.memory, moving(MigrationStatus.COMPLETED, RunState.HANDED_OVER), NOW_S + 10)
    assert gone.memory.hand_over is HandOver.DONE


def test_a_stalled_stream_is_given_up() -> None:
    sending = plan(departing(), seen(), NOW_S).memory
    active = moving(MigrationStatus.ACTIVE)
    first = plan(sending, active, NOW_S)
    assert first.act is None
    stalled = plan(first.memory, active, NOW_S + machine.MIGRATION_STALL_S)
    assert stalled.act == machine.MigrateCancel()
    assert "link is cut" in stalled.memory.failure


@pytest.mark.parametrize("leave", [False, True])
def test_a_guest_whose_memory_never_all_goes_stays(*, leave: bool) -> None:
    flows = moving(MigrationStatus.ACTIVE)
    flows = replace(flows, migration=replace(flows.migration, has_leave=leave))
    sending = granted() if leave else plan(departing(), seen(), NOW_S).memory
    memory_bytes = flows.shape.memory_mib << 20
    sent = replace(flows.migration, transferred_bytes=machine.MEMORY_SENT_MAX * memory_bytes + 1)
    planned = plan(sending, replace(flows, migration=sent), NOW_S)
    assert planned.act == machine.MigrateCancel()
    assert act_on(sending, flows) is None

    outgoing = sending.wish.outgoing
    assert outgoing is not None
    hurried = replace(sending, wish=replace(sending.wish, outgoing=replace(outgoing, within_s=5.0)))
    hurried = replace(hurried, sending_s=NOW_S, progress_s=NOW_S + 4.0)
    assert act_on(hurried, flows, NOW_S + 4.0) is None
    late = plan(hurried, flows, NOW_S + 5.0)
    assert late.act == machine.MigrateCancel()
    still = replace(flows, migration=replace(flows.migration, has_leave=False))
    again = act_on(late.memory, still, NOW_S + 5.1)
    assert again is None, "leave is not passed on once more, nor a cancel each moment"
    ended = plan(late.memory, moving(MigrationStatus.CANCELLED), NOW_S + 5.2).memory
    report = vm_report(ended, seen())
    assert report.state is VmState.RUNNING
    assert "has not all gone within 5 s" in report.failure


def test_a_withdrawn_migration_is_cancelled_unless_it_is_switching() -> None:
    sending = replace(plan(departing(), seen(), NOW_S).memory, wish=wish())
    assert act_on(sending, moving(MigrationStatus.ACTIVE)) == machine.MigrateCancel()
    given = replace(granted(), wish=wish())
    assert act_on(given, moving(MigrationStatus.DEVICE)) is None
    tried = plan(given, with_leave(MigrationStatus.ACTIVE), NOW_S)
    assert tried.act == machine.MigrateCancel()
    assert tried.memory.hand_over is HandOver.GRANTED  # it may have begun meanwhile


def test_an_agent_that_died_before_passing_leave_on_passes_it_on() -> None:
    waiting = moving(MigrationStatus.SWITCHING, RunState.SWITCHING)
    assert act_on(granted(), waiting) == machine.MigrateContinue()


# --- arriving ----------------------------------------------------------------------------------


def arriving() -> GuestMemory:
    return GuestMemory(wish=replace(wish(epoch=2), incoming=INCOMING))


def test_an_arriving_guest_waits_and_tells_where() -> None:
    started = plan(arriving(), None, NOW_S)
    assert started.act == machine.StartIncoming(INCOMING.secret, INCOMING.source_address)
    waiting = replace(seen(RunState.INCOMING), incoming_address="10.0.0.2:49152")
    planned = plan(started.memory, waiting, NOW_S)
    assert planned.act is None
    report = vm_report(planned.memory, waiting)
    assert report.state is VmState.STARTING
    assert report.migration_address == "10.0.0.2:49152"
    arrived = plan(planned.memory, seen(), NOW_S)
    assert arrived.memory.arrival is Arrival.ARRIVED
    assert vm_report(arrived.memory, seen()).state is VmState.RUNNING


def test_a_guest_that_did_not_arrive_is_not_started_from_its_disk() -> None:
    waiting = replace(arriving(), arrival=Arrival.WAITING)
    failed = plan(waiting, seen(RunState.GONE), NOW_S)
    assert failed.act is None
    assert vm_report(failed.memory, seen(RunState.GONE)).state is VmState.FAILED
    assert act_on(failed.memory, seen(RunState.GONE), NOW_S + 1000) is None
    cold = replace(failed.memory, wish=wish(epoch=3))  # the controller says: from the disk
    cold = plan(cold, seen(RunState.GONE), NOW_S).memory
    assert act_on(cold, seen(RunState.GONE), NOW_S + 60) == machine.Start()


def test_an_arrival_that_is_withdrawn_is_cleared_away() -> None:
    waiting = replace(arriving(), arrival=Arrival.WAITING, in_wish=False)
    assert act_on(waiting, seen(RunState.INCOMING)) == machine.Kill()
    assert act_on(waiting, seen(RunState.SHUT_DOWN)) == machine.Forget()


def test_a_vm_that_comes_back_finds_its_old_shell_cleared() -> None:
    shell = replace(arriving(), hand_over=HandOver.DONE)
    assert act_on(shell, seen(RunState.HANDED_OVER)) == machine.Kill()
    again = machine.StartIncoming(INCOMING.secret, INCOMING.source_address)
    assert act_on(shell, seen(RunState.SHUT_DOWN)) == again


def test_a_vm_that_was_here_before_and_is_taken_over_on_its_way_back_starts() -> None:
    ran_here_before = replace(arriving(), running_seen=True)
    came_back = plan(ran_here_before, None, NOW_S).memory
    taken_over = replace(came_back, wish=wish(epoch=3))
    cleared = plan(taken_over, seen(RunState.INCOMING), NOW_S)
    assert cleared.act == machine.Kill()
    assert act_on(cleared.memory, seen(RunState.SHUT_DOWN)) == machine.Start()


def test_a_target_whose_disks_do_not_let_in_at_once_tries_again_before_it_is_told() -> None:
    memory, now_s = arriving(), NOW_S
    for _ in range(machine.TRIES_UNTOLD):
        assert vm_report(memory, seen(RunState.GONE)).state is VmState.STARTING
        planned = plan(memory, seen(RunState.GONE), now_s)
        assert isinstance(planned.act, machine.StartIncoming)
        memory = after_act(planned.memory, planned.act, "QEMU would not start vm-1", now_s)
        now_s = max(now_s, memory.hold_until_s)
    assert vm_report(memory, seen(RunState.GONE)).state is VmState.FAILED
    assert vm_report(memory, None).failure == "QEMU would not start vm-1"
    assert act_on(memory, seen(RunState.GONE), now_s + 60) is None


def test_a_move_that_fails_to_begin_is_told_not_repeated() -> None:
    act = machine.Migrate("x", MigrationLimits(), "5e")
    memory = after_act(arriving(), act, "no route", NOW_S)
    assert vm_report(memory, None).failure == "no route"
    assert memory.hold_until_s == 0.0


def test_an_act_that_fails_is_held_back_longer_each_time() -> None:
    memory = remembered()
    holds = []
    for _ in range(3):
        memory = after_act(memory, machine.Start(), "no disk", NOW_S)
        holds.append(memory.hold_until_s - NOW_S)
        assert act_on(memory, None) is None
    assert holds == [1, 2, 4]
    assert after_act(memory, machine.Start(), "", NOW_S).hold_until_s == 0.0
