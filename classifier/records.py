"""Reading forget and retain files: JSON lines, every fault named by file, line and reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACT = frozenset({"prompt", "answer"})
DOCUMENT = frozenset({"text"})

Record = dict[str, str]


def read(path: str | Path) -> list[Record]:
    """The rows of a .jsonl file: {"prompt", "answer"} for facts, {"text"} for documents, in file order.

    Blank lines, a byte order mark and exact repetitions of a row are passed over. Raises ValueError naming
    file:line and reason for anything else, and naming the file when it can't be read or holds no row.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    rows: dict[tuple[tuple[str, str], ...], Record] = {}
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            row = _row(line, f"{path}:{number}")
            rows.setdefault(tuple(sorted(row.items())), row)
    if not rows:
        raise ValueError(f"{path}: no rows")
    return list(rows.values())


def check(row: Any, place: str) -> Record:
    """`row` if it is a well-formed record; ValueError naming `place` and the reason if not."""
    if not isinstance(row, dict):
        raise ValueError(f"{place}: not a JSON object")
    keys = set(row)
    expected = DOCUMENT if "text" in keys else FACT
    if unknown := keys - expected:
        raise ValueError(f"{place}: unknown key {_names(unknown)}; {_names(expected)} expected")
    if missing := expected - keys:
        raise ValueError(f"{place}: no {_names(missing)}; a row is {{prompt, answer}} or {{text}}")
    for key in sorted(keys):
        if not isinstance(row[key], str):
            raise ValueError(f"{place}: '{key}' is not a string")
        if not row[key].strip():
            raise ValueError(f"{place}: '{key}' is empty")
    return row


def _row(line: bytes, place: str) -> Record:
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise ValueError(f"{place}: not a JSON object: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return check(row, place)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _names(keys: frozenset[str] | set[str]) -> str:
    return ", ".join(f"'{key}'" for key in sorted(keys))
