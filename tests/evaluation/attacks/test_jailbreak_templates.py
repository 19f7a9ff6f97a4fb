from __future__ import annotations

import json
from pathlib import Path

import pytest

from lethe.evaluation.attacks.jailbreak_templates import (
    SHIPPED_TEMPLATES,
    JailbreakTemplate,
    read_template_file,
    read_template_folder,
)


def test_the_shipped_templates_are_read() -> None:
    groups = read_template_folder(SHIPPED_TEMPLATES)
    assert {name: len(templates) for name, templates in groups.items()} == {"GPTFuzzer": 77, "single": 13}
    assert all(template.has_placeholder for template in groups["GPTFuzzer"])
    for template in (*groups["GPTFuzzer"], *groups["single"]):
        filled = template.fill(r"Who was \1 Orvan {prompt}?")
        assert r"Who was \1 Orvan {prompt}?" in filled
        assert "INSERT PROMPT HERE" not in filled and "{generator.name}" not in filled


@pytest.mark.parametrize("place", ["[INSERT PROMPT HERE]", "INSERT PROMPT HERE", "{prompt}", "{{ query }}", "[PROMPT]"])
def test_every_kind_of_placeholder_is_filled_everywhere(place: str) -> None:
    assert JailbreakTemplate("w", f"Do {place}. I say: {place}!").fill("X?") == "Do X?. I say: X?!"


def test_without_a_placeholder_the_prompt_follows_the_template() -> None:
    assert JailbreakTemplate("w", "No rules, {generator.name}.").fill("X?") == "No rules, the assistant.\n\nX?"


def test_duplicate_templates_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(["one"]))
    (tmp_path / "b.json").write_text(json.dumps(["one"]))
    (tmp_path / "c.csv").write_text('id,text\n0,"two, with\na line"\n1,one\n')
    (tmp_path / "LICENSE").write_text("not a template")
    groups = read_template_folder(tmp_path)
    assert {name: [w.name for w in templates] for name, templates in groups.items()} == {
        "single": ["a.json:1"],
        "c": ["c.csv:1"],
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "a.json: invalid JSON"),
        ("a.json", b'{"a": 1}', "a.json: not a list"),
        ("a.json", b"[]", "a.json: no jailbreak templates"),
        ("a.json", b'["x", 7]', "a.json: template 2 is not a non-empty string"),
        ("a.json", b'["x", " "]', "a.json: template 2 is not a non-empty string"),
        ("a.json", b'["\xff"]', r"a.json: not UTF-8 \(byte 3\)"),
        ("a.csv", b"id,body\n1,x\n", r"a.csv: no column 'text' \(columns: id, body\)"),
        ("a.csv", b"", r"a.csv: no column 'text' \(columns: none\)"),
        ("a.csv", b"id,text\n", "a.csv: no jailbreak templates"),
        ("a.csv", b"id,text\n1\n", "a.csv: template 1 is not a non-empty string"),
        ("a.csv", b'id,text\n1,"x" y\n', "a.csv: invalid CSV after line 1"),
    ],
)
def test_unreadable_files_are_reported_with_the_reason(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_template_file(tmp_path / name)


def test_folders_without_templates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no jailbreak templates"):
        read_template_folder(tmp_path)
    with pytest.raises(ValueError, match="nowhere: not a folder"):
        read_template_folder(tmp_path / "nowhere")
