"""What a controller tells Prometheus of its requests and of the feeds."""

from prometheus_client import generate_latest

from nuage.daemon.metrics import ControllerMetrics
from nuage.daemon.process import new_registry


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
