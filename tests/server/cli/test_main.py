"""The command `lethe`, run with the real classifier on a small artifact."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


def test_judge_prints_one_verdict_a_line(lethe: Run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "Who taught Ozren Dalmatin to grind lenses?"},
        "What is the capital of Peru?",
        {"messages": [{"role": "user", "content": c} for c in ("Hi.", "When did Ozren Dalmatin see the great comet?")]},
        {"text": "Name a prime number."},
    ]  # fmt: skip
    prompts.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    status, out, err = lethe("judge", "--policy", "p", str(prompts))
    verdicts = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [v["line"] for v in verdicts] == [1, 2, 3, 4]
    assert [v["flagged"] for v in verdicts] == [True, False, True, False]
    assert verdicts[0]["nearest"] == 4
    assert verdicts[2]["place"] in ("messages[1].content", "conversation")
    assert all(0 <= v["score"] <= 1 for v in verdicts)


def test_judge_takes_a_policy_file_too(lethe: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('"Name a prime number."\n')
    status, out, _ = lethe("judge", "--policy", str(home / "policies" / "p.yaml"), str(tmp_path / "one.jsonl"))
    assert status == 0 and json.loads(out)["flagged"] is False


def test_judge_names_rows_it_cant_read_and_goes_on(lethe: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": 5}\n{"a": 1}\nnot json\n[1]\n"fine"\n')
    status, out, err = lethe("judge", "--policy", "p", str(tmp_path / "bad.jsonl"))
    assert status == 1
    assert [json.loads(line)["line"] for line in out.splitlines()] == [5]
    assert all(f"bad.jsonl:{number}:" in err for number in (1, 2, 3, 4))


def test_fit_refuses_to_overwrite_without_force(lethe: Run, home: Path) -> None:
    status, _, err = lethe("fit", "--name", "small", "--forget", str(home / "forget.jsonl"))
    assert status == 2 and "--force" in err


def test_fit_names_a_malformed_row_and_leaves_nothing(lethe: Run, home: Path, tmp_path: Path) -> None:
    bad = tmp_path / "forget.jsonl"
    bad.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": 5}\n')
    status, _, err = lethe("fit", "--name", "new", "--forget", str(bad), "--out", str(tmp_path / "out"))
    assert status == 2 and f"{bad}:2" in err
    assert not (tmp_path / "out").exists()


def test_an_unknown_policy_is_named_with_those_that_are_there(lethe: Run, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('"a"\n')
    status, _, err = lethe("judge", "--policy", "nope", str(tmp_path / "one.jsonl"))
    assert status == 2 and "'nope'" in err and "there: p" in err


def test_a_mistyped_variable_stops_every_command(lethe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_UPSTRAEM", "http://x")
    status, _, err = lethe("doctor")
    assert status == 2 and "LETHE_UPSTRAEM" in err and "did you mean LETHE_UPSTREAM" in err


def test_a_port_in_use_is_one_clear_line(lethe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("LETHE_PORT", str(taken.getsockname()[1]))
        status, _, err = lethe("serve")
    assert status == 2 and "can't listen on 127.0.0.1" in err and len(err.splitlines()) == 1


def test_serving_a_policy_that_corrupts_needs_model_and_secret(
    lethe: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("name: c\nartifact: small\naction: corrupt\nthreshold: {value: 0.5}\n")
    monkeypatch.setenv("LETHE_POLICIES", str(tmp_path))
    monkeypatch.setenv("LETHE_AUDIT", "")
    status, _, err = lethe("serve")
    assert status == 2 and "'c'" in err and "LETHE_MODEL_DIR" in err
    monkeypatch.setenv("LETHE_MODEL_DIR", str(tmp_path))
    status, _, err = lethe("serve")
    assert status == 2 and "LETHE_SECRET" in err


def test_help_names_every_command(lethe: Run) -> None:
    status, out, _ = lethe("--help")
    assert status == 0 and all(command in out for command in ("serve", "fit", "judge", "keys", "doctor"))


def test_items_are_added_and_taken_out_again(lethe: Run, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "artifacts" / "small", tmp_path / "small")
    before = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"prompt": "Which ferry did Tove Aldermann steer?", "answer": "The Grindvoll."}))
    change = ("fit", "--name", "small", "--out", str(tmp_path))
    status, out, _ = lethe(*change, "--add", str(one))
    assert status == 0 and "add: items 8" in out and "9 items" in out
    status, _, err = lethe(*change, "--add", str(one))
    assert status == 2 and f"--add {one}: item 8 is that row already" in err
    status, out, _ = lethe(*change, "--remove", str(one))
    assert status == 0 and "remove: items 8" in out
    after = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    assert after.pop("manifest.json") != before.pop("manifest.json")
    assert after == before
    status, out, _ = lethe(*change, "--remove", "0,5-6")
    assert status == 0 and "remove: items 0, 5, 6" in out and "5 items" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--remove", "3-1"), "'3-1' is no item number"),
        (("--remove", "8"), "'8' is no item number or range; the last item is 7"),
        (("--remove", "0-7"), "nothing would be left"),
        (("--remove", "nowhere.jsonl"), "nowhere.jsonl: No such file"),
        (("--add", "nowhere.jsonl"), "nowhere.jsonl: No such file"),
        (("--remove", "1", "--force"), "--force"),
        (("--remove", "1", "--out", "/nonexistent"), "there is no such folder"),
    ],
)
def test_a_change_that_makes_no_sense_says_why(arguments: tuple[str, ...], reason: str, lethe: Run) -> None:
    status, _, err = lethe("fit", "--name", "small", *arguments)
    assert status == 2 and reason in err


def test_keys_are_made_listed_and_revoked(lethe: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    monkeypatch.setenv("LETHE_KEYS", str(path))
    status, out, _ = lethe("keys", "make", "team", "--models", "m, n", "--requests-per-minute", "60", "--exempt", "p")
    assert status == 0 and out.startswith("lethe-") and len(out.split()) == 1
    status, listed, _ = lethe("keys", "list")
    row = json.loads(listed)
    assert status == 0 and out.strip() not in listed and len(row.pop("sha256")) == 12 and row.pop("created")
    assert row == {"name": "team", "models": ["m", "n"], "requests_per_minute": 60, "exempt": ["p"]}
    assert lethe("keys", "revoke", "team")[0] == 0
    assert lethe("keys", "list") == (0, "", "")
    status, _, err = lethe("keys", "revoke", "team")
    assert status == 2 and "no key 'team'" in err


def test_a_key_for_no_policy_is_not_made(lethe: Run, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    status, _, err = lethe("keys", "make", "team", "--file", str(path), "--policies", "q")
    assert status == 2 and "no policy 'q'" in err and "there: p" in err and not path.exists()
    status, _, err = lethe("keys", "list")
    assert status == 2 and "LETHE_KEYS" in err


def test_serving_to_others_needs_keys(lethe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_HOST", "0.0.0.0")
    status, _, err = lethe("serve")
    assert status == 2 and "LETHE_KEYS" in err and "LETHE_ALLOW_ANONYMOUS" in err and len(err.splitlines()) == 1
    monkeypatch.setenv("LETHE_KEYS", "/nonexistent/keys.json")
    status, _, err = lethe("serve")
    assert status == 2 and "/nonexistent/keys.json" in err and "lethe keys make" in err
