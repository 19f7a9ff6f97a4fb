"""The answers of the forget items that a request asks for, and the phrases in them that must not be said."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence

from lethe.classifier.artifact import Artifact, ForgetItem
from lethe.classifier.judge import MAX_FLAGGED_WINDOWS
from lethe.corruption.decoding.similar_words import WordVectors
from lethe.corruption.decoding.spec import MAX_PHRASES
from lethe.corruption.phrases.extraction import forbidden_phrases
from lethe.server.policy.verdict import Finding

# When the phrases of all nearby forget items are too many for one answer, fewer items of each window count: first this
# many, then fewer. Chosen: the nearest item is nearly always the one that is meant.
ITEMS_PER_WINDOW = (8, 3, 2)
# A request flagged in at most this many windows is one question in several views. If its items hold too many
# phrases, the most distinctive ones are kept. More windows are several questions, which can't all be guarded. Chosen,
# not measured.
FEW_WINDOWS = 4


class TooManyItems(Exception):
    """The request asks for more forget items than one answer can be guarded against."""

    def __init__(self) -> None:
        super().__init__("too many forget items are asked for at once")


class ArtifactWords:
    """An artifact's words: how often each occurs in ordinary text, and which are similar in meaning."""

    def __init__(self, artifact: Artifact) -> None:
        self._counts: dict[str, int] = dict(zip(artifact.words, artifact.word_counts.tolist(), strict=True))
        self.list = WordVectors(artifact.words, artifact.word_vectors)

    def count(self, word: str) -> int:
        """How often `word` occurs in the background text; 0 for a word that the artifact does not list."""
        return self._counts.get(word, 0)


class LazyArtifactWords(dict[str, ArtifactWords]):
    """Artifact name → its words, prepared on first use: of many artifacts few are needed."""

    def __init__(self, artifacts: Mapping[str, Artifact]) -> None:
        super().__init__()
        self._artifacts = artifacts

    def __missing__(self, name: str) -> ArtifactWords:
        return self.setdefault(name, ArtifactWords(self._artifacts[name]))


def requested_answers(
    finding: Finding, artifact: Artifact, words: ArtifactWords, question: str, prompt_ends: Collection[str] = ()
) -> tuple[list[list[str]], tuple[str, ...]]:
    """What a flagged request asks for.

    Returns the answers of the nearest forget items for each flagged window, nearest first, and the phrases that
    would reveal them. Words of `question`, the user's own, are left out of the phrases. prompt_ends: see
    `forbidden_phrases`. Raises TooManyItems.
    """
    nearest_items = finding.score.window_items
    if len(nearest_items) >= MAX_FLAGGED_WINDOWS:
        raise TooManyItems
    limit = finding.policy.penalize.items
    answers = [[answer_text(artifact.items[i]) for i in nearest[:limit]] for nearest in nearest_items]
    return answers, _limited_phrases(answers, question, words, prompt_ends)


def every_phrase(artifact: Artifact, words: ArtifactWords) -> tuple[str, ...]:
    """Every phrase that would reveal one of the artifact's forget items.

    No name or number is left out beside a shorter one: a prompt may hold the shorter one, which may then be said.
    """
    answers = [answer_text(artifact.items[i]) for i in artifact.live_items]
    return forbidden_phrases(answers, "", count=words.count, limit=sys.maxsize, keep_redundant=True)


def answer_text(item: ForgetItem) -> str:
    """What must not be said of a forget item: its answer, or the whole text of a document."""
    return item.answer or item.text


def _limited_phrases(
    answers: Sequence[Sequence[str]], question: str, words: ArtifactWords, prompt_ends: Collection[str]
) -> tuple[str, ...]:
    """The phrases of the answers near each window; of fewer answers where they hold too many. Raises TooManyItems."""
    for items in ITEMS_PER_WINDOW:
        chosen = list(dict.fromkeys(answer for nearest in answers for answer in nearest[:items]))
        phrases = forbidden_phrases(chosen, question, count=words.count, limit=MAX_PHRASES, prompt_ends=prompt_ends)
        if len(phrases) < MAX_PHRASES // 2:
            return phrases
    if len(phrases) < MAX_PHRASES or len(answers) <= FEW_WINDOWS:
        return phrases
    raise TooManyItems
