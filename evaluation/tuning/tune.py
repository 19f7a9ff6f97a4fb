"""`lethe tune`: choose σ, dimensions, decoy strength or GUARD's weights against the live model.

Coordinate by coordinate, each by evaluation/tuning/zeroth_order.py, within one budget of evaluations. An evaluation is one
candidate tried on the tuning half of the forget prompts (evaluation/tuning/candidate.py) and held against a model that never knew
(evaluation/tuning/objective.py). Every one is logged beside the artifact, so that an interrupted run goes on where it was; the
search asks the same questions again and finds them answered. What was chosen is measured on the other half, and
written into the artifact with its evidence.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lethe.classifier import artifact as artifacts_io
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import DEFAULT_ENCODER, load_encoder
from lethe.corruption.spec import MAX_STRENGTH
from lethe.evaluation.reporting.plots import metric_curve
from lethe.evaluation.tuning.candidate import SURROGATES, TIMEOUT_S, Bench, Half, Model, TuneError
from lethe.evaluation.tuning.objective import DEFINITION, SIMILARITIES, Answers, Target, resamples
from lethe.evaluation.tuning.split import Item, halves, items
from lethe.evaluation.tuning.zeroth_order import LEAST_BUDGET, Axis, Found, Measured, minimise
from lethe.server.errors import GuardError
from lethe.server.policy.schema import Policy
from lethe.server.policy.tuned_values import PARAMETERS, fingerprint, settings_of, wanted, with_values
from lethe.server.policy_store.load import find_indexes, find_policy, find_threshold, load_artifact, load_corruptor
from lethe.server.settings import Settings
from lethe.server.upstream.client import Upstream
from lethe.server.upstream.parity_probe import probe
from lethe.server.upstream.verbatim_index import known, write_index

BUDGET = 20
LEAST_PROMPTS = 8
WITHIN = 1.10
REPORT_RESAMPLES = 1000
Values = dict[str, float]


def axes(policy: Policy, *, width: int | None, row_rms: float | None) -> dict[str, Axis]:
    """Where each parameter may lie. width, row_rms: of the model's embedding table, where something is corrupted."""
    made = {
        # Without a ban of its own the soft one must not vanish.
        "soft": Axis("soft", 0.0 if policy.penalize.hard else 0.5, 16.0, log=False),
        "similarity": Axis("similarity", 0.2, 1.0, log=False),
        "strength": Axis("strength", 0.05, MAX_STRENGTH, log=False),
    }
    if width and row_rms:
        unit = row_rms if policy.corrupt.sigma_unit == "absolute" else 1.0
        made["sigma"] = Axis("sigma", 0.1 * unit, 1000 * unit)
        made["dims"] = Axis("dims", 1, width, integer=True)
    return made


def parameters_of(policy: Policy, asked: Sequence[str] | None) -> list[str]:
    """The parameters to tune: those asked for, else those that the policy calls `tuned`, else its functions' own.

    Raises TuneError for one that the policy's action has no use for, and for a `tuned` one that was not asked for.
    """
    function = policy.corrupt.function
    of_function = {"decoy": ["strength"], "noise": ["sigma", "dims"], "set-noise": ["sigma", "dims"]}
    corrupt = of_function.get(function, ["dims"]) if policy.action in ("corrupt", "both") else []
    penalize = ["soft", "similarity"] if policy.action in ("penalize", "both") else []
    possible = [*corrupt, *penalize]
    if not possible:
        raise TuneError(f"policy {policy.name!r}: action {policy.action!r} has nothing that could be tuned")
    if asked is None:
        asked = wanted(policy) or [*corrupt[:1], *penalize]
    for name in asked:
        if name not in possible:
            raise TuneError(
                f"policy {policy.name!r}: {name!r} can't be tuned for action {policy.action!r}"
                f"{f' with function {function!r}' if corrupt else ''}; there is {', '.join(possible)}"
            )
    if left_out := [name for name in wanted(policy) if name not in asked]:
        raise TuneError(
            f"policy {policy.name!r} says tuned for {', '.join(left_out)} as well: tune all of them together"
        )
    return list(dict.fromkeys(asked))


def starts(policy: Policy, names: Sequence[str], where: Mapping[str, Axis]) -> Values:
    """Where each parameter stands until its turn comes: the policy's number, or the middle of its axis."""
    made = {}
    for name in names:
        axis = where[name]
        now = getattr(getattr(policy, PARAMETERS[name]), name)
        now = axis.high if now == "all" else now
        made[name] = min(max(float(now), axis.low), axis.high) if isinstance(now, int | float) else axis.at(0.5)
    return made


