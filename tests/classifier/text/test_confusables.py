from __future__ import annotations

import pytest

from lethe.classifier.text.confusables import TextEdit, decode_hidden, normalise_text, replace_confusables


def apply_edits(text: str, edits: list[TextEdit]) -> str:
    for start, end, plain in reversed(edits):
        text = text[:start] + plain + text[end:]
    return text


def test_normalising_removes_invisible_characters() -> None:
    assert normalise_text("  ＨＥＬＬＯ\u200b  w\u00ador\u202eld\U000e0041\t! ")[0] == "hello world !"


def test_combining_marks_join_their_letter() -> None:
    assert normalise_text("Cafe\u0301")[0] == normalise_text("CAFÉ")[0] == "café"


def test_a_character_for_a_whole_phrase_is_not_expanded() -> None:
    assert normalise_text("ﷺ" * 9)[0] == "ﷺ" * 9


@pytest.mark.parametrize("text", ["", "\ud800", "a" + "\u0301" * 100_000, "\u200b" * 1000])
def test_hostile_texts_are_normalised(text: str) -> None:
    assert "\ud800" not in normalise_text(text)[0]
    replace_confusables(text)


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
def test_lookalike_letters_become_latin_letters(text: str) -> None:
    assert apply_edits(text, replace_confusables(text)).casefold() == "vardholm"


@pytest.mark.parametrize(
    "text", ["Пишет ли он про любовь", "Zoë", "naïve café", "“quoted” – 5 €", "❤️ yes", "日本語", "Straße"]
)
def test_ordinary_spelling_stays(text: str) -> None:
    assert replace_confusables(text) == []


@pytest.mark.parametrize(("shapes", "plain"), [("ϲ", "c"), ("ᖴ", "f"), ("ሀ", "u"), ("ѡ", "w"), ("ᗞᑯ", "d")])
def test_unicode_confusables_become_latin_letters(shapes: str, plain: str) -> None:
    for shape in shapes:
        text = f"{shape}ardholm"
        assert apply_edits(text, replace_confusables(text)).casefold() == f"{plain}ardholm"


def test_text_in_tag_characters_and_variation_selectors_is_decoded() -> None:
    tags = "".join(chr(0xE0000 + ord(c)) for c in "Who?")
    selectors = "".join(chr(0xFE00 + b if b < 16 else 0xE0100 + b - 16) for b in b"Who is it?")
    assert apply_edits(f"Hi{tags}.", decode_hidden(f"Hi{tags}.")) == "HiWho?."
    assert apply_edits(f"😀{selectors}", decode_hidden(f"😀{selectors}")) == "😀Who is it?"
