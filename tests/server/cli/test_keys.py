"""`lethe keys`: create, list and revoke."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


def test_keys_are_created_listed_and_revoked(lethe: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_a_key_for_an_unknown_policy_is_not_created(lethe: Run, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    status, _, err = lethe("keys", "make", "team", "--file", str(path), "--policies", "q")
    assert status == 2 and "no policy 'q'" in err and "policies: p" in err and not path.exists()
    status, _, err = lethe("keys", "list")
    assert status == 2 and "LETHE_KEYS" in err
