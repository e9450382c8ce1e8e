"""What a controller tells Prometheus of its requests and of the feeds."""

from prometheus_client import generate_latest
from tests.unit.iaas.iaas_makers import record, volume

from nuage.daemon.metrics import ControllerMetrics
from nuage.daemon.process import new_registry
from nuage.iaas.index import FederationIndex
from nuage.ids import NodeId, SiteId
from nuage.model.status import NodeStatus
from nuage.units import GIB


def text_of(metrics: ControllerMetrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_requests_are_counted_by_operation_and_outcome() -> None:
    metrics = ControllerMetrics(new_registry())
    metrics.answered("vm.create", "ok", 0.02)
    metrics.answered("vm.create", "no_candidate", 0.3)
    text = text_of(metrics)
    assert 'nuage_api_requests_total{operation="vm.create",outcome="ok"} 1.0' in text
    assert 'nuage_api_requests_total{operation="vm.create",outcome="no_candidate"} 1.0' in text
    assert 'nuage_api_request_seconds_count{operation="vm.create"} 2.0' in text


def test_a_clock_that_runs_behind_shows_no_negative_lag() -> None:
    metrics = ControllerMetrics(new_registry())
    metrics.fed("lyon", -3.0)
    assert 'nuage_feed_lag_seconds_sum{site="lyon"} 0.0' in text_of(metrics)


def test_what_is_promised_of_the_sites_own_ionodes_is_told() -> None:
    metrics = ControllerMetrics(new_registry())
    index = FederationIndex(SiteId("marne"))
    for at in ("marne", "lyon"):
        index.put(record(NodeStatus(
            node_id=NodeId(f"{at}-io"), site_id=SiteId(at), connected=True, since_s=0.0,
            total_bytes=GIB, overcommit_ratio=2.0,
        ), home=at))  # fmt: skip
    index.put(record(volume(places=(("marne", "marne-io"), ("lyon", "lyon-io")))))
    metrics.refresh(index, {}, 0.0)
    lines = [line for line in text_of(metrics).splitlines() if "_promise" in line]
    assert [line for line in lines if not line.startswith("#")] == [
        'nuage_ionode_promised_bytes{node="marne-io"} 6.7108864e+07',
        'nuage_ionode_promise_bytes_max{node="marne-io"} 2.147483648e+09',
    ]
