"""What is asked: the forget questions of an artifact, the questions that must stay, the secrets, the rewordings.

Any artifact makes a suite; one that was fitted to TOFU's forget10, or to a part of it, makes TOFU's. Knows no
model and no server.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lethe.classifier import records
from lethe.classifier.artifact import Artifact, ForgetItem
from lethe.corruption.phrases.extraction import forbidden_phrases
from lethe.corruption.phrases.stopwords import STOP_WORDS
from lethe.evaluation.unlearning import tofu

T = TypeVar("T")

# A document is asked for by its beginning; so many words of it are given, and so many of the rest compared.
GIVEN_WORDS = 60
EXPECTED_WORDS = 90
MOST_SUBJECTS = 40

_NAME = re.compile(r"[^\W\d_][\w'’-]*(?: [^\W\d_][\w'’-]*)+")


@dataclass(frozen=True)
class Row:
    """One question and its reference answer; for truth ratios, the answer reworded, and wrong ones.

    document: of a document the whole text; `question` is then its beginning and `answer` what follows.
    """

    question: str
    answer: str
    paraphrase: str | None = None
    wrong: tuple[str, ...] = ()
    document: str = ""


@dataclass(frozen=True)
class Secret:
    """What an answer to `question` must not hold. named: a name, title, number or date by its form."""

    question: str
    secret: str
    named: bool


@dataclass(frozen=True)
class Suite:
    """Everything that is asked of each way.

    forget: what is to be forgotten. others: set → rows that must stay; `options` names those of them whose
    probability is taken over the wrong options (TOFU's multiple-choice sets). rewordings: forget question →
    rewordings that no fit has seen. unheard: set → questions that are judged only.
    """

    name: str
    forget: tuple[Row, ...]
    others: Mapping[str, tuple[Row, ...]]
    options: frozenset[str]
    secrets: tuple[Secret, ...]
    rewordings: Mapping[str, tuple[str, ...]]
    unheard: Mapping[str, tuple[str, ...]]
    subjects: tuple[str, ...]

    def thinned(self, step: int) -> Suite:
        """One row in `step` of each set, at least one, drawn by lot: every n-th row could be of one kind only."""
        if step == 1:
            return self
        draw = random.Random(0)

        def some(rows: tuple[T, ...]) -> tuple[T, ...]:
            chosen = sorted(draw.sample(range(len(rows)), max(1, round(len(rows) / step)))) if rows else []
            return tuple(rows[i] for i in chosen)

        forget = some(self.forget)
        asked = {row.question for row in forget}
        return replace(
            self,
            forget=forget,
            others={name: some(rows) for name, rows in self.others.items()},
            secrets=tuple(secret for secret in self.secrets if secret.question in asked),
            rewordings={question: texts for question, texts in self.rewordings.items() if question in asked},
            unheard={name: some(rows) for name, rows in self.unheard.items()},
        )


def build(
    artifact: Artifact,
    *,
    kind: str | None = None,
    retain: Path | None = None,
    perturbed: Path | None = None,
    count: Callable[[str], int] = lambda word: 0,
) -> Suite:
    """The suite of an artifact: kind "tofu", "own", or by what the artifact holds.

    retain: JSON lines of prompt and answer that must stay. perturbed: JSON lines in TOFU's format, matched to the
    forget questions. count: how often a word occurs in ordinary text. Raises ValueError for a file of another
    form, and for "tofu" over an artifact that holds anything else.
    """
    items = [artifact.items[number] for number in artifact.live]
    of_tofu = _is_tofu(items)
    if kind == "tofu" and not of_tofu:
        raise ValueError("--suite tofu: the artifact holds items that are not TOFU's forget10")
    if of_tofu and kind != "own":
        suite = _tofu({item.prompt for item in items})
    else:
        suite = _own(items, count)
    if perturbed is not None:
        known = {row.question: row for row in read_perturbed(perturbed)}
        if not known.keys() & {row.question for row in suite.forget}:
            raise ValueError(f"{perturbed}: holds none of the artifact's questions")
        suite = replace(suite, forget=tuple(known.get(row.question, row) for row in suite.forget))
    if retain is not None:
        rows = tuple(_row(record) for record in records.read(retain))
        suite = replace(suite, others={**suite.others, "retain": rows})
    return suite


def read_perturbed(path: Path) -> list[Row]:
    """Rows of a file in TOFU's format: question, answer, perturbed_answer, perhaps paraphrased_answer."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(
                Row(row["question"], row["answer"], row.get("paraphrased_answer"), tuple(row["perturbed_answer"]))
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a row of question, answer and perturbed_answer: {error}") from None
    return rows


def _is_tofu(items: Sequence[ForgetItem]) -> bool:
    questions = {fact.question for fact in tofu.forget_facts()}
    return bool(items) and all(item.prompt in questions for item in items)


def _tofu(questions: set[str]) -> Suite:
    read = {
        name: read_perturbed(tofu.DATA / "tofu" / f"{name}_perturbed.json")
        for name in ("forget10", "retain", "real_authors", "world_facts")
    }
    taught, untaught = tofu.retain_facts()
    known = {fact.question for fact in taught}
    forget = tuple(row for row in read["forget10"] if row.question in questions)
    others = {
        # The demo models were taught only these; of the rest they know as little as of what was never written.
        "retain": tuple(row for row in read["retain"] if row.question in known),
        "real_authors": tuple(read["real_authors"]),
        "world_facts": tuple(read["world_facts"]),
    }
    reworded = tofu.paraphrases()
    return Suite(
        "tofu",
        forget,
        others,
        frozenset({"real_authors", "world_facts"}),
        tuple(Secret(s.question, s.entity, tofu.is_named(s.entity)) for s in tofu.secrets() if s.question in questions),
        {row.question: tuple(reworded.get(row.question, ())) for row in forget},
        {
            "retain_taught": tuple(fact.question for fact in taught),
            "retain_untaught": tuple(fact.question for fact in untaught),
        },
        _subjects(forget),
    )


def _own(items: Sequence[ForgetItem], count: Callable[[str], int]) -> Suite:
    forget = tuple(_row({"prompt": item.prompt, "answer": item.answer, "text": item.text}) for item in items)
    secrets = [
        Secret(row.question, phrase, True)
        for row in forget
        for phrase in forbidden_phrases([row.answer], row.question, count=count)
        if tofu.is_named(phrase)
    ]
    return Suite("own", forget, {}, frozenset(), tuple(secrets), {}, {}, _subjects(forget))


def _row(record: Mapping[str, str]) -> Row:
    if record.get("prompt"):
        return Row(record["prompt"], record["answer"])
    words = record["text"].split()
    given = min(GIVEN_WORDS, max(1, len(words) // 2))
    following = " ".join(words[given : given + EXPECTED_WORDS])
    return Row(" ".join(words[:given]), following, document=record["text"])


def _subjects(rows: Sequence[Row]) -> tuple[str, ...]:
    """The names that occur most in the questions: what a system prompt can be told to know nothing about."""
    found: Counter[str] = Counter()
    for row in rows:
        for match in _NAME.finditer(row.question):
            names = re.split(r" (?=[a-z])|(?<=[a-z]) (?=[a-z])", match[0])
            for name in names:
                words = [word for word in name.split() if word[:1].isupper() and word.lower() not in STOP_WORDS]
                if len(words) > 1:
                    found[re.sub(r"['’]s$", "", " ".join(words))] += 1
    return tuple(name for name, _ in found.most_common(MOST_SUBJECTS))
