"""CorruptSpec: valid options, and errors that name key and value."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from lethe.corruption.spec import CorruptSpec


def test_the_default_is_a_decoy_on_the_evidence() -> None:
    spec = CorruptSpec()
    assert (spec.function, spec.tokens, spec.strength) == ("decoy", "evidence", 1.0)


@pytest.mark.parametrize(
    "given",
    [
        {"function": "noise", "sigma": 20, "dims": 1, "tokens": "content"},
        {"function": "noise", "sigma": 1e6, "sigma_unit": "absolute", "tokens": "all-but-last"},
        {"function": "set-noise", "sigma": 0.0, "select": "random", "dims": 3},
        {"function": "zero", "select": "top", "dims": 670},
        {"function": "flip"},
        {"function": "decoy", "strength": 0.7},
    ],
)
def test_valid_specs_load(given: dict[str, Any]) -> None:
    spec = CorruptSpec.model_validate(given)
    assert spec.model_dump(exclude_unset=True) == given


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"function": "shuffle"}, ["function", "shuffle"]),
        ({"function": "noise"}, ["noise", "'sigma'"]),
        ({"function": "noise", "sigma": -1}, ["sigma", "-1"]),
        ({"function": "noise", "sigma": float("nan")}, ["sigma", "nan"]),
        ({"function": "noise", "sigma": float("inf")}, ["sigma", "inf"]),
        ({"function": "noise", "sigma": 1, "dims": 0}, ["dims", "0"]),
        ({"function": "noise", "sigma": 1, "dims": 1.5}, ["dims", "1.5"]),
        ({"function": "noise", "sigma": 1, "dims": True}, ["dims", "True"]),
        ({"function": "noise", "sigma": 1, "strength": 0.5}, ["'strength'", "0.5", "noise"]),
        ({"function": "zero", "sigma": 1}, ["'sigma'", "1.0", "zero"]),
        ({"function": "decoy", "dims": 4}, ["'dims'", "4", "decoy"]),
        ({"strength": 0}, ["strength", "0"]),
        ({"strength": 2.5}, ["strength", "2.5"]),
        ({"tokens": "everything"}, ["tokens", "everything"]),
        ({"sgima": 1}, ["sgima"]),
    ],
)
def test_errors_name_key_and_value(given: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        CorruptSpec.model_validate(given)
    assert all(word in str(caught.value) for word in named)


def test_a_spec_loads_from_its_own_dump() -> None:
    for spec in (CorruptSpec(), CorruptSpec(function="noise", sigma=1), CorruptSpec(function="zero", dims=3)):
        assert CorruptSpec.model_validate(spec.model_dump()) == spec


def test_uses_evidence_depends_on_the_choice_of_tokens() -> None:
    uses = {t: CorruptSpec(tokens=t).uses_evidence for t in ("evidence", "identifying", "content", "all-but-last")}
    assert uses == {"evidence": True, "identifying": True, "content": False, "all-but-last": False}


def test_specs_load_without_torch() -> None:
    program = "import sys, lethe.corruption.spec; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
