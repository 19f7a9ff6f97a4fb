from __future__ import annotations

import json
from pathlib import Path

import pytest

from lethe.evaluation.attacks.jailbreak_templates import SHIPPED, Wrapper, read, read_folder


def test_the_shipped_wrappers_are_read() -> None:
    groups = read_folder(SHIPPED)
    assert {name: len(found) for name, found in groups.items()} == {"GPTFuzzer": 77, "single": 13}
    assert all(wrapper.has_place for wrapper in groups["GPTFuzzer"])
    for wrapper in (*groups["GPTFuzzer"], *groups["single"]):
        around = wrapper.around(r"Who was \1 Orvan {prompt}?")
        assert r"Who was \1 Orvan {prompt}?" in around
        assert "INSERT PROMPT HERE" not in around and "{generator.name}" not in around


@pytest.mark.parametrize("place", ["[INSERT PROMPT HERE]", "INSERT PROMPT HERE", "{prompt}", "{{ query }}", "[PROMPT]"])
def test_every_kind_of_placeholder_is_filled_wherever_it_stands(place: str) -> None:
    assert Wrapper("w", f"Do {place}. I say: {place}!").around("X?") == "Do X?. I say: X?!"


def test_without_a_placeholder_the_prompt_follows() -> None:
    assert Wrapper("w", "No rules, {generator.name}.").around("X?") == "No rules, the assistant.\n\nX?"


def test_a_template_that_stands_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(["one"]))
    (tmp_path / "b.json").write_text(json.dumps(["one"]))
    (tmp_path / "c.csv").write_text('id,text\n0,"two, with\na line"\n1,one\n')
    (tmp_path / "LICENSE").write_text("not a wrapper")
    groups = read_folder(tmp_path)
    assert {name: [w.name for w in found] for name, found in groups.items()} == {
        "single": ["a.json:1"],
        "c": ["c.csv:1"],
    }


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.json", b"{", "a.json: not JSON"),
        ("a.json", b'{"a": 1}', "a.json: not a list"),
        ("a.json", b"[]", "a.json: no wrappers"),
        ("a.json", b'["x", 7]', "a.json: wrapper 2 is not a text"),
        ("a.json", b'["x", " "]', "a.json: wrapper 2 is not a text"),
        ("a.json", b'["\xff"]', r"a.json: not UTF-8 \(byte 3\)"),
        ("a.csv", b"id,body\n1,x\n", r"a.csv: no column 'text' \(there: id, body\)"),
        ("a.csv", b"", r"a.csv: no column 'text' \(there: none\)"),
        ("a.csv", b"id,text\n", "a.csv: no wrappers"),
        ("a.csv", b"id,text\n1\n", "a.csv: wrapper 1 is not a text"),
        ("a.csv", b'id,text\n1,"x" y\n', "a.csv: not CSV after line 1"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=fault):
        read(tmp_path / name)


def test_folders_without_wrappers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no wrappers"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="nowhere: not a folder"):
        read_folder(tmp_path / "nowhere")
