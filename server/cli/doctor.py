"""`lethe doctor`: check the set-up, and say how to fix what is wrong."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lethe.classifier.encoder.folders import DEFAULT_ENCODER
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.judge import Judge
from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, encode_penalty
from lethe.server.errors import GatewayError
from lethe.server.policy.files import read_policies
from lethe.server.policy.schema import Policy, PolicyError
from lethe.server.policy.tuned_values import resolve_tuned
from lethe.server.policy_store.load import find_indexes, find_threshold, load_artifact, load_corruptor, load_decode
from lethe.server.settings import Settings, SettingsError, settings_per_worker
from lethe.server.upstream import parity_probe
from lethe.server.upstream.client import Upstream
from lethe.server.upstream.model_cards import fetch_model_cards
from lethe.server.upstream.pool import upstreams_from
from lethe.server.upstream.verbatim_index import loaded_indexes

if TYPE_CHECKING:
    from lethe.corruption.embeddings.corruptor import Corruptor

# The version of vLLM that the integration tests run.
TESTED_VLLM = "0.32.0"


@dataclass(frozen=True)
class CheckResult:
    """One line of the report. ok: None for a hint, or for something that this set-up doesn't need."""

    ok: bool | None
    message: str
    fix: str = ""


def doctor(args: argparse.Namespace, settings: Settings) -> int:
    """Check model folder, tokenizer, vLLM's version and flags, the plugin, parity, policies and artifacts."""
    results = asyncio.run(_run_checks(settings))
    for result in results:
        print({True: "ok    ", False: "WRONG ", None: "note  "}[result.ok] + result.message)
        if result.fix and not result.ok:
            print(f"       → {result.fix}")
    wrong = sum(result.ok is False for result in results)
    print(f"\n{wrong} to fix" if wrong else "\neverything is fine")
    return 1 if wrong else 0


async def _run_checks(settings: Settings) -> list[CheckResult]:
    results: list[CheckResult] = []
    policies: tuple[Policy, ...] = ()
    try:
        policies = read_policies(settings.policies)
        results.extend(_check_policies(policies, settings))
        results.extend(_check_encoder(tuple(policy for policy in policies if policy.mode != "off"), settings))
    except PolicyError as error:
        results.append(CheckResult(False, str(error), "correct the file, then run `lethe doctor` again"))
    results.extend(_check_workers(settings))
    results.extend(_check_model(settings))
    corruptor = None
    try:
        corruptor = load_corruptor(settings, policies)
    except SettingsError as error:
        example = f"LETHE_SECRET={secrets.token_urlsafe(8)}… (create your own, at least 16 characters, and keep it)"
        fix = f"for example {example}" if "LETHE_SECRET" in str(error) else "see docs/reference/settings.md"
        results.append(CheckResult(False, str(error), fix))
    for upstream in upstreams_from(settings):
        try:
            async for result in _check_upstream(upstream, settings, policies, corruptor):
                results.append(result)
        finally:
            await upstream.close()
    return results


def _check_policies(policies: tuple[Policy, ...], settings: Settings) -> Iterator[CheckResult]:
    if not policies:
        yield CheckResult(None, f"there are no policies in {settings.policies}: all requests pass")
    for policy in policies:
        if policy.mode == "off":
            yield CheckResult(None, f"policy {policy.name}: off")
            continue
        try:
            artifact = load_artifact(settings, policy)
            threshold = find_threshold(policy, artifact)
            resolve_tuned(policy, artifact.manifest.tuned, settings.model_dir)
        except PolicyError as error:
            yield CheckResult(
                False,
                str(error),
                "create the artifact with `lethe fit`, tune it with `lethe tune`, or correct the policy",
            )
        else:
            items = f"{len(artifact.live_items)} forget items"
            text = f"policy {policy.name}: {policy.mode} {policy.action}, {items}, threshold {threshold:.4f}"
            yield CheckResult(True, text)


