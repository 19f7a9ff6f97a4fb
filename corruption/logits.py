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

from corruption.penalties import Guard, Mask, TextState

logger = logging.getLogger(__name__)


@dataclass
class Answer:
    """One guarded answer in the batch: its guard, where its text stands, and whether it failed.

    tokens: V1's live list of output ids. constrained: something else may forbid tokens too, so that
    together nothing might be left. guard is None when it could not be made.
    """

    guard: Guard | None
    tokens: Sequence[int]
    exits: tuple[int, ...]
    ends: bool
    constrained: bool
    state: TextState = Guard.start
    seen: int = 0
    failed: bool = False

    def restart(self) -> None:
        self.state, self.seen = Guard.start, 0

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

    def mask(self, state: TextState) -> Mask | None:
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
class Row:
    """A row of the logits, the answer it belongs to, and the state that its next token starts from."""

    index: int
    answer: Answer
    state: TextState


@dataclass(frozen=True)
class Edit:
    """Places of the logits, by row and token, on the logits' device: banned, and softened by weights."""

    banned: tuple[torch.Tensor, torch.Tensor]
    softened: tuple[torch.Tensor, torch.Tensor]
    weights: torch.Tensor

    def write(self, logits: torch.Tensor, never: torch.Tensor, *, soften: bool) -> None:
        """Change the logits in place. never: -inf as a scalar tensor on their device."""
        if soften and len(self.weights):
            logits.index_put_(self.softened, logits[self.softened] - self.weights)
        if len(self.banned[0]):
            logits.index_put_(self.banned, never)


def gather(masks: list[tuple[int, Mask]], device: torch.device) -> Edit | None:
    """The masks of several rows as one set of index tensors."""
    if not masks:
        return None
    rows = np.array([row for row, _ in masks], dtype=np.int64)
    banned = np.stack(
        [
            np.repeat(rows, [len(mask.banned) for _, mask in masks]),
            np.concatenate([mask.banned for _, mask in masks]),
        ]
    )
    softened = np.stack(
        [
            np.repeat(rows, [len(mask.softened) for _, mask in masks]),
            np.concatenate([mask.softened for _, mask in masks]),
        ]
    )
    weights = np.concatenate([mask.weights for _, mask in masks])
    hard, soft = to_device(banned, device), to_device(softened, device)
    return Edit((hard[0], hard[1]), (soft[0], soft[1]), to_device(weights, device))


def to_device(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Standing:
    """The masks that hold in every state, kept on the device until the batch changes."""

    def __init__(self) -> None:
        self._key: list[tuple[int, int]] = []
        self._guards: list[Guard] = []
        self.edit: Edit | None = None

    def refresh(self, rows: list[Row], device: torch.device) -> None:
        key = [(row.index, id(row.answer.guard)) for row in rows]
        if key == self._key:
            return
        # Kept alive, so that no other guard can get the same id while the key stands.
        self._guards = [row.answer.guard for row in rows if row.answer.guard is not None]
        masks = [(row.index, guard.always) for row, guard in zip(rows, self._guards, strict=True)]
        self.edit = gather([(index, mask) for index, mask in masks if mask], device)
        self._key = key


def leave_something(logits: torch.Tensor, rows: list[Row]) -> None:
    """Open the end of the answer where nothing at all is left, without asking the device."""
    if not rows:
        return
    index = torch.tensor([row.index for row in rows], device=logits.device)
    exits = torch.tensor([(row.answer.exits or (0,))[0] for row in rows], device=logits.device)
    empty = torch.isneginf(logits[index]).all(dim=-1)
    logits[index, exits] = torch.where(empty, torch.zeros_like(logits[index, exits]), logits[index, exits])


def end_rows(logits: torch.Tensor, rows: list[Row]) -> None:
    """Only the end of the answer stays possible. The last resort, so it doesn't raise either."""
    for row in rows:
        try:
            logits[row.index] = float("-inf")
            exits = [token for token in row.answer.exits if token < logits.shape[-1]]
            logits[row.index, exits or [0]] = 0.0
        except Exception:
            logger.critical("a guarded answer could not be ended")
