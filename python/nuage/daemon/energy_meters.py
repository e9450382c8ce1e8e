"""The meters of a site: PDUs and nodes' own, into the books; and what follows from them.

Synchronous but for the PDUs' loops. A reading that a rule refuses (`energy.meters`) is kept for
`REFUSED_SHOWN_S`, so that people see what was not believed and why.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from nuage.clock import Clock
from nuage.daemon.configuration import ControllerConfiguration
from nuage.daemon.energy_figures import SiteFacts, node_watts
from nuage.daemon.energy_pdus import PduReader, PduSeen
from nuage.daemon.energy_sources import Figure
from nuage.daemon.hardware import OpenPdu
from nuage.daemon.process import Tasks
from nuage.energy.books import Costs, SiteBooks
from nuage.energy.electrical import PowerLimit
from nuage.energy.meters import MeterSource, Reading
from nuage.energy.power_curve import CurveFit, PowerCurve
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import Site
from nuage.ids import NodeId, PduId, RackId, SiteId
from nuage.model.desired import VnodeReport
from nuage.model.infrastructure import Pdu
from nuage.model.placement import EstimationVector
from nuage.model.vm import Vm
from nuage.placement.planner.make import curve_of

CURVE_RATE: Final = 0.05
CURVE_READING_AGE_S: Final = 3.0  # the load must be of the same moment
REFUSED_SHOWN_S: Final = 600.0
SOURCES: Final = {
    "outlet": MeterSource.OUTLET, "bmc": MeterSource.BMC,
    "rapl": MeterSource.RAPL, "model": MeterSource.MODEL,
}  # fmt: skip


class SiteMeters:
    """What a site measures."""

    def __init__(
        self, configuration: ControllerConfiguration, index: FederationIndex, site_id: SiteId,
        books: SiteBooks, curves: Mapping[NodeId, tuple[float, ...]], clock: Clock,
        pdus: Mapping[str, OpenPdu],
    ) -> None:  # fmt: skip
        self._energy = configuration.energy
        self._open_pdus = pdus
        self._container_watts = configuration.datacenter.power_capacity_watts
        self._index = index
        self._site_id = site_id
        self._clock = clock
        self._kept_curves = dict(curves)
        self._fits: dict[NodeId, CurveFit] = {}
        self._refused: dict[str, tuple[float, str]] = {}
        self._taken: dict[tuple[NodeId, MeterSource], float] = {}
        self._outside_told: float | None = None
        self.books = books
        self.facts = SiteFacts(index, site_id)
        self.pdus: dict[str, PduSeen] = {}

    # PDUs ---------------------------------------------------------------------------------------

    def start(self, tasks: Tasks, on_probe: Callable[[], None], probe_step_k: float) -> None:
        """Begin to read the PDUs; `on_probe` hears of an outside probe that moved."""

        def take(seen: PduSeen) -> None:
            self._take_pdu(seen)
            celsius, told = seen.outside_celsius, self._outside_told
            if celsius is not None and (told is None or abs(celsius - told) >= probe_step_k):
                self._outside_told = celsius
                on_probe()

        for rack, open_pdu in self._open_pdus.items():
            reader = PduReader(rack, open_pdu, self._clock, take)
            self.pdus[rack] = reader.seen
            tasks.keep(f"PDU {rack}", reader.run)

    async def publish_pdus(self, site: Site) -> None:
        """Enter the site's PDUs in its catalogue."""
        own = self._site_id
        for rack, url in self._energy.pdus.items():
            pdu = Pdu(
                pdu_id=PduId(f"{own}-{rack}-pdu"), site_id=own, rack_id=RackId(f"{own}-{rack}"),
                name=f"{own}-{rack}-pdu", url=url,
            )  # fmt: skip
            if self._index.find_value(Pdu, pdu.pdu_id) != pdu:
                await site.save(pdu)

    def probe(self, now_s: float) -> Figure | None:
        """Return what the first PDU with a probe outside reads."""
        for seen in self.pdus.values():
            if seen.outside_celsius is not None and not seen.is_silent(now_s):
                return Figure(seen.outside_celsius, "PDU probe", seen.read_s)
        return None

    def limits(self, now_s: float) -> tuple[PowerLimit, ...]:
        """Return what outlets, branches, feeds and the container may carry of V-nodes."""
        return self.facts.limits(self.pdus, self._energy.feed_amps, self._container_watts, now_s)

    def _take_pdu(self, seen: PduSeen) -> None:
        for node in self.facts.nodes():
            watts = node_watts(node, seen)
            if watts is not None:
                self._take(node.node_id, Reading(MeterSource.OUTLET, watts, seen.read_s))
        for name, energy_kwh in self.facts.counters(seen):
            self.books.take_counter(name, energy_kwh, seen.read_s)

    def _take(self, node_id: NodeId, reading: Reading) -> None:
        meter = (node_id, reading.source)
        if self._taken.get(meter) == reading.read_s:
            return  # reports come more often than a BMC is read
        self._taken[meter] = reading.read_s
        refused = self.books.take(node_id, reading)
        if refused is not None:
            source = reading.source.name.lower()
            told = f"{node_id} {source}: {refused.reason} (rule {refused.rule})"
            self._refused[f"{node_id} {source}"] = (self._clock.now_s(), told)

    def refused(self, now_s: float) -> tuple[str, ...]:
        """Return the readings of late that were not believed, with the rule that says so."""
        self._refused = {
            meter: (seen_s, told)
            for meter, (seen_s, told) in self._refused.items()
            if now_s - seen_s <= REFUSED_SHOWN_S
        }
        return tuple(told for _, told in self._refused.values())

    # Nodes --------------------------------------------------------------------------------------

    def take_report(self, report: VnodeReport, vector: EstimationVector) -> EstimationVector:
        """Return the vector with the meter that is believed."""
        now_s = self._clock.now_s()
        node_id = vector.node_id
        self.books.take_report(report, now_s)
        source = SOURCES.get(vector.power_source, MeterSource.MODEL)
        self._take(node_id, Reading(source, vector.power_watts, vector.power_read_s))
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

    @property
    def curves(self) -> dict[NodeId, tuple[float, ...]]:
        """The curves that were refined in this life."""
        return {node_id: fit.curve().watts for node_id, fit in self._fits.items()}

    @property
    def curves_to_keep(self) -> dict[NodeId, tuple[float, ...]]:
        """Those, and what was known before of nodes that have not reported since."""
        return self._kept_curves | self.curves

    # Accounts -----------------------------------------------------------------------------------

    def settle(self, now_s: float, costs: Costs) -> None:
        """Share out what passed since the last time."""
        vms = self._index.values(Vm)
        self.books.settle(
            now_s,
            costs,
            iaas_of={vm.vm_id: vm.iaas_id for vm in vms},
            memory_of={vm.vm_id: float(vm.shape.memory_mib) for vm in vms},
            memory_mib={n.node_id: float(n.memory_mib) for n in self.facts.nodes()},
        )
        self.books.keep_vms({vm.vm_id for vm in vms})
