"""Which nodes of a Local Agent's table may take a request, and which rule each other one breaks.

The rules are hard and have an order; a node is refused by the first that it breaks. `able` answers
for all rows at once, `refusal_of` for one with its reason: two forms of the same rules.

Invariant: `able[row]` is True just where `refusal_of(row)` is None.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from nuage.energy.electrical import PowerLimit
from nuage.ids import NodeId, VmId
from nuage.model.infrastructure import Datacenter
from nuage.model.placement import Refusal, VmRequest
from nuage.placement.columns import BoolArray, FloatArray, IndexArray
from nuage.placement.table import NodeTable

# Nodes refused one by one in a bid; of more, each rule is told once with how many break it. A
# decision keeps its refusals for as long as its VM, in the catalogue of every site.
REFUSALS_MAX: Final = 64


class NodeRules:
    """The rules over one table. `places_of` tells on which nodes a VM is, or is promised."""

    def __init__(
        self,
        site: Datacenter,
        table: NodeTable,
        *,
        vector_age_max_s: float,
        places_of: Callable[[VmId], set[NodeId]],
    ) -> None:
        self._site = site
        self._table = table
        self._vector_age_max_s = vector_age_max_s
        self._places_of = places_of
        self._in_service: frozenset[NodeId] | None = None
        self._service_reason = ""
        self._limits: tuple[PowerLimit, ...] = ()
        self._epoch = -1
        self._limit_rows: list[IndexArray] = []
        self._serving: BoolArray | None = None
        self._headroom: tuple[FloatArray, FloatArray] | None = None

    def set_power_limits(self, limits: Iterable[PowerLimit]) -> None:
        """Take the electrical paths; the site's own capacity is always one of them."""
        self._limits = tuple(limits)
        self._epoch = -1

    def set_in_service(self, node_ids: Collection[NodeId] | None, *, reason: str) -> None:
        """Restrict the nodes that may be used; None lifts the restriction."""
        self._in_service = None if node_ids is None else frozenset(node_ids)
        self._service_reason = reason
        self._epoch = -1

    def watts_changed(self) -> None:
        """Forget what the limits leave: a node draws, or is promised, something else."""
        self._headroom = None

    def able(self, request: VmRequest, marginal: FloatArray, now_s: float) -> BoolArray:
        """Return which rows break no rule."""
        self._follow()
        table = self._table
        able: BoolArray = (
            table.usable
            & (table.vcpu_free >= table.vcpus_asked(request.shape))
            & (table.memory_free_mib >= request.shape.memory_mib)
            & (marginal <= self._headroom_watts()[0])
        )
        if now_s - table.oldest_sent_s > self._vector_age_max_s:
            able &= now_s - table.sent_s <= self._vector_age_max_s
        if self._serving is not None:
            able &= self._serving
        barred = set(request.nodes_excluded) | set(request.nodes_banned)
        for vm_id in request.vms_apart:
            barred |= self._places_of(vm_id)
        able[self._rows(barred)] = False
        for wanted in self._only(request):
            able &= self._mask(wanted)
        return able

    def refusals(
        self, request: VmRequest, marginal: FloatArray, able: BoolArray, now_s: float
    ) -> tuple[Refusal, ...]:
        """Return why each row that is not able is none, or each rule with how many break it."""
        refused = np.flatnonzero(~able)
        if len(refused) > REFUSALS_MAX:
            return tuple(self._by_rule(request, marginal, able, now_s))
        return tuple(
            self._refusal(request, row, float(marginal[row]), now_s) for row in refused.tolist()
        )

    def refusal_of(
        self, request: VmRequest, row: int, marginal_watts: float, now_s: float
    ) -> tuple[str, str] | None:
        """Return the first rule that a row breaks, and why; None if it breaks none."""
        self._follow()
        node_id, vector = self._table.node_ids[row], self._table.vectors[row]
        age_s = now_s - vector.sent_s
        if request.node_wanted is not None and request.node_wanted != node_id:
            return "node_wanted", f"{request.node_wanted} was asked for"
        if node_id in request.nodes_excluded:
            return "excluded", "the request excludes this node"
        if request.nodes_fenced and node_id not in request.nodes_fenced:
            return "fence", "the VM's fence leaves this node out"
        if node_id in request.nodes_banned:
            return "ban", "the VM is banned from this node"
        if age_s > self._vector_age_max_s:
            return "stale", f"its SeD last reported {age_s:.0f} s ago"
        if vector.maintenance:
            return "maintenance", "the operator has it under maintenance"
        if not vector.in_service:
            return "out_of_service", "its SeD says that it is out of service"
        if self._in_service is not None and node_id not in self._in_service:
            return "out_of_service", self._service_reason or "a rule keeps it out of service"
        return self._room_refusal(request, row, marginal_watts)

    def _room_refusal(
        self, request: VmRequest, row: int, marginal_watts: float
    ) -> tuple[str, str] | None:
        table, shape = self._table, request.shape
        vcpu_free = int(table.vcpu_free[row])
        asked = np.broadcast_to(table.vcpus_asked(shape), len(table))[row]
        if table.vcpu_free[row] < asked:
            kept = f", {shape.preserved_vcpus} of them preserved" if shape.preserved_vcpus else ""
            rule = "preserve" if vcpu_free >= shape.vcpu_count else "vcpu"
            return rule, f"{vcpu_free} vCPUs free, {shape.vcpu_count} asked{kept}"
        memory_free_mib = int(table.memory_free_mib[row])
        if memory_free_mib < shape.memory_mib:
            return "memory", f"{memory_free_mib} MiB free, {shape.memory_mib} MiB asked"
        node_id = table.node_ids[row]
        for vm_id in request.vms_apart:
            if node_id in self._places_of(vm_id):
                return "apart", f"{vm_id} is here"
        headroom, at_limit = self._headroom_watts()
        if marginal_watts <= headroom[row]:
            return None
        return "electrical", (
            f"{marginal_watts:.0f} W more, and {self._limit_name(int(at_limit[row]))} "
            f"has {max(float(headroom[row]), 0.0):.0f} W left"
        )

    def _refusal(self, request: VmRequest, row: int, watts: float, now_s: float) -> Refusal:
        told = self.refusal_of(request, row, watts, now_s)
        assert told is not None, "a row that is not able breaks a rule"
        return Refusal(
            site_id=self._site.site_id, node_id=self._table.node_ids[row], rule=told[0],
            reason=told[1],
        )  # fmt: skip

    def _by_rule(
        self, request: VmRequest, marginal: FloatArray, able: BoolArray, now_s: float
    ) -> Iterator[Refusal]:
        """Yield one refusal a rule: how many nodes break it first, and one of them as example."""
        left = ~able
        for breaking in self._breaking(request, now_s):
            here = left & breaking
            count = int(np.count_nonzero(here))
            if not count:
                continue
            row = int(here.argmax())
            found = self._refusal(request, row, float(marginal[row]), now_s)
            if count == 1:
                yield found
            else:
                told = f"as {found.node_id}: {found.reason}"
                yield replace(found, node_id=None, reason=told, node_count=count)
            left &= ~here
            if not left.any():
                return

    def _breaking(self, request: VmRequest, now_s: float) -> Iterator[BoolArray]:
        """Yield who breaks each rule, in the order of `refusal_of`."""
        table, shape = self._table, request.shape
        if request.node_wanted is not None:
            yield ~self._mask((request.node_wanted,))
        yield self._mask(request.nodes_excluded)
        if request.nodes_fenced:
            yield ~self._mask(request.nodes_fenced)
        yield self._mask(request.nodes_banned)
        yield now_s - table.sent_s > self._vector_age_max_s
        yield table.maintenance
        yield ~table.usable
        if self._serving is not None:
            yield ~self._serving
        yield table.vcpu_free < shape.vcpu_count
        yield table.vcpu_free < table.vcpus_asked(shape)
        yield table.memory_free_mib < shape.memory_mib
        yield self._mask([node for vm in request.vms_apart for node in self._places_of(vm)])
        yield np.ones(len(table), np.bool_)

    def _only(self, request: VmRequest) -> Iterator[Collection[NodeId]]:
        if request.node_wanted is not None:
            yield (request.node_wanted,)
        if request.nodes_fenced:
            yield request.nodes_fenced

    def _rows(self, node_ids: Collection[NodeId]) -> list[int]:
        return [row for n in node_ids if (row := self._table.row_of.get(n)) is not None]

    def _mask(self, node_ids: Collection[NodeId]) -> BoolArray:
        mask = np.zeros(len(self._table), np.bool_)
        mask[self._rows(node_ids)] = True
        return mask

    def _follow(self) -> None:
        """Find the rows of limits and of nodes in service again, if rows came, went or moved."""
        if self._epoch == self._table.epoch:
            return
        self._epoch = self._table.epoch
        self._headroom = None
        self._limit_rows = [np.array(self._rows(each.node_ids), np.intp) for each in self._limits]
        self._serving = None if self._in_service is None else self._mask(self._in_service)

    def _limit_name(self, index: int) -> str:
        return "the site" if index == 0 else self._limits[index - 1].name

    def _headroom_watts(self) -> tuple[FloatArray, FloatArray]:
        """Return per node the watts left on its tightest limit, and that limit's index."""
        if self._headroom is None:
            power = self._table.power_watts
            left = np.full(len(power), self._site.power_capacity_watts - float(power.sum()))
            tightest = np.zeros(len(power))
            limits = zip(self._limits, self._limit_rows, strict=True)
            for index, (limit, rows) in enumerate(limits, start=1):
                spare = limit.limit_watts - float(power[rows].sum())
                tighter = rows[left[rows] > spare]
                left[tighter] = spare
                tightest[tighter] = index
            self._headroom = (left, tightest)
        return self._headroom
