"""What policies in shadow mode would have done, from an audit file."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from lethe.server.policy_store.shadow_report import parse_since, report_lines, summarize


def record(time: float, score: float | None, *, mode: str = "shadow", policy: str = "p", **more: Any) -> bytes:
    finding = {
        "policy": policy, "hash": "h1", "mode": mode, "action": "penalize", "place": "messages[3].content",
        "score": score, "flagged": score is None or score >= 0.5, **more,
    }  # fmt: skip
    return json.dumps({"time": time, "request_id": f"r{time:.0f}", "model": "m", "policies": [finding]}).encode()


LINES = [
    record(1, 0.05), record(2, 0.72), record(3, 1.0), record(4, None), record(5, 0.9, mode="enforce"),
    record(6, 0.3, policy="q"), b'{"time": 7, "event": "policies", "by": "files"}', b"torn {", b"",
]  # fmt: skip


def test_each_policy_in_shadow_is_counted() -> None:
    found, unread = summarize(LINES)
    p, q = (summary.to_json() for summary in found)
    assert unread == 1
    assert (p["policy"], p["judged"], p["flagged"], p["share"], p["action"]) == ("p", 4, 3, 0.75, "penalize")
    assert p["scores_in_tenths"] == [1, 0, 0, 0, 0, 0, 0, 1, 0, 2]
    assert p["places"] == {"messages[N].content": 3} and p["models"] == {"m": 3}
    assert p["examples"][-1] == "r4 messages[3].content"
    assert (q["judged"], q["flagged"]) == (1, 0)


def test_since_excludes_older_records() -> None:
    (only,), _ = summarize(LINES[:4], start=3)
    assert (only.judged, only.first, only.last) == (2, 3, 4)


def test_only_the_last_examples_are_kept() -> None:
    (only,), _ = summarize([record(i, 0.8) for i in range(20)])
    assert [example.split()[0] for example in only.examples] == ["r15", "r16", "r17", "r18", "r19"]


def test_the_report_has_counts_and_names_several_versions() -> None:
    (only,), _ = summarize([record(1, 0.9), record(2, 0.1, hash="h2")])
    report = "\n".join(report_lines(only))
    assert "p: 1 of 2 requests flagged (50.00%)" in report and "2 versions" in report
    assert "0.9–1.0        1 ████" in report


def test_since_accepts_ages_and_dates() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert parse_since("24h", now=now) == datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert parse_since("90m", now=now) == now.timestamp() - 5400
    assert parse_since("2026-01-02T00:00+00:00") == now.timestamp()
    with pytest.raises(ValueError, match="--since 'soon'"):
        parse_since("soon")
