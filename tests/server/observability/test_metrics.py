"""Metrics: one registry per gateway, and labels with a bounded number of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families

from lethe.server.observability.metrics import (
    WORKER_FILE_BYTES,
    Metrics,
    mark_serving,
    remove_worker_gauges,
    use_worker_files,
)

# Label → why it can't grow with what clients send.
BOUNDED = {
    "endpoint": "our routes",
    "status": "HTTP",
    "policy": "policy files",
    "mode": "enforce, shadow, off",
    "flagged": "true, false",
    "action": "six words",
    "stage": "stages of the guard",
    "outcome": "policy's words",
    "window": "stages of a request",
    "kind": "codes of upstream errors",
    "reason": "codes of our own errors",
    "on_hit": "stop, replace",
    "replica": "LETHE_UPSTREAM",
}


def test_two_gateways_can_live_in_one_process() -> None:
    first, second = Metrics(), Metrics()
    first.audit_lost.inc()
    assert first.registry.get_sample_value("lethe_audit_lost_total") == 1
    assert second.registry.get_sample_value("lethe_audit_lost_total") == 0


def test_prometheus_can_parse_the_rendered_metrics() -> None:
    metrics = Metrics()
    metrics.requests.labels("chat", 200).inc()
    metrics.verdicts.labels('odd "name"\n', "enforce", "true").inc()
    metrics.judge_seconds.observe(0.004)
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    assert families["lethe_requests"].samples[0].labels == {"endpoint": "chat", "status": "200"}
    assert families["lethe_verdicts"].samples[0].labels["policy"] == 'odd "name"\n'
    assert families["lethe_judge_seconds"].type == "histogram"


def test_every_metric_has_help_and_bounded_labels() -> None:
    metrics = Metrics()
    collectors = [value for name, value in vars(metrics).items() if name != "registry" and name[0] != "_"]
    assert collectors
    for collector in collectors:
        family = collector.describe()[0]
        assert family.name.startswith("lethe_") and family.documentation.endswith(".")
        assert set(collector._labelnames) <= BOUNDED.keys()


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Metrics]]:
    """Metrics of a worker of several, by its number."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)

    def made(number: int) -> Metrics:
        use_worker_files(tmp_path, number)
        made = Metrics(tmp_path)
        mark_serving(tmp_path, number)
        return made

    yield made
    values.close_all_multiprocess_files()


def shown(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(one.name, tuple(one.labels.values())): one.value for family in families for one in family.samples}


def test_one_response_covers_all_workers(worker: Callable[[int], Metrics]) -> None:
    first, second = worker(0), worker(1)
    for metrics, count in ((first, 3), (second, 4)):
        metrics.requests.labels("chat", 200).inc(count)
        metrics.judge_seconds.observe(count)
        metrics.policies_version.set(count)
        metrics.loop_lag.set(count)
        metrics.compute(metrics.in_flight, lambda count=count: count)
    second.refresh()
    for metrics in (first, second):
        found = shown(metrics)
        assert found["lethe_requests_total", ("chat", "200")] == 7
        assert found["lethe_judge_seconds_sum", ()] == 7 and found["lethe_judge_seconds_count", ()] == 2
        assert found["lethe_requests_in_flight", ()] == 7
        # The version that all serve, and the worst of what is bad.
        assert found["lethe_policies_version", ()] == 3 and found["lethe_loop_lag_seconds", ()] == 4


def test_a_replaced_worker_continues_counters_and_resets_gauges(
    worker: Callable[[int], Metrics], tmp_path: Path
) -> None:
    first, second = worker(0), worker(1)
    first.client_gone.labels("judging").inc(2)
    second.client_gone.labels("judging").inc(5)
    first.queue_length.set(1)
    second.queue_length.set(9)
    remove_worker_gauges(tmp_path, 1)
    assert shown(first)["lethe_queue_length", ()] == 1
    again = worker(1)
    again.client_gone.labels("judging").inc()
    again.queue_length.set(2)
    assert shown(first)["lethe_client_gone_total", ("judging",)] == 8
    assert shown(first)["lethe_queue_length", ()] == 3


def test_every_gauge_has_a_mode_for_several_workers() -> None:
    gauges = [value for value in vars(Metrics()).values() if getattr(value, "_type", "") == "gauge"]
    assert len(gauges) > 10 and {gauge._multiprocess_mode for gauge in gauges} == {"livesum", "livemin", "livemax"}


def test_gauges_of_a_starting_worker_are_hidden(worker: Callable[[int], Metrics], tmp_path: Path) -> None:
    first = worker(0)
    first.policies_version.set(7)
    use_worker_files(tmp_path, 1)
    starting = Metrics(tmp_path)
    starting.client_gone.labels("judging").inc()
    assert shown(first)["lethe_policies_version", ()] == 7
    assert shown(first)["lethe_client_gone_total", ("judging",)] == 1
    starting.policies_version.set(6)
    mark_serving(tmp_path, 1)
    assert shown(first)["lethe_policies_version", ()] == 6
    remove_worker_gauges(tmp_path, 1)
    worker(1).policies_version.set(8)
    assert shown(first)["lethe_policies_version", ()] == 7


def test_file_space_is_allocated_at_start(worker: Callable[[int], Metrics], tmp_path: Path) -> None:
    use_worker_files(tmp_path, 0)
    before = {path: path.stat() for path in tmp_path.glob("*.db")}
    assert all(one.st_size == WORKER_FILE_BYTES <= 512 * one.st_blocks for one in before.values())
    metrics = worker(0)
    metrics.judge_seconds.observe(1)
    metrics.compute(metrics.in_flight, lambda: 3)
    assert shown(metrics)["lethe_requests_in_flight", ()] == 3
    assert {path: path.stat().st_size for path in tmp_path.glob("*.db")} == dict.fromkeys(before, WORKER_FILE_BYTES)
