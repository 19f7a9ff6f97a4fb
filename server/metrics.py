"""Prometheus metrics of one gateway process. Labels are bounded: no client text ever becomes one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """All metrics, in a registry of their own so that two gateways can live in one process (tests)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("lethe_requests", "Requests answered.", ["endpoint", "status"], registry=r)
        self.in_flight = Gauge("lethe_requests_in_flight", "Requests being served.", registry=r)
        self.verdicts = Counter(
            "lethe_verdicts",
            "Judged requests by policy: flagged or not, in which mode.",
            ["policy", "mode", "flagged"],
            registry=r,
        )
        self.actions = Counter("lethe_actions", "What was done to judged requests.", ["action"], registry=r)
        self.guard_failures = Counter(
            "lethe_guard_failures",
            "Requests that could not be guarded as the policy says, and what was done instead.",
            ["policy", "stage", "outcome"],
            registry=r,
        )
        self.client_gone = Counter(
            "lethe_client_gone", "Clients that left before their answer was complete.", ["window"], registry=r
        )
        self.upstream_errors = Counter("lethe_upstream_errors", "Failures of vLLM, by kind.", ["kind"], registry=r)
        self.judge_seconds = Histogram(
            "lethe_judge_seconds", "Judging and rewriting, by request.", buckets=SECONDS, registry=r
        )
        self.upstream_seconds = Histogram(
            "lethe_upstream_first_byte_seconds",
            "From sending to vLLM's response headers.",
            buckets=SECONDS,
            registry=r,
        )
        self.request_seconds = Histogram(
            "lethe_request_seconds", "Whole requests.", ["endpoint"], buckets=SECONDS, registry=r
        )
        self.audit_records = Counter("lethe_audit_records", "Audit records written.", registry=r)
        self.audit_lost = Counter("lethe_audit_lost", "Audit records lost (queue full or write failed).", registry=r)
        self.upstream_up = Gauge("lethe_upstream_up", "1 while vLLM answers its health check.", registry=r)
        self.parity = Gauge(
            "lethe_parity",
            "1 while clean embeddings give the same answer as text, so corrupt may act.",
            registry=r,
        )
        self.policies = Gauge("lethe_policies", "Policies loaded.", ["mode"], registry=r)

    def render(self) -> bytes:
        return generate_latest(self.registry)
