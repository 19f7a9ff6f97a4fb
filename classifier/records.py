"""Read forget and retain files: JSON lines. Every error names file, line and reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACT = frozenset({"prompt", "answer"})
DOCUMENT = frozenset({"text"})
# What a row may say besides: the names of its subject, its kind in the requester's words, and what is to be forgotten.
ABOUT = frozenset({"subject", "kind", "scope"})
# What is to be forgotten: whatever asks about the subject, or only what the rows say.
SCOPES = ("subject", "facts")

# A row: strings, but for "subject", which may be a list of names.
Record = dict[str, Any]


def read_records(path: str | Path) -> list[Record]:
    """The rows of a .jsonl file: {"prompt", "answer"} for facts, {"text"} for documents, in file order.

    A prompt may do without an answer. Each row may also hold `subject` (a name, or a list of names and aliases), `kind`
    and `scope` ("subject" or "facts").

    Blank lines, a byte order mark and repeated rows are skipped. Raises ValueError naming file:line and reason for a
    malformed line, and naming the file when it can't be read or has no row.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    rows: dict[str, Record] = {}
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            row = _parse_line(line, f"{path}:{number}")
            rows.setdefault(json.dumps(row, sort_keys=True), row)
    if not rows:
        raise ValueError(f"{path}: no rows")
    return list(rows.values())


def check_record(row: Any, place: str) -> Record:
    """`row` if it is a well-formed record; ValueError naming `place` and the reason if not."""
    if not isinstance(row, dict):
        raise ValueError(f"{place}: not a JSON object")
    keys = set(row) - ABOUT
    expected = DOCUMENT if "text" in keys else FACT
    if unknown := keys - expected:
        raise ValueError(f"{place}: unknown key {_quote_names(unknown)}; {_quote_names(expected | ABOUT)} expected")
    if missing := expected - keys - {"answer"}:
        raise ValueError(f"{place}: no {_quote_names(missing)}; a row is {{prompt, answer}}, {{prompt}} or {{text}}")
    for key in sorted(keys):
        _check_text(row[key], f"{place}: '{key}'")
    _check_about(row, place)
    return row


def _check_about(row: Record, place: str) -> None:
    subject = row.get("subject")
    for name in subject if isinstance(subject, list) else [subject] if "subject" in row else []:
        _check_text(name, f"{place}: 'subject'")
    if "kind" in row:
        _check_text(row["kind"], f"{place}: 'kind'")
    if "scope" in row and row["scope"] not in SCOPES:
        raise ValueError(f"{place}: 'scope' is {row['scope']!r}; it is one of {', '.join(SCOPES)}")


def _check_text(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a string")
    if not value.strip():
        raise ValueError(f"{what} is empty")


def _parse_line(line: bytes, place: str) -> Record:
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_object_without_duplicates)
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise ValueError(f"{place}: not a JSON object: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return check_record(row, place)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("duplicate key")
    return fields


def _quote_names(keys: frozenset[str] | set[str]) -> str:
    return ", ".join(f"'{key}'" for key in sorted(keys))
