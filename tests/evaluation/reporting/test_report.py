"""The page is self-contained, shows the numbers of the JSON, and escapes all text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

from lethe.evaluation.reporting import page_parts, system_sections
from lethe.evaluation.reporting import report as report_module
from lethe.evaluation.reporting.number_format import format_number
from lethe.evaluation.reporting.report import render_page, write_page
from lethe.server.cli.main import main
from tests.evaluation.sample_report import HOSTILE, sample

VOID = {"meta", "br", "img", "link", "hr", "input"}
SECTIONS = {
    "ways": ("results", "before-after", "truth-ratios"),
    "metrics": ("results", "before-after"),
    "detection": ("detection",),
    "tuning": ("tuning",),
    "sequential": ("sequential",),
    "verbatim": ("verbatim",),
    "attack": ("attack",),
    "examples": ("examples",),
}
EVERY = {name for names in SECTIONS.values() for name in names}


def small(report: dict[str, Any]) -> dict[str, Any]:
    """Keep three metrics and four systems, where every plot is drawn, which takes seconds."""
    report["metrics"] = [one for one in report["metrics"] if one["key"] in ("forget_rouge", "leak", "retain_rouge")]
    report["ways"] = [one for one in report["ways"] if one["key"] in ("unguarded", "twin", "prompt", "both")]
    return report


class Page(HTMLParser):
    """Collects elements, attributes and text, and asserts that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.declarations: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_decl(self, decl: str) -> None:
        self.declarations.append(decl)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    return render_page(sample())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def ids(page: Page) -> set[str]:
    return {attributes["id"] for attributes in page.all("section") if "id" in attributes}


def test_the_page_is_balanced_html_with_unique_ids(page: Page) -> None:
    assert page.declarations == ["DOCTYPE html"]
    every = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(every) == len(set(every)) > 20
    referred = {attributes["href"] for tag, attributes in page.elements if tag in ("a", "use")}
    assert {name[1:] for name in referred if name.startswith("#")} <= set(every)


