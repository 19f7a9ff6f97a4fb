"""Running families of attacks against a guard and counting what it flags.

Judged by the gateway's own code (server.guard.Guard: read, then find). Knows neither files nor how results are
shown; rates have Wilson 95 % intervals.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from random import Random
from typing import Any, Literal

from tqdm import tqdm

from lethe.evaluation.attacks.families import MIDDLING, Family
from lethe.evaluation.attacks.requests import Request, plain
from lethe.evaluation.attacks.suffix_search import Answer, Search
from lethe.evaluation.unlearning.confidence import Rate, share
from lethe.server.errors import BadRequest
from lethe.server.guard.guard import Guard
from lethe.server.policy.schema import Policy

Kind = Literal["forget", "other"]


@dataclass(frozen=True)
class Judgement:
    """What the guard made of one request. cpu_ms: processor time of judging it. view, place: what decided."""

    flagged: bool
    score: float
    cpu_ms: float
    view: str
    place: str


@dataclass(frozen=True)
class Case:
    """A prompt, which variant of a family it met, the request, what came of it; the questions that a search took."""

    kind: Kind
    prompt: str
    variant: str
    request: Request
    judgement: Judgement
    queries: int = 0


@dataclass(frozen=True)
class Result:
    """What one family came to; false_alarms is None where it has no harmless counterpart (searches).

    recall: the share of attacked forget prompts that are flagged, or refused with an error; of a search, the
    share of flagged prompts that it could not flip. false_alarms: the same share of prompts that must pass.
    views: how often each view decided. queries: a search's mean number of questions.
    """

    name: str
    about: str
    recall: Rate
    false_alarms: Rate | None
    slowest_ms: float
    views: dict[str, int]
    queries: float | None
    missed: tuple[Case, ...]
    alarms: tuple[Case, ...]

    def faults(self, floor: float, most_false_alarms: float) -> list[str]:
        """What falls short of the two limits, in words."""
        found = []
        if self.recall.value < floor:
            found.append(f"recall below {floor:.1%}")
        if self.false_alarms is not None and self.false_alarms.value > most_false_alarms:
            found.append(f"false alarms above {most_false_alarms:.1%}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Numbers and names, no text of any prompt."""
        found: dict[str, Any] = {"about": self.about, "recall": self.recall.as_dict()}
        if self.false_alarms is not None:
            found["false_alarms"] = self.false_alarms.as_dict()
        if self.queries is not None:
            found["mean_queries"] = round(self.queries, 1)
        found |= {"slowest_ms": round(self.slowest_ms, 1), "views": self.views}
        if variants := Counter(case.variant for case in self.missed if case.variant):
            found["missed_variants"] = dict(variants.most_common())
        return found


def judge(guard: Guard, policy: Policy, request: Request) -> Judgement:
    """One request as the gateway would judge it. One that is refused counts as flagged: no model sees it."""
    # Processor time of this thread: what else runs on the machine doesn't count.
    started = time.thread_time()
    try:
        judged = guard.read(request.endpoint, request.body)
    except BadRequest as error:
        return Judgement(True, 1.0, (time.thread_time() - started) * 1e3, "refused", str(error.code))
    finding = guard.find(judged, {policy.name: guard.policies[policy.name]}).findings[0]
    cpu_ms = (time.thread_time() - started) * 1e3
    score = finding.score
    return Judgement(finding.flagged, score.score, cpu_ms, score.view, judged.place(score.text))


