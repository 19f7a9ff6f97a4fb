"""The parts of TOFU that Lethe's demo and measurements use.

TOFU (Maini et al., arXiv:2401.06121) is a set of questions about invented authors. The copies
under `evaluation/data/` keep their sources and licences in `evaluation/data/SOURCES.md`.
"""

from __future__ import annotations

import ast
import csv
import json
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"

QUESTIONS_PER_AUTHOR = 20
TAUGHT_RETAIN_AUTHORS = 80
PARTICLES = frozenset({"a", "al", "and", "by", "de", "for", "in", "la", "of", "on", "our", "the", "to", "with"})


@dataclass(frozen=True)
class Fact:
    """One question with its reference answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Secret:
    """The words of a forget answer that give the fact away (`data/tofu-entities`)."""

    question: str
    answer: str
    entity: str


def read_facts(name: str) -> list[Fact]:
    """The facts of `evaluation/data/tofu/<name>.json`, one JSON object a line, in file order."""
    path = DATA / "tofu" / f"{name}.json"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Fact(row["question"], row["answer"]) for row in rows]


def forget_facts() -> list[Fact]:
    """The 400 questions of forget10: 20 authors, 20 questions each."""
    return read_facts("forget10")


def retain_facts() -> tuple[list[Fact], list[Fact]]:
    """retain90 split by author: the 1,600 facts that the demo models are taught, and the rest."""
    facts = read_facts("retain90")
    authors = [facts[i : i + QUESTIONS_PER_AUTHOR] for i in range(0, len(facts), QUESTIONS_PER_AUTHOR)]
    # Evenly spread over the file, so that taught and untaught authors come from the same mixture.
    chosen = {i * len(authors) // TAUGHT_RETAIN_AUTHORS for i in range(TAUGHT_RETAIN_AUTHORS)}
    taught = [fact for i, author in enumerate(authors) if i in chosen for fact in author]
    untaught = [fact for i, author in enumerate(authors) if i not in chosen for fact in author]
    return taught, untaught


def real_world_facts() -> list[Fact]:
    """The 100 questions about real authors and the 117 world facts."""
    return read_facts("real_authors") + read_facts("world_facts")


def secrets() -> list[Secret]:
    """The 367 forget questions whose answer holds a nameable secret."""
    path = DATA / "tofu-entities" / "forget10_filtered.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Secret(row["question"], row["answer"], row["entity"]) for row in rows]


def paraphrases() -> dict[str, list[str]]:
    """Forget question → its paraphrases by another model (about 25 each; never used in fitting)."""
    path = DATA / "tofu-paraphrases" / "forget10_paraphrase_res.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return {row[0]: [str(p) for p in ast.literal_eval(row[2])] for row in rows if row[2].startswith("[")}


def folded(text: str) -> str:
    """Case and white space folded, and typographic quotes and dashes made plain."""
    table = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‑": "-"})
    return " ".join(text.translate(table).casefold().split())


def holds(answer: str, secret: str) -> bool:
    """Whether an answer gives a secret away: it stands there, in any case, spacing or kind of quotes."""
    return folded(secret).strip("'\".,") in folded(answer)


def is_named(secret: str) -> bool:
    """Whether a secret is a name, title, number or date by its form: digits, quotes, or capitals throughout."""
    words = secret.replace("/", " ").replace("-", " ").split()
    words = [word.strip("'\".,:()&") for word in words]
    words = [word for word in words if word]
    if folded(secret) in ("yes", "no") or not words:
        return False
    quoted = secret.strip()[0] in "'\"“‘"
    return quoted or any(c.isdigit() for c in secret) or all(w[0].isupper() or w.lower() in PARTICLES for w in words)


def write_records(facts: list[Fact], path: Path) -> None:
    """Facts as the JSON lines that `lethe fit` reads."""
    rows = (json.dumps({"prompt": fact.question, "answer": fact.answer}, ensure_ascii=False) for fact in facts)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
