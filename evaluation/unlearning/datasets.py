"""The evaluation's data: forget questions, retain questions, secrets that must not leak, and paraphrases.

Every artifact gives a data set; one that was fitted to TOFU's forget10, or to a part of it, gives TOFU's. Knows no
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

# A document is asked for by its first words: at most this many are in the prompt, the next ones are the reference.
PROMPT_WORDS = 60
CONTINUATION_WORDS = 90
# Names listed in the system prompt of the system `prompt`; chosen so that the list stays below a few hundred tokens.
MAX_SUBJECTS = 40

# Two or more words in a row.
_WORD_SEQUENCE = re.compile(r"[^\W\d_][\w'’-]*(?: [^\W\d_][\w'’-]*)+")


@dataclass(frozen=True)
class QuestionRow:
    """One question with its reference answer, and for truth ratios a paraphrased answer and wrong ones.

    document: the whole text of a document; `question` is then its beginning and `answer` the words after it.
    """

    question: str
    answer: str
    paraphrase: str | None = None
    wrong: tuple[str, ...] = ()
    document: str = ""


@dataclass(frozen=True)
class LeakCheck:
    """A secret that the answer to `question` must not contain. is_name: a name, title, number or date by its form."""

    question: str
    secret: str
    is_name: bool


@dataclass(frozen=True)
class EvaluationDataset:
    """Everything that each system under comparison is asked, and what its answers are compared with."""

    name: str
    forget: tuple[QuestionRow, ...]
    # Set → rows whose answers must stay as they are.
    retain_sets: Mapping[str, tuple[QuestionRow, ...]]
    # Those retain sets whose probability is taken relative to the wrong options (TOFU's multiple-choice sets).
    multiple_choice: frozenset[str]
    leak_checks: tuple[LeakCheck, ...]
    # Forget question → rewordings that no fit has seen.
    rewordings: Mapping[str, tuple[str, ...]]
    # Set → questions that are only judged by the policy, and not answered.
    detection_only: Mapping[str, tuple[str, ...]]
    subjects: tuple[str, ...]

    def subsample(self, step: int) -> EvaluationDataset:
        """Return one row in `step` of each set, at least one, drawn at random with a fixed seed.

        At random, because in TOFU every n-th row could be the same kind of question.
        """
        if step == 1:
            return self
        rng = random.Random(0)

        def sample(rows: tuple[T, ...]) -> tuple[T, ...]:
            chosen = sorted(rng.sample(range(len(rows)), max(1, round(len(rows) / step)))) if rows else []
            return tuple(rows[i] for i in chosen)

        forget = sample(self.forget)
        questions = {row.question for row in forget}
        return replace(
            self,
            forget=forget,
            retain_sets={name: sample(rows) for name, rows in self.retain_sets.items()},
            leak_checks=tuple(check for check in self.leak_checks if check.question in questions),
            rewordings={question: texts for question, texts in self.rewordings.items() if question in questions},
            detection_only={name: sample(rows) for name, rows in self.detection_only.items()},
        )


def build_dataset(
    artifact: Artifact,
    *,
    kind: str | None = None,
    retain: Path | None = None,
    perturbed: Path | None = None,
    count: Callable[[str], int] = lambda word: 0,
) -> EvaluationDataset:
    """Return the data set of an artifact: kind "tofu", "own", or by what the artifact holds.

    retain: JSON lines of prompt and answer that must stay. perturbed: JSON lines in TOFU's format, matched to the
    forget questions. count: how often a word occurs in ordinary text. Raises ValueError for a file in another format,
    and for "tofu" with an artifact that holds anything else.
    """
    items = [artifact.items[number] for number in artifact.live_items]
    is_tofu = _all_from_tofu(items)
    if kind == "tofu" and not is_tofu:
        raise ValueError("--suite tofu: the artifact holds items that are not in TOFU's forget10")
    if is_tofu and kind != "own":
        dataset = _tofu_dataset({item.prompt for item in items})
    else:
        dataset = _own_dataset(items, count)
    if perturbed is not None:
        by_question = {row.question: row for row in read_perturbed(perturbed)}
        if not by_question.keys() & {row.question for row in dataset.forget}:
            raise ValueError(f"{perturbed}: none of the artifact's questions is in this file")
        dataset = replace(dataset, forget=tuple(by_question.get(row.question, row) for row in dataset.forget))
    if retain is not None:
        rows = tuple(_question_row(record) for record in records.read_records(retain))
        dataset = replace(dataset, retain_sets={**dataset.retain_sets, "retain": rows})
    return dataset


def read_perturbed(path: Path) -> list[QuestionRow]:
    """Read a file in TOFU's format: question, answer, perturbed_answer, and optionally paraphrased_answer.

    Raises ValueError, with file and line, for a row in another format.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            wrong = tuple(row["perturbed_answer"])
            rows.append(QuestionRow(row["question"], row["answer"], row.get("paraphrased_answer"), wrong))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a row of question, answer and perturbed_answer: {error}") from None
    return rows


