"""A site's energy in the running product: meters in, conditions and nodes in service out.

Theory of operation. `look` takes the figures of now (weather, price, carbon, events), has the
steward set what a watt costs and which nodes serve, settles the books and keeps sleeping nodes
in the table; it waits on nothing. It runs every `LOOK_EVERY_S` and at once when something
happens: an event posted, rules changed, a probe that moved, a price or a dated plan that begins.
What follows from a look (a record for the other sites, a plan that drains) runs beside it.

Fault model: any meter, source, BMC or site may be silent. A figure that is missing leaves its
rules as they stand; a node that sleeps on purpose is not lost; the books are on disk every
`SAVE_EVERY_S`, and the meters' counters bring back what passed in between.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.channel import Handlers
from nuage.clock import Clock
from nuage.daemon.configuration import ControllerConfiguration
from nuage.daemon.energy_figures import EventFigures, SiteFacts, is_news, node_watts, site_energy
from nuage.daemon.energy_plans import Planning, PlanRun, SiteVectors, Terms
from nuage.daemon.energy_power import NodeSwitch
from nuage.daemon.energy_sources import Carbon, Figure, Outside, PduReader, PduSeen, Price
from nuage.daemon.hardware import OpenBmc, redfish_bmcs
from nuage.daemon.process import Tasks
from nuage.energy.accounting import LedgerRow
from nuage.energy.books import BooksState, Costs, SiteBooks
from nuage.energy.cooling import CoolingControl, CoolingModel
from nuage.energy.meters import MeterSource, Reading
from nuage.energy.power_curve import CurveFit, PowerCurve
from nuage.energy.rules import ShareController, nodes_in_service, rehearse
from nuage.errors import Conflict, InvalidRequest, NuageError
from nuage.iaas.index import Change
from nuage.iaas.site import Site
from nuage.ids import IaasId, NodeId, PduId, RackId, SiteId, VmId
from nuage.model.desired import VnodeReport
from nuage.model.energy import (
    EnergyMode,
    EnergyPlan,
    EnergyRow,
    EnergyRules,
    ForeseenHour,
    PlanAsk,
    SiteEnergy,
    VmEnergy,
)
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Datacenter, Node, Pdu
from nuage.model.placement import EstimationVector
from nuage.model.status import Migration
from nuage.model.vm import PowerWish, Vm
from nuage.placement.local_agent import LocalAgent
from nuage.placement.planner.make import curve_of
from nuage.placement.planner.plan import Act, Plan
from nuage.placement.planner.schedule import Pace
from nuage.placement.steward import Outlook, SiteFigures, Steward
from nuage.trust.files import write_atomically

LOOK_EVERY_S: Final = 10.0
SAVE_EVERY_S: Final = 30.0
RETRY_S: Final = 30.0  # before a plan that did not come through is made anew
PROBE_STEP_K: Final = 0.5  # a probe that moved by so much is worth a look at once
CURVE_RATE: Final = 0.05
CURVE_READING_AGE_S: Final = 3.0  # the load must be of the same moment
HOUR_S: Final = 3600.0
STATE_FILE: Final = "energy.json"
SOURCES: Final = {
    "outlet": MeterSource.OUTLET, "bmc": MeterSource.BMC,
    "rapl": MeterSource.RAPL, "model": MeterSource.MODEL,
}  # fmt: skip
log = structlog.get_logger("energy")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptState:
    """What a restart must not lose."""

    books: BooksState = field(default_factory=BooksState)
    sleeping: dict[NodeId, EstimationVector] = field(default_factory=dict)
    curves: dict[NodeId, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What of the controller the keeper works with."""

    site: Site
    agent: LocalAgent
    datacenter: Datacenter
    clock: Clock
    tasks: Tasks
    is_connected: Callable[[NodeId], bool]
    on_lost: Callable[[NodeId], None]
    reachable_sites: Callable[[], tuple[SiteId, ...]]
    open_bmc: OpenBmc | None = None  # None: Redfish


