"""A site's energy from its meters to its accounts: which reading is believed, who used it.

Theory of operation. Readings of watts go to each node's `NodeMeters`; counters of energy (outlets,
the whole PDU) say how many joules have passed. `settle` shares out what passed since the last
time: by the counter where there is one, else by the believed watts. While a counter is silent
the watts stand in, and what they booked is deducted when it speaks again, so the accounts
always come to the counters' total. What the PDU delivered beyond its known nodes (switches,
edges, itself) is the site's own.

Fault model: meters fall silent, jump, are reset; reports of VMs are late; the process dies between
two savings: the counters' last values are saved with the accounts, so the next look books what
passed meanwhile.

Invariant: Σ accounts = Σ joules that counters and, where none is, readings gave.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Final

from nuage.energy.accounting import Account, EnergyLedger, NodeInterval, VmUse
from nuage.energy.meters import EnergyIntegral, NodeMeters, Reading, RefusedReading
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.model.desired import VnodeReport
from nuage.units import JOULES_PER_KWH

NAMEPLATE_WATTS: Final = 2300.0  # an outlet of 10 A at 230 V, for a node that does not tell
NAMEPLATE_SHARE: Final = 2.0  # of its peak draw: what its supply surely cannot exceed
COUNTER_SILENT_S: Final = 30.0
COUNTER_STEP_JOULES_MAX: Final = 3600.0 * 24 * 7 * NAMEPLATE_WATTS  # a week away, at full draw
REST: Final = "rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class BooksState:
    """What is saved. `counters` are the last values in joules, by node and by PDU."""

    accounts: tuple[Account, ...] = ()
    vm_millijoules: dict[VmId, int] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    stood_in: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a joule of IT costs at the site now."""

    pue: float
    price_eur_per_mwh: float
    carbon_g_per_kwh: float


@dataclass(slots=True)
class _Counter:
    last_joules: float | None = None
    passed_joules: float = 0.0
    read_s: float = 0.0

    def look(self, joules: float, read_s: float) -> float:
        before, self.last_joules, self.read_s = self.last_joules, joules, read_s
        added = 0.0 if before is None else joules - before
        if not 0.0 <= added <= COUNTER_STEP_JOULES_MAX:
            return 0.0  # reset, or another device behind the same name: counting begins anew
        self.passed_joules += added
        return added


@dataclass(slots=True)
class _Node:
    meters: NodeMeters
    integral: EnergyIntegral = field(default_factory=EnergyIntegral)
    by_watts: float = 0.0
    cpu_seconds: dict[VmId, float] = field(default_factory=dict)
    used: dict[VmId, float] = field(default_factory=dict)
    loads: dict[VmId, float] = field(default_factory=dict)
    reported_s: float = 0.0
    idle_watts: float = 0.0
    cpu_count: int = 1
    memory_mib: float = 0.0
    busy_cpu_s: float = 0.0


