"""The tuner with a fake model: search, budget, log, resuming. With a real model: tests/integration."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lethe.evaluation.tuning.objective import AnswerMeasures, ObjectiveTarget
from lethe.evaluation.tuning.parameters import start_values
from lethe.evaluation.tuning.split import TuningItem
from lethe.evaluation.tuning.tuner import Evaluation, EvaluationLog, Tuner
from lethe.evaluation.tuning.vllm_model import TuneError
from lethe.evaluation.tuning.zeroth_order import Axis
from lethe.server.policy.schema import Policy

N = 24


def make_policy(**fields: Any) -> Policy:
    default = {"name": "p", "artifact": "a", "action": "corrupt", "corrupt": {"function": "noise", "sigma": "tuned"}}
    return Policy.model_validate({**default, **fields})


def answer_measures(similarity: float, loss: float) -> AnswerMeasures:
    """Measures of N answers with about this similarity and loss."""
    spread = np.linspace(-0.05, 0.05, N)
    similarities = np.repeat((similarity + spread)[:, None], 4, axis=1)
    zeros = np.zeros(N)
    return AnswerMeasures(similarities, np.full(N, math.nan), loss + spread, zeros, zeros + 1, zeros)


class FakeHalf:
    def __init__(self, first: int) -> None:
        self.items = [TuningItem(f"p{first + i}", "r", (first + i) // 4) for i in range(N)]
        self.choices: Sequence[None] = [None] * N


class FakeEvaluator:
    """A model whose recall falls around sigma 20 and whose answers become garbled around 200. Records its calls."""

    def __init__(self, fail_after: int | None = None, recall: float = 0.95) -> None:
        self.tried: list[tuple[dict[str, float], int]] = []
        self._fail_after, self._recall = fail_after, recall

    async def target(self, half: FakeHalf) -> ObjectiveTarget:
        return ObjectiveTarget(
            answer_measures(self._recall, 1.5), None, np.full((N, 1, 4), 0.1), np.full(N, math.nan), np.full(N, 10.0)
        )

    async def answers(self, policy: Policy, half: FakeHalf) -> AnswerMeasures:
        if self._fail_after is not None and len(self.tried) == self._fail_after:
            raise TuneError("the model server can't be reached")
        sigma, dims = float(policy.corrupt.sigma or 0), policy.corrupt.dims
        self.tried.append(({"sigma": sigma, "dims": dims}, int(half.items[0].prompt[1:])))  # type: ignore[dict-item]
        noise = math.log10(sigma * (1 if dims == "all" else math.sqrt(float(dims) / 256)))
        recall = 0.1 + 0.85 / (1 + math.exp((noise - math.log10(20)) / 0.1))
        garble = 1 / (1 + math.exp(-(noise - math.log10(200)) / 0.1))
        return answer_measures(recall, 1.5 + 8 * garble)


SIGMA = {"sigma": Axis("sigma", 0.1, 1000)}


def make_tuner(evaluator: FakeEvaluator, path: Path, policy: Policy | None = None) -> Tuner:
    halves: Any = FakeHalf(0), FakeHalf(N)
    return Tuner(policy or make_policy(), evaluator, *halves, EvaluationLog(path, "key"), 0)  # type: ignore[arg-type]


async def test_twenty_evaluations_are_within_ten_percent_of_the_grid(tmp_path: Path) -> None:
    evaluator = FakeEvaluator()
    tuner = make_tuner(evaluator, tmp_path / "log")
    searches = await tuner.search(SIGMA, {"sigma": 1.0}, 20)
    assert len(evaluator.tried) <= 20
    best = await tuner.evaluate({"sigma": searches["sigma"].minimum.x})
    grid = await tuner.grid(SIGMA, ["sigma"], 40)
    assert best.objective <= 1.1 * min(one.objective for one in grid)
    assert 25 < best.values["sigma"] < 200 and best.metric < 0.3 and best.target == 0.1


async def test_a_model_that_knows_nothing_is_not_tuned(tmp_path: Path) -> None:
    await make_tuner(FakeEvaluator(), tmp_path / "log").require_knowledge()
    with pytest.raises(TuneError, match="mean ROUGE-L recall is 0.080, that of a model which never knew is 0.100"):
        await make_tuner(FakeEvaluator(recall=0.08), tmp_path / "log").require_knowledge()


async def test_several_parameters_share_the_budget(tmp_path: Path) -> None:
    evaluator = FakeEvaluator()
    policy = make_policy(corrupt={"function": "noise", "sigma": "tuned", "dims": "tuned"})
    tuner = make_tuner(evaluator, tmp_path / "log", policy)
    axes = {**SIGMA, "dims": Axis("dims", 1, 256, integer=True)}
    searches = await tuner.search(axes, start_values(policy, ["sigma", "dims"], axes), 20)
    assert len(evaluator.tried) <= 20 and list(searches) == ["sigma", "dims"]
    # The second search begins where the first one ended, without a new evaluation.
    assert searches["dims"].evaluations[0].values["sigma"] == searches["sigma"].minimum.x
    assert min(one.objective for one in searches["dims"].evaluations) == searches["dims"].minimum.measured.value


async def test_the_reported_half_is_not_used_for_tuning(tmp_path: Path) -> None:
    evaluator = FakeEvaluator()
    tuner = make_tuner(evaluator, tmp_path / "log")
    await tuner.search(SIGMA, {"sigma": 1.0}, 8)
    assert {first for _, first in evaluator.tried} == {0}
    report = await tuner.report({"sigma": 50.0})
    assert evaluator.tried[-1][1] == N
    figure = report["objective"]
    assert figure["low"] <= figure["value"] <= figure["high"] and figure["n"] == N
    assert report["unguarded_objective"] == pytest.approx(0.5, abs=0.01) and report["retain_model"] is None


async def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    first = FakeEvaluator(fail_after=7)
    with pytest.raises(TuneError):
        await make_tuner(first, tmp_path / "log").search(SIGMA, {"sigma": 1.0}, 20)
    with (tmp_path / "log").open("a") as file:
        file.write('{"key": "key", "values": {"sig')
    second = FakeEvaluator()
    resumed = make_tuner(second, tmp_path / "log")
    assert resumed.log.resumed == 7
    searches = await resumed.search(SIGMA, {"sigma": 1.0}, 20)
    uninterrupted = await make_tuner(FakeEvaluator(), tmp_path / "other").search(SIGMA, {"sigma": 1.0}, 20)
    assert searches["sigma"].minimum == uninterrupted["sigma"].minimum
    assert not [tried for tried in second.tried if tried in first.tried]
    # The incomplete line does not damage others: a third run finds all evaluations in the log.
    third = FakeEvaluator()
    await make_tuner(third, tmp_path / "log").search(SIGMA, {"sigma": 1.0}, 20)
    assert third.tried == []


def test_the_log_has_no_text_and_ignores_other_keys(tmp_path: Path) -> None:
    evaluation = Evaluation({"sigma": 3.0}, 0.5, (0.4, 0.6), {"knowledge": 1.0}, {"rouge_l": 0.2}, 0.2, 0.1)
    EvaluationLog(tmp_path / "log", "one").add(evaluation)
    assert EvaluationLog(tmp_path / "log", "one").find({"sigma": 3.0}) == evaluation
    assert EvaluationLog(tmp_path / "log", "two").find({"sigma": 3.0}) is None
    assert set(json.loads((tmp_path / "log").read_text())) == {"key", *(f.name for f in dataclasses.fields(Evaluation))}
