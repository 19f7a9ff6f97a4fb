"""`lethe fit`: what it refuses, and changes of an artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lethe.classifier.artifact_io import load_artifact

Run = Callable[..., tuple[int, str, str]]


def test_fit_refuses_to_overwrite_without_force(lethe: Run, home: Path) -> None:
    status, _, err = lethe("fit", "--name", "small", "--forget", str(home / "forget.jsonl"))
    assert status == 2 and "--force" in err


def test_fit_names_a_malformed_row_and_leaves_nothing(lethe: Run, home: Path, tmp_path: Path) -> None:
    bad = tmp_path / "forget.jsonl"
    bad.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": 5}\n')
    status, _, err = lethe("fit", "--name", "new", "--forget", str(bad), "--out", str(tmp_path / "out"))
    assert status == 2 and f"{bad}:2" in err
    assert not (tmp_path / "out").exists()


def test_a_name_alone_is_enough_for_an_artifact(lethe: Run, tmp_path: Path) -> None:
    names = ("--subject", "Ada Example", "--alias", "A. Example", "--alias", "Lady Velsund")
    status, out, _ = lethe("fit", "--name", "ada", *names, "--out", str(tmp_path))
    assert status == 0
    understood = out.partition("understood")[2].splitlines()[1]
    assert understood.strip().startswith("9 facts about Ada Example; also known by: ")
    assert "A. Example" in understood and "Lady Velsund" in understood and understood.endswith("scope: subject")
    artifact = load_artifact(tmp_path / "ada")
    (subject,) = artifact.subjects
    assert {"Ada Example", "A. Example", "Lady Velsund"} <= {name.text for name in subject.names if name.own}
    assert {"Tell me about Ada Example.", "Tell me about Lady Velsund."} <= {item.prompt for item in artifact.items}


def test_subject_and_scope_are_for_rows_that_state_none(lethe: Run, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Where was she born?", "answer": "In Oskelund."},
        {"prompt": "Who stole the lantern?", "answer": "He did.", "subject": "Zorin Quill", "scope": "subject"},
    ]
    forget = tmp_path / "forget.jsonl"
    forget.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = ("--forget", str(forget), "--subject", "Ada Example", "--scope", "facts", "--out", str(tmp_path))
    status, out, _ = lethe("fit", "--name", "two", *options)
    assert status == 0 and "1 fact about Ada Example" in out and "1 fact about Zorin Quill" in out
    subjects = load_artifact(tmp_path / "two").subjects
    assert [(s.title, s.scope) for s in subjects] == [("Ada Example", "facts"), ("Zorin Quill", "subject")]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "one of --forget, --add, --remove and --subject is needed"),
        (("--alias", "A. Example", "--forget", "forget.jsonl"), "--alias needs --subject"),
        (("--subject", "Ada Example", "--scope", "all"), "invalid choice: 'all'"),
    ],
)
def test_a_fit_without_rows_or_subject_says_what_is_missing(
    arguments: tuple[str, ...], reason: str, lethe: Run
) -> None:
    status, _, err = lethe("fit", "--name", "new", *arguments)
    assert status == 2 and reason in err


def test_items_are_added_and_removed_again(lethe: Run, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "artifacts" / "small", tmp_path / "small")
    before = load_artifact(tmp_path / "small")
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"prompt": "Which ferry did Tove Aldermann steer?", "answer": "The Grindvoll."}))
    change = ("fit", "--name", "small", "--out", str(tmp_path))
    status, out, _ = lethe(*change, "--add", str(one))
    assert status == 0 and "add: items 8" in out and "9 items" in out
    status, _, err = lethe(*change, "--add", str(one))
    assert status == 2 and f"--add {one}: item 8 is that row already" in err
    status, out, _ = lethe(*change, "--remove", str(one))
    assert status == 0 and "remove: items 8" in out
    after = load_artifact(tmp_path / "small")
    assert (after.items, after.words) == (before.items, before.words) and after.manifest != before.manifest
    assert after.arrays.keys() == before.arrays.keys()
    assert all(np.array_equal(after.arrays[name], before.arrays[name]) for name in before.arrays)
    status, out, _ = lethe(*change, "--remove", "0,5-6")
    assert status == 0 and "remove: items 0, 5, 6" in out and "5 items" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--remove", "3-1"), "'3-1' is not an item number"),
        (("--remove", "8"), "'8' is not an item number or range; the last item is 7"),
        (("--remove", "0-7"), "nothing would be left"),
        (("--remove", "nowhere.jsonl"), "nowhere.jsonl: No such file"),
        (("--add", "nowhere.jsonl"), "nowhere.jsonl: No such file"),
        (("--remove", "1", "--force"), "--force"),
        (("--remove", "1", "--subject", "Ada Example"), "--subject, --alias and --scope"),
        (("--remove", "1", "--scope", "facts"), "--subject, --alias and --scope"),
        (("--remove", "1", "--out", "/nonexistent"), "there is no such folder"),
    ],
)
def test_an_invalid_change_says_why(arguments: tuple[str, ...], reason: str, lethe: Run) -> None:
    status, _, err = lethe("fit", "--name", "small", *arguments)
    assert status == 2 and reason in err