@dataclass(frozen=True)
class Row:
    """One evaluation. draws: the objective over resamples of the prompts. metric: for the plot."""

    values: Values
    objective: float
    draws: tuple[float, ...]
    parts: dict[str, float]
    summary: dict[str, float]
    metric: float
    target: float

    @property
    def error(self) -> float:
        return float(np.std(self.draws, ddof=1))

    @property
    def measured(self) -> Measured:
        return Measured(self.objective, self.draws)


@dataclass(frozen=True)
class Trail:
    """One parameter's search: what it found, and every evaluation in the order it was made."""

    found: Found
    rows: tuple[Row, ...]


class Log:
    """Evaluations as JSON lines, keyed by everything that they depend on; never a prompt or an answer."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._key = key
        self._rows: dict[str, Row] = {}
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        for line in lines:
            try:
                row = json.loads(line)
                if row.pop("key") == key:
                    self._keep(Row(**{**row, "draws": tuple(row["draws"])}))
            except (ValueError, TypeError, KeyError, AttributeError):
                # The last line of a run that was cut off; whatever it was, it is measured again.
                continue
        self.resumed = len(self._rows)

    def find(self, values: Values) -> Row | None:
        return self._rows.get(_name(values))

    def add(self, row: Row) -> None:
        self._keep(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps({"key": self._key, **dataclasses.asdict(row)}) + "\n")

    def _keep(self, row: Row) -> None:
        self._rows[_name(row.values)] = row


def _name(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


class Tuner:
    """One run: a policy, a bench, two halves, a log."""

    def __init__(self, policy: Policy, bench: Bench, tune: Half, report: Half, log: Log, seed: int) -> None:
        self.policy = policy
        self.log = log
        self.sizes = len(tune.items), len(report.items)
        self.metric = "share of right choices" if all(tune.choices) else "mean ROUGE-L recall"
        self._bench = bench
        self._tune = tune
        self._report = report
        self._draws = resamples([item.group for item in tune.items], seed)
        self._report_draws = resamples([item.group for item in report.items], seed, REPORT_RESAMPLES)

    async def evaluate(self, values: Values) -> Row:
        """A candidate on the tuning half; from the log if it is there."""
        if (found := self.log.find(values)) is not None:
            return found
        got = await self._bench.answers(with_values(self.policy, values), self._tune)
        target = await self._bench.target(self._tune)
        parts = {name: round(value, 6) for name, value in target.gaps(got).items()}
        draws = tuple(round(target.gaps(got, rows)["objective"], 6) for rows in self._draws)
        row = Row(values, parts.pop("objective"), draws, parts, got.summary(), *_metrics(got, target))
        self.log.add(row)
        return row

    async def report(self, values: Values) -> dict[str, Any]:
        """A candidate on the half that nothing was chosen by: parts and metrics with intervals, beside the models'."""
        got = await self._bench.answers(with_values(self.policy, values), self._report)
        target = await self._bench.target(self._report)
        draws = [target.gaps(got, rows) for rows in self._report_draws]
        made: dict[str, Any] = {
            name: _interval(value, [draw[name] for draw in draws], len(self._report.items))
            for name, value in target.gaps(got).items()
        }
        made["answers"] = got.summary()
        made["unguarded"] = target.unguarded.summary()
        made["retain_model"] = target.twin.summary() if target.twin else None
        made["unguarded_objective"] = round(target.gaps(target.unguarded)["objective"], 6)
        made["metric"], made["target"] = _metrics(got, target)
        return made

    async def require_knowledge(self) -> None:
        """Raises TuneError when the unguarded model tells no more than one that never knew: nothing is to be lost."""
        target = await self._bench.target(self._tune)
        told, ignorant = _metrics(target.unguarded, target)
        if told <= ignorant:
            raise TuneError(
                f"there is nothing to tune: the unguarded model's {self.metric} is {told:.3f}, and that of a model "
                f"which never knew {ignorant:.3f}; ask in the form in which the model knows it"
            )

    async def search(self, where: Mapping[str, Axis], start: Values, budget: int) -> dict[str, Trail]:
        """Tune the parameters of `start` one after another; the budget is shared out between them."""
        values, left = dict(start), budget
        trails: dict[str, Trail] = {}
        with tqdm(total=budget, desc="tune", unit="evaluation", file=sys.stderr) as bar:
            for turn, name in enumerate(start):
                share = left // (len(start) - turn)
                # Where the parameter before has ended is a point of this one's axis.
                rows = [await self.evaluate(values)] if turn else []
                seen = {row.values[name]: row.measured for row in rows}
                search = minimise(where[name], budget=share, seen=seen)
                try:
                    x = next(search)
                    while True:
                        row = await self.evaluate({**values, name: x})
                        rows.append(row)
                        left -= 1
                        bar.update()
                        bar.set_postfix_str(f"{name} {x:g}: {row.objective:.3f}")
                        x = search.send(row.measured)
                except StopIteration as end:
                    trails[name] = Trail(end.value, tuple(rows))
                    values[name] = end.value.x
        return trails

    async def grid(self, where: Mapping[str, Axis], names: Sequence[str], points: int) -> list[Row]:
        """The objective over an even grid of about `points` candidates, for comparison."""
        each = round(points ** (1 / len(names)))
        candidates = list(itertools.product(*(where[name].grid(each) for name in names)))
        rows = []
        for candidate in tqdm(candidates, desc="grid", unit="evaluation", file=sys.stderr):
            rows.append(await self.evaluate(dict(zip(names, candidate, strict=True))))
        return rows