def _check_workers(settings: Settings) -> Iterator[CheckResult]:
    """Whether each worker's share of the limits is large enough, and each worker has a core."""
    try:
        share = settings_per_worker(settings)
    except SettingsError as error:
        yield CheckResult(False, str(error), "increase it, or use fewer workers")
        return
    if settings.workers == 1:
        return
    cores = len(os.sched_getaffinity(0))
    if settings.workers > cores:
        yield CheckResult(
            None, f"LETHE_WORKERS = {settings.workers}, but there are only {cores} cores: more workers don't help"
        )
    else:
        yield CheckResult(
            True, f"{settings.workers} workers on {cores} cores, up to {share.max_requests} requests in progress each"
        )


def _check_model(settings: Settings) -> Iterator[CheckResult]:
    if settings.model_dir is None:
        yield CheckResult(
            None, "LETHE_MODEL_DIR is not set: token-id prompts are refused and prompts can't be corrupted"
        )
        return
    try:
        decode = load_decode(settings.model_dir)
        assert decode is not None
        decode([0])
        yield CheckResult(True, f"tokenizer in {settings.model_dir}")
    except (SettingsError, ValueError, OSError) as error:
        yield CheckResult(False, str(error), "set LETHE_MODEL_DIR to the folder that vLLM serves")
    from lethe.corruption.embeddings.embedding_table import EmbeddingTable

    try:
        table = EmbeddingTable(settings.model_dir)
        yield CheckResult(True, f"embedding table: {table.size} rows of {table.width}, row RMS {table.row_rms:.4f}")
    except (ValueError, OSError) as error:
        yield CheckResult(False, str(error), "set LETHE_MODEL_DIR to the folder that vLLM serves")


def _check_encoder(policies: tuple[Policy, ...], settings: Settings) -> Iterator[CheckResult]:
    """Whether the sentence encoder can be loaded, and the artifacts were fitted with it."""
    try:
        encoder = load_encoder(settings.encoder or DEFAULT_ENCODER)
    except (ValueError, OSError, ImportError) as error:
        fix = "install 'lethe-gateway[fit]', which prepares it once, or correct LETHE_ENCODER"
        yield CheckResult(False, f"sentence encoder: {error}", fix)
        return
    yield CheckResult(True, f"sentence encoder {encoder.name}")
    for policy in policies:
        try:
            Judge({policy.artifact: load_artifact(settings, policy)}, encoder)
        except PolicyError:
            continue  # reported by _check_policies
        except ValueError as error:
            yield CheckResult(
                False, f"policy {policy.name!r}: {error}", "fit it again, or set LETHE_ENCODER to that encoder"
            )


async def _check_upstream(
    upstream: Upstream, settings: Settings, policies: tuple[Policy, ...], corruptor: Corruptor | None
) -> AsyncIterator[CheckResult]:
    try:
        status, _ = await upstream.call("GET", "/health")
        model = (await fetch_model_cards(upstream))[0]["id"]
    except GatewayError as error:
        yield CheckResult(False, f"vLLM at {upstream.url}: {error.message}", "start vLLM, or correct LETHE_UPSTREAM")
        return
    yield CheckResult(status == 200, f"vLLM at {upstream.url} serves {model}", "see the log of vLLM")
    try:
        _, answer = await upstream.call("GET", "/version")
    except GatewayError as error:
        answer = error.message
    found_version = str(answer.get("version", "unknown")) if isinstance(answer, dict) else "unknown"
    is_tested = found_version.startswith(TESTED_VLLM)
    note = "" if is_tested else f" (tested with {TESTED_VLLM})"
    yield CheckResult(True if is_tested else None, f"vLLM version {found_version}{note}")
    try:
        yield await _check_plugin(upstream, model, policies)
    except GatewayError as error:
        yield CheckResult(False, f"the penalty probe failed: {error.message}", "see the log of vLLM")
    async for result in _check_indexes(upstream, settings, model, policies):
        yield result
    if corruptor is not None:
        try:
            parity = await parity_probe.probe_parity(upstream, corruptor)
        except GatewayError as error:
            # A slow or broken answer says nothing about vLLM's flags.
            fix = "vLLM may be busy or still warming up: run `lethe doctor` again, and see the log of vLLM"
            yield CheckResult(False, f"the parity probe got no answer: {error.message}", fix)
            return
        yield CheckResult(parity.holds, f"parity of clean embeddings: {parity.reason}", _parity_fix(parity.reason))


