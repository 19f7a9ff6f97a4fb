"""Every guarded way is a valid policy, made from the one under evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from lethe.evaluation.unlearning.systems import WAYS, write
from lethe.server.policy.schema import Policy, read

BASE = """
name: base
artifact: a
mode: shadow
action: refuse
models: [one]
threshold: {miss_rate: 0.02}
penalize: {soft: 7.0, similarity: 0.4}
refuse: {message: No.}
"""
GUARDED = [key for key, way in WAYS.items() if way.kind == "gateway"]


@pytest.fixture
def base(tmp_path: Path) -> Policy:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return read(path)


@pytest.mark.parametrize("key", GUARDED)
def test_a_way_is_the_policy_with_its_own_action(base: Policy, tmp_path: Path, key: str) -> None:
    (file,) = write(base, WAYS[key], tmp_path / key).iterdir()
    made = read(file)
    assert made.action == WAYS[key].changes.get("action", "refuse")
    # Enforced, and for whatever name the upstream serves.
    assert made.mode == "enforce" and made.models is None
    penalize = base.penalize.model_copy(update=WAYS[key].changes.get("penalize", {}))
    assert (made.name, made.threshold, made.penalize) == (base.name, base.threshold, penalize)
    if made.action == "corrupt":
        assert key.endswith(made.corrupt.tokens) and key.split("-")[1] == made.corrupt.function


def test_the_papers_noise_is_on_one_coordinate(base: Policy, tmp_path: Path) -> None:
    (file,) = write(base, WAYS["corrupt-noise-content"], tmp_path / "w").iterdir()
    spec = read(file).corrupt
    assert (spec.select, spec.dims, spec.sigma) == ("first", 1, 100.0)
