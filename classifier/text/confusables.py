"""Characters that look like others, or that are invisible. Knows no view; returns texts and edits.

Derived from Unicode: character names, decompositions (NFKC, NFKD) and the table of confusables (UTS #39), as the
package confusable-homoglyphs ships it. `_LOOKALIKES` holds letters that these don't cover.
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
import orjson
from numpy.typing import NDArray

# The characters start to end of a text, and what replaces them. Lists of edits are in order and don't overlap.
TextEdit = tuple[int, int, str]

# A base character with its combining marks (or Hangul vowels and finals) is normalised as one cluster. Clusters end
# after thirty marks: no language uses so many, and sorting a long run of them takes quadratic time.
_MARKS = r"\u0300-\u036f\u1160-\u11ff\u20d0-\u20f0\u3099\u309a"
_CLUSTER = re.compile(rf"[^{_MARKS}][{_MARKS}]{{1,30}}|.", re.S)
# Runs of printable ASCII with single blanks inside, for which normalising means lower case; or one cluster.
_RUN_OR_CLUSTER = re.compile(
    rf"([\x21-\x7e](?:[\x21-\x7e]| (?=[\x21-\x7e]))*(?<! )(?![{_MARKS}]))|{_CLUSTER.pattern}", re.S
)
# Characters in the categories of letters and marks that show nothing: fillers, joiners, variation selectors.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_ASCII = re.compile(r"[\x20-\x7e\t\n\r]*")
# Characters of the longest compatibility form that replaces one character. Chosen: a longer form is a whole phrase
# (U+FDFA becomes 18 characters); nothing is spelt with it, and it would let a short text grow.
_MAX_FORM_LENGTH = 6
_TAGS = re.compile("[\U000e0020-\U000e007e]+")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")
_NAMED = re.compile(
    r"(?:(?:NEGATIVE |CROSSED NEGATIVE )?(?:CIRCLED|SQUARED|PARENTHESIZED) |REGIONAL INDICATOR SYMBOL |TAG )?"
    r"(?:LATIN )?(?:CAPITAL |SMALL |SUBSCRIPT )*LETTER "
    r"(?:SMALL CAPITAL |TURNED |REVERSED |INVERTED |DOTLESS |SIDEWAYS )*(?P<letter>[A-Z])(?: WITH .*)?"
)
# Letters of other scripts under the Latin letters that they look like.
_LOOKALIKES = {
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
# Letters that look only roughly like Latin ones. They count beside Latin letters only, since ordinary Cyrillic words
# are made of them.
_LOOSE_LOOKALIKES = frozenset("лДдбэиЛпцшщчяг")
# Share of a text's words with marks or look-alikes up to which accents count as spelling. Chosen: more than any
# language that is written with accents here and there.
MAX_ACCENTED_WORDS = 0.4
# Of this many letters of a word at most one may have an accent, for the accents to count as spelling. Chosen likewise.
LETTERS_PER_ACCENT = 3
# Letters of the shortest word, without any Latin letter, that counts as made of look-alikes. Chosen: shorter words of
# other scripts are so by chance.
MIN_FOREIGN_LETTERS = 4
# Share of the bytes in variation selectors that must be printable. Chosen: random bytes have far fewer.
MIN_PRINTABLE_SHARE = 0.8


def normalise_text(text: str) -> tuple[str, NDArray[np.int64]]:
    """Return the text in NFKC, case-folded, without invisible characters, white space as single blanks; and offsets.

    The offsets, (length of the result + 1,), say where in `text` each of its characters begins; the last one is the
    end of the last character. Removed: control, format (zero width, bidi, tags), surrogate and variation-selector
    characters, and white space at both ends.
    """
    if _ASCII.fullmatch(text):
        return _normalise_ascii(text)
    pieces: list[str] = []
    starts: list[int] = []
    end = 0
    after_blank = True
    for match in _RUN_OR_CLUSTER.finditer(text):
        position, after = match.span()
        if match[1]:
            pieces.append(match[1].lower())
            starts.extend(range(position, after))
            after_blank, end = False, after
            continue
        folded = _fold(match[0])
        if not folded:
            continue
        if folded.isspace():
            if after_blank:
                continue
            folded = " "
        after_blank = folded == " "
        pieces.append(folded)
        starts.extend([position] * len(folded))
        end = end if after_blank else after
    if after_blank and pieces:
        pieces.pop()
        starts.pop()
    return "".join(pieces), np.array([*starts, end], dtype=np.int64)


def _normalise_ascii(text: str) -> tuple[str, NDArray[np.int64]]:
    """Do the same for ASCII text, where every character stays one character."""
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
    """Return a cluster in NFKC, case-folded, without what is invisible; "" if nothing remains."""
    if cluster.isspace() or cluster == "\u2800":
        return " "
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", cluster).casefold())
    if len(folded) > max(_MAX_FORM_LENGTH, len(cluster)):
        folded = cluster
    visible = (c for c in _INVISIBLE.sub("", folded) if not _is_control(c))
    return " ".join("".join(visible).split())


def _is_control(character: str) -> bool:
    """Whether a character is a control, format or surrogate character."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs")


