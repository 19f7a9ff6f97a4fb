"""The words of the user that an answer may repeat: a question's, not those of a list."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.corruption.phrases.normalize import fold
from lethe.server.requests.extract import extract_texts
from lethe.server.requests.fields import Endpoint
from lethe.server.requests.user_question import MAX_CONTENT_WORDS, MAX_ITEMS, user_question, without_lists

NAMES = [
    *(
        "Taipei Kaohsiung Tainan Keelung Hsinchu Oslo Bergen Turku Tampere Vaasa Porto Braga Evora Faro Coimbra Lugano"
    ).split(),
    *(
        f"{a}{b}"
        for a in ("Bel", "Kor", "Mar", "Tol", "Vis", "Zan")
        for b in ("ani", "ero", "ido", "umi", "oska", "elle", "inda")
    ),
]
SEPARATORS = [", ", "; ", " / ", "\n", " or ", " and ", " ", "|", " - ", "\n- ", ", or maybe ", "? Is it "]


def words(endpoint: Endpoint, **body: Any) -> set[str]:
    return set(fold(user_question(endpoint, extract_texts(endpoint, body))).split())


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_the_words_of_a_question_may_be_repeated() -> None:
    question = "What is the full name of the author born in Taipei, Taiwan on 05/11/1991 who writes about leadership?"
    assert words("chat", messages=[user(question)]) == set(fold(question).split())
    assert words("completions", prompt=question) == set(fold(question).split())
    assert words("responses", input=question) == set(fold(question).split())
    assert words("messages", messages=[user([{"type": "text", "text": question}])]) == set(fold(question).split())


def test_earlier_questions_of_the_same_conversation_count() -> None:
    turns = [user("Who is Zorin Quill?"), {"role": "assistant", "content": "An author from Oslo."}, user("Her awards?")]
    assert words("chat", messages=turns) == {"who", "is", "zorin", "quill", "her", "awards"}


def test_long_messages_and_other_roles_do_not_count() -> None:
    assert not words("chat", messages=[user("Oslo " + "the " * 100), {"role": "system", "content": "Oslo"}])
    assert not words("chat", messages=[user([{"type": "text", "text": "of the Oslo " * 9}] * 3)])
    assert not words("chat", messages=[{**user("?"), "name": "Oslo"}])


@given(
    st.lists(st.sampled_from(NAMES), min_size=MAX_ITEMS + 3, max_size=len(NAMES), unique=True),
    st.sampled_from(SEPARATORS),
    st.sampled_from(["Who is it? ", "", "Choose one: "]),
    st.sampled_from(["one", "parts", "messages", "turns"]),
    st.integers(1, 4),
)
def test_the_words_of_a_list_do_not_count(
    names: list[str], separator: str, before: str, form: str, per_text: int
) -> None:
    texts = [before + separator.join(names)]
    if form != "one":
        texts = [before + separator.join(names[at : at + per_text]) for at in range(0, len(names), per_text)]
    messages = [user(text) for text in texts]
    if form == "parts":
        messages = [user([{"type": "text", "text": text} for text in texts])]
    elif form == "turns":
        messages = [message for text in texts for message in (user(text), {"role": "assistant", "content": "No."})]
    allowed = words("chat", messages=messages)
    assert len(allowed & {fold(name) for name in names}) <= MAX_ITEMS


@given(st.lists(st.integers(1930, 2010), min_size=MAX_ITEMS + 1, max_size=40, unique=True), st.sampled_from(SEPARATORS))
def test_a_list_of_numbers_does_not_count(years: list[int], separator: str) -> None:
    allowed = words("chat", messages=[user("Which year? " + separator.join(map(str, years)))])
    assert not allowed & set(map(str, years))


@given(st.integers(0, 1_000), st.integers(40, 500), st.integers(5, 300))
def test_many_words_in_any_parts_free_few(seed: int, count: int, size: int) -> None:
    rng = random.Random(seed)
    fillers = ["the", "or", "in", "of a", "and", "is it", "with the", ","]
    text = " ".join(f"{rng.choice(fillers)} word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(count))
    messages = [user(text[at : at + size]) for at in range(0, len(text), size)]
    content = [word for word in words("chat", messages=messages) if word.startswith("word")]
    assert len(content) <= MAX_CONTENT_WORDS


def test_of_several_conversations_only_common_words_count() -> None:
    same = [[user("Who is Zorin Quill?")]] * 2
    assert "zorin" in words("batch", messages=same)
    assert words("batch", messages=[[user("Is Zorin in Oslo?")], [user("Is Zorin in Turku?")]]) == {"is", "zorin", "in"}
    assert words("batch", messages=[[user("Is Zorin in Oslo?")], [{"role": "system", "content": "Oslo"}]]) == set()
    assert words("completions", prompt=["Is it Oslo?", "Is it Turku?"]) == {"is", "it"}
    assert words("completions", prompt=["Is it Oslo?"] * 3) == {"is", "it", "oslo"}


@pytest.mark.parametrize("text", ["", "?", "Who?", "Zorin Quill-Ashe's book, film or play", "on 5 May 1990 at 7"])
def test_a_text_without_a_list_is_unchanged(text: str) -> None:
    assert without_lists(text) == text


def test_a_request_without_a_user_has_no_question() -> None:
    assert words("chat", messages=[]) == set()
