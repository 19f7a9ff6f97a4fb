"""Plots are SVG that a strict page can carry: no styles inline, no outside references, same input same bytes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.evaluation.reporting import plots

EVALUATIONS = [{"x": x, "objective": abs(0.2 - 1 / (1 + x)), "metric": 1 / (1 + x)} for x in (1.0, 5.0, 2.0, 8.0)]
NAMESPACE = "{http://www.w3.org/2000/svg}"


def curve(**options: object) -> str:
    return plots.metric_curve(EVALUATIONS, **{"parameter": "σ", "chosen": 5.0, "target": 0.2, **options})


def test_a_metric_curve_is_a_file_of_its_own() -> None:
    root = ElementTree.fromstring(curve())
    assert root.tag == NAMESPACE + "svg"
    assert root.find(NAMESPACE + "title").text and "chosen 5" in root.find(NAMESPACE + "desc").text
    text = "".join(root.itertext())
    assert "σ" in text and "target 0.2" in text and "prefers-color-scheme:dark" in text


def test_a_plot_is_the_same_bytes_every_time() -> None:
    assert curve() == curve()


def test_a_plot_in_a_page_has_no_styles_and_refers_to_nothing_outside() -> None:
    text = curve(standalone=False)
    assert "style=" not in text and "<style" not in text and "http" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', text)) == set(ids)


def test_every_colour_of_a_plot_follows_the_scheme() -> None:
    for element in ElementTree.fromstring(curve(standalone=False)).iter():
        for name in ("fill", "stroke"):
            if element.attrib.get(name, "none") != "none":
                assert f"{name[0]}-" in element.attrib.get("class", ""), element.attrib


def test_evaluations_without_a_number_are_left_out() -> None:
    odd = [{"x": 3.0, "objective": float("nan"), "metric": None}, {"x": None, "objective": 1.0, "metric": 1.0}]
    with_odd = plots.metric_curve(EVALUATIONS + odd, parameter="σ", chosen=5.0, target=0.2)
    markers = [text.count("<use") for text in (with_odd, curve())]
    assert markers[0] == markers[1]


def test_a_curve_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no evaluations"):
        plots.metric_curve([], parameter="σ", chosen=1.0, target=None)


def test_names_are_text_not_markup_nor_mathematics() -> None:
    text = curve(parameter="<script>$\\frac$ & \x00", target=None)
    assert "<script>" not in text and "&lt;script&gt;$\\frac$ &amp; " in text


def test_standard_errors_are_drawn_where_they_are_known() -> None:
    with_errors = [{**one, "error": 0.01} for one in EVALUATIONS]
    drawn = [plots.metric_curve(rows, parameter="σ", chosen=5.0, target=0.2) for rows in (EVALUATIONS, with_errors)]
    assert drawn[1].count("s-orange") >= drawn[0].count("s-orange") + len(EVALUATIONS)


SCORES = st.lists(st.integers(0, 9), min_size=1, max_size=30).map(lambda scores: np.array(scores, dtype=float))


@settings(deadline=None)
@given(SCORES, SCORES)
def test_the_area_is_the_share_of_pairs_in_order(forget: plots.Scores, other: plots.Scores) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in forget for b in other]
    assert plots.area(forget, other) == pytest.approx(np.mean(pairs))


@settings(deadline=None)
@given(SCORES, SCORES)
def test_the_roc_curve_is_what_counting_gives(forget: plots.Scores, other: plots.Scores) -> None:
    alarms, recall = plots.roc_curve(forget, other)
    for index, threshold in enumerate(sorted({*forget, *other}, reverse=True), 1):
        assert alarms[index] == pytest.approx(np.mean(other >= threshold))
        assert recall[index] == pytest.approx(np.mean(forget >= threshold))
    assert (alarms[0], recall[0], alarms[-1], recall[-1]) == (0, 0, 1, 1)


@settings(deadline=None)
@given(SCORES, SCORES)
def test_the_marked_gap_is_the_statistic_of_kolmogorov_and_smirnov(ratios: plots.Scores, twin: plots.Scores) -> None:
    _, low, high = plots._gap(np.sort(ratios), np.sort(twin))
    assert abs(high - low) == pytest.approx(max(abs(np.mean(ratios <= x) - np.mean(twin <= x)) for x in range(10)))


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 100}


SETS = {
    "asked": {"kind": "forget", "scores": [0.9, 0.95, 0.99], "flagged": interval(0.99)},
    "not_asked": {"kind": "other", "scores": [0.0, 0.1, 0.93], "flagged": interval(0.01)},
}


@pytest.mark.parametrize("threshold", [0.5, None, 3.0])
def test_scores_say_how_many_are_flagged_and_where_the_threshold_is(threshold: float | None) -> None:
    text = "".join(ElementTree.fromstring(plots.score_distributions(SETS, threshold)).itertext())
    assert "asked · 3 · 99.0\u00a0% flagged" in text and "not asked · 3 · 1.0\u00a0% flagged" in text
    assert (f"threshold {threshold:g}" in text if threshold else "threshold" not in text) and (
        ("logit" in text) == (threshold == 0.5)
    )


def test_scores_of_zero_have_a_place_on_the_logit_scale() -> None:
    def ticks(scores: list[float]) -> set[str]:
        sets = {"other": {"kind": "other", "scores": scores}}
        return {found.text or "" for found in ElementTree.fromstring(plots.score_distributions(sets, 0.5)).iter()}

    assert {"0", "0.001"} <= ticks([0.0, 0.0, 0.2])
    assert "0" not in ticks([0.1, 0.2])


def test_a_roc_tells_area_and_operating_point() -> None:
    text = "".join(ElementTree.fromstring(plots.roc(SETS, 0.94)).itertext())
    assert f"area {8 / 9:.4f}, recall 66.7\u00a0% at 0\u00a0% false alarms" in text
    with pytest.raises(plots.NothingToDraw):
        plots.roc({"asked": SETS["asked"]}, 0.5)


def test_dots_leave_out_what_was_not_measured() -> None:
    rows = [("unguarded", "Unguarded", interval(0.9)), ("twin", "Twin", interval(0.1)), ("a", "A way", {"value": None})]
    text = "".join(ElementTree.fromstring(plots.ways("Metric", rows, shares=False)).itertext())
    assert "Unguarded 0.9 (0.89 to 0.91); Twin 0.1" in text and "A way" not in text
    with pytest.raises(plots.NothingToDraw, match="Metric"):
        plots.ways("Metric", rows[2:], shares=False)


def test_a_family_is_shown_with_its_floor() -> None:
    drawn = [plots.families("Recall", [("plain", interval(0.9))], line=line) for line in (None, 0.98)]
    assert ["stroke-dasharray" in text for text in drawn] == [False, True]


def test_truth_ratios_need_both_sides() -> None:
    ratios = np.array([0.5, 1.0, 2.0])
    assert "Largest gap to the twin 0.667." in plots.truth_ratios("both", ratios, np.array([1.5]), ratios, "D")
    with pytest.raises(plots.NothingToDraw):
        plots.truth_ratios("both", ratios, np.array([]), None, "")


def test_a_sequence_takes_intervals_and_bare_numbers() -> None:
    rows = [{"requests": 1, "recall": interval(0.99), "fit_s": 2.0}, {"requests": 20, "recall": None, "fit_s": 3.0}]
    told = plots.sequential(rows, "fit_s", "Time to fit", shares=False, unit="seconds")
    assert "After 1 requests 2 seconds, after 20 requests 3 seconds." in told
    assert "after 1 requests 99.0" in plots.sequential(rows, "recall", "Recall", shares=True, unit="flagged")
    with pytest.raises(plots.NothingToDraw):
        plots.sequential(rows, "utility", "Utility", shares=False, unit="utility")


def test_the_longest_run_is_the_longest() -> None:
    drawn = plots.longest_runs({"a": [3, 12, 7], "b": [None]}, {"a": "A way"}, 12)
    assert "A way 12 over 3 passages. The limit is 12 tokens." in drawn


@pytest.mark.parametrize("low", [1e-9, 0.5])
def test_ticks_are_plain_numbers_on_either_scale(low: float) -> None:
    rows = [("a", "A", {"value": low}), ("b", "B", {"value": 1.0})]
    for text in (plots.ways("p", rows, shares=False), curve(chosen=1.0)):
        assert "math" not in text and "$" not in text
    far = [{"x": x, "objective": 0.1, "metric": 0.1} for x in (low, 100.0)]
    assert "$" not in plots.metric_curve(far, parameter="σ", chosen=100.0, target=None)


def test_a_share_that_is_always_one_has_no_room_above_one() -> None:
    text = "".join(ElementTree.fromstring(plots.ways("R", [("a", "A", {"value": 1.0})], shares=False)).itertext())
    assert "1.5" not in text and "1.25" not in text
