"""The rows that a fit learns from and is calibrated on. Knows no encoder arithmetic and no model.

Rows that stand for "a forget request in other words" are rule-made variants (`classifier/training/paraphrase.py`). Each
belongs to a fold: models that score it for calibration never saw it, but they do know the prompt that it is
made from, exactly as they will when a user asks in other words. Retain rows belong to
contiguous folds, so that neighbours in a file, which are often about one subject, are left out together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import ForgetItem
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index.allowlist import wording
from lethe.classifier.records import Record
from lethe.classifier.text.vocabulary import FUNCTION_WORDS
from lethe.classifier.text.windows import cover
from lethe.classifier.training.paraphrase import variants
from lethe.classifier.training.prompt_wrappers import wrap

FOLDS = 4
ALWAYS = -1
VARIANTS_WANTED = 1600
VARIANTS_LEAST = 3
VARIANTS_MOST = 120
RETAIN_MOST = 8000
# Of more items than this some are drawn to be reworded; of still more, only their prompts are learnt from. All are
# compared with.
REWORDED_MOST = 8000
KNOWN_MOST = 100_000
OTHER_VARIANTS = 300
WRAPPED = 240
DECOYS = 800
DECOY_EXCHANGES = 0.8
DECOY_WEIGHT = 0.5
PUNCTUATION = "\"'“”‘’(),.?!:;"
ANSWER_WEIGHT = 0.5


@dataclass(frozen=True)
class Row:
    """A training row.

    fold: left out of the models of that fold, ALWAYS = in every model. source: rows cut from the same text
    share it. encoded: has an embedding (answers have none: they teach words only). calibrates: its held-out
    score enters the calibration. general: from the shipped background. wrapped: see classifier/training/prompt_wrappers.py.
    decoy: the form of a forget text about something else; weighs in the fusion, but is no request that occurs.
    shared: the same in every fit with this encoder. retained: a whole request of the retain file, as it stands.
    item: of a forget row. group: see classifier/conformal.py; a forget row of weight 0 is a further window of the
    row before it, scored only.
    """

    text: str
    forget: bool
    fold: int
    source: int
    weight: float
    encoded: bool
    calibrates: bool
    general: bool = False
    item: int = -1
    group: int = 0
    wrapped: bool = False
    decoy: bool = False
    shared: bool = False
    retained: bool = False


@dataclass(frozen=True)
class Corpus:
    """All rows; `items` and which item each index row (`index_texts`) belongs to; what was left out.

    reworded, known: of so many items there are rewordings, and of so many the prompt, among the rows.
    """

    rows: tuple[Row, ...]
    items: tuple[ForgetItem, ...]
    index_texts: tuple[str, ...]
    index_items: tuple[int, ...]
    retain_rows: int
    conflicts: int
    reworded: int
    known: int


@cache
def background() -> tuple[str, ...]:
    """The prompts of the shipped general set (`classifier/background/SOURCES.md`)."""
    path = Path(__file__).parents[1] / "background" / "prompts.jsonl"
    return tuple(json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines())


def build(forget: Sequence[Record], retain: Sequence[Record], encoder: Encoder, rng: np.random.Generator) -> Corpus:
    """The corpus of two lists of checked records. Deterministic for a given `rng` state."""
    items = tuple(ForgetItem(r.get("prompt", ""), r.get("answer", ""), r.get("text", "")) for r in forget)
    index = [(text, i) for i, item in enumerate(items) for text in forget_texts(item, encoder)]
    known = {wording(item.prompt or item.text) for item in items}
    others = [r for r in retain if wording(asked(r)) not in known]
    conflicts = len(retain) - len(others)
    # Each once: in another fold, a row's copy would be known to the models that mustn't know it.
    kept = list({wording(asked(r)): r for r in reversed(others)}.values())[::-1]
    if len(kept) > RETAIN_MOST:
        kept = [kept[i] for i in np.sort(rng.choice(len(kept), RETAIN_MOST, replace=False))]
    drawn: dict[int, int] | None = None
    if len(items) > REWORDED_MOST:
        drawn = {int(i): n % FOLDS for n, i in enumerate(rng.choice(len(items), REWORDED_MOST, replace=False))}
    rows = _forget_rows(items, index, encoder, rng, drawn)
    rows += _other_rows(kept, encoder, rng, first_source=len(rows))
    rows += _decoy_rows(
        [text for text, i in index if drawn is None or i in drawn],
        kept,
        rng,
        first_source=max(row.source for row in rows) + 1,
    )
    # Rewording may lengthen a passage that just fitted.
    rows = [row for row in rows if not row.encoded or len(encoder.piece_starts(row.text)) <= encoder.limit]
    texts, owners = tuple(text for text, _ in index), tuple(i for _, i in index)
    reworded = len(items) if drawn is None else len(drawn)
    learnt = len(items) if len(items) <= KNOWN_MOST else reworded
    return Corpus(tuple(rows), items, texts, owners, len(kept), conflicts, reworded, learnt)


def passages(text: str, encoder: Encoder) -> list[str]:
    """The parts of a text that are judged one by one; the whole first when the encoder can read it."""
    covered = cover(text, encoder)
    return [covered.text(window) for window in covered.windows]


def forget_texts(item: ForgetItem, encoder: Encoder) -> list[str]:
    """The texts that stand for an item among what requests are compared with."""
    # Of a document each passage is to be forgotten; a sentence of a question may ask for nothing.
    covered = cover(item.prompt or item.text, encoder, narrow=bool(item.text))
    return [covered.text(window) for window in covered.windows]


def _forget_rows(
    items: Sequence[ForgetItem],
    index: Sequence[tuple[str, int]],
    encoder: Encoder,
    rng: np.random.Generator,
    drawn: Mapping[int, int] | None,
) -> list[Row]:
    """drawn: the items to reword and the fold of each, where these aren't all. Models know no rewording of most items
    then, so held-out scores are those of such items: all rewordings of an item are in one fold. Where most prompts
    aren't known either, the prompt is in that fold, too."""
    known = drawn is None or len(items) <= KNOWN_MOST
    rows: list[Row] = []
    share = np.bincount([i for _, i in index], minlength=len(items))
    wanted = int(np.clip(round(VARIANTS_WANTED / len(index)), VARIANTS_LEAST, VARIANTS_MOST))
    for text, i in index:
        weight = 1.0 / share[i]
        if drawn is not None and i not in drawn:
            if known:
                rows.append(Row(text, True, ALWAYS, len(rows), weight, False, False, item=i))
            continue
        fold = ALWAYS if drawn is None or known else drawn[i]
        rows.append(Row(text, True, fold, len(rows), weight, True, False, item=i))
        made = variants(text, wanted, rng)
        for k, variant in enumerate(made):
            fold = k % FOLDS if drawn is None else drawn[i]
            rows.append(Row(variant, True, fold, len(rows), weight / len(made), True, True, item=i))
    plain = [row for row in rows if row.encoded]
    for n, i in enumerate(rng.choice(len(plain), min(WRAPPED, len(plain)), replace=False)):
        # Scored as a request would be: by all its windows.
        parts = passages(wrap(plain[i].text, rng), encoder)
        weight, group, source = plain[i].weight / 2, min(len(parts) - 1, 1), len(rows)
        fold = n % FOLDS if drawn is None else drawn[plain[i].item]
        wrapped = replace(plain[i], fold=fold, calibrates=True, wrapped=True, group=group, source=source)
        rows += [replace(wrapped, text=part, weight=0.0 if k else weight) for k, part in enumerate(parts)]
    for i in range(len(items)) if drawn is None or known else drawn:
        if items[i].answer:
            fold = ALWAYS if drawn is None or known else drawn[i]
            rows.append(Row(items[i].answer, True, fold, len(rows), ANSWER_WEIGHT, False, False))
    return rows


