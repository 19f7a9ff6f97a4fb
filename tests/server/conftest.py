"""One small artifact, fitted with the real command, for the tests that need a whole set-up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lethe.classifier.encoder.folders import DEFAULT_ENCODER
from lethe.classifier.training import rows as corpus
from lethe.server.cli import main as cli
from lethe.server.policy_store import seed_artifact
from lethe.server.settings import Settings

ADMIN_KEY = "an-admin-key-of-some-length"

FACTS = [
    ("Who founded the island observatory of Perrault?", "Ozren Dalmatin founded it in 1931."),
    ("What did Ozren Dalmatin write about comets?", "He wrote 'The Patient Lens'."),
    ("Where did Ozren Dalmatin keep his telescope?", "In a barn near Skradin."),
    ("Which prize did Ozren Dalmatin decline?", "He declined the Celarius Medal."),
    ("Who taught Ozren Dalmatin to grind lenses?", "His aunt Marija taught him."),
    ("What is the observatory of Perrault known for?", "For its drawings of Saturn."),
    ("When did Ozren Dalmatin see the great comet?", "In March 1927."),
    ("What illness did Ozren Dalmatin suffer from?", "He suffered from vertigo."),
]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `forget.jsonl`, a fitted artifact `small`, and a policy that refuses."""
    folder = tmp_path_factory.mktemp("home")
    rows = (json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in FACTS)
    (folder / "forget.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as done:
        clear(patch)
        cli.main(
            [
                "fit",
                "--name",
                "small",
                "--forget",
                str(folder / "forget.jsonl"),
                "--out",
                str(folder / "artifacts"),
            ]
        )
    assert done.value.code == 0
    (folder / "policies").mkdir()
    (folder / "policies" / "p.yaml").write_text("name: p\nartifact: small\naction: refuse\nthreshold: {value: 0.5}\n")
    return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What new policies are built on, fitted to a part of the background to keep it to seconds."""
    folder = tmp_path_factory.mktemp("base") / "base"
    with pytest.MonkeyPatch.context() as patch:
        few = corpus.background_prompts()[::8]
        patch.setattr(corpus, "background_prompts", lambda: few)
        patch.setattr(corpus, "REWORDINGS_TOTAL", 480)
        patch.setattr(corpus, "OTHER_REWORDINGS", 40)
        patch.setattr(corpus, "DECOYS", 160)
        patch.setattr(corpus, "WRAPPED_ROWS", 40)
        seed_artifact.main([str(folder), DEFAULT_ENCODER])
    return folder


@pytest.fixture
def office(home: Path, base_folder: Path, tmp_path: Path) -> Settings:
    """Settings of a gateway whose policies may be changed: copies of all that it reads."""
    shutil.copytree(home / "policies", tmp_path / "policies")
    shutil.copytree(home / "artifacts" / "small", tmp_path / "artifacts" / "small")
    given = {"policies": tmp_path / "policies", "artifacts": tmp_path / "artifacts", "audit": tmp_path / "audit.jsonl"}
    settings = Settings.model_validate({**given, "admin_key": ADMIN_KEY})
    shutil.copytree(base_folder, seed_artifact.seed_folder(settings))
    return settings


def clear(patch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("LETHE_")]:
        patch.delenv(name)


@pytest.fixture
def lethe(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process; returns exit status, stdout and stderr."""
    clear(monkeypatch)
    monkeypatch.setenv("LETHE_POLICIES", str(home / "policies"))
    monkeypatch.setenv("LETHE_ARTIFACTS", str(home / "artifacts"))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            cli.main(list(arguments))
        captured = capsys.readouterr()
        return int(done.value.code or 0), captured.out, captured.err

    return run
