"""A site's energy for Prometheus; names follow its base units, so joules and not kilowatt-hours."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge

from nuage.energy.accounting import LedgerRow
from nuage.iaas.index import FederationIndex
from nuage.model.energy import SiteEnergy
from nuage.units import JOULES_PER_KWH


class EnergyMetrics:
    """The figures of this site's energy. Accounts rise within a month: ask for `increase()`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"nuage_energy_{name}", text, labels, registry=registry)

        self._watts = gauge("it_watts", "What this site's IT draws")
        self._pue = gauge("pue", "Facility over IT energy now", ("boundary", "category"))
        self._price = gauge("price_eur_per_mwh", "Price of electricity now")
        self._carbon = gauge("carbon_grams_per_kwh", "Carbon of the grid now")
        self._outside = gauge("outside_celsius", "Outside temperature")
        self._share = gauge("share_in_service", "Share of nodes in service")
        node = ("node", "source")
        self._node_watts = gauge("node_watts", "What a node draws, by its believed meter", node)
        self._node_age = gauge("node_reading_seconds", "When that was read (epoch)", ("node",))
        account = ("month", "iaas")
        self._joules = gauge("it_joules", "IT energy by month and IaaS", account)
        self._facility = gauge("facility_joules", "The same at the site's meter", account)
        self._cost = gauge("cost_eur", "Cost by month and IaaS", account)
        self._grams = gauge("carbon_grams", "gCO2e by month and IaaS", account)

    def refresh(self, index: FederationIndex, rows: Iterable[LedgerRow]) -> None:
        """Read the figures that are looked at only when somebody asks."""
        now = index.find_value(SiteEnergy, index.site_id)
        if now is not None:
            self._watts.set(now.it_watts)
            self._pue.clear()
            self._pue.labels(now.pue_boundary, str(now.pue_category)).set(now.pue)
            self._share.set(now.share)
            for gauge, value in (
                (self._price, now.price_eur_per_mwh),
                (self._carbon, now.carbon_g_per_kwh),
                (self._outside, now.outside_celsius),
            ):
                if value is not None:
                    gauge.set(value)
            self._node_watts.clear()
            for node in now.nodes:
                self._node_watts.labels(node.node_id, node.source).set(node.watts)
                self._node_age.labels(node.node_id).set(node.read_s)
        for row in rows:
            labels = (row.month, row.iaas_id or "site")
            self._joules.labels(*labels).set(row.it_kwh * JOULES_PER_KWH)
            self._facility.labels(*labels).set(row.facility_kwh * JOULES_PER_KWH)
            self._cost.labels(*labels).set(row.cost_eur)
            self._grams.labels(*labels).set(row.carbon_g)
