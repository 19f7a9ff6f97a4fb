"""Apply token masks to a batch of logits, so that a fault in one answer affects no other.

It knows torch and compiled penalties, not vLLM: the caller says which row of the logits belongs to which answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lethe.corruption.decoding.token_masks import CompiledPenalty, TextState, TokenMask

logger = logging.getLogger(__name__)


@dataclass
class GuardedSequence:
    """One guarded answer in the batch: its penalty, the state of its text, and whether it has failed.

    penalty: None when it could not be prepared. tokens: V1's live list of output ids. end_tokens: the ids that end
    the answer. stop_on_fault: end the answer after a fault, instead of continuing unguarded. constrained: other
    constraints (a grammar, say) may forbid tokens too, so that together none might remain. start: the state before
    the first token. num_read: how many tokens the state covers. prompt_read: whether `start` covers the prompt's end.
    """

    penalty: CompiledPenalty | None
    tokens: Sequence[int]
    end_tokens: tuple[int, ...]
    stop_on_fault: bool
    constrained: bool
    state: TextState = CompiledPenalty.start
    num_read: int = 0
    failed: bool = False
    start: TextState = CompiledPenalty.start
    prompt_read: bool = False

    def begin_after(self, prompt: Sequence[int]) -> None:
        """Lead the state over the end of the prompt, before any token is read. A fault fails this answer only."""
        self.prompt_read = True
        if self.failed or self.penalty is None:
            return
        try:
            self.start = self.penalty.start_after(prompt)
            self.restart()
        except Exception:
            self.fail("cannot read its prompt")

    def restart(self) -> None:
        """Return to the beginning of the answer."""
        self.state, self.num_read = self.start, 0

    def read(self, tokens: Sequence[int]) -> None:
        """Advance the state by the answer's newest tokens. A fault fails this answer only."""
        if self.failed or self.penalty is None:
            self.failed = True
            return
        try:
            for token in tokens:
                self.state = self.penalty.advance(self.state, token)
            self.num_read += len(tokens)
        except Exception:
            self.fail("cannot read its tokens")

    def mask(self, state: TextState) -> TokenMask | None:
        """Return the mask of the state; None when the answer has failed."""
        if self.failed or self.penalty is None:
            return None
        try:
            return self.penalty.mask(state)
        except Exception:
            self.fail("cannot build its token mask")
            return None

    def fail(self, reason: str) -> None:
        """Mark the answer as failed, and log why."""
        # Log neither a traceback nor the error's message: they could quote the answer.
        logger.error("a guarded answer failed: %s; on_fault: %s", reason, "stop" if self.stop_on_fault else "pass")
        self.failed = True


@dataclass(frozen=True)
class LogitsRow:
    """A row of the logits, the answer it belongs to, and the text state before its next token."""

    index: int
    sequence: GuardedSequence
    state: TextState


@dataclass(frozen=True)
class LogitsEdit:
    """Flat positions in the logits' memory, on their device: to ban, and to soften by adding `offsets`.

    banned, softened: int64, in the order of memory. offsets: float32, negative, one for each softened position.
    """

    banned: torch.Tensor
    softened: torch.Tensor
    offsets: torch.Tensor

    def write(self, logits: torch.Tensor, *, soften: bool) -> None:
        """Change the logits in place, with one kernel for all bans and one for all weights.

        logits: those that the edit was built for, or others with the same shape and strides.
        """
        flat = _flat(logits)
        if soften and self.softened.shape[0]:
            flat.scatter_add_(0, self.softened, self.offsets.to(logits.dtype))
        if self.banned.shape[0]:
            flat.index_fill_(0, self.banned, float("-inf"))


def _flat(logits: torch.Tensor) -> torch.Tensor:
    """The memory of (rows, vocabulary) logits as one line, padding between rows included."""
    rows, width = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("the logits of a row are not contiguous in memory")
    return logits.as_strided(((rows - 1) * logits.stride(0) + width,), (1,))


