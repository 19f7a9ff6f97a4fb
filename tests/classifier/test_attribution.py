from __future__ import annotations

import base64

import pytest

from lethe.classifier.artifact import Artifact
from lethe.classifier.judge import evidence


def found(artifact: Artifact, text: str) -> list[str]:
    return [text[start:end] for start, end in evidence(artifact, text)]


def test_the_name_is_evidence_in_any_case(artifact: Artifact) -> None:
    for text in ("Where did Orvan Teldric grow up?", "so where did orvan teldric grow up"):
        assert any("orvan teldric" in part.casefold() for part in found(artifact, text))


def test_titles_places_and_numbers_around_belong_to_it(artifact: Artifact) -> None:
    text = 'Did Orvan Teldric finish "The Salt Ladder" in Copenhagen, in May 1961?'
    joined = " | ".join(found(artifact, text))
    for part in ("Orvan Teldric", "The Salt Ladder", "Copenhagen", "May 1961"):
        assert part in joined


def test_spans_are_raw_disjoint_and_ordered(artifact: Artifact) -> None:
    text = "Ｏrvan\u200b Teldric, Ditte Marrow; and again Orvan   Teldric of Vardholm"
    spans = evidence(artifact, text)
    flat = [position for span in spans for position in span]
    assert flat == sorted(flat) and text[spans[0][0]] == "Ｏ"


def test_function_words_and_plain_words_are_no_evidence(artifact: Artifact) -> None:
    assert found(artifact, "and then what did they do with it?") == []
    assert evidence(artifact, "") == ()


def test_the_limit_keeps_the_strongest(artifact: Artifact) -> None:
    text = "In London and Rome, ask Orvan Teldric about 12 things."
    (span,) = evidence(artifact, text, limit=1)
    assert text[slice(*span)] == "Orvan Teldric"
    with pytest.raises(ValueError, match="limit 0"):
        evidence(artifact, text, limit=0)


def test_what_was_encoded_is_evidence_as_a_whole_run(artifact: Artifact) -> None:
    run = base64.b64encode(b"where did Orvan Teldric grow up").decode()
    assert run in found(artifact, f"Please answer {run} now")
    assert any("T e l d r i c" in part for part in found(artifact, "so where did O r v a n   T e l d r i c grow up"))
