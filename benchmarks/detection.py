"""How many prompts does the demo's detector flag, and how many by mistake, at several miss rates?

    python -m benchmarks.detection [--json FILE]

Every prompt is judged alone, as by `lethe judge`; no model generates anything. Sets of prompts: the forget questions
and their paraphrases (TOFU's, not used in the fit), which must be flagged; the retain questions of the fit, and real
authors, world facts and the general prompts of `benchmarks/data`, which no fit has seen, must not. `--unmet` makes a
second fit without some of the retain questions and judges those.

Columns: the set and its number of prompts; for each miss rate, the number of flagged prompts and the 95 % interval of
their share (Wilson).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.judging import demo_artifact, ordinary_prompts
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.judge import Judge, threshold
from lethe.classifier.training.fit import fit
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.confidence import estimate_share

MISS_RATES = (0.0025, 0.005, 0.0125)


def prompt_sets() -> dict[str, list[str]]:
    """Return set → its prompts. Only the first two must be flagged."""
    taught, untaught = tofu.retain_facts()
    return {
        "forget": [fact.question for fact in tofu.forget_facts()],
        "in other words": [text for texts in tofu.paraphrased_questions().values() for text in texts],
        "retain": [fact.question for fact in taught + untaught],
        "real authors, world facts": [fact.question for fact in tofu.real_world_facts()],
        "general": ordinary_prompts(),
    }


def fit_without_some_retain_rows(encoder: Encoder) -> tuple[Artifact, list[str]]:
    """Return a fit with the taught retain questions only, and the other retain questions."""
    taught, untaught = tofu.retain_facts()
    forget, retain = (
        [{"prompt": fact.question, "answer": fact.answer} for fact in facts] for facts in (tofu.forget_facts(), taught)
    )
    return fit(forget, retain, encoder=encoder), [fact.question for fact in untaught]


def count_flagged(artifact: Artifact, sets: Mapping[str, Sequence[str]], encoder: Encoder) -> dict[str, dict[str, Any]]:
    """Return set → its number of prompts, and how many of them are flagged at each miss rate."""
    judge = Judge({"": artifact}, encoder)
    levels = {rate: threshold(artifact, miss_rate=rate) for rate in MISS_RATES}
    figures = {}
    for name, texts in sets.items():
        scores = [judge.judge([text])[""].score for text in tqdm(texts, desc=name, unit="prompt", mininterval=5)]
        counts = {rate: sum(not score < level for score in scores) for rate, level in levels.items()}
        figures[name] = {
            "prompts": len(texts),
            "flagged": {
                str(rate): {"count": n, **estimate_share(n, len(texts)).as_dict()} for rate, n in counts.items()
            },
        }
    return figures


def format_flagged_table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table described in the module docstring."""
    lines = [f"{'set':<28}{'prompts':>7}" + "".join(f"{f'flagged at {rate}':>30}" for rate in MISS_RATES)]
    for name, row in figures.items():
        cells = [f"{n['count']}  [{100 * n['low']:.2f} %, {100 * n['high']:.2f} %]" for n in row["flagged"].values()]
        lines.append(f"{name:<28}{row['prompts']:>7}" + "".join(f"{cell:>30}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thin", type=int, default=1, metavar="N", help="every Nth prompt of each set (default: all)")
    parser.add_argument("--unmet", action="store_true", help="also judge with a fit that lacks some retain questions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    encoder = load_encoder()
    figures = count_flagged(
        demo_artifact(), {name: texts[:: args.thin] for name, texts in prompt_sets().items()}, encoder
    )
    if args.unmet:
        other, unseen = fit_without_some_retain_rows(encoder)
        figures |= count_flagged(other, {"retain, not in the fit": unseen[:: args.thin]}, encoder)
    print(format_flagged_table(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
