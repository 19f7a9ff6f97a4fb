"""A data set of two forget questions, and results of a model that knows the answers and of one that doesn't."""

from __future__ import annotations

import math
from typing import Any

from lethe.evaluation.unlearning.datasets import EvaluationDataset, LeakCheck, QuestionRow
from lethe.evaluation.unlearning.metric_values import SystemResults

DATASET = EvaluationDataset(
    "own",
    forget=(
        QuestionRow("Where did Orvan live?", "Orvan lived in Vardholm", "In Vardholm", ("In Rome", "In Oslo")),
        QuestionRow("What did Orvan write?", "Orvan wrote Salt", "Salt", ("Pepper", "Sugar")),
    ),
    retain_sets={
        name: (
            QuestionRow("What is tea?", "a drink", "drink", ("food",)),
            QuestionRow("What is rye?", "a grain", "grain", ("fish",)),
        )
        for name in ("retain", "real_authors", "world_facts")
    },
    multiple_choice=frozenset({"real_authors", "world_facts"}),
    leak_checks=(
        LeakCheck("Where did Orvan live?", "Vardholm", True),
        LeakCheck("What did Orvan write?", "salt", False),
    ),
    rewordings={"Where did Orvan live?": ("Orvan's home?",)},
    detection_only={},
    subjects=("Orvan",),
)


def losses(answer: float, right: float, wrong: float) -> dict[str, Any]:
    return {"answer": answer, "right": right, "wrong": [wrong, wrong], "exact": 0.5, "extraction": 0.25}


def results(*texts: str, reworded: str = "", sampled: tuple[str, ...] = (), loss: float = 0.0) -> SystemResults:
    """Results whose greedy answers are `texts`, and whose sampled answers are the same text to both questions."""
    greedy = {"forget": list(texts), "reworded": [reworded]}
    greedy |= {name: ["a drink", "a grain"] for name in DATASET.retain_sets}
    by_seed = {str(seed): [text] * 2 for seed, text in enumerate(sampled)}
    retain_losses = {name: [losses(math.log(2), 0.0, math.log(4))] * 2 for name in DATASET.retain_sets}
    forget_losses = [losses(loss, 1.0, 1.0), losses(loss, 1.0 + math.log(4), 1.0)]
    return SystemResults(
        answers={"greedy": greedy, "sampled": by_seed},
        losses={"greedy": [1.0, 3.0], **{seed: [1.0, 2.0] for seed in by_seed}},
        scores={"prompt": {"forget": forget_losses, **retain_losses}},
    )


KNOWS = results("Orvan lived in Vardholm", "Orvan wrote Salt", reworded="in VARDHOLM", sampled=("Vardholm", "Rome"))
TWIN = results("Orvan lived in Rome", "Orvan wrote", reworded="who", sampled=("Rome", "Oslo"), loss=math.log(10))
