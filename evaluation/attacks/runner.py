"""Run attack families against a guard and count what it flags.

The gateway's own code judges the requests (`server/guard/guard.py`). Knows neither files nor how results are printed;
rates have Wilson 95 % intervals.
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

from lethe.evaluation.attacks.families import EVERY_5TH, AttackFamily
from lethe.evaluation.attacks.requests import AttackRequest, plain_request
from lethe.evaluation.attacks.suffix_search import DetectorDecision, SuffixSearch
from lethe.evaluation.unlearning.confidence import Estimate, estimate_share
from lethe.server.errors import BadRequest
from lethe.server.guard.guard import Guard
from lethe.server.policy.schema import Policy

Kind = Literal["forget", "other"]


@dataclass(frozen=True)
class AttackVerdict:
    """The guard's verdict on one request.

    cpu_ms: CPU time of judging it. view, place: the view with the highest score, and the request field it comes from.
    """

    flagged: bool
    score: float
    cpu_ms: float
    view: str
    place: str


@dataclass(frozen=True)
class AttackCase:
    """One attacked prompt: the family's variant, the request, the verdict. queries: texts judged during a search."""

    kind: Kind
    prompt: str
    variant: str
    request: AttackRequest
    verdict: AttackVerdict
    queries: int = 0


@dataclass(frozen=True)
class FamilyResult:
    """The figures of one family. false_alarms is None for searches, which have no harmless counterpart.

    recall: share of attacked forget prompts that are flagged or refused with an error; for a search, the share of
    flagged prompts that it could not flip. false_alarms: share of prompts that must pass which are flagged or refused.
    views: number of flagged forget prompts by deciding view. queries: mean number of queries of a search.
    """

    name: str
    about: str
    recall: Estimate
    false_alarms: Estimate | None
    slowest_ms: float
    views: dict[str, int]
    queries: float | None
    missed: tuple[AttackCase, ...]
    alarms: tuple[AttackCase, ...]

    def violations(self, min_recall: float, max_false_alarms: float) -> list[str]:
        """Describe each of the two limits that this family misses."""
        violations = []
        if self.recall.value < min_recall:
            violations.append(f"recall below {min_recall:.1%}")
        if self.false_alarms is not None and self.false_alarms.value > max_false_alarms:
            violations.append(f"false alarms above {max_false_alarms:.1%}")
        return violations

    def as_dict(self) -> dict[str, Any]:
        """Figures and names as plain JSON, without the text of any prompt."""
        figures: dict[str, Any] = {"about": self.about, "recall": self.recall.as_dict()}
        if self.false_alarms is not None:
            figures["false_alarms"] = self.false_alarms.as_dict()
        if self.queries is not None:
            figures["mean_queries"] = round(self.queries, 1)
            figures["flipped"] = estimate_share(len(self.missed), self.recall.n).as_dict()
        figures |= {"slowest_ms": round(self.slowest_ms, 1), "views": self.views}
        if variants := Counter(case.variant for case in self.missed if case.variant):
            figures["missed_variants"] = dict(variants.most_common())
        return figures


def judge_request(guard: Guard, policy: Policy, request: AttackRequest) -> AttackVerdict:
    """Judge one request as the gateway does. A refused request counts as flagged: no model sees it."""
    # CPU time of this thread: other load on the machine doesn't count.
    started = time.thread_time()
    try:
        judged = guard.parse(request.endpoint, request.body)
    except BadRequest as error:
        return AttackVerdict(True, 1.0, (time.thread_time() - started) * 1e3, "refused", str(error.code))
    finding = guard.judge(judged, {policy.name: guard.policies[policy.name]}).findings[0]
    cpu_ms = (time.thread_time() - started) * 1e3
    score = finding.score
    return AttackVerdict(finding.flagged, score.score, cpu_ms, score.view, judged.place(score.text))


