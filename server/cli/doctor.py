"""`lethe doctor`: is everything in place, and if not, how to mend it."""

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
from lethe.server.errors import GuardError
from lethe.server.policy.schema import Policy, PolicyError, read_policies
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

TESTED_VLLM = "0.32.0"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ok None: not needed here, or only a hint."""

    ok: bool | None
    what: str
    mend: str = ""


def doctor(args: argparse.Namespace, settings: Settings) -> int:
    """Check model folder, tokenizer, vLLM's version and flags, the plugin, parity, policies and artifacts."""
    findings = asyncio.run(_collect(settings))
    for finding in findings:
        print({True: "ok    ", False: "WRONG ", None: "note  "}[finding.ok] + finding.what)
        if finding.mend and not finding.ok:
            print(f"       → {finding.mend}")
    wrong = sum(finding.ok is False for finding in findings)
    print(f"\n{wrong} to mend" if wrong else "\nall in place")
    return 1 if wrong else 0


async def _collect(settings: Settings) -> list[Finding]:
    findings: list[Finding] = []
    policies: tuple[Policy, ...] = ()
    try:
        policies = read_policies(settings.policies)
        findings.extend(_policies(policies, settings))
        findings.extend(_encoder(tuple(policy for policy in policies if policy.mode != "off"), settings))
    except PolicyError as error:
        findings.append(Finding(False, str(error), "mend the file, then run `lethe doctor` again"))
    findings.extend(_workers(settings))
    findings.extend(_model(settings))
    corruptor = None
    try:
        corruptor = load_corruptor(settings, policies)
    except SettingsError as error:
        example = f"LETHE_SECRET={secrets.token_urlsafe(8)}… (make your own of 16 characters or more, and keep it)"
        mend = f"for instance {example}" if "LETHE_SECRET" in str(error) else "see docs/reference/settings.md"
        findings.append(Finding(False, str(error), mend))
    for upstream in upstreams_from(settings):
        try:
            async for finding in _upstream(upstream, settings, policies, corruptor):
                findings.append(finding)
        finally:
            await upstream.close()
    return findings


def _policies(policies: tuple[Policy, ...], settings: Settings) -> Iterator[Finding]:
    if not policies:
        yield Finding(None, f"no policies in {settings.policies}: everything passes")
    for policy in policies:
        if policy.mode == "off":
            yield Finding(None, f"policy {policy.name}: off")
            continue
        try:
            artifact = load_artifact(settings, policy)
            at = find_threshold(policy, artifact)
            resolve_tuned(policy, artifact.manifest.tuned, settings.model_dir)
        except PolicyError as error:
            yield Finding(
                False,
                str(error),
                "make the artifact with `lethe fit`, tune it with `lethe tune`, or correct the policy",
            )
        else:
            items = f"{len(artifact.live_items)} forget items"
            text = f"policy {policy.name}: {policy.mode} {policy.action}, {items}, threshold {at:.4f}"
            yield Finding(True, text)


def _workers(settings: Settings) -> Iterator[Finding]:
    """Whether the limits can be shared out among the workers, and each worker has a core."""
    try:
        share = settings_per_worker(settings)
    except SettingsError as error:
        yield Finding(False, str(error), "raise it, or use fewer workers")
        return
    if settings.workers == 1:
        return
    cores = len(os.sched_getaffinity(0))
    if settings.workers > cores:
        yield Finding(
            None, f"LETHE_WORKERS = {settings.workers}, and there are {cores} cores: more workers gain nothing"
        )
    else:
        yield Finding(
            True, f"{settings.workers} workers on {cores} cores, {share.max_requests} requests at a time each"
        )


def _model(settings: Settings) -> Iterator[Finding]:
    if settings.model_dir is None:
        yield Finding(None, "LETHE_MODEL_DIR is not set: token-id prompts are refused and nothing can be corrupted")
        return
    try:
        decode = load_decode(settings.model_dir)
        assert decode is not None
        decode([0])
        yield Finding(True, f"tokenizer in {settings.model_dir}")
    except (SettingsError, ValueError, OSError) as error:
        yield Finding(False, str(error), "point LETHE_MODEL_DIR at the folder that vLLM serves")
    from lethe.corruption.embeddings.embedding_table import EmbeddingTable

    try:
        table = EmbeddingTable(settings.model_dir)
        yield Finding(True, f"embedding table: {table.size} rows of {table.width}, row RMS {table.row_rms:.4f}")
    except (ValueError, OSError) as error:
        yield Finding(False, str(error), "point LETHE_MODEL_DIR at the folder that vLLM serves")


def _encoder(policies: tuple[Policy, ...], settings: Settings) -> Iterator[Finding]:
    """Whether the sentence encoder can be loaded, and is the one that the artifacts were fitted with."""
    try:
        encoder = load_encoder(settings.encoder or DEFAULT_ENCODER)
    except (ValueError, OSError, ImportError) as error:
        mend = "pip install 'lethe-gateway[fit]' prepares it once, or correct LETHE_ENCODER"
        yield Finding(False, f"sentence encoder: {error}", mend)
        return
    yield Finding(True, f"sentence encoder {encoder.name}")
    for policy in policies:
        try:
            Judge({policy.artifact: load_artifact(settings, policy)}, encoder)
        except PolicyError:
            continue  # said already
        except ValueError as error:
            yield Finding(
                False, f"policy {policy.name!r}: {error}", "fit it again, or set LETHE_ENCODER to that encoder"
            )


