"""Which nodes of a Local Agent's table may take a request, and which rule each other one breaks.

The rules are hard and have an order; a node is refused by the first that it breaks. `broken`
answers for many rows at once by number, `refusal_of` for one with its reason: two forms of the
same rules.

Of a row that did not change no rule can say anything new, but for two: it grows old, and a limit
is used up by the others. `are_local` tells when neither can matter, so that in a large site the
rows that changed are all that is looked at.

Invariant: `broken` is 0 for a row just where `refusal_of` is None.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from nuage.energy.electrical import PowerLimit
from nuage.ids import NodeId, VmId
from nuage.model.infrastructure import Datacenter
from nuage.model.placement import Refusal, VmRequest
from nuage.placement.columns import BoolArray, FloatArray, IndexArray
from nuage.placement.table import NodeTable

# Nodes refused one by one in a bid; of more, each rule is told once with how many break it. A
# decision keeps its refusals for as long as its VM, in the catalogue of every site.
REFUSALS_MAX: Final = 64
RULES_COUNT: Final = 13  # what `_breaking` yields
EVERY_ROW: Final = slice(None)
CodeArray: TypeAlias = npt.NDArray[np.int8]
Rows: TypeAlias = IndexArray | slice


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
        self._limits_of: dict[int, list[int]] = {}  # row: its limits, by number
        self._serving: BoolArray | None = None
        self._spare: list[float] | None = None

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
        self._spare = None

    def are_local(self, marginal: FloatArray, now_s: float) -> bool:
        """Tell whether only rows that changed can have come to break a rule, or ceased to."""
        self._follow()
        if not len(marginal) or now_s - self._table.oldest_sent_s > self._vector_age_max_s:
            return False
        return float(marginal.max()) <= min(self._spare_watts())

    def broken(
        self, request: VmRequest, marginal: FloatArray, now_s: float, rows: Rows = EVERY_ROW
    ) -> CodeArray:
        """Return the number of the first rule that each row breaks, from 1; 0 for none."""
        self._follow()
        codes = np.zeros(len(marginal[rows]), np.int8)
        breaking = tuple(self._breaking(request, marginal, now_s, rows))
        for number in range(RULES_COUNT, 0, -1):
            breaks = breaking[number - 1]
            if breaks is not None:
                codes[breaks] = number
        return codes

    def refusals(
        self,
        request: VmRequest,
        marginal: FloatArray,
        codes: CodeArray,
        counts: Sequence[int],
        now_s: float,
    ) -> tuple[Refusal, ...]:
        """Return why each row that breaks a rule is none, or each rule with how many break it.

        `counts[n]` of the `codes` are n.
        """
        count = len(codes) - counts[0]
        if not count:
            return ()
        if count > REFUSALS_MAX:
            return tuple(self._by_rule(request, marginal, codes, counts, now_s))
        return tuple(
            self._refusal(request, row, float(marginal[row]), now_s)
            for row in np.flatnonzero(codes).tolist()
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
            return "excluded", "it is here now"
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
        spare = self._spare_watts()
        tightest = min((0, *self._limits_of.get(row, ())), key=spare.__getitem__)
        if marginal_watts <= spare[tightest]:
            return None
        return "electrical", (
            f"{marginal_watts:.0f} W more, and {self._limit_name(tightest)} "
            f"has {max(spare[tightest], 0.0):.0f} W left"
        )

    def _refusal(self, request: VmRequest, row: int, watts: float, now_s: float) -> Refusal:
        told = self.refusal_of(request, row, watts, now_s)
        assert told is not None, "a row that is not able breaks a rule"
        return Refusal(
            site_id=self._site.site_id, node_id=self._table.node_ids[row], rule=told[0],
            reason=told[1],
        )  # fmt: skip

    def _by_rule(
        self,
        request: VmRequest,
        marginal: FloatArray,
        codes: CodeArray,
        counts: Sequence[int],
        now_s: float,
    ) -> Iterator[Refusal]:
        """Yield one refusal a rule: how many nodes break it first, and one of them as example."""
        for number, count in enumerate(counts[1:], start=1):
            if not count:
                continue
            row = int((codes == number).argmax())
            found = self._refusal(request, row, float(marginal[row]), now_s)
            if count > 1:
                told = f"as {found.node_id}: {found.reason}"
                found = replace(found, node_id=None, reason=told, node_count=count)
            yield found

    def _breaking(
        self, request: VmRequest, marginal: FloatArray, now_s: float, rows: Rows
    ) -> Iterator[BoolArray | None]:
        """Yield which rows break each rule, in the order of `refusal_of`; None for nobody."""
        table, shape = self._table, request.shape
        wanted, fence = request.node_wanted, request.nodes_fenced
        yield None if wanted is None else ~self._mask((wanted,))[rows]
        yield self._named(request.nodes_excluded, rows)
        yield ~self._mask(fence)[rows] if fence else None
        yield self._named(request.nodes_banned, rows)
        age_s = now_s - table.oldest_sent_s
        is_young = age_s <= self._vector_age_max_s
        yield None if is_young else now_s - table.sent_s[rows] > self._vector_age_max_s
        yield table.maintenance[rows]
        yield ~table.usable[rows]
        yield None if self._serving is None else ~self._serving[rows]
        vcpu_free = table.vcpu_free[rows]
        yield vcpu_free < shape.vcpu_count
        asked = table.vcpus_asked(shape)
        yield None if isinstance(asked, float) else vcpu_free < asked[rows]
        yield table.memory_free_mib[rows] < shape.memory_mib
        yield self._named([n for vm in request.vms_apart for n in self._places_of(vm)], rows)
        yield self._over_limits(marginal, rows)

    def _named(self, node_ids: Collection[NodeId], rows: Rows) -> BoolArray | None:
        return self._mask(node_ids)[rows] if node_ids else None

    def _over_limits(self, marginal: FloatArray, rows: Rows) -> BoolArray | None:
        """Return which rows would draw more than one of their limits leaves; None for nobody."""
        site_spare, *spare = self._spare_watts()
        if not len(marginal) or float(marginal.max()) <= min(site_spare, *spare, np.inf):
            return None
        headroom = np.full(len(marginal), site_spare)
        for watts, limited in zip(spare, self._limit_rows, strict=True):
            headroom[limited] = np.minimum(headroom[limited], watts)
        over: BoolArray = marginal[rows] > headroom[rows]
        return over

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
        self._spare = None
        self._limit_rows = [np.array(self._rows(each.node_ids), np.intp) for each in self._limits]
        self._limits_of = {}
        for number, rows in enumerate(self._limit_rows, start=1):
            for row in rows.tolist():
                self._limits_of.setdefault(row, []).append(number)
        self._serving = None if self._in_service is None else self._mask(self._in_service)

    def _limit_name(self, index: int) -> str:
        return "the site" if index == 0 else self._limits[index - 1].name

    def _spare_watts(self) -> list[float]:
        """Return what is left of the site's capacity, then of each limit."""
        if self._spare is None:
            power = self._table.power_watts
            self._spare = [self._site.power_capacity_watts - float(power.sum())]
            for limit, rows in zip(self._limits, self._limit_rows, strict=True):
                self._spare.append(limit.limit_watts - float(power[rows].sum()))
        return self._spare
