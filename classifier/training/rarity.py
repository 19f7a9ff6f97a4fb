"""How common a word is in general language, from the frequency lists of the package wordfreq. Fitting only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import cache

from wordfreq import get_frequency_dict, zipf_frequency

from lethe.classifier.text.vocabulary import FUNCTION_WORDS

# A few of the commonest words of the larger languages that share the Latin alphabet: they show a text's language.
_COMMONEST = {
    "de": "der die das und ist wo wer wie was für mit von hat im den ein eine welche welcher welchen welches wann nicht"
    " er sie es ich sich dem des zu auf aus wurde wird",
    "fr": "le la les des est et que qui où quel quelle dans pour avec une du sur son sa comment quand",
    "es": "el la los las de y que en un una qué cuál dónde cómo cuándo quién para con su por es",
    "it": "il lo la gli di e che un una dove come quando chi per con suo sua è nel della quale",
    "pt": "o a os as de e que um uma onde como quando quem para com seu sua é no na qual",
    "nl": "de het een en is van waar wie hoe wat voor met heeft op zijn haar welke wanneer niet",
    "pl": "i w na z się jest gdzie kto jak co dla jego jej który która kiedy nie",
    "sv": "och i att en ett är var vem hur vad för med har på hans hennes vilken när inte",
    "tr": "ve bir bu ne nerede kim nasıl için ile hangi zaman mi olarak onun",
}
# Languages by the script that their letters belong to.
_SCRIPTS = {
    "ru": re.compile(r"[\u0400-\u04ff]"),
    "ar": re.compile(r"[\u0600-\u06ff]"),
    "hi": re.compile(r"[\u0900-\u097f]"),
    "el": re.compile(r"[\u0370-\u03ff]"),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "zh": re.compile(r"[\u4e00-\u9fff]"),
}
# Languages that write no blanks between words: wordfreq cuts them with packages that aren't needed here.
_UNCUT = frozenset({"zh", "ja", "ko"})
# Share of a text's words that are among a language's commonest ones from which the text counts as in it. Chosen, not
# measured.
MIN_COMMONEST_SHARE = 0.2
# Share of a text's letters in a script, likewise.
MIN_SCRIPT_SHARE = 0.2
# log10 of a billion: the Zipf scale counts occurrences in a billion words, so 3 is once in a million.
ZIPF_OFFSET = 9.0


def languages_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The languages that texts are written in, as their letters and commonest words show; English always first."""
    joined = " ".join(texts)
    letters = [c for c in joined if c.isalpha()]
    words = re.findall(r"[^\W_]+", joined.casefold())
    found = ["en"]
    for language, commonest in _COMMONEST.items():
        known = set(commonest.split())
        count = sum(word in known for word in words)
        # Words of both languages ("was", "die", "a") show nothing where more words are English ones.
        english = sum(word in FUNCTION_WORDS - known for word in words)
        if count > english and count >= MIN_COMMONEST_SHARE * len(words):
            found.append(language)
    for language, script in _SCRIPTS.items():
        if letters and len(script.findall(joined)) >= MIN_SCRIPT_SHARE * len(letters):
            found.append(language)
    return tuple(found)


def zipf(word: str, languages: Sequence[str] = ("en",)) -> float:
    """The word's frequency on the Zipf scale, where it is commonest; 0 for one that is in no list."""
    return max(
        _uncut_frequency(word, language) if language in _UNCUT else zipf_frequency(word, language)
        for language in languages
    )


def _uncut_frequency(word: str, language: str) -> float:
    frequency = _list_of(language).get(word, 0.0)
    return ZIPF_OFFSET + math.log10(frequency) if frequency else 0.0


@cache
def _list_of(language: str) -> dict[str, float]:
    return dict(get_frequency_dict(language))
