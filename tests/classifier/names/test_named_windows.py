from __future__ import annotations

import pytest

from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.names.matcher import NameMatcher
from lethe.classifier.names.named_windows import MAX_NAMED_WINDOWS, NamedWindows, named_windows
from lethe.classifier.names.subject import Name, Scope, Subject
from lethe.classifier.text.segments import TextSegments, segment_text

FILLER = "The committee met again on Thursday and talked about the new car park for a long while. "


def subject(name: str, weight: float = 1.0, scope: Scope = "subject", words: tuple[str, ...] = ()) -> Subject:
    return Subject((Name(name, weight, True),), words, (0,), scope)


def find(text: str, encoder: Encoder, **subjects: list[Subject]) -> tuple[TextSegments, dict[str, NamedWindows]]:
    segments = segment_text(text, encoder)
    return segments, named_windows(segments, NameMatcher(subjects), subjects)


def test_only_windows_with_the_name_are_named(encoder: Encoder) -> None:
    text = FILLER * 40 + "Who was Zorin Quill? " + FILLER * 40
    segments, found = find(text, encoder, a=[subject("Zorin Quill")], b=[subject("Ada Example")])
    assert list(found) == ["a"]
    named = {number for number in range(len(segments.first)) if "zorin quill" in segments.text(number).lower()}
    assert named and set(found["a"]) == {number for number in named if segments.outer[number]}
    assert len(found["a"]) < segments.outer.sum()


@pytest.mark.parametrize(
    "text", ["who was ZORIN  QUILL", "Who was Zorín Quill’s aunt?", "“Zorin\nQuill”", "(zorin-quill)", "Zorin Quills"]
)
def test_other_ways_to_write_the_name_are_found(text: str, encoder: Encoder) -> None:
    _, found = find(text, encoder, a=[subject("Zorin Quill")])
    assert any(e.minimum_cosine == -1 for windows in found["a"].values() for e in windows)


def test_a_chinese_name_inside_a_sentence_is_found(encoder: Encoder) -> None:
    _, found = find("请问欧阳泽霖出生在哪里?", encoder, a=[subject("欧阳泽霖")])
    assert found["a"]


def test_each_named_subject_of_a_window_has_its_evidence(encoder: Encoder) -> None:
    both = [subject("Zorin Quill"), subject("Ada Example", 0.5, words=("ferry",))]
    _, found = find("Did Ada Example steer the ferry of Zorin Quill?", encoder, a=both)
    (evidence, *_) = found["a"].values()
    assert [(e.subject, e.names, e.words) for e in evidence] == [(1, 0.5, 0.25), (0, 1.0, 0)]


def test_the_words_of_a_name_far_apart_are_no_name(encoder: Encoder) -> None:
    _, found = find(f"Zorin {FILLER * 30} Quill", encoder, a=[subject("Zorin Quill")])
    assert found == {}


def test_a_name_that_says_too_little_names_no_window(encoder: Encoder) -> None:
    assert find("Who was Zorin Quill?", encoder, a=[subject("Zorin Quill", 0.05)])[1] == {}


def test_with_the_scope_facts_a_named_window_needs_a_fact(encoder: Encoder) -> None:
    _, found = find("Who was Zorin Quill?", encoder, a=[subject("Zorin Quill", scope="facts")])
    assert [e.facts_only for windows in found["a"].values() for e in windows] == [True]


def test_of_many_named_windows_those_with_most_evidence_are_kept(encoder: Encoder) -> None:
    text = "".join(f"{FILLER * 6}Peter Jones number {i}. " for i in range(60)) + "Peter Jones stole a lantern, a boat."
    segments, found = find(text, encoder, a=[subject("Peter Jones", 0.5, words=("lantern", "boat"))])
    assert len(found["a"]) == MAX_NAMED_WINDOWS < segments.outer.sum()
    assert any("lantern" in segments.text(number) for number in found["a"])
    assert list(found["a"]) == sorted(found["a"])
