"""What a site does when its weather, prices or plans change: the steward of its energy.

One look takes the figures of now. It sets what a watt costs (PUE of the weather, price,
carbon) and, by rules and plans, which nodes are in service: at once at the Local Agent, so the
very next bid knows. Nodes that left service and still run VMs are named: the planner drains
them (`planner.make`), and they are switched off when empty.

Nodes stay in service by efficiency, most flops per watt first (GreenDIET's candidate set);
a node that is served by nobody else keeps its VMs until the plan has moved them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nuage.energy.cooling import CoolingModel, CoolingState
from nuage.energy.rules import ShareController, ShareDecision, nodes_in_service
from nuage.ids import NodeId
from nuage.model.placement import EstimationVector
from nuage.placement.columns import full_load_watts
from nuage.placement.local_agent import LocalAgent, SiteConditions
from nuage.placement.rack_agents import RackAgents


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFigures:
    """A site's surroundings now. None: not known, and then nothing is concluded from it."""

    dry_bulb_c: float | None = None
    dew_point_c: float | None = None
    price_eur_per_mwh: float | None = None
    price_index: float | None = None  # 0 to 1, 1 the dearest foreseen
    carbon_g_per_kwh: float | None = None
    grid_alert: float | None = None  # 0 calm, 1 tense, 2 cuts announced

    def as_rules_see(self) -> Mapping[str, float]:
        """Return the figures that are known, under the names that rules use."""
        named = {
            "temperature_c": self.dry_bulb_c,
            "price_eur_per_mwh": self.price_eur_per_mwh,
            "price_index": self.price_index,
            "carbon_g_per_kwh": self.carbon_g_per_kwh,
            "grid_alert": self.grid_alert,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a look concluded. `to_drain`: out of service by now, and not empty yet."""

    conditions: SiteConditions
    cooling: CoolingState | None
    decision: ShareDecision
    in_service: frozenset[NodeId]
    to_drain: tuple[NodeId, ...]


class Steward:
    """Keeps one site's Local Agent in step with its surroundings."""

    def __init__(
        self,
        agent: LocalAgent | RackAgents,
        controller: ShareController,
        cooling: CoolingModel | None = None,
    ) -> None:
        self._agent = agent
        self._controller = controller
        self._cooling = CoolingModel() if cooling is None else cooling
        self._conditions = SiteConditions()
        self._serving: frozenset[NodeId] = frozenset()  # chosen while not all are in service

    def look(self, figures: SiteFigures, now_s: float) -> Outlook:
        """Take the figures of now, tell the Local Agent, and say what has to be drained."""
        cooling = None
        if figures.dry_bulb_c is not None:
            cooling = self._cooling.state(figures.dry_bulb_c, figures.dew_point_c)
        before = self._conditions
        price, carbon = figures.price_eur_per_mwh, figures.carbon_g_per_kwh
        self._conditions = SiteConditions(
            pue=before.pue if cooling is None else cooling.pue,
            price_eur_per_mwh=before.price_eur_per_mwh if price is None else price,
            carbon_g_per_kwh=before.carbon_g_per_kwh if carbon is None else carbon,
        )
        self._agent.set_conditions(self._conditions)
        decision = self._controller.decide(figures.as_rules_see(), now_s)
        vectors = self._ranked()
        in_service = nodes_in_service([vector.node_id for vector in vectors], decision.share)
        self._serving = in_service if decision.share < 1.0 else frozenset()
        if decision.share >= 1.0:
            self._agent.set_in_service(None)
        else:
            told = " and ".join(decision.because) or "coming back"
            reason = f"{told}: {decision.share:.0%} of the nodes are in service"
            self._agent.set_in_service(in_service, reason=reason)
        held = {hold.node_id for hold in self._agent.reservations}
        to_drain = tuple(
            vector.node_id
            for vector in vectors
            if vector.node_id not in in_service
            and (vector.running or vector.vm_count or vector.node_id in held)
        )
        return Outlook(
            conditions=self._conditions,
            cooling=cooling,
            decision=decision,
            in_service=in_service,
            to_drain=to_drain,
        )

    def by_efficiency(self) -> tuple[NodeId, ...]:
        """Return the site's nodes, those first that stay in service longest."""
        return tuple(vector.node_id for vector in self._ranked())

    def _ranked(self) -> list[EstimationVector]:
        """Return the nodes, those first that serve alone already, then by efficiency.

        A node that has taken the others' VMs draws more than they do, and would look worse for
        it: chosen anew at each look, the VMs would go round and round.
        """
        return sorted(
            self._agent.nodes,
            key=lambda vector: (vector.node_id not in self._serving, *_by_efficiency(vector)),
        )


def _by_efficiency(vector: EstimationVector) -> tuple[float, NodeId]:
    """Sort most flops per watt first; by name among equals, so the set does not flutter."""
    watts = vector.peak_watts
    if vector.requests_served:
        watts = full_load_watts(
            vector.mean_power_watts, vector.mean_utilisation, vector.idle_watts, watts
        )
    return (-vector.flops / max(watts, 1.0), vector.node_id)
