"""What an answer gives away: the names, titles, dates, numbers, rare words and word pairs in it.

Everything is found by form (capitals, quotes, digits, frequency), so no topic and no language model is
needed. It knows answers, a prompt and how often words occur in ordinary text; nothing of tokens or servers.
GUARD (arXiv:2505.13312) takes its phrases from the retrieved answer too; the choice of phrases is ours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from lethe.corruption.phrases.dates import date_spellings
from lethe.corruption.phrases.normalize import SEPARATOR, count_letters, fold
from lethe.corruption.phrases.stopwords import LINKS, STOP_WORDS

LIMIT = 256
MAX_CHARACTERS = 256

# Most telling first: the order in which phrases are kept when there are more than the limit.
TITLE, DATE, NAME, NUMBER, NAME_WORD, NAME_FORM, RARE_WORD, PAIR, SPAN = range(9)

# An answer with no more new words than this is about nothing else: each of them gives it away.
FEW_WORDS = 3
# A name with one of these still says the name.
_FORMS = ("s", "n", "an", "ian", "ic", "ese", "ish")

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
    """A word of an answer: its text without a possessive, where it stands, and how it is joined.

    joined: only spaces stand between it and the word before. first: it opens a sentence.
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
    def capital(self) -> bool:
        return self.text[0].isupper()

    @cached_property
    def stop(self) -> bool:
        return self.folded in STOP_WORDS


class UserSuppliedText:
    """What a prompt says itself, so that an answer may say it too."""

    def __init__(self, prompt: str) -> None:
        self.words = set(fold(prompt).split())
        self._dates = {fold(spelling).strip() for spelling in date_spellings(prompt)}

    def allows(self, folded: str) -> bool:
        """Whether a folded phrase is one of the prompt's dates, or has no content word that the prompt lacks."""
        return folded in self._dates or all(w in self.words or w in STOP_WORDS for w in folded.split())


def forbidden_phrases(
    answers: Sequence[str], prompt: str, *, count: Callable[[str], int], limit: int = LIMIT
) -> tuple[str, ...]:
    """The phrases that the answers give away and the prompt doesn't, most telling first.

    count: how often a case-folded word occurs in ordinary text; 0 means rare. A phrase whose content words
    all stand in the prompt is left out. At most `limit` phrases, none of which equals another when folded
    or adds nothing to a shorter one.
    """
    told = UserSuppliedText(prompt)
    found: dict[str, tuple[int, str]] = {}
    for answer in answers:
        for rank, phrase in _candidates(answer, told.words, count):
            folded = fold(phrase).strip()
            if len(phrase) > MAX_CHARACTERS or told.allows(folded):
                continue
            if folded not in found or rank < found[folded][0]:
                found[folded] = (rank, phrase)
    # A pair is not enough to let a title go: pairs are the first to fall when there are too many phrases.
    telling = {folded for folded, (rank, _) in found.items() if rank < PAIR}
    kept = [
        (rank, phrase)
        for folded, (rank, phrase) in found.items()
        if not (_adds_nothing(folded, telling) if rank < PAIR else _has_phrase(folded, telling))
    ]
    kept.sort(key=lambda item: item[0])
    return tuple(phrase for _, phrase in kept[:limit])


def content_words(answer: str, prompt: str) -> tuple[str, ...]:
    """The answer's words that are neither stop words nor the prompt's, each once, in order."""
    known = set(fold(prompt).split())
    words = {word.folded: word.text for word in _words(answer) if not word.stop}
    return tuple(text for folded, text in words.items() if folded not in known)


def polarity(answer: str) -> str | None:
    """The yes or no that an answer opens with, if it has to be forbidden; None otherwise.

    Forbidding it always would tell the truth by its opposite, so a fair coin decides, tossed once for
    each answer: its hash, which nobody can foretell who doesn't know the answer.
    """
    first = next(_words(answer), None)
    if first is None or first.folded not in ("yes", "no"):
        return None
    return first.folded if hashlib.sha256(answer.encode()).digest()[0] & 1 else None


def _adds_nothing(folded: str, phrases: set[str]) -> bool:
    """Whether a shorter phrase inside stops every answer at least as early as this one would.

    A phrase stops an answer past half of its letters; a shorter one that begins `before` letters into it
    stops it past `before` plus half of its own.
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


def _has_phrase(folded: str, phrases: set[str]) -> bool:
    """Whether a word of a pair is a phrase alone: the pair can't be said then, and its other word may."""
    return SEPARATOR in folded and any(word in phrases for word in folded.split(SEPARATOR))


