"""The rows that a fit learns from and is calibrated on. Knows no encoder arithmetic and no model.

Rows that stand for "a prompt that asks for a forget item in other words" are rule-made rewordings (`paraphrase.py`).
Each belongs to a fold of the cross-validation: the models that score it for calibration were not trained on it. They
were trained on the prompt that it rewords, exactly as the final models are when a user asks in other words. Retain rows
belong to contiguous folds, so that neighbours in a file, which are often about one subject, are left out together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lethe.classifier.artifact import ForgetItem
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index.allowlist import canonical_wording
from lethe.classifier.records import Record
from lethe.classifier.text.vocabulary import FUNCTION_WORDS
from lethe.classifier.text.windows import cover_with_windows, text_chunks
from lethe.classifier.training.background import background_prompts as background_prompts
from lethe.classifier.training.other_subjects import about_somebody_else
from lethe.classifier.training.paraphrase import reword
from lethe.classifier.training.prompt_wrappers import wrap_prompt

# Folds of the cross-validation. Chosen: each model sees three quarters of the rows, for five trainings in all.
FOLDS = 4
# The fold of rows that all models are trained on.
ALWAYS = -1
# Rewordings of all forget texts together: 1,600 calibration scores are enough for a miss rate of 1/1,601.
REWORDINGS_TOTAL = 1600
# Rewordings of each forget text at least, if there are many texts: in different folds. Chosen, not measured.
MIN_REWORDINGS = 3
# Rewordings of each forget text at most, if there are few: the rules give hardly more distinct ones. Chosen, not
# measured.
MAX_REWORDINGS = 120
# Retain rows at most, drawn at random from more: bounds the time and memory of a fit. Chosen, not measured.
MAX_RETAIN_ROWS = 8000
# Forget items that are reworded: of more, this many are drawn at random. All items are in the index. Measured with
# benchmarks/many_prompts.py (docs/benchmarks/2026-11-21-judging.md).
MAX_REWORDED_ITEMS = 8000
# With more forget items than this, the models learn the prompts of the reworded items only. Bounds memory; the same
# measurement.
MAX_LEARNED_ITEMS = 100_000
# Other texts that are reworded too: enough that the marks of rewording alone carry no weight. Chosen, not measured.
OTHER_REWORDINGS = 300
# Forget texts, and as many other texts, that are put into prompt wrappers, for the same reason. Chosen, not measured.
WRAPPED_ROWS = 240
# Wrapped forms of one forget text at most, where there are few. Chosen, not measured.
WRAPPED_PER_TEXT = 20
# Seed of the random choices among the background: the same in every fit, so that their embeddings are shipped.
BACKGROUND_SEED = 0
# Decoys: forget texts with other content words. Chosen: two for each of 400 items.
DECOYS = 800
# Decoys of one forget text at most. Chosen: for few texts more would say the same again.
DECOYS_PER_TEXT = 20
# Forget texts about somebody else (`other_subjects.py`) in all ...
OTHER_SUBJECTS = 800
# ... and of one text at most. Chosen, not measured.
OTHER_SUBJECTS_PER_TEXT = 40
# Probability that a content word of a decoy is exchanged. Chosen: some words of the item stay.
DECOY_EXCHANGE_PROBABILITY = 0.8
# Weight of a decoy, where a prompt has 1: nobody sends such requests. Chosen, not measured.
DECOY_WEIGHT = 0.5
# Weight of an answer, where a prompt has 1: requests use the words of prompts more often. Chosen, not measured.
ANSWER_WEIGHT = 0.5
# Characters that may surround a word without belonging to it.
PUNCTUATION = "\"'“”‘’(),.?!:;"


@dataclass(frozen=True)
class TrainingRow:
    """One text to learn from.

    fold: left out of the models of that fold; ALWAYS = in every model. source: rows that are chunks of the same text
    share it. encoded: has an embedding (answers have none: they teach words only). calibrates: its held-out score
    enters the calibration. general: from the shipped background. wrapped: inside a sentence of `prompt_wrappers.py`.
    decoy: the form of a forget text about something else; it counts in the fusion, but not in the calibration.
    shared: the same in every fit with this encoder. retained: a whole request of the retain file, unchanged.
    item: number of the forget item. group: index into `conformal.GROUPS`. A forget row of weight 0 is a further chunk
    of the row before it, which is scored but not trained on.
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
    """All rows; the items; the index texts and the item that each belongs to; how many retain rows were left out.

    retain_rows: those used; conflicts: those that are also forget rows, left out. reworded_items, learned_items: how
    many items have rewordings, and how many have their prompt, among the rows.
    """

    rows: tuple[TrainingRow, ...]
    items: tuple[ForgetItem, ...]
    index_texts: tuple[str, ...]
    index_items: tuple[int, ...]
    retain_rows: int
    conflicts: int
    reworded_items: int
    learned_items: int


