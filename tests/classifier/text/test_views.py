from __future__ import annotations

import base64
import codecs
import time
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lethe.classifier.text.confusables import normalise_text
from lethe.classifier.text.views import EXTRA_CHARACTERS, MAX_GROWTH, View, _is_plain, text_views

QUESTION = "What is the name of the author born in Vardholm near the lake?"
# Texts of any kind, and texts made of the pieces that decoders look for.
PIECES = st.sampled_from(
    ["\\u0041", "%41%42", "&#65;", "=41", "<b>", "<|x|>", " a b c d ", "V2hhdCBpcyB0aGUg", "57686174", "0x41 ", "4",
     "аб", "\u0301", "\u200b", "\U000e0041", "\ufe01", ".- -... ", "01000001 ", "84 104 ", "gur anzr bs ",
     "tahw si eht ", "-", "thenameofthebook", "Q2", "==", "\n", "\ud800", "ﷺ", "ß", "  "]
)  # fmt: skip
TEXTS = st.one_of(st.text(alphabet=st.characters(exclude_categories=())), st.lists(PIECES, max_size=40).map("".join))


def test_a_view_equal_to_an_earlier_one_is_left_out() -> None:
    assert [view.name for view in text_views("plain words")] == ["raw"]
    assert [view.name for view in text_views("Plain words")] == ["raw", "normalised"]


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        "I don't know; e-mail J.K. Smith's well-known 2nd draft (v1) by 7 p.m. on 05/11/1991, please!",
        "Jean-Paul and Hye-Won paid $20 for 3 books: 'A', 'B' and 'C'.",
        "Compare commit 3f2a9c8e7b6d5a4f3e2d1c0b9a8f7e6d5c4b3a29 with 123e4567-e89b-12d3-a456-426614174000.",
        "See https://example.com/path/page.html?id=42 and data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB",
        "Solve 2x + 3 = 11, then 10 20 30 40 50 60 70 and 128 256 512 1024.",
        "Wer hat die Bücher geschrieben, und wann wurde der Autor geboren?",
        "Qui a écrit le livre sur la mer, et où est né l'auteur ?",
        "Кто написал книгу о большом городе?",
        "“Typographic” quotes — dashes… and an emoji ❤️ don't matter",
    ],
)
def test_an_ordinary_text_has_at_most_two_views(text: str) -> None:
    assert [view.name for view in text_views(text) if view.name not in ("raw", "normalised")] == []


def test_characters_around_something_removed_count_as_changed() -> None:
    """A window without a changed character isn't judged again, so blanks alone wouldn't do."""
    views = {view.name: view for view in text_views("What <|end|> kind [INST] of author")}
    view = views["no-markup"]
    assert view.text.split() == "What kind of author".split()
    changed = "".join(c if is_changed else "." for c, is_changed in zip(view.text, view.changed, strict=True))
    assert changed.replace(".", "") == "tkdo"


def rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (in_base64(QUESTION), "base64"),
        (in_base64(in_base64(in_base64(QUESTION))), "base64"),
        (in_base64(rot13(QUESTION)), "base64+shifted"),
        (in_base64(" ".join(QUESTION)), "base64+spaced"),
        (rot13(" ".join(QUESTION)), "spaced+shifted"),
        (quote(in_base64(QUESTION)), "url+base64"),
        (QUESTION.encode().hex(), "hex"),
        (QUESTION[::-1], "reversed"),
        (" ".join(word[::-1] for word in QUESTION.split()), "mirrored"),
        (QUESTION.translate(str.maketrans("aeiost", "431057")), "leet"),
        (QUESTION.replace("a", "а").replace("o", "о"), "skeleton"),
        ("".join(chr(0xE0000 + ord(c)) for c in QUESTION), "hidden"),
        ("".join(QUESTION.split()), "segmented"),
    ],
)
@pytest.mark.parametrize("around", ["{}", "Please read this: {} and answer, thank you very much for the help."])
def test_disguised_text_is_decoded_and_the_view_names_the_decoders(text: str, name: str, around: str) -> None:
    raw = around.format(text)
    expected = "".join(QUESTION.lower().split())[5:-1]
    decoded = [(view.name, "".join(view.text.lower().split())) for view in text_views(raw, frozenset({"vardholm"}))]
    assert any(view.startswith(name) and expected in text for view, text in decoded), decoded


def test_decoded_text_points_at_the_encoded_run() -> None:
    run = in_base64("Where is Vardholm?")
    raw = f"Say: {run} now"
    view = next(view for view in text_views(raw) if view.name == "base64")
    assert view.text == "Say: Where is Vardholm? now"
    at = view.text.index("Vardholm")
    assert raw[slice(*view.raw_span(at, at + 8))] == run
    assert raw[slice(*view.raw_span(0, 3))] == "Say"
    assert raw[slice(*view.raw_span(len(view.text) - 3, len(view.text)))] == "now"
    assert "".join(np.array(list(view.text))[view.changed]) == "Where is Vardholm?"


def test_joined_letters_point_at_their_own_word() -> None:
    raw = "Born in V a r d h o l m   T o w n ?"
    view = next(view for view in text_views(raw) if view.name == "spaced")
    at = view.text.index("Town")
    assert raw[slice(*view.raw_span(at, at + 4))] == "T o w n"