def _metrics(got: Answers, target: Target) -> tuple[float, float]:
    """What the plot shows, and where it should be: mean ROUGE-L recall, or the share of right choices if all are."""
    i = SIMILARITIES.index("rouge_l")
    if np.isnan(got.right).any():
        wanted = target.twin.like[:, i] if target.twin else target.ignorance[:, :, i]
        return round(float(got.like[:, i].mean()), 6), round(float(wanted.mean()), 6)
    return round(float(got.right.mean()), 6), round(
        float((target.twin.right if target.twin else target.guess).mean()), 6
    )


def _interval(value: float, draws: Sequence[float], n: int) -> dict[str, float]:
    # The basic bootstrap: a resample is further from any target than the sample is, and that is taken off again.
    low, high = np.maximum(0.0, 2 * value - np.quantile(draws, [0.975, 0.025]))
    return {"value": round(value, 6), "low": round(min(value, low), 6), "high": round(max(value, high), 6), "n": n}


# The run


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Choose a policy's strength by trying candidates on the live model. Exit status 1: the grid found better."""
    if not LEAST_BUDGET <= args.budget <= BUDGET:
        raise TuneError(f"--budget {args.budget} is not in [{LEAST_BUDGET}, {BUDGET}]")
    if args.grid is not None and args.grid < 4:
        raise TuneError(f"--grid {args.grid}: a grid has at least 4 points")
    given = {"upstream": args.upstream} if args.upstream else {}
    settings = Settings.model_validate({**settings.model_dump(exclude_unset=True), **given})
    return asyncio.run(_run(args, settings))


async def _run(args: argparse.Namespace, settings: Settings) -> int:
    async with contextlib.AsyncExitStack() as stack:
        run = await _prepared(args, settings, stack)
        begun = time.monotonic()
        await run.tuner.require_knowledge()
        trails = await run.tuner.search(run.axes, starts(run.policy, run.names, run.axes), args.budget)
        values = {name: trail.found.x for name, trail in trails.items()}
        evidence = {
            **run.entry,
            **await _evidence(run, values, trails),
            "seconds": round(time.monotonic() - begun, 1),
        }
        status = 0
        if args.grid:
            evidence["grid"] = await _grid(run, args.grid, values)
            status = 0 if evidence["grid"]["within"] else 1
    _save(run, evidence, trails)
    if args.json:
        args.json.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    _show(run, evidence, trails)
    return status


@dataclass(frozen=True)
class Run:
    """All that one run needs. entry: what is known of the artifact's entry before anything was tried."""

    policy: Policy
    artifact: Artifact
    folder: Path
    names: list[str]
    axes: dict[str, Axis]
    tuner: Tuner
    entry: dict[str, Any]


