"""The arguments of `lethe tune`. With a real model: tests/integration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "21"], r"--budget 21 is not in \[4, 20\]"),
        (["--grid", "2"], "--grid 2: a grid has at least 4 points"),
        (["--parameter", "soft,similarity", "--budget", "7"], "--budget 7 is too small for soft, similarity"),
    ],
)
def test_invalid_options_are_refused(
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
