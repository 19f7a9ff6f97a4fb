"""Plots are SVG without inline styles and external references; the same numbers give the same bytes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.evaluation.reporting import plots, score_plots
from lethe.evaluation.reporting.plot_layout import NothingToDrawError, Scores

EVALUATIONS = [{"x": x, "objective": abs(0.2 - 1 / (1 + x)), "metric": 1 / (1 + x)} for x in (1.0, 5.0, 2.0, 8.0)]
NAMESPACE = "{http://www.w3.org/2000/svg}"


def curve(**options: object) -> str:
    return plots.plot_tuning_curve(EVALUATIONS, **{"parameter": "σ", "chosen": 5.0, "target": 0.2, **options})


def test_a_standalone_plot_has_its_own_style_sheet() -> None:
    root = ElementTree.fromstring(curve())
    assert root.tag == NAMESPACE + "svg"
    assert root.find(NAMESPACE + "title").text and "chosen 5" in root.find(NAMESPACE + "desc").text
    text = "".join(root.itertext())
    assert "σ" in text and "target 0.2" in text and "prefers-color-scheme:dark" in text


def test_a_plot_is_the_same_bytes_every_time() -> None:
    assert curve() == curve()


def test_a_plot_in_a_page_has_no_styles_or_external_links() -> None:
    text = curve(standalone=False)
    assert "style=" not in text and "<style" not in text and "http" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', text)) == set(ids)


def test_every_colour_has_a_class_for_the_colour_scheme() -> None:
    for element in ElementTree.fromstring(curve(standalone=False)).iter():
        for name in ("fill", "stroke"):
            if element.attrib.get(name, "none") != "none":
                assert f"{name[0]}-" in element.attrib.get("class", ""), element.attrib


def test_evaluations_without_numbers_are_left_out() -> None:
    incomplete = [{"x": 3.0, "objective": float("nan"), "metric": None}, {"x": None, "objective": 1.0, "metric": 1.0}]
    with_incomplete = plots.plot_tuning_curve(EVALUATIONS + incomplete, parameter="σ", chosen=5.0, target=0.2)
    markers = [text.count("<use") for text in (with_incomplete, curve())]
    assert markers[0] == markers[1]


def test_a_tuning_curve_without_evaluations_raises() -> None:
    with pytest.raises(ValueError, match="no evaluations"):
        plots.plot_tuning_curve([], parameter="σ", chosen=1.0, target=None)


def test_names_are_escaped_and_not_parsed_as_formulas() -> None:
    text = curve(parameter="<script>$\\frac$ & \x00", target=None)
    assert "<script>" not in text and "&lt;script&gt;$\\frac$ &amp; " in text


def test_known_standard_errors_are_drawn() -> None:
    with_errors = [{**one, "error": 0.01} for one in EVALUATIONS]
    drawn = [
        plots.plot_tuning_curve(rows, parameter="σ", chosen=5.0, target=0.2) for rows in (EVALUATIONS, with_errors)
    ]
    assert drawn[1].count("s-orange") >= drawn[0].count("s-orange") + len(EVALUATIONS)


SCORES = st.lists(st.integers(0, 9), min_size=1, max_size=30).map(lambda scores: np.array(scores, dtype=float))


@settings(deadline=None)
@given(SCORES, SCORES)
def test_roc_area_is_the_share_of_ordered_pairs(forget: Scores, other: Scores) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in forget for b in other]
    assert score_plots.roc_area(forget, other) == pytest.approx(np.mean(pairs))


@settings(deadline=None)
@given(SCORES, SCORES)
def test_roc_curve_equals_counted_rates(forget: Scores, other: Scores) -> None:
    alarms, recall = score_plots.roc_curve(forget, other)
    for index, threshold in enumerate(sorted({*forget, *other}, reverse=True), 1):
        assert alarms[index] == pytest.approx(np.mean(other >= threshold))
        assert recall[index] == pytest.approx(np.mean(forget >= threshold))
    assert (alarms[0], recall[0], alarms[-1], recall[-1]) == (0, 0, 1, 1)


@settings(deadline=None)
@given(SCORES, SCORES)
def test_largest_gap_is_the_kolmogorov_smirnov_statistic(ratios: Scores, twin: Scores) -> None:
    _, low, high = score_plots.largest_gap(np.sort(ratios), np.sort(twin))
    assert abs(high - low) == pytest.approx(max(abs(np.mean(ratios <= x) - np.mean(twin <= x)) for x in range(10)))


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 100}


SETS = {
    "forget set": {"kind": "forget", "scores": [0.9, 0.95, 0.99], "flagged": interval(0.99)},
    "other_set": {"kind": "other", "scores": [0.0, 0.1, 0.93], "flagged": interval(0.01)},
}


@pytest.mark.parametrize("threshold", [0.5, None, 3.0])
def test_score_plot_states_flagged_shares_and_threshold(threshold: float | None) -> None:
    text = "".join(ElementTree.fromstring(score_plots.plot_scores(SETS, threshold)).itertext())
    assert "forget set · 3 · 99.0\u00a0% flagged" in text and "other set · 3 · 1.0\u00a0% flagged" in text
    assert (f"threshold {threshold:g}" in text if threshold else "threshold" not in text) and (
        ("logit" in text) == (threshold == 0.5)
    )


def test_scores_of_zero_are_on_the_logit_scale() -> None:
    def ticks(scores: list[float]) -> set[str]:
        sets = {"other": {"kind": "other", "scores": scores}}
        return {found.text or "" for found in ElementTree.fromstring(score_plots.plot_scores(sets, 0.5)).iter()}

    assert {"0", "0.001"} <= ticks([0.0, 0.0, 0.2])
    assert "0" not in ticks([0.1, 0.2])


def test_roc_plot_states_area_and_operating_point() -> None:
    text = "".join(ElementTree.fromstring(score_plots.plot_roc(SETS, 0.94)).itertext())
    assert f"area {8 / 9:.4f}, recall 66.7\u00a0% at 0\u00a0% false alarms" in text
    with pytest.raises(NothingToDrawError):
        score_plots.plot_roc({"forget set": SETS["forget set"]}, 0.5)


def test_systems_without_a_value_are_left_out() -> None:
    rows = [
        ("unguarded", "Unguarded", interval(0.9)),
        ("twin", "Twin", interval(0.1)),
        ("a", "A system", {"value": None}),
    ]
    text = "".join(ElementTree.fromstring(plots.plot_systems("Metric", rows, shares=False)).itertext())
    assert "Unguarded 0.9 (0.89 to 0.91); Twin 0.1" in text and "A system" not in text
    with pytest.raises(NothingToDrawError, match="Metric"):
        plots.plot_systems("Metric", rows[2:], shares=False)


def test_attack_plot_has_a_line_at_the_required_rate() -> None:
    drawn = [plots.plot_attack_families("Recall", [("plain", interval(0.9))], line=line) for line in (None, 0.98)]
    assert ["stroke-dasharray" in text for text in drawn] == [False, True]


def test_truth_ratio_plot_needs_a_twin() -> None:
    ratios = np.array([0.5, 1.0, 2.0])
    assert "Largest gap to the twin 0.667." in score_plots.plot_truth_ratios(
        "both", ratios, np.array([1.5]), ratios, "D"
    )
    with pytest.raises(NothingToDrawError):
        score_plots.plot_truth_ratios("both", ratios, np.array([]), None, "")


def test_sequence_plot_takes_intervals_and_numbers() -> None:
    rows = [{"requests": 1, "recall": interval(0.99), "fit_s": 2.0}, {"requests": 20, "recall": None, "fit_s": 3.0}]
    text = plots.plot_sequence(rows, "fit_s", "Time to fit", shares=False, unit="seconds")
    assert "After 1 requests 2 seconds, after 20 requests 3 seconds." in text
    assert "after 1 requests 99.0" in plots.plot_sequence(rows, "recall", "Recall", shares=True, unit="flagged")
    with pytest.raises(NothingToDrawError):
        plots.plot_sequence(rows, "utility", "Utility", shares=False, unit="utility")


def test_copy_plot_states_the_longest_run_of_each_system() -> None:
    drawn = plots.plot_longest_copies({"a": [3, 12, 7], "b": [None]}, {"a": "A system"}, 12)
    assert "A system 12 over 3 passages. The limit is 12 tokens." in drawn


@pytest.mark.parametrize("low", [1e-9, 0.5])
def test_ticks_are_plain_numbers_on_either_scale(low: float) -> None:
    rows = [("a", "A", {"value": low}), ("b", "B", {"value": 1.0})]
    for text in (plots.plot_systems("p", rows, shares=False), curve(chosen=1.0)):
        assert "math" not in text and "$" not in text
    far = [{"x": x, "objective": 0.1, "metric": 0.1} for x in (low, 100.0)]
    assert "$" not in plots.plot_tuning_curve(far, parameter="σ", chosen=100.0, target=None)


def test_an_axis_of_shares_ends_near_one() -> None:
    text = "".join(
        ElementTree.fromstring(plots.plot_systems("R", [("a", "A", {"value": 1.0})], shares=False)).itertext()
    )
    assert "1.5" not in text and "1.25" not in text
