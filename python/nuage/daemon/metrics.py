"""What a controller measures of itself, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nuage.iaas.contract_watch import Checked
from nuage.iaas.index import FederationIndex
from nuage.model.status import NodeStatus
from nuage.model.vm import Vm, VmState

REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class ControllerMetrics:
    """The figures of one controller; names follow Prometheus' base units."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "nuage_api_requests_total",
            "API requests by operation and outcome",
            ["operation", "outcome"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "nuage_api_request_seconds",
            "Time to answer an API request",
            ["operation"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.feed_lag_seconds = Histogram(
            "nuage_feed_lag_seconds",
            "From a change at its home, by the home's clock, until it shows here",
            ["site"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self._vms = Gauge("nuage_vms", "VMs of this site by state", ["state"], registry=registry)
        self._age = Gauge(
            "nuage_feed_age_seconds",
            "Seconds since another site was heard",
            ["site"],
            registry=registry,
        )
        self._promised, self._promise_max = (
            Gauge(name, text, ["node"], registry=registry)
            for name, text in (
                ("nuage_ionode_promised_bytes", "Sizes of the volumes with copies on an IO-node"),
                ("nuage_ionode_promise_bytes_max", "What these may come to: disks x overcommit"),
            )
        )
        self._lease = Gauge(
            "nuage_site_lease_seconds", "Seconds this site may act as owner", registry=registry
        )
        self._findings = Gauge(
            "nuage_contract_findings",
            "VMs, copies and receipts outside the contract of an IaaS at its last check",
            ["iaas"],
            registry=registry,
        )
        self._checked = Gauge(
            "nuage_contract_checked_timestamp_seconds",
            "When an IaaS was last checked against its contract",
            ["iaas"],
            registry=registry,
        )

    def answered(self, operation: str, outcome: str, took_s: float) -> None:
        """Count an API request (`api.http.Doors.answered`)."""
        self.requests.labels(operation, outcome).inc()
        self.request_seconds.labels(operation).observe(took_s)

    def fed(self, site: str, lag_s: float) -> None:
        """Note how late another site's change arrived; clocks that differ count as lag or none."""
        self.feed_lag_seconds.labels(site).observe(max(lag_s, 0.0))

    def refresh(self, index: FederationIndex, ages: dict[str, float], lease_s: float) -> None:
        """Read the figures that are looked at only when somebody asks."""
        counts = dict.fromkeys(VmState, 0)
        for vm in index.values(Vm):
            if vm.site_id == index.site_id:
                counts[vm.state] += 1
        for state, count in counts.items():
            self._vms.labels(state.value).set(count)
        for site, age_s in ages.items():
            self._age.labels(site).set(age_s)
        self._lease.set(lease_s)
        self._promised.clear()
        self._promise_max.clear()
        for status in index.values(NodeStatus):
            if status.site_id == index.site_id and status.total_bytes:
                self._promised.labels(status.node_id).set(index.promises.on(status.node_id))
                self._promise_max.labels(status.node_id).set(status.promise_bytes_max)

    def show_checks(self, checks: dict[str, Checked]) -> None:
        """Take what the last checks of contracts found, by IaaS."""
        self._findings.clear()
        self._checked.clear()
        for iaas, checked in checks.items():
            self._findings.labels(iaas).set(len(checked.known))
            self._checked.labels(iaas).set(checked.at_s)
