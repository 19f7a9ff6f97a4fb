"""The command `lethe`, run with the real classifier on a small artifact."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


def test_a_mistyped_variable_stops_every_command(lethe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_UPSTRAEM", "http://x")
    status, _, err = lethe("doctor")
    assert status == 2 and "LETHE_UPSTRAEM" in err and "did you mean LETHE_UPSTREAM" in err


def test_a_port_in_use_is_reported_in_one_line(lethe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_listening_on_other_addresses_needs_keys(lethe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_HOST", "0.0.0.0")
    status, _, err = lethe("serve")
    assert status == 2 and "LETHE_KEYS" in err and "LETHE_ALLOW_ANONYMOUS" in err and len(err.splitlines()) == 1
    monkeypatch.setenv("LETHE_KEYS", "/nonexistent/keys.json")
    status, _, err = lethe("serve")
    assert status == 2 and "/nonexistent/keys.json" in err and "lethe keys make" in err
