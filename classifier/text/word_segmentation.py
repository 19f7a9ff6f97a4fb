"""Words that were taken apart or run together, restored. Knows no view; returns edits.

Covers single letters with blanks or signs between, words with punctuation or tags inside, text without word gaps and
text with word gaps in the wrong places.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate

import numpy as np

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import TextEdit

# Single letters in a row that count as a word taken apart; also the letters of the shortest word with signs inside
# that is joined. Chosen: three may be initials.
MIN_SINGLE_LETTERS = 4
# Letters of a run without gaps that is probably several words. Chosen: few single words are so long.
MIN_GAPLESS_LETTERS = 22
# Neighbouring tokens that are looked at together to tell whether their gaps are in the wrong places. Chosen: about a
# sentence.
FRAGMENT_TOKENS = 8
# Mean letters of a token up to which tokens count as fragments. Chosen: English words have about 4.7.
MAX_FRAGMENT_LETTERS = 4.5
# Share of the letters after splitting that must belong to known words. Chosen: names make up the other half.
MIN_KNOWN_SHARE = 0.5
# Share of the letters of fragments that must belong to unknown tokens. Chosen: below that, ordinary text has names.
MIN_UNKNOWN_SHARE = 0.35
# Words of a gapless run from which on shorter runs in the same text are split too. Chosen: no compound has so many.
MIN_GAPLESS_WORDS = 4
# Share of the letters of a gapless run that must belong to known words. Chosen as MIN_KNOWN_SHARE.
MIN_GAPLESS_KNOWN_SHARE = 0.5
# Unknown tokens among FRAGMENT_TOKENS. Chosen: in ordinary text only names and rare words are unknown.
MIN_UNKNOWN_TOKENS = 4
# Words that fragments become, as a share of the fragments, at most. Chosen: splitting at random gives as many.
MAX_JOINED_SHARE = 0.75
# Letters of the longest word that is kept whole as somebody else's name. Chosen: `is_known_word` may be wrong, and a
# whole question without gaps must not pass as a name.
MAX_NAME_LETTERS = 10
# Doubtful words with signs inside that count as taken apart when they are near each other. Chosen: two may be chance.
MIN_NEAR_CHAINS = 3
# Characters between the beginnings of such words. Chosen: about two sentences.
NEAR_CHARACTERS = 240

_SINGLE_LETTERS = re.compile(rf"(?<![^\W_])[^\W_](?:[\W_]{{1,6}}[^\W_](?![^\W_])){{{MIN_SINGLE_LETTERS - 1},}}")
_GAP = re.compile(r"[\W_]+")
_TAG = re.compile(
    r"(?<=[^\W_])(?:<{1,2}[^<>\s][^<>]{0,199}>{1,2}|\[/?[A-Za-z]{1,8}\]|[\u00ad\u200b-\u200f\u2060\ufeff]){1,16}"
    r"(?=[^\W_])"
)
# Special tokens of tokenizers and chat templates, as they are written in text: of Llama, Mistral, Qwen, Gemma, Phi,
# DeepSeek, GLM, EXAONE, T5 and BERT; and the role after the token that opens a message.
_SPECIAL_TOKEN = re.compile(
    r"<[|\uff5c] ?[^<>|\uff5c\n]{1,64}?[|\uff5c]?>|<[^<>|\uff5c\s]{1,64}[|\uff5c]>|\[\|/?\w{1,32}\|\]|<{2}/?SYS>{2}"
    r"|</?(?:s|bos|eos|eot|eod|eop|sop|pad|unk|mask|cls|sep|image|img|video|audio|think|user|assistant|system|human|model"
    r"|(?:start|end|begin|beginning)_of_\w{1,32}|(?:fim|tool|role|turn|extra_id|reserved)_\w{1,32}"
    r"|(?:unused|special|reserved|control|dummy|extra_id)[_\-]?(?:token)?[_\-]?[0-9]{1,5}|0x[0-9A-F]{2})>"
    r"|\[/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|ARGS|CALL_ID|IMG|IMG_BREAK|IMG_END"
    r"|THINK|PREFIX|MIDDLE|SUFFIX|CLS|SEP|PAD|MASK|UNK|BOS|EOS|[gs]MASK|(?:control|unused)[_\-]?[0-9]{1,5})\]",
    re.IGNORECASE,
)
_ROLE = re.compile(r"(?:system|user|assistant|tool|developer|model)\b(?=\s|<|$)")
# Endings of the special tokens that a role follows.
_BEFORE_ROLE = ("start|>", "header_id|>", "of_turn>", "<|turn>", "im_sep|>")
_TAG_SIGN = re.compile("[>\\]\u00ad\u200b-\u200f\u2060\ufeff]")
_EMPHASIS_SIGN = re.compile("[*_~`]")
# Markdown emphasis that begins or ends inside a word. Single underscores belong to identifiers (snake_case).
_MARK = r"\*{1,3}|__|~~|`"
_INNER_EMPHASIS = (
    re.compile(rf"(?<=[^\W_])({_MARK})(?=[^\W_])[^\s*_~`]*(\1)"),
    re.compile(rf"({_MARK})[^\W_][^\s*_~`]*(\1)(?=[^\W_])"),
)
_CHAIN = re.compile(r"(?<![^\W_])[^\W_]++(?:(?!['’](?:s|t|d|m|ll|re|ve)\b)(?:[^\w\s]|_){1,6}[^\W_]++)+")
# Signs that don't join words in ordinary text.
_ODD_GAP = re.compile(r"[^\w\s\-–'’.,/&+:@]|_")
_PIECE = re.compile(r"[^\W_]+")
_TOKEN = re.compile(r"[^\W\d_]+")
_LONG_RUN = re.compile(rf"[A-Za-z]{{{MIN_GAPLESS_LETTERS}}}")
_RUN = re.compile(r"[A-Za-z]{8,}")
_CAMEL_CASE_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_PART = re.compile(rf"{_CAMEL_CASE_PART.pattern}|[0-9]+|[^\W_A-Za-z0-9]+")


def remove_chat_markup(text: str) -> list[TextEdit]:
    """Remove special tokens and chat markup wherever they are, with the role after a token that opens a message."""
    return [(start, end, "") for start, end in _chat_markup(text)]


def part_at_chat_markup(text: str) -> list[TextEdit]:
    """Put a blank in the place of special tokens and chat markup, if any of them stands between two letters."""
    spans = _chat_markup(text)
    between = any(0 < a and b < len(text) and text[a - 1].isalnum() and text[b].isalnum() for a, b in spans)
    return [(start, end, " ") for start, end in spans] if between else []


def _chat_markup(text: str) -> list[tuple[int, int]]:
    """The spans of special tokens; neighbouring ones are one span."""
    if "<" not in text and "[" not in text:
        return []
    spans: list[tuple[int, int]] = []
    for match in _SPECIAL_TOKEN.finditer(text):
        start, end = match.span()
        if match[0].lower().endswith(_BEFORE_ROLE) and (role := _ROLE.match(text, end)):
            end = role.end()
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, end))
    return spans


def remove_inline_marks(text: str) -> list[TextEdit]:
    """Remove tags, special tokens and emphasis marks inside words."""
    spans = {match.span() for match in _TAG.finditer(text)} if _TAG_SIGN.search(text) else set()
    if _EMPHASIS_SIGN.search(text):
        spans.update(match.span(mark) for form in _INNER_EMPHASIS for match in form.finditer(text) for mark in (1, 2))
    edits: list[TextEdit] = []
    for start, end in sorted(spans):
        if not edits or start >= edits[-1][1]:
            edits.append((start, end, ""))
    return edits


def join_spaced_letters(
    text: str, vocabulary: frozenset[str] = frozenset(), is_known_word: Callable[[str], bool] = lambda word: False
) -> list[TextEdit]:
    """Join single letters that have the same sign or blank between them; a wider gap parts words.

    Where no gap is wider, the letters are split into known words. vocabulary: see `split_joined_text`.
    is_known_word: see `classifier/text/spelling.py`; such a word stays whole.
    """
    edits: list[TextEdit] = []
    for match in _SINGLE_LETTERS.finditer(text):
        run, start = match[0], match.start()
        letters = sum(map(str.isalpha, run))
        if letters < max(MIN_SINGLE_LETTERS, 0.6 * len(_GAP.sub("", run))):
            continue
        for a, b in _spaced_word_spans(run):
            if b - a > 1:
                words = _split_characters(_GAP.sub("", run[a:b]), vocabulary, is_known_word)
                edits.append((start + a, start + b, " ".join(words)))
    return edits


def _split_characters(joined: str, vocabulary: frozenset[str], is_known_word: Callable[[str], bool]) -> list[str]:
    """Split letters and digits into words; they stay one word where too few of those are known."""
    word = joined.casefold()
    if word in vocabulary or word in language_model.common_words():
        return [joined]
    if len(word) <= MAX_NAME_LETTERS and is_known_word(word):
        return [joined]
    words = [word for part in _PART.findall(joined) for word in _split_part(part, vocabulary)]
    return words if language_model.known_letter_share(words, vocabulary) >= MIN_KNOWN_SHARE else [joined]


def _split_part(part: str, vocabulary: frozenset[str]) -> list[str]:
    """Split letters a–z into words, lower case; known words and anything else stay as they are."""
    lower = part.lower()
    if not lower.isascii() or not lower.isalpha() or lower in vocabulary or lower in language_model.common_words():
        return [part]
    return language_model.split_into_words(lower, vocabulary)


def _spaced_word_spans(run: str) -> Iterator[tuple[int, int]]:
    """Yield the span of each word in a run of single letters: words are parted by gaps wider than the usual one."""
    gaps = list(_GAP.finditer(run))
    usual_gap = Counter(gap[0] for gap in gaps).most_common(1)[0][0]
    start = 0
    for gap in gaps:
        if len(gap[0]) > len(usual_gap) or (any(map(str.isspace, gap[0])) and not any(map(str.isspace, usual_gap))):
            yield start, gap.start()
            start = gap.end()
    yield start, len(run)


def join_punctuated_words(text: str) -> list[TextEdit]:
    """Remove signs inside words, where half of the pieces aren't words by themselves.

    A single such word counts if it has three pieces, or signs that don't join words. Of others there must be several
    near each other.
    """
    chains = [
        (match, certain) for match in _CHAIN.finditer(text) if (certain := _was_taken_apart(match[0])) is not None
    ]
    starts = np.array([match.start() for match, _ in chains])
    before = np.searchsorted(starts, starts - NEAR_CHARACTERS)
    near = np.searchsorted(starts, starts + NEAR_CHARACTERS, side="right") - before
    edits: list[TextEdit] = []
    for (match, certain), near_count in zip(chains, near.tolist(), strict=True):
        if certain or near_count >= MIN_NEAR_CHAINS:
            edits += [(match.start() + gap.start(), match.start() + gap.end(), "") for gap in _GAP.finditer(match[0])]
    return edits


def _was_taken_apart(chain: str) -> bool | None:
    """Whether pieces joined by signs are one word taken apart: certainly (True), perhaps (False) or not (None)."""
    known = language_model.common_words()
    pieces = [piece for piece in _PIECE.findall(chain) if piece.isalpha()]
    single_letters = sum(len(piece) == 1 for piece in pieces)
    # A capitalised later piece belongs to a double name.
    unknown = sum(len(p) > 1 and not p.istitle() and p.casefold() not in known for p in pieces[1:])
    unknown += bool(pieces) and len(pieces[0]) > 1 and pieces[0].casefold() not in known
    # One single letter is an initial, or the e of e-mail.
    unknown += single_letters if single_letters > 1 else 0
    if not unknown or 2 * unknown < len(pieces) or sum(map(len, pieces)) < MIN_SINGLE_LETTERS:
        return None
    if len(pieces) == 2 and pieces[1].istitle() and not single_letters:
        return None
    return len(pieces) > 2 or bool(_ODD_GAP.search(chain))


def split_joined_text(text: str, vocabulary: frozenset[str] = frozenset()) -> list[TextEdit]:
    """Split runs of letters without gaps, and rejoin runs of fragments, where known words come out.

    vocabulary: known words besides the common ones, lower case.
    """
    edits = [(start, end, " ".join(words)) for start, end, words in _split_gapless_runs(text, vocabulary)]
    gapless = [(start, end) for start, end, _ in edits]
    for start, end in _fragment_spans(text):
        letters = "".join(c for c in text[start:end] if c.isalnum())
        words = language_model.split_into_words(letters.lower(), vocabulary)
        fewer = len(words) <= MAX_JOINED_SHARE * len(text[start:end].split())
        known = language_model.known_letter_share(words, vocabulary) >= MIN_KNOWN_SHARE
        if fewer and known and all(b <= start or end <= a for a, b in gapless):
            edits.append((start, end, " ".join(words)))
    return sorted(edits)


def _split_gapless_runs(text: str, vocabulary: frozenset[str]) -> list[tuple[int, int, list[str]]]:
    """Return runs of letters and the words they split into. Where there is a long run, shorter ones are split too."""
    runs: list[tuple[int, int, list[str]]] = []
    if not _LONG_RUN.search(text):
        return runs
    for match in _RUN.finditer(text):
        # Capitals inside a run begin words.
        words = [word for part in _CAMEL_CASE_PART.findall(match[0]) for word in _split_part(part, vocabulary)]
        if len(words) > 1 and language_model.known_letter_share(words, vocabulary) >= MIN_GAPLESS_KNOWN_SHARE:
            runs.append((*match.span(), words))
    has_long = any(end - start >= MIN_GAPLESS_LETTERS and len(words) >= MIN_GAPLESS_WORDS for start, end, words in runs)
    return runs if has_long else []


def _fragment_spans(text: str) -> list[tuple[int, int]]:
    """Return the spans where tokens are short and mostly unknown: their gaps may be in the wrong places."""
    tokens = _TOKEN.findall(text)
    known = language_model.common_words()
    unknown_letters = [0 if token.casefold() in known else len(token) for token in tokens]
    unknown_tokens_before = list(accumulate(map(bool, unknown_letters), initial=0))
    if unknown_tokens_before[-1] < MIN_UNKNOWN_TOKENS:
        return []
    unknown_before = list(accumulate(unknown_letters, initial=0))
    letters_before = list(accumulate(map(len, tokens), initial=0))
    ranges: list[tuple[int, int]] = []
    for first in range(len(tokens) - FRAGMENT_TOKENS + 1):
        last = first + FRAGMENT_TOKENS
        if unknown_tokens_before[last] - unknown_tokens_before[first] < MIN_UNKNOWN_TOKENS:
            continue
        letters = letters_before[last] - letters_before[first]
        unknown = unknown_before[last] - unknown_before[first]
        if unknown > MIN_UNKNOWN_SHARE * letters and letters <= MAX_FRAGMENT_LETTERS * FRAGMENT_TOKENS:
            if ranges and first <= ranges[-1][1]:
                ranges[-1] = ranges[-1][0], last
            else:
                ranges.append((first, last))
    spans = [match.span() for match in _TOKEN.finditer(text)] if ranges else []
    return [(spans[first][0], spans[last - 1][1]) for first, last in ranges]
