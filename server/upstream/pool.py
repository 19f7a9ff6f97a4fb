"""The replica pool: which replica answers a request, and the checks of all replicas every few seconds.

A request goes to a replica that serves its model and covers its needs; among those to the one that its conversation
hashes to (whose prefix cache is warm), unless that one is clearly busier than another.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from lethe.server.errors import UpstreamDown, UpstreamFailed
from lethe.server.observability.metrics import Metrics
from lethe.server.settings import Settings
from lethe.server.upstream.capabilities import NO_NEEDS, Capabilities, Needs
from lethe.server.upstream.client import Headers, Upstream
from lethe.server.upstream.http1 import UpstreamResponse
from lethe.server.upstream.parity_probe import ParityResult
from lethe.server.upstream.replica import NOT_SENT_CODES, Replica, Requirements

log = logging.getLogger("lethe.upstream")

# A conversation leaves its replica when that one has more than MAX_LOAD_RATIO times the requests of the idlest replica
# plus MAX_LOAD_EXCESS. Chosen: a cached prefix saves less than a doubled queue costs.
MAX_LOAD_RATIO, MAX_LOAD_EXCESS = 2, 4
# Shortest pause between two checks of one replica, in seconds, also when failures trigger them. Chosen, not measured.
MIN_CHECK_INTERVAL_S = 0.25
# Characters of a plain-text prompt that identify its conversation. Chosen, not measured.
PREFIX_CHARS = 1_024
# Bytes of the digest that identifies a conversation: collisions are harmless.
DIGEST_BYTES = 16
# Smallest value of retry-after, in seconds, when no replica can answer. Chosen, not measured.
MIN_RETRY_AFTER_S = 1.0


def conversation_digest(body: Mapping[str, Any]) -> bytes | None:
    """A digest of a conversation's first turn: the same for all its turns; None for a body without a prompt."""
    prompt = body.get("messages") or body.get("input") or body.get("prompt")
    if isinstance(prompt, list):
        users = (i for i, turn in enumerate(prompt) if isinstance(turn, dict) and turn.get("role") == "user")
        prompt = prompt[: next(users, 0) + 1]
    elif isinstance(prompt, str):
        prompt = prompt[:PREFIX_CHARS]
    if not prompt:
        return None
    identity = [body.get("model"), body.get("system"), body.get("instructions"), prompt]
    return hashlib.blake2b(orjson.dumps(identity), digest_size=DIGEST_BYTES).digest()


def upstreams_from(settings: Settings) -> list[Upstream]:
    """The client of each server in LETHE_UPSTREAM."""
    key = settings.upstream_key.get_secret_value() if settings.upstream_key else None
    timeouts = {"connect_timeout_s": settings.connect_timeout_s, "read_timeout_s": settings.read_timeout_s}
    return [Upstream(url, key=key, **timeouts) for url in settings.upstreams]


