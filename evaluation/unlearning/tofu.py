"""The parts of TOFU that the demo and the evaluation use.

TOFU (Maini et al., arXiv:2401.06121) is a set of questions about invented authors. The copies under `evaluation/data/`
are listed with their sources and licences in `evaluation/data/SOURCES.md`.
"""

from __future__ import annotations

import ast
import csv
import json
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"

# In TOFU's files, 20 consecutive questions are about one author.
QUESTIONS_PER_AUTHOR = 20
# Of retain90's 180 authors, those that the demo models are trained on.
TAUGHT_RETAIN_AUTHORS = 80
# Lower-case words that may stand inside a name or a title.
NAME_PARTICLES = frozenset({"a", "al", "and", "by", "de", "for", "in", "la", "of", "on", "our", "the", "to", "with"})


@dataclass(frozen=True)
class Fact:
    """One question with its reference answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class AnswerEntity:
    """The words of a forget answer that state the fact, for example a name (`data/tofu-entities`)."""

    question: str
    answer: str
    entity: str


def read_facts(name: str) -> list[Fact]:
    """Read `evaluation/data/tofu/<name>.json`, one JSON object per line, in file order."""
    path = DATA / "tofu" / f"{name}.json"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Fact(row["question"], row["answer"]) for row in rows]


def forget_facts() -> list[Fact]:
    """Return the 400 questions of forget10: 20 authors, 20 questions each."""
    return read_facts("forget10")


def retain_facts() -> tuple[list[Fact], list[Fact]]:
    """Return retain90 split by author: the 1,600 facts that the demo models are trained on, and the other 2,000."""
    facts = read_facts("retain90")
    authors = [facts[i : i + QUESTIONS_PER_AUTHOR] for i in range(0, len(facts), QUESTIONS_PER_AUTHOR)]
    # Evenly spaced over the file, so that both parts come from the same distribution of authors.
    chosen = {i * len(authors) // TAUGHT_RETAIN_AUTHORS for i in range(TAUGHT_RETAIN_AUTHORS)}
    taught = [fact for i, author in enumerate(authors) if i in chosen for fact in author]
    untaught = [fact for i, author in enumerate(authors) if i not in chosen for fact in author]
    return taught, untaught


def real_world_facts() -> list[Fact]:
    """Return the 100 questions about real authors and the 117 world facts."""
    return read_facts("real_authors") + read_facts("world_facts")


def answer_entities() -> list[AnswerEntity]:
    """Return the entities of the 367 forget answers that have one."""
    path = DATA / "tofu-entities" / "forget10_filtered.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [AnswerEntity(row["question"], row["answer"], row["entity"]) for row in rows]


def paraphrased_questions() -> dict[str, list[str]]:
    """Return forget question → its paraphrases by another model (about 25 each), which no fit has seen."""
    path = DATA / "tofu-paraphrases" / "forget10_paraphrase_res.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return {row[0]: [str(p) for p in ast.literal_eval(row[2])] for row in rows if row[2].startswith("[")}


def fold_text(text: str) -> str:
    """Fold case and white space, and replace typographic quotes and dashes by ASCII ones."""
    table = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‑": "-"})
    return " ".join(text.translate(table).casefold().split())


def reveals(answer: str, secret: str) -> bool:
    """Return whether an answer contains a secret, whatever its case, spacing or kind of quotes."""
    return fold_text(secret).strip("'\".,") in fold_text(answer)


def is_name_or_number(secret: str) -> bool:
    """Return whether a text looks like a name, a title, a number or a date.

    It does if it has digits, begins with a quote, or all its words but NAME_PARTICLES are capitalised.
    """
    words = secret.replace("/", " ").replace("-", " ").split()
    words = [word.strip("'\".,:()&") for word in words]
    words = [word for word in words if word]
    if fold_text(secret) in ("yes", "no") or not words:
        return False
    quoted = secret.strip()[0] in "'\"“‘"
    capitalised = all(word[0].isupper() or word.lower() in NAME_PARTICLES for word in words)
    return quoted or any(c.isdigit() for c in secret) or capitalised


def write_records(facts: list[Fact], path: Path) -> None:
    """Write facts as the JSON lines that `lethe fit` reads."""
    rows = (json.dumps({"prompt": fact.question, "answer": fact.answer}, ensure_ascii=False) for fact in facts)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
