"""The objective of tuning: how far a guarded model's answers are from those of a model that never knew. Pure.

One number for the answers to prompts of the forget set; lower is nearer to a model that never knew. It has two halves,
because low similarity to the reference alone would prefer garbled text:

  knowledge  how similar the answers are to the references, by four text similarities, compared with a surrogate for the
             unavailable retain model (ECO, arXiv:2406.07933, section 3.3 and D.3): the answers of a retain twin if
             there is one, else sentences that say "I don't know", or other items' answers (a model that invents answers
             of the right form). For multiple choice: the share of correct choices compared with the retain twin's, else
             with a random guess. 1 is the distance of the unguarded model.
  language   how well the answers are formed: likelihood under another model, repetition, distinct words, compared with
             the retain twin's answers if there is one (1 is the distance of the unguarded model), else with the
             unguarded model's (1 is the distance of its words in random order).

ECO compares means. Here distributions are compared (first Wasserstein distance), since a mixture of leaks and garbled
text can have the right mean. Where phrases are forbidden, the share of answers with one of them is added.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lethe.evaluation.tuning.answer_similarity import SIMILARITIES, Encode, Floats, similarities
from lethe.evaluation.tuning.multiple_choice import MultipleChoice, chosen_letter
from lethe.evaluation.unlearning.metrics import repetition, unique_word_ratio

Ints = NDArray[np.int64]

DEFINITION = (
    "Mean of two halves: knowledge (distance of the answers' similarity to the references from the surrogate's, four "
    "similarities, first Wasserstein distance, 1 for the unguarded model; multiple choice: of the share of right "
    "choices) and language (likelihood, repetition and distinct words of the answers, 0 for a retain model's or else "
    "the unguarded model's); plus the share of answers with a forbidden phrase where phrases are forbidden."
)
# Smallest divisor of a distance: below it the unguarded model hardly knows anything, and the quotient would be noise.
MIN_SCALE = 0.05
# Bootstrap resamples of the tuning half.
RESAMPLES = 64


def wasserstein(one: Floats, other: Floats) -> float:
    """First Wasserstein distance of two samples (N,) and (M,); 0 if one is empty.

    The mean of |Q₁(p) - Q₂(p)|, where Q is the quantile function and p runs over the ranks of the first sample.
    """
    if not one.size or not other.size:
        return 0.0
    at = (np.arange(one.size) + 0.5) / one.size
    return float(np.abs(np.sort(one) - np.quantile(other, at, method="hazen")).mean())


@dataclass(frozen=True)
class AnswerMeasures:
    """The measures of N answers, in the order of their prompts.

    similarity: (N, 4) to the references. correct: (N,) 1 or 0 for multiple choice, NaN elsewhere.
    loss: (N,) mean negative log-probability of the answer's tokens under another model, NaN without one.
    repetition, unique_ratio: (N,) shares. leaks: (N,) 1 where the answer contains a forbidden phrase.
    """

    similarity: Floats
    correct: Floats
    loss: Floats
    repetition: Floats
    unique_ratio: Floats
    leaks: Floats

    def summary(self) -> dict[str, float]:
        """The mean of each measure, for reports; measures that are NaN everywhere are left out."""
        means = {name: float(self.similarity[:, i].mean()) for i, name in enumerate(SIMILARITIES)}
        means |= {
            "loss": _mean(self.loss),
            "repetition": _mean(self.repetition),
            "unique_tokens": _mean(self.unique_ratio),
            "leaks": _mean(self.leaks),
            "right_choices": _mean(self.correct),
        }
        return {name: round(value, 5) for name, value in means.items() if not math.isnan(value)}


def measure_answers(
    answers: Sequence[str],
    references: Sequence[str],
    choices: Sequence[MultipleChoice | None],
    contains_forbidden: Sequence[Callable[[str], bool]] | None,
    losses: Sequence[float] | None,
    encode: Encode,
) -> AnswerMeasures:
    """Measure answers. contains_forbidden: for each prompt, whether a text contains one of its forbidden phrases."""
    correct = [
        math.nan if choice is None else float(chosen_letter(answer, choice.options) == choice.correct)
        for answer, choice in zip(answers, choices, strict=True)
    ]
    leaks = [0.0] * len(answers)
    if contains_forbidden:
        leaks = [float(contains(answer)) for answer, contains in zip(answers, contains_forbidden, strict=True)]
    return AnswerMeasures(
        similarities(answers, references, encode),
        *(
            np.array(column, dtype=np.float64)
            for column in (
                correct,
                [math.nan] * len(answers) if losses is None else losses,
                [repetition(answer) for answer in answers],
                [unique_word_ratio(answer) for answer in answers],
                leaks,
            )
        ),
    )


@dataclass(frozen=True)
class ObjectiveTarget:
    """What a candidate's answers are compared with.

    unguarded: the unguarded model's answers. twin: a retain twin's, or None. surrogate: (N, R, 4) similarities from
    `surrogate_similarities`, used without a twin. guess: (N,) probability that a random guess is correct, NaN without
    choices. garbled_loss: (N,) loss of the unguarded answers' words in random order.
    """

    unguarded: AnswerMeasures
    twin: AnswerMeasures | None
    surrogate: Floats
    guess: Floats
    garbled_loss: Floats

    def distances(self, answers: AnswerMeasures, rows: Ints | None = None) -> dict[str, float]:
        """Return every part of the objective over the prompts of `rows` (None: all), and the total as "objective".

        objective = (knowledge + language) / 2 + leaks.
        """
        n = len(answers.unique_ratio)
        rows = np.arange(n) if rows is None else rows
        parts = {"knowledge": self._knowledge(answers, rows), "language": self._language(answers, rows)}
        parts["leaks"] = float(answers.leaks[rows].mean())
        return {**parts, "objective": (parts["knowledge"] + parts["language"]) / 2 + parts["leaks"]}

    def _knowledge(self, answers: AnswerMeasures, rows: Ints) -> float:
        free_text, with_choices = rows[np.isnan(answers.correct[rows])], rows[~np.isnan(answers.correct[rows])]
        total = 0.0
        if free_text.size:
            distances = []
            for i in range(len(SIMILARITIES)):
                target = self.twin.similarity[free_text, i] if self.twin else self.surrogate[free_text, :, i].ravel()
                scale = wasserstein(self.unguarded.similarity[free_text, i], target)
                distances.append(wasserstein(answers.similarity[free_text, i], target) / max(scale, MIN_SCALE))
            total += free_text.size * float(np.mean(distances))
        if with_choices.size:
            target_share = float((self.twin.correct if self.twin else self.guess)[with_choices].mean())
            scale = abs(float(self.unguarded.correct[with_choices].mean()) - target_share)
            distance = abs(float(answers.correct[with_choices].mean()) - target_share)
            total += with_choices.size * distance / max(scale, MIN_SCALE)
        return total / rows.size

    def _language(self, answers: AnswerMeasures, rows: Ints) -> float:
        target = self.twin or self.unguarded
        repeated = abs(_mean(answers.repetition[rows]) - _mean(target.repetition[rows]))
        distinct = abs(_mean(answers.unique_ratio[rows]) / max(_mean(target.unique_ratio[rows]), MIN_SCALE) - 1)
        parts = [repeated + distinct]
        with_loss = rows[~np.isnan(answers.loss[rows]) & ~np.isnan(target.loss[rows])]
        if with_loss.size and self.twin:
            scale = wasserstein(self.unguarded.loss[with_loss], self.twin.loss[with_loss])
            parts.append(wasserstein(answers.loss[with_loss], self.twin.loss[with_loss]) / max(scale, MIN_SCALE))
        elif with_loss.size:
            # One-sided: an answer that is more likely than the unguarded model's own is no fault.
            unguarded_loss = _mean(self.unguarded.loss[with_loss])
            scale = _mean(self.garbled_loss[with_loss]) - unguarded_loss
            parts.append(max(0.0, _mean(answers.loss[with_loss]) - unguarded_loss) / max(scale, MIN_SCALE))
        return float(np.mean(parts))


def _mean(values: Floats) -> float:
    """The mean of the values that are not NaN; NaN if there is none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else math.nan


def shuffle_words(text: str, seed: int) -> str:
    """Return the words of a text in random order."""
    words = text.split()
    random.Random(seed).shuffle(words)
    return " ".join(words)


def resamples(groups: Sequence[int], seed: int, count: int = RESAMPLES) -> list[Ints]:
    """Return bootstrap samples of row numbers, drawn by whole groups: rows of one group are not independent."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    blocks = [np.array(rows, dtype=np.int64) for _, rows in sorted(members.items())]
    generator = np.random.default_rng(seed)
    return [
        np.concatenate([blocks[i] for i in generator.integers(len(blocks), size=len(blocks))]) for _ in range(count)
    ]
