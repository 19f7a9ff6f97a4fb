"""Load policies, artifacts, encoder and corruptor from the settings, check that they fit together, and build the guard.

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
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.folders import DEFAULT_ENCODER
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.judge import Judge, default_threshold, threshold
from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.files import read_policies, read_policy
from lethe.server.policy.schema import Policy, PolicyError
from lethe.server.policy.tuned_values import resolve_tuned, resolved_values
from lethe.server.settings import Settings, SettingsError
from lethe.server.upstream.verbatim_index import index_name

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

log = logging.getLogger("lethe")


def load_artifact(settings: Settings, policy: Policy) -> Artifact:
    """Return the artifact that a policy names. Raises PolicyError naming policy, key and folder."""
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
    """Return a policy's threshold on this artifact's scores.

    Raises PolicyError if the calibration set is too small for the requested rate.
    """
    requested = policy.threshold
    try:
        if requested.auto:
            return default_threshold(artifact)
        return threshold(
            artifact, miss_rate=requested.miss_rate, false_alarm_rate=requested.false_alarm_rate, value=requested.value
        )
    except ValueError as error:
        raise PolicyError(f"policy {policy.name!r}: threshold: {error} ({policy.source})") from error


def load_corruptor(
    settings: Settings, policies: tuple[Policy, ...], existing: Corruptor | None = None
) -> Corruptor | None:
    """Return the corruptor, or None if no policy needs one; its modules are imported only then.

    existing: a loaded corruptor to reuse. Raises SettingsError.
    """
    corrupting = [policy for policy in policies if policy.corrupts]
    if not corrupting:
        return None
    name = corrupting[0].name
    if settings.model_dir is None:
        raise SettingsError(f"policy {name!r} corrupts, so LETHE_MODEL_DIR must name the served model's folder")
    if settings.secret is None:
        raise SettingsError(
            f"policy {name!r} corrupts, so LETHE_SECRET must be set: its random numbers are derived from it"
        )
    from lethe.corruption.embeddings.corruptor import Corruptor

    chat_template = _read_chat_template(settings.chat_template)
    try:
        corruptor = existing or Corruptor(
            settings.model_dir,
            settings.secret.get_secret_value().encode(),
            chat_template=chat_template,
            chat_template_content_format=settings.chat_template_content_format,
        )
        if any(policy.corrupt.function == "decoy" for policy in corrupting):
            corruptor.decoys  # noqa: B018 - sorts the vocabulary now (about a second) instead of at the first request
        return corruptor
    except (ValueError, OSError) as error:
        raise SettingsError(f"LETHE_MODEL_DIR = {str(settings.model_dir)!r}: {error}") from error


def _read_chat_template(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"LETHE_CHAT_TEMPLATE = {str(path)!r}: {error}") from error


def load_decode(model_dir: Path | None) -> Callable[[list[int]], str] | None:
    """Return a function from token ids to text (model's tokenizer, special tokens kept); None without a folder."""
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


def find_policy(name_or_path: str, settings: Settings) -> Policy:
    """Return the policy of that name under LETHE_POLICIES, or in that file. Raises PolicyError."""
    if Path(name_or_path).is_file():
        return read_policy(Path(name_or_path))
    policies = {policy.name: policy for policy in read_policies(settings.policies)}
    if name_or_path not in policies:
        names = ", ".join(policies) or "none"
        raise PolicyError(
            f"there is no policy {name_or_path!r} in {settings.policies} (policies: {names}), and no such file"
        )
    return policies[name_or_path]


def load_judging(settings: Settings, policy: Policy, *, encoder: str | None = None) -> Guard:
    """Return a guard that judges for one policy as the gateway would, and can't corrupt. encoder: name or folder.

    Raises PolicyError, SettingsError, or ValueError for an artifact of another encoder.
    """
    artifact = load_artifact(settings, policy)
    return Guard(
        {policy.name: (policy, find_threshold(policy, artifact))},
        {policy.artifact: artifact},
        Judge({policy.artifact: artifact}, load_encoder(encoder or settings.encoder or DEFAULT_ENCODER)),
        Metrics(),
        max_prompt_chars=settings.max_prompt_chars,
        decode=load_decode(settings.model_dir),
    )


def check_upstream(settings: Settings, policies: Iterable[Policy]) -> None:
    """Raise PolicyError for a policy that needs vLLM while the upstream is another server."""
    for policy in policies:
        if settings.upstream_kind != "vllm" and policy.needs_vllm:
            feature = (
                "penalize.always" if policy.action in ("refuse", "route", "watch") else f"action = {policy.action!r}"
            )
            raise PolicyError(
                f"policy {policy.name!r}: {feature} needs vLLM with the plugin, and LETHE_UPSTREAM_KIND is "
                f"{settings.upstream_kind!r}: use the action 'watch' ({policy.source})"
            )


def find_indexes(policies: Iterable[Policy], artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """Return artifact name → name of the verbatim index of its documents, for policies with a copy limit.

    Raises PolicyError for a policy with `penalize.always` whose artifact has no documents.
    """
    indexes: dict[str, str] = {}
    for policy in policies:
        if policy.penalize.always or (policy.penalizes and policy.penalize.verbatim):
            name = index_name(artifacts[policy.artifact])
            if name is not None:
                indexes[policy.artifact] = name
            elif policy.penalize.always:
                raise PolicyError(
                    f"policy {policy.name!r}: penalize.always = true: artifact {policy.artifact!r} has no documents "
                    f"that could be copied ({policy.source})"
                )
    return indexes


@dataclass(frozen=True)
class LoadedPolicies:
    """A guard and its parts. Unchanged parts are reused by the next guard.

    policies: all, including those that are off. artifact_hashes: artifact → SHA-256 of its manifest, which has the
    hashes of its other files.
    """

    guard: Guard
    policies: tuple[Policy, ...]
    artifact_hashes: Mapping[str, str]
    encoder: Encoder | None
    corruptor: Corruptor | None
    decode: Callable[[list[int]], str] | None


def manifest_hash(folder: Path) -> str:
    """The SHA-256 of an artifact's manifest; "" if there is none."""
    try:
        return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    except OSError:
        return ""


def load_guard(settings: Settings, metrics: Metrics) -> Guard:
    """Return the guard of the current files. Raises PolicyError or SettingsError naming file, key and value."""
    return load_policies(settings, metrics).guard


def load_policies(settings: Settings, metrics: Metrics, before: LoadedPolicies | None = None) -> LoadedPolicies:
    """Load the current files. before: what is loaded now; its unchanged parts are reused.

    Raises PolicyError or SettingsError naming file, key and value.
    """
    policies = read_policies(settings.policies, () if before is None else before.policies)
    active = tuple(policy for policy in policies if policy.mode != "off")
    check_upstream(settings, active)
    artifact_hashes = {policy.artifact: manifest_hash(settings.artifacts / policy.artifact) for policy in active}
    unchanged = (
        {}
        if before is None
        else {n: a for n, a in before.guard.artifacts.items() if before.artifact_hashes[n] == artifact_hashes.get(n)}
    )
    artifacts = {
        policy.artifact: unchanged.get(policy.artifact) or load_artifact(settings, policy) for policy in active
    }
    thresholds = _find_thresholds(settings, active, artifacts, before)
    active = tuple(policy for policy, _ in thresholds.values())
    encoder = before.encoder if before is not None else None
    judge = None
    if active:
        encoder = encoder or _load_encoder(settings)
        try:
            judge = Judge(artifacts, encoder)
        except ValueError as error:
            raise PolicyError(str(error)) from error
    corruptor = load_corruptor(settings, policies, before.corruptor if before is not None else None)
    decode: Callable[[list[int]], str] | None
    if corruptor is not None:
        # Evidence spans are characters of the decoded text, so the corruptor must decode ids in the same way.
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
        upstream_is_vllm=settings.upstream_kind == "vllm",
        indexes=find_indexes([policy for policy in active if policy.mode == "enforce"], artifacts),
        policy_names=[policy.name for policy in policies],
        previous=before.guard if before is not None else None,
    )
    for mode in ("enforce", "shadow", "off"):
        metrics.policies.labels(mode).set(sum(policy.mode == mode for policy in policies))
    _log_policies(policies, thresholds, before)
    corruptor = corruptor or (before.corruptor if before is not None else None)
    return LoadedPolicies(guard, policies, artifact_hashes, encoder, corruptor, decode)


def _load_encoder(settings: Settings) -> Encoder:
    try:
        return load_encoder(settings.encoder or DEFAULT_ENCODER)
    except Exception as error:
        # For truncated files, onnxruntime and the tokenizer raise errors without a common class.
        value = "" if settings.encoder is None else f" = {settings.encoder!r}"
        reason = " ".join(str(error).split())
        raise SettingsError(f"LETHE_ENCODER{value}: {reason or type(error).__name__}") from error


def _find_thresholds(
    settings: Settings, active: Iterable[Policy], artifacts: Mapping[str, Artifact], before: LoadedPolicies | None
) -> dict[str, tuple[Policy, float]]:
    """Policy name → the policy with its tuned values, and its threshold. Those of unchanged policies are reused."""
    unchanged: dict[str, tuple[Policy, float]] = {}
    if before is not None:
        known = {policy.name: policy for policy in before.policies}
        unchanged = {
            policy.name: before.guard.policies[policy.name]
            for policy in active
            if known.get(policy.name) is policy
            and before.guard.artifacts.get(policy.artifact) is artifacts[policy.artifact]
        }
    thresholds: dict[str, tuple[Policy, float]] = {}
    for policy in active:
        if (entry := unchanged.get(policy.name)) is None:
            resolved = resolve_tuned(policy, artifacts[policy.artifact].manifest.tuned, settings.model_dir)
            entry = resolved, find_threshold(resolved, artifacts[policy.artifact])
        thresholds[policy.name] = entry
    return thresholds


def _log_policies(
    policies: Iterable[Policy], thresholds: Mapping[str, tuple[Policy, float]], before: LoadedPolicies | None
) -> None:
    """Log the policies that are new or changed: of a thousand policies, a forget request changes one."""
    known = {} if before is None else {policy.name: policy for policy in before.policies}
    for policy in policies:
        is_unchanged = before is not None and before.guard.policies.get(policy.name) == thresholds.get(policy.name)
        if is_unchanged and known.get(policy.name) is policy:
            continue
        threshold_text = f" from score {thresholds[policy.name][1]:.4f}" if policy.name in thresholds else ""
        log.info("policy %s (%s): %s %s%s", policy.name, policy.hash, policy.mode, policy.action, threshold_text)
        if policy.name in thresholds:
            for key, value in resolved_values(thresholds[policy.name][0], policy).items():
                log.info("policy %s: %s = %g, tuned", policy.name, key, value)
