"""Prometheus metrics of one gateway. Labels have a bounded number of values: none is text of a client.

With several workers, each writes its values to memory-mapped files that all can read. The response of any worker shows
the sum over all. A worker that replaces a dead one continues its counters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

# Upper limits of histogram buckets, in seconds. Chosen: 1 ms is the fastest judgement, 300 s a long response.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# How the gauges of all living workers are combined (names of prometheus_client).
SUM: Final = "livesum"
MINIMUM: Final = "livemin"
MAXIMUM: Final = "livemax"

# The files of each worker.
WORKER_FILES = ("counter", "histogram", *(f"gauge_{mode}" for mode in (SUM, MINIMUM, MAXIMUM)))
# Size of each file. They are memory-mapped: a write to a full disk would kill the process (SIGBUS), so their space is
# allocated at start. 1 MiB holds about 5,000 series.
WORKER_FILE_BYTES = 1 << 20


def use_worker_files(folder: Path, number: int) -> None:
    """Keep all metrics that this process creates from now on in files of `folder`, as worker `number`.

    Its gauges are hidden until `mark_serving`. Raises OSError if the disk has no space for the files.
    """
    folder.mkdir(exist_ok=True)
    for name in WORKER_FILES:
        with (folder / f"{name}_{number}.db").open("ab") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, WORKER_FILE_BYTES)
            except OSError as error:
                raise OSError(error.errno, error.strerror, file.name) from None
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def mark_serving(folder: Path, number: int) -> None:
    """Show the gauges of this worker from now on. Before it serves, they would be 0 and distort minimums."""
    _serving_marker(folder, number).touch()


def remove_worker_gauges(folder: Path, number: int) -> None:
    """Remove the gauges of a worker that has died. Its counters stay."""
    for path in (_serving_marker(folder, number), *folder.glob(f"gauge_live*_{number}.db")):
        path.unlink(missing_ok=True)


def _serving_marker(folder: Path, number: int) -> Path:
    return folder / f"serves-{number}"


class _AllWorkersCollector(MultiProcessCollector):
    """All counters and histograms, and the gauges of workers that serve."""

    def __init__(self, folder: Path) -> None:
        super().__init__(None, str(folder))  # type: ignore[no-untyped-call]
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        files = [path for path in self._folder.glob("*.db") if self._is_shown(path)]
        merged: Iterable[Metric] = self.merge([str(path) for path in files])  # type: ignore[no-untyped-call]
        return merged

    def _is_shown(self, path: Path) -> bool:
        name, _, number = path.stem.rpartition("_")
        return not name.startswith("gauge") or _serving_marker(self._folder, int(number)).exists()


class Metrics:
    """All metrics, in a registry of their own, so that tests can run two gateways in one process."""

    def __init__(self, worker_folder: Path | None = None) -> None:
        """worker_folder: the folder given to `use_worker_files`, if this is one of several workers."""
        self._worker_folder = worker_folder
        self._computed: list[tuple[Gauge, Callable[[], float]]] = []
        self.registry = CollectorRegistry()
        r = self.registry
        self.workers = Gauge("lethe_workers", "Server processes.", registry=r, multiprocess_mode=SUM)
        self.worker_starts = Counter("lethe_worker_starts", "Starts of server processes.", registry=r)
        self.requests = Counter("lethe_requests", "Requests answered.", ["endpoint", "status"], registry=r)
        self.in_flight = Gauge("lethe_requests_in_flight", "Requests in progress.", registry=r, multiprocess_mode=SUM)
        self.verdicts = Counter(
            "lethe_verdicts",
            "Judged requests, by policy, mode of the policy, and whether it flagged them.",
            ["policy", "mode", "flagged"],
            registry=r,
        )
        self.actions = Counter("lethe_actions", "Judged requests, by the action taken.", ["action"], registry=r)
        self.guard_failures = Counter(
            "lethe_guard_failures",
            "Requests for which a step of the guard failed, and the outcome that the policy demands.",
            ["policy", "stage", "outcome"],
            registry=r,
        )
        self.watch_hits = Counter(
            "lethe_watch_hits",
            "Forbidden phrases that the output filter found in responses.",
            ["policy", "on_hit"],
            registry=r,
        )
        self.client_gone = Counter(
            "lethe_client_gone",
            "Client disconnects before the response was complete, by stage of the request.",
            ["window"],
            registry=r,
        )
        self.upstream_errors = Counter("lethe_upstream_errors", "Errors of vLLM, by kind.", ["kind"], registry=r)
        self.judge_seconds = Histogram(
            "lethe_judge_seconds", "Time to judge and rewrite a request.", buckets=SECONDS, registry=r
        )
        self.upstream_seconds = Histogram(
            "lethe_upstream_first_byte_seconds",
            "Time from sending a request to receiving vLLM's response headers.",
            buckets=SECONDS,
            registry=r,
        )
        self.request_seconds = Histogram(
            "lethe_request_seconds", "Duration of requests.", ["endpoint"], buckets=SECONDS, registry=r
        )
        self.audit_records = Counter("lethe_audit_records", "Audit records written.", registry=r)
        self.audit_lost = Counter(
            "lethe_audit_lost", "Audit records lost because the queue was full or writing failed.", registry=r
        )
        self.replica_up = Gauge(
            "lethe_replica_up",
            "1 while the replica passes its health check.",
            ["replica"],
            registry=r,
            multiprocess_mode=MINIMUM,
        )
        self.replica_in_flight = Gauge(
            "lethe_replica_in_flight",
            "Requests in progress, by replica.",
            ["replica"],
            registry=r,
            multiprocess_mode=SUM,
        )
        self.replica_errors = Counter(
            "lethe_replica_errors", "Failed requests, by replica and kind of error.", ["replica", "kind"], registry=r
        )
        self.replica_ejections = Counter(
            "lethe_replica_ejections",
            "Times that a replica was ejected (got no requests for a while) after failures.",
            ["replica"],
            registry=r,
        )
        self.replica_restarts = Counter(
            "lethe_replica_restarts", "Restarts of a replica, detected by its start time.", ["replica"], registry=r
        )
        self.replica_parity = Gauge(
            "lethe_replica_parity",
            "1 while the parity probe passes: clean embeddings give the same answer as text.",
            ["replica"],
            registry=r,
            multiprocess_mode=MINIMUM,
        )
        self.policies = Gauge(
            "lethe_policies", "Loaded policies, by mode.", ["mode"], registry=r, multiprocess_mode=MAXIMUM
        )
        self.policies_version = Gauge(
            "lethe_policies_version", "Number of the current policy version.", registry=r, multiprocess_mode=MINIMUM
        )
        self.policies_reloads = Counter(
            "lethe_policies_reloads", "Reloads of policy files and artifacts, by outcome.", ["outcome"],
            registry=r,
        )  # fmt: skip
        self.policies_reload_failed = Gauge(
            "lethe_policies_reload_failed",
            "1 while the policy files are invalid and the previous version is used.",
            registry=r,
            multiprocess_mode=MAXIMUM,
        )
        self.policies_reload_seconds = Histogram(
            "lethe_policies_reload_seconds", "Time to reload changed policies.", buckets=SECONDS, registry=r
        )
        self.refusals = Counter(
            "lethe_refusals",
            "Requests that ended with an error of the gateway's own, by error code, and requests that a policy "
            "refused, also where the refusal was sent as an ordinary answer (`refused_by_policy`).",
            ["reason"],
            registry=r,
        )
        self.queue_length = Gauge(
            "lethe_queue_length", "Requests waiting to be served.", registry=r, multiprocess_mode=SUM
        )
        self.judge_queue_length = Gauge(
            "lethe_judge_queue_length", "Requests waiting to be judged.", registry=r, multiprocess_mode=SUM
        )
        self.judge_wait_seconds = Histogram(
            "lethe_judge_wait_seconds", "Time that requests wait to be judged.", buckets=SECONDS, registry=r
        )
        self.held_bytes = Gauge(
            "lethe_held_bytes", "Bytes of request bodies in memory.", registry=r, multiprocess_mode=SUM
        )
        self.connections = Gauge("lethe_connections", "Open client connections.", registry=r, multiprocess_mode=SUM)
        self.loop_lag = Gauge(
            "lethe_loop_lag_seconds",
            "Longest delay of the event loop in the last 10 seconds.",
            registry=r,
            multiprocess_mode=MAXIMUM,
        )
        self.keys = Gauge("lethe_keys", "Valid API keys.", registry=r, multiprocess_mode=MAXIMUM)
        self.keys_stale = Gauge(
            "lethe_keys_stale",
            "1 while the key file is invalid and the previous keys are used.",
            registry=r,
            multiprocess_mode=MAXIMUM,
        )
        self.keys_reload_failed = Counter("lethe_keys_reload_failed", "Failed reloads of the key file.", registry=r)

    def compute(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Let `value` compute the gauge whenever metrics are read."""
        if self._worker_folder is None:
            gauge.set_function(value)
        else:
            self._computed.append((gauge, value))

    def refresh(self) -> None:
        """Write the computed gauges to this worker's files, for the worker that renders them."""
        for gauge, value in self._computed:
            gauge.set(value())

    def render(self) -> bytes:
        """Return all metrics of all workers in Prometheus' text format."""
        if self._worker_folder is None:
            return generate_latest(self.registry)
        self.refresh()
        all_workers = CollectorRegistry()
        all_workers.register(_AllWorkersCollector(self._worker_folder))
        return generate_latest(all_workers)
