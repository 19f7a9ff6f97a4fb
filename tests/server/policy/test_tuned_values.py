"""`tuned` in a policy: the artifact has a value for these settings and this model, or the start stops."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from lethe.classifier import artifact_io
from lethe.server.observability.metrics import Metrics
from lethe.server.policy import tuned_values
from lethe.server.policy.files import read_policy
from lethe.server.policy.schema import Policy, PolicyError
from lethe.server.policy_store.load import load_guard
from lethe.server.settings import Settings

NOISE = "action: corrupt\nmodels: [small]\ncorrupt: {function: noise, tokens: content, dims: 1, sigma: tuned}\n"
SOFT = "action: penalize\npenalize: {soft: tuned, similarity: tuned}\n"


def policy(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "p.yaml"
    path.write_text(f"name: p\nartifact: small\nthreshold: {{value: 0.5}}\n{text}")
    return read_policy(path)


def entry(given: Policy, values: dict[str, float], **other: Any) -> dict[str, Any]:
    """As `lethe tune` writes it."""
    filled = tuned_values.with_values(given, values)
    parts = {tuned_values.TUNABLE_PARAMETERS[name] for name in values}
    settings = {part: tuned_values.part_settings(filled, part) for part in parts}
    return {"values": values, "settings": settings, "models": ["small", "alias"], "curves": {}, **other}


def test_a_tuned_value_comes_from_the_artifact(tmp_path: Path) -> None:
    given = policy(tmp_path, NOISE)
    assert tuned_values.tuned_parameters(given) == ("sigma",)
    found = tuned_values.resolve_tuned(given, [entry(given, {"sigma": 12.5})], None)
    assert found.corrupt.sigma == 12.5
    assert found.corrupt.dims == 1 and found.hash == given.hash


def test_the_latest_matching_entry_is_used(tmp_path: Path) -> None:
    given = policy(tmp_path, NOISE)
    rows = [entry(given, {"sigma": 1.0}), entry(given, {"sigma": 2.0}), entry(given, {"sigma": 3.0}, models=["other"])]
    assert tuned_values.resolve_tuned(given, rows, None).corrupt.sigma == 2.0


def test_values_tuned_together_are_used_together(tmp_path: Path) -> None:
    given = policy(tmp_path, SOFT)
    found = tuned_values.resolve_tuned(given, [entry(given, {"soft": 7.0, "similarity": 0.4})], None)
    assert (found.penalize.soft, found.penalize.similarity) == (7.0, 0.4)
    # One of them alone: the other must be what it was tuned with.
    one = policy(tmp_path, "action: penalize\npenalize: {soft: tuned, similarity: 0.4}\n")
    assert tuned_values.resolve_tuned(one, [entry(given, {"soft": 7.0, "similarity": 0.4})], None).penalize.soft == 7.0
    other = policy(tmp_path, "action: penalize\npenalize: {soft: tuned, similarity: 0.6}\n")
    with pytest.raises(PolicyError, match=r"tuned for penalize.similarity 0.4, and this policy has 0.6"):
        tuned_values.resolve_tuned(other, [entry(given, {"soft": 7.0, "similarity": 0.4})], None)


def test_tuned_dims_are_an_integer(tmp_path: Path) -> None:
    given = policy(tmp_path, "action: corrupt\ncorrupt: {function: zero, dims: tuned}\n")
    dims = tuned_values.resolve_tuned(given, [entry(given, {"dims": 64.0})], None).corrupt.dims
    assert dims == 64 and isinstance(dims, int)


def test_a_policy_without_tuned_is_unchanged(tmp_path: Path) -> None:
    given = policy(tmp_path, "action: penalize\n")
    assert tuned_values.resolve_tuned(given, [{"nonsense": 1}], None) is given


@pytest.mark.parametrize(
    ("text", "rows", "message"),
    [
        (NOISE, [], r"policy 'p': corrupt.sigma = 'tuned': artifact 'small' holds no tuned value; run `lethe tune p`"),
        (
            SOFT,
            [{"values": {"soft": 1.0}, "settings": {}, "models": []}],
            "penalize.soft, penalize.similarity = 'tuned'",
        ),
        (NOISE, [{"values": {"sigma": "much"}, "settings": {}, "models": []}], "manifest.json: tuned.values.sigma"),
        (NOISE, [{"values": {"sigma": -3.0}, "settings": {}, "models": []}], "corrupt with {'sigma': -3.0}"),
    ],
)
def test_a_missing_or_invalid_entry_is_an_error(
    tmp_path: Path, text: str, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        tuned_values.resolve_tuned(policy(tmp_path, text), rows, None)


def test_another_function_or_model_is_an_error(tmp_path: Path) -> None:
    row = entry(policy(tmp_path, NOISE), {"sigma": 12.5})
    for change, message in (
        (("noise", "set-noise"), "tuned for corrupt.function 'noise', and this policy has 'set-noise'"),
        (("content", "evidence"), "tuned for corrupt.tokens 'content', and this policy has 'evidence'"),
        (("dims: 1", "dims: 2"), "tuned for corrupt.dims 1, and this policy has 2"),
        (("[small]", "[large]"), "tuned for the model small, alias, and not for large"),
    ):
        with pytest.raises(PolicyError, match=message):
            tuned_values.resolve_tuned(policy(tmp_path, NOISE.replace(*change)), [row], None)
    assert (
        tuned_values.resolve_tuned(policy(tmp_path, NOISE.replace("[small]", "[alias]")), [row], None).corrupt.sigma
        == 12.5
    )


def test_another_model_folder_is_an_error(tmp_path: Path) -> None:
    given = policy(tmp_path, NOISE)
    for name, weights in (("one", b"1"), ("two", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    row = entry(given, {"sigma": 12.5}, fingerprint=tuned_values.model_fingerprint(tmp_path / "one"))
    assert tuned_values.resolve_tuned(given, [row], tmp_path / "one").corrupt.sigma == 12.5
    with pytest.raises(PolicyError, match="another model than the one in LETHE_MODEL_DIR"):
        tuned_values.resolve_tuned(given, [row], tmp_path / "two")


def test_a_guard_starts_only_with_a_tuned_value(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "artifacts", tmp_path / "artifacts")
    (tmp_path / "policies").mkdir()
    given = policy(tmp_path / "policies", SOFT)
    settings = Settings(policies=tmp_path / "policies", artifacts=tmp_path / "artifacts")
    with pytest.raises(PolicyError, match="holds no tuned value"):
        load_guard(settings, Metrics())
    folder = tmp_path / "artifacts" / "small"
    made = artifact_io.load_artifact(folder)
    rows = [entry(given, {"soft": 7.0, "similarity": 0.4})]
    artifact_io.save_artifact(
        dataclasses.replace(made, manifest=dataclasses.replace(made.manifest, tuned=rows)), folder
    )
    found, _ = load_guard(settings, Metrics()).policies["p"]
    assert (found.penalize.soft, found.penalize.similarity) == (7.0, 0.4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("action: corrupt\ncorrupt: {strength: much}\n", "policy 'p': corrupt.strength = 'much': "),
        ("action: corrupt\ncorrupt: {strength: 3}\n", "policy 'p': corrupt.strength = 3: .*less than or equal to 2"),
        ("action: corrupt\ncorrupt: {sigma: tuned}\n", "'sigma'.*'tuned'.* no meaning for function 'decoy'"),
        ("action: corrupt\ncorrupt: {function: noise}\n", "needs a key 'sigma'"),
        ("action: penalize\npenalize: {items: tuned}\n", "penalize.items = 'tuned'"),
    ],
)
def test_errors_of_tunable_numbers_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        policy(tmp_path, text)
