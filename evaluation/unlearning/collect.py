"""Collects what an evaluation computes its metrics from: each system's answers, scores and likelihoods.

Every finished result is a file in the work folder, so that an interrupted run continues where it stopped. Knows the
systems and the data sets; computes no metric of a whole set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lethe.evaluation.unlearning import metrics, systems
from lethe.evaluation.unlearning.client import MAX_TOKENS, ChatClient
from lethe.evaluation.unlearning.datasets import EvaluationDataset, QuestionRow
from lethe.evaluation.unlearning.offline_guard import OfflineGuard, chat_body
from lethe.evaluation.unlearning.result_cache import ResultCache
from lethe.evaluation.unlearning.systems import PRETEND_PROMPT, REFUSAL, System
from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import Policy
from lethe.server.policy_store.load import load_guard, load_judging
from lethe.server.settings import Settings

if TYPE_CHECKING:
    from lethe.evaluation.unlearning.likelihood import LikelihoodModel, TokenScores

# From (questions, seed or None for greedy, label of the progress bar) to answers.
AnswerFunction = Callable[[Sequence[str], int | None, str], list[str]]


@dataclass(frozen=True)
class SamplingPlan:
    """What every system is asked. seeds: one for each sampled answer; leak_seeds: the same for systems that penalize.

    Systems that penalize promise that no secret is told, so more of their answers are sampled. rewordings: how many of
    each forget question are judged by the policy.
    """

    seeds: tuple[int, ...]
    leak_seeds: tuple[int, ...]
    rewordings: int
    max_tokens: int = MAX_TOKENS

    def seeds_for(self, system: System) -> tuple[int, ...]:
        """Return the seeds of a system's sampled answers."""
        return self.leak_seeds if system.changes.get("action") in ("penalize", "both") else self.seeds


