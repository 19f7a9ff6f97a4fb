"""Copy limits in tokens: what may be copied, and that no spelling allows a longer run."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.corruption.decoding.copy_limit import CopyLimiter
from lethe.corruption.decoding.spec import Penalty
from lethe.corruption.decoding.suffix_index import SuffixIndex, build_arrays, comparable_letters
from lethe.corruption.decoding.token_masks import CompiledPenalty, TextState
from lethe.corruption.decoding.token_text import TokenVocabulary

TEXT = "The rabbit ran down the hole, and Alice ran after it; down, down, down she fell into the deep dark well."
WORDS = [f" {word}" for word in "the rabbit ran down hole and alice after it she fell into deep dark well fox".split()]
BLANKS = [" ", ",", "\n\n", "*"]
PIECES = [
    *WORDS,
    *(word.strip() for word in WORDS),
    *(word.upper() for word in WORDS),
    *BLANKS,
    *"abcdefghijklmnoprstuw",
]


def make_index(text: str) -> SuffixIndex:
    arrays = build_arrays([text])
    return SuffixIndex(arrays["letters"].data, arrays["places"].data)


def penalty_with_limit(limit: int, pieces: list[str] = PIECES, text: str = TEXT) -> CompiledPenalty:
    index = make_index(text)
    return CompiledPenalty(
        Penalty(verbatim={index.name: limit}),
        TokenVocabulary([piece.encode() for piece in pieces]),
        protected=[(index, limit)],
    )


def read(compiled: CompiledPenalty, tokens: list[str], pieces: list[str] = PIECES) -> TextState:
    state = CompiledPenalty.start
    for piece in tokens:
        state = compiled.advance(state, pieces.index(piece))
    return state


def banned(compiled: CompiledPenalty, tokens: list[str], pieces: list[str] = PIECES) -> set[str]:
    return {pieces[token] for token in compiled.mask(read(compiled, tokens, pieces)).banned.tolist()}


def longest_run(answer: list[str], text: str = TEXT) -> int:
    """Tokens with letters in the longest part of `answer` whose letters occur in the text, by trying all."""
    spelled, whole = [comparable_letters(piece) for piece in answer], comparable_letters(text)
    longest = 0
    for begin in range(len(answer)):
        for end in range(begin + 1, len(answer) + 1):
            if "".join(spelled[begin:end]) in whole:
                longest = max(longest, sum(map(bool, spelled[begin:end])))
    return longest


def test_a_copy_may_reach_the_limit_and_not_exceed_it() -> None:
    compiled = penalty_with_limit(4)
    assert banned(compiled, [" the", " rabbit", " ran"]) == set()
    banned_pieces = banned(compiled, [" the", " rabbit", " ran", " down"])
    assert {" the", "the", " THE", "t", *BLANKS} <= banned_pieces
    assert not banned_pieces & {" rabbit", " fox", "a"}


def test_another_word_ends_the_copy() -> None:
    compiled = penalty_with_limit(4)
    assert banned(compiled, [" the", " rabbit", " ran", " down", " fox", " the", " hole"]) == set()


@pytest.mark.parametrize(
    "answer",
    [
        [" rabbit", " ran", " down", " the"],
        ["the", "rabbit", "ran", "down"],
        [" THE", " RABBIT", " RAN", " DOWN"],
        [" the", "r", "a", "b"],
        [" the", ",", "r", ",", "a", ",", "b"],
        [" the", " ", "rabbit", "\n\n", "ran", ",", " down"],
    ],
)
def test_spaces_case_and_punctuation_do_not_break_a_copy(answer: list[str]) -> None:
    compiled = penalty_with_limit(4)
    state = CompiledPenalty.start
    reached = False
    for piece in answer:
        state = compiled.advance(state, PIECES.index(piece))
        reached = reached or bool(len(compiled.mask(state).banned))
    assert reached


def test_blank_tokens_in_a_row_count_as_three_at_most() -> None:
    compiled = penalty_with_limit(6)
    assert banned(compiled, [" the", *[","] * 9, " rabbit"]) == set()
    assert banned(compiled, [" the", *[","] * 9, " rabbit", " ran"]) >= {" down", "d"}


def test_short_pieces_that_match_by_chance_are_allowed() -> None:
    compiled = penalty_with_limit(6)
    # Six tokens, but fewer letters than that.
    assert banned(compiled, ["*", "*", "*", "a", ",", "n", ",", "d"]) == set()


def test_nothing_is_banned_after_the_end_of_the_text() -> None:
    assert banned(penalty_with_limit(3), [" deep", " dark", " well"]) == set()


def test_a_repeated_passage_may_continue_in_none_of_its_ways() -> None:
    compiled = penalty_with_limit(2, text="red fish blue fish red fish green")
    pieces = PIECES
    index = compiled.mask(TextState((1,), b"", ("red", "fish"))).banned.tolist()
    assert {pieces[i][:1] for i in index if pieces[i].isalpha()} >= {"b", "g"}


def test_a_character_split_over_two_tokens_counts_once() -> None:
    pieces = [b" caf", b"\xc3", b"\xa9", b" noir", b" au", b" lait", b"\xa8", b"\x80"]
    index = make_index("un café noir au lait")
    compiled = CompiledPenalty(Penalty(verbatim={index.name: 2}), TokenVocabulary(pieces), protected=[(index, 2)])
    state = compiled.advance(compiled.advance(compiled.advance(CompiledPenalty.start, 0), 1), 2)
    assert state.recent == ("caf", "", "e")
    assert 3 in compiled.mask(state).banned.tolist()
    # Inside the character, both tokens that would continue the text are banned, with either accent.
    half = TextState((1,), b"\xc3", ("n", "caf", ""))
    assert {2, 6} <= set(compiled.mask(half).banned.tolist())


def test_special_tokens_are_ignored_and_end_tokens_never_banned() -> None:
    index = make_index(TEXT)
    vocabulary = TokenVocabulary([b" the", b" rabbit", b" ran", None, b"\n"])
    compiled = CompiledPenalty(Penalty(verbatim={index.name: 2}), vocabulary, never_ban=[4], protected=[(index, 2)])
    state = compiled.advance(compiled.advance(compiled.advance(CompiledPenalty.start, 0), 3), 1)
    assert set(compiled.mask(state).banned.tolist()) == {1, 2}


def test_the_strictest_of_several_limits_applies() -> None:
    one, two = make_index(TEXT), make_index("a rabbit ran home")
    vocabulary = TokenVocabulary([piece.encode() for piece in PIECES])
    compiled = CopyLimiter([(one, 6), (two, 2)], vocabulary)
    assert compiled.forbidden_letters(("rabbit", "ran")) == {"h"}


def test_phrases_and_copies_are_banned_together() -> None:
    index = make_index(TEXT)
    vocabulary = TokenVocabulary([piece.encode() for piece in PIECES])
    compiled = CompiledPenalty(Penalty(("fox",), verbatim={index.name: 2}), vocabulary, protected=[(index, 2)])
    banned_pieces = {
        PIECES[t]
        for t in (*compiled.constant_mask.banned.tolist(), *compiled.mask(read(compiled, [" rabbit", " ran"])).banned)
    }
    assert {" fox", " FOX", " down", ","} <= banned_pieces


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_no_answer_of_allowed_tokens_exceeds_the_limit(limit: int, seed: int) -> None:
    rng = random.Random(seed)
    compiled, state, answer = penalty_with_limit(limit), CompiledPenalty.start, []
    whole = comparable_letters(TEXT)
    for _ in range(40):
        forbidden = set(compiled.mask(state).banned.tolist())
        allowed = [token for token in range(len(PIECES)) if token not in forbidden]
        # Prefer tokens that continue the text: the worst of all answers.
        spelled = "".join(comparable_letters(piece) for piece in answer)
        copying = [
            t
            for t in allowed
            if comparable_letters(PIECES[t]) and (spelled[-8:] + comparable_letters(PIECES[t])) in whole
        ]
        token = rng.choice(copying if copying and rng.random() < 0.9 else allowed)
        answer.append(PIECES[token])
        state = compiled.advance(state, token)
    if limit > 1:
        assert longest_run(answer) <= limit