class SiteBooks:
    """The meters and accounts of one site. A machine: readings and the time in, figures out."""

    def __init__(self, site_id: SiteId, state: BooksState | None = None) -> None:
        kept = state or BooksState()
        self._site_id = site_id
        self.ledger = EnergyLedger(kept.accounts, vm_millijoules=kept.vm_millijoules)
        self._nodes: dict[NodeId, _Node] = {}
        self._counters: dict[str, _Counter] = {
            name: _Counter(last_joules=joules) for name, joules in kept.counters.items()
        }
        self._stood_in: dict[str, float] = dict(kept.stood_in)
        self._settled_s: float | None = None

    @property
    def state(self) -> BooksState:
        """Return what to save."""
        return BooksState(
            accounts=self.ledger.state,
            vm_millijoules=self.ledger.vm_millijoules,
            counters={
                name: counter.last_joules - counter.passed_joules
                for name, counter in self._counters.items()
                if counter.last_joules is not None
            },
            stood_in=dict(self._stood_in),
        )

    def take(self, node_id: NodeId, reading: Reading) -> RefusedReading | None:
        """Take a reading of a node's watts; return why it is not believed, or None."""
        node = self._node(node_id)
        refused = node.meters.take(reading)
        best = node.meters.best(reading.read_s)
        if refused is None and best is reading:
            node.by_watts += node.integral.take(reading)
        return refused

    def take_counter(self, name: str, energy_kwh: float, read_s: float) -> None:
        """Take an energy counter: a node's outlet by the node's id, a PDU by its own name."""
        counter = self._counters.setdefault(name, _Counter())
        counter.look(energy_kwh * JOULES_PER_KWH, read_s)

    def take_report(self, report: VnodeReport, now_s: float) -> None:
        """Take what a V-node says of its VMs' CPU time, and of itself."""
        vector = report.estimate
        node = self._node(report.node_id)
        node.meters.nameplate_watts = max(NAMEPLATE_SHARE * vector.peak_watts, 1.0)
        node.idle_watts, node.cpu_count = vector.idle_watts, max(vector.cpu_count, 1)
        elapsed_s = now_s - node.reported_s
        running = set(vector.running)
        for seen in report.vms:
            before = node.cpu_seconds.get(seen.vm_id)
            node.cpu_seconds[seen.vm_id] = seen.cpu_seconds
            if before is None or seen.vm_id not in running:
                continue
            added = seen.cpu_seconds - before
            added = seen.cpu_seconds if added < 0 else added  # a new process counts from zero
            node.used[seen.vm_id] = node.used.get(seen.vm_id, 0.0) + added
            if elapsed_s > 0:
                node.loads[seen.vm_id] = added / elapsed_s
        for vm_id in [vm_id for vm_id in node.loads if vm_id not in running]:
            del node.loads[vm_id]
        if node.reported_s and elapsed_s > 0:
            node.busy_cpu_s += vector.cpu_utilisation * vector.cpu_count * elapsed_s
        node.reported_s = now_s

    def best(self, node_id: NodeId, now_s: float) -> Reading | None:
        """Return the reading that is believed now: outlet, BMC, RAPL, model; None when silent."""
        return self._node(node_id).meters.best(now_s)

    def vm_cores(self) -> dict[VmId, float]:
        """Return how many cores each running VM kept busy between its last two reports."""
        return {vm: cores for node in self._nodes.values() for vm, cores in node.loads.items()}

    def settle(
        self,
        now_s: float,
        costs: Costs,
        *,
        iaas_of: Mapping[VmId, IaasId],
        memory_of: Mapping[VmId, float],
        memory_mib: Mapping[NodeId, float],
    ) -> float:
        """Share out what passed since the last time; return its joules."""
        begin_s, self._settled_s = self._settled_s or now_s, now_s
        total = 0.0
        counted = 0.0
        for node_id, node in self._nodes.items():
            passed, by_counter = self._passed(node_id, node, now_s)
            counted += by_counter
            uses = tuple(
                VmUse(
                    vm_id=vm_id,
                    iaas_id=iaas_of[vm_id],
                    cpu_s=cpu_s,
                    memory_mib=memory_of.get(vm_id, 0.0),
                )
                for vm_id, cpu_s in sorted(node.used.items())
                if vm_id in iaas_of
            )
            held_mib = sum(use.memory_mib for use in uses)
            interval = NodeInterval(
                site_id=self._site_id,
                begin_s=min(begin_s, now_s),
                end_s=now_s,
                joules=passed,
                idle_watts=node.idle_watts,
                cpu_s=max(node.busy_cpu_s, sum(use.cpu_s for use in uses)),
                memory_mib=max(memory_mib.get(node_id, 0.0), held_mib),
                uses=uses,
            )
            self._book(interval, costs)
            total += passed
            node.used.clear()
            node.busy_cpu_s = 0.0
        return total + self._settle_rest(begin_s, now_s, counted, costs)

    def keep_vms(self, vm_ids: Container[VmId]) -> None:
        """Forget VMs that are gone."""
        self.ledger.keep_vms(vm_ids)
        for node in self._nodes.values():
            node.cpu_seconds = {v: s for v, s in node.cpu_seconds.items() if v in vm_ids}

    def _passed(self, node_id: NodeId, node: _Node, now_s: float) -> tuple[float, float]:
        """Return what to book for a node, and what its counter added."""
        counter = self._counters.get(node_id)
        by_watts, node.by_watts = node.by_watts, 0.0
        if counter is None:
            return by_watts, 0.0
        if now_s - counter.read_s > COUNTER_SILENT_S:
            self._stood_in[node_id] = self._stood_in.get(node_id, 0.0) + by_watts
            return by_watts, 0.0
        added, counter.passed_joules = counter.passed_joules, 0.0
        stood_in = self._stood_in.pop(node_id, 0.0)
        if stood_in > added:
            self._stood_in[node_id] = stood_in - added
        return max(added - stood_in, 0.0), added

    def _settle_rest(self, begin_s: float, now_s: float, counted: float, costs: Costs) -> float:
        """Book what PDUs delivered beyond their nodes to the site's own account."""
        nodes = {str(node_id) for node_id in self._nodes}
        pdus = [counter for name, counter in self._counters.items() if name not in nodes]
        if not pdus:
            return 0.0
        delivered = 0.0
        for counter in pdus:
            if now_s - counter.read_s <= COUNTER_SILENT_S:
                delivered += counter.passed_joules
                counter.passed_joules = 0.0
        rest = delivered - counted + self._stood_in.get(REST, 0.0)
        # Outlets and PDU are not read in the same instant: what is below zero comes next time.
        self._stood_in[REST] = min(rest, 0.0)
        if rest <= 0.0:
            return 0.0
        interval = NodeInterval(
            site_id=self._site_id,
            begin_s=min(begin_s, now_s),
            end_s=now_s,
            joules=rest,
            idle_watts=0.0,
            cpu_s=0.0,
            memory_mib=0.0,
            uses=(),
        )
        self._book(interval, costs)
        return rest

    def _book(self, interval: NodeInterval, costs: Costs) -> None:
        if interval.joules > 0.0:
            self.ledger.add(
                interval,
                pue=costs.pue,
                price_eur_per_mwh=costs.price_eur_per_mwh,
                carbon_g_per_kwh=costs.carbon_g_per_kwh,
            )

    def _node(self, node_id: NodeId) -> _Node:
        known = self._nodes.get(node_id)
        if known is None:
            known = self._nodes[node_id] = _Node(NodeMeters(NAMEPLATE_WATTS))
        return known
