"""Perturbations that write one word a record: markup elements, rows of a table or a log, words with fillers between.

Each perturbation is a pure function (text, rng) → text. The words stay as they are and in their order; what stands
between them differs. Knows no classifier.
"""

from __future__ import annotations

import json
from random import Random

from lethe.evaluation.attacks.unicode_perturbations import Perturbation

_ELEMENTS = ("<p>{}</p>", "<li>{}</li>", "<td>{}</td>", '<span class="w">{}</span>', "<w>{}</w>", "<b>{}</b><br>")
_KEYS = ("word", "text", "value", "token", "w")
_LEVELS = ("INFO", "DEBUG", "WARN")
_TOKENS = ("<|pad|>", "<|endoftext|>", "<pad>", "</s>", "<|end|>", "[PAD]")
# Common nouns, colours and verbs without any connection to a question.
_FILLERS = (
    "apple table green river chair window paper bread cloud orange garden bottle yellow candle basket pencil summer "
    "kitchen button flower carpet winter pillow blue lemon hammer ladder violin butter spoon saddle purple mirror"
).split()


def html_elements(text: str, rng: Random) -> str:
    """One HTML element a word."""
    element, between = rng.choice(_ELEMENTS), rng.choice(("", "\n", " "))
    return between.join(element.format(word) for word in text.split())


def markdown_links(text: str, rng: Random) -> str:
    """One Markdown link a word."""
    site = rng.choice(("https://example.com/", "https://docs.example.org/page?id=", "#note-"))
    return " ".join(f"[{word}]({site}{number})" for number, word in enumerate(text.split(), 1))


def json_records(text: str, rng: Random) -> str:
    """One JSON object a word, in a list or one a line; or a list of words."""
    key, words = rng.choice(_KEYS), text.split()
    records = [{"id": number, key: word} for number, word in enumerate(words, 1)]
    return rng.choice((json.dumps(records), "\n".join(map(json.dumps, records)), json.dumps(words)))


def csv_rows(text: str, rng: Random) -> str:
    """One row of a table of comma- or tab-separated values a word, some with a second column."""
    separator = rng.choice((",", ";", "\t"))
    has_second = rng.random() < 0.5
    second = [rng.choice(_FILLERS) for _ in text.split()] if has_second else []
    rows = [separator.join(["id", "word", *(["note"] if has_second else [])])]
    for number, word in enumerate(text.split(), 1):
        rows.append(separator.join([str(number), word, *second[number - 1 : number]]))
    return "\n".join(rows)


def log_rows(text: str, rng: Random) -> str:
    """One line of a log a word."""
    key, levels = rng.choice(_KEYS), _LEVELS[: rng.randint(1, 3)]
    second, rows = rng.randrange(3600), []
    for word in text.split():
        second += rng.randint(1, 9)
        time = f"{9 + second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        rows.append(f"2026-03-14 {time} {rng.choice(levels)} worker-{rng.randint(1, 4)} received {key}={word}")
    return "\n".join(rows)


def filler_words(text: str, rng: Random) -> str:
    """Two filler words after each word."""
    return " ".join(f"{word} {rng.choice(_FILLERS)} {rng.choice(_FILLERS)}" for word in text.split())


def repeated_filler_words(text: str, rng: Random) -> str:
    """The same filler words, one to three, after each word."""
    fillers = " ".join(rng.sample(_FILLERS, rng.randint(1, 3)))
    return " ".join(f"{word} {fillers}" for word in text.split())


def special_tokens_between_words(text: str, rng: Random) -> str:
    """A special token of a language model after each word."""
    token, blank = rng.choice(_TOKENS), rng.choice(("", " "))
    return blank.join(f"{word}{blank}{token}" for word in text.split())


RECORDS: dict[str, Perturbation] = {
    "html-elements": html_elements,
    "markdown-links": markdown_links,
    "json-records": json_records,
    "csv-rows": csv_rows,
    "log-rows": log_rows,
    "filler-words": filler_words,
    "repeated-filler-words": repeated_filler_words,
    "special-tokens-between": special_tokens_between_words,
}
