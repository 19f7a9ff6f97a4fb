"""`lethe tune` without a server: what is tuned, the log, the search over a made-up bench. The rest: integration."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lethe.evaluation.tuning.candidate import TuneError
from lethe.evaluation.tuning.objective import Answers, Target
from lethe.evaluation.tuning.split import Item
from lethe.evaluation.tuning.tune import Log, Row, Tuner, axes, parameters_of, starts
from lethe.evaluation.tuning.zeroth_order import Axis
from lethe.server.policy.schema import Policy

N = 24


def policy(**given: Any) -> Policy:
    made = {"name": "p", "artifact": "a", "action": "corrupt", "corrupt": {"function": "noise", "sigma": "tuned"}}
    return Policy.model_validate({**made, **given})


def answers(like: float, loss: float) -> Answers:
    """N answers with that similarity and loss, a little apart from each other."""
    spread = np.linspace(-0.05, 0.05, N)
    shape = np.repeat((like + spread)[:, None], 4, axis=1)
    nothing = np.zeros(N)
    return Answers(shape, np.full(N, math.nan), loss + spread, nothing, nothing + 1, nothing)


class Half:
    def __init__(self, first: int) -> None:
        self.items = [Item(f"p{first + i}", "r", (first + i) // 4) for i in range(N)]
        self.choices: Sequence[None] = [None] * N


class Bench:
    """A model whose recall falls around sigma 20, and whose answers turn to garble around 200. Counts its calls."""

    def __init__(self, fail_after: int | None = None, known: float = 0.95) -> None:
        self.tried: list[tuple[dict[str, float], int]] = []
        self._fail_after, self._known = fail_after, known

    async def target(self, half: Half) -> Target:
        return Target(answers(self._known, 1.5), None, np.full((N, 1, 4), 0.1), np.full(N, math.nan), np.full(N, 10.0))

    async def answers(self, policy: Policy, half: Half) -> Answers:
        if self._fail_after is not None and len(self.tried) == self._fail_after:
            raise TuneError("the model server can't be reached")
        sigma, dims = float(policy.corrupt.sigma or 0), policy.corrupt.dims
        self.tried.append(({"sigma": sigma, "dims": dims}, int(half.items[0].prompt[1:])))  # type: ignore[dict-item]
        reach = math.log10(sigma * (1 if dims == "all" else math.sqrt(float(dims) / 256)))
        recall = 0.1 + 0.85 / (1 + math.exp((reach - math.log10(20)) / 0.1))
        garble = 1 / (1 + math.exp(-(reach - math.log10(200)) / 0.1))
        return answers(recall, 1.5 + 8 * garble)


SIGMA = {"sigma": Axis("sigma", 0.1, 1000)}


def tuner(bench: Bench, path: Path, given: Policy | None = None) -> Tuner:
    halves: Any = Half(0), Half(N)
    return Tuner(given or policy(), bench, *halves, Log(path, "key"), 0)  # type: ignore[arg-type]


async def test_it_lands_within_ten_percent_of_the_grid_in_twenty_evaluations(tmp_path: Path) -> None:
    bench = Bench()
    made = tuner(bench, tmp_path / "log")
    trails = await made.search(SIGMA, {"sigma": 1.0}, 20)
    assert len(bench.tried) <= 20
    best = await made.evaluate({"sigma": trails["sigma"].found.x})
    grid = await made.grid(SIGMA, ["sigma"], 40)
    assert best.objective <= 1.1 * min(row.objective for row in grid)
    assert 25 < best.values["sigma"] < 200 and best.metric < 0.3 and best.target == 0.1


async def test_a_model_that_knows_nothing_is_not_tuned(tmp_path: Path) -> None:
    await tuner(Bench(), tmp_path / "log").require_knowledge()
    with pytest.raises(TuneError, match="mean ROUGE-L recall is 0.080, and that of a model which never knew 0.100"):
        await tuner(Bench(known=0.08), tmp_path / "log").require_knowledge()


async def test_several_parameters_share_the_budget(tmp_path: Path) -> None:
    bench = Bench()
    given = policy(corrupt={"function": "noise", "sigma": "tuned", "dims": "tuned"})
    made = tuner(bench, tmp_path / "log", given)
    where = {**SIGMA, "dims": Axis("dims", 1, 256, integer=True)}
    trails = await made.search(where, starts(given, ["sigma", "dims"], where), 20)
    assert len(bench.tried) <= 20 and list(trails) == ["sigma", "dims"]
    # The second begins where the first has ended, without asking again.
    assert trails["dims"].rows[0].values["sigma"] == trails["sigma"].found.x
    assert min(row.objective for row in trails["dims"].rows) == trails["dims"].found.measured.value


async def test_nothing_of_the_reported_half_is_tuned_on(tmp_path: Path) -> None:
    bench = Bench()
    made = tuner(bench, tmp_path / "log")
    await made.search(SIGMA, {"sigma": 1.0}, 8)
    assert {first for _, first in bench.tried} == {0}
    report = await made.report({"sigma": 50.0})
    assert bench.tried[-1][1] == N
    figure = report["objective"]
    assert figure["low"] <= figure["value"] <= figure["high"] and figure["n"] == N
    assert report["unguarded_objective"] == pytest.approx(0.5, abs=0.01) and report["retain_model"] is None


async def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    broken = Bench(fail_after=7)
    with pytest.raises(TuneError):
        await tuner(broken, tmp_path / "log").search(SIGMA, {"sigma": 1.0}, 20)
    with (tmp_path / "log").open("a") as file:
        file.write('{"key": "key", "values": {"sig')
    second = Bench()
    resumed = tuner(second, tmp_path / "log")
    assert resumed.log.resumed == 7
    trails = await resumed.search(SIGMA, {"sigma": 1.0}, 20)
    whole = await tuner(Bench(), tmp_path / "other").search(SIGMA, {"sigma": 1.0}, 20)
    assert trails["sigma"].found == whole["sigma"].found
    assert not [tried for tried in second.tried if tried in broken.tried]
    # The torn line spoils no other: a third run has nothing left to ask.
    third = Bench()
    await tuner(third, tmp_path / "log").search(SIGMA, {"sigma": 1.0}, 20)
    assert third.tried == []


def test_the_log_holds_no_text_and_only_its_own_key_counts(tmp_path: Path) -> None:
    row = Row({"sigma": 3.0}, 0.5, (0.4, 0.6), {"knowledge": 1.0}, {"rouge_l": 0.2}, 0.2, 0.1)
    Log(tmp_path / "log", "one").add(row)
    assert Log(tmp_path / "log", "one").find({"sigma": 3.0}) == row
    assert Log(tmp_path / "log", "two").find({"sigma": 3.0}) is None
    assert set(json.loads((tmp_path / "log").read_text())) == {"key", *(f.name for f in dataclasses.fields(Row))}


@pytest.mark.parametrize(
    ("given", "asked", "names"),
    [
        ({}, None, ["sigma"]),
        ({}, ["sigma", "dims"], ["sigma", "dims"]),
        ({"corrupt": {}}, None, ["strength"]),
        ({"corrupt": {"function": "zero"}}, None, ["dims"]),
        ({"action": "penalize", "corrupt": {}}, None, ["soft", "similarity"]),
        ({"action": "both", "corrupt": {}}, None, ["strength", "soft", "similarity"]),
        ({"action": "both", "corrupt": {}, "penalize": {"soft": "tuned"}}, None, ["soft"]),
    ],
)
def test_what_is_tuned(given: dict[str, Any], asked: list[str] | None, names: list[str]) -> None:
    assert parameters_of(policy(**given), asked) == names


@pytest.mark.parametrize(
    ("given", "asked", "message"),
    [
        ({"action": "refuse"}, None, "policy 'p': action 'refuse' has nothing that could be tuned"),
        (
            {},
            ["strength"],
            "'strength' can't be tuned for action 'corrupt' with function 'noise'; there is sigma, dims",
        ),
        ({"action": "penalize", "corrupt": {}}, ["sigma"], "there is soft, similarity"),
        ({}, ["dims"], "says tuned for sigma as well"),
    ],
)
def test_what_cant_be_tuned_is_an_error(given: dict[str, Any], asked: list[str] | None, message: str) -> None:
    with pytest.raises(TuneError, match=message):
        parameters_of(policy(**given), asked)


def test_axes_and_starts() -> None:
    where = axes(policy(), width=256, row_rms=0.075)
    assert (where["sigma"].low, where["sigma"].high, where["dims"].high) == (0.1, 1000, 256)
    absolute = policy(corrupt={"function": "noise", "sigma": "tuned", "sigma_unit": "absolute"})
    assert axes(absolute, width=256, row_rms=0.075)["sigma"].high == 75
    assert "sigma" not in axes(policy(), width=None, row_rms=None)
    # Without the ban, a soft weight of 0 would penalise nothing.
    assert axes(policy(penalize={"hard": False}), width=None, row_rms=None)["soft"].low > 0
    given = policy(action="both", penalize={"soft": 50})
    assert starts(given, ["sigma", "dims", "soft"], where) == {"sigma": 10, "dims": 256, "soft": 16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "21"], r"--budget 21 is not in \[4, 20\]"),
        (["--grid", "2"], "--grid 2: a grid has at least 4 points"),
        (["--parameter", "soft,similarity", "--budget", "7"], "--budget 7 is too small for soft, similarity"),
    ],
)
def test_options_that_cant_be(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lethe.server.cli import main as cli

    path = tmp_path / "p.yaml"
    path.write_text("name: p\nartifact: a\naction: penalize\n")
    with pytest.raises(SystemExit) as done:
        cli.main(["tune", str(path), *options])
    assert done.value.code == 2
    assert re.search(message, capsys.readouterr().err)