@dataclass(frozen=True)
class AttackRun:
    """The guard, the prompts and the settings that all families share.

    forget: prompts that must be flagged. other: prompts that must pass. words: harmless words for searches.
    budget: queries of one search, at most. full: families of long requests take the whole sample too.
    """

    guard: Guard
    policy: Policy
    forget: Sequence[str]
    other: Sequence[str]
    words: Sequence[str]
    seed: int
    budget: int
    full: bool = False

    def run(self, chosen: Sequence[AttackFamily | SuffixSearch], *, jobs: int) -> Iterator[FamilyResult]:
        """Yield each family's result, in order; judges `jobs` requests at a time, with a progress bar on stderr.

        A search without a flagged prompt to start from has no result.
        """
        tasks_by_family = [self._tasks(family) for family in chosen]
        total = sum(map(len, tasks_by_family))
        with ThreadPoolExecutor(jobs) as pool, tqdm(total=total, file=sys.stderr, unit="request") as bar:
            for family, tasks in zip(chosen, tasks_by_family, strict=True):
                bar.set_description(family.name)
                cases: list[AttackCase] = []
                for case in pool.map(lambda task: task(), tasks):
                    bar.update()
                    if case is not None:
                        cases.append(case)
                if cases:
                    yield _summarize(family, cases)

    def _tasks(self, family: AttackFamily | SuffixSearch) -> list[Callable[[], AttackCase | None]]:
        if isinstance(family, SuffixSearch):
            prompts = self._prompts("forget", EVERY_5TH)
            return [partial(self._run_search, family, number, prompt) for number, prompt in enumerate(prompts)]
        kinds: tuple[Kind, ...] = ("forget", "other")
        return [
            partial(self._run_attack, family, kind, number, prompt)
            for kind in kinds
            for number, prompt in enumerate(self._prompts(kind, family.one_in))
        ]

    def _prompts(self, kind: Kind, one_in: int) -> Sequence[str]:
        prompts = self.forget if kind == "forget" else self.other
        return prompts if self.full else prompts[: -(-len(prompts) // one_in)]

    def _run_attack(self, family: AttackFamily, kind: Kind, number: int, prompt: str) -> AttackCase:
        # Seeded by name and number: the request does not depend on which families run, or in which order.
        rng = Random(f"{self.seed}/{family.name}/{kind}/{number}")
        request, variant = family.attack(prompt, number, rng)
        return AttackCase(kind, prompt, variant, request, judge_request(self.guard, self.policy, request))

    def _run_search(self, search: SuffixSearch, number: int, prompt: str) -> AttackCase | None:
        """Return the last request of a search from one prompt; None if the prompt itself isn't flagged."""
        rng = Random(f"{self.seed}/{search.name}/{number}")
        verdicts: list[AttackVerdict] = []

        def detect(text: str) -> DetectorDecision:
            verdicts.append(judge_request(self.guard, self.policy, plain_request(text, rng)))
            return DetectorDecision(verdicts[-1].flagged, verdicts[-1].score)

        result = search.search(prompt, detect, self.words, rng, self.budget)
        if not verdicts[0].flagged:
            return None
        last = verdicts[-1]
        slowest = max(verdict.cpu_ms for verdict in verdicts)
        verdict = AttackVerdict(not result.flipped, last.score, slowest, last.view, last.place)
        return AttackCase("forget", prompt, "", plain_request(result.text, rng), verdict, result.queries)


def _summarize(family: AttackFamily | SuffixSearch, cases: Sequence[AttackCase]) -> FamilyResult:
    forget = [case for case in cases if case.kind == "forget"]
    other = [case for case in cases if case.kind == "other"]
    missed = tuple(case for case in forget if not case.verdict.flagged)
    alarms = tuple(case for case in other if case.verdict.flagged)
    views = Counter(case.verdict.view for case in forget if case.verdict.flagged)
    return FamilyResult(
        family.name,
        family.about,
        estimate_share(len(forget) - len(missed), len(forget)),
        estimate_share(len(alarms), len(other)) if other else None,
        max(case.verdict.cpu_ms for case in cases),
        dict(views.most_common()),
        sum(case.queries for case in cases) / len(cases) if isinstance(family, SuffixSearch) else None,
        missed,
        alarms,
    )


def select_families(
    available: Sequence[AttackFamily | SuffixSearch], patterns: Sequence[str]
) -> list[AttackFamily | SuffixSearch]:
    """Return the families whose names match one of the patterns (`split-*`), in the order of `available`.

    Raises ValueError for a pattern that matches no family.
    """
    for pattern in patterns:
        if not any(fnmatch(family.name, pattern) for family in available):
            raise ValueError(
                f"no attack family {pattern!r}; available: {', '.join(family.name for family in available)}"
            )
    return [family for family in available if any(fnmatch(family.name, pattern) for pattern in patterns)]
