"""The Local Agent of a site (or of one rack): answers bids from its table, holds promises.

Theory of operation. SeDs push vectors (`update`); a bid is answered at once from what is
known, by hard rules first, then by the columns that a policy will rank. An election comes
back as `reserve`, which checks every rule again: between bid and election another Master
Agent may have taken the place. A reservation is held until it is confirmed (the VM stands
in the site's catalogue), released, or expired; a confirmed one until a vector of its node
shows the VM running, or it is released. So two Master Agents never get the same memory.

Fault model: vectors are lost, late or out of order; Master Agents die between reserve and
confirm; answers are lost and asked for again (`reserve` is idempotent per request).

Invariant: on every node, used (by its last vector) + held ≤ what the node has, for vCPUs,
memory, and for the watts of each power limit as measured and promised.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from nuage.energy.electrical import PowerLimit
from nuage.ids import NodeId, RequestId, VmId
from nuage.model.contract import refusal_of_site
from nuage.model.infrastructure import Datacenter
from nuage.model.placement import Bid, Estimate, EstimationVector, Refusal, VmRequest
from nuage.model.vm import VmShape
from nuage.placement.columns import (
    COLUMN_NAMES,
    Columns,
    FloatArray,
    IndexArray,
)
from nuage.placement.node_rules import RULES_COUNT, CodeArray, NodeRules
from nuage.placement.policies import PolicyBook, score_column
from nuage.placement.row_columns import Picked, Ranking, RowColumns, lowest
from nuage.placement.table import NodeTable

VECTOR_AGE_MAX_S: Final = 30.0  # three reports of a SeD missed
RESERVATION_S: Final = 10.0  # longer than a catalogue write with a quorum behind it
RELEASED_MAX: Final = 4096  # releases remembered, against commitments that they overtook
ESTIMATES_MAX: Final = 16  # per bid: a site's best, by the request's policy

# How long an answer is kept while no vector, promise or rule changes: far under the
# vectors' own age, so nothing that a rule looks at goes stale by it.
KNOWN_S: Final = 0.2

ESTIMATES_KEPT: Final = 1024  # of one shape, between two looks at all rows
RANKINGS_MAX: Final = 8  # policies and preferences whose scores are kept, per shape


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConditions:
    """What a watt costs at the site now: facility overhead, price, carbon."""

    pue: float = 1.24  # the StarDC's, paper §IV-B, until the facility measures its own
    price_eur_per_mwh: float = 0.0
    carbon_g_per_kwh: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A promise of room on a node; unconfirmed it ends at `expires_s`."""

    request_id: RequestId
    vm_id: VmId
    node_id: NodeId
    shape: VmShape
    watts: float
    expires_s: float
    confirmed: bool = False


@dataclass(slots=True)
class _Known:
    """Who can take a VM of one shape, and how good each row is by the policies asked yet."""

    found_s: float
    epoch: int
    position: int  # in the table's log of changes
    broken: CodeArray  # the first rule that each row breaks
    counts: list[int]  # rows by that rule
    is_local: bool  # as `NodeRules.are_local` said of them all
    refusals: tuple[Refusal, ...]
    rankings: dict[tuple[str, float], Ranking] = field(default_factory=dict)
    best: dict[tuple[str, float], tuple[Estimate, ...]] = field(default_factory=dict)
    estimates: dict[int, Estimate] = field(default_factory=dict)  # by row

    def change(self, rows: IndexArray, codes: CodeArray) -> None:
        """Take what rows break by now, and forget what was told of them."""
        for before, after in zip(self.broken[rows].tolist(), codes.tolist(), strict=True):
            self.counts[before] -= 1
            self.counts[after] += 1
        self.broken[rows] = codes
        self.best.clear()
        for row in rows.tolist():
            self.estimates.pop(row, None)


