from typing import Any

import pytest
from tests.unit.placement.placement_builders import request, site, vector

from nuage.errors import InvalidRequest, LocalProtocolError
from nuage.ids import NodeId, SiteId
from nuage.model.placement import Decision, Refusal, VmRequest
from nuage.model.vm import VmShape
from nuage.placement.local_agent import LocalAgent, Reservation
from nuage.placement.master_agent import (
    AskSite,
    BidsArrived,
    Commit,
    CommitLost,
    CommitRefused,
    Committed,
    Decided,
    Effect,
    Event,
    MasterAgent,
    Release,
    SiteFailed,
    no_candidate,
)

SITES = (SiteId("lyon"), SiteId("marne"))


def agents(**changes: Any) -> dict[SiteId, LocalAgent]:
    built = {}
    for name in SITES:
        built[name] = LocalAgent(site(name))
        for index in (1, 2):
            built[name].update(vector(f"{name}-v{index}", **changes))
    return built


def answer(effect: Effect, locals_: dict[SiteId, LocalAgent]) -> Event | None:
    match effect:
        case AskSite():
            bids = tuple(locals_[effect.site_id].bid(r, 0.0) for r in effect.requests)
            return BidsArrived(effect.site_id, effect.round_id, bids)
        case Commit():
            result = locals_[effect.site_id].reserve(effect.request, effect.node_id, 0.0)
            if isinstance(result, Reservation):
                return Committed(effect.request.request_id, effect.site_id, effect.node_id)
            return CommitRefused(effect.request.request_id, result)
        case Release():
            locals_[effect.site_id].release(effect.request_id, effect.node_id)
    return None


def run(
    master: MasterAgent, locals_: dict[SiteId, LocalAgent], *requests: VmRequest
) -> list[Decision]:
    todo = master.submit(requests, sorted(locals_), 0.0)
    decisions = []
    while todo:
        effect = todo.pop(0)
        if isinstance(effect, Decided):
            decisions.append(effect.decision)
            continue
        event = answer(effect, locals_)
        if event is not None:
            todo += master.receive(event, 0.0)
    assert len(decisions) == len(requests)
    return decisions


def test_the_five_steps_elect_the_first_ranked_node() -> None:
    locals_ = agents()
    locals_[SiteId("marne")].update(vector("marne-v2", sent_s=1.0, flops=1e12))
    (decision,) = run(MasterAgent(), locals_, request(policy="performance"))
    assert (decision.elected_site, decision.elected) == ("marne", "marne-v2")
    assert [c.node_id for c in decision.ranked] == ["marne-v2", "lyon-v1", "lyon-v2", "marne-v1"]
    assert decision.asked_sites == SITES
    assert decision.silent_sites == ()
    assert decision.elected == "marne-v2"
    assert decision.ranked[0].terms["flops"] == 1e12


def test_a_refused_commitment_moves_to_the_next_candidate_and_is_kept() -> None:
    locals_ = agents()
    master = MasterAgent()
    first, second = master.submit([request()], SITES, 0.0)
    assert master.receive(answer(first, locals_), 0.0) == []  # type: ignore[arg-type]
    (commit,) = master.receive(answer(second, locals_), 0.0)  # type: ignore[arg-type]
    assert isinstance(commit, Commit)
    assert commit.node_id == "lyon-v1"
    refusal = Refusal(
        site_id=SiteId("lyon"), node_id=NodeId("lyon-v1"), rule="memory", reason="taken"
    )
    (commit,) = master.receive(CommitRefused(commit.request.request_id, refusal), 0.0)
    assert isinstance(commit, Commit)
    assert commit.node_id == "lyon-v2"
    (decided,) = master.receive(
        Committed(commit.request.request_id, commit.site_id, commit.node_id), 0.0
    )
    assert isinstance(decided, Decided)
    assert decided.decision.refusals == (refusal,)
    assert decided.decision.elected == "lyon-v2"


def test_a_site_that_refuses_as_a_whole_is_asked_for_no_further_node_of_its() -> None:
    """Else a site of many V-nodes whose storage is full hid another that has room."""
    locals_ = agents()
    master = MasterAgent()
    first, second = master.submit([request()], SITES, 0.0)
    assert master.receive(answer(first, locals_), 0.0) == []  # type: ignore[arg-type]
    (commit,) = master.receive(answer(second, locals_), 0.0)  # type: ignore[arg-type]
    refused = []
    for site_id, next_node in (("lyon", "marne-v1"), ("marne", None)):
        assert isinstance(commit, Commit)
        assert commit.site_id == site_id
        refusal = Refusal(site_id=SiteId(site_id), node_id=None, rule="promised", reason="full")
        refused.append(refusal)
        (commit,) = master.receive(CommitRefused(commit.request.request_id, refusal), 0.0)
        assert next_node is None or getattr(commit, "node_id", None) == next_node
    assert isinstance(commit, Decided)
    assert (commit.decision.elected, commit.decision.refusals) == (None, tuple(refused))