def test_the_page_loads_nothing_from_elsewhere(text: str, page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:application/json;base64,")), (tag, name)
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    assert re.findall(r"url\((?!#)", text) == [] and "@import" not in text


def test_the_content_security_policy_allows_one_style_sheet(text: str, page: Page) -> None:
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "unsafe" not in policy


def test_markup_in_answers_is_escaped(text: str, page: Page) -> None:
    assert HOSTILE in page.text
    assert "<script" not in text and "<img" not in text


def test_markup_in_names_is_escaped_everywhere() -> None:
    report, name = small(sample()), "<script>alert(1)</script>\x00{{ 7 * 7 }} $x^2$ 東京"
    report["examples"][0] |= {"question": name, "reference": name, "kind": name}
    report["ways"][2]["label"] = report["ways"][2]["key"] = name
    report["detection"]["sets"][name] = report["detection"]["sets"].pop("paraphrases")
    report["attack"][name] = report["attack"].pop("plain")
    report["meta"] |= {"policy": name, "model": name, name: name, "versions": {name: name}}
    report["meta"]["definitions"]["leak"] = name
    report["metrics"][0] |= {"label": name, "set": "forget " + name, "better": name, "format": name}
    report["tuning"] |= {"parameter": name, "objective": name}
    report["verbatim"]["runs"][name] = [1]
    text = render_page(report)
    Page(text)
    assert "<script" not in text and text.count("{{ 7 * 7 }} $x^2$ 東京") > 20


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every plot by an empty one, for tests of the sections only."""
    monkeypatch.setattr(page_parts, "draw", lambda *_, **__: [Markup("<svg></svg>")])


def test_a_full_report_has_every_section(page: Page) -> None:
    assert ids(page) == EVERY
    assert "What was forgotten" in page.text and "How these figures were measured" in page.text


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("key", SECTIONS)
def test_a_section_without_its_numbers_is_left_out(key: str) -> None:
    report = sample()
    del report[key]
    assert ids(Page(render_page(report))) == EVERY - set(SECTIONS[key])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("key", SECTIONS)
def test_a_section_stands_alone(key: str) -> None:
    report = sample()
    found = ids(Page(render_page({"format": 1, key: report[key]})))
    assert found == set(SECTIONS[key]) - {"results", "before-after"}


def test_a_report_of_nothing_is_a_page() -> None:
    assert ids(Page(render_page({"format": 1}))) == set()


def test_an_unknown_format_is_an_error() -> None:
    with pytest.raises(ValueError, match="format 2 "):
        render_page({"format": 2})


@pytest.mark.usefixtures("quick")
def test_the_tables_show_the_numbers_of_the_json() -> None:
    report = {key: value for key, value in sample().items() if key in ("format", "metrics", "ways")}
    for system in report["ways"]:
        del system["truth_ratio"]
    text = render_page(report)
    shown = re.findall(r'<data value="([^"]+)">([^<]*)</data>', text)
    order = [one for one in report["metrics"] if one["set"] == "forget"]
    retain = [one for one in report["metrics"] if one["set"] != "forget"]
    expected = [
        (repr(value), format_number(value, metric["format"]))
        for metrics in (order, retain)
        for system in report["ways"]
        for metric in metrics
        if math.isfinite(value := system["values"][metric["key"]]["value"])
    ]
    assert shown == expected


def test_the_best_of_each_column_is_marked(text: str) -> None:
    row = re.search(r'<th scope="row">both</th>(.*?)</tr>', text, re.DOTALL)
    assert row
    cells = re.findall(r"<td[^>]*>.*?</td>", row[1], re.DOTALL)
    assert ['aria-label="best"' in cell for cell in cells] == [True, True, False, True, True, False, True]


def test_missing_numbers_are_dashes(text: str) -> None:
    row = re.search(r'<th scope="row">Refusal</th>(.*?)</tr>', text, re.DOTALL)
    assert row and re.findall(r"<td>–</td>", row[1]) == ["<td>–</td>"]
    assert not re.search(r"\bnan\b|\binf\b|None", re.sub(r"base64,[^\"]*", "", text))


@pytest.mark.parametrize("missing", [math.nan, {}])
def test_missing_numbers_do_not_break_the_page(missing: Any) -> None:
    report = small(sample())
    for system in report["ways"]:
        system["values"]["forget_rouge"] = missing if isinstance(missing, dict) else {"value": missing}
        system["truth_ratio"] = {"prompt": {"D": None, "p": math.nan, "ratios": [None, math.nan]}}
    report["detection"]["threshold"] = None
    report["detection"]["sets"]["paraphrases"] |= {"scores": [], "flagged": None}
    report["tuning"]["target"] = None
    report["tuning"]["evaluations"][0]["metric"] = missing
    for step in report["sequential"]:
        step["utility"] = missing
    report["verbatim"] = {"limit": None, "runs": {"penalize": [None, 3]}}
    report["attack"]["plain"] = {"recall": missing, "false_alarms": None}
    report["examples"][0]["answers"]["both"] = None
    assert ids(Page(render_page(report))) == EVERY


def test_the_embedded_json_is_the_report(page: Page) -> None:
    (link,) = [one for one in page.all("a") if "download" in one]
    assert link["download"] == "example-policy.json"
    data = json.loads(base64.b64decode(link["href"].partition("base64,")[2]), parse_constant=pytest.fail)
    report = sample()
    report["ways"][2]["values"]["perplexity"]["value"] = None  # JSON has no NaN
    assert data == report


def test_every_plot_has_a_description(page: Page) -> None:
    plots = page.all("svg")
    assert len(plots) > 20
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    described = [tag for tag, _ in page.elements if tag == "desc"]
    assert len(described) == len(plots)


def test_the_page_is_the_same_bytes_every_time() -> None:
    part = {key: value for key, value in sample().items() if key in ("format", "meta", "detection", "attack", "tuning")}
    assert render_page(part) == render_page(part)


def test_a_label_that_continues_another_is_completed(page: Page) -> None:
    assert [piece for piece in page.text if piece.startswith("Leak rate of names and dates, sampled")]
    assert not [piece for piece in page.text if piece.startswith("… ")]


def test_files_about_one_policy_make_one_page() -> None:
    report = sample()
    parts = [{"format": 1, "meta": {"policy": "p"}, key: report[key]} for key in ("examples", "attack")]
    evidence = {"policy": "p", "metric": "recall", "target": 0.1, "values": {"sigma": 2.0}}
    curves = {"sigma": [{"x": 2.0, "objective": 0.1, "error": 0.01, "metric": 0.2}]}
    whole = report_module.merge_reports(
        {"a": parts[0], "b": parts[1], "c": report_module.report_from_tuning(evidence | {"curves": curves})}
    )
    assert ids(Page(render_page(whole))) == {"examples", "attack", "tuning"}
    assert whole["tuning"][0]["chosen"] == 2.0


def test_the_first_of_two_files_with_a_key_wins() -> None:
    whole = report_module.merge_reports(
        {"a": {"format": 1, "attack": 1}, "b": {"format": 1, "attack": 2, "verbatim": 3}}
    )
    assert whole == {"format": 1, "attack": 1, "verbatim": 3}


def test_files_about_different_policies_raise() -> None:
    with pytest.raises(ValueError, match="b: about policy 'q'.*'p'"):
        report_module.merge_reports({"a": {"meta": {"policy": "p"}}, "b": {"meta": {"policy": "q"}}})


@pytest.mark.usefixtures("quick")
def test_many_figures_are_collapsed() -> None:
    report = sample()
    report["metrics"] = [dict(report["metrics"][0], key=f"m{index}") for index in range(20)]
    page = Page(render_page(report))
    assert f"{20 - system_sections.MAX_FIGURES} more metrics on forget questions" in page.text
    assert "Variant: prompt+answer" in page.text


def test_the_command_writes_a_page_next_to_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "evaluation.json"
    source.write_text(json.dumps({"format": 1, "examples": sample()["examples"]}), encoding="utf-8")
    with pytest.raises(SystemExit) as done:
        main(["report", "html", str(source)])
    assert done.value.code == 0
    assert ids(Page((tmp_path / "evaluation.html").read_text(encoding="utf-8"))) == {"examples"}
    assert str(tmp_path / "evaluation.html") in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[]", "{", '{"format": 7}'])
def test_the_error_for_a_bad_file_names_it(tmp_path: Path, content: str) -> None:
    source = tmp_path / "evaluation.json"
    source.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="evaluation.json" if content != '{"format": 7}' else "format 7"):
        write_page([source], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
