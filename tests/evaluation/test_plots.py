"""Plots are SVG that a strict page can carry: no styles inline, no outside references, same input same bytes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from evaluation import plots

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
