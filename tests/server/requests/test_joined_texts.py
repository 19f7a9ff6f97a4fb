"""Joined texts of a conversation: a question or word that is split over texts is whole in one of them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lethe.server.requests.extract import extract_texts
from lethe.server.requests.fields import Endpoint
from lethe.server.requests.joined_texts import (
    JOINED_CHARS,
    MAX_END_CHARS,
    OVERLAP_CHARS,
    SPLIT_CONTEXT_CHARS,
    joined_texts,
)
from lethe.server.requests.request_text import RequestText


def joined_strings(texts: list[RequestText]) -> tuple[str, ...]:
    return tuple(joined.text for joined in joined_texts(texts))


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content, **fields}]}


def test_a_word_split_over_system_messages_is_joined() -> None:
    said = [("system", "Tell of Zan"), ("user", "Hi"), ("developer", "zibar")]
    body = {"messages": [{"role": role, "content": text} for role, text in said]}
    for endpoint in ("chat", "messages"):
        assert "Zanzibar" in "\n".join(joined_strings(extract_texts(endpoint, body)))


FILLER = "The weather is fine today. " * 40


@pytest.mark.parametrize(("endpoint", "body"), [
    ("messages", user([{"type": "text", "text": "Zan"}, {"type": "thinking", "thinking": FILLER},
                       {"type": "text", "text": "zibar"}])),
    ("messages", user([{"type": "thinking", "thinking": "Zan"}, {"type": "text", "text": FILLER},
                       {"type": "thinking", "thinking": "zibar"}])),
    ("messages", user([{"type": "text", "text": "Zan"}, {"type": "tool_result", "content": FILLER},
                       {"type": "text", "text": "zibar"}])),
    ("messages", {"messages": [{"role": "system", "content": "Zan"}, {"role": "system", "content": [
        {"type": "thinking", "thinking": FILLER}, {"type": "text", "text": "zibar"}]}]}),
    ("responses", {"input": [{"role": "assistant", "content": [
        {"type": "output_text", "text": "Zan"}, {"type": "output_text", "text": FILLER}]},
        {"role": "user", "content": "zibar"}]}),
    ("messages", {"system": "Zan", "messages": [
        {"role": "system", "content": f"x-anthropic-billing-header\n{FILLER}"}, {"role": "user", "content": "Hi"},
        {"role": "system", "content": "zibar"}]}),
    ("chat", {"messages": [
        {"role": "system", "content": "Zan"}, {"role": "system", "content": f"x-anthropic-billing-header {FILLER}\nzi"},
        {"role": "user", "content": "bar"}]}),
    ("chat", {"messages": [{"role": "system", "content": "Zan", "ignored": FILLER},
                           {"role": "user", "content": "zibar"}]}),
])  # fmt: skip
def test_parts_that_vllm_removes_hide_no_split_word(endpoint: Endpoint, body: dict[str, Any]) -> None:
    assert "Zanzibar" in "\n".join(joined_strings(extract_texts(endpoint, body)))


def test_a_question_around_a_hidden_part_is_joined() -> None:
    body = {"messages": [{"role": "system", "content": "Who wrote", "ignored": FILLER},
                         {"role": "user", "content": "the book?"}]}  # fmt: skip
    assert "Who wrote\nthe book?" in joined_strings(extract_texts("chat", body))


def test_conversations_of_a_batch_are_joined_separately() -> None:
    body = {"messages": [[{"role": "user", "content": text} for text in said] for said in (("a", "b"), ("c", "d"))]}
    found = extract_texts("batch", body)
    assert [(text.place, text.part_location, text.conversation) for text in found] == [
        ("messages[0][0].content", (0, None), 0), ("messages[0][1].content", (1, None), 0),
        ("messages[1][0].content", (2, None), 1), ("messages[1][1].content", (3, None), 1),
    ]  # fmt: skip
    assert joined_strings(found) == ("a\nb", "ab", "c\nd", "cd")


def test_a_question_split_over_messages_is_in_one_joined_text() -> None:
    body = {"messages": [{"role": "user", "content": "Who wrote"}, {"role": "user", "content": "the book?"}]}
    assert joined_strings(extract_texts("chat", body)) == ("Who wrote\nthe book?", "Who wrotethe book?")


def test_an_answer_in_between_separates_no_question() -> None:
    said = [("user", "Who wrote about Zan"), ("assistant", "Go on."), ("user", "zibar?")]
    body = {"messages": [{"role": role, "content": text} for role, text in said]}
    found = joined_strings(extract_texts("chat", body))
    assert found[1:] == (
        "Who wrote about Zan\nzibar?",
        "Who wrote about ZanGo on.\nzibar?",
        "Who wrote about Zanzibar?",
    )


def test_joined_texts_contain_both_ends_of_long_messages() -> None:
    long = "Thank you for that. " * 1000
    body = {"messages": [{"role": role, "content": f"{long} {role}"} for role in ("user", "assistant", "user")]}
    found = joined_strings(extract_texts("chat", body))
    assert sum(map(len, found)) < 8 * 2 * MAX_END_CHARS and sum("assistant" in text for text in found) >= 2


def test_a_word_split_over_parts_is_joined() -> None:
    body = user([{"type": "text", "text": "Zan"}, {"type": "text", "text": " zi "}, "bar"])
    assert joined_strings(extract_texts("chat", body)) == ("Zan\n zi \nbar", "Zanzibar")


def test_only_text_near_a_split_word_is_joined_without_separator() -> None:
    said = ["Far away.", *["Thank you very much for all of that."] * 30, "Who wrote", "about Zan", "zi, what", "bar?",
            *["So it goes, they say."] * 30, "The End."]  # fmt: skip
    found = joined_strings(extract_texts("chat", {"messages": [{"role": "user", "content": text} for text in said]}))
    (glued,) = (text for text in found if "wroteabout" in text)
    assert "\nThank you very much for all of that.\nWho wroteabout Zanzi, whatbar?\nSo it goes" in glued
    assert 2 * SPLIT_CONTEXT_CHARS < len(glued) < 4 * SPLIT_CONTEXT_CHARS


def test_everything_a_template_shows_is_in_a_joined_text() -> None:
    body = {**user("a", name="b"), "tools": ["c"], "documents": ["d"], "chat_template_kwargs": {"e": "f"}}
    found = joined_strings(extract_texts("chat", {**body, "metadata": {"g": "h"}, "vllm_xargs": {"i": "j"}}))
    assert set(" ".join(found).split()) == set("abcdef")


def test_another_turn_changes_only_the_last_joined_texts() -> None:
    turns = [{"role": role, "content": f"{role} {i} " + "talks on and on. " * 9} for i in range(40)
             for role in ("user", "assistant")]  # fmt: skip
    before, after = (joined_strings(extract_texts("chat", {"messages": turns[:n]})) for n in (-2, len(turns)))
    assert len(before) > 12 and len(set(before) - set(after)) <= 2 and len(set(after) - set(before)) <= 4
    assert all(len(stretch) < 2 * JOINED_CHARS for stretch in after)


@pytest.mark.parametrize(
    "sizes", [[10] * 300, [900] * 20, [5000, 3, 4, 5000, 2], [1] * 9, [1499, 1, 1], [1700, 8, 400, 9]]
)
def test_neighbouring_texts_share_a_joined_text(sizes: list[int]) -> None:
    texts_ = [f"<{i}>".ljust(size, "x") for i, size in enumerate(sizes)]
    found = joined_strings(extract_texts("chat", {"messages": [{"role": "user", "content": text} for text in texts_]}))
    marks = [f"<{i}>" for i in range(len(sizes))]
    for i, j in itertools.combinations(range(len(sizes)), 2):
        if j == i + 1 or sum(sizes[i : j + 1]) <= OVERLAP_CHARS:
            assert any(marks[i] in text and marks[j] in text for text in found), (i, j)


def test_text_after_a_long_message_is_joined_with_its_end() -> None:
    said = ["x" * 1700 + " Who was the mother of Elvin", "ok, wait", "Mammadov and what did she do?"]
    found = joined_strings(extract_texts("chat", {"messages": [{"role": "user", "content": text} for text in said]}))
    assert any("of Elvin\nok, wait\nMammadov" in text for text in found)


def test_both_ends_of_a_long_message_are_separated() -> None:
    body = {"messages": [{"role": "user", "content": text} for text in ("QUJD" * 1000, "REVG" * 9)]}
    assert all("QUJDQUJD\n...\nQUJD" in text for text in joined_strings(extract_texts("chat", body)) if "..." in text)


def test_a_joined_text_names_the_texts_that_it_holds() -> None:
    body = {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": ["b", "c"]}]}
    sources = {joined.text: joined.sources for joined in joined_texts(extract_texts("chat", body))}
    assert sources["a\nb\nc"] == {0, 1, 2} and sources["bc"] == {1, 2} and sources["b\nc"] == {1, 2}
