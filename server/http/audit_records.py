"""What is recorded of a request: audit records, and headers for API keys with `debug`.

Names and numbers; the judged texts only with LETHE_AUDIT_PROMPTS.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from lethe.server.guard.decision import Decision
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.http.exchange import Headers, RequestContext
from lethe.server.output.filter import ResponseFilter
from lethe.server.policy.verdict import Finding, Verdict

# Up to MAX_FINDINGS findings of one request, all are recorded. Of more, only the first MAX_FLAGGED_FINDINGS that
# flagged, and in short form the first MAX_SHADOW_FINDINGS in shadow mode that did not flag. A full record takes 0.3 kB,
# a short one 0.1 kB. Chosen: recording all 60 findings of one request took 19 kB.
MAX_FINDINGS, MAX_FLAGGED_FINDINGS, MAX_SHADOW_FINDINGS = 8, 8, 16
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
    if decision.refusal is not None and decision.refusal.failed_stage is not None:
        record["failed"] = decision.refusal.failed_stage
    if context.key is not None:
        record["key"] = context.key.name
    if decision.verdict is not None:
        record["policies"], not_listed = _finding_records(decision.verdict.findings, request)
        if not_listed:
            record["not_listed"] = not_listed
        record["judge_ms"] = round(decision.judge_ms, 3)
        record["rewrite_ms"] = round(decision.rewrite_ms, 3)
    record["decided_ms"] = round((time.perf_counter() - context.started) * 1e3, 3)
    if with_texts:
        record["texts"] = {piece.place: piece.text for piece in request.pieces}
    return record


def _finding_records(
    findings: Sequence[Finding], request: ParsedRequest
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The records of what judged a request, and how many were left out: flagged, and not flagged.

    A few findings are all listed. Of more, those that flagged are (enforced ones first, then the highest scores), and
    those in shadow mode in short, which `lethe report shadow` counts.
    """
    if len(findings) <= MAX_FINDINGS:
        return [_finding_record(finding, request) for finding in findings], {}
    flagged = sorted(
        (finding for finding in findings if finding.flagged),
        key=lambda finding: (finding.policy.mode != "enforce", -finding.score.score),
    )[:MAX_FLAGGED_FINDINGS]
    shadow = [finding for finding in findings if finding.policy.mode == "shadow" and not finding.flagged]
    shadow = shadow[:MAX_SHADOW_FINDINGS]
    listed = [_finding_record(finding, request) for finding in flagged] + [_short_record(one) for one in shadow]
    count_flagged = sum(finding.flagged for finding in findings)
    rest = {"flagged": count_flagged - len(flagged), "unflagged": len(findings) - count_flagged - len(shadow)}
    return listed, {kind: count for kind, count in rest.items() if count}


def _short_record(finding: Finding) -> dict[str, Any]:
    policy = finding.policy
    return {
        "policy": policy.name,
        "hash": policy.hash,
        "mode": policy.mode,
        "action": policy.action,
        "flagged": finding.flagged,
        "score": round(finding.score.score, 6),
    }


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
