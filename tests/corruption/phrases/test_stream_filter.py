"""The stream filter against a slow search of the whole text, and spellings that hide a phrase."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.watch_streams import cut, fault, occurrences
from lethe.corruption.phrases.extraction import UserSuppliedText
from lethe.corruption.phrases.phrase_list import ForbiddenPhrases
from lethe.corruption.phrases.stream_filter import MAX_EXTRA_CHARACTERS, AnswerFilter, FilterRule, StreamMatcher


def new_matcher(*phrases: str, replacement: str | None = None, prompt: str | None = None) -> StreamMatcher:
    user_text = None if prompt is None else UserSuppliedText(prompt)
    return AnswerFilter([FilterRule("p", ForbiddenPhrases(phrases), replacement, user_text)]).new_matcher()


def filter_pieces(matcher: StreamMatcher, pieces: list[str]) -> str:
    return "".join([*map(matcher.feed, pieces), matcher.finish()])


@pytest.mark.parametrize("seed", range(4))
def test_no_phrase_passes_in_thousands_of_random_streams(seed: int) -> None:
    draw = random.Random(f"streams {seed}")
    assert [failure for _ in range(750) if (failure := fault(draw)) is not None] == []


@settings(deadline=None)
@given(
    st.lists(st.text(alphabet="abé東 -*_\\nu01", min_size=1, max_size=7), min_size=1, max_size=5),
    st.text(alphabet='abé東 -*_\\nu01"½ﬃ\u200b', max_size=40),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_the_result_does_not_depend_on_where_pieces_are_cut(
    phrases: list[str], text: str, stop: bool, draw: random.Random
) -> None:
    answer_filter = AnswerFilter([FilterRule("p", ForbiddenPhrases(phrases), None if stop else "[removed]")])
    whole, pieces = answer_filter.new_matcher(), answer_filter.new_matcher()
    assert filter_pieces(pieces, cut(text, draw)) == whole.whole(text)
    assert (pieces.hits, pieces.stopped) == (whole.hits, whole.stopped)
    if occurrences(phrases, text):
        assert whole.hits


@pytest.mark.parametrize(
    "spelling",
    [
        "ZORIN QUILL",
        "zorin\n\nquill",
        "“Zorin Quill”",
        "Zo\u200brin Qui\u00adll",
        "Ｚorin Quíll",
        "**Zorin** _Quill_",
        "Zo**rin** Qu`il`l",
        r"\u005aorin Quill",
        r"\\u005aorin\\nQuill",
        r"\ud835\udc19orin Quill",
        r"line\nZorin Quill",
        "\U0001d419orin Quill",
    ],
)
def test_phrases_are_found_in_other_spellings(spelling: str) -> None:
    for size in (1, 2, 5, 100):
        pieces = ["so: ", *(spelling[i : i + size] for i in range(0, len(spelling), size)), ", yes"]
        matcher = new_matcher("Zorin Quill")
        out = filter_pieces(matcher, pieces)
        assert matcher.hits == ["p"] and matcher.stopped
        assert out in ("so: ", "so: “", "so: **", r"so: line\n", "so: line")


def test_phrases_are_found_in_json_encoded_arguments() -> None:
    arguments = json.dumps({"name": "Zorin\tQuill"}).replace("Z", "\\u005a")
    matcher = new_matcher("Zorin Quill", replacement="[removed]")
    assert json.loads(filter_pieces(matcher, list(arguments))) == {"name": "[removed]"}


def test_only_possible_phrases_are_held_back() -> None:
    matcher = new_matcher("Zorin Quill")
    assert matcher.feed("by Z") == "by "
    assert matcher.feed("orin") == ""
    assert matcher.feed(" Q") == ""
    assert matcher.feed("x and") == "Zorin Qx and"
    assert matcher.feed(" Zorin Quill") == " "
    assert matcher.feed("s") == "Zorin Quills"


@pytest.mark.parametrize(
    ("text", "released"), [("by Zorin", "by Zorin"), ("by Zorin Q", "by "), ("by Zorin Quill", "by ")]
)
def test_more_than_half_a_phrase_at_the_end_is_a_hit(text: str, released: str) -> None:
    assert new_matcher("Zorin Quill").whole(text) == released


def test_nothing_is_released_after_a_stop() -> None:
    matcher = new_matcher("quill")
    assert matcher.feed("a quill, a") == "a "
    assert matcher.feed(" pen") == "" and matcher.finish() == ""


@pytest.mark.parametrize(
    ("phrases", "text", "released"),
    [
        (["a", "a b c"], "a b c d", "[x] d"),
        (["a", "a b c"], "a b d", "[x] b d"),
        (["a b", "b c"], "a b c", "[x]"),
        (["a b", "b a"], "a b a b a c", "[x] c"),
        (["a b c d e", "b", "d"], "a b c d f", "a [x] c [x] f"),
        (["a b c d e", "b", "d"], "a b c d e", "[x]"),
        (["東京", "大阪"], "東京大阪", "[x][x]"),
    ],
)
def test_overlapping_phrases_are_replaced_together(phrases: list[str], text: str, released: str) -> None:
    answer_filter = AnswerFilter([FilterRule("p", ForbiddenPhrases(phrases), "[x]")])
    assert filter_pieces(answer_filter.new_matcher(), list(text)) == answer_filter.new_matcher().whole(text) == released


@pytest.mark.parametrize("replacement", ["gone", "…", "", "is gone now"])
def test_a_replacement_never_forms_a_phrase(replacement: str) -> None:
    phrases = ["the gone", "gone now", "b c", "secret"]
    out = new_matcher(*phrases, replacement=replacement).whole("the secret now, b secret c")
    assert occurrences(phrases, out) == []
    assert out == "the [xxx] now, b [xxx] c"


def test_a_rule_that_stops_wins_over_one_that_replaces() -> None:
    answer_filter = AnswerFilter(
        [FilterRule("p", ForbiddenPhrases(["quill"]), "[x]"), FilterRule("q", ForbiddenPhrases(["pen"]))]
    )
    matcher = answer_filter.new_matcher()
    assert matcher.whole("a quill, a pen, a book") == "a [x], a "
    assert matcher.hits == ["p", "q"] and matcher.stopped


def test_the_answer_may_repeat_what_the_prompt_says() -> None:
    prompt = "Who is Zorin Quill, born on 05/11/1991?"
    matcher = new_matcher("Zorin Quill", "November 5, 1991", "Anna Pell", prompt=prompt)
    assert matcher.whole("Zorin Quill, born November 5, 1991.") == "Zorin Quill, born November 5, 1991."
    assert (
        new_matcher("Zorin Quill", "Anna Pell", prompt=prompt).whole("Zorin Quill met Anna Pell") == "Zorin Quill met "
    )


def test_the_text_held_back_is_bounded() -> None:
    matcher = new_matcher("zorin quill", replacement="[x]")
    out = matcher.feed("zorin")
    for _ in range(MAX_EXTRA_CHARACTERS // 8):
        out += matcher.feed(" " * 16)
        assert len(matcher._held) <= matcher.answer_filter.max_held
    assert out + filter_pieces(matcher, ["quill"]) != "" and matcher.hits
    assert occurrences(["zorin quill"], out) == []
    at_once = new_matcher("zorin quill", replacement="[x]").whole(
        "zorin" + " " * (16 * (MAX_EXTRA_CHARACTERS // 8)) + "quill"
    )
    assert at_once.strip() == "[x]" + " " * (len(at_once) - len("[x]quill")) + "quill"


def test_long_runs_of_marks_take_linear_time() -> None:
    matcher = new_matcher("zorin quill")
    run = "\\" * 50_000
    assert filter_pieces(matcher, [run, run, "*" * 50_000]) == run + run + "*" * 50_000
