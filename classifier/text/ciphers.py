"""Text under a letter cipher, or written backwards: find it and decode it. Knows no view; returns edits.

Every word is tried under every rule: the 26 shifts of the alphabet (shift 0 is the text as written, shift 13 is
rot13), the mirrored alphabet (Atbash), and each of these read backwards. A Viterbi search picks the cheapest rule for
each word under the letter-pair costs of `language_model.py` (−ln p). A change of rule from one word to the next costs
extra, so that a run of words keeps one rule.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from string import ascii_lowercase, ascii_uppercase

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.text import language_model
from lethe.classifier.text.confusables import TextEdit
from lethe.classifier.text.language_model import LETTERS, WORD_EDGE

# Cost (−ln p) of a change of rule between two words. Chosen: about the cost that a few letters save.
RULE_CHANGE_COST = 14.0
# Cost (−ln p) that a rule must save over a run of words to be used. Chosen: shorter words save less by chance.
MIN_SAVING = 18.0
# Share of the decoded letters that must belong to known words. Chosen: lower for text that is full of names.
MIN_KNOWN_SHARE = 0.3
# Bonus (−ln p, a letter) for a word that is unknown as written and known under a rule. Chosen with the next constant.
KNOWN_WORD_BONUS = 1.5
# Letters of the shortest word that gets the bonus. Chosen: shorter words become known ones by chance.
MIN_BONUS_LETTERS = 4
# Characters of text whose mean cost decides whether it is looked at at all. Chosen: about four words.
CHUNK_CHARACTERS = 24
# Mean cost (−ln p, a character) above which a chunk is suspicious. English costs about 2.5, random letters 4.
SUSPICIOUS_COST = 3.0
# Characters on both sides of a suspicious chunk that are looked at with it. Chosen: words at its edges.
CONTEXT_CHARACTERS = 60
# Letters of the longest word that is tried. Chosen: longer runs are data.
MAX_WORD_LETTERS = 32
# Letter pairs that are looked up in one batch: bounds memory to a few MB.
BATCH_PAIRS = 1 << 18

_LETTERS = re.compile(rf"[A-Za-z]{{1,{MAX_WORD_LETTERS}}}")

# Start, end and the number of the rule: 0–26 forwards, 27–53 the same rules backwards.
CipheredRun = tuple[int, int, int]


@cache
def _alphabets() -> NDArray[np.int64]:
    """Return (27, 27) what each letter code means under each forward rule: 26 shifts, then the mirrored alphabet."""
    letters = np.arange(LETTERS)
    rules = [(letters + shift) % LETTERS for shift in range(LETTERS)] + [letters[::-1]]
    return np.column_stack([np.stack(rules), np.full(len(rules), WORD_EDGE)])


@cache
def _pair_costs_by_rule() -> NDArray[np.float32]:
    """Return (54, 27 * 27) the cost of each pair of letters as written, under each rule, then each rule backwards."""
    costs = language_model.letter_pair_costs()
    forward = [costs[np.ix_(rule, rule)] for rule in _alphabets()]
    return np.stack([table.ravel() for table in [*forward, *(t.T for t in forward)]]).astype(np.float32)


@lru_cache(maxsize=2)  # the three decoders below ask for the same text, one after another
def find_ciphered_runs(text: str, vocabulary: frozenset[str] = frozenset()) -> list[CipheredRun]:
    """Return each run of words that reads as language under a rule other than 0.

    vocabulary: known words besides the common ones, lower case; without them a text of names isn't recognised.
    """
    runs: list[CipheredRun] = []
    for start, end in suspicious_spans(text, vocabulary):
        runs += [(start + a, start + b, rule) for a, b, rule in _runs_in(text[start:end], vocabulary)]
    return runs


def decode_shifted(text: str, vocabulary: frozenset[str] = frozenset()) -> list[TextEdit]:
    """Decode runs under a shifted or mirrored alphabet."""
    forward = len(_alphabets())
    runs = find_ciphered_runs(text, vocabulary)
    return [(start, end, _substitute(text[start:end], rule)) for start, end, rule in runs if rule < forward]


def decode_reversed(text: str, vocabulary: frozenset[str] = frozenset()) -> list[TextEdit]:
    """Decode runs that were written backwards, under any alphabet."""
    forward = len(_alphabets())
    runs = find_ciphered_runs(text, vocabulary)
    return [
        (start, end, _substitute(text[start:end], rule - forward)[::-1]) for start, end, rule in runs if rule >= forward
    ]


def decode_reversed_words(text: str, vocabulary: frozenset[str] = frozenset()) -> list[TextEdit]:
    """Decode runs in which each word by itself was written backwards."""
    forward = len(_alphabets())
    edits: list[TextEdit] = []
    for start, end, rule in find_ciphered_runs(text, vocabulary):
        if rule >= forward:
            decoded = _substitute(text[start:end], rule - forward)
            edits += [(start + m.start(), start + m.end(), m[0][::-1]) for m in re.finditer(r"\S+", decoded)]
    return edits


def _substitute(text: str, rule: int) -> str:
    """Exchange the letters of a text by a forward rule."""
    return text.translate(_substitution_table(rule))


@cache
def _substitution_table(rule: int) -> dict[int, int]:
    lower = "".join(chr(ord("a") + code) for code in _alphabets()[rule][:LETTERS])
    return str.maketrans(ascii_lowercase + ascii_uppercase, lower + lower.upper())


def suspicious_spans(text: str, vocabulary: frozenset[str]) -> list[tuple[int, int]]:
    """Return the spans worth decoding, with their context: chunks that cost more than language does, and words that
    are known only under a common rule."""
    costs = language_model.character_costs(text)
    at = np.flatnonzero(costs)
    size = min(CHUNK_CHARACTERS, len(at))
    if not size:
        return []
    total = np.concatenate([[0.0], np.cumsum(costs[at])])
    costly = np.flatnonzero((total[size:] - total[:-size]) / size > SUSPICIOUS_COST)
    marked = [(int(at[first]), int(at[first + size - 1])) for first in costly]
    marked += [(start, end) for start, end, _ in _words_known_by_rule(text, vocabulary)]
    spans: list[tuple[int, int]] = []
    for first, last in sorted(marked):
        start, end = max(first - CONTEXT_CHARACTERS, 0), min(last + CONTEXT_CHARACTERS, len(text))
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans


@cache
def _common_rules() -> tuple[int, ...]:
    """The rules that people use: rot13 and Atbash, and both of these and the plain alphabet backwards."""
    forward = len(_alphabets())
    return (LETTERS // 2, LETTERS, forward, forward + LETTERS // 2, forward + LETTERS)


def _words_known_by_rule(text: str, vocabulary: frozenset[str]) -> list[CipheredRun]:
    """Return the words that are unknown as written and known under a common rule, once for each such rule."""
    known = language_model.common_words()
    rules_by_word: dict[str, list[int]] = {}
    for written in dict.fromkeys(_LETTERS.findall(text)):
        word = written.lower()
        if len(word) >= MIN_BONUS_LETTERS and word not in known and word not in vocabulary:
            rules = [rule for rule, plain in _under_common_rules(word) if plain in known or plain in vocabulary]
            if rules:
                rules_by_word[written] = rules
    if not rules_by_word:
        return []
    return [(*match.span(), rule) for match in _LETTERS.finditer(text) for rule in rules_by_word.get(match[0], ())]


@lru_cache(maxsize=1 << 12)
def _under_common_rules(word: str) -> tuple[tuple[int, str], ...]:
    """Return (rule, decoded word) for a lower-case word under each common rule."""
    forward = len(_alphabets())
    rules = _common_rules()
    plain = {rule: _substitute(word, rule) if rule else word for rule in {rule % forward for rule in rules}}
    return tuple((rule, plain[rule] if rule < forward else plain[rule - forward][::-1]) for rule in rules)


def _runs_in(text: str, vocabulary: frozenset[str]) -> list[CipheredRun]:
    """Return the runs of neighbouring words whose cheapest rule is the same one other than 0, and which save enough."""
    words = [match.span() for match in _LETTERS.finditer(text)]
    if not words:
        return []
    costs = _word_costs(text, words)
    number = {span: i for i, span in enumerate(words)}
    for start, end, rule in _words_known_by_rule(text, vocabulary):
        costs[number[start, end], rule] -= KNOWN_WORD_BONUS * (end - start)
    rules = _cheapest_rules(costs)
    runs = []
    edges = [0, *(np.flatnonzero(np.diff(rules)) + 1).tolist(), len(words)]
    for first, last in zip(edges, edges[1:], strict=False):
        rule = int(rules[first])
        if rule and (costs[first:last, 0] - costs[first:last, rule]).sum() >= MIN_SAVING:
            start, end = words[first][0], words[last - 1][1]
            backwards = rule >= len(_alphabets())
            plain = _substitute(text[start:end], rule % len(_alphabets()))
            decoded = _LETTERS.findall(plain[::-1] if backwards else plain)
            if language_model.known_letter_share(decoded, vocabulary) >= MIN_KNOWN_SHARE:
                runs.append((start, end, rule))
    return runs


def _cheapest_rules(costs: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (W,) the rule of each word on the cheapest path (Viterbi), where a change costs RULE_CHANGE_COST.

    costs: (W, rules) the cost of each word under each rule.
    """
    path_costs = costs[0].copy()
    cheapest = np.zeros(len(costs), dtype=np.int64)
    stays = np.zeros(costs.shape, dtype=bool)
    for i in range(1, len(costs)):
        cheapest[i] = path_costs.argmin()
        cost_of_change = path_costs[cheapest[i]] + RULE_CHANGE_COST
        stays[i] = path_costs <= cost_of_change
        path_costs = np.minimum(path_costs, cost_of_change) + costs[i]
    rules = np.zeros(len(costs), dtype=np.int64)
    rules[-1] = path_costs.argmin()
    for i in range(len(costs) - 1, 0, -1):
        rules[i - 1] = rules[i] if stays[i, rules[i]] else cheapest[i]
    return rules


def _word_costs(text: str, words: list[tuple[int, int]]) -> NDArray[np.float32]:
    """Return (W, rules) the cost of each word, given by its span, under each rule."""
    codes = language_model.letter_codes(f" {text} ")
    pairs = codes[:-1] * (LETTERS + 1) + codes[1:]
    starts = np.array([start for start, _ in words])
    ends = np.array([end for _, end in words]) + 1
    tables = _pair_costs_by_rule()
    out = np.empty((len(words), len(tables)), dtype=np.float32)
    batch = max(BATCH_PAIRS // len(pairs), 1)
    for first in range(0, len(tables), batch):
        rules = tables[first : first + batch]
        total = np.zeros((len(rules), len(pairs) + 1))
        np.cumsum(rules[:, pairs], axis=1, out=total[:, 1:])
        out[:, first : first + batch] = (total[:, ends] - total[:, starts]).T
    return out
