"""Newest tokens of request slots, on CPU tensors."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from lethe.corruption.decoding.newest_tokens import TOKENS_PER_REQUEST, NewestTokens


def test_newest_tokens_of_the_chosen_slots_are_returned() -> None:
    tokens = torch.arange(60, dtype=torch.int32).reshape(3, 20)
    total = torch.tensor([3, 20, 12], dtype=torch.int32)
    states = SimpleNamespace(total_len=SimpleNamespace(gpu=total), all_token_ids=SimpleNamespace(gpu=tokens))
    newest = NewestTokens(states, [0, 2])
    assert newest.get(0) == (3, [0, 1, 2])
    assert newest.get(2) == (12, list(range(52 - TOKENS_PER_REQUEST, 52)))
    assert newest.get(1) is None
