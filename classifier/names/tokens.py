"""Text as tokens in which names are looked for: the same in every case, accent, punctuation and script. Pure."""

from __future__ import annotations

import re

from anyascii import anyascii

_LATIN = re.compile(r"[a-z0-9]+")
# Characters of scripts that write no blanks between words: Han, kana, Thai. Each is a token of its own.
_UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f])")
# A word with its combining marks, which are vowels in many scripts.
_WORD = re.compile(r"(?:[^\W_]|[\u0300-\u036f\u0590-\u05ff\u0600-\u06ff\u0900-\u0dff])+")
# Letters of alphabets other than Latin: Greek, Cyrillic, Hebrew, Arabic, the scripts of India, Hangul.
_OTHER_ALPHABET = re.compile(r"[\u0370-\u05ff\u0600-\u06ff\u0900-\u0dff\uac00-\ud7af]")
# Stands before a word of another alphabet, in Latin letters ...
SCRIPT_MARK = "~"
# ... and before the sound of a word (`sound`).
SOUND_MARK = "≈"
# Consonants of one word from which a name is found by its sound. Chosen: fewer are in many words.
MIN_SOUND = 4
# Consonants of all words of a longer name together, likewise.
MIN_NAME_SOUND = 5
_VOWELS = frozenset("aeiouyhw'")
# Spellings that sound alike in some alphabet, longest first.
_SOUNDS = (
    ("sch", "s"), ("tch", "k"), ("sh", "s"), ("ch", "k"), ("ph", "f"), ("th", "t"), ("ck", "k"), ("qu", "k"),
    ("dz", "s"), ("ts", "s"), ("x", "ks"), ("q", "k"), ("c", "k"), ("z", "s"), ("v", "f"), ("b", "p"), ("j", "g"),
    ("g", "k"), ("d", "t"),
    ("m", "n"),
)  # fmt: skip
# Letters of a name's word from which on a longer word with the same beginning is a form of it. Chosen: short words
# begin many others.
MIN_INFLECTED = 5
# Letters that such a form may have more: plural, genitive and case endings. Chosen, not measured.
MAX_ENDING = 2


def name_tokens(text: str) -> list[str]:
    """The tokens of a text: Latin words and numbers in lower case, without accents, and characters of unspaced scripts.

    A word of another alphabet is transliterated and has SCRIPT_MARK before it.
    """
    if text.isascii():
        return _LATIN.findall(text.casefold())
    tokens: list[str] = []
    for part in _UNSPACED.split(text):
        if _UNSPACED.fullmatch(part):
            tokens.append(part)
            continue
        for word in _WORD.findall(part):
            latin = _LATIN.findall(anyascii(word).casefold())
            if _OTHER_ALPHABET.search(word):
                tokens.append(f"{SCRIPT_MARK}{''.join(latin)}")
            else:
                tokens += latin
    return tokens


def sound(token: str) -> str:
    """The consonants of a token, those that sound alike as one, after SOUND_MARK: other alphabets spell by sound.

    "vermeer", "varmir" (from Devanagari) and "fyrmyr" (from Arabic) all give "frnr".
    """
    letters = token.removeprefix(SCRIPT_MARK)
    for spelling, same in _SOUNDS:
        letters = letters.replace(spelling, same)
    consonants = [c for c in letters if c not in _VOWELS]
    return SOUND_MARK + "".join(c for i, c in enumerate(consonants) if not i or c != consonants[i - 1])


def is_form_of(token: str, word: str) -> bool:
    """Whether a token is a word of a name, or that word with an ending."""
    if token == word:
        return True
    # Consonants alone are too little to allow for endings.
    if word.startswith(SOUND_MARK):
        return False
    return len(word) >= MIN_INFLECTED and len(token) - len(word) <= MAX_ENDING and token.startswith(word)
