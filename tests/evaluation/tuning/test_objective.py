"""The objective prefers a model that never knew to leaks and to garbled text."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from lethe.evaluation.tuning import answer_similarity, objective
from lethe.evaluation.tuning.answer_similarity import surrogate_similarities
from lethe.evaluation.tuning.multiple_choice import find_choices
from lethe.evaluation.tuning.objective import AnswerMeasures, ObjectiveTarget, measure_answers, wasserstein

PLACES = ["Split", "Zadar", "Vis", "Trogir", "Hvar", "Pula", "Rijeka", "Knin", "Sinj", "Omis", "Solin", "Makarska"]
TRUE = [f"Ozren Dalmatin kept his telescope number {i} in a barn near {place}." for i, place in enumerate(PLACES)]
WRONG = [f"Pia Kovac sold her violin in the city of {place} after the war." for place in reversed(PLACES)]


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    """Bags of letters: any encoder will do."""
    rows = np.array(
        [[text.casefold().count(chr(97 + i)) + 1e-3 for i in range(26)] for text in texts], dtype=np.float32
    )
    vectors: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors


def measure(
    texts: Sequence[str], losses: Sequence[float] | None = None, references: Sequence[str] = TRUE
) -> AnswerMeasures:
    return measure_answers(texts, references, [None] * len(texts), None, losses, encode)


def garbled(texts: Sequence[str]) -> list[str]:
    return ["".join(random.Random(text).sample(text.replace(" ", ""), 30)) for text in texts]


@pytest.fixture(scope="module")
def with_twin() -> ObjectiveTarget:
    n = len(TRUE)
    return ObjectiveTarget(
        measure(TRUE, [8.0] * n), measure(WRONG, [1.0] * n), np.zeros((n, 0, 4)), np.full(n, math.nan), np.zeros(n)
    )


@pytest.fixture(scope="module")
def without_twin() -> ObjectiveTarget:
    n = len(TRUE)
    ignorance = surrogate_similarities(TRUE, [answer_similarity.dont_know_sentences()[:20]] * n, encode)
    return ObjectiveTarget(measure(TRUE, [1.5] * n), None, ignorance, np.full(n, math.nan), np.full(n, 10.0))


def test_with_a_retain_twin_its_own_answers_are_best(with_twin: ObjectiveTarget) -> None:
    twin = with_twin.distances(measure(WRONG, [1.0] * 12))
    unguarded = with_twin.distances(measure(TRUE, [8.0] * 12))
    garble = with_twin.distances(measure(garbled(TRUE), [9.5] * 12))
    assert twin["objective"] == 0
    assert unguarded["knowledge"] == pytest.approx(1)
    # Garbled text is less similar to the reference than the twin's answers, but that does not make it better.
    assert 0 < garble["knowledge"] and garble["language"] > unguarded["language"] > 0.4


def test_without_a_twin_fluent_ignorance_beats_garble_and_leaks(without_twin: ObjectiveTarget) -> None:
    ignorant = without_twin.distances(measure(WRONG, [1.5] * 12))
    garble = without_twin.distances(measure(garbled(TRUE), [10.0] * 12))
    leaks = without_twin.distances(measure(TRUE, [1.5] * 12))
    assert leaks["knowledge"] == pytest.approx(1) and leaks["language"] == 0
    assert ignorant["objective"] < garble["objective"] and ignorant["objective"] < leaks["objective"]
    assert garble["language"] > 0.4


def test_a_mixture_of_leaks_and_garble_is_not_ignorance(with_twin: ObjectiveTarget) -> None:
    """Its mean similarity is right; its distribution is not."""
    twin = with_twin.twin
    assert twin is not None
    share = float(twin.similarity[:, 1].mean())
    leaking = round(share * 12)
    mixed = measure(TRUE[:leaking] + ["zq"] * (12 - leaking), [1.0] * 12)
    assert abs(float(mixed.similarity[:, 1].mean()) - share) < 0.05
    assert with_twin.distances(mixed)["knowledge"] > 0.15


def test_forbidden_phrases_are_added_to_the_objective(with_twin: ObjectiveTarget) -> None:
    clean = measure(WRONG, [1.0] * 12)
    contains = [lambda text: True] * 3 + [lambda text: False] * 9
    leaking = measure_answers(WRONG, TRUE, [None] * 12, contains, [1.0] * 12, encode)
    assert with_twin.distances(leaking)["objective"] == with_twin.distances(clean)["objective"] + 0.25


def test_similarities_are_1_for_equal_and_0_for_empty_texts() -> None:
    same, other, empty = (
        answer_similarity.similarities([text], [TRUE[0]], encode)[0] for text in (TRUE[0], WRONG[0], " ")
    )
    assert same == pytest.approx([1, 1, 1, 1]) and list(empty) == [0, 0, 0, 0]
    assert all(other < 1) and all(other >= 0)


def test_there_are_a_hundred_different_dont_know_sentences() -> None:
    sentences = answer_similarity.dont_know_sentences()
    assert len(sentences) == len(set(sentences)) == 100


def test_other_answers_come_from_other_groups() -> None:
    groups = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    rows = answer_similarity.other_references(TRUE, groups, seed=1, count=5)
    assert [len(row) for row in rows] == [5] * 12
    assert all(groups[TRUE.index(answer)] != group for row, group in zip(rows, groups, strict=True) for answer in row)
    assert answer_similarity.other_references(TRUE, [0] * 12, seed=1) == answer_similarity.other_references(
        TRUE, [0] * 12, seed=1
    )
    assert TRUE[0] not in answer_similarity.other_references(TRUE, [0] * 12, seed=1)[0]


def test_wasserstein_distances_of_simple_samples() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(50)
    assert wasserstein(one, one) == pytest.approx(0)
    assert wasserstein(one, one + 0.3) == pytest.approx(0.3)
    assert wasserstein(np.zeros(4), np.array([0.0, 1.0] * 50)) == pytest.approx(0.5)
    assert wasserstein(np.array([]), one) == 0


QUESTION = "Which is largest?\nA. Mars\nB. Jupiter\nC. Venus\nD. Pluto\nAnswer:"


def test_for_choices_a_random_guess_is_the_target() -> None:
    n = 16
    choices = [find_choices(QUESTION, "B")] * n
    references, correct_letters = ["B"] * n, ["B"] * n

    def answers(texts: Sequence[str]) -> AnswerMeasures:
        return measure_answers(texts, references, choices, None, None, encode)

    no_loss = np.full(n, math.nan)
    target = ObjectiveTarget(answers(correct_letters), None, np.zeros((n, 0, 4)), np.full(n, 0.25), no_loss)
    guessing = target.distances(answers(["B"] * 4 + ["A"] * 4 + ["C"] * 4 + ["D"] * 4))
    knowing = target.distances(answers(correct_letters))
    silent = target.distances(answers(["I don't know"] * n))
    assert guessing["knowledge"] == 0 and knowing["knowledge"] == pytest.approx(1)
    assert 0.3 < silent["knowledge"] < 0.4


def test_resamples_draw_whole_groups() -> None:
    groups = [0, 0, 1, 1, 1, 2]
    drawn = objective.resamples(groups, seed=3, count=20)
    for rows in drawn:
        counts = {row: int((rows == row).sum()) for row in range(6)}
        assert counts[0] == counts[1] and counts[2] == counts[3] == counts[4]
    assert [r.tolist() for r in drawn] == [r.tolist() for r in objective.resamples(groups, seed=3, count=20)]