def decode_hidden(text: str) -> list[TextEdit]:
    """Decode invisible text: tag characters to the ASCII they stand for, runs of variation selectors to bytes."""
    if text.isascii():
        return []
    edits = [(*m.span(), "".join(chr(ord(c) - 0xE0000) for c in m[0])) for m in _TAGS.finditer(text)]
    for match in _SELECTORS.finditer(text):
        values = [ord(c) - 0xFE00 if ord(c) <= 0xFE0F else ord(c) - 0xE0100 + 16 for c in match[0]]
        decoded = bytes(values).decode("utf-8", "ignore")
        if sum(map(str.isprintable, decoded)) >= MIN_PRINTABLE_SHARE * len(values):
            edits.append((*match.span(), decoded))
    return sorted(edits)


def replace_confusables(text: str) -> list[TextEdit]:
    """Rewrite words in the Latin letters that they look like, without accents and invisible characters.

    A letter of another script counts as a look-alike where all of its word can be read as Latin, or where its word
    also has Latin letters. Replacements are lower case.
    """
    if text.isascii():
        return []
    tokens = [(match[0], match.start()) for match in re.finditer(r"\S+", text)]
    edited = [(token, _token_edits(token, start)) for token, start in tokens if not token.isascii()]
    edited = [(token, edits) for token, edits in edited if edits]
    if all(len(token) < MIN_FOREIGN_LETTERS and not any(map(_is_latin, token)) for token, _ in edited):
        return []
    accents_allowed = len(edited) < max(MAX_ACCENTED_WORDS * len(tokens), 3)
    return [
        edit for token, edits in edited if not (accents_allowed and _is_accented(token, edits, text)) for edit in edits
    ]


def _is_accented(token: str, edits: list[TextEdit], text: str) -> bool:
    """Whether a word is probably spelt with accents: one Latin letter has one, or fewer than a third have."""
    accents = all(_is_latin(text[a]) and len(unicodedata.normalize("NFC", text[a:b])) == 1 for a, b, _ in edits)
    return accents and (len(edits) == 1 or LETTERS_PER_ACCENT * len(edits) < sum(map(str.isalpha, token)))


def _token_edits(token: str, start: int) -> list[TextEdit]:
    """Return the edits that turn one token, at `start` in its text, into Latin letters."""
    clusters = [(m.start(), m.end(), m[0], _latin_form(m[0])) for m in _CLUSTER.finditer(token)]
    has_foreign = any(
        (form is None and cluster[0].isalpha()) or cluster[0].casefold() in _LOOSE_LOOKALIKES
        for _, _, cluster, form in clusters
    )
    # No language spells a word in letters of two scripts.
    has_latin = any(form is not None and _is_latin(cluster[0]) for _, _, cluster, form in clusters) or (
        len({_script(c[0]) for _, _, c, form in clusters if form is not None and c[0].isalpha()}) > 1
    )
    edits: list[TextEdit] = []
    after_letter = False
    for a, b, cluster, form in clusters:
        replaceable = form is not None and (not has_foreign or has_latin or _is_latin(cluster[0]))
        # An invisible character matters only inside a word: the variation selectors of emoji don't.
        if form is not None and form != cluster and replaceable and (form.isalnum() or (not form and after_letter)):
            edits.append((start + a, start + b, form))
        after_letter = after_letter if form == "" else cluster[0].isalnum()
    return edits


@lru_cache(maxsize=65536)
def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalpha() or "LATIN" in unicodedata.name(character, "")


@lru_cache(maxsize=65536)
def _latin_form(cluster: str) -> str | None:
    """Return the ASCII that a cluster looks like; "" for an invisible one, None for one that looks like no ASCII."""
    if cluster.isascii():
        return cluster if cluster.isprintable() or cluster.isspace() else ""
    named = _letter_by_name(cluster[0])
    if named:
        return named
    table = _confusables()
    for character in (cluster[0], cluster[0].lower()):
        if character in table:
            return table[character]
    form = ""
    for c in _INVISIBLE.sub("", unicodedata.normalize("NFKD", cluster)):
        if _is_control(c) or unicodedata.category(c) in ("Mn", "Me"):
            continue
        plain = c if c.isascii() else _LOOKALIKES.get(c) or _LOOKALIKES.get(c.casefold()) or _letter_by_name(c)
        if plain is None:
            return None
        form += plain
    return form


@cache
def _confusables() -> dict[str, str]:
    """Return the table of confusables: character → the ASCII letter or digit that it looks like, lower case."""
    listed = orjson.loads(files("confusable_homoglyphs").joinpath("confusables.json").read_bytes())
    table: dict[str, str] = {}
    for plain in string.ascii_letters + string.digits:
        for entry in listed.get(plain, []):
            # Characters that Unicode itself decomposes to ASCII keep that form.
            other = entry["c"]
            has_form = other.lower() in _LOOKALIKES or unicodedata.normalize("NFKC", other).isascii()
            if len(other) == 1 and not has_form:
                table.setdefault(other, plain.lower())
    return table | _LOOKALIKES


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    """Return the first word of a character's Unicode name, which for letters is their script."""
    return unicodedata.name(character, "").split(" ")[0]


def _letter_by_name(character: str) -> str | None:
    """Return the Latin letter that the character's Unicode name mentions, lower case."""
    named = _NAMED.fullmatch(unicodedata.name(character, ""))
    return named["letter"].lower() if named else None
