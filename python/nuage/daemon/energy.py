"""A site's energy in the running product: meters in, conditions and nodes in service out.

Theory of operation. `look` (`energy_look`) takes the figures of now (weather, price, carbon,
events), has the steward set what a watt costs and which nodes serve, settles the books and keeps
sleeping nodes in the table; it waits on nothing. It runs every `LOOK_EVERY_S` and at once when
something happens: an event posted, rules changed, a probe that moved, a source that answered, a
price or a dated plan that begins. What follows from a look (a record for the other sites, a plan
that drains: `energy_conduct`) runs beside it. Meters are `energy_meters`, public sources
`energy_public`, a node's power `energy_power`.

Fault model: any meter, source, BMC or site may be silent. A figure that is missing leaves its
rules as they stand; a node that sleeps on purpose is not lost; the books are on disk every
`SAVE_EVERY_S`, and the meters' counters bring back what passed in between.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from nuage.channel import Handlers
from nuage.clock import Clock
from nuage.daemon.configuration import ControllerConfiguration
from nuage.daemon.energy_conduct import Conductor, ConductParts
from nuage.daemon.energy_figures import Observed, facility_facts, is_news, site_energy
from nuage.daemon.energy_look import LookParts, SiteLook
from nuage.daemon.energy_meters import SiteMeters
from nuage.daemon.energy_power import NodeSwitch
from nuage.daemon.energy_public import PublicSources
from nuage.daemon.energy_state import STATE_FILE, KeptState, load_state, save_state
from nuage.daemon.hardware import OpenBmc, OpenPdu
from nuage.daemon.process import Tasks
from nuage.energy.accounting import LedgerRow
from nuage.energy.books import SiteBooks
from nuage.iaas.index import Change
from nuage.iaas.site import Site
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.model.desired import VnodeReport
from nuage.model.energy import (
    EnergyPlan,
    EnergyRow,
    EnergyRules,
    PlanAsk,
    SiteEnergy,
    VmEnergy,
)
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Datacenter, Node
from nuage.model.placement import EstimationVector
from nuage.model.status import Migration
from nuage.model.vm import PowerWish, Vm
from nuage.placement.planner.schedule import Pace
from nuage.placement.rack_agents import SiteAgent
from nuage.placement.steward import Outlook

CONCERNING: Final = frozenset({EnergyRules, Vm, Migration, Node})
LOOK_EVERY_S: Final = 10.0
SAVE_EVERY_S: Final = 30.0
PROBE_STEP_K: Final = 0.5  # a probe that moved by so much is worth a look at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What of the controller the keeper works with."""

    site: Site
    agent: SiteAgent
    datacenter: Datacenter
    clock: Clock
    tasks: Tasks
    is_connected: Callable[[NodeId], bool]
    on_lost: Callable[[NodeId], None]
    reachable_sites: Callable[[], tuple[SiteId, ...]]
    open_bmc: OpenBmc
    pdus: Mapping[str, OpenPdu]  # of the racks


