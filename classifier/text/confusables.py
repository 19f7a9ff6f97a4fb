"""Characters that only look like others, or that nobody sees. Knows no view; gives texts and edits.

What Unicode's own names, decompositions and table of confusables (UTS #39) tell is derived from them; `_SHAPES`
holds the rest.
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import cache, lru_cache
from importlib.resources import files
from itertools import product

import numpy as np
import orjson
from numpy.typing import NDArray

from lethe.classifier.text import language_model

# Characters start..end of a text, and what is read in their place. Lists of edits are in order and disjoint.
Edit = tuple[int, int, str]

# A base character with its combining marks (or Hangul vowels and finals) is normalised as one; more than
# thirty marks are never text, and sorting a long run of them takes quadratic time.
_MARKS = r"\u0300-\u036f\u1160-\u11ff\u20d0-\u20f0\u3099\u309a"
_CLUSTER = re.compile(rf"[^{_MARKS}][{_MARKS}]{{1,30}}|.", re.S)
# Printable ASCII, which stays as it is but for capitals, in long runs.
_RUN_OR_CLUSTER = re.compile(
    rf"([\x21-\x7e](?:[\x21-\x7e]| (?=[\x21-\x7e]))*(?<! )(?![{_MARKS}]))|{_CLUSTER.pattern}", re.S
)
# Letters and marks by category that nevertheless show nothing: fillers, joiners, variation selectors.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_PLAIN = re.compile(r"[\x20-\x7e\t\n\r]*")
# A character that stands for a whole phrase stays itself: nothing can be spelt with it, and it would let a
# short text grow eighteenfold.
_LONGEST_FORM = 6
_TAGS = re.compile("[\U000e0020-\U000e007e]+")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")
_NAMED = re.compile(
    r"(?:(?:NEGATIVE |CROSSED NEGATIVE )?(?:CIRCLED|SQUARED|PARENTHESIZED) |REGIONAL INDICATOR SYMBOL |TAG )?"
    r"(?:LATIN )?(?:CAPITAL |SMALL |SUBSCRIPT )*LETTER "
    r"(?:SMALL CAPITAL |TURNED |REVERSED |INVERTED |DOTLESS |SIDEWAYS )*(?P<letter>[A-Z])(?: WITH .*)?"
)
# Letters of other scripts under the Latin ones that they are taken for.
_SHAPES = {
    shape: letter
    for letter, shapes in {
        "a": "аάαΑΛΔДдꓮᎪɑ∆ⲁ",
        "b": "вьъбβΒВᏏᏴꓐⲃ",
        "c": "сϲҫᏟꓚⲥɔ",
        "d": "ԁժᎠᏧꓓð∂",
        "e": "еэєҽεΕΣΞᎬꓰɛ∑ⲉ",
        "f": "ғϝꓝɟք",
        "g": "ԍցᏀꓖɡ",
        "h": "һнհΗᎻᏂꓧⲏ",
        "i": "іιΙւᎥꓲıɩⲓӀ",
        "j": "јϳյᎫꓙ",
        "k": "кκΚᏦꓗⲕқ",
        "l": "ӏլᏞꓡℓן",
        "m": "мΜᎷꓟⲙ",
        "n": "ипηΝΠπռոꓠⲛŋ",
        "o": "оοσΟΘΩΦόօꓳⲟ०",
        "p": "рρΡþᏢꓑⲣ",
        "q": "ԛզգ",
        "r": "гяΓᎡᏒꓣⲅ",
        "s": "ѕςꓢᏚՏ",
        "t": "тτΤᎢꓔⲧե",
        "u": "цυμսꓴ",
        "v": "ѵνᏙꓦʋ",
        "w": "шщωԝաᎳꓪⲱ",
        "x": "хχΧҳꓫⲭ",
        "y": "уүұчγΥΨᎩᎽꓬⲩ",
        "z": "ζΖᏃꓜ",
    }.items()
    for shape in shapes
}
# Rough likenesses: they count beside Latin letters only, for a word of ordinary Cyrillic may be made of them.
_ROUGH = frozenset("лДдбэиЛпцшщчяг")
_DIGITS = {
    "4": "a", "@": "a", "3": "e", "€": "e", "1": "i", "!": "i", "|": "i", "0": "o", "5": "s", "$": "s", "§": "s",
    "7": "t", "+": "t", "†": "t", "8": "b", "9": "g", "6": "g", "2": "z", "£": "l", "¢": "c", "¥": "y",
}  # fmt: skip
_AS_I = str.maketrans(_DIGITS)
_AS_L = str.maketrans({**_DIGITS, "1": "l", "!": "l", "|": "l"})
_STROKES = "1!|"
_LEET_TOKEN = re.compile(rf"[A-Za-z{re.escape(''.join(_DIGITS))}]{{2,40}}")
_INTERIOR = re.compile(r"[A-Za-z][^A-Za-z]+[A-Za-z]")
# So many of all words have accents where those are no spelling.
MARKED_WORDS = 0.4
MARKED_LETTERS = 3
# Shorter words of another script are made of look-alikes by chance.
FOREIGN_LETTERS = 4
LEET_WORDS = 3
MOST_STROKES = 4
# Nats; a letter, of what may be a word.
L_MARGIN = 1.5
LEET_NATS = 3.4


def normalise(text: str) -> tuple[str, NDArray[np.int64]]:
    """NFKC, case-folded, without invisible characters, runs of white space as one blank; with offsets.

    offsets (len + 1): where in `text` each character begins; the last is the end of the last character.
    Removed: control, format (zero width, bidi, tags), surrogate and variation-selector characters.
    """
    if _PLAIN.fullmatch(text):
        return _normalised_plain(text)
    pieces: list[str] = []
    starts: list[int] = []
    end = 0
    blank = True
    for match in _RUN_OR_CLUSTER.finditer(text):
        position, after = match.span()
        if match[1]:
            pieces.append(match[1].lower())
            starts.extend(range(position, after))
            blank, end = False, after
            continue
        folded = _fold(match[0])
        if not folded:
            continue
        if folded.isspace():
            if blank:
                continue
            folded = " "
        blank = folded == " "
        pieces.append(folded)
        starts.extend([position] * len(folded))
        end = end if blank else after
    if blank and pieces:
        pieces.pop()
        starts.pop()
    return "".join(pieces), np.array([*starts, end], dtype=np.int64)


def _normalised_plain(text: str) -> tuple[str, NDArray[np.int64]]:
    """Of printable ASCII, where one character stays one."""
    if " ".join(text.split()) == text:
        return text.lower(), np.arange(len(text) + 1)
    codes = np.frombuffer(text.lower().encode("ascii"), dtype=np.uint8)
    blank = codes <= ord(" ")
    shown = np.flatnonzero(~blank)
    if not len(shown):
        return "", np.zeros(1, dtype=np.int64)
    keep = ~blank
    keep[1:] |= ~blank[:-1]
    keep[shown[-1] + 1 :] = False
    plain = np.where(blank, ord(" "), codes)[keep].astype(np.uint8).tobytes().decode("ascii")
    return plain, np.append(np.flatnonzero(keep), shown[-1] + 1)


@lru_cache(maxsize=65536)
def _fold(cluster: str) -> str:
    if cluster.isspace() or cluster == "\u2800":
        return " "
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", cluster).casefold())
    if len(folded) > max(_LONGEST_FORM, len(cluster)):
        folded = cluster
    shown = (c for c in _INVISIBLE.sub("", folded) if not _unseen(c))
    return " ".join("".join(shown).split())


def _unseen(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs")


def hidden(text: str) -> list[Edit]:
    """Tag characters as the ASCII that they carry, and runs of variation selectors as the bytes."""
    if text.isascii():
        return []
    found = [(*m.span(), "".join(chr(ord(c) - 0xE0000) for c in m[0])) for m in _TAGS.finditer(text)]
    for match in _SELECTORS.finditer(text):
        values = [ord(c) - 0xFE00 if ord(c) <= 0xFE0F else ord(c) - 0xE0100 + 16 for c in match[0]]
        carried = bytes(values).decode("utf-8", "ignore")
        if sum(map(str.isprintable, carried)) >= 0.8 * len(values):
            found.append((*match.span(), carried))
    return sorted(found)


def skeleton(text: str) -> list[Edit]:
    """Words in the Latin letters that they look like, without marks and without what nobody sees.

    A letter of another script counts as a look-alike where all of its word can be read so, or where its word
    also has Latin letters. Lower case where something was changed.
    """
    if text.isascii():
        return []
    tokens = [(match[0], match.start()) for match in re.finditer(r"\S+", text)]
    found = [(token, _token_edits(token, start)) for token, start in tokens if not token.isascii()]
    found = [(token, edits) for token, edits in found if edits]
    if all(len(token) < FOREIGN_LETTERS and not any(map(_is_latin, token)) for token, _ in found):
        return []
    usual = len(found) < max(MARKED_WORDS * len(tokens), 3)
    return [edit for token, edits in found if not (usual and _spelt_so(token, edits, text)) for edit in edits]


def _spelt_so(token: str, edits: list[Edit], text: str) -> bool:
    """Whether a word may well be spelt so: one Latin letter has an accent, or fewer than a third have."""
    accents = all(_is_latin(text[a]) and len(unicodedata.normalize("NFC", text[a:b])) == 1 for a, b, _ in edits)
    return accents and (len(edits) == 1 or MARKED_LETTERS * len(edits) < sum(map(str.isalpha, token)))


def _token_edits(token: str, start: int) -> list[Edit]:
    found = [(m.start(), m.end(), m[0], _shape(m[0])) for m in _CLUSTER.finditer(token)]
    other = any((plain is None and c[0].isalpha()) or c[0].casefold() in _ROUGH for _, _, c, plain in found)
    # No word is spelt in letters of two scripts.
    latin = any(plain is not None and _is_latin(cluster[0]) for _, _, cluster, plain in found) or (
        len({_script(cluster[0]) for _, _, cluster, plain in found if plain is not None and cluster[0].isalpha()}) > 1
    )
    edits: list[Edit] = []
    seen = False
    for a, b, cluster, plain in found:
        mixed = plain is not None and (not other or latin or _is_latin(cluster[0]))
        # What is invisible matters inside a word only; an emoji's selectors don't.
        if plain is not None and plain != cluster and mixed and (plain.isalnum() or (not plain and seen)):
            edits.append((start + a, start + b, plain))
        seen = seen if plain == "" else cluster[0].isalnum()
    return edits


@lru_cache(maxsize=65536)
def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalpha() or "LATIN" in unicodedata.name(character, "")


@lru_cache(maxsize=65536)
def _shape(cluster: str) -> str | None:
    """The ASCII that a cluster looks like, "" for one that shows nothing, None for one of its own."""
    if cluster.isascii():
        return cluster if cluster.isprintable() or cluster.isspace() else ""
    named = _NAMED.fullmatch(unicodedata.name(cluster[0], ""))
    if named:
        return named["letter"].lower()
    listed = _confusables()
    for character in (cluster[0], cluster[0].lower()):
        if character in listed:
            return listed[character]
    shape = ""
    for c in _INVISIBLE.sub("", unicodedata.normalize("NFKD", cluster)):
        if _unseen(c) or unicodedata.category(c) in ("Mn", "Me"):
            continue
        plain = c if c.isascii() else _SHAPES.get(c) or _SHAPES.get(c.casefold()) or _letter(c)
        if plain is None:
            return None
        shape += plain
    return shape


@cache
def _confusables() -> dict[str, str]:
    """Characters of other forms and scripts → the ASCII letter or digit that they are taken for, in small letters."""
    listed = orjson.loads(files("confusable_homoglyphs").joinpath("confusables.json").read_bytes())
    found: dict[str, str] = {}
    for plain in string.ascii_letters + string.digits:
        for entry in listed.get(plain, []):
            # What has an ASCII form by Unicode's own rules keeps it.
            other = entry["c"]
            known = other.lower() in _SHAPES or unicodedata.normalize("NFKC", other).isascii()
            if len(other) == 1 and not known:
                found.setdefault(other, plain.lower())
    return found | _SHAPES


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    """The first word of a character's name, which for letters is their script."""
    return unicodedata.name(character, "").split(" ")[0]


