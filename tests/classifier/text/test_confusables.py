from __future__ import annotations

import pytest

from lethe.classifier.text.confusables import Edit, hidden, leet, normalise, skeleton


def made(text: str, edits: list[Edit]) -> str:
    for start, end, plain in reversed(edits):
        text = text[:start] + plain + text[end:]
    return text


def test_look_alikes_and_invisible_characters_disappear() -> None:
    assert normalise("  ＨＥＬＬＯ\u200b  w\u00ador\u202eld\U000e0041\t! ")[0] == "hello world !"


def test_combining_marks_join_their_letter() -> None:
    assert normalise("Cafe\u0301")[0] == normalise("CAFÉ")[0] == "café"


def test_a_character_that_stands_for_a_phrase_does_not_grow() -> None:
    assert normalise("ﷺ" * 9)[0] == "ﷺ" * 9


@pytest.mark.parametrize("text", ["", "\ud800", "a" + "\u0301" * 100_000, "\u200b" * 1000])
def test_hostile_texts_are_read(text: str) -> None:
    assert "\ud800" not in normalise(text)[0]
    skeleton(text)


@pytest.mark.parametrize(
    "text",
    [
        "Vаrdhоlm",  # Cyrillic а and о
        "Ѵаᖇᑯһѻӏⅿ".replace("ѻ", "о"),  # Canadian syllabics too, and no Latin letter
        "Ѵаrԁһоӏм",
        "νaρδhοlm".replace("ρ", "r").replace("δ", "d"),  # Greek
        "Ꮩarꭰholm".replace("ꭰ", "Ꭰ"),  # Cherokee
        "Vaրdhօlm".replace("ր", "r"),  # Armenian
        "ⓋⓐⓡⓓⓗⓞⓛⓜW"[:-1],
        "🅥🅐🅡🅓🅗🅞🅛🅜",
        "🇻🇦🇷🇩🇭🇴🇱🇲",
        "𝓥𝓪𝓻𝓭𝓱𝓸𝓵𝓶",
        "ᴠᴀʀᴅʜᴏʟᴍ",
        "V\u0336\u0301a\u0336r\u0317\u0318d\u0336h\u0336o\u0336l\u0336m\u0336",
        "Vár̈d́hôĺm",
        "V\u200bard\u2060hol\u00adm",
    ],
)
def test_words_are_read_in_the_letters_that_they_look_like(text: str) -> None:
    assert made(text, skeleton(text)).casefold() == "vardholm"


@pytest.mark.parametrize(
    "text", ["Пишет ли он про любовь", "Zoë", "naïve café", "“quoted” – 5 €", "❤️ yes", "日本語", "Straße"]
)
def test_what_is_spelt_so_stays(text: str) -> None:
    assert skeleton(text) == []


@pytest.mark.parametrize(("shapes", "plain"), [("ϲ", "c"), ("ᖴ", "f"), ("ሀ", "u"), ("ѡ", "w"), ("ᗞᑯ", "d")])
def test_unicodes_table_of_confusables_is_known(shapes: str, plain: str) -> None:
    for shape in shapes:
        text = f"{shape}ardholm"
        assert made(text, skeleton(text)).casefold() == f"{plain}ardholm"


def test_a_known_word_tells_which_letter_a_stroke_is() -> None:
    text = "wh0 wr0t3 7h3 b00k 1n N1k0141"
    assert made(text, leet(text, frozenset({"nikoiai"}))).endswith("nikoiai")
    assert made(text, leet(text, frozenset({"nikolai"}))).endswith("nikolai")


def test_tag_characters_and_variation_selectors_carry_text() -> None:
    tags = "".join(chr(0xE0000 + ord(c)) for c in "Who?")
    selectors = "".join(chr(0xFE00 + b if b < 16 else 0xE0100 + b - 16) for b in b"Who is it?")
    assert made(f"Hi{tags}.", hidden(f"Hi{tags}.")) == "HiWho?."
    assert made(f"😀{selectors}", hidden(f"😀{selectors}")) == "😀Who is it?"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Wh0 wr0te 7he b00k 4b0ut V4rdh0lm?", "who wrote the book about vardholm?"),
        ("p@ssw0rd", "password"),
        ("wh47 15 7h3 n4m3 0f 1t", "what is the name of it"),
    ],
)
def test_digits_and_signs_stand_for_letters(text: str, plain: str) -> None:
    assert made(text, leet(text)) == plain


@pytest.mark.parametrize("text", ["the 1st of 20 mp3", "10kg at 7pm", "covid19", "05/11/1991", "3f2a9c8e7b6d5a4f3e2d"])
def test_ordinary_numbers_stay(text: str) -> None:
    assert leet(text) == []