class EnergyKeeper:
    """Keeps one site's energy (`iaas.site.Steering`)."""

    def __init__(self, configuration: ControllerConfiguration, around: Surroundings) -> None:
        self._around = around
        self._site = around.site
        self._agent = around.agent
        self._clock = around.clock
        self._facility = facility_facts(configuration)
        energy = configuration.energy
        self._path = configuration.state_dir / STATE_FILE
        kept = load_state(self._path)
        self.books = SiteBooks(self._site.site_id, kept.books)
        self.meters = SiteMeters(
            configuration, self._site.index, self._site.site_id, self.books, kept.curves,
            around.clock, around.pdus,
        )  # fmt: skip
        self.switch = NodeSwitch(
            around.site,
            around.agent,
            around.open_bmc,
            around.clock,
            is_connected=around.is_connected,
            on_lost=around.on_lost,
        )
        self.switch.sleeping.update(kept.sleeping)
        self.public = PublicSources(
            energy.sources, around.datacenter, around.site, around.clock, self.stir
        )
        self._look = SiteLook(configuration, LookParts(
            site=around.site, agent=around.agent, clock=around.clock, meters=self.meters,
            switch=self.switch, find_source=self.public.find,
        ))  # fmt: skip
        self._look.events.told.update(kept.events)
        self._conductor = Conductor(ConductParts(
            site=around.site, agent=around.agent, clock=around.clock, tasks=around.tasks,
            look=self._look, meters=self.meters, switch=self.switch,
            reachable_sites=around.reachable_sites, stir=self.stir,
            pace=Pace(site_bits_per_s=energy.migration_bits_per_s),
        ))  # fmt: skip
        self._stirred = asyncio.Event()
        self._saved_s = 0.0

    # Life ---------------------------------------------------------------------------------------

    def start(self, handlers: Handlers) -> None:
        """Begin to read and to look."""
        tasks = self._around.tasks
        self._conductor.register(handlers)
        self.meters.start(tasks, self.stir, PROBE_STEP_K)
        self.public.start(tasks)
        tasks.keep("energy", self._watch)

    async def close(self) -> None:
        """Write the books down."""
        self._save()

    def stir(self) -> None:
        """Have a look taken at once."""
        self._stirred.set()

    async def _watch(self) -> None:
        await self.meters.publish_pdus(self._site)
        while True:
            self._stirred.clear()
            self.look()
            await self._publish()
            self._conductor.automate()
            if self._clock.now_s() - self._saved_s >= SAVE_EVERY_S:
                self._save()
            now_s = self._clock.now_s()
            wait_s = max(self._look.next_s(now_s, LOOK_EVERY_S) - now_s, 0.05)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stirred.wait()

    def _save(self) -> None:
        state = KeptState(
            books=self.books.state,
            sleeping=dict(self.switch.sleeping),
            curves=self.meters.curves_to_keep,
            events=self._look.events.told,
        )
        save_state(state, self._path)
        self._saved_s = self._clock.now_s()

    def look(self) -> Outlook:
        """Take the figures of now and let placement know, before this returns."""
        return self._look.look()

    # What the controller tells ------------------------------------------------------------------

    def is_asleep(self, node_id: NodeId) -> bool:
        """Tell whether a node is silent on purpose."""
        return self.switch.is_asleep(node_id)

    def take_report(self, report: VnodeReport, vector: EstimationVector) -> EstimationVector | None:
        """Return the vector with the meter that is believed, None of a node that falls asleep."""
        if not self.switch.awake(vector):
            return None
        return self.meters.take_report(report, vector)

    def on_change(self, change: Change) -> None:
        """Wake a node that a VM was placed on; look again when rules or maintenance changed."""
        value = None if change.after is None else change.after.value
        if type(value) not in CONCERNING:
            return
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
            self.wake(node_id, f"{whom} was placed there")

    def _maintained(self, node: Node) -> None:
        vector = next((v for v in self._agent.nodes if v.node_id == node.node_id), None)
        if vector is not None and vector.maintenance != node.maintenance:
            self._agent.update(replace(vector, maintenance=node.maintenance))
            self._conductor.forget_pace()
            self.stir()

    async def _publish(self) -> None:
        outlook = self._look.outlook
        assert outlook is not None
        now_s = self._clock.now_s()
        fresh = site_energy(
            outlook,
            facts=self.meters.facts,
            observed=Observed(
                pdus=self.meters.pdus,
                sources=self._look.sources,
                refused=self.meters.refused(now_s),
                public=self.public.health,
                facility=self._facility,
            ),
            best=lambda node_id: self.books.best(node_id, now_s),
            power=self.switch.state_of,
            mode=self._look.rules.mode,
            now_s=now_s,
        )
        known = self._site.index.find_value(SiteEnergy, self._site.site_id)
        if known is None or is_news(known, fresh):
            await self._site.save(fresh)

    # Steering (`iaas.site.Steering`) ------------------------------------------------------------

    async def what_if(self, ask: PlanAsk) -> EnergyPlan:
        """Return the plan that `ask` would give, and what the rules foresee; nothing is done."""
        return await self._conductor.what_if(ask)

    async def apply(self, ask: PlanAsk) -> EnergyPlan:
        """Begin the plan that `ask` gives now.

        Raises:
            Conflict: a plan is under way.
        """
        return await self._conductor.apply(ask)

    def progress(self) -> EnergyPlan | None:
        """Return the plan under way, or the last one."""
        return self._conductor.progress()

    def post(self, figure: str, value: float | None, for_s: float) -> None:
        """Take a figure that somebody knows; it acts, and is on disk, before this returns."""
        now_s = self._clock.now_s()
        self._look.events.post(figure, value, now_s + for_s)
        self.look()
        self._save()
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

    def wake(self, node_id: NodeId, why: str) -> None:
        """Begin to switch a sleeping node on."""
        self._around.tasks.start(f"wake {node_id}", self.switch.wake(node_id, why))


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
