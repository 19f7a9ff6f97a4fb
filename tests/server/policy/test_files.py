"""Reading policy files: an unreadable or invalid file is an error that names it, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from lethe.server.policy.files import read_policies
from lethe.server.policy.schema import PolicyError
from tests.server.policy.test_schema import MINIMAL, file, refused

__all__ = ["file"]


@pytest.mark.parametrize(("content", "error_text"), [
    ("name: p\n\tartifact: a\n", "FILE, line 2: not YAML: "),
    ("name: [1, 2\n", "line 2: not YAML: "),
    ("name: !!python/object:os.system x\n", "line 1: not YAML: "),
    ("- a\n", "a policy is a mapping"),
    ("", "a policy is a mapping"),
    (MINIMAL + "action: corrupt\n", "FILE, line 4: not YAML: duplicate key 'action'"),
    (MINIMAL + "penalize:\n  soft: 1\n  soft: 2\n", "FILE, line 6: not YAML: duplicate key 'soft'"),
    (MINIMAL + "? [a]\n: b\n", "not YAML: "),
    (MINIMAL + "---\nname: q\n", "not YAML: "),
    (MINIMAL + "mode: 2024-99-99\n", "not YAML: month must be in"),
    ("x: " + "[" * 2000, "not YAML: "),
    (b"name: caf\xe9\n", "FILE: not UTF-8 (byte 9)"),
    ("name: p\n".encode("utf-16"), "FILE: not UTF-8 (byte 0)"),
    (b"name: \x00\n", "not YAML: "),
])  # fmt: skip
def test_a_file_that_is_not_a_yaml_mapping_is_refused(file: Path, content: str | bytes, error_text: str) -> None:
    assert error_text in refused(file, content)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(PolicyError, match="folder.yaml: can't be read"):
        read_policies(tmp_path)


def test_policies_are_read_in_order_of_file_names(tmp_path: Path) -> None:
    for file_name, name in [("b.yaml", "second"), ("a.yml", "first"), ("notes.txt", "none")]:
        (tmp_path / file_name).write_text(MINIMAL.replace("name: p", f"name: {name}"))
    assert [policy.name for policy in read_policies(tmp_path)] == ["first", "second"]


def test_an_empty_folder_is_valid_and_a_missing_one_an_error(tmp_path: Path) -> None:
    assert read_policies(tmp_path) == ()
    with pytest.raises(PolicyError, match="LETHE_POLICIES"):
        read_policies(tmp_path / "missing")


def test_a_duplicate_name_names_both_files(tmp_path: Path) -> None:
    for file_name in ("a.yaml", "b.yaml"):
        (tmp_path / file_name).write_text(MINIMAL)
    with pytest.raises(PolicyError, match=r"'p' is used twice \(.*a\.yaml and .*b\.yaml\)"):
        read_policies(tmp_path)
