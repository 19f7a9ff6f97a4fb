"""A guard inside this process: the request body that a gateway would send upstream, without a gateway.

`likelihood.py` scores fixed answers after these bodies. Knows no HTTP and no metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from lethe.classifier.attribution import evidence_spans
from lethe.corruption.prompt.token_spans import TokenSpan
from lethe.server.guard.decision import Reply
from lethe.server.guard.guard import Guard
from lethe.server.upstream.capabilities import Capabilities

Body = dict[str, Any]

# Offline the model's own embedding table is used, so the parity probe between table and server isn't needed.
OFFLINE_CAPABILITIES = Capabilities.of_any_model(parity=True)


def chat_body(question: str, system: str | None = None) -> Body:
    """Return a chat request of one user message, after a system prompt if there is one."""
    messages = [{"role": "user", "content": question}]
    return {"model": "", "messages": ([{"role": "system", "content": system}] if system else []) + messages}


@dataclass(frozen=True)
class OfflineGuard:
    """A guard, or None for an unguarded system, and the system prompt that precedes every question."""

    guard: Guard | None
    system: str | None

    def upstream_body(self, question: str) -> Body:
        """Return the body that goes upstream. Raises ValueError if the guard refuses the question."""
        body = chat_body(question, self.system)
        if self.guard is None:
            return body
        decision = self.guard.decide(self.guard.parse("chat", body), OFFLINE_CAPABILITIES)
        if isinstance(decision.result, Reply):
            raise ValueError(f"the guard refuses a question that is to be scored: {decision.note}")
        payload = decision.result.payload
        return body if payload is None else dict(orjson.loads(payload))

    def corrupted_answer(self, question: str, answer: str, end_ids: Sequence[int]) -> Any:
        """Return (T, D) embeddings of the answer, corrupted as the policy corrupts the question.

        None if the policy doesn't corrupt the question. As published for ECO (arXiv:2406.07933): the tokens to corrupt
        are chosen over question and answer together, and the classifier sees the question only. end_ids: tokens after
        the answer, which keep their embeddings.
        """
        import torch

        guard = self.guard
        assert guard is not None and guard.corruptor is not None
        verdict = guard.judge(guard.parse("chat", chat_body(question)), guard.policies)
        if verdict.action not in ("corrupt", "both"):
            return None
        policy = verdict.acting[0].policy
        artifact, tokenizer = guard.artifacts[policy.artifact], guard.corruptor.prompt_tokenizer
        before, after = (tokenizer.completion(t, add_special_tokens=False)[0] for t in (question, answer))
        shift = len(question) + 1
        span = TokenSpan(
            before.ids + after.ids,
            before.offsets + tuple((a + shift, b + shift) for a, b in after.offsets),
            ends_prompt=True,
        )
        marked_ranges = []
        if policy.corrupt.uses_evidence:
            marked_ranges = [*evidence_spans(artifact, question)]
            marked_ranges += [(a + shift, b + shift) for a, b in evidence_spans(artifact, answer)]
        rows = guard.corruptor.rows(span, 0, marked_ranges, policy.corrupt, policy.name)[len(before.ids) :]
        end_rows = guard.corruptor.table.rows(list(end_ids))
        return torch.from_numpy(np.concatenate([rows, end_rows]).astype(np.float32))
