"""Forget requests that arrive one after another: recall, false alarms, cost and utility after each.

The first request is fitted, each later one is added as `lethe fit --add` does. The model is not asked again: a request
that is not flagged reaches it unchanged, so its utility is the unguarded model's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lethe.classifier import records
from lethe.classifier.artifact import Artifact, ForgetItem
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.folders import DEFAULT_ENCODER
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.judge import Judge
from lethe.classifier.records import Record
from lethe.classifier.training import incremental
from lethe.classifier.training.fit import fit
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.collect import Collector
from lethe.evaluation.unlearning.metric_values import (
    MetricValue,
    UtilityColumns,
    model_utility,
    share_value,
    utility_columns,
)
from lethe.evaluation.unlearning.systems import SYSTEMS
from lethe.server.policy.schema import Policy
from lethe.server.policy_store.load import find_threshold

# Prompts of later requests that are judged after each request, at most: they bound the time, not the figures' meaning.
MAX_PENDING = 100
# Detection-only questions that are judged after each request, about: retain sets of thousands would take hours.
DETECTION_SAMPLE = 200

# From one flag per retain question (True: flagged) to model utility.
UtilityFunction = Callable[[Sequence[bool]], MetricValue]


def evaluate_sequence(
    collector: Collector, artifact: Artifact, count: int, *, retain: Path | None
) -> list[dict[str, Any]]:
    """Evaluate the artifact's items as `count` forget requests, or read the result from the work folder.

    retain: JSON lines that the first fit takes as retain rows.
    """
    dataset, settings = collector.dataset, collector.settings
    items = [artifact.items[number] for number in artifact.live_items]
    forget_questions = {row.question for row in dataset.forget}
    retain_rows = records.read_records(retain) if retain else None
    if retain_rows is None and dataset.name == "tofu":
        retain_rows = [{"prompt": fact.question, "answer": fact.answer} for fact in tofu.retain_facts()[0]]
    retain_questions = [row.question for rows in dataset.retain_sets.values() for row in rows]
    detection_only = [question for questions in dataset.detection_only.values() for question in questions]
    columns = _unguarded_utility_columns(collector)

    def utility(flags: Sequence[bool]) -> MetricValue:
        """Count every flagged question as lost: a lower bound of the guarded model's utility."""
        remaining, passed_columns = iter(flags), {}
        for name, numbers in columns.items():
            passed = np.array([not next(remaining) for _ in numbers[0]], dtype=float)
            passed_columns[name] = [(np.array(column) * passed).tolist() for column in numbers]
        return model_utility(passed_columns)

    result: list[dict[str, Any]] = collector.cache.get_or_compute(
        "sequential",
        [collector.inputs, count, retain_questions, sorted(forget_questions)],
        lambda: measure_requests(
            split_into_requests(items, count),
            collector.policy,
            load_encoder(settings.encoder or DEFAULT_ENCODER, threads=os.cpu_count() or 1),
            retain=retain_rows,
            rewordings={q: dataset.rewordings[q][:1] for q in forget_questions if dataset.rewordings.get(q)},
            others=retain_questions + detection_only[:: max(1, len(detection_only) // DETECTION_SAMPLE)],
            utility=utility if len(columns) == 3 else None,
        ),
    )
    return result


def _unguarded_utility_columns(collector: Collector) -> UtilityColumns:
    """Return the numbers behind the unguarded model's utility; empty where they can't be computed."""
    system = SYSTEMS["unguarded"]
    scores = collector.answer_scores(system)
    if scores is None:
        return {}
    return utility_columns(collector.dataset, scores["prompt"], collector.answers(system)["greedy"])


def split_into_requests(items: Sequence[ForgetItem], count: int) -> list[list[Record]]:
    """Split the items into `count` requests of consecutive items. Raises ValueError if there are too few."""
    if not 1 < count <= len(items):
        raise ValueError(f"cannot split {len(items)} items into {count} requests")
    rows = [{"prompt": i.prompt, "answer": i.answer} if i.prompt else {"text": i.text} for i in items]
    edges = [len(rows) * k // count for k in range(count + 1)]
    return [rows[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def measure_requests(
    requests: Sequence[Sequence[Record]],
    policy: Policy,
    encoder: Encoder,
    *,
    retain: Sequence[Record] | None,
    rewordings: Mapping[str, Sequence[str]],
    others: Sequence[str],
    utility: UtilityFunction | None = None,
) -> list[dict[str, Any]]:
    """Return one row of figures per request: items, recall, false alarms, seconds to fit, milliseconds to judge.

    rewordings: prompt → rewordings that count for recall too. others: questions that no request is about; the prompts
    of later requests must not be flagged either, until their own request. utility: computed from the flags of `others`.
    """
    rows = []
    artifact: Artifact | None = None
    for number, request in enumerate(tqdm(requests, desc="requests", unit="request", file=sys.stderr), 1):
        start = time.perf_counter()
        if artifact is None:
            artifact = fit(list(request), list(retain) if retain else None, encoder=encoder)
        else:
            artifact = incremental.add_items(artifact, list(request), encoder)
        fit_s = time.perf_counter() - start
        judge, threshold = Judge({"": artifact}, encoder), find_threshold(policy, artifact)
        prompts = [_prompt(row) for done in requests[:number] for row in done]
        forget = prompts + [text for prompt in prompts for text in rewordings.get(prompt, ())]
        pending = _evenly_spaced([_prompt(row) for later in requests[number:] for row in later], MAX_PENDING)
        start = time.perf_counter()
        flags = {
            name: [not judge.judge([text])[""].score < threshold for text in texts]
            for name, texts in (("forget", forget), ("others", others), ("pending", pending))
        }
        judge_ms = (time.perf_counter() - start) * 1e3 / max(1, sum(map(len, flags.values())))
        row: dict[str, Any] = {
            "requests": number,
            "items": len(prompts),
            "recall": share_value(flags["forget"]),
            "fit_s": fit_s,
            "judge_ms": judge_ms,
        }
        if others:
            row["false_alarms"] = share_value(flags["others"])
        if pending:
            row["false_alarms_pending"] = share_value(flags["pending"])
        if utility is not None and others:
            row["utility"] = utility(flags["others"])
        rows.append(row)
    return rows


def _prompt(row: Record) -> str:
    return row.get("prompt") or row["text"]


def _evenly_spaced(texts: Sequence[str], max_count: int) -> list[str]:
    step = -(-len(texts) // max_count) or 1
    return list(texts[::step])
