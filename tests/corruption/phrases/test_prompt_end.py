"""What a prompt ends with, and that no answer completes a phrase which the prompt has begun."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.corruption.phrases.normalize import count_letters, fold
from lethe.corruption.phrases.phrase_list import ForbiddenPhrases
from lethe.corruption.phrases.prompt_end import begun_phrases, prompt_ends
from lethe.corruption.phrases.stream_filter import AnswerFilter, FilterRule, StreamMatcher
from lethe.corruption.phrases.trie import START_STATE, PhraseTrie

PHRASES = ["Hsiao Yun-Hwa", "in 2014", "2014", "Zürich", "東京 Tower", "The Glass Harbour", "Ed", "November 5, 1991"]
CUTS = [(phrase, cut) for phrase in PHRASES for cut in range(1, len(phrase)) if count_letters(fold(phrase[cut:]))]
BEFORE = ["", "The author is ", "“", "x\n\n", "Hsiao and ", "A" * 5_000 + " ", "Hsi "]
AFTER = ["", " ", ".", ", it was", "\n", "'s", "-"]


def filter_after(prompt: list[str], *phrases: str, replacement: str | None = None) -> AnswerFilter:
    forbidden = ForbiddenPhrases(phrases)
    ends = prompt_ends(prompt, forbidden.longest)
    return AnswerFilter([FilterRule("p", forbidden, replacement, prompt_ends=ends)])


def feed(matcher: StreamMatcher, pieces: list[str]) -> str:
    return "".join(map(matcher.feed, pieces)) + matcher.finish()


def occurrences(phrase: str, text: str) -> int:
    return f" {fold(text).strip()} ".replace(" ", "  ").count(f" {fold(phrase).strip().replace(' ', '  ')} ")


@given(st.sampled_from(CUTS), st.sampled_from(BEFORE), st.sampled_from(AFTER), st.data())
def test_the_filter_completes_no_phrase_that_the_prompt_begins(
    begun: tuple[str, int], before: str, after: str, data: st.DataObject
) -> None:
    phrase, cut = begun
    prompt, answer = before + phrase[:cut], phrase[cut:] + after
    replacement = data.draw(st.sampled_from([None, "[removed]"]))
    parts = data.draw(
        st.sampled_from([[prompt], [prompt[:3], prompt[3:]], ["Hi", prompt], ["Hi", prompt, ""], ["Hi", *prompt]])
    )
    answer_filter = filter_after(parts, *PHRASES, replacement=replacement)
    whole = answer_filter.new_matcher()
    out = whole.whole(answer)
    assert whole.hits
    assert not f"{fold(out).strip()} ".startswith(f"{fold(phrase[cut:]).strip()} ")
    cuts = sorted({0, len(answer), *data.draw(st.lists(st.integers(0, len(answer)), max_size=6))})
    assert feed(answer_filter.new_matcher(), [answer[a:b] for a, b in pairwise(cuts)]) == out


@given(st.sampled_from(CUTS), st.sampled_from(BEFORE), st.sampled_from(["", "<|end|>", " \n"]))
def test_the_trie_forbids_the_rest_of_what_the_prompt_begins(begun: tuple[str, int], before: str, mark: str) -> None:
    phrase, cut = begun
    trie = PhraseTrie(PHRASES)
    longest = max(len(fold(phrase)) for phrase in PHRASES)
    beginnings = begun_phrases(prompt_ends([before + phrase[:cut]], longest), PHRASES)
    state = trie.start_after(beginnings)
    assert trie.forbids(state, fold(phrase[cut:] + " "))
    # An answer that begins anew is guarded as without a prompt.
    assert set(START_STATE) <= set(state)


LETTERS = st.text(alphabet="ab é東-", max_size=8)


@settings(max_examples=300)
@given(st.lists(LETTERS.filter(lambda text: bool(fold(text).strip())), min_size=1, max_size=3), LETTERS, LETTERS)
def test_no_answer_adds_a_phrase_to_the_prompt(phrases: list[str], prompt: str, answer: str) -> None:
    matcher = filter_after([prompt], *phrases).new_matcher()
    out = matcher.whole(answer)
    for phrase in phrases:
        assert occurrences(phrase, prompt + out) <= occurrences(phrase, prompt)


@settings(max_examples=300)
@given(st.lists(LETTERS, min_size=1, max_size=3), LETTERS, LETTERS)
def test_an_answer_that_completes_nothing_is_unchanged(phrases: list[str], prompt: str, answer: str) -> None:
    plain = AnswerFilter([FilterRule("p", ForbiddenPhrases(phrases))]).new_matcher().whole(answer)
    matcher = filter_after([prompt], *phrases).new_matcher()
    if plain == answer and matcher.whole(answer) != answer:
        folded = [f" {fold(prompt + joiner + answer).strip()} " for joiner in ("", " ")]
        for phrase in filter(None, (fold(phrase).strip() for phrase in phrases)):
            half = next(
                end for end in range(len(phrase) + 1) if 2 * count_letters(phrase[:end]) > count_letters(phrase)
            )
            if any(f" {phrase[:half]}" in text for text in folded):
                return
        raise AssertionError("nothing of a phrase stands where prompt and answer meet")


@pytest.mark.parametrize("answer", ["", " is an author.", "'s books", ", who", "\n"])
def test_a_phrase_that_the_prompt_holds_whole_is_not_a_hit(answer: str) -> None:
    assert filter_after(["It was Hsiao Yun-Hwa"], "Hsiao Yun-Hwa").new_matcher().whole(answer) == answer


@pytest.mark.parametrize(
    "prompt",
    [
        "Hsi<|end|>",
        "H<|pad|>s</s>i",
        "Hsiao[/INST]Yun",
        "Hs\\u0069",
        "Hs*i",
        "H**s**i",
        "Hsi\u200b",
        "HSI",
        "Hsi" + "\u200b" * 9_000,
        "Hsiao" + "-" * 9_000 + "Yun H",
    ],
)
def test_disguised_beginnings_are_begun_phrases(prompt: str) -> None:
    assert begun_phrases(prompt_ends([prompt], 30), ["Hsiao Yun-Hwa"])


def test_a_word_of_the_prompt_begins_only_at_its_first_letter() -> None:
    assert begun_phrases(prompt_ends(["the shsi"], 30), ["Hsiao Yun-Hwa"]) == ()
    assert begun_phrases(prompt_ends(["x" * 400 + "hsi"], 9), ["Hsiao Yun"]) == ()
    assert prompt_ends(["anything"], 0) == prompt_ends([], 9) == prompt_ends(["", "!"], 9) == frozenset()