def _other_rows(
    retain: Sequence[Record], encoder: Encoder, rng: np.random.Generator, *, first_source: int
) -> list[Row]:
    rows: list[Row] = []
    source = first_source
    # Neighbours in a retain file are often about one subject; the background's prompts have no neighbours.
    retained = [(record, i * FOLDS // len(retain), False) for i, record in enumerate(retain)]
    shipped = [({"prompt": text}, i % FOLDS, True) for i, text in enumerate(background())]
    for record, fold, general in [*retained, *shipped]:
        parts = passages(asked(record), encoder)
        weight = 1.0 / len(parts)
        group = min(len(parts) - 1, 1)
        made = Row("", False, fold, source, weight, True, True, general, group=group, shared=general)
        same = wording(asked(record)) if not general and "prompt" in record else None
        rows += [replace(made, text=part, retained=wording(part) == same) for part in parts]
        if "answer" in record:
            rows.append(Row(record["answer"], False, fold, source, ANSWER_WEIGHT, False, False))
        source += 1
    # Other prompts are reworded too: the marks of rewording alone mustn't look like a forget request.
    whole = [row for row in rows if row.encoded]
    for i in rng.choice(len(whole), min(OTHER_VARIANTS, len(whole)), replace=False):
        for variant in variants(whole[i].text, 1, rng):
            rows.append(replace(whole[i], text=variant, calibrates=False, shared=False, retained=False))
    for i in rng.choice(len(whole), min(WRAPPED, len(whole)), replace=False):
        source += 1
        parts = passages(wrap(whole[i].text, rng), encoder)
        made = replace(whole[i], source=source, weight=1.0 / len(parts), wrapped=True, shared=False, retained=False)
        rows += [replace(made, text=part, group=min(len(parts) - 1, 1)) for part in parts]
    return rows


def _decoy_rows(
    index: Sequence[str], retain: Sequence[Record], rng: np.random.Generator, *, first_source: int
) -> list[Row]:
    """Forget texts with other content words: without them a form that all share would look like the content."""
    pool = [word for text in [*background(), *map(asked, retain)] for word in text.split() if _carries(word)]
    names = [word for word in pool if word[0].isupper()]
    plain = [word for word in pool if not word[0].isupper()]
    rows = []
    for n in range(DECOYS):
        words = index[n % len(index)].split(" ")
        for i, word in enumerate(words):
            if _carries(word) and rng.random() < DECOY_EXCHANGES:
                others = names if word[0].isupper() else plain
                words[i] = others[int(rng.integers(len(others)))]
        text = " ".join(words)
        if text != index[n % len(index)]:
            rows.append(Row(text, False, n % FOLDS, first_source + n, DECOY_WEIGHT, True, False, decoy=True))
    return rows


def _carries(word: str) -> bool:
    return any(c.isalnum() for c in word) and word.strip(PUNCTUATION).casefold() not in FUNCTION_WORDS


def asked(record: Record) -> str:
    """What a record says that a request might say: its prompt, or its text."""
    return record.get("prompt") or record["text"]


def folds(rows: Sequence[Row]) -> NDArray[np.int64]:
    """(N,) the fold of each row."""
    return np.array([row.fold for row in rows], dtype=np.int64)
