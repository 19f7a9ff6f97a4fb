"""The newest tokens of some requests, copied from the GPU before the forward pass starts.

Model Runner V2 keeps token ids on the device. Copying them ahead means that reading them doesn't wait for the
forward pass. It knows the layout of vLLM's request states, but imports no vLLM.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lethe.corruption.decoding.logits import copy_to_device

# Tokens of each answer to copy. A step without speculative decoding adds one; the others serve answers that were left
# out of some steps. Chosen: 8 ids of 8 bytes cost the copy nothing, and longer gaps are read from the device.
TOKENS_PER_REQUEST = 8


class NewestTokens:
    """The lengths and newest tokens of some request slots, on their way to the host."""

    def __init__(self, request_states: Any, slots: list[int]) -> None:
        """Start the copy. request_states: Model Runner V2's `total_len` and `all_token_ids`, by slot."""
        device = request_states.total_len.gpu.device
        index = copy_to_device(np.array(slots, dtype=np.int64), device)
        total = request_states.total_len.gpu[index].long()
        positions = (total[:, None] + torch.arange(-TOKENS_PER_REQUEST, 0, device=device)).clamp_(min=0)
        newest = request_states.all_token_ids.gpu[index[:, None], positions].long()
        lengths_and_tokens = torch.cat([total[:, None], newest], dim=1)
        self._row_of_slot = {slot: i for i, slot in enumerate(slots)}
        self._copied: torch.cuda.Event | None = None
        if device.type == "cpu":
            self._host = lengths_and_tokens
        else:
            self._host = torch.empty(lengths_and_tokens.shape, dtype=lengths_and_tokens.dtype, pin_memory=True)
            self._host.copy_(lengths_and_tokens, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def get(self, slot: int) -> tuple[int, list[int]] | None:
        """Return (length of prompt and answer, their last tokens), or None for a slot that was not copied."""
        if slot not in self._row_of_slot:
            return None
        if self._copied is not None:
            self._copied.synchronize()
        total, *newest = self._host[self._row_of_slot[slot]].tolist()
        return total, newest[max(0, TOKENS_PER_REQUEST - total) :]
