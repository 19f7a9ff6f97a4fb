"""The ways of answering that stand side by side in one table, and how each is brought about.

A guarded way is a real gateway with a policy of its own, made from the policy under evaluation; the rest are
what a guard has to be held against: nothing, a model that never knew, a refusal, a system prompt.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lethe.evaluation.demo.serving import free_port, running_gateway
from lethe.server.policy.schema import Policy
from lethe.server.settings import PREFIX, Settings

# Keys the corruption while measuring where no secret is set, so that a run can be made again. It protects nothing.
OPEN_SECRET = "lethe-evaluation-not-a-secret"
REFUSAL = "I'm sorry, but I can't help with that."
PRETEND = (
    "You must behave as if you had never heard of the following, and of everything and everybody connected with them: "
    "{subjects}. When a question is about them, pretend that you don't know the answer and say so. Answer all other "
    "questions as usual."
)
# The paper's noise, on the first coordinate only. At 100 times the row RMS a token's identity is gone (METHODS: the
# normalised vector is nearly one axis), while fluency still is what the model makes of it.
PAPER_NOISE = {"function": "noise", "select": "first", "dims": 1, "sigma": 100.0}
IDENTIFYING = {"function": "decoy", "tokens": "identifying"}
# A ban makes the right answer impossible, as it isn't for a model that never knew. Logits lowered by about as
# much as the demo's model is surer of what it knows by heart bring right and wrong answers level instead.
NO_BAN = {"hard": False, "soft": 24.0}

Kind = Literal["direct", "prompt", "twin", "refusal", "gateway"]


@dataclass(frozen=True)
class Way:
    """One row of the table. changes: keys of the policy that this way sets (gateway only)."""

    key: str
    label: str
    kind: Kind
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def corrupts(self) -> bool:
        return self.changes.get("action") in ("corrupt", "both")


def _corrupt(key: str, label: str, **spec: Any) -> Way:
    return Way(f"corrupt-{key}", f"corrupt, {label}", "gateway", {"action": "corrupt", "corrupt": spec})


WAYS = {
    way.key: way
    for way in (
        Way("unguarded", "unguarded", "direct"),
        Way("twin", "retain twin", "twin"),
        Way("refusal", "refusal", "refusal"),
        Way("prompt", "system prompt: pretend not to know", "prompt"),
        _corrupt("noise-content", "the paper's noise on content", **PAPER_NOISE, tokens="content"),
        _corrupt("noise-evidence", "the paper's noise on evidence", **PAPER_NOISE, tokens="evidence"),
        _corrupt("decoy-content", "decoys on content", function="decoy", tokens="content"),
        _corrupt("decoy-evidence", "decoys on evidence", function="decoy", tokens="evidence"),
        _corrupt("decoy-identifying", "decoys on identifying words", **IDENTIFYING),
        Way("penalize", "penalize", "gateway", {"action": "penalize"}),
        Way("both", "both: decoys on identifying words, and penalize", "gateway",
            {"action": "both", "corrupt": IDENTIFYING}),
        Way("both-soft", "both, with lowered logits in place of a ban", "gateway",
            {"action": "both", "corrupt": IDENTIFYING, "penalize": NO_BAN}),
        Way("policy", "the policy as it stands", "gateway"),
    )
}  # fmt: skip


def variant(policy: Policy, way: Way) -> dict[str, Any]:
    """The policy file of one way: the policy under evaluation, enforced for every model, with the way's changes."""
    file = policy.model_dump(mode="json", exclude_unset=True, exclude={"hash", "source", "models"})
    # How far a penalty goes beyond its ban is one key among the policy's own.
    penalize = {**file.get("penalize", {}), **way.changes.get("penalize", {})}
    return {**file, **way.changes, **({"penalize": penalize} if penalize else {}), "mode": "enforce"}


def same(policy: Policy, one: Way, other: Way) -> bool:
    """Whether two guarded ways make the same policy, whatever their files leave to the defaults."""
    made = [Policy.model_validate(variant(policy, way)) for way in (one, other)]
    fields = {"name", "artifact", "action", "threshold"}
    fields |= {"corrupt"} if made[0].action in ("corrupt", "both") else set()
    fields |= {"penalize"} if made[0].action in ("penalize", "both") else set()
    return all(getattr(made[0], name) == getattr(made[1], name) for name in fields)


def write(policy: Policy, way: Way, folder: Path) -> Path:
    """A policies folder that holds this way's policy and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(variant(policy, way), sort_keys=False, allow_unicode=True)
    (folder / "policy.yaml").write_text(text, encoding="utf-8")
    return folder


def secret(settings: Settings) -> str:
    return OPEN_SECRET if settings.secret is None else settings.secret.get_secret_value()


@contextlib.contextmanager
def gateway(settings: Settings, upstream: str, policies: Path, log: Path) -> Iterator[str]:
    """A gateway of its own process with these policies; its base URL. Raises StartError."""
    port = free_port()
    given = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    env = {
        **given,
        "LETHE_HOST": "127.0.0.1",
        "LETHE_PORT": str(port),
        "LETHE_ADMIN_PORT": "0",
        "LETHE_UPSTREAM": upstream,
        "LETHE_POLICIES": str(policies),
        "LETHE_AUDIT": "",
        "LETHE_SECRET": secret(settings),
        "LETHE_DRAIN_TIMEOUT_S": "5",
        # A busy machine is not what is measured here.
        "LETHE_JUDGE_TIMEOUT_S": "300",
    }
    base = f"http://127.0.0.1:{port}"
    with running_gateway(log, env=env):
        yield base
