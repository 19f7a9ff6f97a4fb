"""Summary sentences match the numbers, and leave out what wasn't measured."""

from __future__ import annotations

from lethe.evaluation.reporting.summary import best_systems, summarize, truth_ratio_variants
from tests.evaluation.sample_report import sample


def system(key: str, value: float | None) -> dict[str, object]:
    return {"key": key, "label": key.upper(), "values": {"m": {"value": value, "low": None, "high": None, "n": 1}}}


SYSTEMS = [
    system("unguarded", 1.0),
    system("twin", 0.2),
    system("a", 0.24),
    system("b", 0.1),
    system("c", 0.1),
    system("d", None),
]


def test_best_is_lowest_highest_or_closest_to_the_twin() -> None:
    assert best_systems({"key": "m", "better": "lower"}, SYSTEMS) == {"b", "c"}
    assert best_systems({"key": "m", "better": "higher"}, SYSTEMS) == {"a"}
    assert best_systems({"key": "m", "better": "near_twin"}, SYSTEMS) == {"a"}


def test_no_system_is_best_without_twin_or_direction() -> None:
    assert best_systems({"key": "m", "better": "near_twin"}, [SYSTEMS[0], *SYSTEMS[2:]]) == set()
    assert best_systems({"key": "m"}, SYSTEMS) == set()
    assert best_systems({"key": "m", "better": "lower"}, SYSTEMS[:2]) == set()


def test_an_empty_report_has_no_sentences() -> None:
    assert summarize({}) == {"forgotten": [], "cost": [], "leaked": []}


def test_the_best_guard_is_compared_with_unguarded_and_twin() -> None:
    metrics = [{"key": "m", "label": "ROUGE", "better": "near_twin", "set": "forget", "format": "0.000"}]
    sentences = summarize({"metrics": metrics, "ways": SYSTEMS})
    assert sentences["forgotten"] == ["ROUGE (forget): 0.240 for A; unguarded model 1.000; retain twin 0.200."]


def test_the_configured_policy_comes_before_the_best_system() -> None:
    metrics = [{"key": "m", "label": "ROUGE, forget", "better": "near_twin", "set": "forget", "format": "0.0"}]
    sentences = summarize({"metrics": metrics, "ways": [*SYSTEMS, system("policy", 0.5)]})["forgotten"]
    assert sentences == ["ROUGE, forget: 0.5 for POLICY; unguarded model 1.0; retain twin 0.2; best 0.2 for A."]
    sentences = summarize({"metrics": metrics, "ways": [*SYSTEMS, system("policy", 0.2)]})["forgotten"]
    assert sentences == ["ROUGE, forget: 0.2 for POLICY; unguarded model 1.0; retain twin 0.2."]


def test_baselines_have_no_sentences() -> None:
    metrics = [{"key": "m", "better": "lower", "set": "forget", "format": "0.0"} | {"key": "m", "label": "leak"}]
    sentences = summarize({"metrics": metrics, "ways": [system("refusal", 0.0), system("prompt", 0.0)]})
    assert sentences == {"forgotten": [], "cost": [], "leaked": []}


def test_the_largest_loss_and_no_loss_are_stated() -> None:
    metrics = [{"key": "m", "label": "Utility", "better": "higher", "set": "retain", "format": "0.00"}]
    sentences = summarize({"metrics": metrics, "ways": SYSTEMS})["cost"]
    assert sentences == [
        "The largest loss on retain questions: Utility (retain) is 0.10 for B, and 1.00 for the unguarded model."
    ]
    sentences = summarize({"metrics": metrics, "ways": [system("unguarded", 0.5), system("a", 0.5)]})["cost"]
    assert sentences == ["No metric on retain questions is worse than the unguarded model's, for any guarded system."]


def test_leaks_name_the_worst_attack_and_the_longest_copy() -> None:
    interval = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    sentences = summarize(
        {
            "attack": {"strong": {"recall": interval | {"value": 1.0}}, "weak": {"recall": interval}},
            "verbatim": {"limit": 12, "runs": {"x": [3, None, 11], "y": []}},
        }
    )["leaked"]
    assert sentences[0] == "Longest copied run, in tokens: 11 for x; the limit is 12."
    assert "is weak: 50.0\u00a0% flagged (40.0 to 60.0\u00a0%)." in sentences[1]


def test_truth_ratios_have_one_variant_or_several() -> None:
    assert truth_ratio_variants({"truth_ratio": {"variant": "stepwise", "D": 0.1}}) == {
        "stepwise": {"variant": "stepwise", "D": 0.1}
    }
    assert truth_ratio_variants({"truth_ratio": {"prompt": {"D": 0.1}, "stepwise": None}}) == {"prompt": {"D": 0.1}}
    assert truth_ratio_variants({}) == {}


def test_every_heading_of_the_sample_has_sentences() -> None:
    sentences = summarize(sample())
    assert all(sentences.values())
    assert sentences["forgotten"][0].startswith(
        "Flagged: forget questions 100\u00a0% of 400; paraphrases 99.96\u00a0% of 2,000"
    )