def _letter(character: str) -> str | None:
    named = _NAMED.fullmatch(unicodedata.name(character, ""))
    return named["letter"].lower() if named else None


def leet(text: str, vocabulary: frozenset[str] = frozenset()) -> list[Edit]:
    """Words spelt with digits and signs in the letters' place.

    A digit between letters counts, and one whose word is a known one without (`vocabulary`: known besides, in small
    letters); where several words were so spelt, all do.
    """
    sure: list[Edit] = []
    perhaps: list[Edit] = []
    for match in _LEET_TOKEN.finditer(text):
        token, start = match[0].rstrip("!|+"), match.start()
        if token.isalpha() or len(token) < 2:
            continue
        plain = _unleet(token, vocabulary)
        letters = any(c.isalpha() for c in token)
        known = plain in language_model.words() or plain in vocabulary
        if letters and (known or (_INTERIOR.search(token) and _may_be_word(plain))):
            sure.append((start, start + len(token), plain))
        elif letters or known:
            perhaps.append((start, start + len(token), plain))
    return sorted(sure + perhaps) if len(sure) >= LEET_WORDS else sure


def _may_be_word(plain: str) -> bool:
    return len(plain) <= language_model.LONGEST_WORD and language_model.nats(f"{plain} ")[-1] <= LEET_NATS * (
        len(plain) + 1
    )


@lru_cache(maxsize=65536)
def _unleet(token: str, vocabulary: frozenset[str]) -> str:
    """A stroke is an i, unless an l makes a known word of it or a much likelier one; in names each may be either."""
    with_i, with_l = token.translate(_AS_I).lower(), token.translate(_AS_L).lower()
    strokes = sum(token.count(sign) for sign in _STROKES)
    if 0 < strokes <= MOST_STROKES:
        choices = (_AS_I[ord(c)] + _AS_L[ord(c)] if c in _STROKES else c.translate(_AS_I) for c in token.lower())
        for word in map("".join, product(*(dict.fromkeys(choice) for choice in choices))):
            if word in vocabulary:
                return word
    if with_i in vocabulary:
        return with_i
    if with_i in language_model.words() or with_l in language_model.words():
        return with_i if with_i in language_model.words() else with_l
    costs = [float(language_model.nats(f"{word} ")[-1]) for word in (with_i, with_l)]
    return with_l if costs[1] < costs[0] - L_MARGIN else with_i
