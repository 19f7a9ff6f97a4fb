"""`lethe tune`: choose σ, dimensions, decoy strength or GUARD's weights by measuring the live model.

The search is in `evaluation/tuning/tuner.py`. This module reads the arguments, prepares the run, measures the chosen
values on prompts that were not tuned on, and writes them with their evidence into the artifact.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import hmac
import itertools
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lethe.classifier import artifact_io
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.folders import DEFAULT_ENCODER
from lethe.classifier.encoder.load import load_encoder
from lethe.evaluation.reporting.plots import plot_tuning_curve
from lethe.evaluation.tuning.candidate import SURROGATES, CandidateEvaluator
from lethe.evaluation.tuning.objective import DEFINITION
from lethe.evaluation.tuning.parameters import Values, choose_parameters, parameter_axes, start_values
from lethe.evaluation.tuning.split import TuningItem, split_halves, tuning_items
from lethe.evaluation.tuning.tuner import Evaluation, EvaluationLog, ParameterSearch, Tuner, values_key
from lethe.evaluation.tuning.vllm_model import TIMEOUT_S, TuneError, VllmModel
from lethe.evaluation.tuning.zeroth_order import MIN_BUDGET, Axis
from lethe.server.errors import GatewayError
from lethe.server.policy.schema import Policy
from lethe.server.policy.tuned_values import TUNABLE_PARAMETERS, model_fingerprint, part_settings, with_values
from lethe.server.policy_store.load import find_indexes, find_policy, find_threshold, load_artifact, load_corruptor
from lethe.server.settings import Settings
from lethe.server.upstream.client import Upstream
from lethe.server.upstream.model_cards import fetch_model_cards
from lethe.server.upstream.parity_probe import probe_parity
from lethe.server.upstream.verbatim_index import loaded_indexes, write_index

# Evaluations of one run, at most.
MAX_BUDGET = 20
# Flagged prompts that each half needs.
MIN_PROMPTS = 8
# The tuned objective may be higher than the grid's best by this factor.
MAX_RATIO_TO_GRID = 1.10


def run_tune_command(args: argparse.Namespace, settings: Settings) -> int:
    """Tune a policy's parameters on the live model. Returns the exit status: 1 if the grid found a better candidate."""
    if not MIN_BUDGET <= args.budget <= MAX_BUDGET:
        raise TuneError(f"--budget {args.budget} is not in [{MIN_BUDGET}, {MAX_BUDGET}]")
    if args.grid is not None and args.grid < 4:
        raise TuneError(f"--grid {args.grid}: a grid has at least 4 points")
    overrides = {"upstream": args.upstream} if args.upstream else {}
    settings = Settings.model_validate({**settings.model_dump(exclude_unset=True), **overrides})
    return asyncio.run(_tune(args, settings))


async def _tune(args: argparse.Namespace, settings: Settings) -> int:
    async with contextlib.AsyncExitStack() as stack:
        run = await _prepare_run(args, settings, stack)
        started = time.monotonic()
        await run.tuner.require_knowledge()
        searches = await run.tuner.search(run.axes, start_values(run.policy, run.names, run.axes), args.budget)
        values = {name: search.minimum.x for name, search in searches.items()}
        evidence = {
            **run.entry,
            **await _collect_evidence(run, values, searches),
            "seconds": round(time.monotonic() - started, 1),
        }
        status = 0
        if args.grid:
            evidence["grid"] = await _compare_with_grid(run, args.grid, values)
            status = 0 if evidence["grid"]["within"] else 1
    _save_evidence(run, evidence, searches)
    if args.json:
        args.json.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    _print_report(run, evidence, searches)
    return status


@dataclass(frozen=True)
class TuningRun:
    """The parts of one run. entry: the fields of the artifact's entry that are known before the search."""

    policy: Policy
    artifact: Artifact
    folder: Path
    names: list[str]
    axes: dict[str, Axis]
    tuner: Tuner
    entry: dict[str, Any]


