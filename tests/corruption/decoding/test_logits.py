"""Token masks applied to logits, and the end of an answer as the last resort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.corruption.decoding.logits import (
    ConstantMasks,
    GuardedSequence,
    LogitsRow,
    allow_only_end_tokens,
    gather_masks,
    keep_end_token_possible,
)
from lethe.corruption.decoding.spec import Penalty
from lethe.corruption.decoding.token_masks import CompiledPenalty, TokenMask
from lethe.corruption.decoding.token_text import TokenVocabulary

COMPILED = CompiledPenalty(Penalty(("zorin",)), TokenVocabulary([b"a", b" zorin", b" the", b"b"]))


def mask(banned: list[int], softened: dict[int, float]) -> TokenMask:
    return TokenMask(
        np.array(banned, dtype=np.int64),
        np.array(list(softened), dtype=np.int64),
        np.array(list(softened.values()), dtype=np.float32),
    )


def answer(end_tokens: tuple[int, ...] = (3,)) -> GuardedSequence:
    return GuardedSequence(COMPILED, (), end_tokens, stop_on_fault=True, constrained=True)


def test_each_mask_changes_its_own_row() -> None:
    logits = torch.zeros(3, 4)
    edit = gather_masks([(0, mask([1], {2: 1.5})), (2, mask([], {0: 0.5}))], logits)
    assert edit is not None
    edit.write(logits, soften=True)
    inf = float("inf")
    assert logits.tolist() == [[0, -inf, -1.5, 0], [0, 0, 0, 0], [-0.5, 0, 0, 0]]


@settings(deadline=None)
@given(data=st.data())
def test_one_write_equals_writing_row_by_row(data: st.DataObject) -> None:
    """Try padded rows, bfloat16, infinities and NaN, and tokens that are both banned and softened."""
    rows, width, gap = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9)), data.draw(st.integers(0, 3))
    kind = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    memory = torch.randn(rows, width + gap, generator=torch.Generator().manual_seed(1)).to(kind)
    memory[:, ::3] = float(data.draw(st.sampled_from(["inf", "-inf", "nan", "1"])))
    logits = memory[:, :width]
    tokens = st.lists(st.integers(0, width - 1), unique=True).map(sorted)
    masks = [
        (row, mask(data.draw(tokens), {token: float(token + 1) for token in data.draw(tokens)}))
        for row in data.draw(st.lists(st.integers(0, rows - 1), unique=True))
    ]
    for soften in (True, False):
        before, expected = memory.clone(), memory.clone()
        for row, one in masks:
            for token, weight in zip(one.softened, one.weights, strict=True):
                expected[row, token] -= float(weight) if soften else 0.0
            expected[row, one.banned] = float("-inf")
        edit = gather_masks(masks, logits)
        if edit is not None:
            edit.write(logits, soften=soften)
        assert torch.equal(memory.nan_to_num(7e7), expected.nan_to_num(7e7))
        memory.copy_(before)


def test_tokens_beyond_the_logits_raise() -> None:
    for one in (mask([4], {}), mask([], {4: 1.0})):
        with pytest.raises(ValueError, match="beyond 4 logits"):
            gather_masks([(0, one)], torch.zeros(2, 4))


def test_logits_with_scattered_rows_are_refused() -> None:
    logits = torch.zeros(4, 3).T
    edit = gather_masks([(0, mask([1], {}))], logits)
    with pytest.raises(ValueError, match="not contiguous"):
        edit.write(logits, soften=True)  # type: ignore[union-attr]


def test_no_masks_make_no_edit() -> None:
    assert gather_masks([], torch.zeros(1, 4)) is None


def test_constant_masks_are_rebuilt_only_when_the_batch_changes() -> None:
    constant, one, other, logits = ConstantMasks(), answer(), answer(), torch.zeros(2, 4)
    constant.refresh([LogitsRow(0, one, one.state)], logits)
    first = constant.edit
    constant.refresh([LogitsRow(0, one, one.state)], logits)
    assert constant.edit is first
    constant.refresh([LogitsRow(0, one, one.state), LogitsRow(1, other, other.state)], logits)
    assert constant.edit is not first
    first = constant.edit
    constant.refresh([LogitsRow(0, one, one.state), LogitsRow(1, other, other.state)], torch.zeros(2, 6)[:, :4])
    assert constant.edit is not first


def test_the_end_becomes_possible_only_in_empty_rows() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [float("-inf")] * 4])
    before = logits.clone()
    keep_end_token_possible(logits, [LogitsRow(i, answer(), CompiledPenalty.start) for i in range(2)])
    assert torch.equal(logits[0], before[0])
    assert logits[1].isfinite().tolist() == [False, False, False, True]


def test_ending_a_row_never_raises() -> None:
    logits = torch.zeros(1, 4)
    allow_only_end_tokens(
        logits, [LogitsRow(0, answer((99,)), CompiledPenalty.start), LogitsRow(7, answer(), CompiledPenalty.start)]
    )
    assert logits[0].isfinite().tolist() == [True, False, False, False]
