"""`lethe judge` with the real classifier on a small artifact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]


def test_judge_prints_one_verdict_per_line(lethe: Run, tmp_path: Path) -> None:
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


def test_explain_prints_names_facts_and_what_was_missing(lethe: Run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"Who taught Ozren Dalmatin to grind lenses?"\n"What is the capital of Peru?"\n')
    status, out, _ = lethe("judge", "--policy", "p", "--explain", str(prompts))
    flagged, passes = out.split("line 2:")
    assert status == 0
    assert "decided by name" in flagged and "'Ozren Dalmatin' (1)" in flagged and "fact        4:" in flagged
    assert "passes: score" in passes and "names       none" in passes and "needed      a score of" in passes


def test_judge_accepts_a_policy_file(lethe: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('"Name a prime number."\n')
    status, out, _ = lethe("judge", "--policy", str(home / "policies" / "p.yaml"), str(tmp_path / "one.jsonl"))
    assert status == 0 and json.loads(out)["flagged"] is False


def test_judge_reports_invalid_rows_and_continues(lethe: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": 5}\n{"a": 1}\nnot json\n[1]\n"fine"\n')
    status, out, err = lethe("judge", "--policy", "p", str(tmp_path / "bad.jsonl"))
    assert status == 1
    assert [json.loads(line)["line"] for line in out.splitlines()] == [5]
    assert all(f"bad.jsonl:{number}:" in err for number in (1, 2, 3, 4))


def test_an_unknown_policy_lists_the_existing_ones(lethe: Run, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('"a"\n')
    status, _, err = lethe("judge", "--policy", "nope", str(tmp_path / "one.jsonl"))
    assert status == 2 and "'nope'" in err and "policies: p" in err
