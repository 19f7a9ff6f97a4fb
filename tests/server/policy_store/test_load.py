"""Loading a guard from the settings: a missing or invalid part stops the start and is named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lethe.corruption.phrases.stream_filter import AnswerFilter
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import PolicyError
from lethe.server.policy_store.load import load_corruptor, load_decode, load_guard
from lethe.server.settings import Settings, SettingsError
from lethe.server.upstream.capabilities import Capabilities
from tests.server.fakes import policy

ROOT = Path(__file__).parents[3]
MODEL = {"model_dir": FOLDERS["full"], "secret": "a secret of the tests"}


def settings(home: Path, **given: object) -> Settings:
    return Settings.model_validate({"policies": home / "policies", "artifacts": home / "artifacts", **given})


def test_a_guard_judges_with_the_fitted_artifact(home: Path) -> None:
    guard = load_guard(settings(home), Metrics())
    body = {"messages": [{"role": "user", "content": "Who taught Ozren Dalmatin to grind lenses?"}]}
    assert guard.decide(guard.parse("chat", body), Capabilities()).action == "refuse"


def test_a_missing_artifact_stops_the_start(home: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="policy 'p': artifact = 'small': there is no folder .*p.yaml"):
        load_guard(settings(home, artifacts=tmp_path), Metrics())


def test_a_tampered_artifact_stops_the_start(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "artifacts", tmp_path / "artifacts")
    with (tmp_path / "artifacts" / "small" / "items.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(PolicyError, match="'small'.*items.jsonl"):
        load_guard(settings(home, artifacts=tmp_path / "artifacts"), Metrics())


def test_an_unattainable_miss_rate_stops_the_start(home: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\nartifact: small\naction: refuse\nthreshold: {miss_rate: 0.0000001}\n")
    with pytest.raises(PolicyError, match="policy 'p': threshold: "):
        load_guard(settings(home, policies=tmp_path), Metrics())


def test_policies_that_are_off_need_no_artifact(home: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\nartifact: nowhere\naction: refuse\nmode: 'off'\n")
    guard = load_guard(settings(home, policies=tmp_path), Metrics())
    assert guard.policies == {}


def test_token_ids_are_decoded_with_the_models_tokenizer(tmp_path: Path) -> None:
    decode = load_decode(FOLDERS["full"])
    assert decode is not None
    assert decode([1, 4]) == "<|bos|><|user|>"
    with pytest.raises(ValueError, match="out of range"):
        decode([10**9])
    assert load_decode(None) is None
    with pytest.raises(SettingsError, match="tokenizer.json"):
        load_decode(tmp_path)


def test_the_chat_template_setting_replaces_the_models_template(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    numbers_of_tokens = []
    options: list[dict[str, Any]] = [{}, {"chat_template": template, "chat_template_content_format": "string"}]
    for given in options:
        corruptor = load_corruptor(Settings.model_validate(MODEL | given), (policy(action="corrupt"),))
        assert corruptor is not None
        numbers_of_tokens.append(len(corruptor.prompt_tokenizer.chat_ids(body)))
    assert numbers_of_tokens[1] < numbers_of_tokens[0]
    missing = Settings.model_validate(MODEL | {"chat_template": tmp_path / "none"})
    with pytest.raises(SettingsError, match="LETHE_CHAT_TEMPLATE"):
        load_corruptor(missing, (policy(action="corrupt"),))


@pytest.mark.parametrize("action", ["corrupt", "penalize"])
def test_serving_imports_no_packages_for_fitting(home: Path, tmp_path: Path, action: str) -> None:
    (tmp_path / "p.yaml").write_text(f"name: p\nartifact: small\naction: {action}\n")
    code = f"""
import sys
from lethe.server.app import create_app
from lethe.server.settings import Settings
given = dict(policies={str(tmp_path)!r}, artifacts={str(home / "artifacts")!r}, audit=None)
create_app(Settings(model_dir={str(FOLDERS["full"])!r}, secret="a secret of the tests", **given))
heavy = ["torch", "transformers", "sentence_transformers", "scipy", "sklearn", "onnx", "vllm"]
heavy += ["lethe.classifier.training.fit"]
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("given", ["action: penalize", "action: refuse\npenalize: {always: true}"])
def test_a_policy_that_needs_vllm_is_refused_for_other_servers(home: Path, tmp_path: Path, given: str) -> None:
    (tmp_path / "p.yaml").write_text(f"name: p\nartifact: small\n{given}\n")
    with pytest.raises(PolicyError, match="policy 'p': .* needs vLLM with the plugin"):
        load_guard(settings(home, policies=tmp_path, upstream_kind="openai"), Metrics())


def test_watch_always_filters_all_phrases_of_the_artifact(home: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\nartifact: small\naction: watch\nwatch: {when: always}\n")
    guard = load_guard(settings(home, policies=tmp_path, upstream_kind="openai"), Metrics())
    outcome = guard.decide(
        guard.parse("chat", {"messages": [{"role": "user", "content": "Name a lens."}]}), Capabilities()
    )
    assert outcome.refusal is None
    rules = AnswerFilter(entry.rule for entry in outcome.result.plan.filter_rules)  # type: ignore[union-attr]
    assert rules.new_matcher().whole("It is 'The Patient Lens'.") == "It is '"
