"""What is asked: from any artifact, and from one that was fitted to TOFU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lethe.classifier.artifact import ForgetItem
from lethe.evaluation.unlearning import datasets, tofu


def artifact(*items: ForgetItem, live: tuple[int, ...] | None = None) -> Any:
    return SimpleNamespace(items=items, live=tuple(range(len(items))) if live is None else live)


def facts(count: int) -> list[ForgetItem]:
    return [ForgetItem(fact.question, fact.answer, "") for fact in tofu.forget_facts()[:count]]


OWN = ForgetItem("Where did Orvan Teldric live?", "Orvan Teldric lived in Vardholm from 1961.", "")


def test_an_artifact_of_forget10_makes_tofus_suite() -> None:
    suite = datasets.build(artifact(*facts(400)))
    assert suite.name == "tofu"
    assert {name: len(rows) for name, rows in suite.others.items()} == {
        "retain": 181,
        "real_authors": 100,
        "world_facts": 117,
    }
    assert len(suite.forget) == 400 and all(row.paraphrase and len(row.wrong) == 5 for row in suite.forget)
    assert len(suite.secrets) == 367 and sum(secret.named for secret in suite.secrets) == 87
    taught = {fact.question for fact in tofu.retain_facts()[0]}
    assert {row.question for row in suite.others["retain"]} <= taught
    assert "Hsiao Yun-Hwa" in suite.subjects


def test_a_part_of_forget10_asks_only_for_that_part() -> None:
    suite = datasets.build(artifact(*facts(40)))
    asked = {row.question for row in suite.forget}
    assert len(asked) == 40
    assert {secret.question for secret in suite.secrets} <= asked and set(suite.rewordings) <= asked


def test_an_item_that_was_taken_out_is_not_asked_for() -> None:
    suite = datasets.build(artifact(*facts(3), live=(0, 2)))
    assert [row.question for row in suite.forget] == [
        fact.question for fact in (tofu.forget_facts()[i] for i in (0, 2))
    ]


def test_any_other_artifact_makes_its_own() -> None:
    suite = datasets.build(artifact(OWN, *facts(1)))
    assert suite.name == "own" and suite.others == {}
    # What the question says already is no secret.
    held = {secret.secret for secret in suite.secrets if secret.question == OWN.prompt}
    assert any("Vardholm" in phrase for phrase in held) and not any("Orvan Teldric" == phrase for phrase in held)
    with pytest.raises(ValueError, match="--suite tofu"):
        datasets.build(artifact(OWN), kind="tofu")


def test_a_document_is_asked_for_by_its_beginning() -> None:
    words = [f"w{i}" for i in range(200)]
    (row,) = datasets.build(artifact(ForgetItem("", "", " ".join(words)))).forget
    assert row.question.split() == words[: datasets.GIVEN_WORDS]
    assert row.answer.split() == words[datasets.GIVEN_WORDS : datasets.GIVEN_WORDS + datasets.EXPECTED_WORDS]
    (short,) = datasets.build(artifact(ForgetItem("", "", "one two three"))).forget
    assert (short.question, short.answer) == ("one", "two three")


def test_files_bring_what_must_stay_and_wrong_answers(tmp_path: Path) -> None:
    retain, perturbed = tmp_path / "retain.jsonl", tmp_path / "perturbed.jsonl"
    retain.write_text('{"prompt": "What is tea?", "answer": "A drink."}\n')
    rows = [
        {"question": OWN.prompt, "answer": OWN.answer, "paraphrased_answer": "In Vardholm.", "perturbed_answer": ["x"]}
    ]
    perturbed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = datasets.build(artifact(OWN), retain=retain, perturbed=perturbed)
    assert suite.forget == (datasets.Row(OWN.prompt, OWN.answer, "In Vardholm.", ("x",)),)
    assert suite.others == {"retain": (datasets.Row("What is tea?", "A drink."),)}


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", r"p\.jsonl:1: not a row"), ("nonsense", r"p\.jsonl:1: not a row"), ("", "holds none of the artifact")],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        datasets.build(artifact(OWN), perturbed=path)


def test_a_thinned_suite_is_a_part_and_the_same_every_time() -> None:
    whole = datasets.build(artifact(*facts(400)))
    part = whole.thinned(10)
    assert part == whole.thinned(10) and whole.thinned(1) is whole
    assert len(part.forget) == 40 and set(part.forget) < set(whole.forget)
    assert [row for row in whole.forget if row in part.forget] == list(part.forget)
    asked = {row.question for row in part.forget}
    assert {secret.question for secret in part.secrets} <= asked
    # Not one kind of question only, as every twentieth row would be.
    assert len({tofu.forget_facts().index(tofu.Fact(row.question, row.answer)) % 20 for row in part.forget}) > 5
