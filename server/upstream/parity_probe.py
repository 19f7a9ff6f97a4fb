"""Do clean embeddings give the same answer as text, and is a text the same tokens here as there?

Some model families scale embeddings inside or outside the embedding layer, and a server may run other
weights than the gateway's folder holds. So one short prompt is sent both ways, greedily and with
log-probabilities, at start and whenever a server comes back (`server/upstream/pool.py`). And the token ids of a
prompt with all that tokenizers and templates read differently are compared, because vLLM may build its tokenizer
by other rules than tokenizer.json holds. Without parity nothing is corrupted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lethe.corruption.spec import CorruptionError
from lethe.server.errors import UpstreamFailed
from lethe.server.upstream.client import Upstream

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

PROBE = "Name the four seasons of the year, and one colour for each of them."
PROBE_TOKENS = 16
# White space, apostrophes, digits, accents in one character and in two, scripts, a control token's text.
AWKWARD = (
    "  Two  spaces,\ta tab\n\n\n  lines. I'll pay O’Neill 1234567.89 €: café, cafe\u0301, 日本語, Привет 🙂</s> yes.\n"
)
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
    """Compare token ids, then send the probe as text and as clean embeddings and compare what is answered.

    Raises GuardError when vLLM can't be reached.
    """
    body: dict[str, Any] = {
        "model": await served_model(upstream),
        "messages": [{"role": "user", "content": PROBE}],
        "temperature": 0,
        "max_tokens": PROBE_TOKENS,
        "logprobs": True,
    }
    awkward = {
        "model": body["model"],
        "messages": [{"role": "user", "content": AWKWARD}],
        "max_tokens": 1,
        "return_token_ids": True,
    }
    try:
        clean = await asyncio.to_thread(corruptor.chat, body, {(0, None): ()}, None, "")
        ours = await asyncio.to_thread(corruptor.prompt_tokenizer.chat_ids, awkward)
    except CorruptionError as error:
        return Parity(False, f"the probe can't be given as embeddings: {error}")
    status, answer = await upstream.call("POST", "/v1/chat/completions", awkward, timeout_s=60)
    if status != 200:
        return Parity(False, f"the probe of token ids was answered {status}: {_error(answer)}")
    if reason := differs(ours, answer.get("prompt_token_ids") if isinstance(answer, dict) else None):
        return Parity(False, reason)
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


def differs(ours: list[int], theirs: object) -> str | None:
    """Why a prompt's token ids are not vLLM's; None where they are."""
    if not isinstance(theirs, list) or not theirs:
        return "vLLM does not tell a prompt's token ids (return_token_ids)"
    if ours == theirs:
        return None
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return (
        f"token {at + 1} of {len(theirs)} is another for vLLM: LETHE_MODEL_DIR holds another tokenizer or chat "
        "template, or transformers reads it by rules of its own, which its save_pretrained writes down (docs/VLLM.md)"
    )


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
