"""One replica of the model server: whether it is up, what it can do, and whether it is ejected.

States:
- *Up*: its last health check passed, and no connection to it has failed since.
- *Available*: up, or not checked yet.
- *Ejected* (`left_out` in `/ready`): gets no requests for a while after failures, unless no other can answer.
- *Ready*: up, it is known which requirements of the policies it meets, and it has had all verbatim indexes.
- *Usable* for a request: available, serves its model (or no replica does), and covers its needs.

A check asks for its health, its models and the start time of its process. A replica that comes back, or whose process
was restarted, must pass the parity probe (`parity_probe.py`) and show its verbatim indexes (`verbatim_index.py`)
again: what held for the old process need not hold for the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lethe.server.errors import GatewayError, UpstreamFailed, UpstreamTimeout
from lethe.server.observability.metrics import Metrics
from lethe.server.upstream.capabilities import ReplicaCapabilities
from lethe.server.upstream.client import Headers, Upstream
from lethe.server.upstream.http1 import UpstreamResponse
from lethe.server.upstream.model_cards import ModelCard, model_cards
from lethe.server.upstream.parity_probe import ParityResult, probe_parity
from lethe.server.upstream.verbatim_index import loaded_indexes, runs_plugin

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

log = logging.getLogger("lethe.upstream")

# Codes of UpstreamFailed that mean nothing of the request was sent, so that another replica may get it.
NOT_SENT_CODES = frozenset({"connect", "connect_timeout"})
# Failed requests in a row after which a replica is ejected. Chosen: one or two may be the clients' fault.
MAX_CONSECUTIVE_FAILURES = 3
# Seconds of the first ejection, and the longest: doubled each time. Chosen, not measured.
MIN_EJECTION_S, MAX_EJECTION_S = 1.0, 60.0
# Longest pause between two parity probes of a replica without parity, in seconds. Chosen: a probe generates two
# completions.
MAX_PROBE_INTERVAL_S = 300.0
PROCESS_START_METRIC = b"\nprocess_start_time_seconds "
# Bytes of a replica's metrics that are searched for the process start, which vLLM exports near the top; all of its
# metrics are about a hundred times as many.
MAX_METRICS_BYTES = 65_536
# Seconds that reading the metrics may take. Chosen, not measured.
METRICS_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Requirements:
    """What the current policies need of replicas.

    corruptor: makes the prompt embeddings that the parity probe checks; None: no policy corrupts. indexes: names of
    the verbatim indexes that policies refer to. plugin: a policy penalizes only where the plugin runs, so that this
    must be known.
    """

    corruptor: Corruptor | None = None
    indexes: frozenset[str] = frozenset()
    plugin: bool = False


class Replica:
    """One server and its state. `up` is None until the first check."""

    def __init__(self, upstream: Upstream, metrics: Metrics) -> None:
        self.upstream = upstream
        self.url = upstream.url
        self.up: bool | None = None
        self.model_cards: tuple[ModelCard, ...] = ()
        self.models: frozenset[str] = frozenset()
        self.parity = ParityResult(False, "not probed yet")
        self.indexes: frozenset[str] = frozenset()
        self.plugin = False
        self.in_flight = 0
        self.check_soon = asyncio.Event()  # set: the next check needn't wait for its interval
        self._capabilities: tuple[object, ReplicaCapabilities] = None, ReplicaCapabilities()
        self._parity_checked = self._indexes_checked = False
        # Once since it came up; later policies may need more: see `is_ready`.
        self._had_all_indexes = False
        self._process_start: float | None = None
        self._consecutive_failures = 0
        self._ejections = 0
        self._ejected_until = -math.inf
        self._probe_interval_s = 0.0
        self._next_probe = -math.inf
        self._plugin_interval_s = 0.0
        self._next_plugin_probe = -math.inf
        self._metrics = metrics
        metrics.replica_up.labels(self.url).set(0)
        metrics.replica_parity.labels(self.url).set(0)
        metrics.compute(metrics.replica_in_flight.labels(self.url), lambda: self.in_flight)

    @property
    def ejected(self) -> bool:
        """Whether it gets no requests for a while, regardless of its health check."""
        return time.monotonic() < self._ejected_until

    @property
    def ejection_left_s(self) -> float:
        return max(0.0, self._ejected_until - time.monotonic())

    @property
    def capabilities(self) -> ReplicaCapabilities:
        """What it can do now; the same object until something changes, since every request reads it."""
        state = (self.models, self.up is not False, self.parity.holds, self.indexes, self.plugin)
        if state != self._capabilities[0]:
            models, available, parity, indexes, plugin = state
            capabilities = ReplicaCapabilities(models, available, parity, indexes, plugin)
            self._capabilities = state, capabilities
        return self._capabilities[1]

    # Requests

    async def send(self, method: str, path: bytes, headers: Headers, body: bytes | None) -> UpstreamResponse:
        """`Upstream.send`, counted as in flight until `finish`. A failure triggers a check."""
        self.in_flight += 1
        try:
            response = await self.upstream.send(method, path, headers, body)
        except BaseException as error:
            self.finish(error)
            raise
        if response.status >= 500:
            # A client's request may cause these: only the health check decides whether the replica is down.
            self._metrics.replica_errors.labels(self.url, "5xx").inc()
            self.check_soon.set()
        else:
            self._consecutive_failures = 0
        return response

    async def accepts_connections(self) -> bool:
        """Whether a request could be sent. If not, that counts as a request that could not be sent."""
        try:
            await self.upstream.ensure_connection()
        except UpstreamFailed as error:
            self._record_failure(error.code or "connect")
            return False
        return True

    def finish(self, error: BaseException | None) -> None:
        """A request is over. error: the exception that ended it, if any."""
        if isinstance(error, UpstreamFailed | UpstreamTimeout):
            self._record_failure(error.code or "broken")
        self.in_flight -= 1

    def _record_failure(self, code: str) -> None:
        self._metrics.replica_errors.labels(self.url, code).inc()
        self._consecutive_failures += 1
        self.check_soon.set()
        if code in NOT_SENT_CODES:
            self._mark_down(code)
        elif self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
            self.eject(f"{self._consecutive_failures} failed requests in a row")

    def eject(self, reason: str) -> None:
        """Send the replica no requests for a while; for twice as long each time this happens again soon."""
        now = time.monotonic()
        if now < self._ejected_until:
            return
        self._ejections = self._ejections + 1 if now - self._ejected_until < 2 * MAX_EJECTION_S else 1
        duration_s = min(MIN_EJECTION_S * 2 ** (self._ejections - 1), MAX_EJECTION_S)
        self._ejected_until, self._consecutive_failures = now + duration_s, 0
        self._metrics.replica_ejections.labels(self.url).inc()
        log.warning("replica %s is ejected for %.0f s: %s", self.url, duration_s, reason)

    def _mark_down(self, reason: str) -> None:
        if self.up is not False:
            log.warning("replica %s is down: %s", self.url, reason)
            self.eject("down")
        self.up = False
        self._process_start = None
        self._metrics.replica_up.labels(self.url).set(0)
        self.reset_capabilities(reason)

    # Checks

    def reset_capabilities(self, reason: str) -> None:
        """Forget parity and indexes, so that the next check finds them out again."""
        self._parity_checked = self._indexes_checked = self._had_all_indexes = False
        self.indexes, self.plugin = frozenset(), False
        self._probe_interval_s, self._next_probe = 0.0, -math.inf
        self._plugin_interval_s, self._next_plugin_probe = 0.0, -math.inf
        self.set_parity(ParityResult(False, reason))

    def require(self, requirements: Requirements) -> None:
        """New policies: check soon whether the replica has what they need."""
        self._indexes_checked = self._indexes_checked and requirements.indexes <= self.indexes
        self.check_soon.set()

    async def check(self, requirements: Requirements, *, interval_s: float) -> None:
        """Check health, models and process start; then probe for those of the requirements that are not met yet.

        interval_s: the shortest pause in seconds between two parity probes.
        """
        try:
            healthy = await self._check_health()
        except GatewayError as error:
            self._mark_down(error.message)
            return
        if not healthy:
            self._mark_down("its health check failed")
            return
        process_start = await self._read_process_start()
        if self.up and process_start != self._process_start and None not in (process_start, self._process_start):
            log.warning("replica %s was restarted", self.url)
            self._metrics.replica_restarts.labels(self.url).inc()
            self.reset_capabilities("restarted")
        self._process_start = process_start
        if not self.up:
            log.info("replica %s is up and serves %s", self.url, ", ".join(sorted(self.models)) or "no named model")
        self.up = True
        self._metrics.replica_up.labels(self.url).set(1)
        with contextlib.suppress(GatewayError):
            await self._check_parity(requirements.corruptor, interval_s)
            await self._check_indexes(requirements.indexes)
            if requirements.plugin:
                await self._check_plugin(interval_s)

    async def _check_health(self) -> bool:
        health_status, _ = await self.upstream.call("GET", "/health")
        models_status, listing = await self.upstream.call("GET", "/v1/models")
        try:
            self.model_cards = model_cards(listing)
        except ValueError:
            self.model_cards = ()
        self.models = frozenset(card["id"] for card in self.model_cards)
        # Servers other than vLLM may have no health route.
        return health_status == 200 or (health_status == 404 and models_status == 200)

    async def _read_process_start(self) -> float | None:
        """The start time of the replica's process in seconds since the epoch; None if its metrics don't tell."""
        text = b"\n"
        try:
            async with (
                asyncio.timeout(METRICS_TIMEOUT_S),
                self.upstream.open("GET", b"/metrics", [], None) as response,
            ):
                async for chunk in response.chunks():
                    text += chunk
                    _, name, rest = text.partition(PROCESS_START_METRIC)
                    if name and b"\n" in rest:
                        return float(rest.partition(b"\n")[0])
                    if len(text) > MAX_METRICS_BYTES:
                        return None
        except (GatewayError, TimeoutError, ValueError):
            return None
        return None

    async def _check_parity(self, corruptor: Corruptor | None, interval_s: float) -> None:
        """Probe until parity holds, with growing pauses, since each probe generates two completions."""
        if corruptor is None or self.parity.holds or time.monotonic() < self._next_probe:
            return
        try:
            parity = await probe_parity(self.upstream, corruptor)
        except GatewayError as error:
            self.set_parity(ParityResult(False, error.message))
            raise
        self._parity_checked = True
        self.set_parity(parity)
        self._probe_interval_s = min(max(2 * self._probe_interval_s, interval_s), MAX_PROBE_INTERVAL_S)
        self._next_probe = time.monotonic() + self._probe_interval_s

    def set_parity(self, parity: ParityResult) -> None:
        if parity != self.parity and (self._parity_checked or self.parity.holds):
            level = logging.INFO if parity.holds else logging.WARNING
            log.log(level, "replica %s: parity %s: %s", self.url, "holds" if parity.holds else "fails", parity.reason)
        self.parity = parity
        self._metrics.replica_parity.labels(self.url).set(parity.holds)

    async def _check_indexes(self, required: frozenset[str]) -> None:
        """Find out which of the required verbatim indexes the replica has loaded, until it has all of them."""
        if required <= self.indexes:
            self._indexes_checked = self._had_all_indexes = True
            return
        model = self.model_cards[0]["id"] if self.model_cards else ""
        loaded = await loaded_indexes(self.upstream, model, required)
        if not self._indexes_checked or not loaded <= self.indexes:
            level = logging.INFO if required <= loaded else logging.WARNING
            log.log(level, "replica %s has %d of %d verbatim indexes", self.url, len(loaded), len(required))
        self.indexes, self._indexes_checked = self.indexes | loaded, True
        self._had_all_indexes |= required <= loaded

    async def _check_plugin(self, interval_s: float) -> None:
        """Probe until the plugin is found, with growing pauses: the replica may never have it."""
        if self.plugin or time.monotonic() < self._next_plugin_probe:
            return
        self.plugin = await runs_plugin(self.upstream, self.model_cards[0]["id"] if self.model_cards else "")
        log.info("replica %s %s the plugin", self.url, "runs" if self.plugin else "does not run")
        self._plugin_interval_s = min(max(2 * self._plugin_interval_s, interval_s), MAX_PROBE_INTERVAL_S)
        self._next_plugin_probe = time.monotonic() + self._plugin_interval_s

    # Status

    def is_ready(self, requirements: Requirements) -> bool:
        """Whether it is up, it is known which of the requirements it meets, and it has had all indexes.

        An index that a later policy needs does not make it unready: a document that is forgotten over HTTP must not
        take every gateway out of service until its index has been copied. `status` says how many are missing.
        """
        parity_known = self._parity_checked or requirements.corruptor is None
        indexes_known = (self._indexes_checked and self._had_all_indexes) or not requirements.indexes
        return bool(self.up) and parity_known and indexes_known

    def status(self, requirements: Requirements) -> dict[str, Any]:
        """Its state for the readiness route, without address and models."""
        status: dict[str, Any] = {"up": bool(self.up), "left_out": self.ejected, "in_flight": self.in_flight}
        if requirements.corruptor is not None:
            status["parity"] = self.parity.holds
        if requirements.indexes:
            status["indexes"] = f"{len(self.indexes & requirements.indexes)} of {len(requirements.indexes)}"
        return status
