"""Data sets from any artifact, and from one that was fitted to TOFU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lethe.classifier.artifact import ForgetItem
from lethe.evaluation.unlearning import datasets, tofu


def artifact(*items: ForgetItem, live: tuple[int, ...] | None = None) -> Any:
    return SimpleNamespace(items=items, live_items=tuple(range(len(items))) if live is None else live)


def facts(count: int) -> list[ForgetItem]:
    return [ForgetItem(fact.question, fact.answer, "") for fact in tofu.forget_facts()[:count]]


OWN = ForgetItem("Where did Orvan Teldric live?", "Orvan Teldric lived in Vardholm from 1961.", "")


def test_an_artifact_of_forget10_gives_the_tofu_dataset() -> None:
    dataset = datasets.build_dataset(artifact(*facts(400)))
    assert dataset.name == "tofu"
    assert {name: len(rows) for name, rows in dataset.retain_sets.items()} == {
        "retain": 181,
        "real_authors": 100,
        "world_facts": 117,
    }
    assert len(dataset.forget) == 400 and all(row.paraphrase and len(row.wrong) == 5 for row in dataset.forget)
    assert len(dataset.leak_checks) == 367 and sum(check.is_name for check in dataset.leak_checks) == 87
    taught = {fact.question for fact in tofu.retain_facts()[0]}
    assert {row.question for row in dataset.retain_sets["retain"]} <= taught
    assert "Hsiao Yun-Hwa" in dataset.subjects


def test_part_of_forget10_gives_that_part_of_tofu() -> None:
    dataset = datasets.build_dataset(artifact(*facts(40)))
    questions = {row.question for row in dataset.forget}
    assert len(questions) == 40
    assert {check.question for check in dataset.leak_checks} <= questions and set(dataset.rewordings) <= questions


def test_a_removed_item_is_not_in_the_dataset() -> None:
    dataset = datasets.build_dataset(artifact(*facts(3), live=(0, 2)))
    assert [row.question for row in dataset.forget] == [
        fact.question for fact in (tofu.forget_facts()[i] for i in (0, 2))
    ]


def test_any_other_artifact_gives_its_own_dataset() -> None:
    dataset = datasets.build_dataset(artifact(OWN, *facts(1)))
    assert dataset.name == "own" and dataset.retain_sets == {}
    # Words of the question are no secret.
    secrets = {check.secret for check in dataset.leak_checks if check.question == OWN.prompt}
    assert any("Vardholm" in phrase for phrase in secrets) and not any("Orvan Teldric" == phrase for phrase in secrets)
    with pytest.raises(ValueError, match="--suite tofu"):
        datasets.build_dataset(artifact(OWN), kind="tofu")


def test_a_documents_first_words_are_its_prompt() -> None:
    words = [f"w{i}" for i in range(200)]
    (row,) = datasets.build_dataset(artifact(ForgetItem("", "", " ".join(words)))).forget
    assert row.question.split() == words[: datasets.PROMPT_WORDS]
    assert row.answer.split() == words[datasets.PROMPT_WORDS : datasets.PROMPT_WORDS + datasets.CONTINUATION_WORDS]
    (short,) = datasets.build_dataset(artifact(ForgetItem("", "", "one two three"))).forget
    assert (short.question, short.answer) == ("one", "two three")


def test_files_add_retain_rows_and_wrong_answers(tmp_path: Path) -> None:
    retain, perturbed = tmp_path / "retain.jsonl", tmp_path / "perturbed.jsonl"
    retain.write_text('{"prompt": "What is tea?", "answer": "A drink."}\n')
    rows = [
        {"question": OWN.prompt, "answer": OWN.answer, "paraphrased_answer": "In Vardholm.", "perturbed_answer": ["x"]}
    ]
    perturbed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = datasets.build_dataset(artifact(OWN), retain=retain, perturbed=perturbed)
    assert dataset.forget == (datasets.QuestionRow(OWN.prompt, OWN.answer, "In Vardholm.", ("x",)),)
    assert dataset.retain_sets == {"retain": (datasets.QuestionRow("What is tea?", "A drink."),)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r"p\.jsonl:1: not a row"),
        ("nonsense", r"p\.jsonl:1: not a row"),
        ("", "none of the artifact's questions"),
    ],
)
def test_the_error_for_a_malformed_file_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        datasets.build_dataset(artifact(OWN), perturbed=path)


def test_a_subsample_is_the_same_part_every_time() -> None:
    whole = datasets.build_dataset(artifact(*facts(400)))
    part = whole.subsample(10)
    assert part == whole.subsample(10) and whole.subsample(1) is whole
    assert len(part.forget) == 40 and set(part.forget) < set(whole.forget)
    assert [row for row in whole.forget if row in part.forget] == list(part.forget)
    questions = {row.question for row in part.forget}
    assert {check.question for check in part.leak_checks} <= questions
    # Every twentieth row would be the same kind of question about each author.
    assert len({tofu.forget_facts().index(tofu.Fact(row.question, row.answer)) % 20 for row in part.forget}) > 5
