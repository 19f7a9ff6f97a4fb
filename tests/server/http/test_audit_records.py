"""What a record names, and how large it gets: everything that flagged, up to a limit, and how many did not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.server.errors import Refused
from lethe.server.guard.decision import Decision, Forward, Reply
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.guard.plan import Plan, refusal_of
from lethe.server.http.audit_records import MAX_FINDINGS, decision_record
from lethe.server.policy.verdict import Finding, Verdict
from tests.server.fakes import policy, score

REQUEST = ParsedRequest("chat", {"model": "m"}, [])
# Bytes that a record may take, however many policies there are: 19 kB were recorded for 60.
MAX_RECORD_BYTES = 6_000


def finding(number: int, value: float, mode: str = "enforce") -> Finding:
    return Finding(policy(name=f"subject-{number}", mode=mode), replace(score(value), text=0), 0.5)


def record_of(decision: Decision) -> dict[str, Any]:
    context = cast(Any, SimpleNamespace(request_id="r", endpoint_name="chat", key=None, started=0.0))
    request = cast(Any, SimpleNamespace(body=REQUEST.body, pieces=[], place=lambda text: "prompt"))
    return decision_record(context, request, decision, with_texts=False)


def judged(findings: list[Finding]) -> dict[str, Any]:
    return record_of(Decision(Forward(Plan(REQUEST.body), None), Verdict("pass", (), tuple(findings)), "pass", None))


scores = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["enforce", "shadow"])), max_size=1_000)


@given(scores)
def test_every_finding_is_listed_or_counted_and_the_record_is_short(given_scores: list[tuple[float, str]]) -> None:
    findings = [finding(number, *one) for number, one in enumerate(given_scores)]
    record = judged(findings)
    listed, rest = record["policies"], record.get("not_listed", {})
    assert len(listed) + sum(rest.values()) == len(findings)
    flagged = sum(one["flagged"] for one in listed)
    assert flagged + rest.get("flagged", 0) == sum(one.flagged for one in findings)
    assert len(orjson.dumps(record)) < MAX_RECORD_BYTES
    if len(findings) <= MAX_FINDINGS:
        assert [one["policy"] for one in listed] == [one.policy.name for one in findings] and not rest
    elif rest.get("flagged"):
        worst = min((one["score"] for one in listed if one["flagged"] and one["mode"] == "enforce"), default=None)
        left = [one for one in findings if one.flagged and one.policy.name not in {row["policy"] for row in listed}]
        assert worst is None or all(one.policy.mode == "shadow" or one.score.score <= worst + 1e-6 for one in left)


@pytest.mark.parametrize("stage", ["judge", "corrupt", "penalize", "verbatim", "watch", "unsupported"])
def test_a_failed_guard_does_not_look_like_a_wanted_refusal(stage: str) -> None:
    wanted, failed = refusal_of(policy()), refusal_of(policy(), stage, "a reason")
    assert str(wanted) == str(failed) and (wanted.code, wanted.status) == (failed.code, failed.status)

    def refused(error: Refused) -> dict[str, Any]:
        return record_of(Decision(Reply(error), Verdict("pass", (), ()), "refuse", error.failure or error.code))

    assert "failed" not in refused(wanted) and refused(wanted)["note"] == "refused_by_policy"
    assert (refused(failed)["failed"], refused(failed)["note"]) == (stage, "a reason")