class LocalAgent:
    """Knows the nodes of `site` and answers for them."""

    def __init__(
        self,
        site: Datacenter,
        *,
        policies: PolicyBook | None = None,
        vector_age_max_s: float = VECTOR_AGE_MAX_S,
        reservation_s: float = RESERVATION_S,
        estimates_max: int = ESTIMATES_MAX,
    ) -> None:
        self.site = site
        self.conditions = SiteConditions()
        self._policies = PolicyBook() if policies is None else policies
        self._reservation_s = reservation_s
        self._estimates_max = estimates_max
        self._table = NodeTable()
        self._holds: dict[RequestId, Reservation] = {}
        self._released: dict[tuple[RequestId, NodeId], None] = {}  # oldest first
        self._next_expiry_s = np.inf
        self._rules = NodeRules(
            site, self._table, vector_age_max_s=vector_age_max_s, places_of=self._places_of
        )
        self._known: dict[VmShape, _Known] = {}

    # -- what SeDs, the facility and the rules tell --------------------------------------

    def update(self, vector: EstimationVector) -> None:
        """Take a SeD's vector; a promise that it shows as a running VM is kept and done."""
        if not self._table.put(vector):
            return
        self._rules.watts_changed()
        if self._holds and vector.running:
            running = set(vector.running)
            for hold in [h for h in self._holds.values() if h.node_id == vector.node_id]:
                if hold.vm_id in running:
                    self._drop(hold)

    def forget(self, node_id: NodeId) -> None:
        """Take a node out of the table, with the promises made on it."""
        for hold in [h for h in self._holds.values() if h.node_id == node_id]:
            self._drop(hold)
        self._table.drop(node_id)

    def set_conditions(self, conditions: SiteConditions) -> None:
        """Take the site's PUE, price and carbon of now."""
        self.conditions = conditions
        self._known.clear()

    def set_power_limits(self, limits: Iterable[PowerLimit]) -> None:
        """Take the electrical paths; the site's own capacity is always one of them."""
        self._rules.set_power_limits(limits)
        self._known.clear()

    def set_power_curve(self, node_id: NodeId, watts: Sequence[float]) -> None:
        """Take a node's calibrated curve: watts at 0, 10 … 100 % of CPU."""
        self._table.set_curve(node_id, np.asarray(watts, dtype=np.float64))

    def set_in_service(self, node_ids: Collection[NodeId] | None, *, reason: str = "") -> None:
        """Let rules restrict the nodes that may be used; None lifts the restriction."""
        self._rules.set_in_service(node_ids, reason=reason)
        self._known.clear()

    @property
    def nodes(self) -> tuple[EstimationVector, ...]:
        """The last vector of each node."""
        return tuple(self._table.vectors)

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """Promises that no vector shows yet."""
        return tuple(self._holds.values())

    # -- step 3: estimates ----------------------------------------------------------------

    def bid(self, request: VmRequest, now_s: float) -> Bid:
        """Return the site's best nodes for `request`, and why each other node is none."""
        self._expire(now_s)
        refusal = self._site_refusal(request)
        if refusal is not None:
            return Bid(site_id=self.site.site_id, estimates=(), refusals=(refusal,))
        known = self._known_for(request, now_s)
        return Bid(
            site_id=self.site.site_id,
            estimates=self._best(request, known, now_s),
            refusals=known.refusals,
        )

    def _known_for(self, request: VmRequest, now_s: float) -> "_Known":
        """Return who can take the request; kept per shape, and renewed where rows changed.

        Requests that name nodes or other VMs are worked out afresh.
        """
        names_somebody = (
            request.node_wanted or request.nodes_excluded or request.vms_apart
            or request.nodes_fenced or request.nodes_banned
        )  # fmt: skip
        known = None if names_somebody else self._known.get(request.shape)
        is_current = known is not None and known.epoch == self._table.epoch
        if known is not None and is_current and now_s - known.found_s < KNOWN_S:
            self._renew(known, request, now_s)
            return known
        marginal = self._table.marginal_watts(request.shape.vcpu_count)
        broken = self._rules.broken(request, marginal, now_s)
        counts: list[int] = np.bincount(broken, minlength=RULES_COUNT + 1).tolist()
        known = _Known(
            now_s, self._table.epoch, len(self._table.touched), broken, counts,
            self._rules.are_local(marginal, now_s),
            self._rules.refusals(request, marginal, broken, counts, now_s),
        )  # fmt: skip
        if not names_somebody:
            self._known[request.shape] = known
        return known

    def _renew(self, known: "_Known", request: VmRequest, now_s: float) -> None:
        """Take in what changed since: in a large site that is a node or two of thousands."""
        table, rules = self._table, self._rules
        if known.position == len(table.touched):
            return
        marginal = table.marginal_watts(request.shape.vcpu_count)
        rows = np.array(sorted(set(table.touched[known.position :])), np.intp)
        is_local = rules.are_local(marginal, now_s)
        if is_local and known.is_local:
            codes = rules.broken(request, marginal, now_s, rows)
        else:
            found = rules.broken(request, marginal, now_s)
            rows = np.union1d(rows, np.flatnonzero(found != known.broken))
            codes = found[rows]
        known.change(rows, codes)
        able = rows[codes == 0]
        for (name, preference), ranking in known.rankings.items():
            asked = replace(request, preference=preference)
            ranking.renew(rows, able, self._scored(name, asked, able, now_s))
        known.is_local, known.position = is_local, len(table.touched)
        known.refusals = rules.refusals(request, marginal, known.broken, known.counts, now_s)

    def _site_refusal(self, request: VmRequest) -> Refusal | None:
        site_id = self.site.site_id
        broken = refusal_of_site(request.contract, self.site)
        if broken is not None:
            return Refusal(site_id=site_id, node_id=None, rule=broken.rule, reason=broken.reason)
        rule = reason = ""
        if request.site_wanted is not None and request.site_wanted != site_id:
            rule, reason = "site_wanted", f"{request.site_wanted} was asked for"
        elif request.node_wanted is not None and request.node_wanted not in self._table.row_of:
            rule, reason = "node_wanted", f"{request.node_wanted} is not a node here"
        elif request.sites_near_data and site_id not in request.sites_near_data:
            told = ", ".join(request.sites_near_data)
            rule, reason = "near_data", f"its volumes lie in {told}"
        elif not len(self._table):
            rule, reason = "no_vnode", "no V-node has reported"
        elif request.nodes_fenced and not any(
            node in self._table.row_of for node in request.nodes_fenced
        ):
            rule, reason = "fence", "no node of the VM's fence is here"
        else:
            absent = [vm for vm in request.vms_near if not self._places_of(vm)]
            if absent:
                rule, reason = "near", f"{', '.join(absent)} does not run at this site"
        if not rule:
            return None
        return Refusal(site_id=site_id, node_id=None, rule=rule, reason=reason)

    def _places_of(self, vm_id: VmId) -> set[NodeId]:
        places = set(self._table.rows_of_vm.get(vm_id, ()))
        if self._holds:
            places.update(hold.node_id for hold in self._holds.values() if hold.vm_id == vm_id)
        return places

    def _best(self, request: VmRequest, known: "_Known", now_s: float) -> tuple[Estimate, ...]:
        """Return the `estimates_max` best by the request's policy: DIET's partial ranking.

        Of a stable policy both the scores and the answer are kept.
        """
        policy = self._policies.require(request.policy if request.policy in self._policies else "")
        is_kept = self._policies.is_stable(policy.name)
        key = (policy.name, request.preference)
        found = known.best.get(key)
        if found is not None:
            return found
        able_count = known.counts[0]
        if able_count > self._estimates_max:
            rows = self._ranked(request, policy.name, known, now_s)
        else:
            rows = np.flatnonzero(known.broken == 0)
        found = self._estimates(request, known, rows, now_s)
        if is_kept or len(found) == able_count:
            known.best[key] = found
        return found

    def _ranked(
        self, request: VmRequest, policy_name: str, known: "_Known", now_s: float
    ) -> IndexArray:
        """Return the best of the able rows, in order; the ranking of a stable policy is kept."""
        key = (policy_name, request.preference)
        ranking = known.rankings.get(key)
        if ranking is not None:
            return ranking.best()
        rows = np.flatnonzero(known.broken == 0)
        scores = np.full(len(known.broken), np.nan)
        scores[rows] = self._scored(policy_name, request, rows, now_s)
        if not self._policies.is_stable(policy_name):
            return lowest(scores, self._table.rank, self._estimates_max)
        if len(known.rankings) >= RANKINGS_MAX:
            known.rankings.clear()
        ranking = known.rankings[key] = Ranking(scores, self._table.rank, self._estimates_max)
        return ranking.best()

    def _scored(
        self, policy_name: str, request: VmRequest, rows: IndexArray, now_s: float
    ) -> FloatArray:
        if not len(rows):
            return np.empty(0)
        columns = Columns(
            Picked(self._table.node_ids, rows),
            Picked((self.site.site_id,), np.zeros(len(rows), np.intp)),
            self._columns(request, rows, now_s),
            self._table.lots[rows],
        )
        return score_column(self._policies.require(policy_name), columns, request)

    def _columns(self, request: VmRequest, rows: IndexArray, now_s: float) -> RowColumns:
        return RowColumns(self._table, self.conditions, request.shape.vcpu_count, rows, now_s)

    def _estimates(
        self, request: VmRequest, known: "_Known", rows: IndexArray, now_s: float
    ) -> tuple[Estimate, ...]:
        """Return the rows' estimates; what was told and did not change since is told again."""
        told = known.estimates
        if len(told) > ESTIMATES_KEPT:
            told.clear()
        new = [row for row in rows.tolist() if row not in told]
        if new:
            told.update(zip(new, self._told(request, np.array(new, np.intp), now_s), strict=True))
        return tuple(told[row] for row in rows.tolist())

    def _told(self, request: VmRequest, rows: IndexArray, now_s: float) -> Iterator[Estimate]:
        table, site_id = self._table, self.site.site_id
        block = self._columns(request, rows, now_s).block()
        for row, values in zip(rows.tolist(), block.T.tolist(), strict=True):
            costs = dict(zip(COLUMN_NAMES, values, strict=True))
            if table.extra_count and table.vectors[row].extra:
                costs |= table.vectors[row].extra
            yield Estimate(node_id=table.node_ids[row], site_id=site_id, costs=costs)

    # -- step 5: commitment -----------------------------------------------------------------

    def reserve(self, request: VmRequest, node_id: NodeId, now_s: float) -> Reservation | Refusal:
        """Promise room on `node_id` for `request`, or say which rule forbids it by now.

        Asked again for the same node it returns the promise made; for another node it moves
        an unconfirmed promise there (the Master Agent gave up on the first).
        """
        self._expire(now_s)
        site_id = self.site.site_id
        held = self._holds.get(request.request_id)
        if held is not None:
            if held.node_id == node_id:
                return held
            if held.confirmed:
                reason = f"this request is already placed on {held.node_id}"
                return Refusal(site_id=site_id, node_id=node_id, rule="placed", reason=reason)
            self._drop(held)
        if (request.request_id, node_id) in self._released:
            reason = "the Master Agent has given this candidate up"
            return Refusal(site_id=site_id, node_id=node_id, rule="released", reason=reason)
        refusal = self._site_refusal(request)
        if refusal is not None:
            return refusal
        row = self._table.row_of.get(node_id)
        if row is None:
            reason = "the node has left the site's table"
            return Refusal(site_id=site_id, node_id=node_id, rule="no_vnode", reason=reason)
        watts = float(self._table.marginal_watts(request.shape.vcpu_count)[row])
        told = self._rules.refusal_of(request, row, watts, now_s)
        if told is not None:
            return Refusal(site_id=site_id, node_id=node_id, rule=told[0], reason=told[1])
        reservation = Reservation(
            request_id=request.request_id,
            vm_id=request.vm_id,
            node_id=node_id,
            shape=request.shape,
            watts=watts,
            expires_s=now_s + self._reservation_s,
        )
        self._keep(reservation, sign=1)
        self._holds[request.request_id] = reservation
        self._next_expiry_s = min(self._next_expiry_s, reservation.expires_s)
        return reservation

    def confirm(self, request_id: RequestId) -> Reservation | None:
        """Keep a promise until a vector shows the VM; None when it has expired: reserve again."""
        held = self._holds.get(request_id)
        if held is None or held.confirmed:
            return held
        kept = replace(held, expires_s=np.inf, confirmed=True)
        self._holds[request_id] = kept
        return kept

    def release(self, request_id: RequestId, node_id: NodeId | None = None) -> bool:
        """Give a promise back; False when there is none (any more).

        With `node_id`, only the promise on that node: a release that arrives late must not
        undo what the same request was promised elsewhere since. A release that overtakes its
        commitment bars it.
        """
        if node_id is not None:
            self._released[request_id, node_id] = None
            if len(self._released) > RELEASED_MAX:
                del self._released[next(iter(self._released))]
        held = self._holds.get(request_id)
        if held is None or (node_id is not None and held.node_id != node_id):
            return False
        self._drop(held)
        return True

    def release_vm(self, vm_id: VmId) -> int:
        """Give back every promise made to a VM that failed or was deleted; return how many."""
        held = [hold for hold in self._holds.values() if hold.vm_id == vm_id]
        for hold in held:
            self._drop(hold)
        return len(held)

    def _expire(self, now_s: float) -> None:
        if now_s < self._next_expiry_s:
            return
        for hold in [h for h in self._holds.values() if h.expires_s <= now_s]:
            self._drop(hold)
        self._next_expiry_s = min((h.expires_s for h in self._holds.values()), default=np.inf)

    def _drop(self, hold: Reservation) -> None:
        del self._holds[hold.request_id]
        self._keep(hold, sign=-1)

    def _keep(self, hold: Reservation, *, sign: int) -> None:
        row = self._table.row_of.get(hold.node_id)
        if row is not None:
            self._table.hold(row, hold.shape, watts=hold.watts, sign=sign)
        self._rules.watts_changed()
