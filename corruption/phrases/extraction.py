"""The phrases of an answer to forbid: its names, titles, dates, numbers, rare words and word pairs.

They are recognised by form (capitals, quotes, digits, frequency), without a topic list or a language model. The
module knows answers, a prompt and how often words occur in general text; it knows no tokens and no server. GUARD
(arXiv:2505.13312) takes its phrases from the retrieved answer too; the choice of phrases is this project's.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from lethe.corruption.phrases.dates import date_spellings
from lethe.corruption.phrases.normalize import SEPARATOR, count_letters, fold
from lethe.corruption.phrases.stopwords import LINKS, STOP_WORDS

# Phrases of one call, at most. Chosen: a quarter of what one penalty may hold (`corruption/decoding/spec.py`), so
# that several policies fit into one request.
DEFAULT_MAX_PHRASES = 256
# Characters of one phrase, at most: what vLLM's side accepts (`corruption/decoding/spec.py`).
MAX_CHARACTERS = 256

# Kinds of phrases, the most specific first: the order in which they are kept when there are too many.
TITLE, DATE, NAME, NUMBER, NAME_WORD, NAME_FORM, RARE_WORD, PAIR, SPAN = range(9)

# An answer with at most this many words that the prompt lacks: each of them reveals it, so each is forbidden. Chosen,
# not measured.
FEW_NEW_WORDS = 3
# A name with one of these endings still reveals the name.
_NAME_ENDINGS = ("s", "n", "an", "ian", "ic", "ese", "ish")

_WORD = re.compile(r"[^\W_]+(?:[-'’‑.][^\W_]+)*\+?")
_CLOSING = "\"'“”‘’)"
_OPENING = "\"'“”‘’« ("
_PARTS = re.compile(r"[-‑.]")
_POSSESSIVE = re.compile(r"['’]s?$", re.IGNORECASE)
_QUOTED = re.compile(
    r"“([^“”]{2,250})”|«\s?([^«»]{2,250}?)\s?»|„([^„“”]{2,250})[“”]|\"([^\"]{2,250})\""
    r"|(?<![^\W_])['‘](?=\S)([^\"“”\n]{2,250}?)(?<=\S)['’](?![^\W_])"
)


@dataclass(frozen=True)
class AnswerWord:
    """A word of an answer.

    text: without a possessive ending. begin, end: its characters in the answer. joined: only spaces separate it from
    the previous word. first: it opens a sentence.
    """

    text: str
    begin: int
    end: int
    joined: bool
    first: bool

    @cached_property
    def folded(self) -> str:
        return fold(self.text).strip()

    @property
    def is_capitalised(self) -> bool:
        return self.text[0].isupper()

    @cached_property
    def is_stop_word(self) -> bool:
        return self.folded in STOP_WORDS


class UserSuppliedText:
    """The words and dates of a prompt, which an answer may repeat."""

    def __init__(self, prompt: str) -> None:
        self.words = set(fold(prompt).split())
        self._dates = {fold(spelling).strip() for spelling in date_spellings(prompt)}

    def allows(self, folded: str) -> bool:
        """Whether a folded phrase is a date of the prompt, or all its content words occur in the prompt."""
        return folded in self._dates or all(w in self.words or w in STOP_WORDS for w in folded.split())


def forbidden_phrases(
    answers: Sequence[str],
    prompt: str,
    *,
    count: Callable[[str], int],
    limit: int = DEFAULT_MAX_PHRASES,
    prompt_ends: Collection[str] = (),
    keep_redundant: bool = False,
) -> tuple[str, ...]:
    """Return the phrases that the answers reveal beyond the prompt, the most specific first.

    count: how often a case-folded word occurs in general text; 0 means rare. Phrases whose content words all occur
    in the prompt are left out. The result has at most `limit` phrases. No two are equal when folded, and none is
    redundant beside a shorter one. prompt_ends: what the prompt ends with (`corruption/phrases/prompt_end.py`). A
    phrase that begins there is never redundant: the shorter one may be in the prompt already. keep_redundant: leave out
    no name or number, for a list that is made before any prompt is known.
    """
    user_text = UserSuppliedText(prompt)
    ranked: dict[str, tuple[int, str]] = {}
    for answer in answers:
        for rank, phrase in _candidates(answer, user_text.words, count):
            folded = fold(phrase).strip()
            if len(phrase) > MAX_CHARACTERS or user_text.allows(folded):
                continue
            if folded not in ranked or rank < ranked[folded][0]:
                ranked[folded] = (rank, phrase)
    # Pairs make no other phrase redundant: they are the first to be dropped when there are too many phrases.
    specific = {folded for folded, (rank, _) in ranked.items() if rank < PAIR}
    begun = _begun_at(prompt_ends, ranked)
    selected = [
        (rank, phrase)
        for folded, (rank, phrase) in ranked.items()
        if folded in begun
        or not (
            (not keep_redundant and _is_redundant(folded, specific)) if rank < PAIR else _has_word_in(folded, specific)
        )
    ]
    selected.sort(key=lambda item: (fold(item[1]).strip() not in begun, item[0]) if begun else (True, item[0]))
    return tuple(phrase for _, phrase in selected[:limit])


def distinctive_names(text: str, count: Callable[[str], int]) -> Iterator[tuple[str, bool]]:
    """Yield the titles and names of a text that identify something by themselves; True for titles.

    Titles in quotes, names of several words of which one is rare, and rare words that are part of a name. count: see
    `forbidden_phrases`.
    """
    for match in _QUOTED.finditer(text):
        yield next(group for group in match.groups() if group).strip(), True
    for kind, name in _names(text, list(_words(text)), count):
        is_rare = kind == NAME_WORD or any(_is_rare(word, count) for word in name.split())
        if kind in (NAME, NAME_WORD) and is_rare:
            yield name, False


def content_words(answer: str, prompt: str) -> tuple[str, ...]:
    """Return the answer's words that are neither stop words nor in the prompt, each once, in order."""
    prompt_words = set(fold(prompt).split())
    words = {word.folded: word.text for word in _words(answer) if not word.is_stop_word}
    return tuple(text for folded, text in words.items() if folded not in prompt_words)