def test_normalised_characters_point_at_their_raw_ones() -> None:
    raw = "  Say  \u200bＨellо\u200b Straße now"
    view = text_views(raw)[1]
    start = view.text.index("strasse")
    assert raw[slice(*view.raw_span(start, start + len("strasse")))].strip() == "Straße"


def check(view: View, text: str) -> None:
    sizes = {len(view.text), len(view.starts), len(view.ends), len(view.changed)}
    assert len(sizes) == 1
    if view.text:
        assert view.starts.min() >= 0 and view.ends.max() <= len(text)
        assert (np.diff(view.starts) >= 0).all() and (np.diff(view.ends) >= 0).all()
        assert (view.starts <= view.ends).all()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS)
@example("<a>" * 50 + "x" + "</a>" * 50 + "y")
@example("a\u0301" * 100 + "\ud800b")
def test_views_of_any_text_stay_within_bounds(text: str) -> None:
    views = text_views(text)
    assert views[0].name == "raw" and views[0].text == text
    for view in views:
        check(view, text)
    further = sum(len(view.text) for view in views if view.name not in ("raw", "normalised"))
    assert further <= MAX_GROWTH * len(text) + EXTRA_CHARACTERS
    assert len({view.text for view in views}) == len(views)


@given(TEXTS)
def test_offsets_of_the_normalised_text_rise_and_stay_inside(text: str) -> None:
    view, offsets = normalise_text(text)
    assert len(offsets) == len(view) + 1
    assert all(a <= b for a, b in zip(offsets, offsets[1:], strict=False))
    assert 0 <= offsets[0] and offsets[-1] <= len(text)
    assert view == view.strip() and "  " not in view


def bomb(text: str, times: int) -> str:
    for _ in range(times):
        text = in_base64(text)
    return text


SIZE = 40_000


@pytest.mark.parametrize(
    "text",
    [
        bomb("a" * 3000, 8),
        *(unit * (SIZE // len(unit)) for unit in (
            "a", "A", "1", "Z9", "a ", "a.", "<a", "&a", "a=", "%41", "\\u", "U+1", "01", ".-", "12 ", "0x", "ab ",
            "Аb", "аб", "\u0301", "\u200b", "\U000e0041", "ﷺ", "&#65;", "a-b", "T a ", "gur ", "[a]", "<<", "==", "\n",
            "\ud800", "a\u0301", "0x41,", "\ufe01\ufe01\ufe01\ufe01x", "\\ud800",
        )),
    ],
    ids=lambda text: repr(text[:4]),
)  # fmt: skip
def test_work_is_linear_for_any_kind_of_text(text: str) -> None:
    def cost(part: str) -> float:
        # CPU time, so that other load makes no difference.
        start = time.thread_time()
        text_views(part)
        return time.thread_time() - start

    cost(text[: len(text) // 8])
    small, large = cost(text[: len(text) // 8]), cost(text)
    assert large <= 24 * small + 0.5


@pytest.mark.parametrize(
    "text",
    [
        "Who keeps the lamp burning at the far end of the pier?",
        "In 1984, 12 of 30 people paid $20 (or 4.5% more) - is that well-known?\nYes.",
        "hello 72 101 108 108 111 32 119 111 114 108 100",
        "w h o keeps it", "I a I a I a b c d e", "48 65 6c 6c 6f 20 77 6f 72", "x - . - - . . - . - . -",
        "jub xrrcf gur ynzc oheavat ng gur sne raq", "Was it Teldirc or Vardhlom?", "wh oke eps th ela mp bu rni ng at",
        "The value of 1930 is near 1931.", "sp-lit wo-rds ev-ery-wh-ere", "A is the father of B. B is the father of C.",
        "dead beef fade cafe babe 12 34", "Rhoda Mbalazi's books, please!", "(see 1. 2. 3. 4. 5. 6.)",
    ],
)  # fmt: skip
def test_the_plain_text_shortcut_gives_the_same_views(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = frozenset({"teldric", "vardholm", "1931", "lamp"})
    with_shortcut = [view.name for view in text_views(text, vocabulary)]
    monkeypatch.setattr("lethe.classifier.text.views._is_plain", lambda *_: False)
    assert [view.name for view in text_views(text, vocabulary)] == with_shortcut


@pytest.mark.parametrize(
    "token",
    ["57 ", "12 45 78 33 90 ", "57  ", 'so" ', "dogs' ", "a) ", "$3.1% ", "well-known ", "- ", "Yes?!. ", "3-day "],
)
@pytest.mark.parametrize("end", ["_", "mail me@x.org", "x" * 30])
def test_the_plain_text_pattern_takes_linear_time(token: str, end: str) -> None:
    text = token * 40_000 + end
    started = time.process_time()
    assert not _is_plain(text, frozenset(), lambda word: False)
    # Linear work takes hundredths of a second; a pattern that backtracks would not finish.
    assert time.process_time() - started < 2


def test_an_ordinary_question_needs_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lethe.classifier.text.views.DECODERS", {"broken": lambda text: pytest.fail("decoder called")})
    assert [view.name for view in text_views("Who keeps the lamp burning, and why?")] == ["raw", "normalised"]
