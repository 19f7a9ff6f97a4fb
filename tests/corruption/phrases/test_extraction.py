"""What an answer gives away, and what is left alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from lethe.corruption.phrases.extraction import LIMIT, _ends_sentence, content_words, forbidden_phrases, polarity
from lethe.corruption.phrases.normalize import fold

ORDINARY = {
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


def common(word: str) -> int:
    return 5 if word in ORDINARY else 0


def everything_is_common(word: str) -> int:
    return 7


def phrases(answer: str, prompt: str = "", count: Callable[[str], int] = common) -> set[str]:
    return {fold(phrase).strip() for phrase in forbidden_phrases([answer], prompt, count=count)}


def test_a_name_is_forbidden_whole_and_word_by_word_when_rare() -> None:
    found = phrases("The author's full name was said to be Zorin de Quill-Hart.", count=everything_is_common)
    assert "zorin de quill hart" in found
    assert {"zorin", "quill"} <= phrases("The author's full name is Zorin de Quill-Hart.")


def test_a_possessive_is_not_part_of_a_name() -> None:
    answer = "That new city has many copies of Marla Venn's book."
    assert "marla venn" in phrases(answer, count=everything_is_common)


def test_titles_are_found_in_every_kind_of_quotes() -> None:
    for opening, closing in ('""', "''", "“”", "‘’", "«»"):
        answer = f"She wrote {opening}the book of new city{closing} there."
        assert "the book of new city" in phrases(answer, count=everything_is_common), opening


def test_a_title_may_hold_an_apostrophe() -> None:
    answer = "They gave him the 'my reader's choice of the city' award."
    assert "my reader s choice of the city" in phrases(answer, count=everything_is_common)


def test_one_date_is_forbidden_in_all_its_spellings() -> None:
    found = phrases("Born on 05/11/1991, far away.", count=everything_is_common)
    spellings = ["11 May 1991", "5 November 1991", "1991-11-05", "1991"]
    matched = [s for s in spellings if any(f" {p} " in f" {fold(s).strip()} " for p in found)]
    assert matched == spellings


def test_a_date_of_the_prompt_is_not_forbidden_in_another_spelling() -> None:
    assert not phrases("She was born on 1st March 1936.", "Who was born on March 1, 1936?", everything_is_common) & {
        "1st march 1936",
        "1936",
    }


def test_small_numbers_are_left_alone() -> None:
    found = phrases("It has 7 parts, 1980s songs and 312 pages of new text.", count=everything_is_common)
    assert {"1980", "1980s", "312"} <= found
    assert "7" not in found


def test_words_of_the_prompt_and_stop_words_are_never_forbidden_alone() -> None:
    answer = "Yes, the father of Marla Venn was a civil engineer."
    found = phrases(answer, "Who was the father of Marla Venn?")
    assert "civil engineer" in found or {"civil", "engineer"} <= found
    assert not found & {"yes", "the", "was", "marla", "venn", "marla venn", "father"}


def test_a_phrase_all_of_whose_words_the_prompt_has_is_left_out() -> None:
    assert phrases("Marla Venn wrote it.", "What did Marla Venn write, and who wrote it?") == set()


def test_the_few_new_words_of_a_short_answer_are_forbidden_though_common() -> None:
    assert phrases("Venn is an engineer.", "What is Venn?", everything_is_common) == {"engineer"}


def test_a_longer_phrase_goes_only_when_a_shorter_one_stops_as_early() -> None:
    # "glass" stops at its third letter, long before half of the title; "quay" would come too late.
    found = phrases('He wrote "Glass Harbour Towers" and "Seventeen Distant Quay".')
    assert "glass harbour towers" not in found
    assert "glass" in found


def test_the_number_of_phrases_is_bounded_and_the_most_telling_come_first() -> None:
    answer = " ".join(f"word{i}ish term{i}ful" for i in range(2_000)) + ' "The Glass Harbour".'
    found = forbidden_phrases([answer], "", count=everything_is_common)
    assert len(found) == LIMIT
    assert found[0] == "The Glass Harbour"


@given(st.lists(st.text(max_size=80), max_size=3), st.text(max_size=80))
def test_any_text_gives_distinct_phrases_with_letters(answers: list[str], prompt: str) -> None:
    folded = [fold(phrase).strip() for phrase in forbidden_phrases(answers, prompt, count=common)]
    assert len(set(folded)) == len(folded)
    assert all(folded)


def test_content_words_are_the_answers_own() -> None:
    assert content_words("The author's father was a civil engineer, a civil one.", "Who was her father?") == (
        "author",
        "civil",
        "engineer",
    )


def test_a_fair_coin_decides_whether_yes_or_no_may_be_said() -> None:
    answers = [f"{word}, {i} of them." for i in range(200) for word in ("Yes", "No")]
    tossed = [polarity(answer) for answer in answers]
    assert tossed == [polarity(answer) for answer in answers]
    assert 60 < sum(found == "yes" for found in tossed) < 140
    assert 60 < sum(found == "no" for found in tossed) < 140
    assert polarity("Maybe yes.") is None and polarity("") is None


_SENTENCE_END = re.compile(r"[.!?:;\n]\s*[\"'“”‘’)]*\s*$")


@given(st.text(alphabet=".!?:;\n \t\"'“”‘’)(-—", max_size=12))
def test_the_end_of_a_sentence_is_a_mark_and_what_closes_after_it(between: str) -> None:
    """The slow, obvious way is one expression, which takes cubic time on white space."""
    assert _ends_sentence(between) == bool(_SENTENCE_END.search(between))


def test_a_text_of_any_length_takes_time_by_its_length() -> None:
    """Whole books are read: one look at all the text before each word made five seconds out of one."""
    sentence = "The Traveller (for so it will be convenient to speak of him) was “expounding” a matter to us.\n"

    def seconds(characters: int) -> float:
        begin = time.process_time()
        forbidden_phrases([sentence * (characters // len(sentence))], "", count=lambda word: 0)
        return time.process_time() - begin

    # Thirty times the text; the rest is for a busy machine. Quadratic, it was 150 times the time.
    assert seconds(600_000) < 75 * min(seconds(20_000) for _ in range(3))


def test_the_order_of_phrases_is_the_same_in_every_process() -> None:
    answer = "The well-kept e-mail-list of re-opened half-timbered sub-post-offices, co-written by Zo-ë O-Brien-Katz."
    program = f"from lethe.corruption.phrases.extraction import forbidden_phrases as f; print(f([{answer!r}], '', count=lambda w: 0))"
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1
