"""The Master Agent: asks the sites, ranks their bids, has the elected site commit.

Theory of operation. `submit` opens a round for one or many requests and returns one
`AskSite` per site. When every site has answered, or the deadline passed (`tick`), the
round is closed: each request is ranked by its policy and its first candidate is asked to
commit. A refusal (somebody else was faster) or silence moves to the next candidate; when
all are used up after at least one such conflict, a fresh round is asked, `ROUNDS_MAX` in
all. Every request ends in exactly one `Decided`, with every refusal seen on the way.

Fault model: bids and answers are lost, late, doubled. A commitment that went unanswered
may have taken effect: the site is told to release it, and the quorum's epoch keeps a VM
from running twice whatever becomes of that message.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Final, TypeAlias

from nuage.errors import LocalProtocolError, NoCandidate
from nuage.ids import NodeId, RequestId, SiteId
from nuage.model.placement import (
    Bid,
    Decision,
    Estimate,
    RankedCandidate,
    Refusal,
    VmRequest,
)
from nuage.placement.columns import columns_of
from nuage.placement.policies import PolicyBook, scored

BID_TIMEOUT_S: Final = 0.5  # several WAN round trips; a site answers from memory
COMMIT_TIMEOUT_S: Final = 5.0  # a catalogue write and a quorum claim over a WAN
ROUNDS_MAX: Final = 3  # fresh bids after conflicts, before giving up
COMMITS_MAX: Final = 32  # candidates asked for one request, over all rounds
TERMS_KEPT: Final = 4  # best candidates told with their terms; the rest by score: 17 KB become 4
REMEMBERED_MAX: Final = 10_000  # decisions kept to answer late commitments, a minute's worth


# -- effects: what the loop around the machine has to do ------------------------------------


@dataclass(frozen=True, slots=True)
class AskSite:
    """Ask the Local Agent of `site_id` to bid for each request; no later than `deadline_s`."""

    site_id: SiteId
    round_id: int
    requests: tuple[VmRequest, ...]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Commit:
    """Have `site_id` reserve `node_id` and write the VM into its catalogue."""

    site_id: SiteId
    node_id: NodeId
    request: VmRequest
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Release:
    """Tell `site_id` to give back what it may have promised; its answer is not awaited."""

    site_id: SiteId
    node_id: NodeId
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Decided:
    """The end of a request; `decision.elected` None means no candidate."""

    decision: Decision


Effect: TypeAlias = AskSite | Commit | Release | Decided


# -- events: what the loop tells the machine -------------------------------------------------


@dataclass(frozen=True, slots=True)
class BidsArrived:
    """A Local Agent's bids, one per request of the round, in the round's order."""

    site_id: SiteId
    round_id: int
    bids: tuple[Bid, ...]


@dataclass(frozen=True, slots=True)
class SiteFailed:
    """A site is known not to answer (connection refused, cut off)."""

    site_id: SiteId
    round_id: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The site has committed."""

    request_id: RequestId
    site_id: SiteId
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class CommitRefused:
    """The site did not commit, by the rule named."""

    request_id: RequestId
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class CommitLost:
    """The commitment or its answer was lost; whether it took effect is unknown."""

    request_id: RequestId
    site_id: SiteId
    node_id: NodeId
    reason: str


Event: TypeAlias = BidsArrived | SiteFailed | Committed | CommitRefused | CommitLost


# -- the machine ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Placement:
    """One request on its way."""

    request: VmRequest
    sites: tuple[SiteId, ...]
    policy: str
    round_count: int = 0
    commit_count: int = 0
    had_conflict: bool = False
    ranked: tuple[RankedCandidate, ...] = ()
    terms: dict[NodeId, dict[str, float]] = field(default_factory=dict)
    left: Iterator[RankedCandidate] = field(default_factory=lambda: iter(()))
    asked: RankedCandidate | None = None
    commit_deadline_s: float = 0.0
    refusals: list[Refusal] = field(default_factory=list)
    silent: set[SiteId] = field(default_factory=set)
    given_up: set[NodeId] = field(default_factory=set)
    closed: set[SiteId] = field(default_factory=set)  # whatever node of theirs were asked


@dataclass(slots=True)
class _Round:
    placements: list[_Placement]
    deadline_s: float
    waiting: set[SiteId]
    bids: dict[SiteId, tuple[Bid, ...]] = field(default_factory=dict)


