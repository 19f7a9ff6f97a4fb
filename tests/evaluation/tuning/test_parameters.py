"""The parameters that can be tuned, their ranges and starting values."""

from __future__ import annotations

from typing import Any

import pytest

from lethe.evaluation.tuning.parameters import choose_parameters, parameter_axes, start_values
from lethe.evaluation.tuning.vllm_model import TuneError
from lethe.server.policy.schema import Policy


def make_policy(**fields: Any) -> Policy:
    default = {"name": "p", "artifact": "a", "action": "corrupt", "corrupt": {"function": "noise", "sigma": "tuned"}}
    return Policy.model_validate({**default, **fields})


@pytest.mark.parametrize(
    ("fields", "requested", "names"),
    [
        ({}, None, ["sigma"]),
        ({}, ["sigma", "dims"], ["sigma", "dims"]),
        ({"corrupt": {}}, None, ["strength"]),
        ({"corrupt": {"function": "zero"}}, None, ["dims"]),
        ({"action": "penalize", "corrupt": {}}, None, ["soft", "similarity"]),
        ({"action": "both", "corrupt": {}}, None, ["strength", "soft", "similarity"]),
        ({"action": "both", "corrupt": {}, "penalize": {"soft": "tuned"}}, None, ["soft"]),
    ],
)
def test_the_parameters_to_tune(fields: dict[str, Any], requested: list[str] | None, names: list[str]) -> None:
    assert choose_parameters(make_policy(**fields), requested) == names


@pytest.mark.parametrize(
    ("fields", "requested", "message"),
    [
        ({"action": "refuse"}, None, "policy 'p': action 'refuse' has no parameters to tune"),
        (
            {},
            ["strength"],
            "'strength' can't be tuned for action 'corrupt' with function 'noise'; parameters: sigma, dims",
        ),
        ({"action": "penalize", "corrupt": {}}, ["sigma"], "parameters: soft, similarity"),
        ({}, ["dims"], "also marks sigma as tuned"),
    ],
)
def test_parameters_that_cant_be_tuned_raise_errors(
    fields: dict[str, Any], requested: list[str] | None, message: str
) -> None:
    with pytest.raises(TuneError, match=message):
        choose_parameters(make_policy(**fields), requested)


def test_axes_and_start_values() -> None:
    axes = parameter_axes(make_policy(), width=256, row_rms=0.075)
    assert (axes["sigma"].low, axes["sigma"].high, axes["dims"].high) == (0.1, 1000, 256)
    absolute = make_policy(corrupt={"function": "noise", "sigma": "tuned", "sigma_unit": "absolute"})
    assert parameter_axes(absolute, width=256, row_rms=0.075)["sigma"].high == 75
    assert "sigma" not in parameter_axes(make_policy(), width=None, row_rms=None)
    # Without a hard ban, a soft weight of 0 would penalise nothing.
    assert parameter_axes(make_policy(penalize={"hard": False}), width=None, row_rms=None)["soft"].low > 0
    policy = make_policy(action="both", penalize={"soft": 50})
    assert start_values(policy, ["sigma", "dims", "soft"], axes) == {"sigma": 10, "dims": 256, "soft": 16}
