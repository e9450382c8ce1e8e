"""From what the keeper knows to what others see: events in force, electrical limits, the record.

Synchronous and without I/O.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from nuage.daemon.configuration import ControllerConfiguration
from nuage.daemon.energy_pdus import PduSeen
from nuage.daemon.energy_sources import Figure
from nuage.energy.electrical import (
    CONTINUOUS_SHARE,
    PathElement,
    PathKind,
    PowerLimit,
    PowerPath,
)
from nuage.energy.facility_file import check_facility
from nuage.energy.kpi import Category
from nuage.energy.meters import MeterSource, Reading
from nuage.errors import InvalidRequest
from nuage.iaas.index import FederationIndex
from nuage.ids import NodeId, SiteId
from nuage.model.energy import (
    EnergyMode,
    NodeEnergy,
    SiteEnergy,
    SourceHealth,
    TierSeen,
    require_figures,
)
from nuage.model.infrastructure import Node, NodeRole
from nuage.placement.steward import Outlook

VOLTS: Final = 230.0
OUTLET_AMPS: Final = 10.0  # IEC 60320 C13, what servers are plugged into
PUBLISH_EVERY_S: Final = 60.0
WATTS_STEP_SHARE: Final = 0.1  # a smaller change of watts is not worth a record
WATTS_STEP_MIN: Final = 10.0


class EventFigures:
    """Figures that somebody posted, each until its end: a heat wave's warning, a grid alert."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[float, float]] = {}  # value, and until when

    def post(self, figure: str, value: float | None, until_s: float) -> None:
        """Take a figure until a moment; None takes it back.

        Raises:
            InvalidRequest: rules know no such figure.
        """
        require_figures([figure])
        if value is None:
            self.told.pop(figure, None)
        else:
            self.told[figure] = (value, until_s)

    def at(self, at_s: float) -> dict[str, float]:
        """Return what holds at a moment."""
        return {name: value for name, (value, until_s) in self.told.items() if until_s > at_s}

    def ends(self) -> list[float]:
        """Return when the events end."""
        return [until_s for _, until_s in self.told.values()]


class SiteFacts:
    """The site's nodes and what they hang on."""

    def __init__(self, index: FederationIndex, site_id: SiteId) -> None:
        self._index = index
        self.site_id = site_id

    def nodes(self) -> list[Node]:
        """Return this site's nodes, by name."""
        own = (node for node in self._index.values(Node) if node.site_id == self.site_id)
        return sorted(own, key=lambda node: node.name)

    def vnodes(self) -> list[Node]:
        """Return this site's V-nodes, by name."""
        return [node for node in self.nodes() if NodeRole.VNODE in node.roles]

    def counters(self, seen: PduSeen) -> Iterator[tuple[str, float]]:
        """Yield the energy counters of a reading: each node's outlets, then the whole PDU."""
        for node in self.nodes():
            counted = [
                outlet.energy_kwh
                for number in _outlets_of(node, seen.rack)
                if (outlet := seen.outlets.get(number)) is not None
                and outlet.energy_kwh is not None
            ]
            if counted:
                yield node.node_id, sum(counted)
        if seen.energy_kwh is not None:
            yield f"PDU {seen.rack}", seen.energy_kwh

    def limits(
        self, pdus: Mapping[str, PduSeen], feed_amps: float, container_watts: float, now_s: float
    ) -> tuple[PowerLimit, ...]:
        """Return outlet, branch, feed and container as limits on the watts of V-nodes.

        What the other outlets of an element draw now is deducted from what it may carry; each
        V-node counts in full on both its feeds, so a feed that fails overloads nobody.
        """
        vnodes = self.vnodes()
        own = {(rack, number) for node in vnodes for rack, number in _all_outlets(node)}
        container = "container"
        elements = [PathElement(name=container, kind=PathKind.CONTAINER, limit_watts=max(
            container_watts - _others_watts(pdus.values(), own, now_s), 1.0))]  # fmt: skip
        for seen in pdus.values():
            elements += _pdu_elements(seen, own, feed_amps, container, now_s)
        known = {element.name for element in elements}
        outlets_of = {
            node.node_id: tuple(
                name for rack, number in _all_outlets(node)
                if (name := f"{rack}/{number}") in known
            ) or (container,)
            for node in vnodes
        }  # fmt: skip
        return PowerPath(elements, outlets_of).limits()