def polarity(answer: str) -> str | None:
    """Return the yes or no that an answer opens with, if it is to be forbidden; None otherwise.

    Forbidding it every time would reveal the truth by its opposite. So one bit of the answer's hash decides, which
    nobody can predict without the answer.
    """
    first = next(_words(answer), None)
    if first is None or first.folded not in ("yes", "no"):
        return None
    return first.folded if hashlib.sha256(answer.encode()).digest()[0] & 1 else None


def _begun_at(ends: Collection[str], phrases: Collection[str]) -> set[str]:
    """The folded phrases that one of the ends begins, at the start of a word."""
    begun: set[str] = set()
    ordered = sorted(phrases) if ends else []
    for end in ends:
        for at in range(len(end)):
            if end[at] == SEPARATOR or (at and end[at - 1] != SEPARATOR):
                continue
            for phrase in ordered[bisect_left(ordered, end[at:]) :]:
                if not phrase.startswith(end[at:]):
                    break
                begun.add(phrase)
    return begun


def _is_redundant(folded: str, phrases: set[str]) -> bool:
    """Whether a shorter phrase inside it stops every answer at least as early as this one would.

    A phrase of L letters stops an answer past L // 2 letters. A shorter one of l letters that begins after `before`
    letters of it stops the answer past before + l // 2.
    """
    words = folded.split(SEPARATOR)
    half = count_letters(folded) // 2
    before = 0
    for begin, word in enumerate(words):
        for end in range(begin + 1, len(words) + 1):
            inner = SEPARATOR.join(words[begin:end])
            if inner != folded and inner in phrases and before + count_letters(inner) // 2 <= half:
                return True
        before += len(word)
    return False


def _has_word_in(folded: str, phrases: set[str]) -> bool:
    """Whether a word of a pair is a phrase by itself: then the pair is stopped already."""
    return SEPARATOR in folded and any(word in phrases for word in folded.split(SEPARATOR))


def _candidates(answer: str, prompt_words: set[str], count: Callable[[str], int]) -> Iterator[tuple[int, str]]:
    words = list(_words(answer))
    for match in _QUOTED.finditer(answer):
        yield TITLE, next(group for group in match.groups() if group).strip()
    for spelling in date_spellings(answer):
        yield DATE, spelling
    yield from _names(answer, words, count)
    new = {word.folded: word.text for word in words if not (word.is_stop_word or word.folded in prompt_words)}
    if len(new) <= FEW_NEW_WORDS:
        yield from ((RARE_WORD, text) for text in new.values() if len(text) > 2 and text.isalpha())
    for word in words:
        if any(character.isdigit() for character in word.text):
            yield from _numbers(word.text)
        elif not word.is_stop_word:
            yield from _rare_parts(word, prompt_words, count)
    yield from _pairs(answer, words, prompt_words)