async def _prepared(args: argparse.Namespace, settings: Settings, stack: contextlib.AsyncExitStack) -> Run:
    policy = find_policy(args.policy, settings)
    names = parameters_of(policy, [n for given in args.parameter for n in given.split(",")] if args.parameter else None)
    if (least := LEAST_BUDGET * len(names)) > args.budget:
        raise TuneError(f"--budget {args.budget} is too small for {', '.join(names)}: give at least {least}")
    artifact = load_artifact(settings, policy)
    corruptor = load_corruptor(settings, (policy.model_copy(update={"mode": "enforce"}),))
    table = corruptor.table if corruptor else None
    upstream, served = await _connected(settings.upstream, settings, stack)
    name = args.model or (policy.models or tuple(served))[0]
    if name not in served:
        raise TuneError(f"{upstream.url} does not serve {name!r} (there: {', '.join(served)}); give --model")
    if corruptor is not None and not (parity := await probe(upstream, corruptor)).holds:
        raise TuneError(f"{upstream.url}: clean embeddings don't answer as text does: {parity.reason}")
    indexes = find_indexes([policy], {policy.artifact: artifact})
    if missing := set(indexes.values()) - await known(upstream, name, indexes.values()):
        raise TuneError(
            f"{upstream.url} does not have the verbatim index {', '.join(sorted(missing))}; see lethe doctor"
        )
    twin = None
    if args.retain_model_url:
        other, there = await _connected(args.retain_model_url.rstrip("/"), settings, stack)
        twin = Model(other, next(iter(there)), max_tokens=args.max_tokens)
    bench = Bench(
        policy,
        find_threshold(policy, artifact),
        artifact,
        load_encoder(settings.encoder or DEFAULT_ENCODER),
        Model(upstream, name, max_tokens=args.max_tokens),
        corruptor=corruptor,
        indexes=indexes,
        twin=twin,
        max_prompt_chars=settings.max_prompt_chars,
        surrogate=args.surrogate,
        seed=args.seed,
    )
    tuned_on, reported_on = _flagged_halves(bench, artifact, args)
    entry = {
        "policy": policy.name,
        "policy_hash": policy.hash,
        "models": [other for other, root in served.items() if root == served[name]],
        "fingerprint": fingerprint(settings.model_dir) if corruptor and settings.model_dir else None,
        "parameters": names,
        "objective": DEFINITION,
        "surrogate": "the retain model's answers" if twin else SURROGATES[args.surrogate],
        "seed": args.seed,
        "max_tokens": args.max_tokens,
    }
    # Everything that an evaluation depends on: under another secret the same candidate is another noise.
    secret = settings.secret.get_secret_value() if corruptor and settings.secret else ""
    depends = {
        **entry,
        "model": name,
        "twin": f"{args.retain_model_url} {twin.name}" if twin else None,
        "artifact": artifact.manifest.data_hash,
        "prompts": [item.prompt for item in tuned_on],
        "secret": hmac.new(secret.encode(), b"lethe tune", "sha256").hexdigest(),
    }
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    folder = settings.artifacts / policy.artifact
    log = Log(folder.with_name(f"{folder.name}.tune.jsonl"), key)
    if log.resumed:
        print(f"{log.resumed} evaluations are in {log.path} already", file=sys.stderr)
    tuner = Tuner(policy, bench, bench.half(tuned_on), bench.half(reported_on), log, args.seed)
    where = axes(policy, width=table.width if table else None, row_rms=table.row_rms if table else None)
    return Run(policy, artifact, folder, names, where, tuner, entry)


async def _connected(url: str, settings: Settings, stack: contextlib.AsyncExitStack) -> tuple[Upstream, dict[str, str]]:
    """A server, and its models: name → what vLLM loaded under it. Raises TuneError when it isn't there."""
    key = settings.upstream_key.get_secret_value() if settings.upstream_key else None
    upstream = Upstream(url, connect_timeout_s=settings.connect_timeout_s, read_timeout_s=TIMEOUT_S, key=key)
    stack.push_async_callback(upstream.close)
    try:
        status, answer = await upstream.call("GET", "/v1/models")
        served = {str(model["id"]): str(model.get("root") or model["id"]) for model in answer["data"]}
    except GuardError as error:
        raise TuneError(f"{url}: {error.message}") from error
    except (KeyError, TypeError):
        raise TuneError(f"{url}/v1/models answered {status} and names no model") from None
    if not served:
        raise TuneError(f"{url} serves no model")
    return upstream, served