async def _prepare_run(args: argparse.Namespace, settings: Settings, stack: contextlib.AsyncExitStack) -> TuningRun:
    policy = find_policy(args.policy, settings)
    requested = [name for argument in args.parameter for name in argument.split(",")] if args.parameter else None
    names = choose_parameters(policy, requested)
    if (min_budget := MIN_BUDGET * len(names)) > args.budget:
        raise TuneError(f"--budget {args.budget} is too small for {', '.join(names)}: give at least {min_budget}")
    artifact = load_artifact(settings, policy)
    corruptor = load_corruptor(settings, (policy.model_copy(update={"mode": "enforce"}),))
    table = corruptor.table if corruptor else None
    upstream, served = await _connect(settings.upstream, settings, stack)
    name = args.model or (policy.models or tuple(served))[0]
    if name not in served:
        raise TuneError(f"{upstream.url} does not serve {name!r} (models: {', '.join(served)}); give --model")
    if corruptor is not None and not (parity := await probe_parity(upstream, corruptor)).holds:
        raise TuneError(f"{upstream.url}: the parity probe failed: {parity.reason}")
    indexes = find_indexes([policy], {policy.artifact: artifact})
    if missing := set(indexes.values()) - await loaded_indexes(upstream, name, indexes.values()):
        raise TuneError(
            f"{upstream.url} has not loaded the verbatim index {', '.join(sorted(missing))}; see lethe doctor"
        )
    twin = None
    if args.retain_model_url:
        twin_server, twin_models = await _connect(args.retain_model_url.rstrip("/"), settings, stack)
        twin = VllmModel(twin_server, next(iter(twin_models)), max_tokens=args.max_tokens)
    evaluator = CandidateEvaluator(
        policy,
        find_threshold(policy, artifact),
        artifact,
        load_encoder(settings.encoder or DEFAULT_ENCODER),
        VllmModel(upstream, name, max_tokens=args.max_tokens),
        corruptor=corruptor,
        indexes=indexes,
        twin=twin,
        max_prompt_chars=settings.max_prompt_chars,
        surrogate=args.surrogate,
        seed=args.seed,
    )
    tuned_items, report_items = _flagged_halves(evaluator, artifact, args)
    entry = {
        "policy": policy.name,
        "policy_hash": policy.hash,
        "models": [other for other, root in served.items() if root == served[name]],
        "fingerprint": model_fingerprint(settings.model_dir) if corruptor and settings.model_dir else None,
        "parameters": names,
        "objective": DEFINITION,
        "surrogate": "the retain model's answers" if twin else SURROGATES[args.surrogate],
        "seed": args.seed,
        "max_tokens": args.max_tokens,
    }
    key = _log_key(
        settings,
        {
            **entry,
            "model": name,
            "twin": f"{args.retain_model_url} {twin.name}" if twin else None,
            "artifact": artifact.manifest.data_hash,
            "prompts": [item.prompt for item in tuned_items],
        },
        uses_secret=corruptor is not None,
    )
    folder = settings.artifacts / policy.artifact
    log = EvaluationLog(folder.with_name(f"{folder.name}.tune.jsonl"), key)
    if log.resumed:
        print(f"resuming: {log.resumed} evaluations are already in {log.path}", file=sys.stderr)
    tuner = Tuner(
        policy,
        evaluator,
        evaluator.prepare_half(tuned_items),
        evaluator.prepare_half(report_items),
        log,
        args.seed,
    )
    axes = parameter_axes(policy, width=table.width if table else None, row_rms=table.row_rms if table else None)
    return TuningRun(policy, artifact, folder, names, axes, tuner, entry)


def _log_key(settings: Settings, dependencies: Mapping[str, Any], *, uses_secret: bool) -> str:
    """Hash everything that an evaluation depends on. Another secret gives other noise for the same candidate."""
    secret = settings.secret.get_secret_value() if uses_secret and settings.secret else ""
    digest = hmac.new(secret.encode(), b"lethe tune", "sha256").hexdigest()
    return hashlib.sha256(json.dumps({**dependencies, "secret": digest}, sort_keys=True).encode()).hexdigest()[:16]


async def _connect(url: str, settings: Settings, stack: contextlib.AsyncExitStack) -> tuple[Upstream, dict[str, str]]:
    """Connect to a model server; return it and its models: name → what vLLM loaded under it.

    Raises TuneError if it can't be reached or serves no model.
    """
    key = settings.upstream_key.get_secret_value() if settings.upstream_key else None
    upstream = Upstream(url, connect_timeout_s=settings.connect_timeout_s, read_timeout_s=TIMEOUT_S, key=key)
    stack.push_async_callback(upstream.close)
    try:
        cards = await fetch_model_cards(upstream)
    except GatewayError as error:
        raise TuneError(f"{url}: {error.message}") from error
    return upstream, {card["id"]: str(card.get("root") or card["id"]) for card in cards}


def _flagged_halves(
    evaluator: CandidateEvaluator, artifact: Artifact, args: argparse.Namespace
) -> tuple[list[TuningItem], list[TuningItem]]:
    """Return for each half at most --prompts items that the policy flags. Raises TuneError for too few."""
    flagged_halves = []
    items = tuning_items(artifact.items, evaluator.encode, args.seed)
    for half in split_halves(items, args.seed):
        flagged = list(itertools.islice(filter(evaluator.flags, half), args.prompts))
        if len(flagged) < MIN_PROMPTS:
            raise TuneError(
                f"only {len(flagged)} of {len(half)} forget prompts of one half are flagged and have an answer; "
                f"tuning needs {MIN_PROMPTS} in each half"
            )
        flagged_halves.append(flagged)
    return flagged_halves[0], flagged_halves[1]