def build_corpus(
    forget: Sequence[Record],
    retain: Sequence[Record],
    encoder: Encoder,
    rng: np.random.Generator,
    names: Mapping[int, Sequence[str]] | None = None,
) -> Corpus:
    """The corpus of two lists of checked records. Deterministic for a given `rng` state.

    names: number of an item → the own names of its subject.
    """
    names = names or {}
    items = tuple(ForgetItem(r.get("prompt", ""), r.get("answer", ""), r.get("text", "")) for r in forget)
    index = [(text, i) for i, item in enumerate(items) for text in forget_texts(item, encoder)]
    forget_wordings = {canonical_wording(item.prompt or item.text) for item in items}
    others = [r for r in retain if canonical_wording(request_text(r)) not in forget_wordings]
    conflicts = len(retain) - len(others)
    # Each wording once: a copy in another fold would train the models that must not know the row.
    distinct = list({canonical_wording(request_text(r)): r for r in reversed(others)}.values())[::-1]
    if len(distinct) > MAX_RETAIN_ROWS:
        distinct = [distinct[i] for i in np.sort(rng.choice(len(distinct), MAX_RETAIN_ROWS, replace=False))]
    drawn: dict[int, int] | None = None
    if len(items) > MAX_REWORDED_ITEMS:
        drawn = {int(i): n % FOLDS for n, i in enumerate(rng.choice(len(items), MAX_REWORDED_ITEMS, replace=False))}
    rows = _forget_rows(items, index, encoder, rng, drawn)
    rows += _other_rows(distinct, encoder, rng, first_source=len(rows))
    reworded_texts = [(text, i) for text, i in index if drawn is None or i in drawn]
    rows += _decoy_rows(
        [text for text, _ in reworded_texts], distinct, rng, first_source=max(row.source for row in rows) + 1
    )
    rows += _other_subject_rows(
        [(text, names.get(i, ())) for text, i in reworded_texts if not items[i].text],
        rng,
        first_source=max(row.source for row in rows) + 1,
    )
    # Rewording may lengthen a chunk that just fitted the encoder.
    rows = [row for row in rows if not row.encoded or len(encoder.piece_starts(row.text)) <= encoder.limit]
    texts, owners = tuple(text for text, _ in index), tuple(i for _, i in index)
    reworded = len(items) if drawn is None else len(drawn)
    learned = len(items) if len(items) <= MAX_LEARNED_ITEMS else reworded
    return Corpus(tuple(rows), items, texts, owners, len(distinct), conflicts, reworded, learned)


def request_text(record: Record) -> str:
    """The part of a record that a request may resemble: its prompt, or its text."""
    return str(record.get("prompt") or record["text"])


def forget_texts(item: ForgetItem, encoder: Encoder) -> list[str]:
    """The index texts of an item: what requests are compared with."""
    # Every part of a document is to be forgotten; a single sentence of a long question may ask for nothing.
    cover = cover_with_windows(item.prompt or item.text, encoder, narrow=bool(item.text))
    return [cover.text(window) for window in cover.windows]