def _flagged_halves(bench: Bench, artifact: Artifact, args: argparse.Namespace) -> tuple[list[Item], list[Item]]:
    """The prompts of both halves, as many as are asked for and the policy flags."""
    made = []
    given = items(artifact.items, bench.encode, args.seed)
    for half in halves(given, args.seed):
        flagged = list(itertools.islice(filter(bench.flags, half), args.prompts))
        if len(flagged) < LEAST_PROMPTS:
            raise TuneError(
                f"only {len(flagged)} of {len(half)} forget prompts of one half are flagged and have an answer; "
                f"tuning needs {LEAST_PROMPTS} in each half"
            )
        made.append(flagged)
    return made[0], made[1]


async def _evidence(run: Run, values: Values, trails: Mapping[str, Trail]) -> dict[str, Any]:
    chosen = with_values(run.policy, values)
    best = await run.tuner.evaluate(values)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "values": values,
        "settings": {part: settings_of(chosen, part) for part in dict.fromkeys(PARAMETERS[name] for name in values)},
        "metric": run.tuner.metric,
        "target": best.target,
        "evaluations": len({_name(row.values) for trail in trails.values() for row in trail.rows}),
        "curves": {name: [_point(row, name) for row in trail.rows] for name, trail in trails.items()},
        "tied": {name: list(trail.found.tied) for name, trail in trails.items()},
        "tuned_on": {"prompts": run.tuner.sizes[0], "objective": best.objective, "error": round(best.error, 6),
                     **best.parts, "answers": best.summary},
        "reported_on": {"prompts": run.tuner.sizes[1], **await run.tuner.report(values)},
    }  # fmt: skip


def _point(row: Row, name: str) -> dict[str, float]:
    return {"x": row.values[name], "objective": row.objective, "error": round(row.error, 6), "metric": row.metric}


async def _grid(run: Run, points: int, values: Values) -> dict[str, Any]:
    rows = await run.tuner.grid(run.axes, run.names, points)
    best, mine = min(rows, key=lambda row: row.objective), await run.tuner.evaluate(values)
    ratio = mine.objective / best.objective if best.objective else math.inf if mine.objective else 1.0
    return {
        "points": len(rows),
        "best": best.values,
        "best_objective": best.objective,
        "objective": mine.objective,
        "ratio": round(ratio, 4),
        "within": ratio <= WITHIN,
        "curve": [{**row.values, "objective": row.objective, "metric": row.metric} for row in rows],
    }


def _save(run: Run, evidence: dict[str, Any], trails: Mapping[str, Trail]) -> None:
    """The entry into the artifact, in place of an older one for the same policy and parameters; plots beside it."""
    with artifacts_io.editing(run.folder) as now:
        if now.manifest.data_hash != run.artifact.manifest.data_hash:
            raise TuneError(f"{run.folder} was fitted again meanwhile; nothing was written, run the command again")
        kept = [entry for entry in now.manifest.tuned if _about(entry) != _about(evidence)]
        manifest = dataclasses.replace(now.manifest, tuned=[*kept, evidence])
        artifacts_io.save(dataclasses.replace(now, manifest=manifest), run.folder)
        write_index(now, run.folder)
    for name, trail in trails.items():
        drawn = metric_curve(evidence["curves"][name], parameter=name, chosen=trail.found.x, target=evidence["target"])
        run.folder.with_name(f"{run.folder.name}.tune-{name}.svg").write_text(drawn, encoding="utf-8")


def _about(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry.get("policy"), entry.get("models"), sorted(entry.get("values", ()))


def _show(run: Run, evidence: dict[str, Any], trails: Mapping[str, Trail]) -> None:
    for name, trail in trails.items():
        print(f"{name:>10}  objective   ± s.e.  {evidence['metric']} (target {evidence['target']:.3f})")
        for row in sorted(trail.rows, key=lambda row: row.values[name]):
            mark = "  chosen" if row.values[name] == trail.found.x else ""
            print(f"{row.values[name]:>10g}  {row.objective:9.4f}  {row.error:7.4f}  {row.metric:.4f}{mark}")
    report = evidence["reported_on"]
    chosen = ", ".join(f"{name} {value:g}" for name, value in evidence["values"].items())
    print(f"chosen: {chosen}, in {evidence['evaluations']} evaluations on {evidence['tuned_on']['prompts']} prompts")
    for name, (low, high) in evidence["tied"].items():
        if low < high:
            print(f"  {name} from {low:g} to {high:g} can't be told apart on these prompts")
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
    print(f"written to {run.folder}; the policy may now say tuned for {', '.join(evidence['values'])}")