class ReplicaPool:
    """All replicas. Create it inside a running event loop; `run` checks them, `close` closes their connections."""

    def __init__(
        self, upstreams: Sequence[Upstream], requirements: Requirements, metrics: Metrics, *, interval_s: float
    ) -> None:
        """interval_s: seconds between two checks of a replica."""
        self.replicas = tuple(Replica(upstream, metrics) for upstream in upstreams)
        self.has_several = len(self.replicas) > 1
        self._interval_s = interval_s
        self._requirements = requirements

    def require(self, requirements: Requirements) -> None:
        """Replace the requirements: new policies are in force. Replicas are checked for them at once."""
        if requirements.corruptor is not self._requirements.corruptor:
            for replica in self.replicas:
                replica.reset_capabilities("not probed yet")
        self._requirements = requirements
        for replica in self.replicas:
            replica.require(requirements)

    @property
    def ready(self) -> bool:
        return any(replica.is_ready(self._requirements) for replica in self.replicas)

    def status(self, *, details: bool) -> dict[str, Any]:
        """Whether requests can be served, and the state of each replica, in the order of LETHE_UPSTREAM.

        details: with addresses, models and the probe's result, which are for operators only.
        """
        replicas = []
        for replica in self.replicas:
            status = replica.status(self._requirements)
            if details:
                status = {"url": replica.url, **status, "models": sorted(replica.models)}
                if self._requirements.corruptor is not None:
                    status["reason"] = replica.parity.reason
            replicas.append(status)
        return {"ready": self.ready, "replicas": replicas}

    def merged_model_list(self) -> bytes | None:
        """The JSON list of all replicas' models; None if all replicas list the same, so that any of them can answer."""
        up = [replica for replica in self.replicas if replica.up]
        if len({replica.models for replica in up}) < 2:
            return None
        cards = {card["id"]: card for replica in reversed(up) for card in replica.model_cards}
        return orjson.dumps({"object": "list", "data": list(cards.values())})

    def capabilities(self) -> Capabilities:
        """What each replica can do at this moment."""
        return Capabilities(tuple(replica.capabilities for replica in self.replicas))

    # Checks

    async def run(self) -> None:
        """Check all replicas again and again until cancelled."""
        async with asyncio.TaskGroup() as group:
            for replica in self.replicas:
                group.create_task(self._check_forever(replica))

    async def check(self) -> None:
        """Check every replica once."""
        await asyncio.gather(*(self._check(replica) for replica in self.replicas))

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.upstream.close()

    async def _check_forever(self, replica: Replica) -> None:
        while True:
            replica.check_soon.clear()
            await self._check(replica)
            await asyncio.sleep(min(self._interval_s, MIN_CHECK_INTERVAL_S))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await replica.check_soon.wait()

    async def _check(self, replica: Replica) -> None:
        try:
            await replica.check(self._requirements, interval_s=self._interval_s)
        except Exception:
            # Checks must continue after any error: nothing else would notice that they stopped.
            log.exception("the check of replica %s failed", replica.url)
            replica.set_parity(ParityResult(False, "the check failed"))

    # Requests

    def _usable(self, model: Any, needs: Needs, tried: Sequence[Replica]) -> list[Replica]:
        """The replicas that `Capabilities.covers` counts, without those that were tried."""
        capable = zip(self.replicas, self.capabilities().usable(model, needs), strict=True)
        return [replica for replica, usable in capable if usable and replica not in tried]

    def check_available(self, model: Any) -> None:
        """Raises UpstreamDown when no replica in service serves the model, whatever else a request needs."""
        if not self.capabilities().covers(model, NO_NEEDS):
            raise self._no_replica()

    async def check_reachable(self, model: Any, affinity: bytes | None) -> None:
        """Raises UpstreamDown where `open` would, since no replica that serves the model accepts a connection.

        A connection that is already open suffices. Takes at most the connect timeout for each replica.
        """
        tried: list[Replica] = []
        while True:
            replica = self._choose(model, affinity, NO_NEEDS, tried)
            if await replica.accepts_connections():
                return
            tried.append(replica)

    def _no_replica(self) -> UpstreamDown:
        waits = [replica.ejection_left_s for replica in self.replicas]
        return UpstreamDown(
            "no model server can answer this request now",
            code="no_replica",
            retry_after_s=max(MIN_RETRY_AFTER_S, min(waits)),
        )

    def _choose(self, model: Any, affinity: bytes | None, needs: Needs, tried: Sequence[Replica]) -> Replica:
        """The replica that answers. Raises UpstreamDown when no available one covers the needs."""
        if len(self.replicas) == 1 and not tried:
            # The same result as `_usable`, at less cost: most deployments have one replica. The model need not be
            # checked: where no replica serves it, all count, so a single replica always qualifies.
            only = self.replicas[0]
            if only.capabilities.available and only.capabilities.covers(needs):
                return only
        usable = self._usable(model, needs, tried)
        # An ejected replica is better than none: it is up, and clients may have caused its failures.
        usable = [replica for replica in usable if not replica.ejected] or usable
        if not usable:
            raise self._no_replica()
        min_in_flight = min(replica.in_flight for replica in usable)
        if affinity is None:
            return random.choice([replica for replica in usable if replica.in_flight == min_in_flight])
        max_in_flight = MAX_LOAD_RATIO * min_in_flight + MAX_LOAD_EXCESS
        candidates = [replica for replica in usable if replica.in_flight <= max_in_flight]
        # Rendezvous hashing: a replica that comes or goes moves only its own conversations.
        return max(candidates, key=lambda replica: hashlib.blake2b(replica.url.encode(), key=affinity).digest())

    def open(
        self,
        method: str,
        path: bytes,
        headers: Headers,
        body: bytes | None,
        *,
        model: Any = None,
        affinity: bytes | None = None,
        needs: Needs = NO_NEEDS,
    ) -> PooledRequest:
        """Send a request to a replica: a context manager that gives the response with its body unread.

        model: the request's `model`. affinity: requests of equal affinity prefer the same replica, see
        `conversation_digest`. A replica that accepts no connection is skipped; once anything was sent, nothing is sent
        again. Raises UpstreamDown when no replica can answer, UpstreamFailed or UpstreamTimeout.
        """
        return PooledRequest(self, (method, path, headers, body), (model, affinity, needs))


class PooledRequest:
    """One request to the pool: sent on entering; on leaving, what is unread of the response is aborted."""

    def __init__(
        self,
        pool: ReplicaPool,
        request: tuple[str, bytes, Headers, bytes | None],
        routing: tuple[Any, bytes | None, Needs],
    ) -> None:
        self._pool = pool
        self._request = request
        self._routing = routing

    async def __aenter__(self) -> UpstreamResponse:
        tried: list[Replica] = []
        while True:
            self._replica = self._pool._choose(*self._routing, tried)
            tried.append(self._replica)
            try:
                self._response = await self._replica.send(*self._request)
                return self._response
            except UpstreamFailed as error:
                if error.code not in NOT_SENT_CODES:
                    raise

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._response.close()
        self._replica.finish(error)
