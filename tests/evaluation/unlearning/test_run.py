"""The command's own parts: choosing systems, and building the report from results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.unlearning import run
from lethe.evaluation.unlearning.datasets import QuestionRow
from lethe.evaluation.unlearning.metric_table import format_table
from lethe.evaluation.unlearning.systems import SYSTEMS
from lethe.server.policy.schema import Policy
from lethe.server.settings import Settings
from tests.evaluation.unlearning.two_questions import DATASET, results


def test_the_report_has_every_system_and_is_valid_json() -> None:
    knows = results("Orvan lived in Vardholm", "Orvan wrote Salt")
    by_system = {"unguarded": knows, "refusal": replace(knows, scores=None)}
    collector: Any = SimpleNamespace(
        dataset=DATASET,
        served_model=object(),
        twin=None,
        threshold=0.5,
        detection_scores=lambda: {"forget": [0.9, 0.4], "retain": [0.1]},
        answers=lambda system: by_system[system.key].answers,
        answer_losses=lambda system, answers: by_system[system.key].losses,
        answer_scores=lambda system: by_system[system.key].scores,
    )
    report = run.build_report(collector, [SYSTEMS["unguarded"], SYSTEMS["refusal"]], {"definitions": {}, "notes": []})
    report = json.loads(json.dumps(report))
    assert [system["key"] for system in report["ways"]] == ["unguarded", "refusal"]
    assert report["ways"][0]["truth_ratio"]["prompt"]["ratios"] == pytest.approx([1.0, 4.0])
    assert "truth_ratio" not in report["ways"][1]
    assert report["detection"]["sets"]["forget"]["flagged"]["value"] == 0.5
    keys = {metric["key"] for metric in report["metrics"]}
    assert keys == set(report["meta"]["definitions"]) == set(report["ways"][0]["values"])
    assert {example["kind"] for example in report["examples"]} == {"forget", "retain"}
    table = format_table(report)
    assert "ROUGE-L recall" in table and "refusal" in table and "flagged, forget" in table


def test_systems_that_cannot_run_are_left_out_or_an_error(tmp_path: Path) -> None:
    bare, full = Settings(), Settings(model_dir=tmp_path)
    policy = Policy.model_validate({"name": "p", "artifact": "a", "action": "refuse"})
    assert [system.key for system in run.select_systems(None, bare, None, policy)] == [
        "unguarded", "refusal", "prompt", "penalize", "policy",
    ]  # fmt: skip
    assert len(run.select_systems(None, full, tmp_path, policy)) == len(SYSTEMS)
    chosen = run.select_systems("penalize,unguarded", bare, None, policy)
    assert [system.key for system in chosen] == ["unguarded", "penalize"]
    for names, message in (("both", "LETHE_MODEL_DIR"), ("twin", "--retain-model"), ("bth", "unknown system 'bth'")):
        with pytest.raises(ValueError, match=message):
            run.select_systems(names, bare, None, policy)


@pytest.mark.parametrize(
    ("more", "left_out"),
    [
        ({"action": "penalize", "penalize": {"soft": 9.0}}, True),
        ({"action": "corrupt", "corrupt": {"tokens": "content"}}, True),
        ({"action": "corrupt", "corrupt": {"tokens": "content", "strength": 0.5}}, False),
        ({"action": "both"}, False),
    ],
)
def test_a_policy_equal_to_another_system_is_left_out(tmp_path: Path, more: dict[str, Any], left_out: bool) -> None:
    policy = Policy.model_validate({"name": "p", "artifact": "a", **more})
    keys = [system.key for system in run.select_systems(None, Settings(model_dir=tmp_path), None, policy)]
    assert ("policy" not in keys) == left_out
    assert "policy" in [
        system.key for system in run.select_systems("policy", Settings(model_dir=tmp_path), None, policy)
    ]


def test_answers_to_documents_are_searched_for_copies() -> None:
    text = "Alice was beginning to get very tired of sitting by her sister on the bank"
    dataset = replace(
        DATASET, forget=(QuestionRow("Alice was beginning", "to get very tired", document=text),), leak_checks=()
    )
    policy = Policy.model_validate({"name": "p", "artifact": "a", "action": "penalize", "penalize": {"verbatim": 7}})
    settings = Settings(model_dir=FOLDERS["full"])
    collector: Any = SimpleNamespace(dataset=dataset, settings=settings, policy=policy)
    greedy = {"unguarded": {"forget": ["to get very tired of it"]}, "refusal": {"forget": ["No."]}}
    section = run.verbatim_section(collector, greedy)["verbatim"]
    assert section["limit"] == 7
    # Five words in a row are copied, of at least one token each.
    assert section["runs"]["unguarded"][0] >= 5 > section["runs"]["refusal"][0]
    collector.dataset = DATASET
    assert run.verbatim_section(collector, {}) == {}


def test_the_error_for_an_unreachable_upstream_names_it() -> None:
    with pytest.raises(ValueError, match="http://127.0.0.1:9/v1/models"):
        run.first_served_model("http://127.0.0.1:9")