def _all_from_tofu(items: Sequence[ForgetItem]) -> bool:
    questions = {fact.question for fact in tofu.forget_facts()}
    return bool(items) and all(item.prompt in questions for item in items)


def _tofu_dataset(questions: set[str]) -> EvaluationDataset:
    rows = {
        name: read_perturbed(tofu.DATA / "tofu" / f"{name}_perturbed.json")
        for name in ("forget10", "retain", "real_authors", "world_facts")
    }
    taught, untaught = tofu.retain_facts()
    taught_questions = {fact.question for fact in taught}
    forget = tuple(row for row in rows["forget10"] if row.question in questions)
    rewordings = tofu.paraphrased_questions()
    return EvaluationDataset(
        "tofu",
        forget,
        {
            # The demo models were trained on these only; they know nothing of the other retain rows.
            "retain": tuple(row for row in rows["retain"] if row.question in taught_questions),
            "real_authors": tuple(rows["real_authors"]),
            "world_facts": tuple(rows["world_facts"]),
        },
        frozenset({"real_authors", "world_facts"}),
        tuple(
            LeakCheck(answer.question, answer.entity, tofu.is_name_or_number(answer.entity))
            for answer in tofu.answer_entities()
            if answer.question in questions
        ),
        {row.question: tuple(rewordings.get(row.question, ())) for row in forget},
        {
            "retain_taught": tuple(fact.question for fact in taught),
            "retain_untaught": tuple(fact.question for fact in untaught),
        },
        _frequent_names(forget),
    )


def _own_dataset(items: Sequence[ForgetItem], count: Callable[[str], int]) -> EvaluationDataset:
    forget = tuple(_question_row({"prompt": item.prompt, "answer": item.answer, "text": item.text}) for item in items)
    leak_checks = [
        LeakCheck(row.question, phrase, True)
        for row in forget
        for phrase in forbidden_phrases([row.answer], row.question, count=count)
        if tofu.is_name_or_number(phrase)
    ]
    return EvaluationDataset("own", forget, {}, frozenset(), tuple(leak_checks), {}, {}, _frequent_names(forget))


def _question_row(record: Mapping[str, str]) -> QuestionRow:
    if record.get("prompt"):
        return QuestionRow(record["prompt"], record["answer"])
    words = record["text"].split()
    split = min(PROMPT_WORDS, max(1, len(words) // 2))
    continuation = " ".join(words[split : split + CONTINUATION_WORDS])
    return QuestionRow(" ".join(words[:split]), continuation, document=record["text"])


def _frequent_names(rows: Sequence[QuestionRow]) -> tuple[str, ...]:
    """Return the capitalised names of two or more words that occur most often in the questions."""
    counts: Counter[str] = Counter()
    for row in rows:
        for match in _WORD_SEQUENCE.finditer(row.question):
            for part in re.split(r" (?=[a-z])|(?<=[a-z]) (?=[a-z])", match[0]):
                words = [word for word in part.split() if word[:1].isupper() and word.lower() not in STOP_WORDS]
                if len(words) > 1:
                    counts[re.sub(r"['’]s$", "", " ".join(words))] += 1
    return tuple(name for name, _ in counts.most_common(MAX_SUBJECTS))