def _all_outlets(node: Node) -> list[tuple[str, str]]:
    pairs = (name.partition("/") for name in node.outlets)
    return [(rack, number) for rack, _, number in pairs]


def _outlets_of(node: Node, rack: str) -> list[str]:
    return [number for at_rack, number in _all_outlets(node) if at_rack == rack]


def _others_watts(pdus: Iterable[PduSeen], own: set[tuple[str, str]], now_s: float) -> float:
    return sum(_draw_of_others(seen, own, list(seen.outlets), now_s) for seen in pdus)


def _draw_of_others(
    seen: PduSeen, own: set[tuple[str, str]], numbers: list[str], now_s: float
) -> float:
    if seen.is_silent(now_s):
        return 0.0
    readings = (seen.outlets[n].reading for n in numbers if (seen.rack, n) not in own)
    return sum(reading.power_watts for reading in readings if reading is not None)


def _pdu_elements(
    seen: PduSeen, own: set[tuple[str, str]], feed_amps: float, container: str, now_s: float
) -> list[PathElement]:
    feed = f"{seen.rack}"
    others = _draw_of_others(seen, own, list(seen.outlets), now_s)
    found = [
        PathElement(name=feed, kind=PathKind.FEED, parent=container,
                    limit_watts=max(feed_amps * VOLTS * CONTINUOUS_SHARE - others, 1.0))
    ]  # fmt: skip
    branch_of: dict[str, str] = {}  # the innermost yet: a protector behind another comes later
    for branch in sorted(seen.branches, key=lambda branch: -len(branch.outlet_ids)):
        name = f"{seen.rack} {branch.branch_id}"
        numbers = [number for number in branch.outlet_ids if number in seen.outlets]
        if branch.rated_amps <= 0:
            continue
        drawn = _draw_of_others(seen, own, numbers, now_s)
        limit = branch.rated_amps * VOLTS * CONTINUOUS_SHARE - drawn
        parent = branch_of.get(numbers[0], feed) if numbers else feed
        found.append(
            PathElement(name=name, kind=PathKind.BRANCH, parent=parent, limit_watts=max(limit, 1.0))
        )
        branch_of |= dict.fromkeys(numbers, name)
    found += [
        PathElement(
            name=f"{seen.rack}/{number}",
            kind=PathKind.OUTLET,
            parent=branch_of.get(number, feed),
            limit_watts=OUTLET_AMPS * VOLTS * CONTINUOUS_SHARE,
        )
        for number in seen.outlets
    ]
    return found


def node_watts(node: Node, seen: PduSeen) -> float | None:
    """Return what flows to a node through its outlets of a PDU; None if one does not tell."""
    readings = [
        outlet.reading
        for number in _outlets_of(node, seen.rack)
        if (outlet := seen.outlets.get(number)) is not None
    ]
    if not readings or len(_all_outlets(node)) != len(readings):
        return None
    watts = [reading.power_watts for reading in readings if reading is not None]
    return sum(watts) if len(watts) == len(readings) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FacilityFacts:
    """What does not change while a controller runs."""

    boundary: str
    tier: TierSeen | None
    renewable_share: float
    reused_share: float


