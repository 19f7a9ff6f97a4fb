"""Writing penalties into a batch of logits, so that one answer's fault stays its own.

It knows torch and guards, not vLLM: which rows there are is told by the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lethe.corruption.decoding.spec import CompiledPenalty, TextState, TokenMask

logger = logging.getLogger(__name__)


@dataclass
class GuardedSequence:
    """One guarded answer in the batch: its guard, where its text stands, and whether it failed.

    tokens: V1's live list of output ids. constrained: something else may forbid tokens too, so that
    together nothing might be left. guard is None when it could not be made.
    """

    guard: CompiledPenalty | None
    tokens: Sequence[int]
    exits: tuple[int, ...]
    ends: bool
    constrained: bool
    state: TextState = CompiledPenalty.start
    seen: int = 0
    failed: bool = False

    def restart(self) -> None:
        self.state, self.seen = CompiledPenalty.start, 0

    def read(self, tokens: Sequence[int]) -> None:
        """Go on with the newest tokens of the answer; a fault is the answer's own."""
        if self.failed or self.guard is None:
            self.failed = True
            return
        try:
            for token in tokens:
                self.state = self.guard.advance(self.state, token)
            self.seen += len(tokens)
        except Exception:
            self.fail("its tokens could not be read")

    def mask(self, state: TextState) -> TokenMask | None:
        """What the state adds; None when the answer has failed."""
        if self.failed or self.guard is None:
            return None
        try:
            return self.guard.mask(state)
        except Exception:
            self.fail("its mask could not be made")
            return None

    def fail(self, why: str) -> None:
        # No traceback and no message of the error: they could quote the answer.
        logger.error("a guarded answer failed: %s; on_fault: %s", why, "stop" if self.ends else "pass")
        self.failed = True


@dataclass(frozen=True)
class LogitsRow:
    """A row of the logits, the answer it belongs to, and the state that its next token starts from."""

    index: int
    answer: GuardedSequence
    state: TextState


@dataclass(frozen=True)
class LogitsEdit:
    """Places of the logits in the order of their memory, on their device: banned, and softened by weights."""

    banned: torch.Tensor
    softened: torch.Tensor
    less: torch.Tensor

    def write(self, logits: torch.Tensor, *, soften: bool) -> None:
        """Change the logits in place: one kernel sets all bans, one adds all weights, below zero.

        logits: those that the edit was gathered for, or others that lie alike in memory.
        """
        flat = _flat(logits)
        if soften and self.softened.shape[0]:
            flat.scatter_add_(0, self.softened, self.less.to(logits.dtype))
        if self.banned.shape[0]:
            flat.index_fill_(0, self.banned, float("-inf"))


def _flat(logits: torch.Tensor) -> torch.Tensor:
    """The memory of (rows, vocabulary) logits from their first to their last, whether rows are padded or not."""
    rows, width = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("the logits of a row do not lie side by side")
    return logits.as_strided(((rows - 1) * logits.stride(0) + width,), (1,))


def gather_masks(masks: list[tuple[int, TokenMask]], logits: torch.Tensor) -> LogitsEdit | None:
    """The masks of several rows as one list of places: one copy to the device, which nothing waits for.

    Raises ValueError for a token that the logits have no place for: it would be one of the next row.
    """
    stride, width = logits.stride(0), logits.shape[1]
    for _, mask in masks:
        if (len(mask.banned) and mask.banned[-1] >= width) or (len(mask.softened) and mask.softened[-1] >= width):
            raise ValueError(f"a mask reaches beyond {width} logits")
    banned, softened = sum(len(mask.banned) for _, mask in masks), sum(len(mask.softened) for _, mask in masks)
    if not banned + softened:
        return None
    packed = np.empty(8 * banned + 12 * softened, dtype=np.uint8)
    ends = 8 * banned, 8 * (banned + softened)
    np.concatenate([mask.banned + row * stride for row, mask in masks], out=packed[: ends[0]].view(np.int64))
    np.concatenate([mask.softened + row * stride for row, mask in masks], out=packed[ends[0] : ends[1]].view(np.int64))
    np.negative(np.concatenate([mask.weights for _, mask in masks]), out=packed[ends[1] :].view(np.float32))
    there = copy_to_device(packed, logits.device)
    return LogitsEdit(
        there[: ends[0]].view(torch.int64),
        there[ends[0] : ends[1]].view(torch.int64),
        there[ends[1] :].view(torch.float32),
    )


def copy_to_device(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class ConstantMasks:
    """The masks that hold in every state, kept on the device until the batch changes."""

    def __init__(self) -> None:
        self._key: tuple[int, list[tuple[int, int]]] | None = None
        self._guards: list[CompiledPenalty] = []
        self.edit: LogitsEdit | None = None

    def refresh(self, rows: list[LogitsRow], logits: torch.Tensor) -> None:
        key = logits.stride(0), [(row.index, id(row.answer.guard)) for row in rows]
        if key == self._key:
            return
        # Kept alive, so that no other guard can get the same id while the key stands.
        self._guards = [row.answer.guard for row in rows if row.answer.guard is not None]
        masks = [(row.index, guard.always) for row, guard in zip(rows, self._guards, strict=True)]
        self.edit = gather_masks([(index, mask) for index, mask in masks if mask], logits)
        self._key = key


def keep_end_token_possible(logits: torch.Tensor, rows: list[LogitsRow]) -> None:
    """Open the end of the answer where nothing at all is left, without asking the device."""
    if not rows:
        return
    # One copy to the device, which nothing waits for.
    wanted = np.array([[row.index, (row.answer.exits or (0,))[0]] for row in rows], dtype=np.int64).T
    index, exits = copy_to_device(np.ascontiguousarray(wanted), logits.device)
    empty = torch.isneginf(logits[index]).all(dim=-1)
    logits[index, exits] = torch.where(empty, torch.zeros_like(logits[index, exits]), logits[index, exits])


def allow_only_end_tokens(logits: torch.Tensor, rows: list[LogitsRow]) -> None:
    """Only the end of the answer stays possible. The last resort, so it doesn't raise either."""
    for row in rows:
        try:
            logits[row.index] = float("-inf")
            exits = [token for token in row.answer.exits if token < logits.shape[-1]]
            for token in exits or [0]:
                logits[row.index, token] = 0.0
        except Exception:
            logger.critical("a guarded answer could not be ended")
