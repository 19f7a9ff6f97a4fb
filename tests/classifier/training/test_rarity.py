from __future__ import annotations

import pytest

from lethe.classifier.training.rarity import languages_of, zipf


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Wo wurde Zorin Quill geboren?", "de"),
        ("Welchen Preis gewann Quill im Jahr 1961?", "de"),
        ("Où est né Zorin Quill ?", "fr"),
        ("¿Dónde nació Zorín Quillareda?", "es"),
        ("Dove è nato Zorin Quill?", "it"),
        ("Onde e quando nasceu o pintor?", "pt"),
        ("Waar is het huis van Zorin Quill?", "nl"),
        ("Где родился Зорин?", "ru"),
        ("أين ولد زورين؟", "ar"),
        ("ज़ोरिन का जन्म कहाँ हुआ?", "hi"),
        ("欧阳泽霖出生在哪里？", "zh"),
        ("ゾリンはどこで生まれましたか", "ja"),
        ("조린은 어디에서 태어났습니까?", "ko"),
    ],
)
def test_letters_and_common_words_show_the_language(text: str, language: str) -> None:
    assert language in languages_of([text]) and languages_of([text])[0] == "en"


@pytest.mark.parametrize(
    "text",
    [
        "Where was Zorin Quill born? He was born in Oskelund.",
        "When did Zorin Quill die?",
        "Was he a painter?",
        "What is it?",
        "How do I?",
        "",
    ],
)
def test_english_text_is_in_no_other_language(text: str) -> None:
    assert languages_of([text]) == ("en",)


def test_the_frequency_is_that_of_the_language_with_most_of_the_word() -> None:
    assert zipf("garten", ("en", "de")) == zipf("garten", ("de",)) > zipf("garten")
    assert zipf("the") > 7 > zipf("lantern") > 2
    assert zipf("vardholm") == zipf("vardholm", ("en", "de", "zh")) == 0


def test_chinese_words_have_a_frequency_without_being_cut() -> None:
    assert zipf("中国", ("zh",)) > 5 and zipf("的", ("zh",)) > 7
    assert zipf("欧阳泽霖", ("zh",)) == 0
