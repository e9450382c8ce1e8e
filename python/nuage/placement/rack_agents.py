"""Local Agents per rack under the Local Agent of their site: DIET's tree, one level deeper.

The site's agent keeps nothing of its own about nodes: it hands vectors to the rack they stand
in, asks all racks for a bid, and sends on the best of theirs. What spans racks is checked here:
contract, affinity to VMs anywhere in the site, the site's power capacity. Same interface as
`LocalAgent`, so a Master Agent cannot tell.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from heapq import nsmallest
from math import isnan
from typing import TypeAlias

from nuage.energy.electrical import PowerLimit
from nuage.ids import NodeId, RackId, RequestId, VmId
from nuage.model.contract import refusal_of_site
from nuage.model.infrastructure import Datacenter
from nuage.model.placement import Bid, Estimate, EstimationVector, Refusal, VmRequest
from nuage.placement.columns import columns_of
from nuage.placement.local_agent import (
    ESTIMATES_MAX,
    LocalAgent,
    Reservation,
    SiteConditions,
)
from nuage.placement.policies import PolicyBook, scored


class RackAgents:
    """The Local Agent of a site whose racks have their own; `rack_of` tells where a node stands."""

    def __init__(
        self,
        site: Datacenter,
        rack_of: Callable[[NodeId], RackId],
        *,
        policies: PolicyBook | None = None,
        estimates_max: int = ESTIMATES_MAX,
        make: Callable[[Datacenter], LocalAgent] = LocalAgent,
    ) -> None:
        self.site = site
        self._rack_of = rack_of
        self._policies = PolicyBook() if policies is None else policies
        self._estimates_max = estimates_max
        self._make = make
        self.conditions = SiteConditions()
        self._limits: tuple[PowerLimit, ...] = ()
        self._in_service: tuple[Collection[NodeId] | None, str] = (None, "")
        self.racks: dict[RackId, LocalAgent] = {}

    def update(self, vector: EstimationVector) -> None:
        """Hand a vector to its rack; a rack not seen before begins here."""
        rack_id = self._rack_of(vector.node_id)
        rack = self.racks.get(rack_id)
        if rack is None:
            rack = self.racks[rack_id] = self._make(self.site)
            rack.set_conditions(self.conditions)
            rack.set_power_limits(self._limits)
            rack.set_in_service(self._in_service[0], reason=self._in_service[1])
        rack.update(vector)

    def forget(self, node_id: NodeId) -> None:
        """Take a node out of its rack's table."""
        for rack in self.racks.values():
            rack.forget(node_id)

    def set_conditions(self, conditions: SiteConditions) -> None:
        """Take the site's PUE, price and carbon of now."""
        self.conditions = conditions
        for rack in self.racks.values():
            rack.set_conditions(conditions)

    def set_power_limits(self, limits: Iterable[PowerLimit]) -> None:
        """Take the electrical paths, each inside one rack; the site's capacity is kept here.

        A limit over nodes of several racks is enforced by each rack on its own nodes only;
        give such a site one `LocalAgent` instead.
        """
        self._limits = tuple(limits)
        for rack in self.racks.values():
            rack.set_power_limits(self._limits)

    def set_power_curve(self, node_id: NodeId, watts: Sequence[float]) -> None:
        """Take a node's calibrated curve; the node has reported before."""
        rack = self.racks.get(self._rack_of(node_id))
        if rack is not None:
            rack.set_power_curve(node_id, watts)

    def set_in_service(self, node_ids: Collection[NodeId] | None, *, reason: str = "") -> None:
        """Let rules restrict the nodes that may be used; None lifts the restriction."""
        self._in_service = (node_ids, reason)
        for rack in self.racks.values():
            rack.set_in_service(node_ids, reason=reason)

    @property
    def nodes(self) -> tuple[EstimationVector, ...]:
        """The last vector of each node of all racks."""
        return tuple(vector for rack in self.racks.values() for vector in rack.nodes)

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """Promises of all racks that no vector shows yet."""
        return tuple(hold for rack in self.racks.values() for hold in rack.reservations)

    @property
    def headroom_watts(self) -> float:
        """What the site's capacity leaves, promises counted."""
        drawn = sum(vector.power_watts for vector in self.nodes)
        return self.site.power_capacity_watts - drawn - sum(h.watts for h in self.reservations)

    def bid(self, request: VmRequest, now_s: float) -> Bid:
        """Return the best of the racks' bids, and every refusal."""
        refusal = self._site_refusal(request)
        if refusal is not None:
            return Bid(site_id=self.site.site_id, estimates=(), refusals=(refusal,))
        inner = replace(request, vms_near=())
        bids = [rack.bid(inner, now_s) for rack in self._racks_for(request)]
        refusals = [refusal for bid in bids for refusal in bid.refusals]
        headroom = self.headroom_watts
        able: list[Estimate] = []
        for estimate in (estimate for bid in bids for estimate in bid.estimates):
            watts = estimate.costs["marginal_watts"]
            if watts <= headroom:
                able.append(estimate)
            else:
                refusals.append(self._too_much(estimate.node_id, watts, headroom))
        return Bid(
            site_id=self.site.site_id,
            estimates=self._best(request, able),
            refusals=tuple(refusals),
        )

    def reserve(self, request: VmRequest, node_id: NodeId, now_s: float) -> Reservation | Refusal:
        """Promise room in the node's rack, within the site's capacity."""
        for rack in self.racks.values():
            held = next((h for h in rack.reservations if h.request_id == request.request_id), None)
            if held is not None and held.node_id != node_id and not held.confirmed:
                rack.release(request.request_id)
            elif held is not None and held.node_id != node_id:
                reason = f"this request is already placed on {held.node_id}"
                return self._refusal(node_id, "placed", reason)
        refusal = self._site_refusal(request)
        if refusal is not None:
            return refusal
        rack_found = self.racks.get(self._rack_of(node_id))
        if rack_found is None:
            return self._refusal(node_id, "no_vnode", "the node has left the site's table")
        headroom = self.headroom_watts
        before = set(rack_found.reservations)
        promised = rack_found.reserve(replace(request, vms_near=()), node_id, now_s)
        is_new = isinstance(promised, Reservation) and promised not in before
        if isinstance(promised, Reservation) and is_new and promised.watts > headroom:
            rack_found.release(request.request_id)
            return self._too_much(node_id, promised.watts, headroom)
        return promised

    def confirm(self, request_id: RequestId) -> Reservation | None:
        """Keep a promise until a vector shows the VM; None when it has expired."""
        kept = (rack.confirm(request_id) for rack in self.racks.values())
        return next((hold for hold in kept if hold is not None), None)

    def release(self, request_id: RequestId, node_id: NodeId | None = None) -> bool:
        """Give a promise back; a late release bars its node, as in `LocalAgent`."""
        racks = self.racks.values() if node_id is None else self._rack_holding(node_id)
        return any(rack.release(request_id, node_id) for rack in racks)  # one rack holds it

    def release_vm(self, vm_id: VmId) -> int:
        """Give back every promise made to a VM."""
        return sum(rack.release_vm(vm_id) for rack in self.racks.values())

    def _rack_holding(self, node_id: NodeId) -> list[LocalAgent]:
        rack = self.racks.get(self._rack_of(node_id))
        return [] if rack is None else [rack]

    def _racks_for(self, request: VmRequest) -> list[LocalAgent]:
        if request.node_wanted is not None:
            return self._rack_holding(request.node_wanted)
        return list(self.racks.values())

    def _site_refusal(self, request: VmRequest) -> Refusal | None:
        broken = refusal_of_site(request.contract, self.site)
        if broken is not None:
            return self._refusal(None, broken.rule, broken.reason)
        if not self.racks:
            return self._refusal(None, "no_vnode", "no V-node has reported")
        wanted = request.node_wanted
        if wanted is not None and not any(v.node_id == wanted for v in self.nodes):
            return self._refusal(None, "node_wanted", f"{wanted} is not a node here")
        if request.vms_near:
            here = {vm for vector in self.nodes for vm in vector.running}
            here |= {hold.vm_id for hold in self.reservations}
            absent = [vm for vm in request.vms_near if vm not in here]
            if absent:
                told = f"{', '.join(absent)} does not run at this site"
                return self._refusal(None, "near", told)
        return None

    def _best(self, request: VmRequest, able: list[Estimate]) -> tuple[Estimate, ...]:
        if len(able) <= self._estimates_max:
            return tuple(able)
        name = request.policy if request.policy in self._policies else ""
        scores = scored(self._policies.require(name), columns_of(able), request)
        chosen = nsmallest(
            self._estimates_max,
            (index for index, score in enumerate(scores) if not isnan(score)),
            key=lambda index: (scores[index], able[index].node_id),
        )
        return tuple(able[index] for index in chosen)

    def _too_much(self, node_id: NodeId, watts: float, headroom_watts: float) -> Refusal:
        told = f"{watts:.0f} W more, and the site has {max(headroom_watts, 0.0):.0f} W left"
        return self._refusal(node_id, "electrical", told)

    def _refusal(self, node_id: NodeId | None, rule: str, reason: str) -> Refusal:
        return Refusal(site_id=self.site.site_id, node_id=node_id, rule=rule, reason=reason)


# What stands for a site in placement: one Local Agent, or one per rack.
SiteAgent: TypeAlias = LocalAgent | RackAgents