def facility_facts(configuration: ControllerConfiguration) -> FacilityFacts:
    """Return what is configured, the tier checked against the modelled paths.

    Raises:
        InvalidRequest: a share is none, or the facility's file is not as it should be.
    """
    energy = configuration.energy
    for name in ("renewable_share", "reused_share"):
        if not 0.0 <= getattr(energy, name) <= 1.0:
            raise InvalidRequest(f"{name} is 0 to 1", field=f"energy.{name}")
    tier = None
    if energy.facility_file is not None:
        check = check_facility(energy.facility_file, configuration.datacenter.tier)
        tier = TierSeen(
            supported=check.supported, availability=check.availability, findings=check.findings
        )
    return FacilityFacts(
        boundary=energy.boundary,
        tier=tier,
        renewable_share=energy.renewable_share,
        reused_share=energy.reused_share,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What meters and sources said, and what of it was not believed."""

    pdus: Mapping[str, PduSeen]
    sources: Mapping[str, Figure]
    refused: tuple[str, ...]
    public: tuple[SourceHealth, ...]
    facility: FacilityFacts


def site_energy(
    outlook: Outlook,
    *,
    facts: SiteFacts,
    observed: Observed,
    best: Callable[[NodeId], Reading | None],
    power: Callable[[Node], str],
    mode: EnergyMode,
    now_s: float,
) -> SiteEnergy:
    """Return what the other sites are told."""
    nodes = []
    for node in facts.nodes():
        reading = best(node.node_id)
        is_vnode = NodeRole.VNODE in node.roles
        if reading is None and not is_vnode:
            continue
        nodes.append(
            NodeEnergy(
                node_id=node.node_id,
                watts=0.0 if reading is None else round(reading.power_watts, 1),
                source="" if reading is None else reading.source.name.lower(),
                read_s=0.0 if reading is None else reading.read_s,
                power=power(node),
                in_service=not is_vnode
                or (node.node_id in outlook.in_service and not node.maintenance),
            )
        )
    pdus, sources = observed.pdus, observed.sources
    heard = [seen for seen in pdus.values() if not seen.is_silent(now_s)]
    by_pdus = bool(heard) and len(heard) == len(pdus)
    sources_seen = {node.source for node in nodes}
    at_outlets = by_pdus or sources_seen <= {MeterSource.OUTLET.name.lower(), ""}
    return SiteEnergy(
        site_id=facts.site_id,
        read_s=now_s,
        it_watts=round(sum(s.watts for s in heard) if by_pdus else sum(n.watts for n in nodes), 1),
        pue=outlook.conditions.pue,
        pue_boundary=observed.facility.boundary,
        pue_category=(Category.INTERMEDIATE if at_outlets else Category.ADVANCED).value,
        cooling="" if outlook.cooling is None else outlook.cooling.reason,
        outside_celsius=sources["outside"].value,
        outside_source=sources["outside"].source,
        outside_read_s=sources["outside"].read_s,
        price_eur_per_mwh=sources["price"].value,
        price_source=sources["price"].source,
        price_read_s=sources["price"].read_s,
        carbon_g_per_kwh=sources["carbon"].value,
        carbon_source=sources["carbon"].source,
        carbon_read_s=sources["carbon"].read_s,
        share=outlook.decision.share,
        share_wanted=outlook.decision.wanted,
        because=outlook.decision.because,
        mode=mode,
        nodes=tuple(nodes),
        silent_meters=tuple(
            f"PDU {seen.rack}: {seen.failure or 'not read yet'}"
            for seen in pdus.values()
            if seen.is_silent(now_s)
        ),
        refused_readings=observed.refused,
        public_sources=observed.public,
        tier=observed.facility.tier,
        renewable_share=observed.facility.renewable_share,
        reused_share=observed.facility.reused_share,
    )


def is_news(before: SiteEnergy, after: SiteEnergy) -> bool:
    """Tell whether `after` says something that the other sites should know now."""
    if after.read_s - before.read_s >= PUBLISH_EVERY_S:
        return True
    if _plain(before) != _plain(after):
        return True
    step = max(WATTS_STEP_SHARE * before.it_watts, WATTS_STEP_MIN)
    return abs(after.it_watts - before.it_watts) > step


def _plain(record: SiteEnergy) -> tuple[object, ...]:
    return (
        round(record.pue, 2),
        record.price_eur_per_mwh,
        record.carbon_g_per_kwh,
        round(record.share, 2),
        record.share_wanted,
        record.because,
        record.mode,
        record.outside_source,
        tuple(record.silent_meters),
        tuple(record.refused_readings),
        tuple(record.public_sources),
        record.tier,
        record.renewable_share,
        record.reused_share,
        tuple((n.node_id, n.power, n.in_service, n.source) for n in record.nodes),
    )
