"""From settings to a guard: policies, artifacts, encoder and corruptor, cross-checked at start.

A missing artifact stops the start, not the first request.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lethe.classifier import artifact_io
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import DEFAULT_ENCODER, Encoder, load_encoder
from lethe.classifier.judge import Judge, threshold
from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy, PolicyError, read_policies, read_policy
from lethe.server.policy.tuned_values import found_for, resolve
from lethe.server.settings import Settings, SettingsError
from lethe.server.upstream.verbatim_index import index_name

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

log = logging.getLogger("lethe")


def load_artifact(settings: Settings, policy: Policy) -> Artifact:
    """The artifact a policy names. Raises PolicyError naming policy, key and folder."""
    folder = settings.artifacts / policy.artifact
    if not folder.is_dir():
        raise PolicyError(
            f"policy {policy.name!r}: artifact = {policy.artifact!r}: there is no folder {folder} ({policy.source})"
        )
    try:
        return artifact_io.load_artifact(folder)
    except ValueError as error:
        raise PolicyError(
            f"policy {policy.name!r}: artifact = {policy.artifact!r}: {error} ({policy.source})"
        ) from error


def find_threshold(policy: Policy, artifact: Artifact) -> float:
    """The policy's threshold on this artifact's scores. Raises PolicyError when the rate can't be promised."""
    wanted = policy.threshold
    try:
        return threshold(
            artifact, miss_rate=wanted.miss_rate, false_alarm_rate=wanted.false_alarm_rate, value=wanted.value
        )
    except ValueError as error:
        raise PolicyError(f"policy {policy.name!r}: threshold: {error} ({policy.source})") from error


def load_corruptor(settings: Settings, policies: tuple[Policy, ...], made: Corruptor | None = None) -> Corruptor | None:
    """The corruptor, if a policy needs one: what it takes is imported only then. made: one that is there already.

    Raises SettingsError.
    """
    corrupting = [policy for policy in policies if policy.corrupts]
    if not corrupting:
        return None
    name = corrupting[0].name
    if settings.model_dir is None:
        raise SettingsError(f"policy {name!r} corrupts, so LETHE_MODEL_DIR must name the served model's folder")
    if settings.secret is None:
        raise SettingsError(f"policy {name!r} corrupts, so LETHE_SECRET must be set: the corruption is keyed with it")
    from lethe.corruption.embeddings.corruptor import Corruptor

    try:
        corruptor = made or Corruptor(settings.model_dir, settings.secret.get_secret_value().encode())
        if any(policy.corrupt.function == "decoy" for policy in corrupting):
            corruptor.decoys  # noqa: B018 - sorts the vocabulary now (about a second), not at the first request
        return corruptor
    except (ValueError, OSError) as error:
        raise SettingsError(f"LETHE_MODEL_DIR = {str(settings.model_dir)!r}: {error}") from error


def load_decode(model_dir: Path | None) -> Callable[[list[int]], str] | None:
    """Token ids → text with the model's own tokenizer, special tokens kept; None without a model folder."""
    if model_dir is None:
        return None
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise SettingsError(f"LETHE_MODEL_DIR = {str(model_dir)!r}: there is no {path.name} in it")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    size = tokenizer.get_vocab_size()

    def decode(ids: list[int]) -> str:
        if any(not 0 <= i < size for i in ids):
            raise ValueError("token id out of range")
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    return decode


def find_policy(given: str, settings: Settings) -> Policy:
    """The policy of that name under LETHE_POLICIES, or in that file. Raises PolicyError naming what is there."""
    if Path(given).is_file():
        return read_policy(Path(given))
    policies = {policy.name: policy for policy in read_policies(settings.policies)}
    if given not in policies:
        names = ", ".join(policies) or "none"
        raise PolicyError(f"there is no policy {given!r} in {settings.policies} (there: {names}), and no such file")
    return policies[given]


def load_judging(settings: Settings, policy: Policy, *, encoder: str | None = None) -> Guard:
    """A guard that judges for one policy, as the gateway would, and can't corrupt. encoder: name or folder.

    Raises PolicyError, SettingsError or ValueError (an artifact that another encoder made).
    """
    found = load_artifact(settings, policy)
    return Guard(
        {policy.name: (policy, find_threshold(policy, found))},
        {policy.artifact: found},
        Judge({policy.artifact: found}, load_encoder(encoder or settings.encoder or DEFAULT_ENCODER)),
        Metrics(),
        max_prompt_chars=settings.max_prompt_chars,
        decode=load_decode(settings.model_dir),
    )


def check_upstream(settings: Settings, policies: Iterable[Policy]) -> None:
    """Raises PolicyError for a policy that asks for what only vLLM can do, in front of another server."""
    for policy in policies:
        if settings.upstream_kind != "vllm" and policy.needs_plugin:
            what = "penalize.always" if policy.action in ("refuse", "route", "watch") else f"action = {policy.action!r}"
            raise PolicyError(
                f"policy {policy.name!r}: {what} needs vLLM with the plugin, and LETHE_UPSTREAM_KIND is "
                f"{settings.upstream_kind!r}: use the action 'watch' ({policy.source})"
            )


