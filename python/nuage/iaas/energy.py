"""Use cases on energy: the sites' figures, the operator's rules, plans and accounts."""

from dataclasses import dataclass, field
from typing import TypeVar

from nuage.errors import InvalidRequest, NotFound, Unavailable
from nuage.iaas.machines import NameVm, vm_home, vm_of
from nuage.iaas.operations import Operation, OperationTable, Shown, any_scope, anywhere, iaas_scope
from nuage.iaas.showing import show
from nuage.iaas.site import Site, Steering
from nuage.ids import NodeId, SiteId
from nuage.model.energy import (
    EnergyMode,
    EnergyPlan,
    EnergyRow,
    EnergyRules,
    PlanAsk,
    SharePlan,
    ShareRule,
    SiteEnergy,
    VmEnergy,
)
from nuage.model.infrastructure import Datacenter, Node
from nuage.trust.permissions import Principal, Scope

SITE_ENERGY = "/v1/energy/{site}"
EVENT_S_MAX = 7 * 86_400.0  # what is true for longer is a rule or a plan

B = TypeVar("B")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ListEnergy:
    """Ask for the energy of every site."""


@dataclass(frozen=True, slots=True)
class NameSite:
    """Name a site."""

    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRules:
    """Replace a site's rules. What is left out falls back to its default."""

    site: str
    rules: tuple[ShareRule, ...] = ()
    plans: tuple[SharePlan, ...] = ()
    mode: EnergyMode = EnergyMode.MANUAL
    ramp_per_min: float = 0.05
    hold_s: float = 3600.0
    look_every_s: float = 300.0
    nodes_kept_on: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPlan:
    """Ask a site for a plan, or to carry it out. `drain` names nodes by id or name."""

    site: str
    drain: tuple[str, ...] = ()
    consolidate: bool = True
    figures: dict[str, float] = field(default_factory=dict)
    hours: int = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PostEvent:
    """Tell a site a figure that it cannot measure, or not yet; `value` None takes it back."""

    site: str
    figure: str
    value: float | None = None
    for_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class AskReport:
    """Ask for a site's accounts of a month (``2026-11``), or of all."""

    site: str
    month: str = ""


async def list_energy(
    site: Site, _principal: Principal, _body: ListEnergy
) -> list[Shown[SiteEnergy]]:
    """Show every site's watts, PUE, price, carbon and nodes in service."""
    found = sorted(site.index.values(SiteEnergy), key=lambda energy: energy.site_id)
    return [show(site, energy) for energy in found]


async def show_rules(site: Site, _principal: Principal, body: NameSite) -> EnergyRules:
    """Show what a site's operator wants."""
    site_id = site.index.value(Datacenter, body.site).site_id
    return site.index.find_value(EnergyRules, site_id) or EnergyRules(site_id=site_id)


async def set_rules(site: Site, _principal: Principal, body: SetRules) -> EnergyRules:
    """Replace the rules; they act at once."""
    rules = EnergyRules(
        site_id=site.site_id,
        rules=body.rules,
        plans=body.plans,
        mode=body.mode,
        ramp_per_min=body.ramp_per_min,
        hold_s=body.hold_s,
        look_every_s=body.look_every_s,
        nodes_kept_on=body.nodes_kept_on,
    )
    await site.save(rules)
    told = f"{len(rules.rules)} rules, {len(rules.plans)} plans, {rules.mode.value}"
    site.announce("site", site.site_id, "rules", f"energy rules of {site.site_id}: {told}")
    return rules


async def what_if(site: Site, _principal: Principal, body: AskPlan) -> EnergyPlan:
    """Show what a plan would do, what it costs and saves; nothing is done."""
    return await _steering(site).what_if(_ask(site, body))


async def apply_plan(site: Site, _principal: Principal, body: AskPlan) -> EnergyPlan:
    """Begin to carry a plan out."""
    return await _steering(site).apply(_ask(site, body))


async def show_progress(site: Site, _principal: Principal, _body: NameSite) -> EnergyPlan:
    """Show how far the plan under way is, or how the last one ended."""
    plan = _steering(site).progress()
    if plan is None:
        raise NotFound("plan", site.site_id, hint="none was carried out since the start")
    return plan


async def post_event(site: Site, _principal: Principal, body: PostEvent) -> None:
    """Take a figure; the nodes in service have changed when this answers."""
    if not 0 < body.for_s <= EVENT_S_MAX:
        raise InvalidRequest(f"an event lasts up to {EVENT_S_MAX:.0f} s", field="for_s")
    _steering(site).post(body.figure, body.value, body.for_s)
    told = "over" if body.value is None else f"{body.value:g} for {body.for_s:.0f} s"
    site.announce("site", site.site_id, "event", f"{body.figure} at {site.site_id}: {told}")


