"""Prometheus metrics of one gateway. Labels are bounded: no client text ever becomes one.

Where several workers serve, each keeps its values in files that all can read, under its number: one answer shows the
sum over all, and a worker that takes a dead one's place goes on counting where that one ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# What all workers together show of a gauge. Those of a worker that has died are left out ("live").
SUM: Final = "livesum"
LEAST: Final = "livemin"
MOST: Final = "livemax"


# Each worker has one of each. They are written through memory, so a disk that is full would end the process (SIGBUS):
# they have their room from the start. 1 MiB holds some 5,000 series.
FILES = ("counter", "histogram", *(f"gauge_{mode}" for mode in (SUM, LEAST, MOST)))
ROOM_BYTES = 1 << 20


def share(folder: Path, number: int) -> None:
    """Have this process's metrics, all that are made from now on, kept in `folder` as those of worker `number`.

    Its gauges are shown from `show` on. Raises OSError where there is no room for them.
    """
    folder.mkdir(exist_ok=True)
    for name in FILES:
        with (folder / f"{name}_{number}.db").open("ab") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, ROOM_BYTES)
            except OSError as error:
                raise OSError(error.errno, error.strerror, file.name) from None
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def show(folder: Path, number: int) -> None:
    """The worker of that number serves: its gauges say something from now on. Before, they say 0 of what it has not
    looked at yet."""
    _shown(folder, number).touch()


def leave_out(folder: Path, number: int) -> None:
    """The worker of that number has died: its gauges say nothing any more. Its counters stay."""
    for path in (_shown(folder, number), *folder.glob(f"gauge_live*_{number}.db")):
        path.unlink(missing_ok=True)


def _shown(folder: Path, number: int) -> Path:
    return folder / f"serves-{number}"


class _Collector(MultiProcessCollector):
    """All counters and histograms, and the gauges of workers that serve."""

    def __init__(self, folder: Path) -> None:
        super().__init__(None, str(folder))  # type: ignore[no-untyped-call]
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        files = [path for path in self._folder.glob("*.db") if self._says_something(path)]
        merged: Iterable[Metric] = self.merge([str(path) for path in files])  # type: ignore[no-untyped-call]
        return merged

    def _says_something(self, path: Path) -> bool:
        name, _, number = path.stem.rpartition("_")
        return not name.startswith("gauge") or _shown(self._folder, int(number)).exists()


class Metrics:
    """All metrics, in a registry of their own so that two gateways can live in one process (tests)."""

    def __init__(self, shared: Path | None = None) -> None:
        """shared: the folder given to `share`, where this is one worker of several."""
        self._shared = shared
        self._computed: list[tuple[Gauge, Callable[[], float]]] = []
        self.registry = CollectorRegistry()
        r = self.registry
        self.workers = Gauge("lethe_workers", "Processes that serve.", registry=r, multiprocess_mode=SUM)
        self.worker_starts = Counter("lethe_worker_starts", "Processes that began to serve.", registry=r)
        self.requests = Counter("lethe_requests", "Requests answered.", ["endpoint", "status"], registry=r)
        self.in_flight = Gauge("lethe_requests_in_flight", "Requests being served.", registry=r, multiprocess_mode=SUM)
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
        self.replica_up = Gauge(
            "lethe_replica_up", "1 while it answers its health check.", ["replica"], registry=r, multiprocess_mode=LEAST
        )
        self.replica_in_flight = Gauge(
            "lethe_replica_in_flight", "Requests that it is answering.", ["replica"], registry=r, multiprocess_mode=SUM
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
            multiprocess_mode=LEAST,
        )
        self.policies = Gauge("lethe_policies", "Policies loaded.", ["mode"], registry=r, multiprocess_mode=MOST)
        self.policies_version = Gauge(
            "lethe_policies_version", "Number of the version in force.", registry=r, multiprocess_mode=LEAST
        )
        self.policies_reloads = Counter(
            "lethe_policies_reloads", "Changes of policy files and artifacts, by what came of them.", ["outcome"],
            registry=r,
        )  # fmt: skip
        self.policies_reload_failed = Gauge(
            "lethe_policies_reload_failed",
            "1 while the files can't be used and the policies before them stay in force.",
            registry=r,
            multiprocess_mode=MOST,
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
        self.queue_length = Gauge(
            "lethe_queue_length", "Requests that wait to be served.", registry=r, multiprocess_mode=SUM
        )
        self.judge_queue_length = Gauge(
            "lethe_judge_queue_length", "Requests that wait to be judged.", registry=r, multiprocess_mode=SUM
        )
        self.judge_wait_seconds = Histogram(
            "lethe_judge_wait_seconds", "Waiting for a turn to be judged.", buckets=SECONDS, registry=r
        )
        self.held_bytes = Gauge(
            "lethe_held_bytes", "Bytes of request bodies in memory.", registry=r, multiprocess_mode=SUM
        )
        self.connections = Gauge("lethe_connections", "Open connections of clients.", registry=r, multiprocess_mode=SUM)
        self.loop_lag = Gauge(
            "lethe_loop_lag_seconds",
            "Longest delay of the event loop in the last ten seconds.",
            registry=r,
            multiprocess_mode=MOST,
        )
        self.keys = Gauge("lethe_keys", "API keys in force.", registry=r, multiprocess_mode=MOST)
        self.keys_stale = Gauge(
            "lethe_keys_stale",
            "1 while the key file can't be used and old keys serve.",
            registry=r,
            multiprocess_mode=MOST,
        )
        self.keys_reload_failed = Counter("lethe_keys_reload_failed", "Key files that could not be used.", registry=r)

    def compute(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Have a gauge show what `value` returns when it is asked for."""
        if self._shared is None:
            gauge.set_function(value)
        else:
            self._computed.append((gauge, value))

    def refresh(self) -> None:
        """Let the other workers see the gauges that are computed as they are now."""
        for gauge, value in self._computed:
            gauge.set(value())

    def render(self) -> bytes:
        """All metrics, of all workers, as Prometheus reads them."""
        if self._shared is None:
            return generate_latest(self.registry)
        self.refresh()
        everywhere = CollectorRegistry()
        everywhere.register(_Collector(self._shared))
        return generate_latest(everywhere)
