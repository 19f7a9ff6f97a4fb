"""GUARD inside vLLM: one class for both of vLLM's logits-processor interfaces.

vLLM finds it through the entry point group `vllm.logits_processors`. The V1 runner and Model Runner V2 load
the same group and each wants a subclass of its own interface, so the class is both and tells them apart by
the constructor's arguments. Requests opt in with `vllm_xargs={"lethe": to_argument(penalty)}`. Protected
texts are too long for that: their indexes lie in the folder that LETHE_VERBATIM names, and requests name them.

An exception in a logits processor ends the engine for everybody. So everything a request can say is checked
in `validate_params` (vLLM answers 400), and a fault after that concerns its own request only: its answer
ends, or goes on unguarded, as the penalty's `on_fault` says. Nothing of a prompt or a penalty is logged.
Where a grammar (structured outputs) leaves only forbidden tokens, the answer ends too, and vLLM reports
that one request as failed, because its grammar doesn't take the end there.

V1 with asynchronous scheduling hands real token ids to processors only when they are named with
`--logits-processors corruption.vllm_plugin:LetheLogitsProcessor` (vLLM 0.32). Name it there as well; of two
instances in one engine only the newer one applies soft weights. With speculative decoding V1 loads no
processors at all, without a word to them: use Model Runner V2 there.

Model Runner V2 needs a GPU: its side is tested against hand-made state tensors and vLLM's own loader and
interface classes. There the tokens of the previous step are copied to the host before the forward pass
starts, so waiting for them doesn't wait for that pass; only speculative decoding, whose draft tokens come
with the step, waits for it.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as FirstInterface
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from lethe.corruption.decoding.logits import (
    ConstantMasks,
    GuardedSequence,
    LogitsRow,
    allow_only_end_tokens,
    copy_to_device,
    gather_masks,
    keep_end_token_possible,
)
from lethe.corruption.decoding.spec import XARGS_KEY, CompiledPenalty, TokenMaskCache, decode_penalty
from lethe.corruption.decoding.suffix_index import SuffixIndexFolder
from lethe.corruption.decoding.token_text import TokenVocabulary, read_vocabulary

try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as SecondInterface
except ImportError:  # a build without Model Runner V2

    class SecondInterface:  # type: ignore[no-redef]
        """Stands in where vLLM has only one runner."""


if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

logger = logging.getLogger(__name__)

# Guards are shared by the answers of one request (n > 1) and by repeated requests.
_KEPT_GUARDS = 64
# Tokens of each answer that are copied to the host before a step of Model Runner V2.
_WINDOW = 8
_NO_TOKEN = -1

# Configuration → its newest processor: named twice, the class is made twice, and weights must count once.
_newest: weakref.WeakValueDictionary[int, LetheLogitsProcessor] = weakref.WeakValueDictionary()


class LetheLogitsProcessor(FirstInterface, SecondInterface):  # type: ignore[misc]  # vLLM is untyped here
    """Forbids the phrases of guarded requests while their answers are being sampled."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError when a request's argument is malformed or can't be obeyed."""
        arguments = sampling_params.extra_args or {}
        if XARGS_KEY not in arguments:
            return
        for name in decode_penalty(arguments[XARGS_KEY]).verbatim:
            _library().get(name)
        if _without_tokenizer():
            raise ValueError(f"{XARGS_KEY}: the server runs without a tokenizer")

    def __init__(self, vllm_config: VllmConfig, *runner: Any) -> None:
        """V1 passes (device, is_pin_memory), Model Runner V2 passes its request states."""
        self._second = len(runner) == 1
        self._request_states: Any = runner[0] if self._second else None
        self._device = torch.device(runner[0].device if self._second else runner[0])
        self._answers: dict[int, GuardedSequence] = {}
        self._guards: OrderedDict[tuple[str, tuple[int, ...]], CompiledPenalty] = OrderedDict()
        self._masks = TokenMaskCache()
        self._standing = ConstantMasks()
        self._snapshot: _Snapshot | None = None
        self._live: set[int] = set()
        # Held, so that no other configuration gets the same id while this instance lives.
        self._configuration = vllm_config
        _newest[id(vllm_config)] = self
        self._vocabulary = _load_vocabulary(vllm_config)
        self._model_exits = _end_tokens(vllm_config)

    def is_argmax_invariant(self) -> bool:
        """Banned tokens change what greedy sampling takes."""
        return False

    # V1 runner

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch: rows removed, then added, then moved."""
        if batch_update is None:
            return
        answers = self._answers
        for index in batch_update.removed:
            answers.pop(index, None)
        for index, params, _, output in batch_update.added:
            answers.pop(index, None)
            if (answer := self._admit(params, output)) is not None:
                answers[index] = answer
        for one, other, direction in batch_update.moved:
            first, second = answers.pop(one, None), answers.pop(other, None)
            if first is not None:
                answers[other] = first
            if second is not None and direction == MoveDirectionality.SWAP:
                answers[one] = second

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Mask the rows of guarded answers in place. logits: (rows, vocabulary) float32."""
        if not self._answers:
            return logits
        try:
            rows = self._second_rows(logits, ctx) if self._second else self._first_rows()
        except Exception:
            logger.error("the rows of guarded answers could not be told; all of them fail")
            rows = self._fail_all(logits, ctx)
        if rows:
            self._edit(logits, rows)
        return logits

    def _first_rows(self) -> list[LogitsRow]:
        rows = []
        for index, answer in self._answers.items():
            if len(answer.tokens) < answer.seen:
                answer.restart()  # vLLM took tokens back
            fresh = answer.tokens[answer.seen :]
            if _NO_TOKEN in fresh:
                answer.fail("vLLM keeps its tokens back (name the processor with --logits-processors too)")
            answer.read(fresh)
            rows.append(LogitsRow(index, answer, answer.state))
        return rows

    # Model Runner V2

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take over a request slot, which may still hold an earlier request's answer."""
        self._answers.pop(req_idx, None)
        self._live.discard(req_idx)
        if (answer := self._admit(sampling_params, ())) is None:
            return False
        self._answers[req_idx] = answer
        self._live.add(req_idx)
        return True

    def apply_staged_writes(self) -> None:
        """Start copying the newest tokens of guarded answers to the host, ahead of the forward pass."""
        self._snapshot = None
        if not self._live:
            return
        try:
            self._snapshot = _Snapshot(self._request_states, sorted(self._live))
        except Exception:
            logger.error("the newest tokens could not be copied ahead of the step")

    def _second_rows(self, logits: torch.Tensor, ctx: Any) -> list[LogitsRow]:
        slots = ctx.idx_mapping_np.tolist()
        present = [(position, slot) for position, slot in enumerate(slots) if slot in self._answers]
        self._live = {slot for _, slot in present}
        if not present:
            return []
        for _, slot in present:
            self._catch_up(slot)
        if logits.shape[0] == len(slots):
            return [LogitsRow(i, self._answers[slot], self._answers[slot].state) for i, slot in present]
        return self._draft_rows(ctx)

    def _catch_up(self, slot: int) -> None:
        """Read what was sampled for a slot up to the step before."""
        answer, states = self._answers[slot], self._request_states
        taken = self._snapshot.get(slot) if self._snapshot is not None else None
        total, window = taken or (int(states.total_len.gpu[slot]), [])
        begin = int(states.prompt_len.np[slot]) + answer.seen
        if total < begin:
            answer.restart()
            begin = int(states.prompt_len.np[slot])
        missing = max(0, total - begin)
        if missing > len(window):
            window = states.all_token_ids.gpu[slot, begin:total].tolist()
        answer.read(window[len(window) - missing :])

    def _draft_rows(self, ctx: Any) -> list[LogitsRow]:
        """One row for each draft token: its state is the answer's, led on through the drafts before it."""
        layout = torch.stack([ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.input_ids]).tolist()
        rows: list[LogitsRow] = []
        for index, (slot, offset, token) in enumerate(zip(*layout, strict=True)):
            answer = self._answers.get(slot)
            if answer is None:
                continue
            state = answer.state
            if offset and not answer.failed and answer.guard is not None:
                # A draft that the row before forbids is rejected, and this row with it.
                state = answer.guard.advance(rows[-1].state, max(token, 0))
            rows.append(LogitsRow(index, answer, state))
        return rows

    # Both

    def _admit(self, params: SamplingParams, tokens: Sequence[int]) -> GuardedSequence | None:
        value = (params.extra_args or {}).get(XARGS_KEY)
        if value is None:
            return None
        exits = tuple(sorted({*self._model_exits, *_own_end(params)}))
        constrained = any(
            getattr(params, name, None)
            for name in ("structured_outputs", "allowed_token_ids", "min_tokens", "bad_words")
        )
        answer = GuardedSequence(None, tokens, exits, ends=True, constrained=constrained)
        try:
            penalty_ends = decode_penalty(value).on_fault == "stop"
            answer.ends = penalty_ends
            answer.guard = self._guard(value, exits)
        except Exception:
            answer.fail("its penalty could not be prepared")
        return answer

    def _guard(self, value: str, exits: tuple[int, ...]) -> CompiledPenalty:
        key = (value, exits)
        guard = self._guards.get(key)
        if guard is None:
            if self._vocabulary is None:
                raise ValueError("no vocabulary")
            penalty = decode_penalty(value)
            protected = [(_library().get(name), limit) for name, limit in penalty.verbatim.items()]
            guard = CompiledPenalty(penalty, self._vocabulary, keep=exits, protected=protected, masks=self._masks)
            self._guards[key] = guard
            if len(self._guards) > _KEPT_GUARDS:
                self._guards.popitem(last=False)
        self._guards.move_to_end(key)
        return guard

    def _fail_all(self, logits: torch.Tensor, ctx: Any) -> list[LogitsRow]:
        for answer in self._answers.values():
            answer.failed = True
        if not self._second:
            return [LogitsRow(i, answer, answer.state) for i, answer in self._answers.items()]
        try:
            slots = ctx.expanded_idx_mapping.tolist()
        except Exception:
            # Without the layout no row can be told from another: the safe end for all of them.
            slots = [next(iter(self._answers))] * logits.shape[0]
        found = [(i, self._answers[slot]) for i, slot in enumerate(slots) if slot in self._answers]
        return [LogitsRow(i, answer, answer.state) for i, answer in found]

    def _edit(self, logits: torch.Tensor, rows: list[LogitsRow]) -> None:
        try:
            self._mask_rows(logits, rows)
        except Exception:
            logger.error("guarded rows could not be masked; all of them fail")
            for row in rows:
                row.answer.failed = True
            allow_only_end_tokens(logits, [row for row in rows if row.answer.ends])

    def _mask_rows(self, logits: torch.Tensor, rows: list[LogitsRow]) -> None:
        masks = [(row, row.answer.mask(row.state)) for row in rows]
        good = [(row, mask) for row, mask in masks if mask is not None]
        self._standing.refresh([row for row, _ in good], logits)
        softens = _newest.get(id(self._configuration)) is self
        fresh = gather_masks([(row.index, mask) for row, mask in good if mask], logits)
        for edit in (self._standing.edit, fresh):
            if edit is not None:
                edit.write(logits, soften=softens)
        keep_end_token_possible(logits, [row for row, _ in good if row.answer.constrained])
        allow_only_end_tokens(logits, [row for row, mask in masks if mask is None and row.answer.ends])


