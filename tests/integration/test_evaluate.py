"""`lethe evaluate` end to end, and its offline scores against the real vLLM's log-probabilities."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.serving import clean_env
from lethe.evaluation.unlearning import systems, tofu
from lethe.evaluation.unlearning.likelihood import LikelihoodModel, ScoringJob
from lethe.evaluation.unlearning.offline_guard import OfflineGuard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.files import read_policy
from lethe.server.policy_store.load import load_guard
from lethe.server.settings import Settings

POLICY = demo.ROOT / "policies" / "demo" / "penalize.yaml"
QUESTIONS = [tofu.forget_facts()[i].question for i in (5, 112, 303)]


@pytest.fixture(scope="module")
def artifacts() -> Path:
    demo.prepare_artifact()
    return demo.ARTIFACTS


def offline_guard(key: str, artifacts: Path, folder: Path) -> OfflineGuard:
    system = systems.SYSTEMS[key]
    if system.kind != "gateway":
        return OfflineGuard(None, None)
    policies = systems.write_policy_folder(read_policy(POLICY), system, folder / key)
    settings = Settings.model_validate(
        {"policies": policies, "artifacts": artifacts, "model_dir": FOLDERS["full"], "secret": demo.DEMO_SECRET}
    )
    return OfflineGuard(load_guard(settings, Metrics()), None)


@pytest.mark.parametrize("key", ["unguarded", "corrupt-decoy-identifying", "penalize", "both"])
def test_offline_scores_match_what_vllm_samples_with(key: str, artifacts: Path, tmp_path: Path, vllm_url: str) -> None:
    """Each token of a greedy answer to the gateway's own body is the most likely one offline too.

    vLLM computes in bfloat16 and reports log-probabilities from before a penalty, so those are compared without one.
    """
    model = LikelihoodModel(FOLDERS["full"], verbatim=artifacts)
    guarded = offline_guard(key, artifacts, tmp_path)
    for question in QUESTIONS:
        body = guarded.upstream_body(question)
        request: dict[str, Any] = {
            **body, "model": "demo", "temperature": 0, "max_tokens": 24, "logprobs": True,
            "return_tokens_as_token_ids": True,
        }  # fmt: skip
        headers = {"content-type": "application/json"}
        response = httpx.post(
            f"{vllm_url}/v1/chat/completions", content=orjson.dumps(request), headers=headers, timeout=120
        )
        tokens = response.raise_for_status().json()["choices"][0]["logprobs"]["content"]
        ids = tuple(int(token["token"].removeprefix("token_id:")) for token in tokens)
        reported = np.array([token["logprob"] for token in tokens])
        prompt = model.prompt(body)
        (scores,) = model.score([ScoringJob(prompt, ids)])
        # Where two tokens are about equally likely, rounding may choose the other one.
        assert scores.hits.mean() > 0.9, question
        assert np.isfinite(scores.log_probs).all(), "vLLM answered with a token that is banned offline"
        (raw,) = model.score([ScoringJob(type(prompt)(prompt.rows, None), ids)])
        assert np.abs(raw.log_probs - reported).max() < 0.35, question


def test_a_small_evaluation_end_to_end(artifacts: Path, tmp_path: Path, vllm_url: str) -> None:
    """Three systems over a few questions; a second run reads every answer from the work folder."""
    output = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "lethe.server.cli.main",
        "evaluate",
        str(POLICY),
        "--upstream",
        vllm_url,
        "--thin",
        "66",
    ]
    command += ["--systems", "unguarded,corrupt-decoy-identifying,penalize", "--seeds", "0", "--samples", "1"]
    command += ["--rewordings", "1", "--json", str(output), "--work", str(tmp_path / "work")]
    env = {
        **clean_env(), "LETHE_ARTIFACTS": str(artifacts), "LETHE_MODEL_DIR": str(FOLDERS["full"]),
        "LETHE_SECRET": demo.DEMO_SECRET, "NO_PROXY": "127.0.0.1,localhost",
    }  # fmt: skip
    first = subprocess.run(command, cwd=demo.ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert first.returncode == 0, first.stderr[-2000:]
    report = json.loads(output.read_text())
    unguarded, corrupt, penalize = (way["values"] for way in report["ways"])
    # The demo model has memorised the answers, and no guarded system repeats them.
    assert unguarded["forget_rouge"]["value"] > 0.9 > 0.7 > corrupt["forget_rouge"]["value"]
    assert penalize["forget_rouge"]["value"] < unguarded["forget_rouge"]["value"]
    assert unguarded["forget_probability"]["value"] > 0.9 > penalize["forget_probability"]["value"]
    assert report["detection"]["sets"]["forget"]["flagged"]["value"] >= 0.8
    assert "ROUGE-L recall" in first.stdout
    again = subprocess.run(
        [*command, "--work", str(tmp_path / "work")],
        cwd=demo.ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert again.returncode == 0 and "gateway: ready" not in again.stderr
    assert json.loads(output.read_text())["ways"] == report["ways"]
