"""The systems that an evaluation compares: gateways with different policies, and baselines.

Each guarded system is a real gateway with a variant of the policy under evaluation. The baselines are the unguarded
model, a model that never saw the forget set (the retain twin), a fixed refusal and a system prompt.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lethe.evaluation.serving import free_port, running_gateway
from lethe.server.policy.schema import Policy
from lethe.server.settings import PREFIX, Settings

# Keys the corruption when LETHE_SECRET is not set, so that a run can be repeated. It protects nothing.
DEFAULT_SECRET = "lethe-evaluation-not-a-secret"
REFUSAL = "I'm sorry, but I can't help with that."
PRETEND_PROMPT = (
    "You must behave as if you had never heard of the following, and of everything and everybody connected with them: "
    "{subjects}. When a question is about them, pretend that you don't know the answer and say so. Answer all other "
    "questions as usual."
)
# ECO's noise, on the first coordinate only. At 100 times the table's row RMS the token can't be recognised any more
# (the normalised vector is almost one axis), and the model still answers in sentences.
PAPER_NOISE = {"function": "noise", "select": "first", "dims": 1, "sigma": 100.0}
IDENTIFYING_DECOYS = {"function": "decoy", "tokens": "identifying"}
# A ban makes the right answer impossible, which it isn't for a model that never saw it. Lowering logits by 24 instead
# brings right and wrong answers level on the demo model: measured, see "Truth ratio with a ban" in
# docs/benchmarks/2026-11-21-unlearning.md.
PENALTY_WITHOUT_BAN = {"hard": False, "soft": 24.0}

Kind = Literal["direct", "prompt", "twin", "refusal", "gateway"]


@dataclass(frozen=True)
class System:
    """One column of the printed table. changes: policy keys that this system sets (kind "gateway" only)."""

    key: str
    label: str
    kind: Kind
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def corrupts(self) -> bool:
        """Whether this system's own action needs the model's embedding table."""
        return self.changes.get("action") in ("corrupt", "both")


def _corrupting(key: str, label: str, **spec: Any) -> System:
    return System(f"corrupt-{key}", f"corrupt: {label}", "gateway", {"action": "corrupt", "corrupt": spec})


SYSTEMS = {
    system.key: system
    for system in (
        System("unguarded", "unguarded model", "direct"),
        System("twin", "retain twin (never saw the forget set)", "twin"),
        System("refusal", "fixed refusal", "refusal"),
        System("prompt", "system prompt: pretend not to know", "prompt"),
        _corrupting("noise-content", "ECO's noise on content words", **PAPER_NOISE, tokens="content"),
        _corrupting("noise-evidence", "ECO's noise on evidence spans", **PAPER_NOISE, tokens="evidence"),
        _corrupting("decoy-content", "decoys for content words", function="decoy", tokens="content"),
        _corrupting("decoy-evidence", "decoys for evidence spans", function="decoy", tokens="evidence"),
        _corrupting("decoy-identifying", "decoys for identifying words", **IDENTIFYING_DECOYS),
        System("penalize", "penalize", "gateway", {"action": "penalize"}),
        System("both", "both: decoys for identifying words, and penalize", "gateway",
               {"action": "both", "corrupt": IDENTIFYING_DECOYS}),
        System("both-soft", "both, with lowered logits instead of a ban", "gateway",
               {"action": "both", "corrupt": IDENTIFYING_DECOYS, "penalize": PENALTY_WITHOUT_BAN}),
        System("policy", "the policy as configured", "gateway"),
    )
}  # fmt: skip


def policy_variant(policy: Policy, system: System) -> dict[str, Any]:
    """Return a system's policy file: the policy under evaluation, enforced for every model, with the system's keys."""
    file = policy.model_dump(mode="json", exclude_unset=True, exclude={"hash", "source", "models"})
    # `penalize` is merged key by key: a system changes the ban and keeps the policy's other penalties.
    penalize = {**file.get("penalize", {}), **system.changes.get("penalize", {})}
    return {**file, **system.changes, **({"penalize": penalize} if penalize else {}), "mode": "enforce"}


def equal_policies(policy: Policy, first: System, second: System) -> bool:
    """Return whether two guarded systems have the same policy once defaults are filled in."""
    variants = [Policy.model_validate(policy_variant(policy, system)) for system in (first, second)]
    fields = {"name", "artifact", "action", "threshold"}
    fields |= {"corrupt"} if variants[0].action in ("corrupt", "both") else set()
    fields |= {"penalize"} if variants[0].action in ("penalize", "both") else set()
    return all(getattr(variants[0], name) == getattr(variants[1], name) for name in fields)


def write_policy_folder(policy: Policy, system: System, folder: Path) -> Path:
    """Write a policies folder that holds this system's policy only, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(policy_variant(policy, system), sort_keys=False, allow_unicode=True)
    (folder / "policy.yaml").write_text(text, encoding="utf-8")
    return folder


def secret_or_default(settings: Settings) -> str:
    """Return LETHE_SECRET, or DEFAULT_SECRET if it is not set."""
    return DEFAULT_SECRET if settings.secret is None else settings.secret.get_secret_value()


@contextlib.contextmanager
def system_gateway(settings: Settings, upstream: str, policies: Path, log: Path) -> Iterator[str]:
    """Run a gateway process with these policies and yield its base URL. Raises StartError when it doesn't start."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    env = {
        **inherited,
        "LETHE_HOST": "127.0.0.1",
        "LETHE_PORT": str(port),
        "LETHE_ADMIN_PORT": "0",
        "LETHE_UPSTREAM": upstream,
        "LETHE_POLICIES": str(policies),
        "LETHE_AUDIT": "",
        "LETHE_SECRET": secret_or_default(settings),
        "LETHE_DRAIN_TIMEOUT_S": "5",
        # On a busy machine judging may take long; a timeout would count as a failed answer.
        "LETHE_JUDGE_TIMEOUT_S": "300",
    }
    base_url = f"http://127.0.0.1:{port}"
    with running_gateway(log, env=env):
        yield base_url
