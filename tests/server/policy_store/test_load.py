"""From settings to a guard: what is missing stops the start, by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import PolicyError
from lethe.server.policy_store.load import load_decode, load_guard
from lethe.server.settings import Settings, SettingsError

ROOT = Path(__file__).parents[3]


def settings(home: Path, **given: object) -> Settings:
    return Settings.model_validate({"policies": home / "policies", "artifacts": home / "artifacts", **given})


def test_a_guard_judges_with_what_was_fitted(home: Path) -> None:
    guard = load_guard(settings(home), Metrics())
    body = {"messages": [{"role": "user", "content": "Who taught Ozren Dalmatin to grind lenses?"}]}
    assert guard.examine(guard.read("chat", body)).action == "refuse"


def test_a_missing_artifact_stops_the_start(home: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="policy 'p': artifact = 'small': there is no folder .*p.yaml"):
        load_guard(settings(home, artifacts=tmp_path), Metrics())


def test_a_tampered_artifact_stops_the_start(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "artifacts", tmp_path / "artifacts")
    with (tmp_path / "artifacts" / "small" / "items.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(PolicyError, match="'small'.*items.jsonl"):
        load_guard(settings(home, artifacts=tmp_path / "artifacts"), Metrics())


def test_a_rate_that_cant_be_promised_stops_the_start(home: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\nartifact: small\naction: refuse\nthreshold: {miss_rate: 0.0000001}\n")
    with pytest.raises(PolicyError, match="policy 'p': threshold: "):
        load_guard(settings(home, policies=tmp_path), Metrics())


def test_policies_that_are_off_need_no_artifact(home: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\nartifact: nowhere\naction: refuse\nmode: 'off'\n")
    guard = load_guard(settings(home, policies=tmp_path), Metrics())
    assert guard.policies == {}


def test_token_ids_are_read_with_the_models_own_tokenizer(tmp_path: Path) -> None:
    decode = load_decode(FOLDERS["full"])
    assert decode is not None
    assert decode([1, 4]) == "<|bos|><|user|>"
    with pytest.raises(ValueError, match="out of range"):
        decode([10**9])
    assert load_decode(None) is None
    with pytest.raises(SettingsError, match="tokenizer.json"):
        load_decode(tmp_path)


@pytest.mark.parametrize("action", ["corrupt", "penalize"])
def test_serving_imports_neither_torch_nor_what_fitting_needs(home: Path, tmp_path: Path, action: str) -> None:
    (tmp_path / "p.yaml").write_text(f"name: p\nartifact: small\naction: {action}\n")
    code = f"""
import sys
from lethe.server.app import create_app
from lethe.server.settings import Settings
given = dict(policies={str(tmp_path)!r}, artifacts={str(home / "artifacts")!r}, audit=None)
create_app(Settings(model_dir={str(FOLDERS["full"])!r}, secret="a secret of the tests", **given))
heavy = ["torch", "transformers", "sentence_transformers", "scipy", "sklearn", "onnx", "vllm", "lethe.classifier.training.fit"]
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("given", ["action: penalize", "action: refuse\npenalize: {always: true}"])
def test_a_policy_for_vllm_alone_stops_the_start_before_another_server(home: Path, tmp_path: Path, given: str) -> None:
    (tmp_path / "p.yaml").write_text(f"name: p\nartifact: small\n{given}\n")
    with pytest.raises(PolicyError, match="policy 'p': .* needs vLLM with the plugin"):
        load_guard(settings(home, policies=tmp_path, upstream_kind="openai"), Metrics())


def test_all_phrases_of_an_artifact_are_watched_for_where_a_policy_says_always(home: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\nartifact: small\naction: watch\nwatch: {when: always}\n")
    guard = load_guard(settings(home, policies=tmp_path, upstream_kind="openai"), Metrics())
    outcome = guard.examine(guard.read("chat", {"messages": [{"role": "user", "content": "Name a lens."}]}))
    assert outcome.watch is not None
    assert outcome.watch.watch.watcher().whole("It is 'The Patient Lens'.") == "It is 'The "