class EnergyKeeper:
    """Keeps one site's energy (`iaas.site.Steering`)."""

    def __init__(self, configuration: ControllerConfiguration, around: Surroundings) -> None:
        self._around = around
        self._site = around.site
        self._agent = around.agent
        self._clock = around.clock
        self._configuration = configuration
        energy = configuration.energy
        self._path = configuration.state_dir / STATE_FILE
        kept = _load(self._path)
        self.books = SiteBooks(self._site.site_id, kept.books)
        self.switch = NodeSwitch(
            around.site,
            around.agent,
            around.open_bmc or redfish_bmcs(configuration.bmc_login_file, around.clock),
            around.clock,
            is_connected=around.is_connected,
            on_lost=around.on_lost,
        )
        self.switch.sleeping.update(kept.sleeping)
        self._fits: dict[NodeId, CurveFit] = {}
        self._kept_curves = dict(kept.curves)
        self._outside = Outside(energy, around.datacenter, around.clock)
        self._price = Price(energy.tariff_file)
        self._carbon = Carbon(energy, configuration.state_dir, around.clock)
        self.events = EventFigures()
        self._controller = ShareController(())
        self._cooling = CoolingModel(
            set_point_c=energy.set_point_c,
            control=CoolingControl(energy.cooling),
            pue_free=energy.pue_free,
            pue_conditioned=energy.pue_conditioned,
        )
        self._steward = Steward(self._agent, self._controller, self._cooling)
        self._facts = SiteFacts(self._site.index, self._site.site_id)
        self.pdus: dict[str, PduSeen] = {}
        self._planning = Planning(
            self._site,
            self._own_vectors,
            around.reachable_sites,
            Pace(site_bits_per_s=energy.migration_bits_per_s),
        )
        self.outlook: Outlook | None = None
        self._sources: dict[str, Figure] = {}
        self._stirred = asyncio.Event()
        self._run: PlanRun | None = None
        self._shown: EnergyPlan | None = None
        self._planned_s = 0.0
        self._saved_s = 0.0
        self._is_planning = False

    # Life ---------------------------------------------------------------------------------------

    def start(self, handlers: Handlers) -> None:
        """Begin to read and to look."""
        self._planning.register(handlers)
        energy, login = self._configuration.energy, self._configuration.bmc_login_file
        tasks = self._around.tasks
        if login is not None:
            for rack, url in energy.pdus.items():
                reader = PduReader(rack, url, login, self._clock, self._pdu_read)
                self.pdus[rack] = reader.seen
                tasks.keep(f"PDU {rack}", reader.run)
        if energy.eco2mix:
            tasks.keep("éCO2mix", lambda: self._carbon.run(self.stir))
        tasks.keep("energy", self._watch)

    async def close(self) -> None:
        """Write the books down."""
        self._save()

    def stir(self) -> None:
        """Have a look taken at once."""
        self._stirred.set()

    async def _watch(self) -> None:
        tasks = self._around.tasks
        await self._publish_pdus()
        while True:
            self._stirred.clear()
            self.look()
            await self._publish()
            if not self._is_planning:
                self._is_planning = True
                tasks.start("planning", self._automate())
            if self._clock.now_s() - self._saved_s >= SAVE_EVERY_S:
                self._save()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s()):
                    await self._stirred.wait()

    def _wait_s(self) -> float:
        """Return until when nothing is foreseen, at most `LOOK_EVERY_S`."""
        now_s = self._clock.now_s()
        moments = [now_s + LOOK_EVERY_S]
        changes_s = self._price.next_change_s(now_s, HOUR_S)
        if changes_s is not None:
            moments.append(changes_s)
        for plan in self.rules.plans:
            moments += [moment for moment in (plan.begin_s, plan.end_s) if moment > now_s]
        moments += [moment for moment in self.events.ends() if moment > now_s]
        return max(min(moments) - now_s, 0.05)

    def _save(self) -> None:
        curves = {node_id: fit.curve().watts for node_id, fit in self._fits.items()}
        state = KeptState(
            books=self.books.state,
            sleeping=dict(self.switch.sleeping),
            curves=self._kept_curves | curves,
        )
        write_atomically(self._path, msgspec.json.encode(state))
        self._saved_s = self._clock.now_s()

    # Looking ------------------------------------------------------------------------------------

    @property
    def rules(self) -> EnergyRules:
        """What the operator wants; nothing special until told."""
        own = self._site.site_id
        return self._site.index.find_value(EnergyRules, own) or EnergyRules(site_id=own)

    def figures(self, now_s: float) -> SiteFigures:
        """Return the figures of now; an event that holds wins over what is measured."""
        probes = [
            seen.outside_celsius
            for seen in self.pdus.values()
            if seen.outside_celsius is not None and not seen.is_silent(now_s)
        ]
        self._sources = {
            "outside": self._outside.now(probes[0] if probes else None),
            "price": self._price.now(now_s),
            "carbon": self._carbon.now(now_s),
        }
        told = self.events.at(now_s)
        for name, figure in (
            ("outside", "temperature_c"),
            ("price", "price_eur_per_mwh"),
            ("carbon", "carbon_g_per_kwh"),
        ):
            if figure in told:
                self._sources[name] = Figure(told[figure], "event")
        return SiteFigures(
            dry_bulb_c=self._sources["outside"].value,
            price_eur_per_mwh=self._sources["price"].value,
            price_index=told.get("price_index", self._price.index(now_s)),
            carbon_g_per_kwh=self._sources["carbon"].value,
            grid_alert=told.get("grid_alert"),
        )

    def look(self) -> Outlook:
        """Take the figures of now and let placement know, before this returns."""
        now_s = self._clock.now_s()
        rules = self.rules
        self._controller.rules, self._controller.plans = rules.rules, rules.plans
        self._controller.ramp_per_min = rules.ramp_per_min
        self.switch.refresh()
        outlook = self._steward.look(self.figures(now_s), now_s)
        self._agent.set_power_limits(self._facts.limits(
            self.pdus, self._configuration.energy.feed_amps,
            self._around.datacenter.power_capacity_watts, now_s,
        ))  # fmt: skip
        self._settle(now_s, outlook)
        for node_id, fit in self._fits.items():
            self._agent.set_power_curve(node_id, fit.curve().watts)
        self._tell_share(outlook)
        self.outlook = outlook
        return outlook

    def _tell_share(self, outlook: Outlook) -> None:
        before = 1.0 if self.outlook is None else self.outlook.decision.wanted
        if outlook.decision.wanted != before:
            because = " and ".join(outlook.decision.because) or "calm again"
            text = f"{because}: {outlook.decision.wanted:.0%} of the nodes are to be in service"
            self._site.announce("site", self._site.site_id, "energy", text)

    def _settle(self, now_s: float, outlook: Outlook) -> None:
        vms = self._site.index.values(Vm)
        here = outlook.conditions
        self.books.settle(
            now_s,
            Costs(
                pue=here.pue,
                price_eur_per_mwh=here.price_eur_per_mwh,
                carbon_g_per_kwh=here.carbon_g_per_kwh,
            ),
            iaas_of={vm.vm_id: vm.iaas_id for vm in vms},
            memory_of={vm.vm_id: float(vm.shape.memory_mib) for vm in vms},
            memory_mib={n.node_id: float(n.memory_mib) for n in self._facts.nodes()},
        )
        self.books.keep_vms({vm.vm_id for vm in vms})

    # What the controller tells ------------------------------------------------------------------

    def is_asleep(self, node_id: NodeId) -> bool:
        """Tell whether a node is silent on purpose."""
        return self.switch.is_asleep(node_id)

    def take_report(self, report: VnodeReport, vector: EstimationVector) -> EstimationVector | None:
        """Return the vector with the meter that is believed, None of a node that falls asleep."""
        now_s = self._clock.now_s()
        if not self.switch.awake(vector):
            return None
        node_id = vector.node_id
        self.books.take_report(report, now_s)
        source = SOURCES.get(vector.power_source, MeterSource.MODEL)
        self.books.take(node_id, Reading(source, vector.power_watts, vector.power_read_s))
        best = self.books.best(node_id, now_s)
        if best is None:
            return vector
        if best.source is MeterSource.OUTLET and best.age_s(now_s) < CURVE_READING_AGE_S:
            self._fit(vector).take(vector.cpu_utilisation, best.power_watts)
        return replace(
            vector,
            power_watts=best.power_watts,
            power_source=best.source.name.lower(),
            power_read_s=best.read_s,
        )

    def _fit(self, vector: EstimationVector) -> CurveFit:
        fit = self._fits.get(vector.node_id)
        if fit is None:
            start = curve_of(vector)
            known = self._kept_curves.get(vector.node_id)
            if known is not None:
                start = PowerCurve(watts=known)
            fit = self._fits[vector.node_id] = CurveFit(start, rate=CURVE_RATE)
        return fit

    def _pdu_read(self, seen: PduSeen) -> None:
        """Take a PDU's reading: each node's outlets, the whole, the probe outside."""
        for node in self._facts.nodes():
            watts = node_watts(node, seen)
            if watts is not None:
                self.books.take(node.node_id, Reading(MeterSource.OUTLET, watts, seen.read_s))
        for name, energy_kwh in self._facts.counters(seen):
            self.books.take_counter(name, energy_kwh, seen.read_s)
        known = self._sources.get("outside", Figure(None)).value
        celsius = seen.outside_celsius
        if celsius is not None and (known is None or abs(celsius - known) >= PROBE_STEP_K):
            self.stir()

    def on_change(self, change: Change) -> None:
        """Wake a node that a VM was placed on; look again when rules or maintenance changed."""
        value = None if change.after is None else change.after.value
        match value:
            case EnergyRules() if value.site_id == self._site.site_id:
                self.look()
                self.stir()
            case Vm() if value.wish is PowerWish.RUNNING and value.node_id is not None:
                self._wake_for(value.node_id, value.name)
            case Migration():
                self._wake_for(value.target_node, value.vm_id)
            case Node() if value.site_id == self._site.site_id:
                self._maintained(value)
            case _:
                pass

    def _wake_for(self, node_id: NodeId, whom: str) -> None:
        node = self._site.index.find_value(Node, node_id)
        if node is None or node.site_id != self._site.site_id or node_id in self.switch.waking:
            return
        if self.is_asleep(node_id):
            wake = self.switch.wake(node_id, f"{whom} was placed there")
            self._around.tasks.start(f"wake {node_id}", wake)

    def _maintained(self, node: Node) -> None:
        vector = next((v for v in self._agent.nodes if v.node_id == node.node_id), None)
        if vector is not None and vector.maintenance != node.maintenance:
            self._agent.update(replace(vector, maintenance=node.maintenance))
            self._planned_s = 0.0
            self.stir()

    # Publishing ---------------------------------------------------------------------------------

    async def _publish(self) -> None:
        assert self.outlook is not None
        now_s = self._clock.now_s()
        fresh = site_energy(
            self.outlook,
            facts=self._facts,
            pdus=self.pdus,
            sources=self._sources,
            best=lambda node_id: self.books.best(node_id, now_s),
            power=self.switch.state_of,
            boundary=self._configuration.energy.boundary,
            mode=self.rules.mode,
            now_s=now_s,
        )
        known = self._site.index.find_value(SiteEnergy, self._site.site_id)
        if known is None or is_news(known, fresh):
            await self._site.save(fresh)

    async def _publish_pdus(self) -> None:
        own = self._site.site_id
        for rack, url in self._configuration.energy.pdus.items():
            pdu = Pdu(
                pdu_id=PduId(f"{own}-{rack}-pdu"), site_id=own, rack_id=RackId(f"{own}-{rack}"),
                name=f"{own}-{rack}-pdu", url=url,
            )  # fmt: skip
            if self._site.index.find_value(Pdu, pdu.pdu_id) != pdu:
                await self._site.save(pdu)

    # Planning -----------------------------------------------------------------------------------

    def _own_vectors(self) -> SiteVectors:
        return SiteVectors(vectors=self._agent.nodes, pue=self._agent.conditions.pue)

    def _terms(self, drain: Collection[NodeId], hold_s: float | None) -> Terms:
        rules, now_s = self.rules, self._clock.now_s()
        kept_on = {
            vector.node_id
            for vector in self._agent.nodes
            if vector.maintenance
            or now_s - self.switch.woken_s.get(vector.node_id, 0.0)
            < max(curve_of(vector).break_even_s(), rules.look_every_s / 2)
        }
        return Terms(
            drain=drain,
            kept_on=kept_on,
            nodes_kept_on=rules.nodes_kept_on,
            hold_s=hold_s,
            limits=self._facts.limits(
                self.pdus, self._configuration.energy.feed_amps,
                self._around.datacenter.power_capacity_watts, now_s,
            ),
            curve_of={node_id: fit.curve().watts for node_id, fit in self._fits.items()},
            cores_of=self.books.vm_cores(),
        )  # fmt: skip

    def _maintained_and_used(self) -> list[NodeId]:
        return [
            vector.node_id
            for vector in self._agent.nodes
            if vector.maintenance
            and any(
                vm.wish is PowerWish.RUNNING for vm in self._site.index.on_node(Vm, vector.node_id)
            )
        ]

    async def _automate(self) -> None:
        """Begin what is due, beside the looks: other sites are asked, and a search takes time."""
        try:
            await self._begin_what_is_due()
        finally:
            self._is_planning = False

    async def _begin_what_is_due(self) -> None:
        """Begin what is due: evacuations always, what saves energy only in automatic mode."""
        assert self.outlook is not None
        now_s, rules = self._clock.now_s(), self.rules
        if self._run is not None or not self._agent.nodes:
            return
        is_automatic = rules.mode is EnergyMode.AUTOMATIC
        to_drain = self.outlook.to_drain if is_automatic else ()
        urgent = [*self._maintained_and_used(), *to_drain]
        due_s = RETRY_S if urgent else rules.look_every_s
        if now_s - self._planned_s < due_s or not (urgent or is_automatic):
            return
        self._planned_s = now_s
        drain = self._to_drain(set()) if is_automatic else set()
        plan = await self._planning.make(self._terms(drain, None if urgent else rules.hold_s))
        is_worth_it = bool(urgent) or plan.pays_after_s <= rules.hold_s
        if self._run is None and plan.steps and is_worth_it:
            self._begin(plan)
        elif urgent and plan.unsolved:
            text = f"cannot empty {', '.join(urgent)}: {plan.unsolved[0].reason}"
            self._site.announce("site", self._site.site_id, "plan", text)

    def _to_drain(self, more: Collection[NodeId]) -> set[NodeId]:
        """Return the nodes that are out of service by rule, and those asked for."""
        assert self.outlook is not None
        out = {v.node_id for v in self._agent.nodes} - self.outlook.in_service
        return out | set(more)

    def _begin(self, plan: Plan) -> EnergyPlan:
        shown = self._planning.shown(plan, "running")
        run = self._run = PlanRun(self._site, self.switch, self._clock, shown)
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
                self.stir()

        self._around.tasks.start("plan", carry_out())
        return run.shown

    # Steering (`iaas.site.Steering`) ------------------------------------------------------------

    async def what_if(self, ask: PlanAsk) -> EnergyPlan:
        """Return the plan that `ask` would give, and what the rules foresee; nothing is done."""
        plan = await self._planned(ask)
        shown = self._planning.shown(plan, "dry run")
        return replace(shown, foreseen=self._foresee(ask))

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
        self.look()
        for node_id in ask.drain:
            if node_id not in {vector.node_id for vector in self._agent.nodes}:
                raise InvalidRequest(f"{node_id} is not a V-node here that reports", field="drain")
        drain = self._to_drain(ask.drain) | self._out_if(ask.figures)
        return await self._planning.make(
            self._terms(drain, self.rules.hold_s if ask.consolidate else None)
        )

    def _out_if(self, figures: dict[str, float]) -> set[NodeId]:
        """Return the nodes that rules would want out of service under other figures."""
        if not figures:
            return set()
        now_s = self._clock.now_s()
        seen = {**self.figures(now_s).as_rules_see(), **figures}
        wanted = rehearse(self._controller, [(now_s, seen)])[0].wanted
        ranked = self._steward.by_efficiency()
        return set(ranked) - nodes_in_service(ranked, wanted)

    def _foresee(self, ask: PlanAsk) -> tuple[ForeseenHour, ...]:
        now_s = self._clock.now_s()
        seen = {**self.figures(now_s).as_rules_see(), **ask.figures}
        moments = []
        for hour in range(ask.hours + 1):
            at_s = now_s if not hour else now_s - now_s % HOUR_S + hour * HOUR_S
            fresh = {
                "temperature_c": self._outside.foreseen(at_s, seen.get("temperature_c")),
                "price_eur_per_mwh": self._price.now(at_s).value,
                "price_index": self._price.index(at_s),
            }
            then = seen | {
                name: value
                for name, value in fresh.items()
                if value is not None and (name == "temperature_c" or name not in ask.figures)
            }
            moments.append((at_s, then))
        decisions = rehearse(self._controller, moments)
        return tuple(
            ForeseenHour(
                at_s=at_s,
                temperature_c=then.get("temperature_c"),
                pue=self._pue(then.get("temperature_c")),
                price_eur_per_mwh=then.get("price_eur_per_mwh"),
                share=decision.share,
                because=decision.because,
            )
            for (at_s, then), decision in zip(moments, decisions, strict=True)
        )

    def _pue(self, celsius: float | None) -> float:
        return self._agent.conditions.pue if celsius is None else self._cooling.state(celsius).pue

    def progress(self) -> EnergyPlan | None:
        """Return the plan under way, or the last one."""
        return self._shown if self._run is None else self._run.shown

    def post(self, figure: str, value: float | None, for_s: float) -> None:
        """Take a figure that somebody knows; it acts before this returns."""
        now_s = self._clock.now_s()
        self.events.post(figure, value, now_s + for_s)
        self.look()
        self.stir()

    def report(self, month: str) -> tuple[EnergyRow, ...]:
        """Return the accounts of a month, or of all."""
        self.look()
        index = self._site.index
        return tuple(
            _row(row, index.find_value(Iaas, row.iaas_id))
            for row in self.books.ledger.rows()
            if not month or row.month == month
        )

    def vm_energy(self, vm_id: VmId) -> VmEnergy:
        """Return what a VM has used here."""
        joules = self.books.ledger.vm_joules(vm_id)
        return VmEnergy(vm_id=vm_id, site_id=self._site.site_id, it_joules=joules)


def _row(row: LedgerRow, iaas: Iaas | None) -> EnergyRow:
    return EnergyRow(
        month=row.month,
        site_id=row.site_id,
        iaas_id=IaasId(row.iaas_id),
        iaas_name="" if iaas is None else iaas.name,
        it_kwh=row.it_kwh,
        facility_kwh=row.facility_kwh,
        cost_eur=row.cost_eur,
        carbon_g=row.carbon_g,
    )


def _load(path: Path) -> KeptState:
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeptState)
    except FileNotFoundError:
        return KeptState()
    except (msgspec.DecodeError, NuageError) as error:
        # Counting goes on; what was counted stays beside for whoever mends it.
        aside = path.with_suffix(".unreadable")
        path.replace(aside)
        log.error("accounts unreadable, set aside", path=str(aside), error=str(error))
        return KeptState()
