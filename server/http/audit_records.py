"""What is recorded of a request: audit records, and headers for trusted keys.

Names and numbers; the judged texts only with LETHE_AUDIT_PROMPTS.
"""

from __future__ import annotations

import re
import time
from typing import Any

from lethe.server.guard.decision import Decision
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.http.exchange import Headers, RequestContext
from lethe.server.output.filter import ResponseFilter
from lethe.server.policy.verdict import Finding, Verdict

# Only what looks like a model's name is recorded: clients can write anything into the field.
MODEL_NAME = re.compile(r"[\w./:@+-]{1,200}", re.ASCII)


def decision_record(
    context: RequestContext, request: ParsedRequest, decision: Decision, *, with_texts: bool
) -> dict[str, Any]:
    """The record of one decision. with_texts: the operator wants the judged texts in it (LETHE_AUDIT_PROMPTS)."""
    model = str(request.body.get("model", ""))
    record: dict[str, Any] = {
        "time": time.time(),
        "request_id": context.request_id,
        "endpoint": context.endpoint_name,
        "model": model if MODEL_NAME.fullmatch(model) else None,
        "action": decision.action,
        "note": decision.note,
    }
    if context.key is not None:
        record["key"] = context.key.name
    if decision.verdict is not None:
        record["policies"] = [_finding_record(finding, request) for finding in decision.verdict.findings]
        record["judge_ms"] = round(decision.judge_ms, 3)
        record["rewrite_ms"] = round(decision.rewrite_ms, 3)
    record["decided_ms"] = round((time.perf_counter() - context.started) * 1e3, 3)
    if with_texts:
        record["texts"] = {piece.place: piece.text for piece in request.pieces}
    return record


def _finding_record(finding: Finding, request: ParsedRequest) -> dict[str, Any]:
    policy = finding.policy
    return {
        "policy": policy.name,
        "hash": policy.hash,
        "mode": policy.mode,
        "action": policy.action,
        **finding.to_record(request.place(finding.score.text)),
    }


def filter_record(context: RequestContext, response_filter: ResponseFilter) -> dict[str, Any]:
    """The record of an answer in which the output filter had hits: how many by policy, never what."""
    return {
        "time": time.time(),
        "request_id": context.request_id,
        "endpoint": context.endpoint_name,
        "watch": dict(response_filter.hits),
        "cut": response_filter.cut,
    }


def debug_headers(action: str, verdict: Verdict) -> Headers:
    """The verdict as headers, the policies as a structured-field dictionary (RFC 9651)."""
    policies = [
        f"{finding.policy.name};mode={finding.policy.mode};flagged=?{finding.flagged:d};score={finding.score.score:.4f}"
        f";threshold={finding.threshold:.4f};seen={finding.score.characters_seen};present={finding.score.characters_present}"
        for finding in verdict.findings
    ]
    return [(b"x-lethe-action", action.encode()), (b"x-lethe-policies", ", ".join(policies).encode())]
