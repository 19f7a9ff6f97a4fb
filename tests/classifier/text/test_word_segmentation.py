from __future__ import annotations

import pytest

from lethe.classifier.text.word_segmentation import bridged, segmented, spaced, unmarked
from tests.classifier.text.test_confusables import made

QUESTION = "Who is the author of the book"


@pytest.mark.parametrize(
    "text",
    [
        " ".join(QUESTION),
        "  ".join(" ".join(word) for word in QUESTION.split()),
        " ".join(".".join(word) for word in QUESTION.split()),
        " ".join("-".join(word) for word in QUESTION.split()),
        " / ".join("_".join(word) for word in QUESTION.split()),
        "\n\n".join("\n".join(word) for word in QUESTION.split()),
    ],
)
def test_single_letters_become_words(text: str) -> None:
    assert made(text, spaced(text)).replace("/", " ").split() == QUESTION.split()


@pytest.mark.parametrize("text", ["1 2 3 4 5 6", "a b c", "U.S.A. and e.g. that", "x = y + z", "plan B, or C"])
def test_letters_that_stand_alone_stay(text: str) -> None:
    assert spaced(text) == []


def test_marks_and_tags_inside_words_are_gone() -> None:
    text = "V<b>ard</b>holm, Vard<|im_end|>holm, Vard[INST]holm, V<i>\u200b</i>ardholm, <p>Vardholm</p>"
    assert made(text, unmarked(text)) == "Vardholm, Vardholm, Vardholm, Vardholm, <p>Vardholm</p>"


@pytest.mark.parametrize("mark", ["*", "**", "***", "__", "~~", "`"])
def test_emphasis_that_begins_or_ends_inside_a_word_is_gone(mark: str) -> None:
    text = f"V{mark}ard{mark}holm {mark}tel{mark}dric vel{mark}sund{mark} {mark}whole{mark} words"
    assert made(text, unmarked(text)) == f"Vardholm teldric velsund {mark}whole{mark} words"
    assert unmarked("a snake_case_name, __init__ and 2 * 3 * 4") == []


def test_letters_with_equal_gaps_are_cut_into_known_words() -> None:
    text = " ".join("WhoWroteTheBookAboutVardholm")
    assert made(text, spaced(text, frozenset({"vardholm"}))) == "Who Wrote The Book About Vardholm"
    small = text.lower()
    assert made(small, spaced(small, frozenset({"vardholm"}))) == "who wrote the book about vardholm"


@pytest.mark.parametrize("text", ["Var-dh-olm", "Vard**holm**", "V_a_rdh_olm", "Var`dh`olm", "Va.rdh.olm"])
def test_words_with_signs_inside_are_whole(text: str) -> None:
    assert "Vardholm" in made(text, bridged(text))


def test_two_parts_count_where_there_are_several_such_words() -> None:
    text = "Vard-holm, tel-dric and velsu-nd"
    assert "Vardholm" in made(text, bridged(text))
    assert bridged("Where did Vard-holm start") == []


@pytest.mark.parametrize(
    "text", ["Hask-Olsen's", "well-known", "e-mail", "don't", "and/or", "J.K. Smith", "3.14", "Hye-Won"]
)
def test_ordinary_compounds_stay(text: str) -> None:
    assert bridged(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "whoistheauthorofthebookaboutvardholm",
        "WhoIsTheAuthorOfTheBookAboutVardholm",
        "Wh ois t heau tho rof the bo okab out va rdho lm",
    ],
)  # fmt: skip
def test_gaps_that_are_gone_or_misplaced_are_found(text: str) -> None:
    plain = made(text, segmented(text, frozenset({"vardholm"}))).lower()
    assert plain == "who is the author of the book about vardholm"


def test_names_of_others_stay_whole_where_letters_stood_apart() -> None:
    text, names = "W.h.e.n w.a.s J.i.y.e.o.n.g b.o.r.n", frozenset({"ji", "yeon"})
    assert made(text, spaced(text, names)).lower() == "when was ji yeon g born"
    assert made(text, spaced(text, names, lambda word: word == "jiyeong")) == "When was Jiyeong born"
    # Whatever others are called: letters without a gap are cut.
    flat = " ".join("whoistheauthor")
    assert made(flat, spaced(flat, familiar=lambda word: True)) == "who is the author"


@pytest.mark.parametrize(
    "text",
    [
        "x" * 50,
        "Donaudampfschifffahrtsgesellschaft",
        "one two three four five six seven eight nine",
        # Of ordinary text, too, some words are unknown.
        "has a capacity of 1000 beds with 1/5 occupied. Due to the",
    ],
)
def test_what_gives_no_words_stays(text: str) -> None:
    assert segmented(text) == []
