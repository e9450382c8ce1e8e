"""An IO-node's disks and their shares as Prometheus reads them."""

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from nuage.model.desired import IonodeReport

DISK = ("disk", "class")
SHARE = ("disk", "iaas")


class DiskMetrics(Collector):
    """Reads the node's newest report each time it is asked."""

    def __init__(self, report: Callable[[], IonodeReport]) -> None:
        self._report = report

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield each figure of each disk, and of each share of it."""
        report = self._report()
        free = GaugeMetricFamily("nuage_disk_free_bytes", "Bytes free", labels=DISK)
        total = GaugeMetricFamily("nuage_disk_total_bytes", "Bytes of the disk", labels=DISK)
        for disk in report.disks:
            labels = (disk.name, disk.disk_class.value)
            free.add_metric(labels, disk.free_bytes)
            total.add_metric(labels, disk.total_bytes)
        yield from (free, total)
        figures = (
            ("share_operations", "Operations a second allowed, 0: all there are"),
            ("share_bytes", "Bytes a second allowed, 0: all there are"),
            ("taken_operations", "Operations a second taken"),
            ("taken_bytes", "Bytes a second taken"),
            ("share_waits", "1: it would take more"),
        )
        families = [
            GaugeMetricFamily(f"nuage_disk_{name}", text, labels=SHARE) for name, text in figures
        ]
        for share in report.shares:
            values = (
                share.limits.operations_per_s,
                share.limits.bytes_per_s,
                share.operations_per_s,
                share.bytes_per_s,
                float(share.waits),
            )
            for family, value in zip(families, values, strict=True):
                family.add_metric((share.disk, share.iaas_id), value)
        yield from families
