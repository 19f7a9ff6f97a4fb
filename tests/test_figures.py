"""The scripts behind the published detection and leak figures count correctly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import answers, detection, judging
from lethe.classifier.encoder.load import load_encoder
from lethe.evaluation.unlearning import tofu
from lethe.server.policy.files import read_policies


def test_flagged_prompts_are_counted_for_each_miss_rate() -> None:
    prompts = {"forget": [tofu.forget_facts()[3].question], "general": judging.ordinary_prompts()[:3]}
    figures = detection.count_flagged(judging.demo_artifact(), prompts, load_encoder())
    assert [one["count"] for one in figures["forget"]["flagged"].values()] == [1, 1, 1]
    assert [one["count"] for one in figures["general"]["flagged"].values()] == [0, 0, 0]
    assert figures["general"]["prompts"] == 3
    assert "3" in detection.format_flagged_table(figures).splitlines()[2].split()


def test_the_demo_policies_are_written_with_one_for_both(tmp_path: Path) -> None:
    answers.write_policies(tmp_path)
    policies = {policy.name: policy for policy in read_policies(tmp_path)}
    assert set(policies) == {"demo-corrupt", "demo-penalize", "demo-both"}
    both = policies["demo-both"]
    assert (both.action, both.models) == ("both", ("demo-both",))
    assert both.corrupt == policies["demo-corrupt"].corrupt
    assert both.penalize == policies["demo-penalize"].penalize
    assert {policy.threshold for policy in policies.values()} == {both.threshold}


@pytest.mark.parametrize(
    ("way", "revealed", "equal", "expected"),
    [("penalize", 0, 9, True), ("both", 1, 9, False), ("off", 5, 9, True), ("penalize", 0, 8, False)],
)
def test_a_leaked_secret_or_a_changed_usage_fails(way: str, revealed: int, equal: int, expected: bool) -> None:
    findings: dict[str, list[dict[str, Any]]] = {
        "secrets": [{"way": way, "told": revealed}],
        "usage": [{"way": "corrupt", "equal": equal, "n": 9}],
    }
    assert answers.promises_kept(findings) is expected
