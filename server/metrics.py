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
        self.watch_hits = Counter(
            "lethe_watch_hits",
            "Forbidden phrases found in answers, and what was done on it.",
            ["policy", "on_hit"],
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
        self.replica_up = Gauge("lethe_replica_up", "1 while it answers its health check.", ["replica"], registry=r)
        self.replica_in_flight = Gauge(
            "lethe_replica_in_flight", "Requests that it is answering.", ["replica"], registry=r
        )
        self.replica_errors = Counter(
            "lethe_replica_errors", "Requests that it failed, by kind.", ["replica", "kind"], registry=r
        )
        self.replica_ejections = Counter(
            "lethe_replica_ejections", "Times that it was left out for a while.", ["replica"], registry=r
        )
        self.replica_restarts = Counter(
            "lethe_replica_restarts", "Restarts that were seen by its own clock.", ["replica"], registry=r
        )
        self.replica_parity = Gauge(
            "lethe_replica_parity",
            "1 while its clean embeddings give the same answer as text, so corrupt may act.",
            ["replica"],
            registry=r,
        )
        self.policies = Gauge("lethe_policies", "Policies loaded.", ["mode"], registry=r)
        self.policies_version = Gauge("lethe_policies_version", "Number of the version in force.", registry=r)
        self.policies_reloads = Counter(
            "lethe_policies_reloads", "Changes of policy files and artifacts, by what came of them.", ["outcome"],
            registry=r,
        )  # fmt: skip
        self.policies_reload_failed = Gauge(
            "lethe_policies_reload_failed",
            "1 while the files can't be used and the policies before them stay in force.",
            registry=r,
        )
        self.policies_reload_seconds = Histogram(
            "lethe_policies_reload_seconds", "Reading changed policies.", buckets=SECONDS, registry=r
        )
        self.refusals = Counter(
            "lethe_refusals",
            "Requests that the gateway answered with an error of its own, by the error's code.",
            ["reason"],
            registry=r,
        )
        self.queue_length = Gauge("lethe_queue_length", "Requests that wait to be served.", registry=r)
        self.judge_queue_length = Gauge("lethe_judge_queue_length", "Requests that wait to be judged.", registry=r)
        self.judge_wait_seconds = Histogram(
            "lethe_judge_wait_seconds", "Waiting for a turn to be judged.", buckets=SECONDS, registry=r
        )
        self.held_bytes = Gauge("lethe_held_bytes", "Bytes of request bodies in memory.", registry=r)
        self.connections = Gauge("lethe_connections", "Open connections of clients.", registry=r)
        self.loop_lag = Gauge(
            "lethe_loop_lag_seconds", "Longest delay of the event loop in the last ten seconds.", registry=r
        )
        self.keys = Gauge("lethe_keys", "API keys in force.", registry=r)
        self.keys_stale = Gauge(
            "lethe_keys_stale", "1 while the key file can't be used and old keys serve.", registry=r
        )
        self.keys_reload_failed = Counter("lethe_keys_reload_failed", "Key files that could not be used.", registry=r)

    def render(self) -> bytes:
        return generate_latest(self.registry)
