"""The replicas of the model server: which are there, what each can do, and which one answers a request.

Every replica is asked every few seconds for its health, its models and when it was started. One that has come
back, or was started anew, has to show parity (`server/upstream/parity_probe.py`) and its indexes (`server/upstream/verbatim_index.py`) again:
what was true of the process before need not be true of this one. A request goes to a replica that serves its
model and can do what it needs; among those to the one that has seen its conversation before, as long as that
one is not clearly busier than another.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from lethe.server.errors import GuardError, UpstreamDown, UpstreamFailed, UpstreamTimeout
from lethe.server.guard.guard import Guard, Needs
from lethe.server.observability.metrics import Metrics
from lethe.server.settings import Settings
from lethe.server.upstream.capabilities import Capabilities, ReplicaCapabilities
from lethe.server.upstream.client import Headers, Upstream
from lethe.server.upstream.http1 import Response
from lethe.server.upstream.parity_probe import Parity, probe
from lethe.server.upstream.verbatim_index import known

log = logging.getLogger("lethe.upstream")

# Codes of UpstreamFailed after which nothing of the request has been sent, so that another may get it.
NOT_SENT = frozenset({"connect", "connect_timeout"})
FAILURES_IN_A_ROW = 3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LONGEST_PROBE_PAUSE_S = 300.0
# Its own replica keeps a conversation until it has this many times as many requests as the idlest, and a few more.
BUSIER, BUSIER_BY = 2, 4
START_OF_PROCESS = b"\nprocess_start_time_seconds "
# The line stands near the top of what vLLM exports; all of it would be a hundred times as much.
MOST_METRICS_BYTES = 65_536
BEGINNING_CHARS = 1_024
NOTHING = Needs()


def beginning(body: Mapping[str, Any]) -> bytes | None:
    """A digest of how a conversation begins: the same for all its turns; None for a body without a prompt."""
    said = body.get("messages") or body.get("input") or body.get("prompt")
    if isinstance(said, list):
        users = (i for i, turn in enumerate(said) if isinstance(turn, dict) and turn.get("role") == "user")
        said = said[: next(users, 0) + 1]
    elif isinstance(said, str):
        said = said[:BEGINNING_CHARS]
    if not said:
        return None
    whole = [body.get("model"), body.get("system"), body.get("instructions"), said]
    return hashlib.blake2b(orjson.dumps(whole), digest_size=16).digest()


def connections(settings: Settings) -> list[Upstream]:
    """One connection to each replica."""
    key = settings.upstream_key.get_secret_value() if settings.upstream_key else None
    times = {"connect_timeout_s": settings.connect_timeout_s, "read_timeout_s": settings.read_timeout_s}
    return [Upstream(url, key=key, **times) for url in settings.upstreams]


class Replica:
    """One server, and what is known of it. `up` None: not asked yet."""

    def __init__(self, upstream: Upstream, metrics: Metrics) -> None:
        self.upstream = upstream
        self.url = upstream.url
        self.up: bool | None = None
        self.cards: tuple[dict[str, Any], ...] = ()
        self.models: frozenset[str] = frozenset()
        self.parity = Parity(False, "not probed yet")
        self.indexes: frozenset[str] = frozenset()
        self.probed = self.asked = False
        self.in_flight = 0
        self.wake = asyncio.Event()
        self._started: float | None = None
        self._failures = 0
        self._pauses = 0
        self._paused_until = self._last_pause = -math.inf
        self._probe_pause_s = 0.0
        self._next_probe = -math.inf
        self._metrics = metrics
        metrics.replica_up.labels(self.url).set(0)
        metrics.replica_parity.labels(self.url).set(0)
        metrics.compute(metrics.replica_in_flight.labels(self.url), lambda: self.in_flight)

    @property
    def paused(self) -> bool:
        """Whether it is kept out of rotation for a while, whatever its health check says."""
        return time.monotonic() < self._paused_until

    @property
    def back_in_s(self) -> float:
        return max(0.0, self._paused_until - time.monotonic())

    def serves(self, model: Any) -> bool:
        return isinstance(model, str) and model in self.models

    def can(self, needs: Needs) -> bool:
        return (self.parity.holds or not needs.parity) and needs.indexes <= self.indexes

    async def send(self, method: str, path: bytes, headers: Headers, body: bytes | None) -> Response:
        """`Upstream.send`, counted until `done`. Trouble has the replica looked at at once."""
        self.in_flight += 1
        try:
            response = await self.upstream.send(method, path, headers, body)
        except BaseException as error:
            self.done(error)
            raise
        if response.status >= 500:
            # A client may bring about one of these by what it asks for: the health check decides.
            self._metrics.replica_errors.labels(self.url, "5xx").inc()
            self.wake.set()
        else:
            self._failures = 0
        return response

    def done(self, error: BaseException | None) -> None:
        """An answer was read to its end or left; error: what ended it."""
        if isinstance(error, UpstreamFailed | UpstreamTimeout):
            self._failed(error.code or "broken")
        self.in_flight -= 1

    def _failed(self, kind: str) -> None:
        self._metrics.replica_errors.labels(self.url, kind).inc()
        self._failures += 1
        self.wake.set()
        if kind in NOT_SENT:
            self._lost(kind)
        elif self._failures >= FAILURES_IN_A_ROW:
            self.pause(f"{self._failures} failures in a row")

    def pause(self, reason: str) -> None:
        """Out of rotation, for twice as long each time it happens again soon."""
        now = time.monotonic()
        if now < self._paused_until:
            return
        self._pauses = self._pauses + 1 if now - self._last_pause < 2 * LONGEST_PAUSE_S else 1
        pause_s = min(FIRST_PAUSE_S * 2 ** (self._pauses - 1), LONGEST_PAUSE_S)
        self._paused_until, self._last_pause, self._failures = now + pause_s, now + pause_s, 0
        self._metrics.replica_ejections.labels(self.url).inc()
        log.warning("replica %s is left out for %.0f s: %s", self.url, pause_s, reason)

    def _lost(self, reason: str) -> None:
        """It isn't there: nothing that was known of it holds for what comes back."""
        if self.up is not False:
            log.warning("replica %s is down: %s", self.url, reason)
            self.pause("down")
        self.up = False
        self._started = None
        self._metrics.replica_up.labels(self.url).set(0)
        self._forget(reason)

    def _forget(self, reason: str) -> None:
        self.probed = self.asked = False
        self.indexes = frozenset()
        self._probe_pause_s, self._next_probe = 0.0, -math.inf
        self._settle(Parity(False, reason))

    async def check(self, guard: Guard, *, interval_s: float) -> None:
        """One look at it: health, models, start of its process; then a probe of what isn't known yet."""
        try:
            healthy = await self._healthy()
        except GuardError as error:
            self._lost(error.message)
            return
        if not healthy:
            self._lost("it says that it is not healthy")
            return
        started = await self._read_start()
        if self.up and started != self._started and None not in (started, self._started):
            log.warning("replica %s was started anew", self.url)
            self._metrics.replica_restarts.labels(self.url).inc()
            self._forget("started anew")
        self._started = started
        if not self.up:
            log.info("replica %s is up and serves %s", self.url, ", ".join(sorted(self.models)) or "no named model")
        self.up = True
        self._metrics.replica_up.labels(self.url).set(1)
        with contextlib.suppress(GuardError):
            await self._probe(guard, interval_s)
            await self._ask_for_indexes(guard)

    async def _healthy(self) -> bool:
        status, _ = await self.upstream.call("GET", "/health")
        answered, listed = await self.upstream.call("GET", "/v1/models")
        try:
            self.cards = tuple({**card, "id": str(card["id"])} for card in listed["data"])
        except (KeyError, TypeError):
            self.cards = ()
        self.models = frozenset(card["id"] for card in self.cards)
        # Servers other than vLLM may have no health route.
        return status == 200 or (status == 404 and answered == 200)

    async def _read_start(self) -> float | None:
        """When its process was started, in seconds since the epoch, as its metrics say; None where they don't."""
        read = b"\n"
        try:
            async with asyncio.timeout(5), self.upstream.open("GET", b"/metrics", [], None) as response:
                async for chunk in response.chunks():
                    read += chunk
                    _, found, after = read.partition(START_OF_PROCESS)
                    if found and b"\n" in after:
                        return float(after.partition(b"\n")[0])
                    if len(read) > MOST_METRICS_BYTES:
                        return None
        except (GuardError, TimeoutError, ValueError):
            return None
        return None

    async def _probe(self, guard: Guard, interval_s: float) -> None:
        """Parity, until it holds; ever more rarely where it doesn't, since each costs two answers."""
        if guard.corruptor is None or self.parity.holds or time.monotonic() < self._next_probe:
            return
        try:
            found = await probe(self.upstream, guard.corruptor)
        except GuardError as error:
            self._settle(Parity(False, error.message))
            raise
        self.probed = True
        self._settle(found)
        self._probe_pause_s = min(max(2 * self._probe_pause_s, interval_s), LONGEST_PROBE_PAUSE_S)
        self._next_probe = time.monotonic() + self._probe_pause_s

    def _settle(self, parity: Parity) -> None:
        if parity != self.parity and (self.probed or self.parity.holds):
            level = logging.INFO if parity.holds else logging.WARNING
            log.log(level, "replica %s: parity %s: %s", self.url, "holds" if parity.holds else "fails", parity.reason)
        self.parity = parity
        self._metrics.replica_parity.labels(self.url).set(parity.holds)

    async def _ask_for_indexes(self, guard: Guard) -> None:
        """Learn which protected texts it can keep from being copied, until it has all of them."""
        wanted = frozenset(guard.indexes.values())
        if wanted <= self.indexes:
            self.asked = True
            return
        found = await known(self.upstream, self.cards[0]["id"] if self.cards else "", wanted)
        if not self.asked or not found <= self.indexes:
            level = logging.INFO if wanted <= found else logging.WARNING
            log.log(level, "replica %s has %d of %d verbatim indexes", self.url, len(found), len(wanted))
        self.indexes, self.asked = self.indexes | found, True

    def settled(self, guard: Guard) -> bool:
        """Whether it can serve requests as the policies say: it is up, and what matters of it is known."""
        return bool(self.up) and (self.probed or guard.corruptor is None) and (self.asked or not guard.indexes)

    def facts(self, guard: Guard) -> dict[str, Any]:
        """What operators may be told of it."""
        told: dict[str, Any] = {"up": bool(self.up), "left_out": self.paused, "in_flight": self.in_flight}
        if guard.corruptor is not None:
            told["parity"] = self.parity.holds
        if guard.indexes:
            told["indexes"] = f"{len(self.indexes & set(guard.indexes.values()))} of {len(set(guard.indexes.values()))}"
        return told