class _Snapshot:
    """The newest tokens of some slots on their way to the host."""

    def __init__(self, states: Any, slots: list[int]) -> None:
        device = states.total_len.gpu.device
        index = copy_to_device(np.array(slots, dtype=np.int64), device)
        total = states.total_len.gpu[index].long()
        places = (total[:, None] + torch.arange(-_WINDOW, 0, device=device)).clamp_(min=0)
        window = states.all_token_ids.gpu[index[:, None], places].long()
        taken = torch.cat([total[:, None], window], dim=1)
        self._slots = {slot: i for i, slot in enumerate(slots)}
        self._ready: torch.cuda.Event | None = None
        if device.type == "cpu":
            self._host = taken
        else:
            self._host = torch.empty(taken.shape, dtype=taken.dtype, pin_memory=True)
            self._host.copy_(taken, non_blocking=True)
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    def get(self, slot: int) -> tuple[int, list[int]] | None:
        """(length of prompt and answer, its last tokens); None for a slot that wasn't asked for."""
        if slot not in self._slots:
            return None
        if self._ready is not None:
            self._ready.synchronize()
        total, *window = self._host[self._slots[slot]].tolist()
        return total, window[max(0, _WINDOW - total) :]


@cache
def _library() -> SuffixIndexFolder:
    """The indexes of protected texts on this machine; the frontend and the engine each read them."""
    folder = os.environ.get("LETHE_VERBATIM")
    return SuffixIndexFolder(Path(folder) if folder else None)


