"""The parameters of a policy that can be tuned, the ranges of their values, and the starting values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lethe.corruption.spec import MAX_STRENGTH
from lethe.evaluation.tuning.vllm_model import TuneError
from lethe.evaluation.tuning.zeroth_order import Axis
from lethe.server.policy.schema import Policy
from lethe.server.policy.tuned_values import TUNABLE_PARAMETERS, tuned_parameters

Values = dict[str, float]


def parameter_axes(policy: Policy, *, width: int | None, row_rms: float | None) -> dict[str, Axis]:
    """Return the range of each parameter.

    width, row_rms: properties of the model's embedding table; None without corruption.
    """
    axes = {
        # Without a hard ban, a soft weight of 0 would penalise nothing.
        "soft": Axis("soft", 0.0 if policy.penalize.hard else 0.5, 16.0, log=False),
        "similarity": Axis("similarity", 0.2, 1.0, log=False),
        "strength": Axis("strength", 0.05, MAX_STRENGTH, log=False),
    }
    if width and row_rms:
        unit = row_rms if policy.corrupt.sigma_unit == "absolute" else 1.0
        axes["sigma"] = Axis("sigma", 0.1 * unit, 1000 * unit)
        axes["dims"] = Axis("dims", 1, width, integer=True)
    return axes


def choose_parameters(policy: Policy, requested: Sequence[str] | None) -> list[str]:
    """Return the parameters to tune: the requested ones, else those the policy marks `tuned`, else its function's own.

    Raises TuneError for a parameter that the policy's action does not use, and for a `tuned` one that is not requested.
    """
    function = policy.corrupt.function
    of_function = {"decoy": ["strength"], "noise": ["sigma", "dims"], "set-noise": ["sigma", "dims"]}
    corrupt = of_function.get(function, ["dims"]) if policy.action in ("corrupt", "both") else []
    penalize = ["soft", "similarity"] if policy.action in ("penalize", "both") else []
    possible = [*corrupt, *penalize]
    if not possible:
        raise TuneError(f"policy {policy.name!r}: action {policy.action!r} has no parameters to tune")
    if requested is None:
        requested = tuned_parameters(policy) or [*corrupt[:1], *penalize]
    for name in requested:
        if name not in possible:
            raise TuneError(
                f"policy {policy.name!r}: {name!r} can't be tuned for action {policy.action!r}"
                f"{f' with function {function!r}' if corrupt else ''}; parameters: {', '.join(possible)}"
            )
    if missing := [name for name in tuned_parameters(policy) if name not in requested]:
        raise TuneError(f"policy {policy.name!r} also marks {', '.join(missing)} as tuned: tune all of them together")
    return list(dict.fromkeys(requested))


def start_values(policy: Policy, names: Sequence[str], axes: Mapping[str, Axis]) -> Values:
    """Return each parameter's value until its own search: the policy's number, or the middle of its axis."""
    values = {}
    for name in names:
        axis = axes[name]
        value = getattr(getattr(policy, TUNABLE_PARAMETERS[name]), name)
        value = axis.high if value == "all" else value
        is_number = isinstance(value, int | float)
        values[name] = min(max(float(value), axis.low), axis.high) if is_number else axis.value_at(0.5)
    return values
