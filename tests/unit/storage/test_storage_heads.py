"""Which copies a head asks, where it may open next, and the steps that copies are taken through."""

from collections.abc import Collection
from dataclasses import replace

import pytest

from nuage.ids import IaasId, NodeId, SiteId, VolumeId
from nuage.model.contract import AckPolicy, JournalRule
from nuage.model.desired import CopyReport, FormerSet
from nuage.model.volume import ReplicaPlace, Volume, VolumeState
from nuage.storage.heads import (
    AddCopy,
    Complete,
    Drop,
    Include,
    KeyAnew,
    MoveHead,
    Replace,
    Repolicy,
    Retire,
    VolumeFacts,
    former_set,
    head_set,
    held_up,
    next_head,
    next_step,
)
from nuage.units import MIB

A, B, C, D = (NodeId(name) for name in ("a1", "b1", "c1", "a2"))
SITES = {A: SiteId("a"), B: SiteId("b"), C: SiteId("c"), D: SiteId("a")}


def volume(
    *nodes: NodeId, policy: AckPolicy = AckPolicy.ALL, whole: tuple[NodeId, ...] | None = None
) -> Volume:
    return Volume(
        volume_id=VolumeId("vol-1"), iaas_id=IaasId("iaas-1"), name="disk", size_bytes=64 * MIB,
        ack_policy=policy, journal=JournalRule(), state=VolumeState.READY,
        replicas=tuple(ReplicaPlace(node_id=n, site_id=SITES[n]) for n in nodes),
        head=nodes[0], epoch=7, portal="10.0.0.1:21000", settled_epoch=7,
        whole=nodes if whole is None else whole,
    )  # fmt: skip


def facts(
    *usable: NodeId, copies: int = 2, policy: AckPolicy = AckPolicy.ALL, live: Collection[str] = (),
    vm_site: str | None = None, draining: Collection[NodeId] = (), gone: Collection[NodeId] = (),
) -> VolumeFacts:  # fmt: skip
    return VolumeFacts(
        usable=usable, wanted_copies=copies, wanted_policy=policy,
        copies={NodeId(n): CopyReport(node_id=NodeId(n), is_connected=True, is_live=True)
                for n in live},
        vm_site=None if vm_site is None else SiteId(vm_site), draining=draining, gone=gone,
    )  # fmt: skip


def names(found: Volume) -> tuple[AckPolicy, list[str], list[str]]:
    asked = head_set(found)
    return asked.policy, [p.node_id for p in asked.members], list(asked.acknowledging)


def test_a_settled_volume_works_as_its_contract_says() -> None:
    assert names(volume(A, B)) == (AckPolicy.ALL, [A, B], [A, B])
    three = volume(A, B, C, policy=AckPolicy.ANY_2_OF_3)
    assert names(three) == (AckPolicy.ANY_2_OF_3, [A, B, C], [A, B, C])
    metro = volume(A, B, C, policy=AckPolicy.METRO)
    assert names(metro) == (AckPolicy.METRO, [A, B, C], [A, B])


def test_a_head_asks_the_former_copies_too_until_one_is_ready_with_those_of_now() -> None:
    three = AckPolicy.ANY_2_OF_3
    settled = replace(volume(A, B, C, policy=three), settled_policy=three)
    assert former_set(settled) is None
    moved = replace(settled, head=B, epoch=8)
    assert former_set(moved) is None, "the copies are the same"
    changed = replace(
        settled, epoch=8, replicas=volume(A, B, C, D).replicas, catching_up=(D,), leaving=(C,)
    )
    assert names(changed) == (AckPolicy.METRO, [A, B, C, D], [A, B])
    assert former_set(changed) == FormerSet(policy=three, nodes=(A, B, C))
    assert former_set(replace(changed, settled_epoch=8)) is None
    assert former_set(replace(changed, whole=())) is None, "nothing was acknowledged yet"


def test_what_the_owner_does_without_is_not_asked() -> None:
    degraded = replace(volume(A, B), without=(B,))
    assert names(degraded) == (AckPolicy.ALL, [A], [A])


def test_a_copy_that_catches_up_beside_two_follows_and_is_not_waited_for() -> None:
    joining = replace(volume(A, B, C, whole=(A, B)), catching_up=(C,))
    assert names(joining) == (AckPolicy.METRO, [A, B, C], [A, B])


def test_a_copy_that_catches_up_beside_one_is_waited_for() -> None:
    mending = replace(volume(A, B, whole=(A,)), catching_up=(B,))
    assert names(mending) == (AckPolicy.ALL, [A, B], [A, B])


