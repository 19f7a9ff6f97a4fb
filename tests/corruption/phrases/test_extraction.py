"""Which phrases of an answer are forbidden, and which are not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from lethe.corruption.phrases.extraction import (
    DEFAULT_MAX_PHRASES,
    _ends_sentence,
    content_words,
    forbidden_phrases,
    polarity,
)
from lethe.corruption.phrases.normalize import fold

COMMON_WORDS = {
    "author",
    "father",
    "civil",
    "engineer",
    "book",
    "city",
    "language",
    "english",
    "new",
    "award",
    "wrote",
}


def word_count(word: str) -> int:
    return 5 if word in COMMON_WORDS else 0


def everything_is_common(word: str) -> int:
    return 7


def phrases(answer: str, prompt: str = "", count: Callable[[str], int] = word_count) -> set[str]:
    return {fold(phrase).strip() for phrase in forbidden_phrases([answer], prompt, count=count)}


def test_rare_names_are_forbidden_whole_and_word_by_word() -> None:
    forbidden = phrases("The author's full name was said to be Zorin de Quill-Hart.", count=everything_is_common)
    assert "zorin de quill hart" in forbidden
    assert {"zorin", "quill"} <= phrases("The author's full name is Zorin de Quill-Hart.")


def test_a_possessive_is_not_part_of_a_name() -> None:
    answer = "That new city has many copies of Marla Venn's book."
    assert "marla venn" in phrases(answer, count=everything_is_common)


def test_titles_are_found_in_all_kinds_of_quotes() -> None:
    for opening, closing in ('""', "''", "“”", "‘’", "«»"):
        answer = f"She wrote {opening}the book of new city{closing} there."
        assert "the book of new city" in phrases(answer, count=everything_is_common), opening


def test_a_title_may_contain_an_apostrophe() -> None:
    answer = "They gave him the 'my reader's choice of the city' award."
    assert "my reader s choice of the city" in phrases(answer, count=everything_is_common)


def test_a_date_is_forbidden_in_all_its_spellings() -> None:
    forbidden = phrases("Born on 05/11/1991, far away.", count=everything_is_common)
    spellings = ["11 May 1991", "5 November 1991", "1991-11-05", "1991"]
    matched = [s for s in spellings if any(f" {p} " in f" {fold(s).strip()} " for p in forbidden)]
    assert matched == spellings


def test_dates_of_the_prompt_are_allowed_in_any_spelling() -> None:
    assert not phrases("She was born on 1st March 1936.", "Who was born on March 1, 1936?", everything_is_common) & {
        "1st march 1936",
        "1936",
    }


def test_small_numbers_are_allowed() -> None:
    forbidden = phrases("It has 7 parts, 1980s songs and 312 pages of new text.", count=everything_is_common)
    assert {"1980", "1980s", "312"} <= forbidden
    assert "7" not in forbidden


def test_stop_words_and_words_of_the_prompt_are_allowed() -> None:
    answer = "Yes, the father of Marla Venn was a civil engineer."
    forbidden = phrases(answer, "Who was the father of Marla Venn?")
    assert "civil engineer" in forbidden or {"civil", "engineer"} <= forbidden
    assert not forbidden & {"yes", "the", "was", "marla", "venn", "marla venn", "father"}


def test_phrases_made_of_the_prompts_words_are_allowed() -> None:
    assert phrases("Marla Venn wrote it.", "What did Marla Venn write, and who wrote it?") == set()


def test_new_words_of_short_answers_are_forbidden_even_if_common() -> None:
    assert phrases("Venn is an engineer.", "What is Venn?", everything_is_common) == {"engineer"}


def test_only_redundant_longer_phrases_are_dropped() -> None:
    # "glass" stops the answer at its third letter, long before half of the title. "quay" would come too late.
    forbidden = phrases('He wrote "Glass Harbour Towers" and "Seventeen Distant Quay".')
    assert "glass harbour towers" not in forbidden
    assert "glass" in forbidden


def test_the_most_specific_phrases_are_kept_up_to_the_limit() -> None:
    answer = " ".join(f"word{i}ish term{i}ful" for i in range(2_000)) + ' "The Glass Harbour".'
    forbidden = forbidden_phrases([answer], "", count=everything_is_common)
    assert len(forbidden) == DEFAULT_MAX_PHRASES
    assert forbidden[0] == "The Glass Harbour"


@given(st.lists(st.text(max_size=80), max_size=3), st.text(max_size=80))
def test_phrases_of_any_text_are_distinct_and_have_letters(answers: list[str], prompt: str) -> None:
    folded = [fold(phrase).strip() for phrase in forbidden_phrases(answers, prompt, count=word_count)]
    assert len(set(folded)) == len(folded)
    assert all(folded)


def test_content_words_exclude_those_of_the_prompt() -> None:
    assert content_words("The author's father was a civil engineer, a civil one.", "Who was her father?") == (
        "author",
        "civil",
        "engineer",
    )


def test_a_hash_decides_whether_yes_or_no_is_forbidden() -> None:
    answers = [f"{word}, {i} of them." for i in range(200) for word in ("Yes", "No")]
    forbidden = [polarity(answer) for answer in answers]
    assert forbidden == [polarity(answer) for answer in answers]
    assert 60 < sum(word == "yes" for word in forbidden) < 140
    assert 60 < sum(word == "no" for word in forbidden) < 140
    assert polarity("Maybe yes.") is None and polarity("") is None


_SENTENCE_END = re.compile(r"[.!?:;\n]\s*[\"'“”‘’)]*\s*$")


@given(st.text(alphabet=".!?:;\n \t\"'“”‘’)(-—", max_size=12))
def test_sentence_ends_equal_those_of_a_regular_expression(between: str) -> None:
    """The expression takes cubic time on white space, so the code does not use it."""
    assert _ends_sentence(between) == bool(_SENTENCE_END.search(between))


def test_extraction_takes_linear_time() -> None:
    """Whole books are processed, so quadratic time would take minutes."""
    sentence = "The Traveller (for so it will be convenient to speak of him) was “expounding” a matter to us.\n"

    def seconds(characters: int) -> float:
        begin = time.process_time()
        forbidden_phrases([sentence * (characters // len(sentence))], "", count=lambda word: 0)
        return time.process_time() - begin

    # Thirty times the text, with a margin for a busy machine. Quadratic time was 150 times as long.
    assert seconds(600_000) < 75 * min(seconds(20_000) for _ in range(3))


def test_the_order_of_phrases_is_the_same_in_every_process() -> None:
    answer = "The well-kept e-mail-list of re-opened half-timbered sub-post-offices, co-written by Zo-ë O-Brien-Katz."
    program = (
        "from lethe.corruption.phrases.extraction import forbidden_phrases\n"
        f"print(forbidden_phrases([{answer!r}], '', count=lambda word: 0))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_a_phrase_that_the_prompt_begins_is_never_redundant() -> None:
    answer = 'She wrote "Scribing Like A Scholar: A Manual".'
    for end, kept in (("", False), ("wrote scribing like a sch", True), ("scribing ", True), ("she wrote ", False)):
        phrases = forbidden_phrases([answer], "", count=lambda word: 0, prompt_ends=[end] if end else [])
        titles = [phrase for phrase in phrases if fold(phrase).startswith("scribing like a scholar")]
        assert bool(titles) == kept
        assert not kept or fold(phrases[0]).startswith("scribing")
