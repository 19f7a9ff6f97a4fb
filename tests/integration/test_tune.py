"""`lethe tune` against the real vLLM: evidence in the artifact, plot and log beside it, a policy that says tuned."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lethe.classifier import artifact_io
from lethe.evaluation.demo import demo
from lethe.server.cli import main as cli
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import PolicyError
from lethe.server.policy_store.load import load_guard
from lethe.server.settings import read_settings

POLICY = """name: noisy
artifact: tofu-forget10
action: corrupt
models: [demo-corrupt]
corrupt: {function: noise, tokens: content, dims: 1, sigma: tuned}
"""
OPTIONS = ("--budget", "4", "--prompts", "8", "--max-tokens", "48")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: Path) -> Path:
    demo.prepare_artifact()
    shutil.copytree(demo.ARTIFACTS / demo.ARTIFACT, tmp_path / "artifacts" / demo.ARTIFACT)
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "noisy.yaml").write_text(POLICY)
    for name, value in (
        ("POLICIES", tmp_path / "policies"),
        ("ARTIFACTS", tmp_path / "artifacts"),
        ("MODEL_DIR", demo_model),
        ("SECRET", demo.DEMO_SECRET),
    ):
        monkeypatch.setenv(f"LETHE_{name}", str(value))
    return tmp_path


def tune(*options: str) -> int:
    with pytest.raises(SystemExit) as done:
        cli.main(["tune", "noisy", *options, *OPTIONS])
    return int(done.value.code or 0)


def test_sigma_is_tuned_and_used(home: Path, vllm_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PolicyError, match="corrupt.sigma = 'tuned': artifact 'tofu-forget10' holds no tuned value"):
        load_guard(read_settings(), Metrics())
    assert tune("--upstream", vllm_url) == 0
    folder = home / "artifacts" / demo.ARTIFACT
    (entry,) = artifact_io.load_artifact(folder).manifest.tuned
    sigma = entry["values"]["sigma"]
    curve = entry["curves"]["sigma"]
    assert entry["evaluations"] == len(curve) == 4
    # The model answers by heart under no noise to speak of, and can't under a lot.
    assert curve[0]["x"] == 0.1 and curve[0]["metric"] > 0.9
    assert sigma in [point["x"] for point in curve] and sigma > 1
    best = min(curve, key=lambda point: point["objective"])
    assert (best["x"], best["objective"]) == (sigma, entry["tuned_on"]["objective"])
    assert set(entry["models"]) == set(demo.WAYS.values())
    report = entry["reported_on"]
    assert report["prompts"] == 8 and report["answers"]["rouge_l"] < report["unguarded"]["rouge_l"] - 0.3
    assert f"chosen: sigma {sigma:g}" in capsys.readouterr().out

    guard = load_guard(read_settings(), Metrics())
    assert guard.policies["noisy"][0].corrupt.sigma == sigma
    assert (folder.parent / f"{demo.ARTIFACT}.tune-sigma.svg").read_text().startswith("<svg ")

    log = folder.parent / f"{demo.ARTIFACT}.tune.jsonl"
    lines = log.read_text()
    assert len(lines.splitlines()) == 4 and "Taipei" not in lines
    assert tune("--upstream", vllm_url) == 0
    assert log.read_text() == lines and len(artifact_io.load_artifact(folder).manifest.tuned) == 1


def test_a_server_that_is_not_there_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune("--upstream", "http://127.0.0.1:9") == 2
    assert "lethe tune: http://127.0.0.1:9: cannot connect to upstream" in capsys.readouterr().err
