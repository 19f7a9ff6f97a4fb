"""Policy keys with the value `tuned`, and the numbers that replace them.

`lethe tune` writes one entry per run into the artifact: the values, the settings and the model they were found for, and
the evidence. A value is valid for nothing else: the strength of one corruption function means nothing to another, and
σ of one model may be far too strong for another. Knows nothing of how tuning works.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lethe.server.policy.schema import Policy, PolicyError

PolicyPart = Literal["corrupt", "penalize"]
# Key that may be tuned → the part of the policy that has it.
TUNABLE_PARAMETERS: dict[str, PolicyPart] = {
    "sigma": "corrupt",
    "dims": "corrupt",
    "strength": "corrupt",
    "soft": "penalize",
    "similarity": "penalize",
}
# Bytes at the end of each weights file that enter the fingerprint. Chosen: 1 MiB differs between any two models and
# takes a millisecond to read.
_TAIL_BYTES = 2**20


class TunedEntry(BaseModel):
    """The result of one run of `lethe tune`, without its evidence.

    values: parameter → value. settings: the complete parts of the policy that were tuned, with these values.
    models: the names under which the tuned model was served. fingerprint: the digest of the model's folder, if it was
    known.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    values: dict[str, float]
    settings: dict[PolicyPart, dict[str, Any]]
    models: tuple[str, ...]
    fingerprint: str | None = None
    date: str = ""


def tuned_parameters(policy: Policy) -> tuple[str, ...]:
    """The parameters whose value in the policy is `tuned`."""
    return tuple(name for name, part in TUNABLE_PARAMETERS.items() if getattr(getattr(policy, part), name) == "tuned")


def with_values(policy: Policy, values: Mapping[str, float]) -> Policy:
    """Return the policy with these values. Raises PolicyError for a value that its function doesn't accept."""
    changed: dict[str, Any] = {}
    for part in dict.fromkeys(TUNABLE_PARAMETERS[name] for name in values):
        part_values = {name: value for name, value in values.items() if TUNABLE_PARAMETERS[name] == part}
        if "dims" in part_values:
            part_values["dims"] = int(part_values["dims"])
        options = getattr(policy, part)
        try:
            changed[part] = type(options).model_validate({**options.model_dump(exclude_unset=True), **part_values})
        except ValidationError as error:
            raise PolicyError(
                f"policy {policy.name!r}: {part} with {part_values}: {error.errors()[0]['msg']} ({policy.source})"
            ) from None
    return policy.model_copy(update=changed)


def resolve_tuned(policy: Policy, tuned: Sequence[Mapping[str, Any]], model_dir: Path | None) -> Policy:
    """Return the policy with every `tuned` replaced by the value of the artifact's latest matching entry.

    Raises PolicyError, naming the key, if there is none, or only for other settings or another model.
    """
    names = tuned_parameters(policy)
    if not names:
        return policy
    keys = ", ".join(f"{TUNABLE_PARAMETERS[name]}.{name}" for name in names)
    reasons = []
    for row in reversed(tuned):
        try:
            entry = TunedEntry.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise _tuned_error(
                policy, keys, f"artifact {policy.artifact!r}: manifest.json: tuned.{place}: {first['msg']}"
            ) from None
        if set(names) <= set(entry.values):
            filled = with_values(policy, {name: entry.values[name] for name in names})
            if (reason := _mismatch(filled, names, entry, model_dir)) is None:
                return filled
            reasons.append(reason)
    if reasons:
        raise _tuned_error(policy, keys, f"{reasons[0]}; run `lethe tune {policy.name}` again")
    raise _tuned_error(
        policy, keys, f"artifact {policy.artifact!r} holds no tuned value; run `lethe tune {policy.name}`"
    )


def resolved_values(resolved: Policy, policy: Policy) -> dict[str, float]:
    """The numbers in place of `tuned` in a resolved policy: key → value."""
    return {
        f"{TUNABLE_PARAMETERS[name]}.{name}": getattr(getattr(resolved, TUNABLE_PARAMETERS[name]), name)
        for name in tuned_parameters(policy)
    }


def part_settings(policy: Policy, part: PolicyPart) -> dict[str, Any]:
    """The settings of one part of a policy, as an entry stores them."""
    options = getattr(policy, part)
    fields = ("hard", "soft", "similarity", "items") if part == "penalize" else tuple(type(options).model_fields)
    return {name: getattr(options, name) for name in fields}


def model_fingerprint(model_dir: Path) -> str:
    """Return 16 hex digits that identify a model folder, computed without reading all of its weights."""
    digest = hashlib.sha256()
    for path in sorted([*model_dir.glob("*.safetensors"), model_dir / "config.json", model_dir / "tokenizer.json"]):
        if path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                file.seek(max(0, size - _TAIL_BYTES))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def _mismatch(policy: Policy, names: Sequence[str], entry: TunedEntry, model_dir: Path | None) -> str | None:
    """Why an entry's values are not valid for the policy (with these values in place); None if they are."""
    for part in dict.fromkeys(TUNABLE_PARAMETERS[name] for name in names):
        now, then = part_settings(policy, part), entry.settings.get(part, {})
        if differing := [key for key in now if now[key] != then.get(key)]:
            key = differing[0]
            return (
                f"the artifact's value was tuned for {part}.{key} {then.get(key)!r}, and this policy has {now[key]!r}"
            )
    if policy.models is not None and (others := [name for name in policy.models if name not in entry.models]):
        return (
            f"the artifact's value was tuned for the model {', '.join(entry.models)}, and not for {', '.join(others)}"
        )
    if entry.fingerprint and model_dir is not None and model_fingerprint(model_dir) != entry.fingerprint:
        return f"the artifact's value was tuned for another model than the one in LETHE_MODEL_DIR ({model_dir})"
    return None


def _tuned_error(policy: Policy, keys: str, reason: str) -> PolicyError:
    return PolicyError(f"policy {policy.name!r}: {keys} = 'tuned': {reason} ({policy.source})")
