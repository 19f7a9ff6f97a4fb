from __future__ import annotations

import base64

from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.text.segments import read

ASKED = "Who keeps the lamp burning at the far end of the pier?"


def test_views_with_the_same_words_share_rows(encoder: Encoder) -> None:
    reading = read(f"{ASKED}\n{ASKED.upper()}", encoder)
    assert {reading.view(place) for place in reading.places} == {"raw", "normalised"}
    assert len({place.row for place in reading.places if not place.closer}) == 3
    assert reading.text(0) == f"{ASKED} {ASKED}".lower()


def test_windows_without_a_difference_share_rows(encoder: Encoder) -> None:
    others = [f"The lamp of pier {i} is trimmed by the keeper every evening before dark." for i in range(12)]
    reading = read(" ".join([*others, "The ofﬁce is dark when the harbour stays shut for the whole night."]), encoder)
    rows = {name: {p.row for p in reading.places if reading.view(p) == name} for name in ("raw", "normalised")}
    own = {name: {reading.text(row) for row in found} for name, found in rows.items()}
    # The last sentence, and the wide windows that reach into it, differ.
    assert len(rows["raw"] & rows["normalised"]) >= len(others)
    assert all("ofﬁce" in text for text in own["raw"] - own["normalised"])
    assert own["normalised"] - own["raw"] == {text.replace("ﬁ", "fi") for text in own["raw"] - own["normalised"]}


def test_later_views_share_rows_with_each_other_too(encoder: Encoder) -> None:
    asked = f"{ASKED} And who trims it at night?"
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in asked)
    reading = read(wide, encoder)
    rows = {name: {p.row for p in reading.places if reading.view(p) == name} for name in ("normalised", "skeleton")}
    assert rows["skeleton"] and rows["skeleton"] <= rows["normalised"]
    texts = [reading.text(row) for row in range(len(reading.own))]
    assert len(set(texts)) == len(texts)


def test_of_an_edited_view_only_the_changed_windows_are_read(encoder: Encoder) -> None:
    run = base64.b64encode(ASKED.encode()).decode()
    around = [f"The lamp of pier {i} is trimmed by the keeper every evening before dark." for i in range(40)]
    reading = read(" ".join([*around[:20], run, *around[20:]]), encoder)
    seen = [reading.text(place.row) for place in reading.places if reading.view(place) == "base64"]
    assert ASKED.lower() in seen and all("at the far end" in text or "lamp burning" in text for text in seen)
    assert len({text for text in seen}) < 20


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
