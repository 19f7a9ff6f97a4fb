"""Every guarded system has a valid policy, derived from the one under evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from lethe.evaluation.unlearning.systems import SYSTEMS, write_policy_folder
from lethe.server.policy.files import read_policy
from lethe.server.policy.schema import Policy

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
GUARDED = [key for key, system in SYSTEMS.items() if system.kind == "gateway"]


@pytest.fixture
def base(tmp_path: Path) -> Policy:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return read_policy(path)


@pytest.mark.parametrize("key", GUARDED)
def test_a_system_is_the_policy_with_its_own_action(base: Policy, tmp_path: Path, key: str) -> None:
    (file,) = write_policy_folder(base, SYSTEMS[key], tmp_path / key).iterdir()
    policy = read_policy(file)
    assert policy.action == SYSTEMS[key].changes.get("action", "refuse")
    # Enforced, and for every model name.
    assert policy.mode == "enforce" and policy.models is None
    penalize = base.penalize.model_copy(update=SYSTEMS[key].changes.get("penalize", {}))
    assert (policy.name, policy.threshold, policy.penalize) == (base.name, base.threshold, penalize)
    if policy.action == "corrupt":
        assert key.endswith(policy.corrupt.tokens) and key.split("-")[1] == policy.corrupt.function


def test_paper_noise_is_on_one_coordinate(base: Policy, tmp_path: Path) -> None:
    (file,) = write_policy_folder(base, SYSTEMS["corrupt-noise-content"], tmp_path / "w").iterdir()
    spec = read_policy(file).corrupt
    assert (spec.select, spec.dims, spec.sigma) == ("first", 1, 100.0)
