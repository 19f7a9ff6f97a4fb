"""Search a policy's parameters one after another, within one budget of evaluations, and log every evaluation.

Each parameter is searched by `evaluation/tuning/zeroth_order.py`. An evaluation is one candidate tried on the tuning
half of the forget prompts (`evaluation/tuning/candidate.py`) and compared with a model that never knew
(`evaluation/tuning/objective.py`). The search is deterministic: an interrupted run repeats it and takes the logged
evaluations from the log. Knows neither command-line arguments nor artifacts.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lethe.evaluation.tuning.answer_similarity import SIMILARITIES
from lethe.evaluation.tuning.candidate import CandidateEvaluator, PromptHalf
from lethe.evaluation.tuning.objective import AnswerMeasures, ObjectiveTarget, resamples
from lethe.evaluation.tuning.parameters import Values
from lethe.evaluation.tuning.vllm_model import TuneError
from lethe.evaluation.tuning.zeroth_order import Axis, Measurement, Minimum, minimise
from lethe.server.policy.schema import Policy
from lethe.server.policy.tuned_values import with_values

# Bootstrap resamples of the reported half, for 95 % intervals.
REPORT_RESAMPLES = 1000


@dataclass(frozen=True)
class Evaluation:
    """One evaluated candidate. draws: the objective over resamples of the prompts. metric, target: for the plot."""

    values: Values
    objective: float
    draws: tuple[float, ...]
    parts: dict[str, float]
    summary: dict[str, float]
    metric: float
    target: float

    @property
    def error(self) -> float:
        """Standard error of the objective, by bootstrap."""
        return float(np.std(self.draws, ddof=1))

    @property
    def measurement(self) -> Measurement:
        return Measurement(self.objective, self.draws)


@dataclass(frozen=True)
class ParameterSearch:
    """One parameter's search: its minimum, and all evaluations in order."""

    minimum: Minimum
    evaluations: tuple[Evaluation, ...]


