"""The traffic of `soak.py`: clients that send flagged, ordinary, malformed and very long requests, and disconnect.

Knows no gateway process; it counts what clients see.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import aiohttp

from benchmarks.endpoints import PATHS, endpoint_body, token_limit_field
from lethe.classifier.training.background import background_prompts
from lethe.evaluation.unlearning import tofu

# Kind of request → (weight, expected statuses; 0: disconnected). vLLM refuses a prompt beyond its context with 400,
# after the gateway has judged all of it.
KINDS = {
    "not covered": (25, {200}),
    "not flagged": (25, {200}),
    "flagged": (25, {200}),
    "disconnects": (14, {0, 200}),
    "malformed": (10, {400, 413}),
    "30,000 tokens": (1, {200, 400}),
}
# Statuses of a gateway at its limits.
FULL = {429, 503}
# Tokens of a long prompt, about.
LONG_TOKENS = 30_000
# Long prompts are this many times more frequent during the warm-up, so that the gateway's bounded caches are full.
LONG_IN_WARM_UP = 10
MALFORMED = (
    b'{"model": "demo-penalize", "messages": [',
    b'{"model": "demo-penalize", "model": "demo", "messages": []}',
    b'\xff\xfe{"model": "demo"}',
    b'{"model": "demo-penalize", "prompt_embeds": "AAAA", "prompt": "x"}',
    b"[" * 5000,
    b'{"model": "demo-penalize", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b"",
)


class Traffic:
    """Clients that send random requests; counts responses by kind and status."""

    def __init__(self, base: str, rate: float, clients: int, seed: int, *, parity: bool) -> None:
        """rate: requests per second of all clients. parity: whether the upstream accepts prompt embeddings."""
        self._base, self._clients, self._pause_s = base, clients, clients / rate
        self._parity = parity
        self._rng = random.Random(seed)
        self._flagged = [fact.question for fact in tofu.forget_facts()]
        self._others = list(background_prompts())
        self._others += [fact.question for fact in tofu.real_world_facts()]
        self._long_lock = asyncio.Lock()
        self.counts: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()

    async def run(self, warm: float, until: float) -> None:
        """Run all clients until the monotonic time `until`. warm: the time at which the warm-up is over."""
        self._warm = warm
        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._client(until))

    async def _client(self, until: float) -> None:
        while time.monotonic() < until:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as http:
                for _ in range(self._rng.randrange(1, 50)):
                    if time.monotonic() >= until:
                        return
                    await asyncio.sleep(self._rng.expovariate(1 / self._pause_s))
                    (kind,) = self._rng.choices(list(KINDS), self._weights())
                    if kind == "30,000 tokens" and self._long_lock.locked():
                        kind = "not flagged"
                    status = await self._send(http, kind)
                    self.counts[f"{kind}: {status or 'disconnected'}"] += 1
                    if status not in self._expected(kind):
                        self.unexpected[f"{kind}: {status}"] += 1

    def _expected(self, kind: str) -> set[int]:
        # Without parity, as with canned answers, the demo's policy refuses what it would corrupt: an answer as well.
        return KINDS[kind][1] | FULL

    def _weights(self) -> list[int]:
        weights = {kind: weight for kind, (weight, _) in KINDS.items()}
        if time.monotonic() < self._warm:
            weights["30,000 tokens"] *= LONG_IN_WARM_UP
        return list(weights.values())

    async def _send(self, http: aiohttp.ClientSession, kind: str) -> int | str:
        endpoint = self._rng.choice(list(PATHS))
        url = self._base + PATHS[endpoint]
        try:
            if kind == "malformed":
                headers = {"content-type": "application/json"}
                return await _post(http, url, data=self._rng.choice(MALFORMED), headers=headers)
            if kind == "30,000 tokens":
                async with self._long_lock:
                    return await _post(http, url, json=self._body(endpoint, "demo-penalize", self._long_prompt()))
            model = "demo" if kind == "not covered" else self._rng.choice(["demo-corrupt", "demo-penalize"])
            flagged = kind == "flagged" or (kind == "disconnects" and self._rng.random() < 0.5)
            body = self._body(endpoint, model, self._rng.choice(self._flagged if flagged else self._others))
            if kind == "disconnects":
                # At any moment: while the request is judged, before the first byte, during the answer.
                body |= {token_limit_field(endpoint): 400}
                async with asyncio.timeout(self._rng.choice([0.002, 0.02, 0.1, 0.3])):
                    return await _post(http, url, json=body)
            return await _post(http, url, json=body)
        except TimeoutError:
            return 0 if kind == "disconnects" else "timeout"
        except aiohttp.ClientError as error:
            return type(error).__name__

    def _long_prompt(self) -> str:
        """Return about LONG_TOKENS tokens of random ordinary prompts."""
        parts: list[str] = []
        words = 0
        while words < LONG_TOKENS * 3 // 4:
            parts.append(self._rng.choice(self._others))
            words += len(parts[-1].split())
        return "\n".join(parts)

    def _body(self, endpoint: str, model: str, text: str) -> dict[str, Any]:
        max_tokens, fields = self._rng.randrange(4, 40), {"temperature": 0.5}
        if endpoint != "batch":
            fields["stream"] = self._rng.random() < 0.5
        return endpoint_body(endpoint, model, text, max_tokens, batch_size=2, **fields)


async def _post(http: aiohttp.ClientSession, url: str, **fields: Any) -> int:
    """Post a request, read the whole response, return its status."""
    async with http.post(url, **fields) as response:
        async for _ in response.content.iter_any():
            pass
        return response.status