class Replicas:
    """All of them. Create inside a running event loop; `run` watches them, `close` ends their connections."""

    def __init__(self, upstreams: Sequence[Upstream], guard: Guard, metrics: Metrics, *, interval_s: float) -> None:
        self.all = tuple(Replica(upstream, metrics) for upstream in upstreams)
        self.several = len(self.all) > 1
        self._interval_s = interval_s
        self._guard = guard
        self.serve(guard)

    def serve(self, guard: Guard) -> None:
        """From now on these policies are served: what they need of replicas is looked for at once."""
        if guard.corruptor is not self._guard.corruptor:
            for replica in self.all:
                replica._forget("not probed yet")
        self._guard = guard
        guard.can = self.can
        for replica in self.all:
            replica.asked = replica.asked and set(guard.indexes.values()) <= replica.indexes
            replica.wake.set()

    @property
    def settled(self) -> bool:
        return any(replica.settled(self._guard) for replica in self.all)

    def facts(self, *, in_full: bool) -> dict[str, Any]:
        """Whether requests can be served, and what is known of each replica, in the order of LETHE_UPSTREAM.

        in_full: with addresses, models and reasons, which are not for everybody.
        """
        told = []
        for replica in self.all:
            facts = replica.facts(self._guard)
            if in_full:
                facts = {"url": replica.url, **facts, "models": sorted(replica.models)}
                if self._guard.corruptor is not None:
                    facts["reason"] = replica.parity.reason
            told.append(facts)
        return {"ready": self.settled, "replicas": told}

    def models(self) -> bytes | None:
        """The list of all models, where replicas differ in theirs; None where any replica's own answer is it."""
        up = [replica for replica in self.all if replica.up]
        if len({replica.models for replica in up}) < 2:
            return None
        cards = {card["id"]: card for replica in reversed(up) for card in replica.cards}
        return orjson.dumps({"object": "list", "data": list(cards.values())})

    def can(self, model: Any, needs: Needs) -> bool:
        """Whether there is a replica for the model that can do what is needed."""
        return any(replica.can(needs) for replica in self._serving(model))

    def capabilities(self) -> Capabilities:
        """What every replica can do at this moment."""
        return Capabilities(
            tuple(
                ReplicaCapabilities(
                    models=replica.models,
                    available=replica.up is not False,
                    parity=replica.parity.holds,
                    indexes=replica.indexes,
                )
                for replica in self.all
            )
        )

    async def run(self) -> None:
        """Watch all replicas until cancelled."""
        async with asyncio.TaskGroup() as group:
            for replica in self.all:
                group.create_task(self._watch(replica))

    async def check(self) -> None:
        """Look at every replica once."""
        await asyncio.gather(*(self._check(replica) for replica in self.all))

    async def close(self) -> None:
        for replica in self.all:
            await replica.upstream.close()

    async def _watch(self, replica: Replica) -> None:
        while True:
            replica.wake.clear()
            await self._check(replica)
            # Whatever wakes it, a replica in trouble is not asked more often than this.
            await asyncio.sleep(min(self._interval_s, 0.25))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await replica.wake.wait()

    async def _check(self, replica: Replica) -> None:
        try:
            await replica.check(self._guard, interval_s=self._interval_s)
        except Exception:
            # The watch must outlive whatever a check meets: nobody else would notice that it ended.
            log.exception("the check of replica %s failed", replica.url)
            replica._settle(Parity(False, "the check failed"))

    def _serving(self, model: Any) -> list[Replica]:
        """Those in service of the replicas for a model; of all where none is known, since any can say so."""
        group = [replica for replica in self.all if replica.serves(model)] or self.all
        return [replica for replica in group if replica.up is not False]

    def _choose(self, model: Any, affinity: bytes | None, needs: Needs, tried: Sequence[Replica]) -> Replica:
        if len(self.all) == 1 and not tried and self.all[0].up is not False and self.all[0].can(needs):
            return self.all[0]
        able = [replica for replica in self._serving(model) if replica.can(needs) and replica not in tried]
        # One that failed lately is better than none: it is up, and clients may have made it fail.
        able = [replica for replica in able if not replica.paused] or able
        if not able:
            waits = [replica.back_in_s for replica in self.all]
            raise UpstreamDown(
                "no model server can answer this now", code="no_replica", retry_after_s=max(1.0, min(waits))
            )
        idlest = min(replica.in_flight for replica in able)
        if affinity is None:
            return random.choice([replica for replica in able if replica.in_flight == idlest])
        free = [replica for replica in able if replica.in_flight <= BUSIER * idlest + BUSIER_BY]
        # Rendezvous hashing: a replica that comes or goes moves no other's conversations.
        return max(free, key=lambda replica: hashlib.blake2b(replica.url.encode(), key=affinity).digest())

    def open(
        self,
        method: str,
        path: bytes,
        headers: Headers,
        body: bytes | None,
        *,
        model: Any = None,
        affinity: bytes | None = None,
        needs: Needs = NOTHING,
    ) -> Open:
        """Send a request to a replica and have the answer, with its body unread; see `Upstream.send`.

        model: what is asked for. affinity: requests of the same one had better meet the same replica. A replica
        that can't be connected to is passed over; once anything was sent, nothing is sent again. Raises
        UpstreamDown when there is no replica for it, UpstreamFailed or UpstreamTimeout.
        """
        return Open(self, (method, path, headers, body), (model, affinity, needs))


class Open:
    """The context of one request: it is sent on entering, and what is left of its answer is ended on leaving."""

    def __init__(
        self,
        replicas: Replicas,
        request: tuple[str, bytes, Headers, bytes | None],
        wanted: tuple[Any, bytes | None, Needs],
    ) -> None:
        self._replicas = replicas
        self._request = request
        self._wanted = wanted

    async def __aenter__(self) -> Response:
        tried: list[Replica] = []
        while True:
            self._replica = self._replicas._choose(*self._wanted, tried)
            tried.append(self._replica)
            try:
                self._response = await self._replica.send(*self._request)
                return self._response
            except UpstreamFailed as error:
                if error.code not in NOT_SENT:
                    raise

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._response.close()
        self._replica.done(error)
