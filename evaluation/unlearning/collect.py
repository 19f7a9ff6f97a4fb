"""What each way answers, and how probable it finds fixed answers: the raw material of an evaluation.

Every finished piece is a file in the work folder, so that a run that broke off goes on where it was. Knows the
ways and the suites; computes no metric.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from tqdm import tqdm

from lethe.classifier.attribution import evidence
from lethe.corruption.prompt.token_spans import TokenSpan
from lethe.evaluation.unlearning import metrics, systems
from lethe.evaluation.unlearning.client import MAX_TOKENS, ChatClient
from lethe.evaluation.unlearning.datasets import Row, Suite
from lethe.evaluation.unlearning.systems import PRETEND, REFUSAL, Way
from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy
from lethe.server.policy_store.load import load_guard, load_judging
from lethe.server.settings import Settings

if TYPE_CHECKING:
    from lethe.evaluation.unlearning.likelihood import Job, Prompt, Scorer, Scores

Body = dict[str, Any]


class Work:
    """A folder of finished pieces, each a JSON file that appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def piece(self, name: str, made_of: Any, make: Callable[[], Any]) -> Any:
        """The piece as it was made before, if it was made of the same; else made now. made_of: anything JSON."""
        stamp = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{name}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept.get("made_of") == stamp:
                return kept["piece"]
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"made_of": stamp, "piece": made}, ensure_ascii=False), encoding="utf-8")
        os.replace(part, path)
        # Through JSON as well, so that a run that goes on sees what the first one saw.
        return json.loads(json.dumps(made))


@dataclass(frozen=True)
class Plan:
    """What is asked of every way. seeds: sampled runs; leak_seeds: those of ways that promise to keep secrets."""

    seeds: tuple[int, ...]
    leak_seeds: tuple[int, ...]
    rewordings: int
    max_tokens: int = MAX_TOKENS

    def seeds_of(self, way: Way) -> tuple[int, ...]:
        return self.leak_seeds if way.changes.get("action") in ("penalize", "both") else self.seeds


