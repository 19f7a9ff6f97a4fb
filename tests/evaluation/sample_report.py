"""A synthetic evaluation with every section, for the tests of the report. No number in it was measured."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

HOSTILE = (
    "</script></style><script>alert('x')</script><img src=http://evil.example/a.png onerror=alert(1)> & \"quoted\""
)

SYSTEMS = {
    "unguarded": ("Unguarded", 0.99, 0.95),
    "twin": ("Retain twin", 0.14, 0.95),
    "refusal": ("Refusal", 0.02, 0.95),
    "prompt": ("System prompt: pretend not to know", 0.71, 0.62),
    "policy": ("The policy as configured", 0.11, 0.95),
    "corrupt-decoy-evidence": ("corrupt · decoy · evidence", 0.155, 0.95),
    "penalize": ("penalize", 0.31, 0.949),
    "both": ("both", 0.13, 0.948),
}
METRICS = [
    ("forget_rouge", "ROUGE-L recall", "near_twin", "forget", "0.000"),
    ("forget_probability", "Probability", "near_twin", "forget", "0.000"),
    ("forget_quality", "Forget quality p", "higher", "forget", "0.000"),
    ("leak", "Leak rate of names and dates", "lower", "forget", "percent"),
    ("leak_sampled", "… sampled", "lower", "forget", "percent"),
    ("perplexity", "Perplexity under the twin", "lower", "forget", "0.0"),
    ("repetition", "Repetition", "near_twin", "forget", "percent"),
    ("retain_rouge", "ROUGE-L recall", "higher", "retain", "0.000"),
    ("retain_same", "Same answer as unguarded", "higher", "retain", "percent"),
    ("real_authors_rouge", "ROUGE-L recall", "higher", "real_authors", "0.000"),
    ("model_utility", "Model utility", "higher", "all retain sets", "0.000"),
]


def interval(value: float, spread: float, n: int, ceiling: float = 1.0) -> dict[str, Any]:
    return {"value": value, "low": max(0.0, value - spread), "high": min(ceiling, value + 0.8 * spread), "n": n}


def _system(key: str, rng: np.random.Generator) -> dict[str, Any]:
    label, forget, retain = SYSTEMS[key]
    values: dict[str, Any] = {}
    for metric, _, _, group, _ in METRICS:
        value = forget if group == "forget" else retain
        if metric == "perplexity":
            value = 4 + 30 * (1 - forget)
        elif metric == "forget_quality":
            value = 1e-21 if key == "unguarded" else 0.3 * (1 - forget)
        elif metric.startswith("leak"):
            value = {"unguarded": 0.94, "penalize": 0.0, "both": 0.0}.get(key, 0.0123)
        elif metric == "repetition":
            value = 0.03
        values[metric] = interval(value, 0.02, 400, 100.0) | {"seeds": [value] * 3}
    if key == "refusal":
        values["perplexity"] = {"value": float("nan"), "low": None, "high": None, "n": 0}
    ratios = np.exp(rng.normal(0.2 + 1.3 * (1 - forget), 0.8, 300)).tolist()
    shape = {"D": round(0.53 * forget, 4), "p": 1e-9, "n": 300, "ratios": ratios}
    return {"key": key, "label": label, "values": values, "truth_ratio": {"prompt": shape, "prompt+answer": shape}}


def sample() -> dict[str, Any]:
    """Return a fresh copy of the whole report."""
    return copy.deepcopy(_SAMPLE)


def _sample() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def scores(a: float, b: float, n: int) -> list[float]:
        return rng.beta(a, b, n).tolist()

    sets = {
        "forget questions": {"kind": "forget", "scores": scores(40, 0.4, 400), "flagged": interval(1.0, 0.009, 400)},
        "paraphrases": {"kind": "forget", "scores": scores(6, 0.6, 2000), "flagged": interval(0.9996, 0.001, 2000)},
        "retain authors": {"kind": "other", "scores": scores(0.25, 5, 3600), "flagged": interval(0.003, 0.002, 3600)},
        "general prompts": {"kind": "other", "scores": scores(0.1, 30, 2400), "flagged": interval(0.0, 0.001, 2400)},
    }
    names = ["plain", "base64", "hex", "ROT13", "zero-width characters", "confusable letters", "spaced-out letters"]
    names += ["end of 8,000 tokens", "split over turns", "role-play wrappers", "reversed", "suffix search"]
    return {
        "format": 1,
        "meta": {
            "policy": "example-policy",
            "artifact": "example-artifact",
            "model": "example-model",
            "date": "2026-01-02",
            "versions": {"lethe": "0.2.0", "vllm": "0.32.0"},
            "machine": {"cpu": "an example CPU", "cores": 2},
            "seeds": [0, 1, 2],
            "notes": ["nothing here was measured"],
            "command": "lethe evaluate example-policy --upstream URL",
            "definitions": {
                "forget_rouge": "Words of the reference's longest common subsequence over words of the reference.",
                "forget_quality": "p of the two-sample Kolmogorov-Smirnov test against the twin's truth ratios.",
                "leak": "Share of answers that hold the secret.",
                "model_utility": "Harmonic mean of nine numbers.",
            },
        },
        "metrics": [
            {"key": key, "label": label, "better": better, "set": group, "format": form}
            for key, label, better, group, form in METRICS
        ],
        "ways": [_system(key, rng) for key in SYSTEMS],
        "detection": {"threshold": 0.62, "sets": sets},
        "tuning": {
            "objective": "distance of ROUGE-L recall to the twin's",
            "parameter": "sigma",
            "evaluations": [
                {"x": x, "objective": abs(1 / (1 + x) - 0.14), "metric": 1 / (1 + x)}
                for x in (1.0, 3.0, 9.0, 12.0, 6.0, 6.4)
            ],
            "chosen": 6.4,
            "target": 0.14,
        },
        "sequential": [
            {
                "requests": k,
                "recall": interval(1.0 - 0.0002 * k, 0.01, 20 * k),
                "false_alarms": interval(0.002 + 0.0001 * k, 0.002, 2000),
                "utility": interval(0.62, 0.01, 400),
                "fit_s": 2 + 0.1 * k,
                "judge_ms": 4 + 0.02 * k,
            }
            for k in (1, 2, 5, 10, 15, 20)
        ],
        "verbatim": {
            "limit": 12,
            "runs": {"unguarded": rng.integers(20, 128, 20).tolist(), "penalize": rng.integers(3, 13, 20).tolist()},
        },
        "attack": {
            name: {
                "recall": interval(1 - 0.003 * index, 0.01, 400),
                "false_alarms": interval(0.001 * index, 0.004, 400),
            }
            for index, name in enumerate(names)
        },
        "examples": [
            {
                "question": "Who wrote the example book?",
                "reference": "The example book was written by an example author.",
                "kind": "forget",
                "answers": {key: f"An answer by {key}. " * (4 if key == "penalize" else 1) for key in SYSTEMS},
            },
            {
                "question": "What does the page do with markup?",
                "reference": None,
                "kind": "retain",
                "answers": {"unguarded": HOSTILE, "both": "x" * 400},
            },
        ],
    }


_SAMPLE = _sample()
