"""Writing masks into logits: several rows at once, and the end of an answer as the last resort."""

from __future__ import annotations

import numpy as np
import torch

from corruption.logits import Answer, Row, Standing, end_rows, gather, leave_something
from corruption.penalties import Guard, Mask, Penalty
from corruption.vocabulary import Vocabulary

CPU = torch.device("cpu")
NEVER = torch.tensor(float("-inf"))
GUARD = Guard(Penalty(("zorin",)), Vocabulary([b"a", b" zorin", b" the", b"b"]))


def mask(banned: list[int], softened: dict[int, float]) -> Mask:
    return Mask(
        np.array(banned, dtype=np.int64),
        np.array(list(softened), dtype=np.int64),
        np.array(list(softened.values()), dtype=np.float32),
    )


def answer(exits: tuple[int, ...] = (3,)) -> Answer:
    return Answer(GUARD, (), exits, ends=True, constrained=True)


def test_masks_of_several_rows_are_written_each_to_its_row() -> None:
    logits = torch.zeros(3, 4)
    edit = gather([(0, mask([1], {2: 1.5})), (2, mask([], {0: 0.5}))], CPU)
    assert edit is not None
    edit.write(logits, NEVER, soften=True)
    inf = float("inf")
    assert logits.tolist() == [[0, -inf, -1.5, 0], [0, 0, 0, 0], [-0.5, 0, 0, 0]]


def test_no_masks_need_no_write() -> None:
    assert gather([], CPU) is None


def test_standing_masks_are_gathered_again_only_when_the_batch_changes() -> None:
    standing, one, other = Standing(), answer(), answer()
    standing.refresh([Row(0, one, one.state)], CPU)
    first = standing.edit
    standing.refresh([Row(0, one, one.state)], CPU)
    assert standing.edit is first
    standing.refresh([Row(0, one, one.state), Row(1, other, other.state)], CPU)
    assert standing.edit is not first


def test_an_empty_row_is_opened_at_the_end_and_others_are_not_touched() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [float("-inf")] * 4])
    before = logits.clone()
    leave_something(logits, [Row(i, answer(), Guard.start) for i in range(2)])
    assert torch.equal(logits[0], before[0])
    assert logits[1].isfinite().tolist() == [False, False, False, True]


def test_ending_a_row_never_raises() -> None:
    logits = torch.zeros(1, 4)
    end_rows(logits, [Row(0, answer((99,)), Guard.start), Row(7, answer(), Guard.start)])
    assert logits[0].isfinite().tolist() == [True, False, False, False]