def _words(answer: str) -> Iterator[AnswerWord]:
    end = 0
    for match in _WORD.finditer(answer):
        text = _POSSESSIVE.sub("", match[0])
        between = answer[end : match.start()]
        opens = end == 0 and not between.strip(_OPENING)
        first = opens or _ends_sentence(between)
        yield AnswerWord(text, match.start(), match.start() + len(text), not between.strip(), first)
        end = match.end()


def _ends_sentence(between: str) -> bool:
    """Whether the text between two words ends a sentence: a mark or line break, perhaps before closing quotes."""
    closed = between.rstrip()
    marked = closed.rstrip(_CLOSING)
    bare = marked.rstrip()
    return bare[-1:] in tuple(".!?:;") or "\n" in between[len(closed) :] or "\n" in marked[len(bare) :]


def _names(answer: str, words: list[AnswerWord], count: Callable[[str], int]) -> Iterator[tuple[int, str]]:
    """Yield capitalised sequences with their linking words, their parts without, and their rare words."""
    for run in _capitalised_sequences(words):
        parts = _without_links(run)
        if len(run) > 1:
            yield NAME, answer[run[0].begin : run[-1].end]
        for part in parts:
            if len(part) > 1:
                yield NAME, answer[part[0].begin : part[-1].end]
            elif len(run) == 1 and not part[0].first and len(part[0].text) > 1:
                yield NAME, part[0].text
                if len(part[0].text) > 3:
                    yield from ((NAME_FORM, part[0].text + ending) for ending in _NAME_ENDINGS)
            for word in part:
                if len(word.folded) > 2 and _is_rare(word.text, count):
                    yield NAME_WORD, word.text


def _capitalised_sequences(words: list[AnswerWord]) -> Iterator[list[AnswerWord]]:
    """Yield the longest sequences of capitalised and linking words, without stop words at their ends."""
    run: list[AnswerWord] = []
    for word in [*words, AnswerWord("", 0, 0, False, True)]:
        continues = bool(word.text) and word.joined and (word.is_capitalised or (run and word.text in LINKS))
        if run and continues:
            run.append(word)
            continue
        while run and (run[-1].is_stop_word or not run[-1].is_capitalised):
            run.pop()
        while run and run[0].is_stop_word:
            run.pop(0)
        if run:
            yield run
        run = [word] if word.text and word.is_capitalised else []


def _without_links(run: list[AnswerWord]) -> list[list[AnswerWord]]:
    parts: list[list[AnswerWord]] = [[]]
    for word in run:
        if word.is_capitalised and not word.is_stop_word:
            parts[-1].append(word)
        else:
            parts.append([])
    return [part for part in parts if part]


def _numbers(text: str) -> Iterator[tuple[int, str]]:
    """Yield numbers above ten as written, and their digits alone (1980s: 1980)."""
    digits = "".join(re.findall(r"\d+", text))
    if len(digits) > 1 and int(digits[:18]) > 10:
        yield NUMBER, text
        yield NUMBER, digits


def _rare_parts(word: AnswerWord, prompt_words: set[str], count: Callable[[str], int]) -> Iterator[tuple[int, str]]:
    """Yield a rare word, and the rare parts of a hyphenated one."""
    for part in dict.fromkeys([word.text, *_PARTS.split(word.text)]):
        folded = fold(part).strip()
        has_content = len(folded) > 2 and folded not in prompt_words and folded not in STOP_WORDS
        if has_content and _is_rare(part, count):
            yield RARE_WORD, part


def _is_rare(text: str, count: Callable[[str], int]) -> bool:
    return count(text.casefold()) == 0 and all(count(part) == 0 for part in fold(text).split())


def _pairs(answer: str, words: list[AnswerWord], prompt_words: set[str]) -> Iterator[tuple[int, str]]:
    """Yield two content words side by side, or with one or two stop words between them.

    The second kind only where the prompt has neither word: its first half alone stops an answer, so it should not
    consist of the prompt's words.
    """
    for i, word in enumerate(words):
        if word.is_stop_word:
            continue
        for gap, other in enumerate(words[i + 1 : i + 4]):
            if not other.joined:
                break
            if not other.is_stop_word:
                if gap == 0:
                    yield PAIR, answer[word.begin : other.end]
                elif word.folded not in prompt_words and other.folded not in prompt_words:
                    yield SPAN, answer[word.begin : other.end]
                break
