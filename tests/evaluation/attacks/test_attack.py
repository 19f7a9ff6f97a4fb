"""The command, from arguments to exit status, on a small fitted artifact."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from lethe.classifier.artifact import Artifact, ForgetItem
from lethe.classifier.artifact_io import save_artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.evaluation.attacks.attack import attack_prompts, harmless_words, sample_prompts
from lethe.server.cli import main as cli

Run = Callable[..., tuple[int, str, str]]

FILLER = "The bus leaves at nine and comes back late.\nBread is cheaper in the evening.\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, nameless: Artifact) -> Path:
    """A folder with an artifact without names, policies with three thresholds, and ordinary text."""
    folder = tmp_path_factory.mktemp("attack")
    save_artifact(nameless, folder / "artifacts" / "keepers")
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
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["passed"] and report["failed"] == {} and set(report["attack"]) == {"plain", "in-name"}
    assert report["attack"]["plain"]["recall"]["value"] == 1.0 and report["attack"]["plain"]["recall"]["n"] == 5
    assert report["meta"]["policy"] == "half" and report["meta"]["threshold"] == 0.5
    assert [line.split()[0] for line in out.splitlines()] == ["family", "plain", "in-name"]


def test_recall_below_the_floor_fails_the_gate(attack: Run, tmp_path: Path) -> None:
    status, out, _ = attack("none", "--families", "plain", "--json", str(tmp_path / "a.json"))
    assert status == 1 and "recall below 98.0%" in out
    report = json.loads((tmp_path / "a.json").read_text())
    assert not report["passed"] and report["failed"] == {"plain": ["recall below 98.0%"]}
    assert attack("none", "--families", "plain", "--min-recall", "0")[0] == 0


def test_false_alarms_above_the_limit_fail_the_gate(attack: Run) -> None:
    status, out, _ = attack("all", "--families", "plain")
    assert status == 1 and "false alarms above 2.0%" in out and "recall below" not in out
    assert attack("all", "--families", "plain", "--max-false-alarms", "1")[0] == 0


def test_the_same_seed_gives_the_same_figures(attack: Run, tmp_path: Path) -> None:
    figures = []
    for seed in ("3", "3", "4"):
        attack("half", "--families", "typos,mix,suffix-search-scores", "--budget", "9", "--seed", seed,
               "--json", str(tmp_path / "a.json"))  # fmt: skip
        report = json.loads((tmp_path / "a.json").read_text())["attack"]
        for family in report.values():
            del family["slowest_ms"]
        figures.append(report)
    assert figures[0] == figures[1] != figures[2]


def test_searches_start_from_flagged_prompts_and_keep_their_budget(attack: Run, tmp_path: Path) -> None:
    json_file = tmp_path / "a.json"
    attack("half", "--families", "suffix-*", "--full", "--budget", "7", "--json", str(json_file))
    report = json.loads(json_file.read_text())["attack"]
    assert set(report) == {"suffix-search-scores", "suffix-search-decisions"}
    for family in report.values():
        assert family["recall"]["n"] == 5 and 1 < family["mean_queries"] <= 7 and "false_alarms" not in family
    attack("none", "--families", "suffix-*", "--full", "--json", str(json_file))
    assert json.loads(json_file.read_text())["attack"] == {}


def test_misses_are_printed_on_request_and_never_written(attack: Run, home: Path, tmp_path: Path) -> None:
    _, out, _ = attack("none", "--families", "plain", "--json", str(tmp_path / "a.json"))
    assert "Orvan" not in out + (tmp_path / "a.json").read_text()
    _, out, _ = attack("none", "--families", "plain,zero-width", "--report-misses", "2")
    misses = [line for line in out.splitlines() if line.startswith("plain: missed")]
    assert len(misses) == 2 and '"content": "' in out
    assert any(name in out for name in ("Orvan", "Miriam", "Pello"))
    assert "\\u200" in out or "\\u2060" in out
    assert "\u200b" not in out


def test_forget_and_retain_files_replace_the_defaults(attack: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Where did Orvan Teldric grow up?", "answer": "a"}\n{"text": "Tea is drunk hot."}\n')
    status, out, _ = attack("half", "--families", "plain", "--forget", str(rows), "--report-misses", "5")
    assert status == 1 and "Tea is drunk hot." in out and out.count("missed:") == 1
    status, out, _ = attack("half", "--families", "plain", "--retain", str(rows), "--report-misses", "5")
    assert status == 1 and out.count("false alarm:") == 1


def test_a_folder_of_templates_makes_families(attack: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('["Now: {prompt}", "Well, {prompt}"]')
    status, out, _ = attack("half", "--wrappers", str(tmp_path), "--families", "wrappers*", "--list")
    assert status == 0 and out.splitlines()[0].startswith("wrappers:mine ")
    (tmp_path / "broken.json").write_text("{")
    status, _, err = attack("half", "--wrappers", str(tmp_path))
    assert status == 2 and "broken.json: invalid JSON" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["half", "--families", "plain,nonsense"], "no attack family 'nonsense'"),
        (["nobody"], "no policy 'nobody'"),
        (["half", "--retain", "nowhere.jsonl", "--families", "plain"], "nowhere.jsonl"),
    ],
)
def test_bad_arguments_are_reported(attack: Run, arguments: list[str], message: str) -> None:
    status, _, err = attack(*arguments)
    assert status == 2 and message in err


@pytest.mark.parametrize("argument", ["--min-recall=1.1", "--max-false-alarms=-1", "--budget=0", "--sample=none"])
def test_numbers_out_of_range_are_refused(attack: Run, argument: str) -> None:
    assert attack("half", argument)[0] == 2


def test_documents_become_passages_and_questions_that_quote_them(encoder: Encoder) -> None:
    text = "The lamp was lit at six. Nobody came down from the tower before the fog had gone, and nobody spoke."
    items = [ForgetItem("", "", text), ForgetItem("Who lit the lamp?", "Ann", "")]
    prompts = attack_prompts(items, encoder, Random(0))
    assert prompts[0] == text and prompts[-1] == "Who lit the lamp?"
    assert all("the fog had gone" in question for question in prompts[1:2])
    assert prompts == attack_prompts(items, encoder, Random(0))


def test_samples_are_distinct_and_words_are_lower_case() -> None:
    assert sorted(sample_prompts(["b", "a", "b"], 10, Random(0))) == ["a", "b"]
    assert harmless_words(["The old tea, a TEA! x2y 3", "antidisestablishmentarian old"]) == ["old", "tea"]
