"""`lethe doctor` in front of the real vLLM, and what it says of a set-up that is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lethe.evaluation.demo import demo
from lethe.evaluation.serving import free_port


@pytest.fixture
def environment(vllm_url: str, tmp_path: Path) -> dict[str, str]:
    demo.prepare_artifact()
    port = int(vllm_url.rsplit(":", 1)[1])
    return demo.gateway_env(8080, port, demo.ROOT / "policies" / "demo", tmp_path / "audit.jsonl")


def doctor(environment: dict[str, str]) -> tuple[int, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
    done = subprocess.run(
        [sys.executable, "-m", "lethe.server.cli.main", "doctor"],
        cwd=demo.ROOT, env={**clean, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_doctor_approves_a_good_set_up(environment: dict[str, str]) -> None:
    status, out = doctor(environment)
    assert status == 0, out
    for part in ("policy demo-corrupt: enforce corrupt, 400 forget items", "tokenizer in", "embedding table: 4096 rows",
                 "serves demo", "vLLM version 0.32.0", "plugin works", "parity of clean embeddings",
                 "everything is fine"):  # fmt: skip
        assert part in out, out
    assert "WRONG" not in out


def test_doctor_says_what_is_wrong_and_how_to_fix_it(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\nartifact: nowhere\naction: penalize\n")
    status, out = doctor(
        {
            **environment,
            "LETHE_POLICIES": str(tmp_path),
            "LETHE_MODEL_DIR": str(tmp_path),
            "LETHE_UPSTREAM": f"http://127.0.0.1:{free_port()}",
        }
    )
    assert status == 1
    assert "'nowhere': there is no folder" in out and "lethe fit" in out
    assert "tokenizer.json" in out and "LETHE_MODEL_DIR" in out
    assert "cannot connect to upstream" in out and "start vLLM" in out
    assert "to fix" in out