async def _collect_evidence(run: TuningRun, values: Values, searches: Mapping[str, ParameterSearch]) -> dict[str, Any]:
    chosen = with_values(run.policy, values)
    best = await run.tuner.evaluate(values)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "values": values,
        "settings": {
            part: part_settings(chosen, part) for part in dict.fromkeys(TUNABLE_PARAMETERS[name] for name in values)
        },
        "metric": run.tuner.metric,
        "target": best.target,
        "evaluations": len({values_key(one.values) for search in searches.values() for one in search.evaluations}),
        "curves": {name: [_curve_point(one, name) for one in search.evaluations] for name, search in searches.items()},
        "tied": {name: list(search.minimum.tied) for name, search in searches.items()},
        "tuned_on": {"prompts": run.tuner.sizes[0], "objective": best.objective, "error": round(best.error, 6),
                     **best.parts, "answers": best.summary},
        "reported_on": {"prompts": run.tuner.sizes[1], **await run.tuner.report(values)},
    }  # fmt: skip


def _curve_point(evaluation: Evaluation, name: str) -> dict[str, float]:
    return {
        "x": evaluation.values[name],
        "objective": evaluation.objective,
        "error": round(evaluation.error, 6),
        "metric": evaluation.metric,
    }


async def _compare_with_grid(run: TuningRun, points: int, values: Values) -> dict[str, Any]:
    evaluations = await run.tuner.grid(run.axes, run.names, points)
    best = min(evaluations, key=lambda one: one.objective)
    tuned = await run.tuner.evaluate(values)
    ratio = tuned.objective / best.objective if best.objective else math.inf if tuned.objective else 1.0
    return {
        "points": len(evaluations),
        "best": best.values,
        "best_objective": best.objective,
        "objective": tuned.objective,
        "ratio": round(ratio, 4),
        "within": ratio <= MAX_RATIO_TO_GRID,
        "curve": [{**one.values, "objective": one.objective, "metric": one.metric} for one in evaluations],
    }


def _save_evidence(run: TuningRun, evidence: dict[str, Any], searches: Mapping[str, ParameterSearch]) -> None:
    """Write the entry into the artifact, replacing an older one for the same policy and parameters, and the plots."""
    with artifact_io.edit_artifact(run.folder) as current:
        if current.manifest.data_hash != run.artifact.manifest.data_hash:
            raise TuneError(f"{run.folder} was fitted again during this run; nothing was written, please repeat")
        others = [entry for entry in current.manifest.tuned if _entry_key(entry) != _entry_key(evidence)]
        manifest = dataclasses.replace(current.manifest, tuned=[*others, evidence])
        artifact_io.save_artifact(dataclasses.replace(current, manifest=manifest), run.folder)
        write_index(current, run.folder)
    for name, search in searches.items():
        plot = plot_tuning_curve(
            evidence["curves"][name], parameter=name, chosen=search.minimum.x, target=evidence["target"]
        )
        run.folder.with_name(f"{run.folder.name}.tune-{name}.svg").write_text(plot, encoding="utf-8")


def _entry_key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry.get("policy"), entry.get("models"), sorted(entry.get("values", ()))


def _print_report(run: TuningRun, evidence: dict[str, Any], searches: Mapping[str, ParameterSearch]) -> None:
    for name, search in searches.items():
        print(f"{name:>10}  objective   ± s.e.  {evidence['metric']} (target {evidence['target']:.3f})")
        for one in sorted(search.evaluations, key=lambda one: one.values[name]):
            mark = "  chosen" if one.values[name] == search.minimum.x else ""
            print(f"{one.values[name]:>10g}  {one.objective:9.4f}  {one.error:7.4f}  {one.metric:.4f}{mark}")
    report = evidence["reported_on"]
    chosen = ", ".join(f"{name} {value:g}" for name, value in evidence["values"].items())
    print(f"chosen: {chosen}, in {evidence['evaluations']} evaluations on {evidence['tuned_on']['prompts']} prompts")
    for name, (low, high) in evidence["tied"].items():
        if low < high:
            print(f"  {name} from {low:g} to {high:g}: no significant difference on these prompts")
    print(
        f"on {report['prompts']} other prompts (objective of the unguarded model: {report['unguarded_objective']:.4f}):"
    )
    for name in ("objective", "knowledge", "language", "leaks"):
        figure = report[name]
        print(f"  {name:<10} {figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]")
    columns = [(title, report[title]) for title in ("answers", "unguarded", "retain_model") if report[title]]
    print(" " * 16 + "".join(f"{title.replace('_', ' '):>14}" for title, _ in columns))
    for metric in columns[0][1]:
        print(f"  {metric:<14}" + "".join(f"{column.get(metric, math.nan):14.4f}" for _, column in columns))
    if grid := evidence.get("grid"):
        best = ", ".join(f"{name} {value:g}" for name, value in grid["best"].items())
        print(
            f"grid of {grid['points']}: best objective {grid['best_objective']:.4f} at {best}; tuned "
            f"{grid['objective']:.4f}, ratio {grid['ratio']:.3f}: {'within' if grid['within'] else 'NOT within'} 10 %"
        )
    print(f"written to {run.folder}; the policy can now use `tuned` for {', '.join(evidence['values'])}")