def test_every_refusal_of_every_round_is_kept_and_told() -> None:
    """Each node says no, some twice and for different reasons: nothing is left out."""
    master = MasterAgent()
    locals_ = agents(memory_free_mib=1)
    asked = master.submit([request()], SITES, 0.0)
    decided: list[Effect] = []
    for effect in asked:
        decided += master.receive(answer(effect, locals_), 0.0)  # type: ignore[arg-type]
    (end,) = decided
    assert isinstance(end, Decided)
    said = {(r.node_id, r.rule) for r in end.decision.refusals}
    nodes = {"lyon-v1", "lyon-v2", "marne-v1", "marne-v2"}
    assert {node for node, _ in said} == nodes
    assert {(who, rule) for who, rule, _ in no_candidate(end.decision).refusals} == said


def test_a_silent_site_is_named_and_does_not_hold_the_others_up() -> None:
    locals_ = agents()
    master = MasterAgent(bid_timeout_s=0.5)
    first, _ = master.submit([request()], SITES, 10.0)
    assert master.receive(answer(first, locals_), 10.1) == []  # type: ignore[arg-type]
    assert master.next_deadline_s() == 10.5
    assert master.tick(10.4) == []
    (commit,) = master.tick(10.5)
    assert isinstance(commit, Commit)
    (decided,) = master.receive(answer(commit, locals_), 10.5)  # type: ignore[arg-type]
    assert isinstance(decided, Decided)
    assert decided.decision.silent_sites == ("marne",)
    late = BidsArrived(SiteId("marne"), 1, (locals_[SiteId("marne")].bid(request(), 0.0),))
    assert master.receive(late, 10.6) == []


def test_a_site_known_to_be_cut_off_is_silent_at_once() -> None:
    master = MasterAgent()
    asked = master.submit([request()], [SiteId("lyon")], 0.0)
    assert isinstance(asked[0], AskSite)
    (decided,) = master.receive(SiteFailed(SiteId("lyon"), asked[0].round_id), 0.0)
    assert isinstance(decided, Decided)
    assert decided.decision.silent_sites == ("lyon",)
    assert "did not answer" in str(no_candidate(decided.decision))


def test_an_unanswered_commitment_is_released_and_its_late_answer_too() -> None:
    locals_ = agents()
    master = MasterAgent(commit_timeout_s=5.0)
    events = [answer(effect, locals_) for effect in master.submit([request()], SITES, 0.0)]
    commits = [effect for event in events for effect in master.receive(event, 0.0)]  # type: ignore[arg-type]
    release, commit = master.tick(5.0)
    assert release == Release(SiteId("lyon"), NodeId("lyon-v1"), request().request_id)
    assert isinstance(commit, Commit)
    assert commit.node_id == "lyon-v2"
    assert isinstance(commits[0], Commit)
    late = Committed(request().request_id, commits[0].site_id, commits[0].node_id)
    assert master.receive(late, 6.0) == [release]
    lost = CommitLost(commit.request.request_id, commit.site_id, commit.node_id, "cut")
    assert isinstance(master.receive(lost, 6.0)[0], Release)
    assert master.receive(lost, 6.0) == []


def test_no_candidate_lists_every_refusal_by_rule() -> None:
    (decision,) = run(MasterAgent(), agents(vcpu_free=0), request())
    assert decision.elected is None
    error = no_candidate(decision)
    assert sorted(who for who, _, _ in error.refusals) == [
        "lyon-v1", "lyon-v2", "marne-v1", "marne-v2",
    ]  # fmt: skip
    assert {rule for _, rule, _ in error.refusals} == {"vcpu"}


def test_no_site_at_all_is_said() -> None:
    (decision,) = run(MasterAgent(), {}, request())
    assert "no site was asked" in str(no_candidate(decision))


def test_a_batch_does_not_herd_onto_one_node() -> None:
    requests = [request(n, policy="spread") for n in range(8)]
    decisions = run(MasterAgent(), agents(), *requests)
    elected = sorted(str(decision.elected) for decision in decisions)
    assert elected == sorted(["lyon-v1", "lyon-v2", "marne-v1", "marne-v2"] * 2)
    assert all(decision.refusals == () for decision in decisions)


def test_a_batch_larger_than_the_room_ends_with_reasons_for_the_rest() -> None:
    shape = VmShape(vcpu_count=1, memory_mib=20_000)
    decisions = run(MasterAgent(), agents(), *(request(n, shape=shape) for n in range(6)))
    assert sum(decision.elected is None for decision in decisions) == 2
    assert all(d.refusals for d in decisions if d.elected is None)


def test_wrong_use_is_refused() -> None:
    master = MasterAgent()
    with pytest.raises(InvalidRequest, match="no placement policy 'cheap'"):
        master.submit([request(policy="cheap")], SITES, 0.0)
    master.submit([request()], SITES, 0.0)
    with pytest.raises(LocalProtocolError):
        master.submit([request()], SITES, 0.0)


def test_an_answer_that_arrives_twice_does_not_undo_the_election() -> None:
    locals_ = agents()
    master = MasterAgent()
    (decision,) = run(master, locals_, request())
    assert decision.elected is not None
    assert decision.elected_site is not None
    twice = Committed(decision.request_id, decision.elected_site, decision.elected)
    assert master.receive(twice, 1.0) == []
    other = Committed(decision.request_id, SiteId("marne"), NodeId("marne-v2"))
    assert isinstance(master.receive(other, 1.0)[0], Release)