async def _upstream(
    upstream: Upstream, settings: Settings, policies: tuple[Policy, ...], corruptor: Corruptor | None
) -> AsyncIterator[Finding]:
    try:
        status, _ = await upstream.call("GET", "/health")
        model = (await fetch_model_cards(upstream))[0]["id"]
    except GuardError as error:
        yield Finding(False, f"vLLM at {upstream.url}: {error.message}", "start vLLM, or correct LETHE_UPSTREAM")
        return
    yield Finding(status == 200, f"vLLM at {upstream.url} serves {model}", "look at vLLM's own log")
    try:
        _, answer = await upstream.call("GET", "/version")
    except GuardError as error:
        answer = error.message
    found = answer.get("version", "unknown") if isinstance(answer, dict) else "unknown"
    same = str(found).startswith(TESTED_VLLM)
    yield Finding(True if same else None, f"vLLM version {found}" + ("" if same else f" (tested with {TESTED_VLLM})"))
    try:
        yield await _plugin(upstream, model, policies)
    except GuardError as error:
        yield Finding(False, f"the penalty probe failed: {error.message}", "look at vLLM's own log")
    async for finding in _indexes(upstream, settings, model, policies):
        yield finding
    if corruptor is not None:
        try:
            result = await parity_probe.probe_parity(upstream, corruptor)
        except GuardError as error:
            result = parity_probe.ParityResult(False, error.message)
        mend = "start vLLM with --enable-prompt-embeds and give the gateway the same model folder"
        yield Finding(result.holds, f"parity of clean embeddings: {result.reason}", mend)


async def _indexes(
    upstream: Upstream, settings: Settings, model: str, policies: tuple[Policy, ...]
) -> AsyncIterator[Finding]:
    """Whether vLLM has the indexes of the documents that policies keep from being copied."""
    try:
        enforced = [policy for policy in policies if policy.mode == "enforce"]
        indexes = find_indexes(enforced, {policy.artifact: load_artifact(settings, policy) for policy in enforced})
        there = await loaded_indexes(upstream, model, indexes.values())
    except PolicyError as error:
        yield Finding(False, str(error), "correct the policy, or fit its artifact with documents")
        return
    except GuardError as error:
        yield Finding(False, f"the verbatim probe failed: {error.message}", "look at vLLM's own log")
        return
    mend = (
        "start vLLM with LETHE_VERBATIM naming a copy of the artifacts folder (LETHE_ARTIFACTS); "
        "`lethe fit` writes the index"
    )
    for artifact, name in indexes.items():
        has = "has" if name in there else "does not have"
        yield Finding(name in there, f"vLLM {has} the verbatim index of artifact {artifact}", mend)


async def _plugin(upstream: Upstream, model: str, policies: tuple[Policy, ...]) -> Finding:
    """Whether a penalty holds: what vLLM has just said must not come back once it is forbidden.

    A version or a flag alone would not tell: some configurations load no plugins and say nothing.
    """
    messages = [{"role": "user", "content": parity_probe.PROBE_PROMPT}]
    body = {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0}
    _, plain = await upstream.call("POST", "/v1/chat/completions", body, timeout_s=60)
    try:
        words = sorted(set(re.findall(r"[^\W\d_]{3,}", plain["choices"][0]["message"]["content"])))[:32]
        made = Penalty(tuple(words) or ("the",))
        guarded_body = {**body, "vllm_xargs": {XARGS_KEY: encode_penalty(made)}}
        _, guarded = await upstream.call("POST", "/v1/chat/completions", guarded_body, timeout_s=60)
        said = set(re.findall(r"[^\W\d_]{3,}", guarded["choices"][0]["message"]["content"].casefold()))
    except (KeyError, IndexError, TypeError):
        return Finding(False, "the penalty probe got no completion", "look at vLLM's own log")
    if not words:
        return Finding(None, "the model says nothing to the penalty probe, so the plugin can't be checked")
    if said.isdisjoint(word.casefold() for word in words):
        return Finding(True, "the logits-processor plugin is at work in vLLM")
    # `corrupt` too may fall back to `penalize` (on_unsupported).
    needed = any(p.mode == "enforce" and p.action in ("penalize", "both", "corrupt") for p in policies)
    mend = (
        "pip install lethe-gateway into vLLM's environment and restart vLLM; with asynchronous scheduling on the V1 "
        "runner add --logits-processors lethe.corruption.vllm_plugin:LetheLogitsProcessor; speculative decoding on V1 "
        "allows no plugins"
    )
    return Finding(False if needed else None, "the logits-processor plugin is not at work in vLLM", mend)
