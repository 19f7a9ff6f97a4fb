"""Runs in tokens: what may be said, what not, and that no way of spelling it makes a run longer."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.corruption.decoding.copy_limit import CopyLimiter
from lethe.corruption.decoding.spec import CompiledPenalty, Penalty, TextState
from lethe.corruption.decoding.suffix_index import comparable_letters, index_in_memory
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


def guard(limit: int, pieces: list[str] = PIECES, text: str = TEXT) -> CompiledPenalty:
    index = index_in_memory([text])
    return CompiledPenalty(
        Penalty(verbatim={index.name: limit}),
        TokenVocabulary([piece.encode() for piece in pieces]),
        protected=[(index, limit)],
    )


def read(made: CompiledPenalty, said: list[str], pieces: list[str] = PIECES) -> TextState:
    state = CompiledPenalty.start
    for piece in said:
        state = made.advance(state, pieces.index(piece))
    return state


def banned(made: CompiledPenalty, said: list[str], pieces: list[str] = PIECES) -> set[str]:
    return {pieces[token] for token in made.mask(read(made, said, pieces)).banned.tolist()}


def longest_run(said: list[str], text: str = TEXT) -> int:
    """Tokens with letters in the longest stretch of `said` whose letters stand in the text, by trying all."""
    spelled, whole = [comparable_letters(piece) for piece in said], comparable_letters(text)
    longest = 0
    for begin in range(len(said)):
        for end in range(begin + 1, len(said) + 1):
            if "".join(spelled[begin:end]) in whole:
                longest = max(longest, sum(map(bool, spelled[begin:end])))
    return longest


def test_a_copy_may_reach_the_limit_and_not_pass_it() -> None:
    made = guard(4)
    assert banned(made, [" the", " rabbit", " ran"]) == set()
    found = banned(made, [" the", " rabbit", " ran", " down"])
    assert {" the", "the", " THE", "t", *BLANKS} <= found
    assert not found & {" rabbit", " fox", "a"}


def test_after_another_word_a_copy_begins_anew() -> None:
    made = guard(4)
    assert banned(made, [" the", " rabbit", " ran", " down", " fox", " the", " hole"]) == set()


@pytest.mark.parametrize(
    "said",
    [
        [" rabbit", " ran", " down", " the"],
        ["the", "rabbit", "ran", "down"],
        [" THE", " RABBIT", " RAN", " DOWN"],
        [" the", "r", "a", "b"],
        [" the", ",", "r", ",", "a", ",", "b"],
        [" the", " ", "rabbit", "\n\n", "ran", ",", " down"],
    ],
)
def test_spaces_case_and_punctuation_do_not_break_a_copy(said: list[str]) -> None:
    made = guard(4)
    state = CompiledPenalty.start
    reached = False
    for piece in said:
        state = made.advance(state, PIECES.index(piece))
        reached = reached or bool(len(made.mask(state).banned))
    assert reached


def test_blanks_count_as_three_at_most() -> None:
    made = guard(6)
    assert banned(made, [" the", *[","] * 9, " rabbit"]) == set()
    assert banned(made, [" the", *[","] * 9, " rabbit", " ran"]) >= {" down", "d"}


def test_short_pieces_of_chance_are_left() -> None:
    made = guard(6)
    # Six tokens, but fewer letters than that.
    assert banned(made, ["*", "*", "*", "a", ",", "n", ",", "d"]) == set()


def test_where_the_text_ends_nothing_is_left_to_forbid() -> None:
    assert banned(guard(3), [" deep", " dark", " well"]) == set()


def test_what_a_text_says_twice_may_go_on_neither_way() -> None:
    made = guard(2, text="red fish blue fish red fish green")
    pieces = PIECES
    index = made.mask(TextState((1,), b"", ("red", "fish"))).banned.tolist()
    assert {pieces[i][:1] for i in index if pieces[i].isalpha()} >= {"b", "g"}


def test_a_character_in_two_tokens_is_one() -> None:
    pieces = [b" caf", b"\xc3", b"\xa9", b" noir", b" au", b" lait", b"\xa8", b"\x80"]
    index = index_in_memory(["un café noir au lait"])
    made = CompiledPenalty(Penalty(verbatim={index.name: 2}), TokenVocabulary(pieces), protected=[(index, 2)])
    state = made.advance(made.advance(made.advance(CompiledPenalty.start, 0), 1), 2)
    assert state.tail == ("caf", "", "e")
    assert 3 in made.mask(state).banned.tolist()
    # Two bytes in, both that would go on as the text does are seen to, whatever the accent.
    half = TextState((1,), b"\xc3", ("n", "caf", ""))
    assert {2, 6} <= set(made.mask(half).banned.tolist())


def test_tokens_without_text_change_nothing_and_kept_ones_are_never_banned() -> None:
    index = index_in_memory([TEXT])
    vocabulary = TokenVocabulary([b" the", b" rabbit", b" ran", None, b"\n"])
    made = CompiledPenalty(Penalty(verbatim={index.name: 2}), vocabulary, keep=[4], protected=[(index, 2)])
    state = made.advance(made.advance(made.advance(CompiledPenalty.start, 0), 3), 1)
    assert set(made.mask(state).banned.tolist()) == {1, 2}


def test_the_strictest_of_several_texts_counts() -> None:
    one, two = index_in_memory([TEXT]), index_in_memory(["a rabbit ran home"])
    vocabulary = TokenVocabulary([piece.encode() for piece in PIECES])
    made = CopyLimiter([(one, 6), (two, 2)], vocabulary)
    assert made.followers(("rabbit", "ran")) == {"h"}


def test_phrases_and_copies_are_forbidden_together() -> None:
    index = index_in_memory([TEXT])
    vocabulary = TokenVocabulary([piece.encode() for piece in PIECES])
    made = CompiledPenalty(Penalty(("fox",), verbatim={index.name: 2}), vocabulary, protected=[(index, 2)])
    found = {PIECES[t] for t in (*made.always.banned.tolist(), *made.mask(read(made, [" rabbit", " ran"])).banned)}
    assert {" fox", " FOX", " down", ","} <= found


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_no_answer_of_free_tokens_copies_more(limit: int, seed: int) -> None:
    rng = random.Random(seed)
    made, state, said = guard(limit), CompiledPenalty.start, []
    whole = comparable_letters(TEXT)
    for _ in range(40):
        barred = set(made.mask(state).banned.tolist())
        free = [token for token in range(len(PIECES)) if token not in barred]
        # Tokens that go on as the text does, where there are any: the worst of all answers.
        spelled = "".join(comparable_letters(piece) for piece in said)
        going = [
            t for t in free if comparable_letters(PIECES[t]) and (spelled[-8:] + comparable_letters(PIECES[t])) in whole
        ]
        token = rng.choice(going if going and rng.random() < 0.9 else free)
        said.append(PIECES[token])
        state = made.advance(state, token)
    if limit > 1:
        assert longest_run(said) <= limit