def test_one_of_three_that_is_replaced_does_not_acknowledge_any_more() -> None:
    moving = replace(
        volume(A, B, C, D, policy=AckPolicy.ANY_2_OF_3, whole=(A, B, C)),
        catching_up=(D,), leaving=(C,),
    )  # fmt: skip
    assert names(moving) == (AckPolicy.METRO, [A, B, C, D], [A, B])
    filled = replace(moving, catching_up=())
    assert names(filled) == (AckPolicy.ANY_2_OF_3, [A, B, D], [A, B, D])


def test_a_head_opens_first_in_its_own_site_then_at_its_vm() -> None:
    three = volume(A, B, C, D)
    everything = {A, B, C, D}
    first = next_head(three, is_usable=everything.__contains__, near=SiteId("c"))
    assert first is not None
    assert first.node_id == D
    far = next_head(three, is_usable={B, C}.__contains__, near=SiteId("c"))
    assert far is not None
    assert far.node_id == C
    away = next_head(three, is_usable=everything.__contains__, near=None, is_away={D}.__contains__)
    assert away is not None
    assert away.node_id != D


@pytest.mark.parametrize(
    "unfit",
    [
        replace(volume(A, B), without=(B,)),
        replace(volume(A, B), catching_up=(B,)),
        volume(A, B, whole=(A,)),
    ],
)
def test_a_head_never_opens_where_acknowledged_writes_may_be_missing(unfit: Volume) -> None:
    assert next_head(unfit, is_usable=lambda _node: True, near=None) is None


def test_one_of_three_alone_may_lack_what_the_others_acknowledged() -> None:
    three = volume(A, B, C, policy=AckPolicy.ANY_2_OF_3)
    assert next_head(three, is_usable={B}.__contains__, near=None) is None
    assert next_head(three, is_usable={B, C}.__contains__, near=None) is not None
    # The head gave up, and its node answers: the other two of three are enough.
    other = next_head(three, is_usable={A, B}.__contains__, near=None)
    assert other is not None
    assert other.node_id == B


def test_a_copy_that_answers_again_is_included_and_then_counts() -> None:
    degraded = replace(volume(A, B, whole=(A,)), without=(B,))
    assert next_step(degraded, facts(A)) is None
    assert next_step(degraded, facts(A, B)) == Include(B)
    mending = replace(volume(A, B, whole=(A,)), catching_up=(B,))
    assert next_step(mending, facts(A, B)) is None
    assert next_step(mending, facts(A, B, live=[B])) == Complete(B, reopens=False)


def test_a_copy_is_replaced_step_by_step() -> None:
    begun = replace(
        volume(A, B, C, whole=(A, B)), without=(C,), catching_up=(C,), leaving=(B,)
    )  # fmt: skip
    assert next_step(begun, facts(A, B, C)) == Include(C)
    follows = replace(begun, without=())
    assert next_step(follows, facts(A, B, C)) is None
    assert next_step(follows, facts(A, B, C, live=[C])) == Complete(C, reopens=True)
    counted = replace(volume(A, B, C), leaving=(B,))
    assert next_step(counted, facts(A, B, C)) == Drop(B)


def test_a_head_leaves_before_its_copy_does() -> None:
    leaving = replace(volume(A, B, C), leaving=(A,))
    step = next_step(leaving, facts(A, B, C, vm_site="c"))
    assert step == MoveHead(leaving.replicas[2])


def test_a_node_is_emptied_head_first_and_no_copy_leaves_before_another_is_there() -> None:
    drained = facts(A, B, C, vm_site="a", draining=[A])
    assert next_step(volume(A, B), drained) == MoveHead(volume(A, B).replicas[1])
    moved = replace(volume(A, B), head=B)
    assert next_step(moved, drained) == Replace(A)
    leaving = replace(moved, leaving=(A,))
    assert next_step(leaving, drained) == AddCopy()
    filled = replace(volume(A, B, C), head=B, leaving=(A,))
    assert next_step(filled, drained) == Drop(A)
    left = replace(volume(B, C), head=B)
    assert next_step(left, drained) is None
    alone = volume(A)
    assert next_step(alone, facts(A, copies=1, draining=[A])) == Replace(A)


def test_what_was_lost_for_long_is_made_anew_where_writes_go_on_without_it() -> None:
    three = volume(A, B, C, policy=AckPolicy.ANY_2_OF_3)
    lost = facts(A, B, copies=3, policy=AckPolicy.ANY_2_OF_3, gone=[C])
    assert next_step(three, lost) == Replace(C)
    pair = volume(A, B)
    assert next_step(pair, facts(A, gone=[B])) is None  # writes wait: its owner decides
    decided = replace(pair, without=(B,))
    assert next_step(decided, facts(A, gone=[B])) == Replace(B)
    begun = replace(decided, leaving=(B,))
    assert next_step(begun, facts(A, gone=[B])) == AddCopy()
    filled = replace(volume(A, B, D), without=(B,), leaving=(B,))
    assert next_step(filled, facts(A, D, gone=[B])) == Drop(B)