class MasterAgent:
    """Takes requests at any site of the federation (paper §II-E)."""

    def __init__(
        self,
        *,
        policies: PolicyBook | None = None,
        bid_timeout_s: float = BID_TIMEOUT_S,
        commit_timeout_s: float = COMMIT_TIMEOUT_S,
        rounds_max: int = ROUNDS_MAX,
    ) -> None:
        self._policies = PolicyBook() if policies is None else policies
        self._bid_timeout_s = bid_timeout_s
        self._commit_timeout_s = commit_timeout_s
        self._rounds_max = rounds_max
        self._rounds: dict[int, _Round] = {}
        self._next_round = 1
        self._committing: dict[RequestId, _Placement] = {}
        self._open: set[RequestId] = set()
        self._elected: dict[RequestId, NodeId | None] = {}  # the last REMEMBERED_MAX, oldest first

    def submit(
        self, requests: Sequence[VmRequest], sites: Sequence[SiteId], now_s: float
    ) -> list[Effect]:
        """Begin placing `requests` over `sites`; return the asking (or the refusals).

        Raises:
            InvalidRequest: a request names a policy that does not exist; none is begun.
        """
        placements = []
        for request in requests:
            if request.request_id in self._open:
                raise LocalProtocolError(f"request {request.request_id} is already being placed")
            policy = self._policies.require(request.policy).name
            placements.append(_Placement(request=request, sites=tuple(sites), policy=policy))
        self._open.update(request.request_id for request in requests)
        return self._ask(placements, now_s)

    def receive(self, event: Event, now_s: float) -> list[Effect]:
        """Take one event; late, doubled and unknown ones change nothing that was decided."""
        match event:
            case BidsArrived(site_id=site_id, round_id=round_id, bids=bids):
                return self._bids_arrived(site_id, round_id, bids, now_s)
            case SiteFailed(site_id=site_id, round_id=round_id):
                return self._bids_arrived(site_id, round_id, None, now_s)
            case Committed():
                return self._committed(event, now_s)
            case CommitRefused(request_id=request_id, refusal=refusal):
                placement = self._committing.get(request_id)
                if placement is None or not _is_about(placement, refusal):
                    return []
                placement.refusals.append(refusal)
                if refusal.node_id is None:
                    placement.closed.add(refusal.site_id)
                return self._advance([placement], now_s)
            case CommitLost():
                placement = self._committing.get(event.request_id)
                asked = None if placement is None else placement.asked
                if placement is None or asked is None or not _is_asked(asked, event):
                    return []
                released = self._give_up(placement, asked, event.reason)
                return released + self._advance([placement], now_s)

    def tick(self, now_s: float) -> list[Effect]:
        """Close what is overdue; call at `next_deadline_s`."""
        effects: list[Effect] = []
        due = [key for key, value in self._rounds.items() if value.deadline_s <= now_s]
        for round_id in due:
            effects += self._close(round_id, now_s)
        overdue = [p for p in self._committing.values() if p.commit_deadline_s <= now_s]
        reason = f"no answer to the commitment within {self._commit_timeout_s:g} s"
        for placement in overdue:
            if placement.asked is not None:
                effects += self._give_up(placement, placement.asked, reason)
        return effects + self._advance(overdue, now_s)

    def next_deadline_s(self) -> float | None:
        """Return when `tick` has something to do, or None."""
        rounds = (value.deadline_s for value in self._rounds.values())
        commits = (value.commit_deadline_s for value in self._committing.values())
        return min((*rounds, *commits), default=None)

    def _ask(self, placements: list[_Placement], now_s: float) -> list[Effect]:
        """Open rounds: one for all requests that ask the same sites."""
        effects: list[Effect] = []
        by_sites: dict[tuple[SiteId, ...], list[_Placement]] = {}
        for placement in placements:
            placement.round_count += 1
            placement.had_conflict = False
            by_sites.setdefault(placement.sites, []).append(placement)
        for sites, together in by_sites.items():
            round_id = self._next_round
            self._next_round += 1
            deadline_s = now_s + self._bid_timeout_s
            self._rounds[round_id] = _Round(together, deadline_s, set(sites))
            requests = tuple(placement.request for placement in together)
            effects += [AskSite(site, round_id, requests, deadline_s) for site in sites]
            if not sites:
                effects += self._close(round_id, now_s)
        return effects

    def _bids_arrived(
        self, site_id: SiteId, round_id: int, bids: tuple[Bid, ...] | None, now_s: float
    ) -> list[Effect]:
        current = self._rounds.get(round_id)
        if current is None or site_id not in current.waiting:
            return []
        if bids is not None and len(bids) == len(current.placements):
            current.bids[site_id] = bids
        current.waiting.discard(site_id)
        return [] if current.waiting else self._close(round_id, now_s)

    def _close(self, round_id: int, now_s: float) -> list[Effect]:
        """Rank what was answered, and ask for the first commitments."""
        current = self._rounds.pop(round_id)
        taken: dict[NodeId, _Taken] = {}
        for index, placement in enumerate(current.placements):
            answers = [current.bids[site][index] for site in sorted(current.bids)]
            placement.silent = set(placement.sites) - set(current.bids)
            estimates = [estimate for bid in answers for estimate in bid.estimates]
            if placement.given_up:  # a release on its way must not hit a new promise
                estimates = [e for e in estimates if e.node_id not in placement.given_up]
            placement.refusals += [refusal for bid in answers for refusal in bid.refusals]
            if taken:
                free = [_less_taken(estimate, placement.request, taken) for estimate in estimates]
                placement.had_conflict = None in free
                estimates = [estimate for estimate in free if estimate is not None]
            ranked, barred = self._rank(placement, estimates)
            placement.refusals += barred
            if ranked and len(current.placements) > 1:
                _take(taken, ranked[0].node_id, placement.request)
            placement.ranked = ranked or placement.ranked
            placement.left = iter(ranked)
        return self._advance(current.placements, now_s)

    def _rank(
        self, placement: _Placement, estimates: list[Estimate]
    ) -> tuple[tuple[RankedCandidate, ...], list[Refusal]]:
        """Sort candidates by the policy's score, then by node id (step 4)."""
        if not estimates:
            return (), []
        policy = self._policies.require(placement.policy)
        scores = scored(policy, columns_of(estimates), placement.request)
        barred = [
            Refusal(
                site_id=estimate.site_id,
                node_id=estimate.node_id,
                rule="policy",
                reason=f"policy {policy.name} has no score for it",
            )
            for estimate, score in zip(estimates, scores, strict=True)
            if isnan(score)
        ]
        order = sorted(
            (score, estimate.node_id, index)
            for index, (estimate, score) in enumerate(zip(estimates, scores, strict=True))
            if not isnan(score)
        )
        ranked = tuple(
            RankedCandidate(
                node_id=node_id,
                site_id=estimates[index].site_id,
                score=score,
                terms=estimates[index].costs if place < TERMS_KEPT else {},
            )
            for place, (score, node_id, index) in enumerate(order)
        )
        placement.terms = {estimate.node_id: estimate.costs for estimate in estimates}
        return ranked, barred

    def _advance(self, placements: list[_Placement], now_s: float) -> list[Effect]:
        """Ask each request's next candidate to commit, or end it, or ask afresh."""
        effects: list[Effect] = []
        again = []
        for placement in placements:
            closed = placement.closed
            candidate = next((c for c in placement.left if c.site_id not in closed), None)
            placement.had_conflict = placement.had_conflict or placement.asked is not None
            if candidate is not None and placement.commit_count < COMMITS_MAX:
                placement.asked = candidate
                placement.commit_count += 1
                placement.commit_deadline_s = now_s + self._commit_timeout_s
                self._committing[placement.request.request_id] = placement
                effects.append(
                    Commit(
                        candidate.site_id,
                        candidate.node_id,
                        placement.request,
                        placement.commit_deadline_s,
                    )
                )
                continue
            placement.asked = None
            self._committing.pop(placement.request.request_id, None)
            room = placement.commit_count < COMMITS_MAX and not closed.issuperset(placement.sites)
            if placement.had_conflict and placement.round_count < self._rounds_max and room:
                again.append(placement)
            else:
                effects.append(self._end(placement, None, now_s))
        return effects + (self._ask(again, now_s) if again else [])

    def _give_up(self, placement: _Placement, asked: RankedCandidate, reason: str) -> list[Effect]:
        refusal = Refusal(
            site_id=asked.site_id, node_id=asked.node_id, rule="silent", reason=reason
        )
        placement.refusals.append(refusal)
        placement.given_up.add(asked.node_id)
        return [Release(asked.site_id, asked.node_id, placement.request.request_id)]

    def _committed(self, event: Committed, now_s: float) -> list[Effect]:
        placement = self._committing.get(event.request_id)
        asked = None if placement is None else placement.asked
        if (
            placement is None
            or asked is None
            or (asked.site_id, asked.node_id)
            != (
                event.site_id,
                event.node_id,
            )
        ):
            return self._committed_late(event)
        del self._committing[event.request_id]
        return [self._end(placement, asked, now_s)]

    def _committed_late(self, event: Committed) -> list[Effect]:
        """Give back what another candidate committed, but never what was elected.

        Of a request that is no longer remembered nothing is known, so nothing is undone.
        """
        is_open = event.request_id in self._open
        is_other = self._elected.get(event.request_id, event.node_id) != event.node_id
        if is_open or is_other:
            return [Release(event.site_id, event.node_id, event.request_id)]
        return []

    def _end(self, placement: _Placement, elected: RankedCandidate | None, now_s: float) -> Decided:
        self._open.discard(placement.request.request_id)
        self._elected[placement.request.request_id] = None if elected is None else elected.node_id
        if len(self._elected) > REMEMBERED_MAX:
            del self._elected[next(iter(self._elected))]
        return Decided(
            Decision(
                request_id=placement.request.request_id,
                vm_id=placement.request.vm_id,
                policy=placement.policy,
                decided_s=now_s,
                asked_sites=placement.sites,
                silent_sites=tuple(sorted(placement.silent)),
                ranked=_told(placement, elected),
                refusals=tuple(dict.fromkeys(placement.refusals)),
                elected=None if elected is None else elected.node_id,
                elected_site=None if elected is None else elected.site_id,
            )
        )


