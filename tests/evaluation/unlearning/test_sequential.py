"""Sequential forget requests, on the subjects of the classifier tests' small artifact."""

from __future__ import annotations

import pytest

from lethe.classifier.artifact import ForgetItem
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.records import Record
from lethe.classifier.training import rows as corpus
from lethe.evaluation.unlearning import sequential
from lethe.server.policy.schema import Policy

POLICY = Policy.model_validate({"name": "p", "artifact": "a", "action": "refuse", "threshold": {"miss_rate": 0.1}})


def test_items_are_split_into_consecutive_requests() -> None:
    items = [ForgetItem(f"q{i}", "a", "") for i in range(4)] + [ForgetItem("", "", "text")]
    parts = sequential.split_into_requests(items, 2)
    assert [len(part) for part in parts] == [2, 3]
    assert [row for part in parts for row in part][-1] == {"text": "text"}
    with pytest.raises(ValueError, match="cannot split 5 items into 6 requests"):
        sequential.split_into_requests(items, 6)


def test_each_request_is_recalled_from_its_turn_on(
    encoder: Encoder, forget: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = corpus.background_prompts()[::8]
    monkeypatch.setattr(corpus, "background_prompts", lambda: few)
    for name, value in (("REWORDINGS_TOTAL", 120), ("OTHER_REWORDINGS", 20), ("DECOYS", 40), ("WRAPPED_ROWS", 20)):
        monkeypatch.setattr(corpus, name, value)
    parts = [forget[:5], forget[5:10], forget[10:]]
    utility_flags: list[list[bool]] = []

    def utility(flags: list[bool]) -> dict[str, float]:
        utility_flags.append(flags)
        return {"value": 1.0, "low": 1.0, "high": 1.0, "n": len(flags)}

    rows = sequential.measure_requests(
        parts, POLICY, encoder, retain=None, rewordings={}, others=["What is rye bread made of?"], utility=utility
    )
    assert [row["requests"] for row in rows] == [1, 2, 3] and [row["items"] for row in rows] == [5, 10, 15]
    assert all(row["recall"]["value"] >= 0.8 for row in rows)
    assert [row["false_alarms"]["n"] for row in rows] == [1, 1, 1] and len(utility_flags) == 3
    # Nothing is pending after the last request.
    assert "false_alarms_pending" in rows[1] and "false_alarms_pending" not in rows[2]
    # A later request is added without a new fit.
    assert rows[1]["fit_s"] < rows[0]["fit_s"]
