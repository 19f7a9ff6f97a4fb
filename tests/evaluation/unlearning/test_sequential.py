"""Requests to forget, one after another, on the small artifact's subjects."""

from __future__ import annotations

import pytest

from lethe.classifier.artifact import ForgetItem
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.records import Record
from lethe.classifier.training import rows as corpus
from lethe.evaluation.unlearning import sequential
from lethe.server.policy.schema import Policy

POLICY = Policy.model_validate({"name": "p", "artifact": "a", "action": "refuse", "threshold": {"miss_rate": 0.1}})


def test_items_make_requests_of_consecutive_ones() -> None:
    items = [ForgetItem(f"q{i}", "a", "") for i in range(4)] + [ForgetItem("", "", "text")]
    parts = sequential.requests(items, 2)
    assert [len(part) for part in parts] == [2, 3]
    assert [row for part in parts for row in part][-1] == {"text": "text"}
    with pytest.raises(ValueError, match="5 items don't make 6 requests"):
        sequential.requests(items, 6)


def test_each_request_is_known_from_its_own_turn_on(
    encoder: Encoder, forget: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = corpus.background()[::8]
    monkeypatch.setattr(corpus, "background", lambda: few)
    for name, value in (("VARIANTS_WANTED", 120), ("OTHER_VARIANTS", 20), ("DECOYS", 40), ("WRAPPED", 20)):
        monkeypatch.setattr(corpus, name, value)
    parts = [forget[:5], forget[5:10], forget[10:]]
    kept: list[list[bool]] = []

    def utility(flags: list[bool]) -> dict[str, float]:
        kept.append(flags)
        return {"value": 1.0, "low": 1.0, "high": 1.0, "n": len(flags)}

    rows = sequential.run(
        parts, POLICY, encoder, retain=None, rewordings={}, others=["What is rye bread made of?"], utility=utility
    )
    assert [row["requests"] for row in rows] == [1, 2, 3] and [row["items"] for row in rows] == [5, 10, 15]
    assert all(row["recall"]["value"] >= 0.8 for row in rows)
    assert [row["false_alarms"]["n"] for row in rows] == [1, 1, 1] and len(kept) == 3
    # Nothing is pending after the last one.
    assert "false_alarms_pending" in rows[1] and "false_alarms_pending" not in rows[2]
    # Adding costs no fit.
    assert rows[1]["fit_s"] < rows[0]["fit_s"]


def test_a_figure_that_left_the_first_interval_is_told() -> None:
    rows = [
        {"requests": 1, "recall": {"low": 0.9, "high": 1.0}},
        {"requests": 2, "recall": {"low": 0.85, "high": 0.95}},
        {"requests": 3, "recall": {"low": 0.5, "high": 0.8}},
    ]
    assert sequential.within_first(rows, "recall") == [3]
