"""The commands of the evaluation: a missing extra is one clear line, not a traceback."""

from __future__ import annotations

import pytest

from lethe.evaluation import cli
from lethe.server.cli.main import main


def test_installed_packages_are_accepted() -> None:
    cli.require_packages("evaluate", "json", "pathlib")


@pytest.mark.parametrize(
    "arguments",
    [["evaluate", "p"], ["tune", "p"], ["attack", "p"], ["report", "html", "e.json"]],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_extra_is_one_line_that_names_it(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda module: None)
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code not in (0, None)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "pip install 'lethe-gateway[evaluate]'" in lines[0]
