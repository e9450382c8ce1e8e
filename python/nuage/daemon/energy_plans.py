"""Plans of one site, carried out on real VMs: migrations through the use case, power by Redfish.

A plan is made from what all reachable sites say of their nodes this moment. Its steps run in the
order that its times imply (`waits_for`), as early as they may; a step that fails takes those that
wait for it along, and the rest goes on. What is left is for the next plan: nothing is undone.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog

from nuage.channel import Handlers, Peer
from nuage.clock import Clock
from nuage.daemon.energy_power import NodeSwitch
from nuage.energy.electrical import PowerLimit
from nuage.errors import Conflict, NuageError, TimedOut
from nuage.iaas.fabric_wishes import site_trunks
from nuage.iaas.machines import MigrateVm, migrate_vm
from nuage.iaas.site import Site
from nuage.iaas.vm_places import nodes_at
from nuage.ids import NodeId, SiteId, UserId, VmId
from nuage.model.energy import EnergyPlan, PlannedStep
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Datacenter, Node, NodeRole
from nuage.model.placement import EstimationVector
from nuage.model.status import Migration
from nuage.model.vm import PowerWish, Vm, VmState
from nuage.placement.planner.plan import Act, Plan
from nuage.placement.planner.schedule import Pace
from nuage.placement.planner.site_plan import SiteView, plan_site, waits_for
from nuage.trust.permissions import Principal

VECTORS_METHOD: Final = "energy.vectors"
ASK_TIMEOUT_S: Final = 3.0
MIGRATION_TIMEOUT_S: Final = 600.0
SETTLE_TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.2
PLANNER: Final = Principal(UserId("planner"), "planner", ())
log = structlog.get_logger("energy")


@dataclass(frozen=True, slots=True)
class AskVectors:
    """Another site plans and asks what there is here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteVectors:
    """What a site's Local Agent knows of its nodes, and its PUE now."""

    vectors: tuple[EstimationVector, ...]
    pue: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a plan of this site keeps to."""

    drain: Collection[NodeId]
    ruled_out: Collection[NodeId]
    kept_on: Collection[NodeId]
    nodes_kept_on: int
    hold_s: float | None
    limits: Sequence[PowerLimit]
    curve_of: Mapping[NodeId, Sequence[float]]
    cores_of: Mapping[VmId, float]


class Planning:
    """Makes this site's plans."""

    def __init__(
        self, site: Site, own: Callable[[], SiteVectors], sites: Callable[[], tuple[SiteId, ...]],
        pace: Pace,
    ) -> None:  # fmt: skip
        self._site = site
        self._own = own
        self._sites = sites
        self._pace = pace

    def register(self, handlers: Handlers) -> None:
        """Enter the method that other sites' planners call."""

        @handlers.method(VECTORS_METHOD, AskVectors, roles={NodeRole.CONTROLLER})
        async def vectors(_peer: Peer, _ask: AskVectors) -> SiteVectors:
            return self._own()

    async def make(self, terms: Terms) -> Plan:
        """Return a checked plan."""
        own = self._own()
        others = await self._ask_others()
        pue_of = {site_id: seen.pue for site_id, seen in others.items()}
        pue_of[self._site.site_id] = own.pue
        index = self._site.index
        view = SiteView(
            site_id=self._site.site_id,
            vectors=[*own.vectors, *(v for seen in others.values() for v in seen.vectors)],
            vms=index.values(Vm),
            contracts={iaas.iaas_id: iaas.contract for iaas in index.values(Iaas)},
            sites=index.values(Datacenter),
            limits=terms.limits,
            pue_of=pue_of,
            curve_of=terms.curve_of,
            cores_of=terms.cores_of,
            drain=terms.drain,
            ruled_out=terms.ruled_out,
            kept_on=terms.kept_on,
            nodes_kept_on=terms.nodes_kept_on,
            nodes_at=partial(nodes_at, index),
            link_bits_of=self._lines(),
        )
        return await asyncio.to_thread(plan_site, view, hold_s=terms.hold_s, pace=self._pace)

    def _lines(self) -> dict[frozenset[SiteId], float]:
        """Return what the best line to each other site promises, as its edges are described."""
        index, own = self._site.index, self._site.site_id
        lines: dict[frozenset[SiteId], float] = {}
        for edge in index.values(Node):
            if edge.site_id == own and NodeRole.EDGE in edge.roles and edge.lines:
                for trunk in site_trunks(index, edge):
                    between = frozenset((own, trunk.there_site))
                    bits_per_s = min(trunk.here.mbit, trunk.there.mbit) * 1e6
                    lines[between] = max(lines.get(between, 0.0), bits_per_s)
        return lines

    async def _ask_others(self) -> dict[SiteId, SiteVectors]:
        sites = [site_id for site_id in self._sites() if site_id != self._site.site_id]
        asked = [
            self._site.others.ask(
                site_id, VECTORS_METHOD, AskVectors(), SiteVectors, timeout_s=ASK_TIMEOUT_S
            )
            for site_id in sites
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found = {}
        for site_id, answer in zip(sites, answers, strict=True):
            if isinstance(answer, SiteVectors):
                found[site_id] = answer
            elif not isinstance(answer, NuageError):
                raise answer
        return found

    def shown(self, plan: Plan, state: str) -> EnergyPlan:
        """Return a plan as people see it."""
        index = self._site.index
        names = {vm.vm_id: vm.name for vm in index.values(Vm)}
        steps = tuple(
            PlannedStep(
                number=number,
                act=step.act.value,
                node_id=step.node_id,
                begin_s=step.begin_s,
                end_s=step.end_s,
                reason=step.reason.value,
                joules=step.joules,
                vm_id=step.vm_id,
                vm_name="" if step.vm_id is None else names.get(step.vm_id, ""),
                from_node=step.from_node,
            )
            for number, step in enumerate(plan.steps)
        )
        pays = plan.pays_after_s
        return EnergyPlan(
            site_id=self._site.site_id,
            made_s=self._site.clock.now_s(),
            state=state,
            steps=steps,
            joules=plan.joules,
            saved_watts=plan.saved_watts,
            pays_after_s=pays if pays != float("inf") else None,
            unsolved=self.unsolved(plan),
        )

    def unsolved(self, plan: Plan) -> tuple[str, ...]:
        """Tell what a plan cannot cure, and where a node is not emptied, who stays and why."""
        running = {
            vm.vm_id: vm
            for vm in self._site.index.values(Vm)
            if vm.node_id is not None and vm.wish is PowerWish.RUNNING
        }
        moved = {step.vm_id for step in plan.steps}
        told = []
        for violation in plan.unsolved:
            names = [running[vm].name if vm in running else vm for vm in violation.vm_ids]
            whom = ", ".join(names) or violation.node_id or ""
            stays = sorted(
                f"{vm.name} stays, {_bound(vm)}"
                for vm in running.values()
                if vm.node_id == violation.node_id and vm.vm_id not in moved
            )
            text = f"{violation.rule}: {whom} {violation.reason}"
            told.append("; ".join((text, *(stays if violation.rule == "drain" else ()))))
        return tuple(told)


def _bound(vm: Vm) -> str:
    """Tell what a VM's owner asks of its place, for somebody who wonders why it does not move."""
    asked = [
        *([f"only on {', '.join(vm.fence)}"] if vm.fence else ()),
        *([f"never on {', '.join(vm.ban)}"] if vm.ban else ()),
        *([f"{vm.shape.preserved_vcpus} vCPUs preserved"] if vm.shape.preserved_vcpus else ()),
        *(["near or apart from others"] if vm.near or vm.apart else ()),
    ]
    return "; ".join(asked) or "no room elsewhere"


class PlanRun:
    """One plan under way."""

    def __init__(self, site: Site, switch: NodeSwitch, clock: Clock, shown: EnergyPlan) -> None:
        self._site = site
        self._switch = switch
        self._clock = clock
        self.shown = replace(shown, state="running")

    async def run(self, plan: Plan) -> None:
        """Carry the plan out; what became of each step stands in `shown`."""
        needs = waits_for(plan)
        ended = [asyncio.Event() for _ in plan.steps]

        async def do(number: int) -> None:
            for earlier in sorted(needs[number]):
                await ended[earlier].wait()
            failed = [n for n in needs[number] if self.shown.steps[n].state != "done"]
            if failed:
                self._mark(number, "skipped", f"step {failed[0]} was not done")
            else:
                await self._do(number)
            ended[number].set()

        async with asyncio.TaskGroup() as tasks:
            for number in range(len(plan.steps)):
                tasks.create_task(do(number))
        states = {step.state for step in self.shown.steps}
        self.shown = replace(self.shown, state="done" if states <= {"done"} else "incomplete")

    async def _do(self, number: int) -> None:
        self._mark(number, "running")
        try:
            await self._act(self.shown.steps[number])
            self._mark(number, "done")
        except NuageError as error:
            log.warning("step failed", step=number, error=error.message)
            self._mark(number, "failed", error.message)

    def _mark(self, number: int, state: str, told: str = "") -> None:
        steps = list(self.shown.steps)
        steps[number] = replace(steps[number], state=state, told=told)
        self.shown = replace(self.shown, steps=tuple(steps))

    async def _act(self, step: PlannedStep) -> None:
        match Act(step.act):
            case Act.POWER_ON:
                await self._switch.wake(step.node_id, step.reason)
            case Act.POWER_OFF:
                await self._sleep(step.node_id)
            case Act.MIGRATE:
                assert step.vm_id is not None
                await self._migrate(step.vm_id, step.node_id)
            case Act.BOOT:
                raise Conflict(f"{step.vm_name} is started by its own request")

    async def _sleep(self, node_id: NodeId) -> None:
        """Switch a node off once what has just left it is gone from the records too."""
        deadline_s = self._clock.monotonic_s() + SETTLE_TIMEOUT_S
        while self._switch.why_busy(node_id) and self._clock.monotonic_s() < deadline_s:
            await self._clock.sleep(POLL_S)
        await self._switch.sleep(node_id)

    async def _migrate(self, vm_id: VmId, to: NodeId) -> None:
        vm = self._site.index.value(Vm, vm_id)
        ask = MigrateVm(iaas=vm.iaas_id, vm=vm_id, node=to)
        await migrate_vm(self._site, PLANNER, ask)
        deadline_s = self._clock.monotonic_s() + MIGRATION_TIMEOUT_S
        while True:
            vm = self._site.index.value(Vm, vm_id)
            arriving = self._site.index.find_value(Migration, vm_id) is not None
            if vm.node_id == to and vm.state is VmState.RUNNING and not arriving:
                return
            if vm.migrating_to is None and vm.node_id != to and vm.state is not VmState.MIGRATING:
                raise Conflict(f"{vm.name} stayed: {vm.failure or vm.state.value}")
            if self._clock.monotonic_s() >= deadline_s:
                raise TimedOut(f"{vm.name} to arrive on {to}", after_s=MIGRATION_TIMEOUT_S)
            await self._clock.sleep(POLL_S)
