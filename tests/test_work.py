"""No request is more work than it was: `tests/work.json`. Nothing here is about time."""

from __future__ import annotations

import json
from unittest.mock import patch

import pytest

from lethe.classifier.encoder.encoder import Encoder
from tests import work
from tests.work import CALLS, EXACT, LIBRARIES, Count

pytest.importorskip("vllm")

WRITTEN = json.loads(work.WRITTEN.read_text(encoding="utf-8"))


def test_no_request_is_more_work_than_it_was() -> None:
    grown = work.more(work.counted(), WRITTEN)
    assert not grown, "\n".join(["more work than is written down in tests/work.json:", *grown])


def test_encoding_what_was_encoded_before_is_seen() -> None:
    with patch.object(Encoder, "encode_again", Encoder.encode):
        found = work.judged()
    names = {line.partition(": was")[0] for line in work.more(found, {name: WRITTEN[name] for name in found})}
    assert "… with one more turn: encoder calls" in names


def test_growth_is_told_with_what_it_was_and_what_to_do() -> None:
    written = {"tasks": 10, "calls": 100, "encoder calls": 30, "none": 0}

    def more(tasks: int = 10, calls: int = 100, encoded: int = 30, none: int = 0) -> list[str]:
        counts = {
            "tasks": (tasks, EXACT),
            "calls": (calls, LIBRARIES),
            "encoder calls": (encoded, CALLS),
            "none": (none, CALLS),
        }
        return work.more({name: Count(*count) for name, count in counts.items()}, written)

    assert more() == more(tasks=4, calls=20) == more(calls=120, encoded=32) == []
    assert more(tasks=11) == ["tasks: was 10, is 11, at most 10 pass", "If that is meant: python -m tests.work --write"]
    assert [line.partition(":")[0] for line in more(calls=121, encoded=33, none=1)[:-1]] == [
        "calls",
        "encoder calls",
        "none",
    ]
    assert "calls: is not counted any more" in work.more({}, written)
    assert "calls: is not written down" in work.more({"calls": Count(1, EXACT)}, {})


def test_memory_is_that_of_the_work_alone() -> None:
    kept = bytes(1 << 20)
    memory = work.Memory()
    for size in (300_000, 700_000, 200_000):
        with memory:
            bytearray(size)
    assert 700_000 <= memory.peak < 702_000 and len(kept) == 1 << 20