def find_indexes(policies: Iterable[Policy], artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """Artifact name → name of the index of its documents, for policies that keep them from being copied.

    Raises PolicyError for one that does so always where there are none.
    """
    found: dict[str, str] = {}
    for policy in policies:
        if policy.penalize.always or (policy.penalizes and policy.penalize.verbatim):
            name = index_name(artifacts[policy.artifact])
            if name is not None:
                found[policy.artifact] = name
            elif policy.penalize.always:
                raise PolicyError(
                    f"policy {policy.name!r}: penalize.always = true: artifact {policy.artifact!r} has no documents "
                    f"that could be copied ({policy.source})"
                )
    return found


@dataclass(frozen=True)
class Loaded:
    """A guard, and what it was made of: what doesn't change serves in the next one too.

    policies: all of them, those that are off as well. stamps: artifact → SHA-256 of its manifest, which holds
    the hashes of its other files.
    """

    guard: Guard
    policies: tuple[Policy, ...]
    stamps: Mapping[str, str]
    encoder: Encoder | None
    corruptor: Corruptor | None
    decode: Callable[[list[int]], str] | None


def stamp(folder: Path) -> str:
    """The SHA-256 of an artifact's manifest, "" where there is none."""
    try:
        return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    except OSError:
        return ""


def load_guard(settings: Settings, metrics: Metrics) -> Guard:
    """Everything a guard needs. Raises PolicyError or SettingsError, with file, key and value."""
    return load(settings, metrics).guard


def load(settings: Settings, metrics: Metrics, before: Loaded | None = None) -> Loaded:
    """A guard from the files as they are now; before: the one so far, whose unchanged parts are kept.

    Raises PolicyError or SettingsError, with file, key and value.
    """
    policies = read_policies(settings.policies)
    active = tuple(policy for policy in policies if policy.mode != "off")
    check_upstream(settings, active)
    stamps = {policy.artifact: stamp(settings.artifacts / policy.artifact) for policy in active}
    kept = (
        {} if before is None else {n: a for n, a in before.guard.artifacts.items() if before.stamps[n] == stamps.get(n)}
    )
    artifacts = {policy.artifact: kept.get(policy.artifact) or load_artifact(settings, policy) for policy in active}
    active = tuple(resolve(policy, artifacts[policy.artifact].manifest.tuned, settings.model_dir) for policy in active)
    thresholds = {policy.name: (policy, find_threshold(policy, artifacts[policy.artifact])) for policy in active}
    encoder = before.encoder if before is not None else None
    judge = None
    if active:
        encoder = encoder or _encoder(settings)
        try:
            judge = Judge(artifacts, encoder)
        except ValueError as error:
            raise PolicyError(str(error)) from error
    corruptor = load_corruptor(settings, policies, before.corruptor if before is not None else None)
    decode: Callable[[list[int]], str] | None
    if corruptor is not None:
        # Evidence is given as characters of the decoded text, so the corruptor must read ids in the same way.
        decode = corruptor.prompt_tokenizer.decode
    else:
        decode = before.decode if before is not None else load_decode(settings.model_dir)
    guard = Guard(
        thresholds,
        artifacts,
        judge,
        metrics,
        max_prompt_chars=settings.max_prompt_chars,
        corruptor=corruptor,
        decode=decode,
        raw_logprobs=settings.upstream_logprobs == "raw",
        vllm=settings.upstream_kind == "vllm",
        indexes=find_indexes([policy for policy in active if policy.mode == "enforce"], artifacts),
        before=before.guard if before is not None else None,
    )
    guard.known = frozenset(policy.name for policy in policies)
    _tell(policies, thresholds, metrics)
    corruptor = corruptor or (before.corruptor if before is not None else None)
    return Loaded(guard, policies, stamps, encoder, corruptor, decode)


def _encoder(settings: Settings) -> Encoder:
    try:
        return load_encoder(settings.encoder or DEFAULT_ENCODER)
    except Exception as error:
        # onnxruntime's and the tokenizer's own errors, of files that are cut short, have no class in common.
        shown = "" if settings.encoder is None else f" = {settings.encoder!r}"
        reason = " ".join(str(error).split())
        raise SettingsError(f"LETHE_ENCODER{shown}: {reason or type(error).__name__}") from error


def _tell(policies: Iterable[Policy], thresholds: Mapping[str, tuple[Policy, float]], metrics: Metrics) -> None:
    for mode in ("enforce", "shadow", "off"):
        metrics.policies.labels(mode).set(sum(policy.mode == mode for policy in policies))
    for policy in policies:
        at = f" from score {thresholds[policy.name][1]:.4f}" if policy.name in thresholds else ""
        log.info("policy %s (%s): %s %s%s", policy.name, policy.hash, policy.mode, policy.action, at)
        if policy.name in thresholds:
            for key, value in found_for(thresholds[policy.name][0], policy).items():
                log.info("policy %s: %s = %g, tuned", policy.name, key, value)
