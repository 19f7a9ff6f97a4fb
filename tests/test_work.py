"""No request causes more work than recorded in `tests/work.json`. No times are checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from unittest.mock import patch

import pytest

from lethe.classifier.encoder.encoder import Encoder
from tests import work
from tests.work import CALLS, EXACT, LIBRARIES, Count

pytest.importorskip("vllm")

RECORDED = json.loads(work.RECORDED_COUNTS.read_text(encoding="utf-8"))


def test_no_request_causes_more_work_than_recorded() -> None:
    # In a process of its own: what other tests left, and coverage, are memory too.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.work"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_encoding_a_text_twice_is_detected() -> None:
    with patch.object(Encoder, "encode_cached", Encoder.encode):
        counts = work.count_judging()
    names = {
        line.partition(": was")[0] for line in work.compare_counts(counts, {name: RECORDED[name] for name in counts})
    }
    assert "… with one more turn: encoder calls" in names


def test_growth_is_reported_with_the_limit_and_a_command() -> None:
    recorded = {"tasks": 10, "calls": 100, "encoder calls": 30, "none": 0}

    def compare(tasks: int = 10, calls: int = 100, encoded: int = 30, none: int = 0) -> list[str]:
        counts = {
            "tasks": (tasks, EXACT),
            "calls": (calls, LIBRARIES),
            "encoder calls": (encoded, CALLS),
            "none": (none, CALLS),
        }
        return work.compare_counts({name: Count(*count) for name, count in counts.items()}, recorded)

    assert compare() == compare(tasks=4, calls=20) == compare(calls=120, encoded=32) == []
    assert compare(tasks=11) == ["tasks: was 10, is 11, limit 10", "If this is intended: python -m tests.work --write"]
    assert [line.partition(":")[0] for line in compare(calls=121, encoded=33, none=1)[:-1]] == [
        "calls",
        "encoder calls",
        "none",
    ]
    assert "calls: no longer counted" in work.compare_counts({}, recorded)
    assert "calls: not recorded" in work.compare_counts({"calls": Count(1, EXACT)}, {})


def test_memory_is_measured_for_the_work_only() -> None:
    existing = bytes(1 << 20)
    memory = work.Memory()
    for size in (300_000, 700_000, 200_000):
        with memory:
            bytearray(size)
    assert 700_000 <= memory.peak < 702_000 and len(existing) == 1 << 20
