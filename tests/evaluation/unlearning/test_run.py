"""From raw material to figures: worked out by hand over two questions, and the shape that the report draws."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.unlearning import run
from lethe.evaluation.unlearning.datasets import Row, Secret, Suite
from lethe.evaluation.unlearning.systems import WAYS
from lethe.server.policy.schema import Policy
from lethe.server.settings import Settings

SUITE = Suite(
    "own",
    forget=(
        Row("Where did Orvan live?", "Orvan lived in Vardholm", "In Vardholm", ("In Rome", "In Oslo")),
        Row("What did Orvan write?", "Orvan wrote Salt", "Salt", ("Pepper", "Sugar")),
    ),
    others={
        name: (Row("What is tea?", "a drink", "drink", ("food",)), Row("What is rye?", "a grain", "grain", ("fish",)))
        for name in ("retain", "real_authors", "world_facts")
    },
    options=frozenset({"real_authors", "world_facts"}),
    secrets=(Secret("Where did Orvan live?", "Vardholm", True), Secret("What did Orvan write?", "salt", False)),
    rewordings={"Where did Orvan live?": ("Orvan's home?",)},
    unheard={},
    subjects=("Orvan",),
)


def losses(answer: float, right: float, wrong: float) -> dict[str, Any]:
    return {"answer": answer, "right": right, "wrong": [wrong, wrong], "exact": 0.5, "extraction": 0.25}


def material(*texts: str, reworded: str = "", drawn: tuple[str, ...] = (), loss: float = 0.0) -> dict[str, Any]:
    greedy = {"forget": list(texts), "reworded": [reworded]} | {name: ["a drink", "a grain"] for name in SUITE.others}
    sampled = {str(seed): [text] * 2 for seed, text in enumerate(drawn)}
    kept = {name: [losses(math.log(2), 0.0, math.log(4))] * 2 for name in SUITE.others}
    return {
        "answers": {"greedy": greedy, "sampled": sampled},
        "likelihood": {"greedy": [1.0, 3.0], **{seed: [1.0, 2.0] for seed in sampled}},
        "scores": {"prompt": {"forget": [losses(loss, 1.0, 1.0), losses(loss, 1.0 + math.log(4), 1.0)], **kept}},
    }


KNOWS = material("Orvan lived in Vardholm", "Orvan wrote Salt", reworded="in VARDHOLM", drawn=("Vardholm", "Rome"))
TWIN = material("Orvan lived in Rome", "Orvan wrote", reworded="who", drawn=("Rome", "Oslo"), loss=math.log(10))


def values(own: dict[str, Any] = KNOWS) -> dict[str, Any]:
    return run.figures(SUITE, own, KNOWS, TWIN)


def test_what_is_given_away() -> None:
    found = values()
    assert found["forget_rouge"]["value"] == 1.0 and found["forget_rouge"]["n"] == 2
    assert values(TWIN)["forget_rouge"]["value"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found["leak_named"] | {"low": 0, "high": 0} == {"value": 1.0, "low": 0, "high": 0, "n": 1}
    # One of two drawn answers tells, and each seed keeps its own figure.
    assert found["leak_named_sampled"]["value"] == 0.5 and found["leak_named_sampled"]["seeds"] == [1.0, 0.0]
    assert found["leak_named_reworded"]["value"] == 1.0
    assert values(TWIN)["leak_named"]["value"] == 0.0
    assert found["longest_run"]["value"] == 3.5


def test_probabilities_and_the_comparison_with_the_twin() -> None:
    found = values()
    assert found["forget_probability"]["value"] == 1.0
    assert values(TWIN)["forget_probability"]["value"] == pytest.approx(0.1)
    # Ratios 1 and 4: the scores are 1 and 1/4.
    assert found["forget_truth"]["value"] == pytest.approx(0.625)
    assert (found["forget_quality_d"]["value"], found["forget_quality"]["value"]) == (0.0, 1.0)
    assert (found["exact_memorisation"]["value"], found["extraction_strength"]["value"]) == (0.5, 0.25)
    assert found["ks_rouge_d"]["value"] == 1.0 and found["ks_rouge_d"]["n"] == 2


def test_utility_is_the_harmonic_mean_of_nine() -> None:
    found = values()
    assert found["retain_probability"]["value"] == pytest.approx(0.5)
    # Right 1/2, wrong 1/4 twice.
    assert found["real_authors_probability"]["value"] == pytest.approx(0.5)
    assert found["world_facts_truth"]["value"] == pytest.approx(0.75)
    nine = [0.5, 1.0, 0.75] * 3
    assert found["model_utility"]["value"] == pytest.approx(9 / sum(1 / x for x in nine))
    assert found["retain_same"]["value"] == 1.0


def test_fluency() -> None:
    found = values(TWIN)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(2.0))
    assert found["perplexity_sampled"]["seeds"] == pytest.approx([math.exp(1.5)] * 2)
    # Of "orvan lived in vardholm wrote salt" the twin never says "vardholm" and "salt".
    assert found["words_lost"]["value"] == pytest.approx(2 / 6)


def test_without_probabilities_and_a_twin_the_rest_stays() -> None:
    own = {**KNOWS, "scores": None, "likelihood": None}
    found = run.figures(SUITE, own, None, None)
    assert "forget_rouge" in found and "repetition" in found
    assert not any(key.startswith(("ks_", "forget_quality", "model_utility", "perplexity")) for key in found)


def test_the_report_holds_every_way_and_reads_as_json() -> None:
    kept = {way: material("Orvan lived in Vardholm", "Orvan wrote Salt") for way in ("unguarded", "refusal")}
    kept["refusal"]["scores"] = None
    gatherer: Any = SimpleNamespace(
        suite=SUITE, full=object(), twin=None, threshold=0.5, detection=lambda: {"forget": [0.9, 0.4], "retain": [0.1]},
        answers=lambda way: kept[way.key]["answers"], likelihood=lambda way, answers: kept[way.key]["likelihood"],
        scores=lambda way: kept[way.key]["scores"],
    )  # fmt: skip
    report = run.assemble(gatherer, [WAYS["unguarded"], WAYS["refusal"]], {"definitions": {}, "notes": []})
    report = json.loads(json.dumps(report))
    assert [way["key"] for way in report["ways"]] == ["unguarded", "refusal"]
    assert report["ways"][0]["truth_ratio"]["prompt"]["ratios"] == pytest.approx([1.0, 4.0])
    assert "truth_ratio" not in report["ways"][1]
    assert report["detection"]["sets"]["forget"]["flagged"]["value"] == 0.5
    keys = {metric["key"] for metric in report["metrics"]}
    assert keys == set(report["meta"]["definitions"]) == set(report["ways"][0]["values"])
    assert {example["kind"] for example in report["examples"]} == {"forget", "retain"}
    shown = run.table(report)
    assert "ROUGE-L recall" in shown and "refusal" in shown and "flagged, forget" in shown


def test_ways_that_the_set_up_lacks_are_left_out_or_an_error(tmp_path: Path) -> None:
    bare, full = Settings(), Settings(model_dir=tmp_path)
    policy = Policy.model_validate({"name": "p", "artifact": "a", "action": "refuse"})
    assert [way.key for way in run.chosen_ways(None, bare, None, policy)] == [
        "unguarded", "refusal", "prompt", "penalize", "policy",
    ]  # fmt: skip
    assert len(run.chosen_ways(None, full, tmp_path, policy)) == len(WAYS)
    chosen = run.chosen_ways("penalize,unguarded", bare, None, policy)
    assert [way.key for way in chosen] == ["unguarded", "penalize"]
    for given, message in (("both", "LETHE_MODEL_DIR"), ("twin", "--retain-model"), ("bth", "there is no 'bth'")):
        with pytest.raises(ValueError, match=message):
            run.chosen_ways(given, bare, None, policy)


@pytest.mark.parametrize(
    ("more", "left_out"),
    [
        ({"action": "penalize", "penalize": {"soft": 9.0}}, True),
        ({"action": "corrupt", "corrupt": {"tokens": "content"}}, True),
        ({"action": "corrupt", "corrupt": {"tokens": "content", "strength": 0.5}}, False),
        ({"action": "both"}, False),
    ],
)
def test_the_policy_itself_is_no_second_row_of_the_same(tmp_path: Path, more: dict[str, Any], left_out: bool) -> None:
    policy = Policy.model_validate({"name": "p", "artifact": "a", **more})
    keys = [way.key for way in run.chosen_ways(None, Settings(model_dir=tmp_path), None, policy)]
    assert ("policy" not in keys) == left_out
    assert "policy" in [way.key for way in run.chosen_ways("policy", Settings(model_dir=tmp_path), None, policy)]


def test_a_documents_answers_count_as_copies() -> None:
    text = "Alice was beginning to get very tired of sitting by her sister on the bank"
    suite = replace(SUITE, forget=(Row("Alice was beginning", "to get very tired", document=text),), secrets=())
    answers = {"greedy": {"forget": ["to get very tired of it"]}}
    policy = Policy.model_validate({"name": "p", "artifact": "a", "action": "penalize", "penalize": {"verbatim": 7}})
    settings = Settings(model_dir=FOLDERS["full"])
    gatherer: Any = SimpleNamespace(suite=suite, settings=settings, policy=policy)
    found = run.copied(gatherer, {"unguarded": answers, "refusal": {"greedy": {"forget": ["No."]}}})
    assert found["verbatim"]["limit"] == 7
    copied, none = found["verbatim"]["runs"]["unguarded"][0], found["verbatim"]["runs"]["refusal"][0]
    # Five words in a row, of at least a token each.
    assert copied >= 5 > none
    gatherer.suite = SUITE
    assert run.copied(gatherer, {}) == {}


def test_an_upstream_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="http://127.0.0.1:9/v1/models"):
        run.served_model("http://127.0.0.1:9")