class Gatherer:
    """Answers and scores of each way, from the work folder or made now."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        suite: Suite,
        plan: Plan,
        work: Work,
        *,
        upstream: str,
        model: str,
        twin: Path | None,
        stamp: Any,
    ) -> None:
        """stamp: what the pieces depend on besides the way (policy, artifact, model), as JSON."""
        self.settings, self.policy, self.suite, self.plan, self.work = settings, policy, suite, plan, work
        self.upstream, self.model, self.twin_dir = upstream, model, twin
        self.stamp = stamp
        self._played: tuple[str, Play] | None = None

    @cached_property
    def full(self) -> Scorer | None:
        """The served model, offline; None without LETHE_MODEL_DIR."""
        return _scorer(self.settings.model_dir, self.settings.artifacts)

    @cached_property
    def twin(self) -> Scorer | None:
        return _scorer(self.twin_dir, None)

    @cached_property
    def sets(self) -> dict[str, list[str]]:
        """Set → questions that every way is asked greedily."""
        reworded = [q for row in self.suite.forget for q in self.suite.rewordings.get(row.question, ())[:1]]
        sets = {"forget": [row.question for row in self.suite.forget], "reworded": reworded}
        return sets | {name: [row.question for row in rows] for name, rows in self.suite.others.items()}

    # Answers

    def answers(self, way: Way) -> dict[str, Any]:
        """{"greedy": set → answers, "sampled": seed → answers to the forget questions}."""
        made_of = [self._made_of(way), self.sets, self.plan.max_tokens]
        greedy: dict[str, list[str]] = {}
        sampled: dict[str, list[str]] = {}
        with contextlib.ExitStack() as stack:
            ask = None
            for name, questions in self.sets.items():

                def make(questions: list[str] = questions, name: str = name) -> list[str]:
                    nonlocal ask
                    ask = ask or self._asking(way, stack)
                    return ask(questions, None, f"{way.key}: {name}")

                greedy[name] = self.work.piece(f"{way.key}/greedy-{name}", made_of, make)
            for seed in self.plan.seeds_of(way) if way.kind != "refusal" else ():

                def draw(seed: int = seed) -> list[str]:
                    nonlocal ask
                    ask = ask or self._asking(way, stack)
                    return ask(self.sets["forget"], seed, f"{way.key}: sampled, seed {seed}")

                sampled[str(seed)] = self.work.piece(f"{way.key}/sampled-{seed}", made_of, draw)
        return {"greedy": greedy, "sampled": sampled}

    def _asking(self, way: Way, stack: contextlib.ExitStack) -> Callable[[Sequence[str], int | None, str], list[str]]:
        """A function from (questions, seed, label) to answers; servers it needs run until the stack is left."""
        if way.kind == "twin":
            assert self.twin is not None
            twin, tokens = self.twin, self.plan.max_tokens
            return lambda questions, seed, label: twin.answers(questions, seed=seed, max_tokens=tokens, label=label)
        if way.kind == "gateway":
            folder = systems.write(self.policy, way, self.work.folder / "policies" / way.key)
            log = self.work.folder / "logs" / f"{way.key}.log"
            base = stack.enter_context(systems.gateway(self.settings, self.upstream, folder, log))
        else:
            base = self.upstream
        refusing = self._action(way) == "refuse"
        asker = ChatClient(base, self.model, max_tokens=self.plan.max_tokens, refusals=refusing)
        if way.kind == "refusal":
            return lambda questions, seed, label: self._refused(asker, questions, label)
        system = PRETEND.format(subjects="; ".join(self.suite.subjects)) if way.kind == "prompt" else None
        # Samples come as streams, as a chat client takes them.
        return lambda questions, seed, label: asker.answer_all(
            questions, system=system, seed=seed, stream=seed is not None, label=label
        )

    def _refused(self, asker: ChatClient, questions: Sequence[str], label: str) -> list[str]:
        """A refusal where the policy flags, the model's own answer elsewhere."""
        flags = [not score < self.threshold for score in self.judged(questions, label)]
        own = iter(asker.answer_all([q for q, flag in zip(questions, flags, strict=True) if not flag], label=label))
        return [REFUSAL if flag else next(own) for flag in flags]

    # Judging

    @cached_property
    def guard(self) -> Guard:
        """The policy as it stands, judging in this process."""
        return load_judging(self.settings, self.policy)

    @property
    def threshold(self) -> float:
        return self.guard.policies[self.policy.name][1]

    def judged(self, questions: Sequence[str], label: str) -> list[float]:
        """The forget score of each question as a chat of one message."""
        scores = []
        for question in tqdm(questions, desc=f"judging {label}", unit="question", leave=False, file=sys.stderr):
            judged = self.guard.read("chat", _chat(question))
            scores.append(self.guard.find(judged, self.guard.policies).findings[0].score.score)
        return scores

    def detection(self) -> dict[str, list[float]]:
        """Set → scores: forget questions, rewordings, and everything that must not be flagged."""
        sets = {"forget": self.sets["forget"]}
        reworded = [
            q for row in self.suite.forget for q in self.suite.rewordings.get(row.question, ())[: self.plan.rewordings]
        ]
        sets |= {"reworded": reworded} if reworded else {}
        sets |= {name: [row.question for row in rows] for name, rows in self.suite.others.items()}
        sets |= {name: list(questions) for name, questions in self.suite.unheard.items()}
        return {
            name: self.work.piece(f"detection/{name}", [self.stamp, asked], partial(self.judged, asked, name))
            for name, asked in sets.items()
        }

    # Scores of fixed answers

    def scores(self, way: Way) -> dict[str, Any] | None:
        """Variant → set → one row of losses a question; None where probabilities can't be known.

        Variants: "prompt" (the prompt as the gateway sends it, penalties token by token), and for ways that corrupt
        "prompt+answer" (the answer's tokens corrupted too, as ECO's published figures are scored).
        """
        scorer = self.twin if way.kind == "twin" else self.full
        if scorer is None or way.kind == "refusal" or self._action(way) in ("refuse", "route"):
            return None
        rows = {"forget": self.suite.forget, **self.suite.others}
        made_of = [self._made_of(way), self._fixed]
        sets = {name: part for name, part in rows.items() if part}

        def make(name: str, label: str, *, answers: bool = False) -> Any:
            return self.work.piece(
                f"{way.key}/scores-{label}",
                made_of,
                lambda: self._score(scorer, self._play(way), sets[name], f"{way.key}: {label}", answers=answers),
            )

        variants = {"prompt": {name: make(name, name) for name in sets}}
        if self._action(way) in ("corrupt", "both"):
            variants["prompt+answer"] = {"forget": make("forget", "forget-answers-too", answers=True)}
        return variants

    @cached_property
    def _fixed(self) -> str:
        texts = [(r.question, r.answer, r.paraphrase, r.wrong) for r in self.suite.forget]
        texts += [(r.question, r.answer, r.paraphrase, r.wrong) for rows in self.suite.others.values() for r in rows]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def _made_of(self, way: Way) -> Any:
        """What a way's pieces depend on: of those that no policy has a part in, the models only."""
        if way.kind in ("direct", "prompt", "twin"):
            model = str(self.twin_dir if way.kind == "twin" else self.settings.model_dir)
            return [way.key, self.model, model, self.suite.subjects if way.kind == "prompt" else ()]
        return [way.key, dict(way.changes), self.stamp]

    def _action(self, way: Way) -> str | None:
        """What the way's gateway does to a flagged request; None where there is no gateway."""
        return str(systems.variant(self.policy, way)["action"]) if way.kind == "gateway" else None

    def _play(self, way: Way) -> Play:
        """The way's guard in this process; the last one is kept."""
        if self._played is None or self._played[0] != way.key:
            self._played = (way.key, self._make_play(way))
        return self._played[1]

    def _make_play(self, way: Way) -> Play:
        import torch

        threads = torch.get_num_threads()
        system = PRETEND.format(subjects="; ".join(self.suite.subjects)) if way.kind == "prompt" else None
        if way.kind != "gateway":
            return Play(None, system)
        folder = systems.write(self.policy, way, self.work.folder / "policies" / way.key)
        changed = {"policies": folder, "secret": systems.secret(self.settings)}
        settings = Settings.model_validate({**self.settings.model_dump(), **changed})
        guard = load_guard(settings, Metrics())
        # The gateway's own process probes it against the server; here the folder is the model.
        guard.parity = True
        torch.set_num_threads(threads)  # a gateway takes one
        return Play(guard, system)

    def _score(
        self, scorer: Scorer, play: Play, rows: Sequence[Row], label: str, *, answers: bool = False
    ) -> list[dict[str, Any]]:
        from lethe.evaluation.unlearning.likelihood import Job

        jobs: list[Job] = []
        for row in tqdm(rows, desc=f"{label}: prompts", unit="prompt", leave=False, file=sys.stderr):
            prompt = scorer.prompt(play.body(row.question))
            for text in _fixed_answers(row):
                ids = scorer.answer_ids(text, end=True)
                changed = play.answer_rows(row.question, text, scorer) if answers else None
                jobs.append(Job(prompt, ids, changed))
        found = iter(scorer.score(jobs, label=label))
        return [_losses(row, [next(found) for _ in _fixed_answers(row)]) for row in rows]

    # Likelihood of generated answers

    def likelihood(self, way: Way, answers: Mapping[str, Any]) -> dict[str, list[float]] | None:
        """ "greedy" and each seed → L of the generated answers to the forget questions, under the judge of fluency."""
        judge = self.twin or self.full
        if judge is None:
            return None
        texts = {"greedy": answers["greedy"]["forget"], **answers["sampled"]}
        return {
            run: self.work.piece(
                f"{way.key}/likelihood-{run}",
                [str(self.twin_dir or self.settings.model_dir), made],
                partial(self._likely, judge, made, f"{way.key}: {run}"),
            )
            for run, made in texts.items()
        }

    def _likely(self, judge: Scorer, texts: Sequence[str], label: str) -> list[float]:
        from lethe.evaluation.unlearning.likelihood import Job

        prompts: list[Prompt] = [judge.prompt(_chat(question)) for question in self.sets["forget"]]
        # An answer that ends at once is as likely as its end.
        ids = [judge.answer_ids(text, end=not text) for text in texts]
        jobs = [Job(prompt, tokens) for prompt, tokens in zip(prompts, ids, strict=True)]
        return [scores.loss for scores in judge.score(jobs, label=f"likelihood of {label}")]


