from __future__ import annotations

import base64

from classifier.encoder import Encoder
from classifier.reading import read

ASKED = "Who keeps the lamp burning at the far end of the pier?"


def test_views_with_the_same_words_share_rows(encoder: Encoder) -> None:
    reading = read(f"{ASKED}\n{ASKED.upper()}", encoder)
    assert {reading.view(place) for place in reading.places} == {"raw", "normalised"}
    assert len({place.row for place in reading.places if not place.closer}) == 3
    assert reading.text(0) == f"{ASKED} {ASKED}".lower()


def test_what_differs_in_capitals_alone_is_read_once_by_an_encoder_that_reads_none(encoder: Encoder) -> None:
    reading = read(f"{ASKED} {ASKED.upper()}", encoder)
    assert {reading.view(place) for place in reading.places} == {"raw"}


def test_places_point_at_the_characters_that_they_stand_for(encoder: Encoder) -> None:
    run = base64.b64encode(ASKED.encode()).decode()
    text = f"Read this: {run}"
    reading = read(text, encoder)
    (place,) = (p for p in reading.places if reading.text(p.row) == ASKED.lower() and not p.closer)
    assert reading.view(place) == "base64" and text[slice(*reading.span(place))] == run


def test_a_long_sentence_is_looked_at_closer_and_all_of_a_text_is_seen(encoder: Encoder) -> None:
    reading = read(" ".join(["lantern", "river", "copper"] * 10), encoder)
    assert 0 < sum(reading.own) < len(reading.own)
    assert reading.seen == reading.present == 10 * len("lanternrivercopper")


def test_of_nothing_there_is_nothing(encoder: Encoder) -> None:
    for text in ("", " \n", "\u200b"):
        assert [reading.text(p.row) for reading in [read(text, encoder)] for p in reading.places if p.closer] == []
