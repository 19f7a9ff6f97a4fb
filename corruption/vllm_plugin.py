"""GUARD inside vLLM: one class for both of vLLM's logits-processor interfaces.

vLLM finds the class through the entry point group `vllm.logits_processors`. The V1 runner and Model Runner V2 load
the same group, and each requires a subclass of its own interface. So the class is a subclass of both and recognises
the runner by the constructor's arguments. Requests opt in with `vllm_xargs={"lethe": encode_penalty(penalty)}`.
Protected documents are too long for that: their indexes are in the folder LETHE_VERBATIM, and requests name them.

An exception in a logits processor stops the engine for all clients. So `validate_params` checks everything that a
request can contain (vLLM answers 400). Later, a fault in one request's penalty affects that request only. A fault in
the step as a whole affects all guarded requests that are running, and where the rows can't be told apart (V2), every
request in the batch. The answer then ends, or continues unguarded, as the penalty's `on_fault` says. Nothing of a
prompt or a penalty is logged. Where a grammar (structured outputs) allows only banned tokens, the answer ends too, and
vLLM reports that request as failed, because the grammar does not allow the end there.

V1 with asynchronous scheduling gives real token ids only to processors named with
`--logits-processors lethe.corruption.vllm_plugin:LetheLogitsProcessor` (vLLM 0.32), so name the class there as well.
vLLM then creates two instances, one for the entry point and one for the flag. Bans are idempotent, soft weights are
not, so only the newer instance applies those. With speculative decoding, V1 loads no
processors and doesn't report that; use Model Runner V2 there.

Model Runner V2 needs a GPU. The V2 code is tested with hand-made state tensors and vLLM's own loader and interface
classes; it has not run on a GPU. There the tokens of the previous step are copied to the host before the forward pass
starts (`corruption/decoding/newest_tokens.py`). Only speculative decoding, whose draft tokens arrive with the step,
waits for that pass.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from cachetools import LRUCache
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from lethe.corruption.decoding.logits import (
    ConstantMasks,
    GuardedSequence,
    LogitsRow,
    allow_only_end_tokens,
    gather_masks,
    keep_end_token_possible,
)
from lethe.corruption.decoding.newest_tokens import NewestTokens
from lethe.corruption.decoding.spec import XARGS_KEY, decode_penalty
from lethe.corruption.decoding.suffix_index import SuffixIndexFolder
from lethe.corruption.decoding.token_masks import MAX_PROMPT_TOKENS, CompiledPenalty, TokenMaskCache
from lethe.corruption.decoding.token_text import TokenVocabulary, read_vocabulary

try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2LogitsProcessor
except ImportError:  # a build without Model Runner V2

    class V2LogitsProcessor:  # type: ignore[no-redef]
        """Replaces the missing interface where vLLM has only one runner."""


if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

logger = logging.getLogger(__name__)

# Compiled penalties to keep for the answers of one request (n > 1) and for repeated requests. Chosen: compiling
# one again takes milliseconds (`benchmarks/penalty_step.py`).
MAX_COMPILED_PENALTIES = 64
# vLLM's placeholder for a token that the scheduler has not received yet.
_NO_TOKEN = -1
# Sampling parameters by which others may ban tokens too.
_CONSTRAINTS = ("structured_outputs", "allowed_token_ids", "min_tokens", "bad_words")

# Configuration → its newest instance, which alone applies soft weights. vLLM creates two instances if the class is both
# an entry point and named by flag; applying bans twice changes nothing, but soft weights would count twice.
_newest: weakref.WeakValueDictionary[int, LetheLogitsProcessor] = weakref.WeakValueDictionary()


class LetheLogitsProcessor(V1LogitsProcessor, V2LogitsProcessor):  # type: ignore[misc]  # vLLM is untyped here
    """Bans the phrases of guarded requests while vLLM samples their answers."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError when a request's penalty is malformed or this server can't apply it."""
        arguments = sampling_params.extra_args or {}
        if XARGS_KEY not in arguments:
            return
        for name in decode_penalty(arguments[XARGS_KEY]).verbatim:
            _index_folder().get(name)
        if _has_no_tokenizer():
            raise ValueError(f"{XARGS_KEY}: the server runs without a tokenizer")

    def __init__(self, vllm_config: VllmConfig, *runner: Any) -> None:
        """V1 passes (device, is_pin_memory), Model Runner V2 passes its request states."""
        self._is_v2 = len(runner) == 1
        self._request_states: Any = runner[0] if self._is_v2 else None
        # By row of the batch (V1) or by request slot (V2).
        self._sequences: dict[int, GuardedSequence] = {}
        self._compiled: LRUCache[tuple[str, tuple[int, ...]], CompiledPenalty] = LRUCache(MAX_COMPILED_PENALTIES)
        self._mask_cache = TokenMaskCache()
        self._constant_masks = ConstantMasks()
        self._newest_tokens: NewestTokens | None = None
        self._active_slots: set[int] = set()
        # A reference, so that no other configuration gets the same id while this instance lives.
        self._configuration = vllm_config
        _newest[id(vllm_config)] = self
        self._vocabulary = _load_vocabulary(vllm_config)
        self._model_end_tokens = _end_tokens_of_model(vllm_config)

    def is_argmax_invariant(self) -> bool:
        """Return False: banned tokens change what greedy sampling picks."""
        return False

    # V1 runner

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch: rows are removed, then added, then moved."""
        if batch_update is None:
            return
        sequences = self._sequences
        for index in batch_update.removed:
            sequences.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            sequences.pop(index, None)
            if (sequence := self._new_sequence(params, output)) is not None:
                # A prompt of embeddings has no ids: then only the gateway's `begun` says what the prompt ends with.
                sequence.begin_after(prompt or ())
                sequences[index] = sequence
        for source, target, direction in batch_update.moved:
            first, second = sequences.pop(source, None), sequences.pop(target, None)
            if first is not None:
                sequences[target] = first
            if second is not None and direction == MoveDirectionality.SWAP:
                sequences[source] = second

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Mask the rows of guarded answers in place. logits: (rows, vocabulary) float32."""
        if not self._sequences:
            return logits
        try:
            rows = self._v2_rows(logits, ctx) if self._is_v2 else self._v1_rows()
        except Exception:
            logger.error("cannot map guarded requests to logits rows; all guarded requests of this step fail")
            rows = self._rows_after_failure(logits, ctx)
        if rows:
            self._mask_or_fail(logits, rows)
        return logits

    def _v1_rows(self) -> list[LogitsRow]:
        rows = []
        for index, sequence in self._sequences.items():
            if len(sequence.tokens) < sequence.num_read:
                sequence.restart()  # vLLM took tokens back
            unread = sequence.tokens[sequence.num_read :]
            if _NO_TOKEN in unread:
                sequence.fail("vLLM does not pass its tokens (name the processor with --logits-processors too)")
            sequence.read(unread)
            rows.append(LogitsRow(index, sequence, sequence.state))
        return rows

    # Model Runner V2

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take over a request slot, which may still hold an earlier request's answer."""
        self._sequences.pop(req_idx, None)
        self._active_slots.discard(req_idx)
        if (sequence := self._new_sequence(sampling_params, ())) is None:
            return False
        self._sequences[req_idx] = sequence
        self._active_slots.add(req_idx)
        return True

    def apply_staged_writes(self) -> None:
        """Start copying the newest tokens of guarded answers to the host, before the forward pass."""
        self._newest_tokens = None
        if not self._active_slots:
            return
        try:
            self._newest_tokens = NewestTokens(self._request_states, sorted(self._active_slots))
        except Exception:
            logger.error("cannot copy the newest tokens before the forward pass; reading them afterwards")

    def _v2_rows(self, logits: torch.Tensor, ctx: Any) -> list[LogitsRow]:
        slots = ctx.idx_mapping_np.tolist()
        guarded = [(row, slot) for row, slot in enumerate(slots) if slot in self._sequences]
        self._active_slots = {slot for _, slot in guarded}
        if not guarded:
            return []
        for _, slot in guarded:
            self._read_new_tokens(slot)
        if logits.shape[0] == len(slots):
            return [LogitsRow(row, self._sequences[slot], self._sequences[slot].state) for row, slot in guarded]
        return self._rows_with_drafts(ctx)

    def _read_new_tokens(self, slot: int) -> None:
        """Advance a slot's answer by the tokens sampled up to the previous step."""
        sequence, states = self._sequences[slot], self._request_states
        if not sequence.prompt_read:
            self._read_end_of_prompt(slot)
        copied = self._newest_tokens.get(slot) if self._newest_tokens is not None else None
        total, tokens = copied or (int(states.total_len.gpu[slot]), [])
        begin = int(states.prompt_len.np[slot]) + sequence.num_read
        if total < begin:
            sequence.restart()
            begin = int(states.prompt_len.np[slot])
        num_unread = max(0, total - begin)
        if num_unread > len(tokens):
            tokens = states.all_token_ids.gpu[slot, begin:total].tolist()
        sequence.read(tokens[len(tokens) - num_unread :])

    def _read_end_of_prompt(self, slot: int) -> None:
        """Lead a slot's answer over the end of its prompt, once. Rows of embeddings have ids without meaning."""
        sequence, states = self._sequences[slot], self._request_states
        end = int(states.prompt_len.np[slot])
        sequence.begin_after(states.all_token_ids.gpu[slot, max(0, end - MAX_PROMPT_TOKENS) : end].tolist())

    def _rows_with_drafts(self, ctx: Any) -> list[LogitsRow]:
        """One row for each draft token, with the answer's state after the drafts before it."""
        layout = torch.stack([ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.input_ids]).tolist()
        rows: list[LogitsRow] = []
        for index, (slot, offset, token) in enumerate(zip(*layout, strict=True)):
            sequence = self._sequences.get(slot)
            if sequence is None:
                continue
            state = sequence.state
            if offset and not sequence.failed and sequence.penalty is not None:
                # If the previous row bans this draft, vLLM rejects the draft and this row with it.
                state = sequence.penalty.advance(rows[-1].state, max(token, 0))
            rows.append(LogitsRow(index, sequence, state))
        return rows

    # Both runners

    def _new_sequence(self, params: SamplingParams, tokens: Sequence[int]) -> GuardedSequence | None:
        """Return the state of a new answer, or None when its request has no penalty. Never raises."""
        encoded = (params.extra_args or {}).get(XARGS_KEY)
        if encoded is None:
            return None
        end_tokens = tuple(sorted({*self._model_end_tokens, *_end_tokens_of_request(params)}))
        constrained = any(getattr(params, name, None) for name in _CONSTRAINTS)
        sequence = GuardedSequence(None, tokens, end_tokens, stop_on_fault=True, constrained=constrained)
        try:
            sequence.stop_on_fault = decode_penalty(encoded).on_fault == "stop"
            sequence.penalty = self._compile(encoded, end_tokens)
            sequence.start = sequence.state = sequence.penalty.start
        except Exception:
            sequence.fail("cannot prepare its penalty")
        return sequence

    def _compile(self, encoded: str, end_tokens: tuple[int, ...]) -> CompiledPenalty:
        key = (encoded, end_tokens)
        compiled = self._compiled.get(key)
        if compiled is None:
            if self._vocabulary is None:
                raise ValueError("no vocabulary")
            penalty = decode_penalty(encoded)
            protected = [(_index_folder().get(name), limit) for name, limit in penalty.verbatim.items()]
            compiled = CompiledPenalty(
                penalty, self._vocabulary, never_ban=end_tokens, protected=protected, cache=self._mask_cache
            )
            self._compiled[key] = compiled
        return compiled

    def _rows_after_failure(self, logits: torch.Tensor, ctx: Any) -> list[LogitsRow]:
        """Fail all guarded answers and return their rows, as well as they can be determined."""
        for sequence in self._sequences.values():
            sequence.failed = True
        if not self._is_v2:
            return [LogitsRow(i, sequence, sequence.state) for i, sequence in self._sequences.items()]
        try:
            slots = ctx.expanded_idx_mapping.tolist()
        except Exception:
            # Without the layout, nothing says which rows are guarded: end all answers, the safe choice.
            slots = [next(iter(self._sequences))] * logits.shape[0]
        guarded = [(i, self._sequences[slot]) for i, slot in enumerate(slots) if slot in self._sequences]
        return [LogitsRow(i, sequence, sequence.state) for i, sequence in guarded]

    def _mask_or_fail(self, logits: torch.Tensor, rows: list[LogitsRow]) -> None:
        try:
            self._mask_rows(logits, rows)
        except Exception:
            logger.error("cannot mask the rows of guarded requests; all guarded requests of this step fail")
            for row in rows:
                row.sequence.failed = True
            allow_only_end_tokens(logits, [row for row in rows if row.sequence.stop_on_fault])

    def _mask_rows(self, logits: torch.Tensor, rows: list[LogitsRow]) -> None:
        masks = [(row, row.sequence.mask(row.state)) for row in rows]
        usable = [(row, mask) for row, mask in masks if mask is not None]
        self._constant_masks.refresh([row for row, _ in usable], logits)
        softens = _newest.get(id(self._configuration)) is self
        edit_of_states = gather_masks([(row.index, mask) for row, mask in usable if mask], logits)
        for edit in (self._constant_masks.edit, edit_of_states):
            if edit is not None:
                edit.write(logits, soften=softens)
        keep_end_token_possible(logits, [row for row, _ in usable if row.sequence.constrained])
        allow_only_end_tokens(logits, [row for row, mask in masks if mask is None and row.sequence.stop_on_fault])