@dataclass(frozen=True)
class Play:
    """A guard in this process: what it would send upstream for a question. Without a guard, the question."""

    guard: Guard | None
    system: str | None

    def body(self, question: str) -> Body:
        """The body that goes upstream. Raises ValueError where the guard refuses."""
        body = _chat(question, self.system)
        if self.guard is None:
            return body
        outcome = self.guard.examine(self.guard.read("chat", body))
        if outcome.refusal is not None:
            raise ValueError(f"the guard refuses a question that is to be scored: {outcome.note}")
        return body if outcome.payload is None else dict(orjson.loads(outcome.payload))

    def answer_rows(self, question: str, answer: str, scorer: Scorer) -> Any:
        """(T, D) embeddings of the answer, corrupted as the policy corrupts the question; None if it doesn't.

        As published for ECO (arXiv:2406.07933): tokens are chosen over question and answer together, the
        classifier sees the question only. The end of the answer keeps its own row.
        """
        import torch

        guard = self.guard
        assert guard is not None and guard.corruptor is not None
        verdict = guard.find(guard.read("chat", _chat(question)), guard.policies)
        if verdict.action not in ("corrupt", "both"):
            return None
        policy = verdict.by[0].policy
        artifact, text = guard.artifacts[policy.artifact], guard.corruptor.prompt_tokenizer
        before, after = (text.completion(t, add_special_tokens=False)[0] for t in (question, answer))
        shift = len(question) + 1
        span = TokenSpan(
            before.ids + after.ids,
            before.offsets + tuple((a + shift, b + shift) for a, b in after.offsets),
            final=True,
        )
        marked = []
        if policy.corrupt.uses_evidence:
            marked = [*evidence(artifact, question)]
            marked += [(a + shift, b + shift) for a, b in evidence(artifact, answer)]
        rows = guard.corruptor.rows(span, 0, marked, policy.corrupt, policy.name)[len(before.ids) :]
        end = guard.corruptor.table.rows([] if scorer.end is None else [scorer.end])
        return torch.from_numpy(np.concatenate([rows, end]).astype(np.float32))


def _chat(question: str, system: str | None = None) -> Body:
    messages = [{"role": "user", "content": question}]
    return {"model": "", "messages": ([{"role": "system", "content": system}] if system else []) + messages}


def _fixed_answers(row: Row) -> list[str]:
    return [row.answer, *([row.paraphrase] if row.paraphrase else []), *row.wrong]


def _losses(row: Row, scores: list[Scores]) -> dict[str, Any]:
    # The end of the answer is no part of what was memorised.
    hits = scores[0].hits[:-1].tolist() or scores[0].hits.tolist()
    first = 2 if row.paraphrase else 1
    return {
        "answer": scores[0].loss,
        "right": scores[first - 1].loss,
        "wrong": [s.loss for s in scores[first:]],
        "exact": metrics.exact_memorisation(hits),
        "extraction": metrics.extraction_strength(hits),
    }


def _scorer(folder: Path | None, verbatim: Path | None) -> Scorer | None:
    if folder is None:
        return None
    from lethe.evaluation.unlearning.likelihood import Scorer

    return Scorer(folder, verbatim=verbatim)