def fold_numbers(rows: Sequence[TrainingRow]) -> NDArray[np.int64]:
    """(N,) the fold of each row."""
    return np.array([row.fold for row in rows], dtype=np.int64)


def _forget_rows(
    items: Sequence[ForgetItem],
    index: Sequence[tuple[str, int]],
    encoder: Encoder,
    rng: np.random.Generator,
    drawn: Mapping[int, int] | None,
) -> list[TrainingRow]:
    """Prompts, rewordings, wrapped texts and answers of the forget items.

    drawn: the items to reword and the fold of each, where these aren't all. Then the final models know no rewording
    of most items, so held-out scores must be those of such items: all rewordings of an item are in one fold. Where
    most prompts aren't learned either, the prompt is in that fold, too.
    """
    learns_prompts = drawn is None or len(items) <= MAX_LEARNED_ITEMS
    rows: list[TrainingRow] = []
    chunk_counts = np.bincount([i for _, i in index], minlength=len(items))
    per_text = int(np.clip(round(REWORDINGS_TOTAL / len(index)), MIN_REWORDINGS, MAX_REWORDINGS))
    for text, i in index:
        weight = 1.0 / chunk_counts[i]
        if drawn is not None and i not in drawn:
            if learns_prompts:
                rows.append(TrainingRow(text, True, ALWAYS, len(rows), weight, False, False, item=i))
            continue
        fold = ALWAYS if drawn is None or learns_prompts else drawn[i]
        rows.append(TrainingRow(text, True, fold, len(rows), weight, True, False, item=i))
        rewordings = reword(text, per_text, rng)
        for k, rewording in enumerate(rewordings):
            fold = k % FOLDS if drawn is None else drawn[i]
            rows.append(TrainingRow(rewording, True, fold, len(rows), weight / len(rewordings), True, True, item=i))
    plain = [row for row in rows if row.encoded]
    for n, i in enumerate(rng.choice(len(plain), min(WRAPPED_ROWS, WRAPPED_PER_TEXT * len(index), len(plain)), False)):
        # Scored as a request is: by all its windows.
        chunks = text_chunks(wrap_prompt(plain[i].text, rng), encoder)
        weight, group, source = plain[i].weight / 2, min(len(chunks) - 1, 1), len(rows)
        fold = n % FOLDS if drawn is None else drawn[plain[i].item]
        wrapped = replace(plain[i], fold=fold, calibrates=True, wrapped=True, group=group, source=source)
        rows += [replace(wrapped, text=chunk, weight=0.0 if k else weight) for k, chunk in enumerate(chunks)]
    for i in range(len(items)) if drawn is None or learns_prompts else drawn:
        if items[i].answer:
            fold = ALWAYS if drawn is None or learns_prompts else drawn[i]
            rows.append(TrainingRow(items[i].answer, True, fold, len(rows), ANSWER_WEIGHT, False, False))
    return rows