async def report(site: Site, _principal: Principal, body: AskReport) -> list[EnergyRow]:
    """Show the site's accounts: kWh, EUR and gCO2e per IaaS and month."""
    return list(_steering(site).report(body.month))


async def vm_energy(site: Site, _principal: Principal, body: NameVm) -> VmEnergy:
    """Show the joules of a VM at its present site."""
    return _steering(site).vm_energy(vm_of(site, body.iaas, body.vm).vm_id)


def _steering(site: Site) -> Steering:
    if site.steering is None:
        raise Unavailable(f"site {site.site_id} keeps no energy")
    return site.steering


def _ask(site: Site, body: AskPlan) -> PlanAsk:
    return PlanAsk(
        drain=tuple(_node(site, name) for name in body.drain),
        consolidate=body.consolidate,
        figures=body.figures,
        hours=body.hours,
    )


def _node(site: Site, name: str) -> NodeId:
    own = [node for node in site.index.values(Node) if node.site_id == site.site_id]
    for node in own:
        if name in (node.node_id, node.name):
            return node.node_id
    raise NotFound("node", name, hint=", ".join(sorted(node.name for node in own)))


def _home(site: Site, body: NameSite | SetRules | AskPlan | PostEvent | AskReport) -> SiteId:
    return site.index.value(Datacenter, body.site).site_id


def _scope(_site: Site, body: NameSite | SetRules | AskPlan | PostEvent | AskReport) -> Scope:
    return Scope(site_id=SiteId(body.site))


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="energy.list",
            verb="GET",
            path="/v1/energy",
            body=ListEnergy,
            result=list[Shown[SiteEnergy]],
            action="energy.read",
            summary="Show every site's watts, PUE, price, carbon and nodes in service",
            run=list_energy,
            scope=any_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="energy.rules",
            verb="GET",
            path=SITE_ENERGY + "/rules",
            body=NameSite,
            result=EnergyRules,
            action="energy.read",
            summary="Show a site's energy rules and dated plans",
            run=show_rules,
            scope=_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="energy.set-rules",
            verb="PUT",
            path=SITE_ENERGY + "/rules",
            body=SetRules,
            result=EnergyRules,
            action="energy.write",
            summary="Replace a site's energy rules and dated plans",
            run=set_rules,
            scope=_scope,
            home=_home,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="energy.what-if",
            verb="POST",
            path=SITE_ENERGY + "/what-if",
            body=AskPlan,
            result=EnergyPlan,
            action="energy.read",
            summary="Show what a plan would do; nothing is done",
            run=what_if,
            scope=_scope,
            home=_home,
        )
    )
    table.add(
        Operation(
            name="energy.apply",
            verb="POST",
            path=SITE_ENERGY + "/plan",
            body=AskPlan,
            result=EnergyPlan,
            action="energy.write",
            summary="Carry a plan out: migrations and power acts",
            run=apply_plan,
            scope=_scope,
            home=_home,
            status=202,
        )
    )
    table.add(
        Operation(
            name="energy.progress",
            verb="GET",
            path=SITE_ENERGY + "/plan",
            body=NameSite,
            result=EnergyPlan,
            action="energy.read",
            summary="Show the plan under way, or the last one",
            run=show_progress,
            scope=_scope,
            home=_home,
        )
    )
    table.add(
        Operation(
            name="energy.event",
            verb="POST",
            path=SITE_ENERGY + "/events",
            body=PostEvent,
            result=type(None),
            action="energy.write",
            summary="Tell a site a figure: heat to come, a price, a grid alert",
            run=post_event,
            scope=_scope,
            home=_home,
        )
    )
    table.add(
        Operation(
            name="energy.report",
            verb="GET",
            path=SITE_ENERGY + "/report",
            body=AskReport,
            result=list[EnergyRow],
            action="energy.read",
            summary="Show a site's accounts: kWh, EUR, gCO2e per IaaS and month",
            run=report,
            scope=_scope,
            home=_home,
        )
    )
    table.add(
        Operation(
            name="vm.energy",
            verb="GET",
            path="/v1/iaas/{iaas}/vms/{vm}/energy",
            body=NameVm,
            result=VmEnergy,
            action="vm.read",
            summary="Show the joules that a VM has used at its site",
            run=vm_energy,
            scope=iaas_scope,
            home=vm_home,
        )
    )