def _parity_fix(reason: str) -> str:
    """What to do about a parity probe that failed for this reason."""
    if "--enable-prompt-embeds" in reason:
        return "start vLLM with --enable-prompt-embeds"
    if "returned 5" in reason or "returned 429" in reason:
        return "see the log of vLLM, and run `lethe doctor` again"
    return "give the gateway the model folder that vLLM serves (LETHE_MODEL_DIR)"


async def _check_indexes(
    upstream: Upstream, settings: Settings, model: str, policies: tuple[Policy, ...]
) -> AsyncIterator[CheckResult]:
    """Whether vLLM has loaded the verbatim indexes that the policies need."""
    try:
        # Those in shadow mode too: what they lack would be missed when they are enforced.
        active = [policy for policy in policies if policy.mode != "off"]
        indexes = find_indexes(active, {policy.artifact: load_artifact(settings, policy) for policy in active})
        loaded = await loaded_indexes(upstream, model, indexes.values())
    except PolicyError as error:
        yield CheckResult(False, str(error), "correct the policy, or fit its artifact with documents")
        return
    except GatewayError as error:
        yield CheckResult(False, f"the verbatim probe failed: {error.message}", "see the log of vLLM")
        return
    fix = (
        "start vLLM with LETHE_VERBATIM naming a copy of the artifacts folder (LETHE_ARTIFACTS); "
        "`lethe fit` writes the index"
    )
    for artifact, name in indexes.items():
        has = "has" if name in loaded else "does not have"
        yield CheckResult(name in loaded, f"vLLM {has} the verbatim index of artifact {artifact}", fix)


async def _check_plugin(upstream: Upstream, model: str, policies: tuple[Policy, ...]) -> CheckResult:
    """Whether penalties work: words that vLLM has just generated must not appear once they are forbidden.

    Versions and flags don't show it: in some configurations vLLM loads no plugins and reports nothing.
    """
    messages = [{"role": "user", "content": parity_probe.PROBE_PROMPT}]
    body = {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0}
    _, plain = await upstream.call("POST", "/v1/chat/completions", body, timeout_s=60)
    try:
        words = sorted(set(re.findall(r"[^\W\d_]{3,}", plain["choices"][0]["message"]["content"])))[:32]
        penalty = Penalty(tuple(words) or ("the",))
        guarded_body = {**body, "vllm_xargs": {XARGS_KEY: encode_penalty(penalty)}}
        _, guarded = await upstream.call("POST", "/v1/chat/completions", guarded_body, timeout_s=60)
        guarded_words = set(re.findall(r"[^\W\d_]{3,}", guarded["choices"][0]["message"]["content"].casefold()))
    except (KeyError, IndexError, TypeError):
        return CheckResult(False, "the penalty probe got no completion", "see the log of vLLM")
    if not words:
        return CheckResult(None, "the model generates no words for the penalty probe, so the plugin can't be checked")
    if guarded_words.isdisjoint(word.casefold() for word in words):
        return CheckResult(True, "the logits-processor plugin works in vLLM")
    # The action `corrupt` may fall back to `penalize` (on_unsupported).
    needed = any(p.mode == "enforce" and p.action in ("penalize", "both", "corrupt") for p in policies)
    fix = (
        "pip install lethe-gateway into vLLM's environment and restart vLLM; with asynchronous scheduling on the V1 "
        "runner add --logits-processors lethe.corruption.vllm_plugin:LetheLogitsProcessor; speculative decoding on V1 "
        "allows no plugins"
    )
    return CheckResult(False if needed else None, "the logits-processor plugin does not work in vLLM", fix)
