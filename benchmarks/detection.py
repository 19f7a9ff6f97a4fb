"""What the demo's detector flags, and what it flags by mistake, at several miss rates.

    python -m benchmarks.detection [--json FILE]

The demo's artifact; every question is judged alone, as `lethe judge` judges it. No model answers. Sets: the forget
questions; the same in other words (TOFU's paraphrases, none used in fitting); the retain questions that the fit knows;
real authors and world facts, and the general prompts of `benchmarks/data`, which no fit has met. `--unmet` makes a
second fit, on the retain questions that the demo's model was taught, and judges those that it wasn't.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.judging import artifact, benign
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder, load_encoder
from lethe.classifier.judge import Judge, threshold
from lethe.classifier.training.fit import fit
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.confidence import share

MISS_RATES = (0.0025, 0.005, 0.0125)


def sets() -> dict[str, list[str]]:
    """Set → its prompts. Only the first two must be flagged."""
    taught, untaught = tofu.retain_facts()
    return {
        "forget": [fact.question for fact in tofu.forget_facts()],
        "in other words": [text for texts in tofu.paraphrases().values() for text in texts],
        "retain": [fact.question for fact in taught + untaught],
        "real authors, world facts": [fact.question for fact in tofu.real_world_facts()],
        "general": benign(),
    }


def unmet(encoder: Encoder) -> tuple[Artifact, list[str]]:
    """A fit on the taught retain questions only, and the questions that it hasn't met."""
    taught, untaught = tofu.retain_facts()
    forget, retain = (
        [{"prompt": fact.question, "answer": fact.answer} for fact in facts] for facts in (tofu.forget_facts(), taught)
    )
    return fit(forget, retain, encoder=encoder), [fact.question for fact in untaught]


def flagged(found: Artifact, asked: Mapping[str, Sequence[str]], encoder: Encoder) -> dict[str, dict[str, Any]]:
    """Set → how many prompts, and miss rate → the share that is flagged."""
    judge = Judge({"": found}, encoder)
    levels = {rate: threshold(found, miss_rate=rate) for rate in MISS_RATES}
    made = {}
    for name, texts in asked.items():
        scores = [judge.judge([text])[""].score for text in tqdm(texts, desc=name, unit="prompt", mininterval=5)]
        counts = {rate: sum(not score < level for score in scores) for rate, level in levels.items()}
        made[name] = {
            "prompts": len(texts),
            "flagged": {str(rate): {"count": n, **share(n, len(texts)).as_dict()} for rate, n in counts.items()},
        }
    return made


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Sets down, miss rates across: how many are flagged, and the 95 % interval of the share."""
    lines = [f"{'flagged':<28}{'of':>7}" + "".join(f"{f'miss_rate {rate}':>30}" for rate in MISS_RATES)]
    for name, row in found.items():
        cells = [f"{n['count']}  [{100 * n['low']:.2f} %, {100 * n['high']:.2f} %]" for n in row["flagged"].values()]
        lines.append(f"{name:<28}{row['prompts']:>7}" + "".join(f"{cell:>30}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thin", type=int, default=1, metavar="N", help="every Nth prompt of each set (default: all)")
    parser.add_argument("--unmet", action="store_true", help="also a fit that knows less of what is retained")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    encoder = load_encoder()
    found = flagged(artifact(), {name: texts[:: args.thin] for name, texts in sets().items()}, encoder)
    if args.unmet:
        other, asked = unmet(encoder)
        found |= flagged(other, {"retain, unmet by the fit": asked[:: args.thin]}, encoder)
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
