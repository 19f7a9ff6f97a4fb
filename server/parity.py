"""Is vLLM there, and do clean embeddings give the same answer as text?

Some model families scale embeddings inside or outside the embedding layer, and a server may run other
weights than the gateway's folder holds. So one short prompt is sent both ways, greedily and with
log-probabilities, at start and whenever the server comes back. Without parity nothing is corrupted.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from corruption.spec import CorruptionError
from server.errors import GuardError, UpstreamFailed
from server.guard import Guard
from server.metrics import Metrics
from server.upstream import Upstream
from server.verbatim import known

if TYPE_CHECKING:
    from corruption.eco import Corruptor

log = logging.getLogger("lethe.upstream")

PROBE = "Name the four seasons of the year, and one colour for each of them."
PROBE_TOKENS = 16
# Two runs of the same prompt differ by rounding only; another table differs by whole units.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Parity:
    holds: bool
    reason: str


async def served_model(upstream: Upstream) -> str:
    """The id of the first model that vLLM serves. Raises GuardError when there is none."""
    status, answer = await upstream.call("GET", "/v1/models")
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise UpstreamFailed(f"GET /v1/models answered {status} and names no model", code="no_model") from None


async def probe(upstream: Upstream, corruptor: Corruptor) -> Parity:
    """Send the probe as text and as clean embeddings and compare tokens, log-probabilities and usage.

    Raises GuardError when vLLM can't be reached.
    """
    body: dict[str, Any] = {
        "model": await served_model(upstream),
        "messages": [{"role": "user", "content": PROBE}],
        "temperature": 0,
        "max_tokens": PROBE_TOKENS,
        "logprobs": True,
    }
    try:
        clean = await asyncio.to_thread(corruptor.chat, body, {(0, None): ()}, None, "")
    except CorruptionError as error:
        return Parity(False, f"the probe can't be given as embeddings: {error}")
    text_status, as_text = await upstream.call("POST", "/v1/chat/completions", body, timeout_s=60)
    embeds_status, as_embeds = await upstream.call("POST", "/v1/chat/completions", clean, timeout_s=60)
    if text_status != 200:
        return Parity(False, f"the probe as text was answered {text_status}: {_error(as_text)}")
    if embeds_status != 200:
        hint = " (is vLLM running with --enable-prompt-embeds?)" if embeds_status == 400 else ""
        return Parity(False, f"the probe as embeddings was answered {embeds_status}: {_error(as_embeds)}{hint}")
    try:
        return compare(as_text, as_embeds)
    except (KeyError, IndexError, TypeError) as error:
        return Parity(False, f"the probe's answer is not a chat completion with logprobs ({type(error).__name__})")


def compare(as_text: dict[str, Any], as_embeds: dict[str, Any]) -> Parity:
    """Same prompt_tokens, same greedy tokens, log-probabilities within TOLERANCE."""
    prompts = [answer["usage"]["prompt_tokens"] for answer in (as_text, as_embeds)]
    if prompts[0] != prompts[1]:
        return Parity(False, f"prompt_tokens differ: {prompts[0]} as text, {prompts[1]} as embeddings")
    tokens = [answer["choices"][0]["logprobs"]["content"] for answer in (as_text, as_embeds)]
    for at, (a, b) in enumerate(zip(*tokens, strict=False)):
        gap = abs(a["logprob"] - b["logprob"])
        if a["token"] != b["token"]:
            # Two candidates that are equally likely may swap by rounding; that is no sign of another table.
            if gap <= TOLERANCE:
                break
            return Parity(False, f"answers part at token {at + 1}")
        if gap > TOLERANCE:
            return Parity(False, f"log-probabilities differ by {gap:.3f} at token {at + 1}")
    return Parity(True, f"{len(tokens[0])} tokens alike")


def _error(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("message", ""))[:200] if isinstance(error, dict) else ""


class Watch:
    """Asks vLLM for its health every few seconds and probes parity at start and on recovery."""

    def __init__(self, upstream: Upstream, guard: Guard, metrics: Metrics, *, interval_s: float) -> None:
        self._upstream = upstream
        self._guard = guard
        self._metrics = metrics
        self._interval_s = interval_s
        self.up = False
        self.corrupts = guard.corruptor is not None
        self.parity = Parity(False, "not probed yet")
        self._probed = False
        self._asked = False

    @property
    def settled(self) -> bool:
        """Whether requests can be served as the policies say: vLLM is up, and what matters of it is known."""
        return self.up and (self._probed or not self.corrupts) and (self._asked or not self._guard.indexes)

    async def run(self) -> None:
        while True:
            try:
                await self.check()
            except Exception:
                # The watch must outlive whatever a check meets: nobody else would notice that it ended.
                log.exception("the health check of vLLM failed")
                self._settle(Parity(False, "the health check failed"))
            await asyncio.sleep(self._interval_s)

    async def check(self) -> None:
        """One health check, and a probe if the server has come back or parity is not settled."""
        was_up = self.up
        try:
            status, _ = await self._upstream.call("GET", "/health")
            self.up = status == 200
        except GuardError:
            self.up = False
        self._metrics.upstream_up.set(self.up)
        if was_up != self.up:
            log.info("vLLM at %s is %s", self._upstream.url, "up" if self.up else "down")
        if not self.up:
            # It may come back with other weights, so parity has to be shown again.
            self._probed = self._asked = False
            self._guard.indexes_there = frozenset()
            self._settle(Parity(False, "vLLM is down"))
        elif self._guard.corruptor is not None and not self.parity.holds:
            try:
                self._settle(await probe(self._upstream, self._guard.corruptor))
                self._probed = True
            except GuardError as error:
                self._settle(Parity(False, error.message))
        if self.up:
            await self._ask_for_indexes()

    async def _ask_for_indexes(self) -> None:
        """Learn which protected texts vLLM can keep from being copied, until it has all of them."""
        wanted = frozenset(self._guard.indexes.values())
        if wanted <= self._guard.indexes_there:
            return
        try:
            found = await known(self._upstream, await served_model(self._upstream), wanted)
        except GuardError:
            return
        if not self._asked or found != self._guard.indexes_there:
            log.log(
                logging.INFO if wanted <= found else logging.WARNING,
                "vLLM has %d of %d verbatim indexes", len(found), len(wanted),
            )  # fmt: skip
        self._guard.indexes_there, self._asked = found, True

    def _settle(self, parity: Parity) -> None:
        if parity != self.parity and self._guard.corruptor is not None:
            log.log(
                logging.INFO if parity.holds else logging.WARNING,
                "parity %s: %s", "holds" if parity.holds else "fails", parity.reason,
            )  # fmt: skip
        self.parity = parity
        self._guard.parity = parity.holds
        self._metrics.parity.set(parity.holds)
