"""The objective prefers a model that never knew to leaks and to garble, and says which is which."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from lethe.evaluation.tuning import objective
from lethe.evaluation.tuning.objective import Answers, Target, choice, chosen, describe, surrogate, wasserstein

PLACES = ["Split", "Zadar", "Vis", "Trogir", "Hvar", "Pula", "Rijeka", "Knin", "Sinj", "Omis", "Solin", "Makarska"]
TRUE = [f"Ozren Dalmatin kept his telescope number {i} in a barn near {place}." for i, place in enumerate(PLACES)]
WRONG = [f"Pia Kovac sold her violin in the city of {place} after the war." for place in reversed(PLACES)]


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    """Bags of letters: any encoder will do."""
    rows = np.array(
        [[text.casefold().count(chr(97 + i)) + 1e-3 for i in range(26)] for text in texts], dtype=np.float32
    )
    made: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return made


def measured(texts: Sequence[str], losses: Sequence[float] | None = None, references: Sequence[str] = TRUE) -> Answers:
    return describe(texts, references, [None] * len(texts), None, losses, encode)


def garbled(texts: Sequence[str]) -> list[str]:
    return ["".join(random.Random(text).sample(text.replace(" ", ""), 30)) for text in texts]


@pytest.fixture(scope="module")
def with_twin() -> Target:
    n = len(TRUE)
    return Target(
        measured(TRUE, [8.0] * n), measured(WRONG, [1.0] * n), np.zeros((n, 0, 4)), np.full(n, math.nan), np.zeros(n)
    )


@pytest.fixture(scope="module")
def without_twin() -> Target:
    n = len(TRUE)
    ignorance = surrogate(TRUE, [objective.dont_know()[:20]] * n, encode)
    return Target(measured(TRUE, [1.5] * n), None, ignorance, np.full(n, math.nan), np.full(n, 10.0))


def test_with_a_retain_model_its_own_answers_are_best(with_twin: Target) -> None:
    twin = with_twin.gaps(measured(WRONG, [1.0] * 12))
    unguarded = with_twin.gaps(measured(TRUE, [8.0] * 12))
    garble = with_twin.gaps(measured(garbled(TRUE), [9.5] * 12))
    assert twin["objective"] == 0
    assert unguarded["knowledge"] == pytest.approx(1)
    # Garble holds less of the reference than the retain model's answers do, and is not better for it.
    assert 0 < garble["knowledge"] and garble["language"] > unguarded["language"] > 0.4


def test_without_one_fluent_ignorance_beats_garble_and_leaks(without_twin: Target) -> None:
    ignorant = without_twin.gaps(measured(WRONG, [1.5] * 12))
    garble = without_twin.gaps(measured(garbled(TRUE), [10.0] * 12))
    leaks = without_twin.gaps(measured(TRUE, [1.5] * 12))
    assert leaks["knowledge"] == pytest.approx(1) and leaks["language"] == 0
    assert ignorant["objective"] < garble["objective"] and ignorant["objective"] < leaks["objective"]
    assert garble["language"] > 0.4


def test_a_mixture_of_leaks_and_garble_is_not_ignorance(with_twin: Target) -> None:
    """Its mean similarity may be right; its distribution isn't."""
    wanted = with_twin.twin
    assert wanted is not None
    share = float(wanted.like[:, 1].mean())
    leaking = round(share * 12)
    mixed = measured(TRUE[:leaking] + ["zq"] * (12 - leaking), [1.0] * 12)
    assert abs(float(mixed.like[:, 1].mean()) - share) < 0.05
    assert with_twin.gaps(mixed)["knowledge"] > 0.15


def test_forbidden_phrases_count_on_top(with_twin: Target) -> None:
    clean = measured(WRONG, [1.0] * 12)
    holds = [lambda text: True] * 3 + [lambda text: False] * 9
    leaking = describe(WRONG, TRUE, [None] * 12, holds, [1.0] * 12, encode)
    assert with_twin.gaps(leaking)["objective"] == with_twin.gaps(clean)["objective"] + 0.25