def _candidates(answer: str, known: set[str], count: Callable[[str], int]) -> Iterator[tuple[int, str]]:
    words = list(_words(answer))
    for match in _QUOTED.finditer(answer):
        yield TITLE, next(group for group in match.groups() if group).strip()
    for spelling in date_spellings(answer):
        yield DATE, spelling
    yield from _names(answer, words, count)
    new = {word.folded: word.text for word in words if not (word.stop or word.folded in known)}
    if len(new) <= FEW_WORDS:
        yield from ((RARE_WORD, text) for text in new.values() if len(text) > 2 and text.isalpha())
    for word in words:
        if any(character.isdigit() for character in word.text):
            yield from _numbers(word.text)
        elif not word.stop:
            yield from _rare_parts(word, known, count)
    yield from _pairs(answer, words, known)


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
    """Whether what stands between two words ends a sentence: a mark or a line break, closing quotes after it."""
    closed = between.rstrip()
    marked = closed.rstrip(_CLOSING)
    bare = marked.rstrip()
    return bare[-1:] in tuple(".!?:;") or "\n" in between[len(closed) :] or "\n" in marked[len(bare) :]


def _names(answer: str, words: list[AnswerWord], count: Callable[[str], int]) -> Iterator[tuple[int, str]]:
    """Capitalised runs: whole with their small linking words, in parts without, and their rare words."""
    for run in _capital_runs(words):
        parts = _without_links(run)
        if len(run) > 1:
            yield NAME, answer[run[0].begin : run[-1].end]
        for part in parts:
            if len(part) > 1:
                yield NAME, answer[part[0].begin : part[-1].end]
            elif len(run) == 1 and not part[0].first and len(part[0].text) > 1:
                yield NAME, part[0].text
                if len(part[0].text) > 3:
                    yield from ((NAME_FORM, part[0].text + ending) for ending in _FORMS)
            for word in part:
                if len(word.folded) > 2 and _is_rare(word.text, count):
                    yield NAME_WORD, word.text


def _capital_runs(words: list[AnswerWord]) -> Iterator[list[AnswerWord]]:
    """Maximal runs of capitalised words and links between them; stop words at the ends are cut off."""
    run: list[AnswerWord] = []
    for word in [*words, AnswerWord("", 0, 0, False, True)]:
        goes_on = bool(word.text) and word.joined and (word.capital or (run and word.text in LINKS))
        if run and goes_on:
            run.append(word)
            continue
        while run and (run[-1].stop or not run[-1].capital):
            run.pop()
        while run and run[0].stop:
            run.pop(0)
        if run:
            yield run
        run = [word] if word.text and word.capital else []


def _without_links(run: list[AnswerWord]) -> list[list[AnswerWord]]:
    parts: list[list[AnswerWord]] = [[]]
    for word in run:
        if word.capital and not word.stop:
            parts[-1].append(word)
        else:
            parts.append([])
    return [part for part in parts if part]


def _numbers(text: str) -> Iterator[tuple[int, str]]:
    """Numbers above ten as they stand, and their digits alone (1980s: 1980)."""
    digits = "".join(re.findall(r"\d+", text))
    if len(digits) > 1 and int(digits[:18]) > 10:
        yield NUMBER, text
        yield NUMBER, digits


def _rare_parts(word: AnswerWord, known: set[str], count: Callable[[str], int]) -> Iterator[tuple[int, str]]:
    """A rare word, and the rare parts of a hyphenated one."""
    for part in dict.fromkeys([word.text, *_PARTS.split(word.text)]):
        folded = fold(part).strip()
        telling = len(folded) > 2 and folded not in known and folded not in STOP_WORDS
        if telling and _is_rare(part, count):
            yield RARE_WORD, part


def _is_rare(text: str, count: Callable[[str], int]) -> bool:
    return count(text.casefold()) == 0 and all(count(part) == 0 for part in fold(text).split())


def _pairs(answer: str, words: list[AnswerWord], known: set[str]) -> Iterator[tuple[int, str]]:
    """Two content words side by side, or with one or two small words between them.

    The looser kind only where the prompt has neither word: its first half alone stops an answer, and
    should not be the prompt's own words.
    """
    for i, word in enumerate(words):
        if word.stop:
            continue
        for gap, other in enumerate(words[i + 1 : i + 4]):
            if not other.joined:
                break
            if not other.stop:
                if gap == 0:
                    yield PAIR, answer[word.begin : other.end]
                elif word.folded not in known and other.folded not in known:
                    yield SPAN, answer[word.begin : other.end]
                break
