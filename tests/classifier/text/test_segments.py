from __future__ import annotations

import base64

from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.text.segments import segment_text

QUESTION = "Who keeps the lamp burning at the far end of the pier?"


def test_equal_windows_of_two_views_share_rows(encoder: Encoder) -> None:
    segments = segment_text(f"{QUESTION}\n{QUESTION.upper()}", encoder)
    assert {segments.view_name(place) for place in segments.places} == {"raw", "normalised"}
    assert len({place.window for place in segments.places if not place.inner}) == 3
    assert segments.text(0) == f"{QUESTION} {QUESTION}".lower()


def test_unchanged_windows_of_a_view_share_rows(encoder: Encoder) -> None:
    others = [f"The lamp of pier {i} is trimmed by the keeper every evening before dark." for i in range(12)]
    segments = segment_text(
        " ".join([*others, "The ofﬁce is dark when the harbour stays shut for the whole night."]), encoder
    )
    rows = {
        name: {p.window for p in segments.places if segments.view_name(p) == name} for name in ("raw", "normalised")
    }
    own = {name: {segments.text(row) for row in view_rows} for name, view_rows in rows.items()}
    # The last sentence, and the wide windows that reach into it, differ.
    assert len(rows["raw"] & rows["normalised"]) >= len(others)
    assert all("ofﬁce" in text for text in own["raw"] - own["normalised"])
    assert own["normalised"] - own["raw"] == {text.replace("ﬁ", "fi") for text in own["raw"] - own["normalised"]}


def test_later_views_share_rows_with_each_other(encoder: Encoder) -> None:
    question = f"{QUESTION} And who trims it at night?"
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in question)
    segments = segment_text(wide, encoder)
    rows = {
        name: {p.window for p in segments.places if segments.view_name(p) == name}
        for name in ("normalised", "skeleton")
    }
    assert rows["skeleton"] and rows["skeleton"] <= rows["normalised"]
    texts = [segments.text(row) for row in range(len(segments.outer))]
    assert len(set(texts)) == len(texts)


def test_only_the_changed_windows_of_a_later_view_are_read(encoder: Encoder) -> None:
    run = base64.b64encode(QUESTION.encode()).decode()
    around = [f"The lamp of pier {i} is trimmed by the keeper every evening before dark." for i in range(40)]
    segments = segment_text(" ".join([*around[:20], run, *around[20:]]), encoder)
    seen = [segments.text(place.window) for place in segments.places if segments.view_name(place) == "base64"]
    assert QUESTION.lower() in seen and all("at the far end" in text or "lamp burning" in text for text in seen)
    assert len({text for text in seen}) < 20


def test_capitals_make_no_view_for_an_encoder_that_ignores_case(encoder: Encoder) -> None:
    segments = segment_text(f"{QUESTION} {QUESTION.upper()}", encoder)
    assert {segments.view_name(place) for place in segments.places} == {"raw"}


def test_a_window_of_decoded_text_points_at_the_encoded_run(encoder: Encoder) -> None:
    run = base64.b64encode(QUESTION.encode()).decode()
    text = f"Read this: {run}"
    segments = segment_text(text, encoder)
    (place,) = (p for p in segments.places if segments.text(p.window) == QUESTION.lower() and not p.inner)
    assert segments.view_name(place) == "base64" and text[slice(*segments.raw_span(place))] == run


def test_a_long_sentence_has_inner_windows_and_is_covered(encoder: Encoder) -> None:
    segments = segment_text(" ".join(["lantern", "river", "copper"] * 10), encoder)
    assert 0 < sum(segments.outer) < len(segments.outer)
    assert segments.covered_characters == segments.total_characters == 10 * len("lanternrivercopper")


def test_an_empty_text_has_no_inner_windows(encoder: Encoder) -> None:
    for text in ("", " \n", "\u200b"):
        assert [
            segments.text(p.window) for segments in [segment_text(text, encoder)] for p in segments.places if p.inner
        ] == []