class Collector:
    """Answers and scores of each system, read from the work folder or computed."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        dataset: EvaluationDataset,
        plan: SamplingPlan,
        cache: ResultCache,
        *,
        upstream: str,
        model: str,
        twin_dir: Path | None,
        inputs: Any,
    ) -> None:
        """inputs: what all results depend on besides the system (policy, artifact, model), as JSON."""
        self.settings, self.policy, self.dataset, self.plan, self.cache = settings, policy, dataset, plan, cache
        self.upstream, self.model, self.twin_dir = upstream, model, twin_dir
        self.inputs = inputs
        self._offline_guard: tuple[str, OfflineGuard] | None = None

    @cached_property
    def served_model(self) -> LikelihoodModel | None:
        """The served model, loaded offline; None without LETHE_MODEL_DIR."""
        return _likelihood_model(self.settings.model_dir, self.settings.artifacts)

    @cached_property
    def twin(self) -> LikelihoodModel | None:
        """The retain twin; None without --retain-model."""
        return _likelihood_model(self.twin_dir, None)

    @cached_property
    def greedy_sets(self) -> dict[str, list[str]]:
        """Set → questions that every system answers greedily."""
        reworded = [q for row in self.dataset.forget for q in self.dataset.rewordings.get(row.question, ())[:1]]
        sets = {"forget": [row.question for row in self.dataset.forget], "reworded": reworded}
        return sets | {name: [row.question for row in rows] for name, rows in self.dataset.retain_sets.items()}

    # Answers

    def answers(self, system: System) -> dict[str, Any]:
        """Return {"greedy": set → answers, "sampled": seed → answers to the forget questions}."""
        inputs = [self._inputs_of(system), self.greedy_sets, self.plan.max_tokens]
        with contextlib.ExitStack() as stack:
            answer: AnswerFunction | None = None

            def compute(questions: Sequence[str], seed: int | None, label: str) -> list[str]:
                nonlocal answer
                # The system's gateway starts on first use only: most runs find some results in the work folder.
                answer = answer or self._answer_function(system, stack)
                return answer(questions, seed, f"{system.key}: {label}")

            greedy = {
                name: self.cache.get_or_compute(
                    f"{system.key}/greedy-{name}", inputs, partial(compute, questions, None, name)
                )
                for name, questions in self.greedy_sets.items()
            }
            sampled = {
                str(seed): self.cache.get_or_compute(
                    f"{system.key}/sampled-{seed}",
                    inputs,
                    partial(compute, self.greedy_sets["forget"], seed, f"sampled, seed {seed}"),
                )
                for seed in (self.plan.seeds_for(system) if system.kind != "refusal" else ())
            }
        return {"greedy": greedy, "sampled": sampled}

    def _answer_function(self, system: System, stack: contextlib.ExitStack) -> AnswerFunction:
        """Return how the system answers. The servers that it needs run until `stack` is closed."""
        if system.kind == "twin":
            assert self.twin is not None
            twin, max_tokens = self.twin, self.plan.max_tokens
            return lambda questions, seed, label: twin.generate_answers(
                questions, seed=seed, max_tokens=max_tokens, label=label
            )
        if system.kind == "gateway":
            folder = systems.write_policy_folder(self.policy, system, self.cache.folder / "policies" / system.key)
            log = self.cache.folder / "logs" / f"{system.key}.log"
            base_url = stack.enter_context(systems.system_gateway(self.settings, self.upstream, folder, log))
        else:
            base_url = self.upstream
        refuses = self._action(system) == "refuse"
        client = ChatClient(base_url, self.model, max_tokens=self.plan.max_tokens, refusals=refuses)
        if system.kind == "refusal":
            return lambda questions, seed, label: self._refuse_flagged(client, questions, label)
        # Sampled answers are streamed, as a chat client does.
        return lambda questions, seed, label: client.answer_all(
            questions, system=self._system_prompt(system), seed=seed, stream=seed is not None, label=label
        )

    def _refuse_flagged(self, client: ChatClient, questions: Sequence[str], label: str) -> list[str]:
        """Return a fixed refusal for questions that the policy flags, and the model's answer to all others."""
        flags = [not score < self.threshold for score in self.forget_scores(questions, label)]
        unflagged = [question for question, flag in zip(questions, flags, strict=True) if not flag]
        answers = iter(client.answer_all(unflagged, label=label))
        return [REFUSAL if flag else next(answers) for flag in flags]

    # Detection

    @cached_property
    def judging_guard(self) -> Guard:
        """The policy under evaluation, judging in this process."""
        return load_judging(self.settings, self.policy)

    @property
    def threshold(self) -> float:
        """The forget score from which the policy flags."""
        return self.judging_guard.policies[self.policy.name][1]

    def forget_scores(self, questions: Sequence[str], label: str) -> list[float]:
        """Return the forget score of each question as a chat of one message."""
        guard = self.judging_guard
        scores = []
        for question in tqdm(questions, desc=f"judging {label}", unit="question", leave=False, file=sys.stderr):
            verdict = guard.judge(guard.parse("chat", chat_body(question)), guard.policies)
            scores.append(verdict.findings[0].score.score)
        return scores

    def detection_scores(self) -> dict[str, list[float]]:
        """Return set → scores: forget questions, their rewordings, and every set that must not be flagged."""
        dataset = self.dataset
        sets = {"forget": self.greedy_sets["forget"]}
        reworded = [
            q for row in dataset.forget for q in dataset.rewordings.get(row.question, ())[: self.plan.rewordings]
        ]
        sets |= {"reworded": reworded} if reworded else {}
        sets |= {name: [row.question for row in rows] for name, rows in dataset.retain_sets.items()}
        sets |= {name: list(questions) for name, questions in dataset.detection_only.items()}
        return {
            name: self.cache.get_or_compute(
                f"detection/{name}", [self.inputs, questions], partial(self.forget_scores, questions, name)
            )
            for name, questions in sets.items()
        }

    # Scores of fixed answers

    def answer_scores(self, system: System) -> dict[str, Any] | None:
        """Return variant → set → one row of losses per question; None where probabilities don't exist.

        Variants: "prompt" (the prompt as the gateway sends it, and penalties token by token); and for systems that
        corrupt "prompt+answer" (the answer's tokens corrupted too, as ECO's published figures are computed).
        """
        model = self.twin if system.kind == "twin" else self.served_model
        if model is None or system.kind == "refusal" or self._action(system) in ("refuse", "route"):
            return None
        inputs = [self._inputs_of(system), self._fixed_answers_digest]
        sets = {
            name: rows for name, rows in {"forget": self.dataset.forget, **self.dataset.retain_sets}.items() if rows
        }

        def score(name: str, label: str, *, corrupt_answers: bool = False) -> Any:
            return self.cache.get_or_compute(
                f"{system.key}/scores-{label}",
                inputs,
                lambda: self._score_rows(
                    model,
                    self._offline_guard_of(system),
                    sets[name],
                    f"{system.key}: {label}",
                    corrupt_answers=corrupt_answers,
                ),
            )

        variants = {"prompt": {name: score(name, name) for name in sets}}
        if self._action(system) in ("corrupt", "both"):
            variants["prompt+answer"] = {"forget": score("forget", "forget-answers-too", corrupt_answers=True)}
        return variants

    @cached_property
    def _fixed_answers_digest(self) -> str:
        rows = [row for part in (self.dataset.forget, *self.dataset.retain_sets.values()) for row in part]
        texts = [(row.question, row.answer, row.paraphrase, row.wrong) for row in rows]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def _inputs_of(self, system: System) -> Any:
        """Return what a system's results depend on; for systems without the policy, the models only."""
        if system.kind in ("direct", "prompt", "twin"):
            model_dir = str(self.twin_dir if system.kind == "twin" else self.settings.model_dir)
            return [system.key, self.model, model_dir, self.dataset.subjects if system.kind == "prompt" else ()]
        return [system.key, dict(system.changes), self.inputs]

    def _action(self, system: System) -> str | None:
        """Return what the system's gateway does to a flagged request; None for systems without a gateway."""
        return str(systems.policy_variant(self.policy, system)["action"]) if system.kind == "gateway" else None

    def _system_prompt(self, system: System) -> str | None:
        return PRETEND_PROMPT.format(subjects="; ".join(self.dataset.subjects)) if system.kind == "prompt" else None

    def _offline_guard_of(self, system: System) -> OfflineGuard:
        """Return the system's guard in this process. Only the last one stays in memory."""
        if self._offline_guard is None or self._offline_guard[0] != system.key:
            self._offline_guard = (system.key, self._load_offline_guard(system))
        return self._offline_guard[1]

    def _load_offline_guard(self, system: System) -> OfflineGuard:
        import torch

        if system.kind != "gateway":
            return OfflineGuard(None, self._system_prompt(system))
        threads = torch.get_num_threads()
        folder = systems.write_policy_folder(self.policy, system, self.cache.folder / "policies" / system.key)
        changes = {"policies": folder, "secret": systems.secret_or_default(self.settings)}
        settings = Settings.model_validate({**self.settings.model_dump(), **changes})
        guard = load_guard(settings, Metrics())
        # Loading a guard limits torch to one thread, as a gateway needs it; scoring uses all of them.
        torch.set_num_threads(threads)
        return OfflineGuard(guard, None)

    def _score_rows(
        self,
        model: LikelihoodModel,
        offline_guard: OfflineGuard,
        rows: Sequence[QuestionRow],
        label: str,
        *,
        corrupt_answers: bool = False,
    ) -> list[dict[str, Any]]:
        from lethe.evaluation.unlearning.likelihood import ScoringJob

        end_ids = () if model.end_id is None else (model.end_id,)
        jobs: list[ScoringJob] = []
        for row in tqdm(rows, desc=f"{label}: prompts", unit="prompt", leave=False, file=sys.stderr):
            prompt = model.prompt(offline_guard.upstream_body(row.question))
            for text in _fixed_answers(row):
                ids = model.answer_ids(text, end=True)
                embeddings = offline_guard.corrupted_answer(row.question, text, end_ids) if corrupt_answers else None
                jobs.append(ScoringJob(prompt, ids, embeddings))
        scores = iter(model.score(jobs, label=label))
        return [_losses(row, [next(scores) for _ in _fixed_answers(row)]) for row in rows]

    # Likelihood of generated answers

    def answer_losses(self, system: System, answers: Mapping[str, Any]) -> dict[str, list[float]] | None:
        """Return "greedy" and each seed → L of the generated answers to the forget questions.

        L is the loss under the retain twin, or without one under the served model; None without either.
        """
        model = self.twin or self.served_model
        if model is None:
            return None
        texts_by_run = {"greedy": answers["greedy"]["forget"], **answers["sampled"]}
        return {
            run: self.cache.get_or_compute(
                f"{system.key}/likelihood-{run}",
                [str(self.twin_dir or self.settings.model_dir), texts],
                partial(self._losses_under, model, texts, f"{system.key}: {run}"),
            )
            for run, texts in texts_by_run.items()
        }

    def _losses_under(self, model: LikelihoodModel, texts: Sequence[str], label: str) -> list[float]:
        from lethe.evaluation.unlearning.likelihood import ScoringJob

        prompts = [model.prompt(chat_body(question)) for question in self.greedy_sets["forget"]]
        # An empty answer is scored by its end-of-turn token.
        ids = [model.answer_ids(text, end=not text) for text in texts]
        jobs = [ScoringJob(prompt, tokens) for prompt, tokens in zip(prompts, ids, strict=True)]
        return [scores.loss for scores in model.score(jobs, label=f"likelihood of {label}")]


def _fixed_answers(row: QuestionRow) -> list[str]:
    return [row.answer, *([row.paraphrase] if row.paraphrase else []), *row.wrong]


def _losses(row: QuestionRow, scores: list[TokenScores]) -> dict[str, Any]:
    # The end-of-turn token after the answer doesn't count as memorised.
    hits = scores[0].hits[:-1].tolist() or scores[0].hits.tolist()
    first_wrong = 2 if row.paraphrase else 1
    return {
        "answer": scores[0].loss,
        "right": scores[first_wrong - 1].loss,
        "wrong": [s.loss for s in scores[first_wrong:]],
        "exact": metrics.exact_memorisation(hits),
        "extraction": metrics.extraction_strength(hits),
    }


def _likelihood_model(model_dir: Path | None, verbatim: Path | None) -> LikelihoodModel | None:
    if model_dir is None:
        return None
    from lethe.evaluation.unlearning.likelihood import LikelihoodModel

    return LikelihoodModel(model_dir, verbatim=verbatim)