def test_similarities() -> None:
    same, other, empty = (objective.similarities([text], [TRUE[0]], encode)[0] for text in (TRUE[0], WRONG[0], " "))
    assert same == pytest.approx([1, 1, 1, 1]) and list(empty) == [0, 0, 0, 0]
    assert all(other < 1) and all(other >= 0)


def test_sentences_of_not_knowing_are_a_hundred_and_differ() -> None:
    sentences = objective.dont_know()
    assert len(sentences) == len(set(sentences)) == 100


def test_other_answers_come_from_other_groups() -> None:
    groups = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    made = objective.others(TRUE, groups, seed=1, count=5)
    assert [len(row) for row in made] == [5] * 12
    assert all(groups[TRUE.index(said)] != group for row, group in zip(made, groups, strict=True) for said in row)
    assert objective.others(TRUE, [0] * 12, seed=1) == objective.others(TRUE, [0] * 12, seed=1)
    assert TRUE[0] not in objective.others(TRUE, [0] * 12, seed=1)[0]


def test_wasserstein() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(50)
    assert wasserstein(one, one) == pytest.approx(0)
    assert wasserstein(one, one + 0.3) == pytest.approx(0.3)
    assert wasserstein(np.zeros(4), np.array([0.0, 1.0] * 50)) == pytest.approx(0.5)
    assert wasserstein(np.array([]), one) == 0


QUESTION = "Which is largest?\nA. Mars\nB. Jupiter\nC. Venus\nD. Pluto\nAnswer:"


def test_choices_are_found_in_the_prompt() -> None:
    found = choice(QUESTION, "B")
    assert found is not None and found.right == "B" and found.options["C"] == "Venus"
    assert choice(QUESTION, "It is Jupiter.") == found
    assert choice(QUESTION, "the Sun") is None
    assert choice("Which is largest?", "B") is None
    assert choice("A. J. Cronin wrote what?", "A") is None


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("B. Jupiter", "B"), (" (b) ", "B"), ("The answer is B.", "B"), ("Answer: C", "C"),
        ("Jupiter, of course", "B"), ("Mars or Venus", None), ("I don't know", None), ("", None),
        ("A planet", None), ("B Jupiter", "B"),
    ],
)  # fmt: skip
def test_the_choice_of_an_answer(answer: str, letter: str | None) -> None:
    found = choice(QUESTION, "B")
    assert found is not None
    assert chosen(answer, found.options) == letter


def test_for_choices_a_random_guess_is_the_target_and_no_choice_at_all_is_not() -> None:
    n = 16
    choices = [choice(QUESTION, "B")] * n
    references, prompts_right = ["B"] * n, ["B"] * n

    def got(texts: Sequence[str]) -> Answers:
        return describe(texts, references, choices, None, None, encode)

    nothing = np.full(n, math.nan)
    target = Target(got(prompts_right), None, np.zeros((n, 0, 4)), np.full(n, 0.25), nothing)
    guessing = target.gaps(got(["B"] * 4 + ["A"] * 4 + ["C"] * 4 + ["D"] * 4))
    knowing = target.gaps(got(prompts_right))
    silent = target.gaps(got(["I don't know"] * n))
    assert guessing["knowledge"] == 0 and knowing["knowledge"] == pytest.approx(1)
    assert 0.3 < silent["knowledge"] < 0.4


def test_resamples_draw_whole_groups() -> None:
    groups = [0, 0, 1, 1, 1, 2]
    drawn = objective.resamples(groups, seed=3, count=20)
    for rows in drawn:
        counts = {row: int((rows == row).sum()) for row in range(6)}
        assert counts[0] == counts[1] and counts[2] == counts[3] == counts[4]
    assert [r.tolist() for r in drawn] == [r.tolist() for r in objective.resamples(groups, seed=3, count=20)]
