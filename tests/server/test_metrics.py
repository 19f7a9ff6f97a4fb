"""Metrics: one registry a gateway, labels of bounded number."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metrics

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


def test_what_is_rendered_can_be_read_by_prometheus() -> None:
    metrics = Metrics()
    metrics.requests.labels("chat", 200).inc()
    metrics.verdicts.labels('odd "name"\n', "enforce", "true").inc()
    metrics.judge_seconds.observe(0.004)
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    assert families["lethe_requests"].samples[0].labels == {"endpoint": "chat", "status": "200"}
    assert families["lethe_verdicts"].samples[0].labels["policy"] == 'odd "name"\n'
    assert families["lethe_judge_seconds"].type == "histogram"


def test_every_metric_is_ours_has_a_help_text_and_bounded_labels() -> None:
    metrics = Metrics()
    collectors = [value for name, value in vars(metrics).items() if name != "registry"]
    assert collectors
    for collector in collectors:
        family = collector.describe()[0]
        assert family.name.startswith("lethe_") and family.documentation.endswith(".")
        assert set(collector._labelnames) <= BOUNDED.keys()
