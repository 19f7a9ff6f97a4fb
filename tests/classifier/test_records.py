from __future__ import annotations

import json
from pathlib import Path

import pytest

from lethe.classifier import records


def test_facts_documents_byte_order_mark_and_blank_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "p", "answer": "a"}\r\n\n{"text": "t\xc3\xa9"}\n')
    assert records.read_records(path) == [{"prompt": "p", "answer": "a"}, {"text": "té"}]


def test_a_repeated_row_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"prompt": "p", "answer": "a"}\n{"answer": "a", "prompt": "p"}\n')
    assert len(records.read_records(path)) == 1


def test_a_row_may_say_whom_it_is_about_and_do_without_an_answer(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p"},
        {"prompt": "p", "answer": "a", "subject": "Ada Example", "kind": "person", "scope": "facts"},
        {"text": "t", "subject": ["Ada Example", "A. Example"], "scope": "subject"},
    ]
    path = tmp_path / "f.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, rows[2]]))
    assert records.read_records(path) == rows


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b'["p"]', "not a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"answer": "a"}', "no 'prompt'"),
        (b"{}", "no 'prompt'"),
        (b'{"subject": "Ada Example"}', "no 'prompt'"),
        (b'{"prompt": "p", "answer": "a", "id": 3}', "unknown key 'id'"),
        (b'{"prompt": "p", "answer": ""}', "'answer' is empty"),
        (b'{"prompt": "p", "answer": null}', "'answer' is not a string"),
        (b'{"prompt": "p", "subject": 5}', "'subject' is not a string"),
        (b'{"prompt": "p", "subject": null}', "'subject' is not a string"),
        (b'{"prompt": "p", "subject": {"name": "Ada"}}', "'subject' is not a string"),
        (b'{"prompt": "p", "subject": ["Ada Example", " "]}', "'subject' is empty"),
        (b'{"prompt": "p", "kind": ["person"]}', "'kind' is not a string"),
        (b'{"text": "t", "scope": "all"}', "'scope' is 'all'; it is one of subject, facts"),
        (b'{"text": "t", "scope": null}', "'scope' is None"),
        (b'{"text": "t", "prompt": "p"}', "unknown key 'prompt'"),
        (b'{"prompt": "p", "answer": 4}', "'answer' is not a string"),
        (b'{"prompt": " ", "answer": "a"}', "'prompt' is empty"),
        (b'{"prompt": "p", "prompt": "q", "answer": "a"}', "duplicate key"),
        (b'{"text": "\xff"}', "not UTF-8 (byte 11)"),
    ],
)
def test_a_faulty_row_is_named_by_file_line_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(ValueError) as caught:
        records.read_records(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert reason in str(caught.value)


def test_an_empty_and_a_missing_file_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    for path in (empty, tmp_path / "missing.jsonl"):
        with pytest.raises(ValueError, match=path.name):
            records.read_records(path)