def _other_rows(
    retain: Sequence[Record], encoder: Encoder, rng: np.random.Generator, *, first_source: int
) -> list[TrainingRow]:
    """Retain rows and background prompts, as they are, reworded and wrapped."""
    # Neighbours in a retain file are often about one subject; the background's prompts are in no order.
    retained = [(record, i * FOLDS // len(retain)) for i, record in enumerate(retain)]
    rows = _disguised_too(_plain_rows(retained, encoder, first_source, general=False), encoder, rng)
    first_source = max((row.source for row in rows), default=first_source - 1) + 1
    return rows + background_rows(encoder, first_source)


def background_rows(encoder: Encoder, first_source: int = 0) -> list[TrainingRow]:
    """The background prompts, as they are, reworded and wrapped: the same texts in every fit with this encoder."""
    shipped = [({"prompt": text}, i % FOLDS) for i, text in enumerate(background_prompts())]
    plain = _plain_rows(shipped, encoder, first_source, general=True)
    return _disguised_too(plain, encoder, np.random.default_rng(BACKGROUND_SEED))


def _plain_rows(
    records: Sequence[tuple[Record, int]], encoder: Encoder, first_source: int, *, general: bool
) -> list[TrainingRow]:
    """The requests and answers of records, each with its fold, as they are. general: from the background."""
    rows: list[TrainingRow] = []
    for source, (record, fold) in enumerate(records, start=first_source):
        chunks = text_chunks(request_text(record), encoder)
        weight = 1.0 / len(chunks)
        group = min(len(chunks) - 1, 1)
        row = TrainingRow("", False, fold, source, weight, True, True, general, group=group, shared=general)
        wording = canonical_wording(request_text(record)) if not general and "prompt" in record else None
        rows += [replace(row, text=chunk, retained=canonical_wording(chunk) == wording) for chunk in chunks]
        if "answer" in record:
            rows.append(TrainingRow(record["answer"], False, fold, source, ANSWER_WEIGHT, False, False))
    return rows


def _disguised_too(rows: list[TrainingRow], encoder: Encoder, rng: np.random.Generator) -> list[TrainingRow]:
    """The rows, and some of their requests reworded, and some wrapped.

    Otherwise the marks of rewording would count as asking for a forget item.
    """
    encoded = [row for row in rows if row.encoded]
    added: list[TrainingRow] = []
    for i in rng.choice(len(encoded), min(OTHER_REWORDINGS, len(encoded)), replace=False) if encoded else ():
        for rewording in reword(encoded[i].text, 1, rng):
            added.append(replace(encoded[i], text=rewording, calibrates=False, retained=False))
    source = rows[-1].source if rows else 0
    for i in rng.choice(len(encoded), min(WRAPPED_ROWS, len(encoded)), replace=False) if encoded else ():
        source += 1
        chunks = text_chunks(wrap_prompt(encoded[i].text, rng), encoder)
        row = replace(encoded[i], source=source, weight=1.0 / len(chunks), wrapped=True, retained=False)
        added += [replace(row, text=chunk, group=min(len(chunks) - 1, 1)) for chunk in chunks]
    return rows + added


def _decoy_rows(
    index: Sequence[str], retain: Sequence[Record], rng: np.random.Generator, *, first_source: int
) -> list[TrainingRow]:
    """Forget texts with other content words: without them, a form that all forget texts share would be evidence."""
    texts = [*background_prompts(), *map(request_text, retain)]
    pool = [word for text in texts for word in text.split() if _is_content_word(word)]
    names = [word for word in pool if word[0].isupper()]
    plain = [word for word in pool if not word[0].isupper()]
    rows = []
    for n in range(min(DECOYS, DECOYS_PER_TEXT * len(index))):
        words = index[n % len(index)].split(" ")
        for i, word in enumerate(words):
            if _is_content_word(word) and rng.random() < DECOY_EXCHANGE_PROBABILITY:
                others = names if word[0].isupper() else plain
                words[i] = others[int(rng.integers(len(others)))]
        text = " ".join(words)
        if text != index[n % len(index)]:
            rows.append(TrainingRow(text, False, n % FOLDS, first_source + n, DECOY_WEIGHT, True, False, decoy=True))
    return rows


def _other_subject_rows(
    index: Sequence[tuple[str, Sequence[str]]], rng: np.random.Generator, *, first_source: int
) -> list[TrainingRow]:
    """Forget prompts, each with the own names of its subject, asked about others."""
    rows = []
    wordings = {text for text, _ in index}
    for n in range(min(OTHER_SUBJECTS, OTHER_SUBJECTS_PER_TEXT * len(index))):
        text, names = index[n % len(index)]
        other = about_somebody_else(text, names, rng)
        if other not in wordings:
            wordings.add(other)
            row = TrainingRow(other, False, n % FOLDS, first_source + n, DECOY_WEIGHT, True, False, decoy=True)
            rows.append(row)
    return rows


def _is_content_word(word: str) -> bool:
    return any(c.isalnum() for c in word) and word.strip(PUNCTUATION).casefold() not in FUNCTION_WORDS
