"""One look at a site's surroundings: figures in, conditions and nodes in service out, at once.

Synchronous: a look ends in the Local Agent's table, so whoever caused it finds placement changed
when it returns. The same figures and rules also say what is to come (`foresee`), and what would
be if figures were others (`out_if`).
"""

from dataclasses import dataclass
from typing import Final

from nuage.clock import Clock
from nuage.daemon.configuration import ControllerConfiguration
from nuage.daemon.energy_figures import EventFigures
from nuage.daemon.energy_meters import SiteMeters
from nuage.daemon.energy_power import NodeSwitch
from nuage.daemon.energy_sources import Carbon, Figure, FindSource, Outside, Price
from nuage.energy.books import Costs
from nuage.energy.cooling import AshraeClass, CoolingControl, CoolingModel
from nuage.energy.rules import ShareController, nodes_in_service, rehearse
from nuage.errors import InvalidRequest
from nuage.iaas.site import Site
from nuage.ids import NodeId
from nuage.model.energy import EnergyRules, ForeseenHour, PlanAsk
from nuage.placement.rack_agents import SiteAgent
from nuage.placement.steward import Outlook, SiteFigures, Steward

HOUR_S: Final = 3600.0
CALM: Final = 0.0  # of grid alerts
_POSTED: Final = (  # a figure of the site, as events name it
    ("outside", "temperature_c"),
    ("price", "price_eur_per_mwh"),
    ("carbon", "carbon_g_per_kwh"),
)


def cooling_model(configuration: ControllerConfiguration) -> CoolingModel:
    """Return the site's cooling as it is configured.

    Raises:
        InvalidRequest: what is configured cannot be, with the key.
    """
    energy = configuration.energy
    if energy.ashrae and energy.ashrae not in AshraeClass.__members__:
        raise InvalidRequest(f"{energy.ashrae!r} is not A1, A2, A3 or A4", field="energy.ashrae")
    return CoolingModel(
        set_point_c=energy.set_point_c,
        control=CoolingControl(energy.cooling),
        pue_free=energy.pue_free,
        pue_conditioned=energy.pue_conditioned,
        ashrae=AshraeClass[energy.ashrae] if energy.ashrae else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LookParts:
    """What a look works with."""

    site: Site
    agent: SiteAgent
    clock: Clock
    meters: SiteMeters
    switch: NodeSwitch
    find_source: FindSource


class SiteLook:
    """Looks at one site's surroundings."""

    def __init__(self, configuration: ControllerConfiguration, parts: LookParts) -> None:
        self._site = parts.site
        self._agent = parts.agent
        self._clock = parts.clock
        self._meters = parts.meters
        self._switch = parts.switch
        energy = configuration.energy
        self._outside = Outside(energy, configuration.datacenter, parts.clock, parts.find_source)
        self._price = Price(energy.tariff_file, parts.find_source)
        self._carbon = Carbon(energy, parts.find_source)
        self._controller = ShareController(())
        self._cooling = cooling_model(configuration)
        self._steward = Steward(self._agent, self._controller, self._cooling)
        self.events = EventFigures()
        self.outlook: Outlook | None = None
        self.sources: dict[str, Figure] = {}

    @property
    def rules(self) -> EnergyRules:
        """What the operator wants; nothing special until told."""
        own = self._site.site_id
        return self._site.index.find_value(EnergyRules, own) or EnergyRules(site_id=own)

    def figures(self, now_s: float) -> SiteFigures:
        """Return the figures of now; an event that holds wins over what is measured."""
        self.sources = {
            "outside": self._outside.now(self._meters.probe(now_s)),
            "price": self._price.now(now_s),
            "carbon": self._carbon.now(now_s),
        }
        told = self.events.at(now_s)
        for name, figure in _POSTED:
            if figure in told:
                self.sources[name] = Figure(told[figure], "event")
        return SiteFigures(
            dry_bulb_c=self.sources["outside"].value,
            dew_point_c=self._outside.dew_point_c(),
            price_eur_per_mwh=self.sources["price"].value,
            price_index=told.get("price_index", self._price.index(now_s)),
            carbon_g_per_kwh=self.sources["carbon"].value,
            grid_alert=told.get("grid_alert", CALM),  # nobody measures it: told, or calm
        )

    def look(self) -> Outlook:
        """Take the figures of now and let placement know, before this returns."""
        now_s = self._clock.now_s()
        rules = self.rules
        self._controller.rules, self._controller.plans = rules.rules, rules.plans
        self._controller.ramp_per_min = rules.ramp_per_min
        self._switch.refresh()
        outlook = self._steward.look(self.figures(now_s), now_s)
        self._agent.set_power_limits(self._meters.limits(now_s))
        here = outlook.conditions
        self._meters.settle(
            now_s,
            Costs(
                pue=here.pue,
                price_eur_per_mwh=here.price_eur_per_mwh,
                carbon_g_per_kwh=here.carbon_g_per_kwh,
            ),
        )
        for node_id, watts in self._meters.curves.items():
            self._agent.set_power_curve(node_id, watts)
        self._tell_share(outlook)
        self.outlook = outlook
        return outlook

    def _tell_share(self, outlook: Outlook) -> None:
        before = 1.0 if self.outlook is None else self.outlook.decision.wanted
        if outlook.decision.wanted != before:
            because = " and ".join(outlook.decision.because) or "calm again"
            text = f"{because}: {outlook.decision.wanted:.0%} of the nodes are to be in service"
            self._site.announce("site", self._site.site_id, "energy", text)

    def next_s(self, now_s: float, at_most_s: float) -> float:
        """Return the next moment at which something is known to change, or `at_most_s` on."""
        moments = [now_s + at_most_s]
        changes_s = self._price.next_change_s(now_s, HOUR_S)
        if changes_s is not None:
            moments.append(changes_s)
        for plan in self.rules.plans:
            moments += [moment for moment in (plan.begin_s, plan.end_s) if moment > now_s]
        moments += [moment for moment in self.events.ends() if moment > now_s]
        return min(moments)

    def out_of_service(self) -> set[NodeId]:
        """Return the nodes that are out of service by rule."""
        assert self.outlook is not None
        return {vector.node_id for vector in self._agent.nodes} - self.outlook.in_service

    def out_if(self, figures: dict[str, float]) -> set[NodeId]:
        """Return the nodes that rules would want out of service under other figures."""
        if not figures:
            return set()
        now_s = self._clock.now_s()
        seen = {**self.figures(now_s).as_rules_see(), **figures}
        wanted = rehearse(self._controller, [(now_s, seen)])[0].wanted
        ranked = self._steward.by_efficiency()
        return set(ranked) - nodes_in_service(ranked, wanted)

    def foresee(self, ask: PlanAsk) -> tuple[ForeseenHour, ...]:
        """Return what the rules would do over the hours to come.

        What is supposed holds for all of them, what was posted until its end.
        """
        now_s = self._clock.now_s()
        outside_c = self._outside.now(self._meters.probe(now_s)).value
        moments = []
        for hour in range(ask.hours + 1):
            at_s = now_s if not hour else now_s - now_s % HOUR_S + hour * HOUR_S
            told = self.events.at(at_s) | ask.figures
            then = {
                "price_eur_per_mwh": self._price.now(at_s).value,
                "price_index": self._price.index(at_s),
                "carbon_g_per_kwh": self._carbon.now(at_s).value,
                "grid_alert": CALM,
                **told,
                "temperature_c": self._outside.foreseen(at_s, told.get("temperature_c", outside_c)),
            }
            known = {name: value for name, value in then.items() if value is not None}
            moments.append((at_s, known))
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
