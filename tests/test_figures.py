"""The scripts behind README's figures count what they say they count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import answers, detection, judging
from lethe.classifier.encoder.encoder import load_encoder
from lethe.evaluation.unlearning import tofu
from lethe.server.policy.schema import read_all


def test_flagged_prompts_are_counted_at_each_miss_rate() -> None:
    asked = {"forget": [tofu.forget_facts()[3].question], "general": judging.benign()[:3]}
    found = detection.flagged(judging.artifact(), asked, load_encoder())
    assert [one["count"] for one in found["forget"]["flagged"].values()] == [1, 1, 1]
    assert [one["count"] for one in found["general"]["flagged"].values()] == [0, 0, 0]
    assert found["general"]["prompts"] == 3
    assert "3" in detection.table(found).splitlines()[2].split()


def test_the_gateway_has_the_demo_policies_and_one_that_does_both(tmp_path: Path) -> None:
    answers.write_policies(tmp_path)
    policies = {policy.name: policy for policy in read_all(tmp_path)}
    assert set(policies) == {"demo-corrupt", "demo-penalize", "demo-both"}
    both = policies["demo-both"]
    assert (both.action, both.models) == ("both", ("demo-both",))
    assert both.corrupt == policies["demo-corrupt"].corrupt
    assert both.penalize == policies["demo-penalize"].penalize
    assert {policy.threshold for policy in policies.values()} == {both.threshold}


@pytest.mark.parametrize(
    ("way", "told", "equal", "holds"),
    [("penalize", 0, 9, True), ("both", 1, 9, False), ("off", 5, 9, True), ("penalize", 0, 8, False)],
)
def test_a_told_secret_and_a_usage_that_tells_fail(way: str, told: int, equal: int, holds: bool) -> None:
    found: dict[str, list[dict[str, Any]]] = {
        "secrets": [{"way": way, "told": told}],
        "usage": [{"way": "corrupt", "equal": equal, "n": 9}],
    }
    assert answers.kept(found) is holds
