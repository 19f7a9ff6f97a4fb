"""A policy that says `tuned` where a number could stand, and the number.

`lethe tune` writes what it found into the artifact, one entry a run: the values, the settings and the model that they
were found for, and the evidence. A value holds for nothing else: a strength of one function means nothing to another,
and one model's σ is another's garble. Knows nothing of how tuning is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lethe.server.policy.schema import Policy, PolicyError

Part = Literal["corrupt", "penalize"]
# What may be tuned: key → the part of the policy it stands in.
PARAMETERS: dict[str, Part] = {
    "sigma": "corrupt",
    "dims": "corrupt",
    "strength": "corrupt",
    "soft": "penalize",
    "similarity": "penalize",
}
_TAIL_BYTES = 2**20


class Entry(BaseModel):
    """What one run of `lethe tune` found, as far as a policy needs it; evidence lies beside it.

    values: parameter → value. settings: the policy's parts that were tuned, whole, the values in them.
    models: the names under which the tuned model was served. fingerprint: of its folder, if there was one.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    values: dict[str, float]
    settings: dict[Part, dict[str, Any]]
    models: tuple[str, ...]
    fingerprint: str | None = None
    date: str = ""


def wanted(policy: Policy) -> tuple[str, ...]:
    """The parameters that the policy calls `tuned`."""
    return tuple(name for name, part in PARAMETERS.items() if getattr(getattr(policy, part), name) == "tuned")


def with_values(policy: Policy, values: Mapping[str, float]) -> Policy:
    """The policy with numbers in place. Raises PolicyError for a value that doesn't fit its function."""
    changed: dict[str, Any] = {}
    for part in dict.fromkeys(PARAMETERS[name] for name in values):
        given = {name: value for name, value in values.items() if PARAMETERS[name] == part}
        if "dims" in given:
            given["dims"] = int(given["dims"])
        whole = getattr(policy, part)
        try:
            changed[part] = type(whole).model_validate({**whole.model_dump(exclude_unset=True), **given})
        except ValidationError as error:
            raise PolicyError(
                f"policy {policy.name!r}: {part} with {given}: {error.errors()[0]['msg']} ({policy.source})"
            ) from None
    return policy.model_copy(update=changed)


def resolve(policy: Policy, tuned: Sequence[Mapping[str, Any]], model_dir: Path | None) -> Policy:
    """The policy with every `tuned` replaced by what the artifact holds for it; the latest entry that fits.

    Raises PolicyError, naming the key, when there is none, or only for other settings or another model.
    """
    names = wanted(policy)
    if not names:
        return policy
    keys = ", ".join(f"{PARAMETERS[name]}.{name}" for name in names)
    reasons = []
    for row in reversed(tuned):
        try:
            entry = Entry.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise _error(
                policy, keys, f"artifact {policy.artifact!r}: manifest.json: tuned.{place}: {first['msg']}"
            ) from None
        if set(names) <= set(entry.values):
            filled = with_values(policy, {name: entry.values[name] for name in names})
            if (reason := _mismatch(filled, names, entry, model_dir)) is None:
                return filled
            reasons.append(reason)
    if reasons:
        raise _error(policy, keys, f"{reasons[0]}; run `lethe tune {policy.name}` again")
    raise _error(policy, keys, f"artifact {policy.artifact!r} holds no tuned value; run `lethe tune {policy.name}`")


def found_for(resolved: Policy, policy: Policy) -> dict[str, float]:
    """What stands in place of each `tuned` of a policy: key → value."""
    return {f"{PARAMETERS[name]}.{name}": getattr(getattr(resolved, PARAMETERS[name]), name) for name in wanted(policy)}


def settings_of(policy: Policy, part: Part) -> dict[str, Any]:
    """A part's settings as an entry keeps them."""
    whole = getattr(policy, part)
    fields = ("hard", "soft", "similarity", "items") if part == "penalize" else tuple(type(whole).model_fields)
    return {name: getattr(whole, name) for name in fields}


def fingerprint(model_dir: Path) -> str:
    """16 hex digits that tell one model folder from another without reading all of its weights."""
    made = hashlib.sha256()
    for path in sorted([*model_dir.glob("*.safetensors"), model_dir / "config.json", model_dir / "tokenizer.json"]):
        if path.is_file():
            size = path.stat().st_size
            made.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                file.seek(max(0, size - _TAIL_BYTES))
                made.update(file.read())
    return made.hexdigest()[:16]


def _mismatch(policy: Policy, names: Sequence[str], entry: Entry, model_dir: Path | None) -> str | None:
    """Why an entry's values don't hold for the policy, which has them filled in; None when they do."""
    for part in dict.fromkeys(PARAMETERS[name] for name in names):
        now, then = settings_of(policy, part), entry.settings.get(part, {})
        if differing := [key for key in now if now[key] != then.get(key)]:
            key = differing[0]
            return (
                f"the artifact's value was tuned for {part}.{key} {then.get(key)!r}, and this policy has {now[key]!r}"
            )
    if policy.models is not None and (others := [name for name in policy.models if name not in entry.models]):
        return (
            f"the artifact's value was tuned for the model {', '.join(entry.models)}, and not for {', '.join(others)}"
        )
    if entry.fingerprint and model_dir is not None and fingerprint(model_dir) != entry.fingerprint:
        return f"the artifact's value was tuned for another model than the one in LETHE_MODEL_DIR ({model_dir})"
    return None


def _error(policy: Policy, keys: str, reason: str) -> PolicyError:
    return PolicyError(f"policy {policy.name!r}: {keys} = 'tuned': {reason} ({policy.source})")
