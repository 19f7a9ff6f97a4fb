"""How well do forget requests of all kinds and sizes work with default settings?

    python -m benchmarks.requests [--half development|held_back] [--sizes 1 3 10 50] [--only ID …] [--json FILE]

Each file of `evaluation/data/requests` is a forget request that was written by hand, with prompts about its subject
that must be flagged and prompts that must pass (see the README there). For each size, an artifact is fitted to the
first rows, and every prompt is judged alone at the default threshold. No retain file is used. `half`: settings were
chosen with the first half; the other half is only measured.

Beside Lethe stand three baselines on the same prompts: a plain match of the names in the rows; the cosine to the
nearest row, at the threshold that flags as many of the prompts that must pass as Lethe does; and either of both.
Columns: flagged prompts and their 95 % interval (Wilson), by size, kind and family of prompts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.judging import ordinary_prompts
from lethe.classifier import conformal
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.judge import Judge, default_threshold
from lethe.classifier.text.windows import text_chunks
from lethe.classifier.training.fit import fit
from lethe.classifier.training.names import names_in

FOLDER = Path(__file__).parents[1] / "evaluation/data/requests"
HALVES = ("development", "held_back")
SIZES = (1, 3, 10, 50)

Result = dict[str, Any]


def read_requests(half: str) -> list[dict[str, Any]]:
    """The requests of one half."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((FOLDER / half).glob("*.json"))]


def hash_of(half: str) -> str:
    """SHA-256 of all files of one half: a report names it, so that nobody changes them unseen."""
    files = sorted((FOLDER / half).glob("*.json"))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def measure_request(request: Mapping[str, Any], size: int, encoder: Encoder, general: Sequence[str]) -> list[Result]:
    """One result for each prompt: what it is, and what Lethe and the baselines say."""
    rows = request["rows"][:size]
    given = {"scope": request["scope"]} if request["scope"] != "subject" else {}
    artifact = fit([{**row, **given} for row in rows], None, encoder=encoder)
    judge, level = Judge({"": artifact}, encoder), default_threshold(artifact)
    names = {name.casefold() for row in rows for text in map(str, row.values()) for name in names_in(text)}
    texts = [row.get("prompt") or row["text"] for row in rows]
    vectors = encoder.encode([chunk for text in texts for chunk in text_chunks(text, encoder)])
    prompts = [(p, True) for p in request["flag"]] + [(p, False) for p in request["pass"]]
    prompts += [({"text": text, "family": "general prompts"}, False) for text in general]
    results = []
    for prompt, must_flag in prompts:
        score = judge.judge([prompt["text"]])[""]
        results.append({
            "id": request["id"], "kind": request["kind"], "language": request["language"], "scope": request["scope"],
            "size": size, "text": prompt["text"], "family": prompt["family"], "named": prompt.get("named", False),
            "must_flag": must_flag, "flagged": not score.score < level, "score": score.score,
            "decided_by": score.decided_by,
            "name_match": any(name in prompt["text"].casefold() for name in names),
            "cosine": _highest_cosine(prompt["text"], vectors, encoder),
        })  # fmt: skip
    return results


def _highest_cosine(text: str, vectors: NDArray[np.float32], encoder: Encoder) -> float:
    return float((vectors @ encoder.encode_cached(text_chunks(text, encoder)).T).max())


def add_baselines(results: Sequence[Result]) -> None:
    """Add what the cosine says, at Lethe's number of false alarms among all results of one size."""
    passing = [r for r in results if not r["must_flag"]]
    alarms = sum(r["flagged"] for r in passing)
    ranked = sorted((r["cosine"] for r in passing), reverse=True)
    level = np.nextafter(ranked[alarms], 2) if alarms < len(ranked) else -1.0
    for result in results:
        result["cosine_match"] = result["cosine"] >= level
        result["either"] = result["cosine_match"] or result["name_match"]


def table(results: Iterable[Result], keys: Sequence[str]) -> list[str]:
    """Lines of text: for each group, recall and false alarms of Lethe and of the baselines."""
    groups: defaultdict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for result in results:
        groups[tuple(result[key] for key in (*keys, "must_flag"))].append(result)
    lines = []
    for group, members in sorted(groups.items(), key=lambda pair: str(pair[0])):
        count = len(members)
        hits = {c: sum(m[c] for m in members) for c in ("flagged", "name_match", "cosine_match", "either")}
        low, high = conformal.wilson_interval(hits["flagged"], count)
        name = " · ".join(map(str, group[:-1]))
        what = "must flag" if group[-1] else "must pass"
        share = f"{hits['flagged'] / count:6.1%}, {low:.1%} to {high:.1%}"
        lines.append(
            f"{name:44} {what}  {hits['flagged']:5} of {count:5} ({share})"
            f"   names {hits['name_match'] / count:6.1%}  cosine {hits['cosine_match'] / count:6.1%}"
            f"  either {hits['either'] / count:6.1%}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=HALVES, default="development", help="which half (default: development)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of rows (default: 1 3 10 50)")
    parser.add_argument("--only", nargs="+", metavar="ID", help="only these requests")
    parser.add_argument("--general", type=int, default=300, help="general prompts for each request and size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every prompt's result to this file")
    args = parser.parse_args()
    encoder, results = load_encoder(), []
    general = ordinary_prompts()[:: max(len(ordinary_prompts()) // max(args.general, 1), 1)][: args.general]
    for request in read_requests(args.half):
        if args.only and request["id"] not in args.only:
            continue
        for size in args.sizes:
            if size == SIZES[0] or size <= len(request["rows"]) or (size == 10 and len(request["rows"]) > 3):
                results += measure_request(request, size, encoder, general)
                sys.stderr.write(f"{request['id']}: {size} rows\n")
    for size in args.sizes:
        add_baselines([r for r in results if r["size"] == size])
    print(f"{args.half}, SHA-256 of the files {hash_of(args.half)}")
    named = [{**r, "named": "named" if r["named"] else "not named"} for r in results if r["must_flag"]]
    for keys in (["size"], ["size", "family"], ["kind"], ["id", "size"]):
        print(f"\nby {' and '.join(keys)}", *table(results, keys), sep="\n")
    print("\nby naming", *table(named, ["size", "named"]), sep="\n")
    if args.json:
        args.json.write_text(json.dumps(results, ensure_ascii=False, indent=1, default=bool), encoding="utf-8")


if __name__ == "__main__":
    main()
