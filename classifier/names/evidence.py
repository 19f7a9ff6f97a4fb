"""How much the names in a window, its other words and its meaning say that it asks about a subject. Pure.

A distinctive name decides alone. A name that others bear too ("Mark Stone", "Apple") needs more: a second name, words
or numbers of the subject's facts, or a meaning close to one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lethe.classifier.names.matcher import NameHit
from lethe.classifier.names.subject import ENOUGH, Subject

# The score of a window that its names decide: above every threshold but 1, by which a policy flags nothing.
NAME_SCORE = 0.999
# Evidence of each content word of the subject's facts beside a name, in units of ENOUGH ... Chosen: two of them make a
# common name enough.
WORD_WEIGHT = 0.25
# ... and of all of them together.
MAX_WORDS_WEIGHT = 0.5
# Share of the words' evidence that counts where only related names are in the window. Chosen: a common related name and
# common words of the facts are in many other prompts.
RELATED_WORDS_SHARE = 0.5
# Cosine to the nearest fact from which meaning counts, where a name of the subject is in the window. Chosen,
# not measured.
MEANING_FROM = 0.45
# Cosine from which it counts fully. Chosen: that of a rewording.
MEANING_FULL = 0.75
# Evidence of a meaning that counts fully. Chosen: makes a common name enough.
MEANING_WEIGHT = 0.5
# Cosine to a fact from which a prompt that names the subject asks for that fact, where only facts are to be forgotten.
# Chosen with the development half of `benchmarks/requests.py`.
FACT_COSINE = 0.62


@dataclass(frozen=True)
class NameEvidence:
    """The evidence of one window for one subject, without its meaning.

    names: the weights of the subject's names in it together; words: of the words of its facts; facts_only: the
    subject's scope is "facts".
    """

    subject: int
    names: float
    words: float
    facts_only: bool = False

    @property
    def minimum_cosine(self) -> float:
        """The cosine to a fact from which the window is flagged; -1 if names and words are enough, 2 if none is."""
        if self.facts_only:
            return FACT_COSINE
        missing = ENOUGH - self.names - self.words
        if missing <= 0:
            return -1.0
        share = missing / MEANING_WEIGHT
        return MEANING_FROM + share * (MEANING_FULL - MEANING_FROM) if share <= 1 else 2.0


def name_evidence(subject: Subject, number: int, hits: Sequence[NameHit], tokens: Sequence[str]) -> NameEvidence:
    """The evidence of a window's tokens for a subject, given its names there (`hits`)."""
    own = max((hit.name.weight for hit in hits if hit.name.own), default=0.0)
    related = {hit.name.text: hit.name.weight for hit in hits if not hit.name.own}
    named = {token for hit in hits for token in tokens[hit.first : hit.last]}
    words = (set(tokens) & set(subject.words)) - named
    weight = min(len(words) * WORD_WEIGHT, MAX_WORDS_WEIGHT) * (1.0 if own else RELATED_WORDS_SHARE)
    return NameEvidence(number, own + sum(related.values()), weight, subject.scope == "facts")