def gather_masks(masks: list[tuple[int, TokenMask]], logits: torch.Tensor) -> LogitsEdit | None:
    """Return the masks of several rows as one edit, copied to the device at once and without waiting; None if empty.

    masks: (row, mask). Raises ValueError for a token beyond the logits: its position would be in the next row.
    """
    stride, width = logits.stride(0), logits.shape[1]
    for _, mask in masks:
        if (len(mask.banned) and mask.banned[-1] >= width) or (len(mask.softened) and mask.softened[-1] >= width):
            raise ValueError(f"a mask reaches beyond {width} logits")
    banned, softened = sum(len(mask.banned) for _, mask in masks), sum(len(mask.softened) for _, mask in masks)
    if not banned + softened:
        return None
    # One buffer: 8 bytes for each position (int64), 4 for each offset (float32).
    packed = np.empty(8 * banned + 12 * softened, dtype=np.uint8)
    ends = 8 * banned, 8 * (banned + softened)
    np.concatenate([mask.banned + row * stride for row, mask in masks], out=packed[: ends[0]].view(np.int64))
    np.concatenate([mask.softened + row * stride for row, mask in masks], out=packed[ends[0] : ends[1]].view(np.int64))
    np.negative(np.concatenate([mask.weights for _, mask in masks]), out=packed[ends[1] :].view(np.float32))
    on_device = copy_to_device(packed, logits.device)
    return LogitsEdit(
        on_device[: ends[0]].view(torch.int64),
        on_device[ends[0] : ends[1]].view(torch.int64),
        on_device[ends[1] :].view(torch.float32),
    )


def copy_to_device(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """Return the array as a tensor on the device. The copy is asynchronous; on the CPU they share memory."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class ConstantMasks:
    """The masks that hold in every state, kept on the device until the batch changes."""

    def __init__(self) -> None:
        self._key: tuple[int, list[tuple[int, int]]] | None = None
        self._penalties: list[CompiledPenalty] = []
        self.edit: LogitsEdit | None = None

    def refresh(self, rows: list[LogitsRow], logits: torch.Tensor) -> None:
        """Rebuild `edit` if the rows or the logits' layout have changed. No row may belong to a failed answer."""
        key = logits.stride(0), [(row.index, id(row.sequence.penalty)) for row in rows]
        if key == self._key:
            return
        # Keep them alive, so that no other penalty can get the same id while this key is in use.
        self._penalties = [row.sequence.penalty for row in rows if row.sequence.penalty is not None]
        masks = [(row.index, penalty.constant_mask) for row, penalty in zip(rows, self._penalties, strict=True)]
        self.edit = gather_masks([(index, mask) for index, mask in masks if mask], logits)
        self._key = key


def keep_end_token_possible(logits: torch.Tensor, rows: list[LogitsRow]) -> None:
    """Allow the end of the answer in rows where every token is banned, without a device-to-host copy."""
    if not rows:
        return
    # One copy to the device, which nothing waits for.
    pairs = np.array([[row.index, (row.sequence.end_tokens or (0,))[0]] for row in rows], dtype=np.int64).T
    index, end_tokens = copy_to_device(np.ascontiguousarray(pairs), logits.device)
    empty = torch.isneginf(logits[index]).all(dim=-1)
    logits[index, end_tokens] = torch.where(
        empty, torch.zeros_like(logits[index, end_tokens]), logits[index, end_tokens]
    )


def allow_only_end_tokens(logits: torch.Tensor, rows: list[LogitsRow]) -> None:
    """Ban all tokens but the end of the answer. This is the last resort after a fault, so it never raises."""
    for row in rows:
        try:
            logits[row.index] = float("-inf")
            end_tokens = [token for token in row.sequence.end_tokens if token < logits.shape[-1]]
            for token in end_tokens or [0]:
                logits[row.index, token] = 0.0
        except Exception:
            logger.critical("cannot end a guarded answer")
