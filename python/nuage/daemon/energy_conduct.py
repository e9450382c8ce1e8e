"""Begins a site's plans: evacuations by themselves, savings in automatic mode, others when asked.

A plan is made and carried out by `energy_plans`; here it is decided when, and on which terms.
One plan runs at a time. What did not come through is planned anew from what is then.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

from nuage.channel import Handlers
from nuage.clock import Clock
from nuage.daemon.energy_look import SiteLook
from nuage.daemon.energy_meters import SiteMeters
from nuage.daemon.energy_plans import Planning, PlanRun, SiteVectors, Terms
from nuage.daemon.energy_power import NodeSwitch
from nuage.daemon.process import Tasks
from nuage.errors import Conflict, InvalidRequest
from nuage.iaas.site import Site
from nuage.iaas.vm_places import nodes_at
from nuage.ids import NodeId, SiteId
from nuage.model.energy import EnergyMode, EnergyPlan, PlanAsk
from nuage.model.vm import PowerWish, Vm
from nuage.placement.planner.make import curve_of
from nuage.placement.planner.plan import Act, Plan
from nuage.placement.planner.schedule import Pace
from nuage.placement.rack_agents import SiteAgent

RETRY_S: Final = 30.0  # before a plan that did not come through is made anew


@dataclass(frozen=True, slots=True, kw_only=True)
class ConductParts:
    """What plans are made of and carried out with."""

    site: Site
    agent: SiteAgent
    clock: Clock
    tasks: Tasks
    look: SiteLook
    meters: SiteMeters
    switch: NodeSwitch
    reachable_sites: Callable[[], tuple[SiteId, ...]]
    stir: Callable[[], None]
    pace: Pace


class Conductor:
    """Begins plans of one site."""

    def __init__(self, parts: ConductParts) -> None:
        self._site = parts.site
        self._agent = parts.agent
        self._clock = parts.clock
        self._tasks = parts.tasks
        self._look = parts.look
        self._meters = parts.meters
        self._switch = parts.switch
        self._stir = parts.stir
        self._planning = Planning(parts.site, self._own_vectors, parts.reachable_sites, parts.pace)
        self._run: PlanRun | None = None
        self._shown: EnergyPlan | None = None
        self._planned_s = 0.0
        self._urgent: frozenset[NodeId] = frozenset()
        self._said: tuple[str, ...] = ()  # what could not be cured, as told last
        self._is_planning = False

    def register(self, handlers: Handlers) -> None:
        """Enter the method that other sites' planners call."""
        self._planning.register(handlers)

    def automate(self) -> None:
        """Begin what is due, beside the looks: other sites are asked, and a search takes time."""
        if not self._is_planning:
            self._is_planning = True
            self._tasks.start("planning", self._automate())

    def forget_pace(self) -> None:
        """Plan again at the next look, however lately that was done."""
        self._planned_s = 0.0

    async def _automate(self) -> None:
        try:
            await self._begin_what_is_due()
        finally:
            self._is_planning = False

    async def _begin_what_is_due(self) -> None:
        """Begin what is due: what has to move always, what saves energy only in automatic mode."""
        outlook = self._look.outlook
        assert outlook is not None
        now_s, rules = self._clock.now_s(), self._look.rules
        if self._run is not None or not self._agent.nodes:
            return
        is_automatic = rules.mode is EnergyMode.AUTOMATIC
        to_drain = outlook.to_drain if is_automatic else ()
        urgent = [*self._maintained_and_used(), *self._misplaced(), *to_drain]
        is_new = not self._urgent.issuperset(urgent)
        self._urgent = frozenset(urgent)
        due_s = RETRY_S if urgent else rules.look_every_s
        if is_new:
            due_s = 0.0  # an event is answered by a plan at once; what failed waits
        if now_s - self._planned_s < due_s or not (urgent or is_automatic):
            return
        self._planned_s = now_s
        drain = self._look.out_of_service() if is_automatic else set()
        plan = await self._planning.make(
            self._due_terms(drain, None if urgent else rules.hold_s, is_automatic=is_automatic)
        )
        unsolved = self._planning.unsolved(plan) if urgent else ()
        if urgent and is_automatic and not plan.steps:
            # What cannot be cured is no reason to save nothing elsewhere.
            urgent = []
            plan = await self._planning.make(
                self._due_terms(drain, rules.hold_s, is_automatic=is_automatic)
            )
        is_worth_it = bool(urgent) or plan.pays_after_s <= rules.hold_s
        if self._run is None and plan.steps and is_worth_it:
            self._begin(plan)
        if unsolved != self._said:
            self._said = unsolved
            for text in unsolved:
                self._site.announce("site", self._site.site_id, "plan", f"not solved: {text}")

    def _due_terms(
        self, drain: Collection[NodeId], hold_s: float | None, *, is_automatic: bool
    ) -> Terms:
        terms = self._terms(drain, hold_s)
        if is_automatic:
            return terms
        # What has to move moves, in manual mode too; no button is pressed that nobody asked for.
        return replace(terms, kept_on={vector.node_id for vector in self._agent.nodes})

    def _own_vectors(self) -> SiteVectors:
        return SiteVectors(vectors=self._agent.nodes, pue=self._agent.conditions.pue)

    def _terms(
        self, drain: Collection[NodeId], hold_s: float | None, asked: Collection[NodeId] = ()
    ) -> Terms:
        rules, now_s = self._look.rules, self._clock.now_s()
        ailing = {vector.node_id for vector in self._agent.nodes if vector.maintenance}
        kept_on = {
            vector.node_id
            for vector in self._agent.nodes
            if vector.maintenance
            or now_s - self._switch.woken_s.get(vector.node_id, 0.0)
            < max(curve_of(vector).break_even_s(), rules.look_every_s / 2)
        }
        return Terms(
            drain=drain,
            ruled_out=set(drain) - set(asked) - ailing,
            kept_on=kept_on,
            nodes_kept_on=rules.nodes_kept_on,
            hold_s=hold_s,
            limits=self._meters.limits(now_s),
            curve_of=self._meters.curves,
            cores_of=self._meters.books.vm_cores(),
        )

    def _maintained_and_used(self) -> list[NodeId]:
        return [
            vector.node_id
            for vector in self._agent.nodes
            if vector.maintenance
            and any(
                vm.wish is PowerWish.RUNNING for vm in self._site.index.on_node(Vm, vector.node_id)
            )
        ]

    def _misplaced(self) -> list[NodeId]:
        """Return the nodes that run a VM which its fence or its ban forbids them."""
        index = self._site.index
        return [
            vm.node_id
            for vm in index.values(Vm)
            if (vm.fence or vm.ban)
            and vm.node_id is not None
            and vm.site_id == self._site.site_id
            and vm.wish is PowerWish.RUNNING
            and vm.migrating_to is None
            and (
                (vm.fence and vm.node_id not in nodes_at(index, vm.fence))
                or vm.node_id in nodes_at(index, vm.ban)
            )
        ]

    def _begin(self, plan: Plan) -> EnergyPlan:
        shown = self._planning.shown(plan, "running")
        run = self._run = PlanRun(self._site, self._switch, self._clock, shown)
        acts = [step.act for step in plan.steps]
        moves = acts.count(Act.MIGRATE)
        text = f"a plan begins: {moves} migrations, {len(acts) - moves} power acts"
        self._site.announce("site", self._site.site_id, "plan", text)

        async def carry_out() -> None:
            try:
                await run.run(plan)
            finally:
                self._shown, self._run = run.shown, None
                done = sum(step.state == "done" for step in run.shown.steps)
                told = f"the plan is {run.shown.state}: {done} of {len(acts)} steps"
                self._site.announce("site", self._site.site_id, "plan", told)
                self._stir()

        self._tasks.start("plan", carry_out())
        return run.shown

    # Asked for ----------------------------------------------------------------------------------

    async def what_if(self, ask: PlanAsk) -> EnergyPlan:
        """Return the plan that `ask` would give, and what the rules foresee; nothing is done."""
        plan = await self._planned(ask)
        shown = self._planning.shown(plan, "dry run")
        return replace(shown, foreseen=self._look.foresee(ask))

    async def apply(self, ask: PlanAsk) -> EnergyPlan:
        """Begin the plan that `ask` gives now.

        Raises:
            Conflict: a plan is under way.
        """
        if self._run is not None:
            raise Conflict("a plan is under way", hint="`nuage energy progress` shows it")
        if ask.figures:
            raise InvalidRequest(
                "figures supposed cannot be applied", field="figures",
                hint="post what is true with `nuage energy event`",
            )  # fmt: skip
        plan = await self._planned(ask)
        if self._run is not None:
            raise Conflict("a plan is under way", hint="`nuage energy progress` shows it")
        if not plan.steps:
            return self._planning.shown(plan, "nothing to do")
        return self._begin(plan)

    async def _planned(self, ask: PlanAsk) -> Plan:
        self._look.look()
        for node_id in ask.drain:
            if node_id not in {vector.node_id for vector in self._agent.nodes}:
                raise InvalidRequest(f"{node_id} is not a V-node here that reports", field="drain")
        drain = self._look.out_of_service() | set(ask.drain) | self._look.out_if(ask.figures)
        return await self._planning.make(
            self._terms(drain, self._look.rules.hold_s if ask.consolidate else None, ask.drain)
        )

    def progress(self) -> EnergyPlan | None:
        """Return the plan under way, or the last one."""
        return self._shown if self._run is None else self._run.shown
