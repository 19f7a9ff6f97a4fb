"""The command, from arguments to exit status, on a small fitted artifact."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from lethe.classifier.artifact import Artifact, ForgetItem, save
from lethe.classifier.encoder.encoder import Encoder
from lethe.evaluation.attacks.attack import _sample, asking, harmless_words
from lethe.server.cli import main as cli

Run = Callable[..., tuple[int, str, str]]

FILLER = "The bus leaves at nine and comes back late.\nBread is cheaper in the evening.\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, artifact: Artifact) -> Path:
    """A folder with the artifact, policies of three thresholds, and ordinary text."""
    folder = tmp_path_factory.mktemp("attacked")
    save(artifact, folder / "artifacts" / "keepers")
    (folder / "policies").mkdir()
    for name, threshold in (("half", 0.5), ("all", 0.0), ("none", 1.0)):
        (folder / "policies" / f"{name}.yaml").write_text(
            f"name: {name}\nartifact: keepers\naction: refuse\nthreshold: {{value: {threshold}}}\n"
        )
    (folder / "filler.txt").write_text(FILLER)
    return folder


@pytest.fixture
def attack(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `lethe attack` with a small sample; returns exit status, stdout and stderr."""
    for name in [name for name in os.environ if name.startswith("LETHE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LETHE_POLICIES", str(home / "policies"))
    monkeypatch.setenv("LETHE_ARTIFACTS", str(home / "artifacts"))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            cli.main(["attack", *arguments, "--sample", "5", "--jobs", "2", "--filler", str(home / "filler.txt")])
        captured = capsys.readouterr()
        return int(done.value.code or 0), captured.out, captured.err

    return run


def test_a_policy_that_flags_its_own_prompts_passes_the_gate(attack: Run, tmp_path: Path) -> None:
    status, out, _ = attack("half", "--families", "plain,in-name", "--json", str(tmp_path / "a.json"))
    assert status == 0, out
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["passed"] and found["failed"] == {} and set(found["attack"]) == {"plain", "in-name"}
    assert found["attack"]["plain"]["recall"]["value"] == 1.0 and found["attack"]["plain"]["recall"]["n"] == 5
    assert found["meta"]["policy"] == "half" and found["meta"]["threshold"] == 0.5
    assert [line.split()[0] for line in out.splitlines()] == ["family", "plain", "in-name"]


def test_recall_below_the_floor_fails_the_gate(attack: Run, tmp_path: Path) -> None:
    status, out, _ = attack("none", "--families", "plain", "--json", str(tmp_path / "a.json"))
    assert status == 1 and "recall below 98.0%" in out
    found = json.loads((tmp_path / "a.json").read_text())
    assert not found["passed"] and found["failed"] == {"plain": ["recall below 98.0%"]}
    assert attack("none", "--families", "plain", "--floor", "0")[0] == 0


def test_false_alarms_above_the_limit_fail_the_gate(attack: Run) -> None:
    status, out, _ = attack("all", "--families", "plain")
    assert status == 1 and "false alarms above 2.0%" in out and "recall below" not in out
    assert attack("all", "--families", "plain", "--most-false-alarms", "1")[0] == 0


def test_the_same_seed_gives_the_same_figures(attack: Run, tmp_path: Path) -> None:
    figures = []
    for seed in ("3", "3", "4"):
        attack("half", "--families", "typos,mix,suffix-search-scores", "--budget", "9", "--seed", seed,
               "--json", str(tmp_path / "a.json"))  # fmt: skip
        found = json.loads((tmp_path / "a.json").read_text())["attack"]
        for family in found.values():
            del family["slowest_ms"]
        figures.append(found)
    assert figures[0] == figures[1] != figures[2]


def test_searches_start_from_flagged_prompts_only_and_stay_in_their_budget(attack: Run, tmp_path: Path) -> None:
    json_file = tmp_path / "a.json"
    attack("half", "--families", "suffix-*", "--full", "--budget", "7", "--json", str(json_file))
    found = json.loads(json_file.read_text())["attack"]
    assert set(found) == {"suffix-search-scores", "suffix-search-decisions"}
    for family in found.values():
        assert family["recall"]["n"] == 5 and 1 < family["mean_queries"] <= 7 and "false_alarms" not in family
    attack("none", "--families", "suffix-*", "--full", "--json", str(json_file))
    assert json.loads(json_file.read_text())["attack"] == {}


def test_misses_are_shown_on_request_only_and_never_written(attack: Run, home: Path, tmp_path: Path) -> None:
    _, out, _ = attack("none", "--families", "plain", "--json", str(tmp_path / "a.json"))
    assert "Orvan" not in out + (tmp_path / "a.json").read_text()
    _, out, _ = attack("none", "--families", "plain,zero-width", "--report-misses", "2")
    shown = [line for line in out.splitlines() if line.startswith("plain: missed")]
    assert len(shown) == 2 and '"content": "' in out
    assert any(name in out for name in ("Orvan", "Miriam", "Pello"))
    assert "\\u200" in out or "\\u2060" in out
    assert "\u200b" not in out


def test_forget_and_retain_files_take_the_place_of_the_defaults(attack: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Where did Orvan Teldric grow up?", "answer": "a"}\n{"text": "Tea is drunk hot."}\n')
    status, out, _ = attack("half", "--families", "plain", "--forget", str(rows), "--report-misses", "5")
    assert status == 1 and "Tea is drunk hot." in out and out.count("missed:") == 1
    status, out, _ = attack("half", "--families", "plain", "--retain", str(rows), "--report-misses", "5")
    assert status == 1 and out.count("false alarm:") == 1


def test_wrappers_of_ones_own_make_families(attack: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('["Now: {prompt}", "Well, {prompt}"]')
    status, out, _ = attack("half", "--wrappers", str(tmp_path), "--families", "wrappers*", "--list")
    assert status == 0 and out.splitlines()[0].startswith("wrappers:mine ")
    (tmp_path / "broken.json").write_text("{")
    status, _, err = attack("half", "--wrappers", str(tmp_path))
    assert status == 2 and "broken.json: not JSON" in err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["half", "--families", "plain,nonsense"], "no attack family 'nonsense'"),
        (["nobody"], "no policy 'nobody'"),
        (["half", "--retain", "nowhere.jsonl", "--families", "plain"], "nowhere.jsonl"),
    ],
)
def test_what_cant_be_run_is_named(attack: Run, arguments: list[str], fault: str) -> None:
    status, _, err = attack(*arguments)
    assert status == 2 and fault in err


@pytest.mark.parametrize("argument", ["--floor=1.1", "--most-false-alarms=-1", "--budget=0", "--sample=none"])
def test_impossible_numbers_are_refused(attack: Run, argument: str) -> None:
    assert attack("half", argument)[0] == 2


def test_documents_give_passages_and_questions_that_quote_them(encoder: Encoder) -> None:
    text = "The lamp was lit at six. Nobody came down from the tower before the fog had gone, and nobody spoke."
    items = [ForgetItem("", "", text), ForgetItem("Who lit the lamp?", "Ann", "")]
    found = asking(items, encoder, Random(0))
    assert found[0] == text and found[-1] == "Who lit the lamp?"
    assert all("the fog had gone" in question for question in found[1:2])
    assert found == asking(items, encoder, Random(0))


def test_samples_are_distinct_and_words_are_ordinary() -> None:
    assert sorted(_sample(["b", "a", "b"], 10, Random(0))) == ["a", "b"]
    assert harmless_words(["The old tea, a TEA! x2y 3", "antidisestablishmentarian old"]) == ["old", "tea"]
