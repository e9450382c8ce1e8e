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

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
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
    MEASURED_COLUMNS,
    BoolArray,
    Columns,
    FloatArray,
    IndexArray,
)
from nuage.placement.policies import PolicyBook, scored
from nuage.placement.table import NodeTable

VECTOR_AGE_MAX_S: Final = 30.0  # three reports of a SeD missed
RESERVATION_S: Final = 10.0  # longer than a catalogue write with a quorum behind it
RELEASED_MAX: Final = 4096  # releases remembered, against commitments that they overtook
ESTIMATES_MAX: Final = 16  # per bid: a site's best, by the request's policy

# How long an answer is kept while no vector, promise or rule changes: far under the
# vectors' own age, so nothing that a rule looks at goes stale by it.
KNOWN_S: Final = 0.2

_WATTS_TO_MW: Final = 1e6
_FIRST_DERIVED: Final = len(MEASURED_COLUMNS)


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
    vcpu_count: int
    memory_mib: int
    watts: float
    expires_s: float
    confirmed: bool = False


@dataclass(slots=True)
class _Known:
    """Who can take a VM of one shape: table rows, their columns, and who cannot."""

    found_s: float
    rows: list[int]
    block: FloatArray
    refusals: tuple[Refusal, ...]
    estimates: tuple[Estimate, ...] | None
    columns: Columns | None = None


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
        self._vector_age_max_s = vector_age_max_s
        self._reservation_s = reservation_s
        self._estimates_max = estimates_max
        self._table = NodeTable()
        self._holds: dict[RequestId, Reservation] = {}
        self._released: dict[tuple[RequestId, NodeId], None] = {}  # oldest first
        self._next_expiry_s = np.inf
        self._in_service: frozenset[NodeId] | None = None
        self._service_reason = ""
        self._limits: tuple[PowerLimit, ...] = ()
        self._headroom: tuple[FloatArray, FloatArray] | None = None
        self._known: dict[VmShape, _Known] = {}
        self.set_power_limits(())

    # -- what SeDs, the facility and the rules tell --------------------------------------

    def update(self, vector: EstimationVector) -> None:
        """Take a SeD's vector; a promise that it shows as a running VM is kept and done."""
        if not self._table.put(vector):
            return
        self._changed()
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
        self._changed()

    def set_conditions(self, conditions: SiteConditions) -> None:
        """Take the site's PUE, price and carbon of now."""
        self.conditions = conditions
        self._changed()

    def set_power_limits(self, limits: Iterable[PowerLimit]) -> None:
        """Take the electrical paths; the site's own capacity is always one of them."""
        self._limits = tuple(limits)
        self._changed()

    def set_power_curve(self, node_id: NodeId, watts: Sequence[float]) -> None:
        """Take a node's calibrated curve: watts at 0, 10 … 100 % of CPU."""
        self._table.set_curve(node_id, np.asarray(watts, dtype=np.float64))
        self._changed()

    def set_in_service(self, node_ids: Collection[NodeId] | None, *, reason: str = "") -> None:
        """Let rules restrict the nodes that may be used; None lifts the restriction."""
        self._in_service = None if node_ids is None else frozenset(node_ids)
        self._service_reason = reason
        self._changed()

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
        estimates = known.estimates
        if estimates is None:
            estimates = self._estimates(known, self._best(request, known))
        return Bid(site_id=self.site.site_id, estimates=estimates, refusals=known.refusals)

    def _known_for(self, request: VmRequest, now_s: float) -> "_Known":
        """Return who can take the request; kept per shape while nothing changes.

        Requests that name nodes or other VMs are worked out afresh.
        """
        is_plain = not (request.node_wanted or request.nodes_excluded or request.vms_apart)
        known = self._known.get(request.shape) if is_plain else None
        if known is not None and now_s - known.found_s < KNOWN_S:
            return known
        marginal = self._table.marginal_watts(request.shape.vcpu_count)
        able = self._able(request, marginal, now_s)
        if able.all():
            refusals: tuple[Refusal, ...] = ()
            rows: IndexArray | slice = slice(0, len(able))
            count = len(able)
        else:
            refusals = self._refusals(request, marginal, able, now_s)
            rows = np.flatnonzero(able)
            count = len(rows)
        places = range(count) if isinstance(rows, slice) else rows.tolist()
        block = self._block(rows, count, marginal, now_s)
        known = _Known(now_s, list(places), block, refusals, None)
        if count <= self._estimates_max:
            known.estimates = self._estimates(known, range(count))
        if is_plain:
            self._known[request.shape] = known
        return known

    def _changed(self) -> None:
        self._headroom = None
        self._known.clear()

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

    def _able(self, request: VmRequest, marginal: FloatArray, now_s: float) -> BoolArray:
        """Return which rows break no rule; the order of rules is that of `_refusal_of`."""
        table = self._table
        able: BoolArray = (
            table.usable
            & (table.vcpu_free >= request.shape.vcpu_count)
            & (table.memory_free_mib >= request.shape.memory_mib)
            & (marginal <= self._headroom_watts()[0])
        )
        if now_s - table.oldest_sent_s > self._vector_age_max_s:
            able &= now_s - table.sent_s <= self._vector_age_max_s
        if self._in_service is not None:
            able &= np.fromiter(
                (node in self._in_service for node in table.node_ids), np.bool_, len(table)
            )
        barred = set(request.nodes_excluded)
        for vm_id in request.vms_apart:
            barred |= self._places_of(vm_id)
        for node_id in barred:
            row = table.row_of.get(node_id)
            if row is not None:
                able[row] = False
        if request.node_wanted is not None:
            wanted = table.row_of[request.node_wanted]
            able[:wanted] = False
            able[wanted + 1 :] = False
        return able

    def _refusals(
        self, request: VmRequest, marginal: FloatArray, able: BoolArray, now_s: float
    ) -> tuple[Refusal, ...]:
        site_id = self.site.site_id
        apart = {node: vm for vm in request.vms_apart for node in self._places_of(vm)}
        refusals = []
        for row in np.flatnonzero(~able).tolist():
            rule, reason = self._refusal_of(request, row, float(marginal[row]), apart, now_s)
            refusals.append(
                Refusal(
                    site_id=site_id, node_id=self._table.node_ids[row], rule=rule, reason=reason
                )
            )
        return tuple(refusals)

    def _refusal_of(
        self,
        request: VmRequest,
        row: int,
        marginal_watts: float,
        apart: dict[NodeId, VmId],
        now_s: float,
    ) -> tuple[str, str]:
        table = self._table
        node_id = table.node_ids[row]
        vector = table.vectors[row]
        age_s = now_s - vector.sent_s
        if request.node_wanted is not None and request.node_wanted != node_id:
            return "node_wanted", f"{request.node_wanted} was asked for"
        if node_id in request.nodes_excluded:
            return "excluded", "the request excludes this node"
        if age_s > self._vector_age_max_s:
            return "stale", f"its SeD last reported {age_s:.0f} s ago"
        if vector.maintenance:
            return "maintenance", "the operator has it under maintenance"
        if not vector.in_service:
            return "out_of_service", "its SeD says that it is out of service"
        if self._in_service is not None and node_id not in self._in_service:
            return "out_of_service", self._service_reason or "a rule keeps it out of service"
        vcpu_free = int(table.vcpu_free[row])
        if vcpu_free < request.shape.vcpu_count:
            return "vcpu", f"{vcpu_free} vCPUs free, {request.shape.vcpu_count} asked"
        memory_free_mib = int(table.memory_free_mib[row])
        if memory_free_mib < request.shape.memory_mib:
            return "memory", f"{memory_free_mib} MiB free, {request.shape.memory_mib} MiB asked"
        if node_id in apart:
            return "apart", f"{apart[node_id]} is here"
        headroom, at_limit = self._headroom_watts()
        return "electrical", (
            f"{marginal_watts:.0f} W more, and {self._limit_name(int(at_limit[row]))} "
            f"has {max(float(headroom[row]), 0.0):.0f} W left"
        )

    def _limit_name(self, index: int) -> str:
        return "the site" if index == 0 else self._limits[index - 1].name

    def _headroom_watts(self) -> tuple[FloatArray, FloatArray]:
        """Return per node the watts left on its tightest limit, and that limit's index."""
        if self._headroom is None:
            power = self._table.power_watts
            left = np.full(len(power), self.site.power_capacity_watts - float(power.sum()))
            tightest = np.zeros(len(power))
            for index, limit in enumerate(self._limits, start=1):
                rows = [r for n, r in self._table.row_of.items() if n in limit.node_ids]
                spare = limit.limit_watts - float(power[rows].sum())
                for row in rows:
                    if spare < left[row]:
                        left[row] = spare
                        tightest[row] = index
            self._headroom = (left, tightest)
        return self._headroom

    def _estimates(self, known: "_Known", chosen: Iterable[int]) -> tuple[Estimate, ...]:
        site_id = self.site.site_id
        node_ids = self._table.node_ids
        vectors = self._table.vectors
        with_extra = self._table.extra_count > 0
        indices = list(chosen)
        estimates = []
        for index, values in zip(indices, known.block[:, indices].T.tolist(), strict=True):
            row = known.rows[index]
            costs = dict(zip(COLUMN_NAMES, values, strict=True))
            if with_extra and vectors[row].extra:
                costs |= vectors[row].extra
            estimates.append(Estimate(node_id=node_ids[row], site_id=site_id, costs=costs))
        return tuple(estimates)

    def _block(
        self, rows: IndexArray | slice, count: int, marginal: FloatArray, now_s: float
    ) -> FloatArray:
        block = np.empty((len(COLUMN_NAMES), count))
        self._table.measured_block(rows, now_s, block)
        here = self.conditions
        watts = marginal[rows]
        block[_FIRST_DERIVED + 1] = watts
        block[_FIRST_DERIVED + 2] = here.pue
        block[_FIRST_DERIVED + 3] = here.price_eur_per_mwh
        block[_FIRST_DERIVED + 4] = here.carbon_g_per_kwh
        block[_FIRST_DERIVED + 5] = watts * (here.pue * here.price_eur_per_mwh / _WATTS_TO_MW)
        block[_FIRST_DERIVED + 6] = watts * (here.pue * here.carbon_g_per_kwh / 1000.0)
        return block

    def _columns(self, known: "_Known") -> Columns:
        node_ids = tuple(self._table.node_ids[row] for row in known.rows)
        values = dict(zip(COLUMN_NAMES, known.block, strict=True))
        if self._table.extra_count:
            extras = [self._table.vectors[row].extra for row in known.rows]
            for name in dict.fromkeys(name for extra in extras for name in extra):
                values[name] = np.array([extra.get(name, np.nan) for extra in extras])
        return Columns(node_ids, (self.site.site_id,) * len(node_ids), values)

    def _best(self, request: VmRequest, known: "_Known") -> list[int]:
        """Return the `estimates_max` best by the request's policy: DIET's partial ranking."""
        if known.columns is None:
            known.columns = self._columns(known)
        name = request.policy if request.policy in self._policies else ""
        scores = np.array(scored(self._policies.require(name), known.columns, request))
        order = np.lexsort((self._table.rank[known.rows], scores))  # NaN sorts last
        best: list[int] = order[~np.isnan(scores[order])][: self._estimates_max].tolist()
        return best

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
        marginal = self._table.marginal_watts(request.shape.vcpu_count)
        if not self._able(request, marginal, now_s)[row]:
            apart = {node: vm for vm in request.vms_apart for node in self._places_of(vm)}
            rule, reason = self._refusal_of(request, row, float(marginal[row]), apart, now_s)
            return Refusal(site_id=site_id, node_id=node_id, rule=rule, reason=reason)
        reservation = Reservation(
            request_id=request.request_id,
            vm_id=request.vm_id,
            node_id=node_id,
            vcpu_count=request.shape.vcpu_count,
            memory_mib=request.shape.memory_mib,
            watts=float(marginal[row]),
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
        kept = Reservation(
            request_id=held.request_id,
            vm_id=held.vm_id,
            node_id=held.node_id,
            vcpu_count=held.vcpu_count,
            memory_mib=held.memory_mib,
            watts=held.watts,
            expires_s=np.inf,
            confirmed=True,
        )
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
            self._table.hold(
                row,
                vcpu_count=hold.vcpu_count,
                memory_mib=hold.memory_mib,
                watts=hold.watts,
                sign=sign,
            )
        self._changed()