class EvaluationLog:
    """Evaluations as JSON lines, without the text of any prompt or answer.

    key: a hash of everything that an evaluation depends on; entries with another key are ignored.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._key = key
        self._by_values: dict[str, Evaluation] = {}
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
                if entry.pop("key") == key:
                    self._remember(Evaluation(**{**entry, "draws": tuple(entry["draws"])}))
            except (ValueError, TypeError, KeyError, AttributeError):
                # An incomplete line of an interrupted run: that candidate is evaluated again.
                continue
        self.resumed = len(self._by_values)

    def find(self, values: Values) -> Evaluation | None:
        return self._by_values.get(values_key(values))

    def add(self, evaluation: Evaluation) -> None:
        self._remember(evaluation)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        incomplete = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        entry = json.dumps({"key": self._key, **dataclasses.asdict(evaluation)})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if incomplete else "") + entry + "\n")

    def _remember(self, evaluation: Evaluation) -> None:
        self._by_values[values_key(evaluation.values)] = evaluation


def values_key(values: Values) -> str:
    """The values as a string that is the same in any order."""
    return json.dumps(values, sort_keys=True)


class Tuner:
    """Evaluates candidates of one policy on the tuning half, and the chosen one on the other half."""

    def __init__(
        self,
        policy: Policy,
        evaluator: CandidateEvaluator,
        tuning_half: PromptHalf,
        report_half: PromptHalf,
        log: EvaluationLog,
        seed: int,
    ) -> None:
        self.policy = policy
        self.log = log
        self.sizes = len(tuning_half.items), len(report_half.items)
        self.metric = "share of right choices" if all(tuning_half.choices) else "mean ROUGE-L recall"
        self._evaluator = evaluator
        self._tuning_half = tuning_half
        self._report_half = report_half
        self._draws = resamples([item.group for item in tuning_half.items], seed)
        self._report_draws = resamples([item.group for item in report_half.items], seed, REPORT_RESAMPLES)

    async def evaluate(self, values: Values) -> Evaluation:
        """Evaluate a candidate on the tuning half, or return its evaluation from the log."""
        if (logged := self.log.find(values)) is not None:
            return logged
        answers = await self._evaluator.answers(with_values(self.policy, values), self._tuning_half)
        target = await self._evaluator.target(self._tuning_half)
        parts = {name: round(value, 6) for name, value in target.distances(answers).items()}
        draws = tuple(round(target.distances(answers, rows)["objective"], 6) for rows in self._draws)
        objective = parts.pop("objective")
        evaluation = Evaluation(
            values, objective, draws, parts, answers.summary(), *_metric_and_target(answers, target)
        )
        self.log.add(evaluation)
        return evaluation

    async def report(self, values: Values) -> dict[str, Any]:
        """Evaluate a candidate on the other half: parts and metrics with 95 % intervals, beside the models' own."""
        answers = await self._evaluator.answers(with_values(self.policy, values), self._report_half)
        target = await self._evaluator.target(self._report_half)
        draws = [target.distances(answers, rows) for rows in self._report_draws]
        report: dict[str, Any] = {
            name: _bootstrap_interval(value, [draw[name] for draw in draws], len(self._report_half.items))
            for name, value in target.distances(answers).items()
        }
        report["answers"] = answers.summary()
        report["unguarded"] = target.unguarded.summary()
        report["retain_model"] = target.twin.summary() if target.twin else None
        report["unguarded_objective"] = round(target.distances(target.unguarded)["objective"], 6)
        report["metric"], report["target"] = _metric_and_target(answers, target)
        return report

    async def require_knowledge(self) -> None:
        """Raise TuneError if the unguarded model's answers hold no more knowledge than those of an ignorant model."""
        target = await self._evaluator.target(self._tuning_half)
        unguarded, ignorant = _metric_and_target(target.unguarded, target)
        if unguarded <= ignorant:
            raise TuneError(
                f"nothing to tune: the unguarded model's {self.metric} is {unguarded:.3f}, that of a model which never "
                f"knew is {ignorant:.3f}; write the prompts in the form in which the model knows the facts"
            )

    async def search(self, axes: Mapping[str, Axis], start: Values, budget: int) -> dict[str, ParameterSearch]:
        """Tune the parameters of `start` one after another; they share the budget of evaluations."""
        values, remaining = dict(start), budget
        searches: dict[str, ParameterSearch] = {}
        with tqdm(total=budget, desc="tune", unit="evaluation", file=sys.stderr) as bar:
            for turn, name in enumerate(start):
                share = remaining // (len(start) - turn)
                # The point at which the previous parameter's search ended also lies on this parameter's axis.
                evaluations = [await self.evaluate(values)] if turn else []
                seen = {evaluation.values[name]: evaluation.measurement for evaluation in evaluations}
                search = minimise(axes[name], budget=share, seen=seen)
                try:
                    x = next(search)
                    while True:
                        evaluation = await self.evaluate({**values, name: x})
                        evaluations.append(evaluation)
                        remaining -= 1
                        bar.update()
                        bar.set_postfix_str(f"{name} {x:g}: {evaluation.objective:.3f}")
                        x = search.send(evaluation.measurement)
                except StopIteration as end:
                    searches[name] = ParameterSearch(end.value, tuple(evaluations))
                    values[name] = end.value.x
        return searches

    async def grid(self, axes: Mapping[str, Axis], names: Sequence[str], points: int) -> list[Evaluation]:
        """Evaluate an even grid of about `points` candidates, for comparison."""
        points_per_axis = round(points ** (1 / len(names)))
        candidates = list(itertools.product(*(axes[name].grid(points_per_axis) for name in names)))
        evaluations = []
        for candidate in tqdm(candidates, desc="grid", unit="evaluation", file=sys.stderr):
            evaluations.append(await self.evaluate(dict(zip(names, candidate, strict=True))))
        return evaluations


def _metric_and_target(answers: AnswerMeasures, target: ObjectiveTarget) -> tuple[float, float]:
    """The plotted metric and its target: mean ROUGE-L recall, or the share of correct choices if all are choices."""
    i = SIMILARITIES.index("rouge_l")
    if np.isnan(answers.correct).any():
        ignorant = target.twin.similarity[:, i] if target.twin else target.surrogate[:, :, i]
        return round(float(answers.similarity[:, i].mean()), 6), round(float(ignorant.mean()), 6)
    ignorant = target.twin.correct if target.twin else target.guess
    return round(float(answers.correct.mean()), 6), round(float(ignorant.mean()), 6)


def _bootstrap_interval(value: float, draws: Sequence[float], n: int) -> dict[str, float]:
    """The basic bootstrap 95 % interval [2v - q(0.975), 2v - q(0.025)], not below 0.

    A resample is further from any target than the sample itself; the basic bootstrap corrects that bias.
    """
    low, high = np.maximum(0.0, 2 * value - np.quantile(draws, [0.975, 0.025]))
    return {"value": round(value, 6), "low": round(min(value, low), 6), "high": round(max(value, high), 6), "n": n}