def _told(placement: _Placement, elected: RankedCandidate | None) -> tuple[RankedCandidate, ...]:
    """Return the ranking as it is kept: every score, the leaders' terms and the winner's.

    A decision lies in the catalogue of every site for as long as its VM.
    """
    ranked = placement.ranked
    if elected is None or elected.terms:
        return ranked
    terms = placement.terms.get(elected.node_id, {})
    return tuple(replace(c, terms=terms) if c is elected else c for c in ranked)


@dataclass(slots=True)
class _Taken:
    """What earlier requests of the same round will take from a node."""

    vcpu_count: int = 0
    memory_mib: int = 0
    vm_count: int = 0


def _take(taken: dict[NodeId, _Taken], node_id: NodeId, request: VmRequest) -> None:
    entry = taken.setdefault(node_id, _Taken())
    entry.vcpu_count += request.shape.vcpu_count
    entry.memory_mib += request.shape.memory_mib
    entry.vm_count += 1


def _less_taken(
    estimate: Estimate, request: VmRequest, taken: dict[NodeId, _Taken]
) -> Estimate | None:
    """Return the estimate less what the round already gave away, or None when it is full.

    All requests of a round were bid for at once, so each saw every node as if alone.
    """
    less = taken.get(estimate.node_id)
    if less is None:
        return estimate
    costs = dict(estimate.costs)
    costs["vcpu_free"] -= less.vcpu_count
    costs["memory_free_mib"] -= less.memory_mib
    costs["vm_count"] += less.vm_count
    costs["cpu_utilisation"] += less.vcpu_count / max(costs["cpu_count"], 1.0)
    full = (
        costs["vcpu_free"] < request.shape.vcpu_count
        or costs["memory_free_mib"] < request.shape.memory_mib
    )
    return None if full else replace(estimate, costs=costs)


def _is_asked(asked: RankedCandidate, event: Committed | CommitLost) -> bool:
    return (asked.site_id, asked.node_id) == (event.site_id, event.node_id)


def _is_about(placement: _Placement, refusal: Refusal) -> bool:
    asked = placement.asked
    return (
        asked is not None
        and refusal.site_id == asked.site_id
        and refusal.node_id in (None, asked.node_id)
    )


def no_candidate(decision: Decision) -> NoCandidate:
    """Return the error that tells a client why `decision` elected nobody."""
    reasons = [(r.node_id or r.site_id, r.rule, r.reason) for r in decision.refusals]
    reasons += [
        (site, "silent", "the site did not answer in time") for site in decision.silent_sites
    ]
    told = "; ".join(f"{who}: {reason} ({rule})" for who, rule, reason in reasons[:4])
    more = f" and {len(reasons) - 4} more" if len(reasons) > 4 else ""
    return NoCandidate(
        f"no V-node can take it: {told or 'no site was asked'}{more}",
        refusals=reasons,
        hint="each refusal names its rule: make room, or change the request or the contract",
    )
