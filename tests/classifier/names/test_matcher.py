from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.classifier.names.matcher import NameHit, NameMatcher
from lethe.classifier.names.subject import Name, Scope, Subject
from lethe.classifier.names.tokens import name_tokens

OTHERS = "where did the old captain keep seven brass lamps in winter and who sold them again".split()
LETTERS = "abcdefghijklmnopqrstuvwxyzáèïöüçñøłš"
SCRIPTS = st.sampled_from([LETTERS, "абвгдежзиклмнопрст", "αβγδεζηθικλμν", "欧阳泽霖青川铜罗盘"])
words = SCRIPTS.flatmap(lambda letters: st.text(letters, min_size=3, max_size=9)).filter(
    lambda word: word not in OTHERS
)
names = st.lists(words, min_size=1, max_size=4).map(" ".join)
fillers = st.lists(st.sampled_from(OTHERS), max_size=8)


def subject(*names: str, scope: Scope = "subject") -> Subject:
    return Subject(tuple(Name(name, 1.0, True) for name in names), (), (0,), scope)


def hits(matcher: NameMatcher, text: str) -> list[NameHit]:
    return matcher.hits(name_tokens(text))


def texts(found: list[NameHit]) -> list[str]:
    return [hit.name.text for hit in found]


disguises = st.sampled_from([
    str,
    str.upper,
    str.title,
    lambda name: unicodedata.normalize("NFD", name),
    lambda name: name.replace(" ", "-"),
    lambda name: name.replace(" ", ", "),
    lambda name: f"“{name}”",
    lambda name: f"{name}'s",
    lambda name: f"({name})!",
    lambda name: name.replace(" ", "\n"),
])  # fmt: skip


@given(names, fillers, fillers, disguises)
def test_a_name_is_found_anywhere_and_however_it_is_written(
    name: str, before: list[str], after: list[str], how: Callable[[str], str]
) -> None:
    matcher = NameMatcher({"a": [subject(name)]})
    text = " ".join([*before, how(name), *after])
    found = hits(matcher, text)
    assert name in texts(found)
    hit = found[texts(found).index(name)]
    assert (hit.artifact, hit.subject) == ("a", 0)
    assert name_tokens(text)[hit.first : hit.last][: len(name_tokens(name))] == name_tokens(name)


@given(names, fillers)
def test_a_text_without_the_name_has_no_hit(name: str, around: list[str]) -> None:
    assert not hits(NameMatcher({"a": [subject(name)]}), " ".join(around))


@given(st.lists(st.sampled_from(["ada", "maria", "example", "tordic", "quill"]), max_size=12), st.data())
def test_hits_of_one_subject_never_overlap(tokens: list[str], data: st.DataObject) -> None:
    parts = st.lists(st.sampled_from(["ada", "maria", "example", "tordic", "quill"]), min_size=1, max_size=3)
    own = data.draw(st.lists(parts.map(" ".join), min_size=1, max_size=6))
    found = NameMatcher({"a": [subject(*own)]}).hits(tokens)
    for one, other in zip(found, found[1:], strict=False):
        assert one.last <= other.first
    for hit in found:
        assert tokens[hit.first : hit.last] == hit.name.text.split()
    # Every name in the text is a hit, or inside or across one.
    covered = {place for hit in found for place in range(hit.first, hit.last)}
    for name in {tuple(name.split()) for name in own}:
        for first in range(len(tokens) - len(name) + 1):
            if tuple(tokens[first : first + len(name)]) == name:
                assert covered & set(range(first, first + len(name)))


def test_of_names_that_begin_together_the_longest_is_taken() -> None:
    matcher = NameMatcher({"a": [subject("Ada", "Ada Maria Example", "Example")]})
    assert texts(hits(matcher, "Is Ada Maria Example the Ada of that book?")) == ["Ada Maria Example", "Ada"]


def test_two_subjects_may_share_words_of_the_text() -> None:
    matcher = NameMatcher({"a": [subject("Ada Example"), subject("Example Bridge")], "b": [subject("Ada Example")]})
    found = hits(matcher, "the ada example bridge")
    assert [(hit.artifact, hit.subject) for hit in found] == [("a", 0), ("b", 0), ("a", 1)]


def test_names_with_endings_are_found() -> None:
    matcher = NameMatcher({"a": [subject("Zorin Quill")]})
    for text in ("Zorin Quill's", "Zorin Quills Haus", "Zorinu Quillem", "the Quills of Zorin Quill"):
        assert texts(hits(matcher, text)) == ["Zorin Quill"]
    assert not hits(matcher, "Zorin Quillington") and not hits(matcher, "Quill Zorin")


def test_of_a_subject_with_the_scope_facts_only_own_names_are_found() -> None:
    facts = Subject((Name("Zorin Quill", 1.0, True), Name("Oskelund", 0.8, False)), (), (0,), "facts")
    matcher = NameMatcher({"a": [facts], "b": [replace(facts, scope="subject")]})
    found = hits(matcher, "Did Zorin Quill live in Oskelund?")
    assert [(hit.artifact, hit.name.text) for hit in found] == [
        ("a", "Zorin Quill"), ("b", "Zorin Quill"), ("b", "Oskelund")
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["кто такой Исра Тамлин?", "ποιος είναι ο Ίσρα Ταμλίν", "who is Ysra Tamlin"])
def test_a_name_is_found_in_other_alphabets(text: str) -> None:
    assert texts(hits(NameMatcher({"a": [subject("Ysra Tamlin")]}), text)) == ["Ysra Tamlin"]
    assert texts(hits(NameMatcher({"a": [subject("Исра Тамлин")]}), text)) == ["Исра Тамлин"]


def test_a_name_with_few_consonants_is_not_found_by_its_sound() -> None:
    assert not hits(NameMatcher({"a": [subject("Ada Eno"), subject("Oona")]}), "одно и то же: Ада Ено")


def test_names_without_a_letter_are_ignored() -> None:
    assert not NameMatcher({"a": [subject("…", "—")]})
    assert not NameMatcher({})
