"""The sentences say what the numbers say, and nothing of what wasn't measured."""

from __future__ import annotations

from lethe.evaluation.reporting.summary import best, summary, truth_ratios
from tests.evaluation.sample_report import sample


def way(key: str, value: float | None) -> dict[str, object]:
    return {"key": key, "label": key.upper(), "values": {"m": {"value": value, "low": None, "high": None, "n": 1}}}


WAYS = [way("unguarded", 1.0), way("twin", 0.2), way("a", 0.24), way("b", 0.1), way("c", 0.1), way("d", None)]


def test_the_best_way_is_the_lowest_highest_or_nearest_to_the_twin() -> None:
    assert best({"key": "m", "better": "lower"}, WAYS) == {"b", "c"}
    assert best({"key": "m", "better": "higher"}, WAYS) == {"a"}
    assert best({"key": "m", "better": "near_twin"}, WAYS) == {"a"}


def test_nothing_is_best_without_a_twin_a_direction_or_a_competitor() -> None:
    assert best({"key": "m", "better": "near_twin"}, [WAYS[0], *WAYS[2:]]) == set()
    assert best({"key": "m"}, WAYS) == set()
    assert best({"key": "m", "better": "lower"}, WAYS[:2]) == set()


def test_an_empty_report_says_nothing() -> None:
    assert summary({}) == {"forgotten": [], "cost": [], "leaked": []}


def test_the_summary_compares_the_best_guard_with_the_unguarded_model_and_the_twin() -> None:
    metrics = [{"key": "m", "label": "ROUGE", "better": "near_twin", "set": "forget", "format": "0.000"}]
    told = summary({"metrics": metrics, "ways": WAYS})
    assert told["forgotten"] == ["ROUGE (forget): 0.240 with A; 1.000 unguarded; 0.200 for the retain twin."]


def test_the_policy_as_it_stands_comes_first_and_then_the_best() -> None:
    metrics = [{"key": "m", "label": "ROUGE, forget", "better": "near_twin", "set": "forget", "format": "0.0"}]
    told = summary({"metrics": metrics, "ways": [*WAYS, way("policy", 0.5)]})["forgotten"]
    assert told == ["ROUGE, forget: 0.5 with POLICY; 1.0 unguarded; 0.2 for the retain twin; best 0.2 with A."]
    told = summary({"metrics": metrics, "ways": [*WAYS, way("policy", 0.2)]})["forgotten"]
    assert told == ["ROUGE, forget: 0.2 with POLICY; 1.0 unguarded; 0.2 for the retain twin."]


def test_baselines_are_not_the_guard() -> None:
    metrics = [{"key": "m", "better": "lower", "set": "forget", "format": "0.0"} | {"key": "m", "label": "leak"}]
    told = summary({"metrics": metrics, "ways": [way("refusal", 0.0), way("prompt", 0.0)]})
    assert told == {"forgotten": [], "cost": [], "leaked": []}


def test_the_largest_loss_is_named_and_no_loss_is_said() -> None:
    metrics = [{"key": "m", "label": "Utility", "better": "higher", "set": "retain", "format": "0.00"}]
    told = summary({"metrics": metrics, "ways": WAYS})["cost"]
    assert told == ["The largest loss on what was to be kept: Utility (retain) with B, 0.10 after 1.00 unguarded."]
    told = summary({"metrics": metrics, "ways": [way("unguarded", 0.5), way("a", 0.5)]})["cost"]
    assert told == ["No metric of what was to be kept is worse than the unguarded model's, in any way of guarding."]


def test_leaks_name_the_weakest_attack_and_the_longest_copy() -> None:
    interval = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    told = summary(
        {
            "attack": {"strong": {"recall": interval | {"value": 1.0}}, "weak": {"recall": interval}},
            "verbatim": {"limit": 12, "runs": {"x": [3, None, 11], "y": []}},
        }
    )["leaked"]
    assert told[0] == "Longest copied run, in tokens: 11 with x; the limit is 12."
    assert "is weak: 50.0\u00a0% flagged (40.0 to 60.0\u00a0%)." in told[1]


def test_truth_ratios_come_as_one_variant_or_several() -> None:
    assert truth_ratios({"truth_ratio": {"variant": "stepwise", "D": 0.1}}) == {
        "stepwise": {"variant": "stepwise", "D": 0.1}
    }
    assert truth_ratios({"truth_ratio": {"prompt": {"D": 0.1}, "stepwise": None}}) == {"prompt": {"D": 0.1}}
    assert truth_ratios({}) == {}


def test_the_whole_sample_is_told() -> None:
    told = summary(sample())
    assert all(told.values())
    assert told["forgotten"][0].startswith(
        "Flagged: forget questions 100\u00a0% of 400; paraphrases 99.96\u00a0% of 2,000"
    )
