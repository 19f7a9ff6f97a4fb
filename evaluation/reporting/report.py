"""Renders one evaluation, the JSON of `lethe evaluate`, as one HTML page.

The page is self-contained: no script, and no font or image from elsewhere, under a Content-Security-Policy that allows
its own style sheet only. Questions, answers and names are untrusted text and are escaped. What the JSON doesn't have is
left out of the page. Knows no model and no server.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lethe.evaluation.reporting import svg
from lethe.evaluation.reporting.detector_sections import (
    attack_section,
    copies_section,
    detection_section,
    sequence_section,
    tuning_section,
)
from lethe.evaluation.reporting.page_parts import EMPTY_SECTION, Json
from lethe.evaluation.reporting.summary import HEADINGS, summarize
from lethe.evaluation.reporting.system_sections import (
    all_metrics_section,
    each_metric_section,
    examples_section,
    truth_ratio_section,
)

# Version of the JSON format that this module reads.
FORMAT = 1
TEMPLATES = Path(__file__).parent / "templates"
# In the order of the page.
SECTIONS = (
    all_metrics_section,
    each_metric_section,
    detection_section,
    truth_ratio_section,
    tuning_section,
    sequence_section,
    copies_section,
    attack_section,
    examples_section,
)
# Terms that the page explains to readers who don't know the field.
TERMS = {
    "Forget questions": "Questions about what the model is to act as if it had never learned.",
    "Retain questions": "Questions whose answers must stay as they are.",
    "Unguarded model": "The served model without this product.",
    "Retain twin": "A model that was trained in the same way, but never on what is to be forgotten: the ideal result.",
    "Flagged": "Recognised by the policy as a request for what is to be forgotten.",
    "Recall and false alarms": "The share of prompts that should be flagged and are; the share that are flagged and "
    "should not be.",
    "95 % confidence interval": "The range of values that is compatible with the measured sample; it is wide where few "
    "questions were measured.",
}


def render_page(report: Json) -> str:
    """Return the page as text. Raises ValueError for a JSON format that this module doesn't read."""
    if report.get("format") != FORMAT:
        raise ValueError(f"cannot read format {report.get('format')!r} of an evaluation, only {FORMAT}")
    style = svg.stylesheet() + (TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    data = json.dumps(_without_nan(report), ensure_ascii=False, allow_nan=False)
    report = {**report, "metrics": _with_whole_labels(report.get("metrics") or ())}
    meta = report.get("meta") or {}
    sections = [build(report) for build in SECTIONS]
    template = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")
    return template.render(
        digest=digest,
        style=Markup(style),
        title=f"Evaluation of policy {meta['policy']}" if meta.get("policy") else "Evaluation",
        meta=meta,
        data=base64.b64encode(data.encode(errors="replace")).decode(),
        file=re.sub(r"[^\w.-]+", "-", str(meta.get("policy") or "evaluation")) + ".json",
        summary=[(HEADINGS[key], sentences) for key, sentences in summarize(report).items() if sentences],
        terms=TERMS,
        sections=[EMPTY_SECTION | section for section in sections if section],
        run_details=_run_details(meta),
    )


def write_page(sources: Sequence[Path], output: Path) -> Path:
    """Write one page from JSON files of `lethe evaluate`, `attack` and `tune`, and return its path.

    Raises ValueError for another kind of file, and for files about different policies.
    """
    page = render_page(merge_reports({str(source): _read_json(source) for source in sources}))
    output.write_text(page, encoding="utf-8", errors="replace")
    return output


def _read_json(source: Path) -> Json:
    try:
        report = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source}: not JSON: {error}") from None
    if not isinstance(report, dict):
        raise ValueError(f"{source}: not an evaluation, which is a JSON object")
    return report_from_tuning(report) if "curves" in report else report


def report_from_tuning(evidence: Json) -> Json:
    """Return the evidence of `lethe tune` as a report: one entry under "tuning" for each parameter."""
    curves = [
        {
            "parameter": name,
            "metric": evidence.get("metric"),
            "evaluations": points,
            "chosen": (evidence.get("values") or {}).get(name),
            "target": evidence.get("target"),
        }
        for name, points in evidence["curves"].items()
    ]
    return {"format": FORMAT, "meta": {"policy": evidence.get("policy")}, "tuning": curves}


def merge_reports(reports: Mapping[str, Json]) -> Json:
    """Return one report of several about one policy: each adds the keys that those before it lack.

    reports: by file name. Raises ValueError, with the file name, for one about another policy.
    """
    merged: dict[str, Any] = {}
    for name, report in reports.items():
        policy, other_policy = ((one.get("meta") or {}).get("policy") for one in (merged, report))
        if policy and other_policy and policy != other_policy:
            raise ValueError(f"{name}: about policy {other_policy!r}, but earlier files are about {policy!r}")
        merged = {**report, **merged}
    return merged


def _with_whole_labels(metrics: Sequence[Json]) -> list[Json]:
    """Return the metrics with whole labels: a label that begins with "…" continues the last one that doesn't."""
    whole: list[Json] = []
    beginning = ""
    for metric in metrics:
        label = str(metric.get("label") or metric["key"])
        if label.startswith("…"):
            label = f"{beginning}, {label[1:].strip()}"
        else:
            beginning = label
        whole.append({**metric, "label": label, "set": str(metric.get("set") or "").replace("_", " ")})
    return whole


def _run_details(meta: Json) -> list[tuple[str, str]]:
    """Return what the figures were measured with, for the foot of the page."""
    details = []
    for key, value in meta.items():
        if key == "definitions" or value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {one}" for name, one in value.items())
        elif isinstance(value, list):
            value = ("; " if any(" " in str(one) for one in value) else ", ").join(str(one) for one in value)
        details.append((key.replace("_", " "), str(value)))
    return details


def _without_nan(value: Any) -> Any:
    """Return the same JSON with null in place of NaN and infinity, which strict JSON doesn't have."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
