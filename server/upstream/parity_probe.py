"""Parity probe: whether clean prompt embeddings give the same answer as text, and both sides tokenize alike.

Some model families scale embeddings inside or outside the embedding layer, and a server may run other weights than
the gateway's model folder holds. So one short prompt is sent both ways, greedily and with log-probabilities, at start
and whenever a server comes back (`server/upstream/replica.py`). The token ids of a second prompt are compared because
vLLM may build its tokenizer by other rules than tokenizer.json holds. Without parity no prompt is corrupted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lethe.corruption.spec import CorruptionError
from lethe.server.upstream.client import Upstream
from lethe.server.upstream.model_cards import fetch_model_cards

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

PROBE_PROMPT = "Name the four seasons of the year, and one colour for each of them."
# Tokens generated per probe. Chosen: wrong embeddings differ at the first token; 16 leave room for small scalings.
PROBE_TOKENS = 16
# What tokenizers and chat templates treat differently: white space, apostrophes, digits, composed and decomposed
# accents, scripts, the text of a control token.
TOKENIZATION_PROMPT = (
    "  Two  spaces,\ta tab\n\n\n  lines. I'll pay O’Neill 1234567.89 €: café, cafe\u0301, 日本語, Привет 🙂</s> yes.\n"
)
# Largest difference of log-probabilities (natural logarithm) that counts as equal. Chosen between two scales: two
# runs of the same prompt differ by rounding only, another embedding table differs by whole units.
LOGPROB_TOLERANCE = 0.05
# Seconds that one probe request may take: the server may be busy with long prompts.
PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ParityResult:
    holds: bool
    reason: str


async def probe_parity(upstream: Upstream, corruptor: Corruptor) -> ParityResult:
    """Compare token ids, then send the probe as text and as clean embeddings and compare the answers.

    Raises GatewayError when vLLM can't be reached.
    """
    cards = await fetch_model_cards(upstream)
    tokenization_body = {
        "model": cards[0]["id"],
        "messages": [{"role": "user", "content": TOKENIZATION_PROMPT}],
        "max_tokens": 1,
        "return_token_ids": True,
    }
    text_body: dict[str, Any] = {
        "model": cards[0]["id"],
        "messages": [{"role": "user", "content": PROBE_PROMPT}],
        "temperature": 0,
        "max_tokens": PROBE_TOKENS,
        "logprobs": True,
    }
    try:
        embeds_body = await asyncio.to_thread(corruptor.chat, text_body, {(0, None): ()}, None, "")
        token_ids = await asyncio.to_thread(corruptor.prompt_tokenizer.chat_ids, tokenization_body)
    except CorruptionError as error:
        return ParityResult(False, f"the probe can't be sent as embeddings: {error}")
    status, answer = await _complete(upstream, tokenization_body)
    if status != 200:
        return ParityResult(False, f"the tokenization probe returned {status}: {_error_message(answer)}")
    if reason := tokenization_difference(
        token_ids, answer.get("prompt_token_ids") if isinstance(answer, dict) else None
    ):
        return ParityResult(False, reason)
    text_status, text_answer = await _complete(upstream, text_body)
    embeds_status, embeds_answer = await _complete(upstream, embeds_body)
    if text_status != 200:
        return ParityResult(False, f"the probe as text returned {text_status}: {_error_message(text_answer)}")
    if embeds_status != 200:
        hint = " (is vLLM running with --enable-prompt-embeds?)" if embeds_status == 400 else ""
        message = f"the probe as embeddings returned {embeds_status}: {_error_message(embeds_answer)}{hint}"
        return ParityResult(False, message)
    try:
        return compare_answers(text_answer, embeds_answer)
    except (KeyError, IndexError, TypeError) as error:
        message = f"the probe's answer is not a chat completion with logprobs ({type(error).__name__})"
        return ParityResult(False, message)


async def _complete(upstream: Upstream, body: dict[str, Any]) -> tuple[int, Any]:
    return await upstream.call("POST", "/v1/chat/completions", body, timeout_s=PROBE_TIMEOUT_S)


def tokenization_difference(ours: list[int], theirs: object) -> str | None:
    """How the gateway's token ids of a prompt differ from vLLM's; None if they are equal."""
    if not isinstance(theirs, list) or not theirs:
        return "vLLM returned no token ids of the prompt (return_token_ids)"
    if ours == theirs:
        return None
    pairs = enumerate(zip(ours, theirs, strict=False))
    index = next((index for index, (our, their) in pairs if our != their), min(len(ours), len(theirs)))
    return (
        f"token {index + 1} of {len(theirs)} differs from vLLM's: LETHE_MODEL_DIR holds another tokenizer or chat "
        "template, or transformers applies its own tokenizer rules, which its save_pretrained writes out (docs/vllm.md)"
    )


def compare_answers(text_answer: dict[str, Any], embeds_answer: dict[str, Any]) -> ParityResult:
    """Whether two chat completions have equal prompt_tokens, equal greedy tokens and log-probabilities alike.

    Raises KeyError, IndexError or TypeError when one of them is no chat completion with logprobs.
    """
    prompt_tokens = [answer["usage"]["prompt_tokens"] for answer in (text_answer, embeds_answer)]
    if prompt_tokens[0] != prompt_tokens[1]:
        message = f"prompt_tokens differ: {prompt_tokens[0]} as text, {prompt_tokens[1]} as embeddings"
        return ParityResult(False, message)
    tokens = [answer["choices"][0]["logprobs"]["content"] for answer in (text_answer, embeds_answer)]
    for number, (as_text, as_embeds) in enumerate(zip(*tokens, strict=False), 1):
        difference = abs(as_text["logprob"] - as_embeds["logprob"])
        if as_text["token"] != as_embeds["token"]:
            # Rounding may swap two candidates of equal probability; that is no sign of another table.
            if difference <= LOGPROB_TOLERANCE:
                break
            return ParityResult(False, f"answers differ from token {number} on")
        if difference > LOGPROB_TOLERANCE:
            return ParityResult(False, f"log-probabilities differ by {difference:.3f} at token {number}")
    return ParityResult(True, f"{len(tokens[0])} tokens agree")


def _error_message(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("message", ""))[:200] if isinstance(error, dict) else ""
