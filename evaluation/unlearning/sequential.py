"""Requests to forget that come one after another: detection, cost and utility after each.

The first request is fitted, each further one added as `lethe fit --add` does. Nothing is asked of a model: what is
not flagged passes as the bytes that came in, so its utility is the unguarded model's own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from lethe.classifier.artifact import Artifact, ForgetItem
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.judge import Judge
from lethe.classifier.records import Record
from lethe.classifier.training import incremental
from lethe.classifier.training.fit import fit
from lethe.evaluation.unlearning.confidence import share
from lethe.server.policy.schema import Policy
from lethe.server.policy_store.load import find_threshold

# Of the prompts of requests still to come, at most so many are judged after each one.
MOST_PENDING = 100

Utility = Callable[[Sequence[bool]], dict[str, Any]]


def requests(items: Sequence[ForgetItem], count: int) -> list[list[Record]]:
    """The items as so many requests of consecutive ones. Raises ValueError when there are too few."""
    if not 1 < count <= len(items):
        raise ValueError(f"{len(items)} items don't make {count} requests")
    rows = [{"prompt": i.prompt, "answer": i.answer} if i.prompt else {"text": i.text} for i in items]
    edges = [len(rows) * k // count for k in range(count + 1)]
    return [rows[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def run(
    parts: Sequence[Sequence[Record]],
    policy: Policy,
    encoder: Encoder,
    *,
    retain: Sequence[Record] | None,
    rewordings: Mapping[str, Sequence[str]],
    others: Sequence[str],
    utility: Utility | None = None,
) -> list[dict[str, Any]]:
    """One row of figures a request: how many are forgotten, recall, false alarms, seconds, milliseconds.

    rewordings: prompt → rewordings that count for recall too. others: questions that no request is about; the
    prompts of requests still to come are others as well, until their turn. utility: from which of `others` are
    flagged to an interval.
    """
    found = []
    artifact: Artifact | None = None
    asked = list(others)
    for number, part in enumerate(tqdm(parts, desc="requests", unit="request", file=sys.stderr), 1):
        begun = time.perf_counter()
        if artifact is None:
            artifact = fit(list(part), list(retain) if retain else None, encoder=encoder)
        else:
            artifact = incremental.add(artifact, list(part), encoder)
        seconds = time.perf_counter() - begun
        judge, threshold = Judge({"": artifact}, encoder), find_threshold(policy, artifact)
        known = [_prompt(row) for done in parts[:number] for row in done]
        wanted = known + [text for prompt in known for text in rewordings.get(prompt, ())]
        pending = _spread([_prompt(row) for later in parts[number:] for row in later], MOST_PENDING)
        begun = time.perf_counter()
        flags = {
            name: [not judge.judge([text])[""].score < threshold for text in texts]
            for name, texts in (("wanted", wanted), ("others", asked), ("pending", pending))
        }
        took = (time.perf_counter() - begun) * 1e3 / max(1, sum(map(len, flags.values())))
        row: dict[str, Any] = {
            "requests": number,
            "items": len(known),
            "recall": share(sum(flags["wanted"]), len(wanted)).as_dict(),
            "fit_s": seconds,
            "judge_ms": took,
        }
        if asked:
            row["false_alarms"] = share(sum(flags["others"]), len(asked)).as_dict()
        if pending:
            row["false_alarms_pending"] = share(sum(flags["pending"]), len(pending)).as_dict()
        if utility is not None and asked:
            row["utility"] = utility(flags["others"])
        found.append(row)
    return found


def within_first(rows: Sequence[Mapping[str, Any]], key: str) -> list[int]:
    """The requests after which a figure's interval no longer meets that of the first one."""
    first = rows[0][key]
    return [row["requests"] for row in rows if row[key]["high"] < first["low"] or row[key]["low"] > first["high"]]


def _prompt(row: Record) -> str:
    return row.get("prompt") or row["text"]


def _spread(texts: Sequence[str], most: int) -> list[str]:
    step = -(-len(texts) // most) or 1
    return list(texts[::step])
