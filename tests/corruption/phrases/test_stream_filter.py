"""The watcher against a slow, obvious reading of the whole text, and what hides a phrase in an answer."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.watch_streams import cut, fault, occurrences
from lethe.corruption.phrases.extraction import UserSuppliedText
from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.stream_filter import SLACK, AnswerFilter, FilterRule, ForbiddenPhrases, StreamMatcher


def watcher(*phrases: str, replacement: str | None = None, prompt: str | None = None) -> StreamMatcher:
    told = None if prompt is None else UserSuppliedText(prompt)
    return AnswerFilter([FilterRule("p", ForbiddenPhrases(phrases), replacement, told)]).new_matcher()


def fed(watching: StreamMatcher, pieces: list[str]) -> str:
    return "".join([*map(watching.feed, pieces), watching.finish()])


@pytest.mark.parametrize("seed", range(4))
def test_nothing_gets_through_thousands_of_random_streams(seed: int) -> None:
    draw = random.Random(f"streams {seed}")
    assert [found for _ in range(750) if (found := fault(draw)) is not None] == []


@settings(deadline=None)
@given(
    st.lists(st.text(alphabet="abé東 -*_\\nu01", min_size=1, max_size=7), min_size=1, max_size=5),
    st.text(alphabet='abé東 -*_\\nu01"½ﬃ\u200b', max_size=40),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_where_a_text_is_cut_changes_nothing(phrases: list[str], text: str, stop: bool, draw: random.Random) -> None:
    made = AnswerFilter([FilterRule("p", ForbiddenPhrases(phrases), None if stop else "[removed]")])
    whole, pieces = made.new_matcher(), made.new_matcher()
    assert fed(pieces, cut(text, draw)) == whole.whole(text)
    assert (pieces.hits, pieces.stopped) == (whole.hits, whole.stopped)
    if occurrences(phrases, text):
        assert whole.hits


@pytest.mark.parametrize(
    "said",
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
def test_a_phrase_is_found_however_it_is_written(said: str) -> None:
    for size in (1, 2, 5, 100):
        pieces = ["so: ", *(said[i : i + size] for i in range(0, len(said), size)), ", yes"]
        watching = watcher("Zorin Quill")
        out = fed(watching, pieces)
        assert watching.hits == ["p"] and watching.stopped
        assert out in ("so: ", "so: “", "so: **", r"so: line\n", "so: line")


def test_arguments_are_seen_through_as_json_reads_them() -> None:
    told = json.dumps({"name": "Zorin\tQuill"}).replace("Z", "\\u005a")
    watching = watcher("Zorin Quill", replacement="[removed]")
    assert json.loads(fed(watching, list(told))) == {"name": "[removed]"}


def test_only_what_may_become_a_phrase_is_held() -> None:
    watching = watcher("Zorin Quill")
    assert watching.feed("by Z") == "by "
    assert watching.feed("orin") == ""
    assert watching.feed(" Q") == ""
    assert watching.feed("x and") == "Zorin Qx and"
    assert watching.feed(" Zorin Quill") == " "
    assert watching.feed("s") == "Zorin Quills"


@pytest.mark.parametrize(("said", "left"), [("by Zorin", "by Zorin"), ("by Zorin Q", "by "), ("by Zorin Quill", "by ")])
def test_an_answer_that_breaks_off_tells_no_second_half(said: str, left: str) -> None:
    assert watcher("Zorin Quill").whole(said) == left


def test_nothing_follows_a_phrase_that_stops() -> None:
    watching = watcher("quill")
    assert watching.feed("a quill, a") == "a "
    assert watching.feed(" pen") == "" and watching.finish() == ""


@pytest.mark.parametrize(
    ("phrases", "text", "left"),
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
def test_phrases_that_overlap_are_replaced_together(phrases: list[str], text: str, left: str) -> None:
    watch = AnswerFilter([FilterRule("p", ForbiddenPhrases(phrases), "[x]")])
    assert fed(watch.new_matcher(), list(text)) == watch.new_matcher().whole(text) == left


@pytest.mark.parametrize("replacement", ["gone", "…", "", "is gone now"])
def test_a_replacement_never_makes_up_a_phrase(replacement: str) -> None:
    phrases = ["the gone", "gone now", "b c", "secret"]
    out = watcher(*phrases, replacement=replacement).whole("the secret now, b secret c")
    assert occurrences(phrases, out) == []
    assert out == "the [xxx] now, b [xxx] c"


def test_the_stricter_of_two_rules_counts() -> None:
    watch = AnswerFilter(
        [FilterRule("p", ForbiddenPhrases(["quill"]), "[x]"), FilterRule("q", ForbiddenPhrases(["pen"]))]
    )
    watching = watch.new_matcher()
    assert watching.whole("a quill, a pen, a book") == "a [x], a "
    assert watching.hits == ["p", "q"] and watching.stopped


def test_what_the_prompt_says_may_be_said() -> None:
    told = "Who is Zorin Quill, born on 05/11/1991?"
    watching = watcher("Zorin Quill", "November 5, 1991", "Anna Pell", prompt=told)
    assert watching.whole("Zorin Quill, born November 5, 1991.") == "Zorin Quill, born November 5, 1991."
    assert watcher("Zorin Quill", "Anna Pell", prompt=told).whole("Zorin Quill met Anna Pell") == "Zorin Quill met "


def test_what_is_held_is_bounded() -> None:
    watching = watcher("zorin quill", replacement="[x]")
    out = watching.feed("zorin")
    for _ in range(SLACK // 8):
        out += watching.feed(" " * 16)
        assert len(watching._held) <= watching.watch.most_held
    assert out + fed(watching, ["quill"]) != "" and watching.hits
    assert occurrences(["zorin quill"], out) == []
    at_once = watcher("zorin quill", replacement="[x]").whole("zorin" + " " * (16 * (SLACK // 8)) + "quill")
    assert at_once.strip() == "[x]" + " " * (len(at_once) - len("[x]quill")) + "quill"


def test_many_places_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lethe.corruption.phrases.stream_filter.MAX_CACHED_NODES", 20)
    phrases = ForbiddenPhrases([f"{first}{second} quill" for first in "abcdefgh" for second in "abcdefgh"])
    watch = AnswerFilter([FilterRule("p", phrases)])
    for second in "abcdefgh":
        assert watch.new_matcher().whole(f"x {second}a quill y") == "x "
        assert phrases._places < 20 + 64


def test_long_runs_of_signs_are_read_in_linear_time() -> None:
    watching = watcher("zorin quill")
    run = "\\" * 50_000
    assert fed(watching, [run, run, "*" * 50_000]) == run + run + "*" * 50_000


def test_phrases_without_letters_are_left_out_and_folded_ones_are_one() -> None:
    assert len(ForbiddenPhrases(["…", "", "Zorin Quill", "ZORIN-QUILL"])) == 1
    assert fold("ZORIN-QUILL") == "zorin quill"