def _own_end(params: SamplingParams) -> set[int]:
    own = getattr(params, "eos_token_id", None)
    return set() if own is None else {int(own)}


def _end_tokens(vllm_config: VllmConfig) -> tuple[int, ...]:
    """The ids that end an answer, as the model's configuration and generation configuration say."""
    found: set[int] = set()
    try:
        model = vllm_config.model_config
        generation = model.try_get_generation_config() or {}
        for ends in (generation.get("eos_token_id"), getattr(model.hf_config, "eos_token_id", None)):
            found.update([ends] if isinstance(ends, int) else ends or ())
    except Exception:
        logger.exception("the model's end tokens could not be read")
    return tuple(sorted(found))


def _load_vocabulary(vllm_config: VllmConfig) -> TokenVocabulary | None:
    """The model's vocabulary; None where there is none to read, so that guarded requests fail closed."""
    try:
        from vllm.tokenizers import cached_tokenizer_from_config

        model = vllm_config.model_config
        tokenizer = cached_tokenizer_from_config(model)
        if tokenizer is None:
            logger.error("the server runs without a tokenizer: guarded requests will fail")
            return None
        return read_vocabulary(tokenizer, model.get_vocab_size())
    except Exception:
        logger.exception("the tokenizer could not be read: guarded requests will fail")
        return None


def _without_tokenizer() -> bool:
    """Whether the configuration at hand, if any, has no tokenizer (a frontend may have none at hand)."""
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    return config is not None and bool(config.model_config and config.model_config.skip_tokenizer_init)