def test_a_copy_does_not_leave_while_one_that_is_to_stay_lacks_something() -> None:
    filled = replace(volume(A, B, C, D), head=A, leaving=(D,))
    away = CopyReport(node_id=C, is_connected=False, is_live=False)
    known = facts(A, B, C, D, copies=3, live=[B, D])
    lacking = replace(known, copies={**known.copies, C: away})
    assert next_step(filled, lacking) is None
    assert "copy on c1 is away" in held_up(filled, lacking)
    assert next_step(filled, facts(A, B, C, D, copies=3, live=[B, C, D])) == Drop(D)
    # What was begun, left out by decision and never filled counts for nothing.
    given_up = replace(volume(A, B, C, whole=(A, B)), without=(C,), leaving=(B,))
    assert next_step(given_up, facts(A, B, gone=[C])) == Replace(C)


def test_a_copy_whose_node_is_lost_while_it_is_filled_is_given_up() -> None:
    filling = replace(volume(A, B, C, whole=(A, B)), catching_up=(C,), leaving=(B,))
    assert next_step(filling, facts(A, B)) is None
    assert "c1, where a copy is filled, does not answer" in held_up(filling, facts(A, B))
    assert next_step(filling, facts(A, B, gone=[C])) == Drop(C)
    # Beside a single one writes wait for it: its owner decides.
    alone = replace(volume(A, C, whole=(A,)), catching_up=(C,), leaving=(A,))
    assert next_step(alone, facts(A, copies=1, gone=[C])) is None


def test_what_holds_up_a_change_of_copies_is_said_with_what_helps() -> None:
    filling = replace(volume(A, B, C, whole=(A, B)), catching_up=(C,), leaving=(B,))
    assert held_up(filling, facts(A, B, C)) == ""
    full = CopyReport(node_id=C, is_connected=True, is_live=False, is_failed=True)
    told = held_up(filling, replace(facts(A, B, C), copies={C: full}))
    assert "c1 failed, or its disk is full" in told
    assert "nuage volume replace-copy disk c1" in told
    assert "head, a1, does not answer" in held_up(filling, facts(B, C))
    stopped = replace(filling, failure="no other copy may take over now")
    assert held_up(stopped, facts(A, B, C)) == "no other copy may take over now"
    assert held_up(volume(A, B), facts(B)) == "", "nothing moves"
    assert held_up(volume(A, B), facts(B, draining=[B])) != ""


def test_a_contract_that_asks_for_more_or_less_is_followed() -> None:
    assert next_step(volume(A, B), facts(A, B, copies=3)) == AddCopy()
    assert next_step(volume(A, B, C), facts(A, B, C, copies=2)) == Retire(C)
    any_two = facts(A, B, C, copies=3, policy=AckPolicy.ANY_2_OF_3)
    assert next_step(volume(A, B, C), any_two) == Repolicy(AckPolicy.ANY_2_OF_3)


def test_a_head_follows_its_vm_to_a_site_with_a_copy() -> None:
    two = volume(A, B)
    assert next_step(two, facts(A, B, vm_site="b")) == MoveHead(two.replicas[1])
    assert next_step(two, facts(A, B, vm_site="c")) is None
    assert next_step(two, facts(A, vm_site="b")) is None


def test_a_head_does_not_go_back_where_it_is_to_rest_but_leaves_its_node_for_there() -> None:
    three = volume(A, B, C)
    resting = replace(facts(A, B, C, copies=3, vm_site="b"), resting={B})
    assert next_step(three, resting) is None
    drained = replace(resting, draining={A})
    assert next_step(three, drained) == MoveHead(three.replicas[1])
    two_there = replace(volume(B, A, D), head=B)
    near = replace(facts(A, B, D, copies=3, vm_site="a"), resting={A})
    assert next_step(two_there, near) == MoveHead(two_there.replicas[2])


def test_nothing_is_begun_before_the_last_change_has_settled() -> None:
    unsettled = replace(volume(A, B), epoch=8)
    assert next_step(unsettled, facts(A, B, copies=3, vm_site="b")) is None
    failed = replace(volume(A, B), failure="disk full")
    assert next_step(failed, facts(A, B, copies=3)) is None


def test_a_head_opens_once_more_for_a_new_data_key_also_while_a_copy_is_brought_up_to_date() -> (
    None
):
    due = replace(facts(A, B, C), may_key_anew=True)
    assert next_step(volume(A, B), due) == KeyAnew()
    assert next_step(replace(volume(A, B, C), catching_up=(C,)), due) == KeyAnew()
    assert next_step(replace(volume(A, B), epoch=8), due) is None, "the last step has not settled"
