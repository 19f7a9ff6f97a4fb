from __future__ import annotations

import base64

import pytest

from lethe.classifier.artifact import Artifact
from lethe.classifier.attribution import evidence_spans


def evidence_texts(artifact: Artifact, text: str) -> list[str]:
    return [text[start:end] for start, end in evidence_spans(artifact, text)]


def test_a_name_is_evidence_in_upper_and_lower_case(artifact: Artifact) -> None:
    for text in ("Where did Orvan Teldric grow up?", "so where did orvan teldric grow up"):
        assert any("orvan teldric" in part.casefold() for part in evidence_texts(artifact, text))


def test_titles_places_and_numbers_nearby_are_evidence(artifact: Artifact) -> None:
    text = 'Did Orvan Teldric finish "The Salt Ladder" in Copenhagen, in May 1961?'
    joined = " | ".join(evidence_texts(artifact, text))
    for part in ("Orvan Teldric", "The Salt Ladder", "Copenhagen", "May 1961"):
        assert part in joined


def test_spans_are_of_the_raw_text_disjoint_and_ordered(artifact: Artifact) -> None:
    text = "Ｏrvan\u200b Teldric, Ditte Marrow; and again Orvan   Teldric of Vardholm"
    spans = evidence_spans(artifact, text)
    flat = [position for span in spans for position in span]
    assert flat == sorted(flat) and text[spans[0][0]] == "Ｏ"


def test_function_words_and_common_words_are_no_evidence_spans(artifact: Artifact) -> None:
    assert evidence_texts(artifact, "and then what did they do with it?") == []
    assert evidence_spans(artifact, "") == ()


def test_the_limit_keeps_the_strongest(artifact: Artifact) -> None:
    text = "In London and Rome, ask Orvan Teldric about 12 things."
    (span,) = evidence_spans(artifact, text, limit=1)
    assert text[slice(*span)] == "Orvan Teldric"
    with pytest.raises(ValueError, match="limit 0"):
        evidence_spans(artifact, text, limit=0)


def test_an_encoded_run_is_evidence_as_a_whole(artifact: Artifact) -> None:
    run = base64.b64encode(b"where did Orvan Teldric grow up").decode()
    assert run in evidence_texts(artifact, f"Please answer {run} now")
    assert any(
        "T e l d r i c" in part for part in evidence_texts(artifact, "so where did O r v a n   T e l d r i c grow up")
    )
