"""The hand-written forget requests: complete, and the held-back half is the one that was reported."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.requests import HALVES, add_baselines, hash_of, read_requests
from lethe.classifier import records
from lethe.evaluation.demo import demo

REPORT = demo.ROOT / "docs" / "benchmarks" / "2026-12-01-requests.md"
# Each request has at least this many prompts that must be flagged, and that must pass.
MIN_PROMPTS = 30


def requests() -> list[dict[str, Any]]:
    return [request for half in HALVES for request in read_requests(half)]


def test_the_report_names_the_held_back_half_as_it_is() -> None:
    assert hash_of("held_back") in REPORT.read_text(encoding="utf-8")


def test_there_are_thirty_requests_of_many_kinds_and_languages() -> None:
    assert len(requests()) >= 30 and len({request["kind"] for request in requests()}) >= 15
    assert len([request for request in requests() if request["language"] != "en"]) >= 5


@pytest.mark.parametrize("request_", requests(), ids=lambda request: request["id"])
def test_each_request_is_complete_and_no_prompt_must_both_flag_and_pass(request_: dict[str, Any]) -> None:
    for number, row in enumerate(request_["rows"], 1):
        records.check_record(row, f"row {number}")
    flag, others = ([prompt["text"] for prompt in request_[key]] for key in ("flag", "pass"))
    assert min(len(flag), len(others)) >= MIN_PROMPTS
    assert len({*flag, *others}) == len(flag) + len(others)


def test_the_cosine_baseline_has_as_many_false_alarms() -> None:
    results = [
        {"must_flag": flag, "flagged": flagged, "cosine": cosine, "name_match": False}
        for flag, flagged, cosine in [(True, True, 0.9), (True, False, 0.5), (False, True, 0.7), (False, False, 0.6)]
    ]
    add_baselines(results)
    assert [result["cosine_match"] for result in results] == [True, False, True, False]