@cache
def _index_folder() -> SuffixIndexFolder:
    """The verbatim indexes on this machine; the frontend and the engine each read them."""
    folder = os.environ.get("LETHE_VERBATIM")
    return SuffixIndexFolder(Path(folder) if folder else None)


def _end_tokens_of_request(params: SamplingParams) -> set[int]:
    token = getattr(params, "eos_token_id", None)
    return set() if token is None else {int(token)}


def _end_tokens_of_model(vllm_config: VllmConfig) -> tuple[int, ...]:
    """The ids that end an answer, from the model's configuration and generation configuration."""
    tokens: set[int] = set()
    try:
        model = vllm_config.model_config
        generation = model.try_get_generation_config() or {}
        for ids in (generation.get("eos_token_id"), getattr(model.hf_config, "eos_token_id", None)):
            tokens.update([ids] if isinstance(ids, int) else ids or ())
    except Exception:
        logger.exception("cannot read the model's end tokens")
    return tuple(sorted(tokens))


def _load_vocabulary(vllm_config: VllmConfig) -> TokenVocabulary | None:
    """Return the model's vocabulary; None where there is none, so that guarded requests fail closed."""
    try:
        from vllm.tokenizers import cached_tokenizer_from_config

        model = vllm_config.model_config
        tokenizer = cached_tokenizer_from_config(model)
        if tokenizer is None:
            logger.error("the server runs without a tokenizer: guarded requests will fail")
            return None
        return read_vocabulary(tokenizer, model.get_vocab_size())
    except Exception:
        logger.exception("cannot read the tokenizer: guarded requests will fail")
        return None


def _has_no_tokenizer() -> bool:
    """Whether vLLM's current configuration has no tokenizer. A frontend may have no current configuration: False."""
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    return config is not None and bool(config.model_config and config.model_config.skip_tokenizer_init)