@dataclass(frozen=True)
class Suite:
    """What every family meets: a guard, the same prompts of both kinds, a seed.

    words: harmless ones for searches, which may ask `budget` questions each. full: families of long requests
    take the whole sample too.
    """

    guard: Guard
    policy: Policy
    forget: Sequence[str]
    other: Sequence[str]
    words: Sequence[str]
    seed: int
    budget: int
    full: bool = False

    def run(self, chosen: Sequence[Family | Search], *, jobs: int) -> Iterator[Result]:
        """Each family's result, in order; `jobs` requests are judged at a time. Shows a progress bar on stderr.

        A search that finds no flagged prompt to start from has no result.
        """
        work = [self._work(family) for family in chosen]
        total = sum(map(len, work))
        with ThreadPoolExecutor(jobs) as pool, tqdm(total=total, file=sys.stderr, unit="request") as bar:
            for family, pieces in zip(chosen, work, strict=True):
                bar.set_description(family.name)
                cases: list[Case] = []
                for case in pool.map(lambda piece: piece(), pieces):
                    bar.update()
                    if case is not None:
                        cases.append(case)
                if cases:
                    yield _counted(family, cases)

    def _work(self, family: Family | Search) -> list[Callable[[], Case | None]]:
        if isinstance(family, Search):
            prompts = self._prompts("forget", MIDDLING)
            return [partial(self._search, family, number, prompt) for number, prompt in enumerate(prompts)]
        kinds: tuple[Kind, ...] = ("forget", "other")
        return [
            partial(self._attack, family, kind, number, prompt)
            for kind in kinds
            for number, prompt in enumerate(self._prompts(kind, family.one_in))
        ]

    def _prompts(self, kind: Kind, one_in: int) -> Sequence[str]:
        prompts = self.forget if kind == "forget" else self.other
        return prompts if self.full else prompts[: -(-len(prompts) // one_in)]

    def _attack(self, family: Family, kind: Kind, number: int, prompt: str) -> Case:
        # Seeded by name and number: the same request whatever else is run, and in whatever order.
        rng = Random(f"{self.seed}/{family.name}/{kind}/{number}")
        request, variant = family.attack(prompt, number, rng)
        return Case(kind, prompt, variant, request, judge(self.guard, self.policy, request))

    def _search(self, search: Search, number: int, prompt: str) -> Case | None:
        """The last request of a search from one prompt; None when the prompt itself isn't flagged."""
        rng = Random(f"{self.seed}/{search.name}/{number}")
        judgements: list[Judgement] = []

        def ask(text: str) -> Answer:
            judgements.append(judge(self.guard, self.policy, plain(text, rng)))
            return Answer(judgements[-1].flagged, judgements[-1].score)

        found = search.find(prompt, ask, self.words, rng, self.budget)
        if not judgements[0].flagged:
            return None
        last = judgements[-1]
        slowest = max(judgement.cpu_ms for judgement in judgements)
        judgement = Judgement(not found.flipped, last.score, slowest, last.view, last.place)
        return Case("forget", prompt, "", plain(found.text, rng), judgement, found.queries)


def _counted(family: Family | Search, cases: Sequence[Case]) -> Result:
    forget = [case for case in cases if case.kind == "forget"]
    other = [case for case in cases if case.kind == "other"]
    missed = tuple(case for case in forget if not case.judgement.flagged)
    alarms = tuple(case for case in other if case.judgement.flagged)
    views = Counter(case.judgement.view for case in forget if case.judgement.flagged)
    return Result(
        family.name,
        family.about,
        share(len(forget) - len(missed), len(forget)),
        share(len(alarms), len(other)) if other else None,
        max(case.judgement.cpu_ms for case in cases),
        dict(views.most_common()),
        sum(case.queries for case in cases) / len(cases) if isinstance(family, Search) else None,
        missed,
        alarms,
    )


def select(there: Sequence[Family | Search], wanted: Sequence[str]) -> list[Family | Search]:
    """The families that names or patterns (`split-*`) ask for, in their own order.

    Raises ValueError for one that no family answers to.
    """
    for pattern in wanted:
        if not any(fnmatch(family.name, pattern) for family in there):
            raise ValueError(
                f"there is no attack family {pattern!r}; there are {', '.join(family.name for family in there)}"
            )
    return [family for family in there if any(fnmatch(family.name, pattern) for pattern in wanted)]
