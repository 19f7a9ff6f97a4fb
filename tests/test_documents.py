"""The documents are correct: links and paths exist, commands parse, policies and JSON in code blocks are valid."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from lethe.server.cli.main import build_parser
from lethe.server.policy.files import read_policy
from lethe.server.policy.schema import Policy

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
DATED = sorted((ROOT / "docs" / "benchmarks").glob("*.md"))
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
TOP = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS = [*TOP, *GUIDES, *DATED, *REFERENCE]

# Chosen: about four screens. Words in code blocks and tables count.
MAX_README_WORDS = 1200
# Folders whose files a document may name. Policies are left out: guides name the reader's own files there.
FOLDERS = "server|classifier|corruption|evaluation|benchmarks|docker|docs|tests|requirements"
# Pages that describe the code of their day: paths in them may be gone.
HISTORICAL = {ROOT / "docs" / "LOG.md", ROOT / "CHANGELOG.md", *DATED}
BLOCK = re.compile(r"(?ms)^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^ *```")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose_of(path: Path) -> str:
    """The text without fenced code blocks."""
    return BLOCK.sub("", text_of(path))


def code_blocks(path: Path, language: str) -> list[str]:
    """Fenced code blocks of one language, with the fence's indentation removed."""
    blocks = [block for block in BLOCK.finditer(text_of(path)) if block["language"] == language]
    return [re.sub(rf"(?m)^{block['indent']}", "", block["body"]) for block in blocks]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose_of(path))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(path: Path) -> Iterator[str]:
    """The lines of indented and shell code, comments removed, with continuation lines joined."""
    indented = re.findall(r"(?m)^(?: {4,}|\t)\S.*(?:\n {4,}\S.*)*", prose_of(path))
    for block in [*indented, *code_blocks(path, ""), *code_blocks(path, "sh")]:
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            yield re.sub(r"(^| )#.*", "", line).strip()


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").split()) <= MAX_README_WORDS


@pytest.mark.parametrize("path", [*GUIDES, *DATED], ids=relative)
def test_every_guide_opens_with_its_readers(path: Path) -> None:
    title, opening = text_of(path).split("\n\n")[:2]
    assert title.startswith("# ") and opening.startswith("For: ")


@pytest.mark.parametrize("path", [path for path in DATED if path.name != "README.md"], ids=relative)
def test_benchmark_pages_have_a_date_a_machine_and_commits(path: Path) -> None:
    assert re.match(r"\d{4}-\d\d-\d\d-", path.name)
    assert path.name[:10] in text_of(path).splitlines()[0]
    assert "**Machine and versions:**" in text_of(path) and "**Commits with which" in text_of(path)


def test_file_names_in_docs_are_lower_case() -> None:
    names = {path.name for path in [*GUIDES, *DATED, *REFERENCE]} - {"README.md", "LOG.md"}
    assert {name for name in names if name != name.lower()} == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_internal_links_resolve(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(path)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path not in HISTORICAL], ids=relative)
def test_paths_in_the_text_exist(path: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./*-]*)`", prose_of(path))
    missing = [name for name in named if not any(ROOT.glob(name.rstrip("/")))]
    assert missing == []


def test_documents_named_in_the_code_exist() -> None:
    folders = ("server", "classifier", "corruption", "evaluation", "benchmarks", "tests", "docker")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".sh", ".yml")]
    for file in [*files, ROOT / "docker-compose.yml", ROOT / ".env.example", ROOT / "pyproject.toml"]:
        for name in re.findall(r"\bdocs/[\w/-]+\.md\b", text_of(file)):
            assert (ROOT / name).is_file(), (relative(file), name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_every_guide_is_linked_from_another_document(path: Path) -> None:
    links = {
        (other.parent / target.partition("#")[0]).resolve()
        for other in DOCUMENTS
        if other != path
        for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(other))
        if not target.startswith("http")
    }
    assert path.resolve() in links or path.name == "README.md"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_policies_in_yaml_blocks_are_valid(path: Path, tmp_path: Path) -> None:
    for number, block in enumerate(code_blocks(path, "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, encoding="utf-8")
        read_policy(file)


def test_the_policy_guide_has_a_smallest_and_a_full_policy() -> None:
    smallest, full = map(yaml.safe_load, code_blocks(ROOT / "docs" / "policies.md", "yaml"))
    assert set(smallest) == {name for name, field in Policy.model_fields.items() if field.is_required()}
    # `hash` and `source` are set by the code that reads the file.
    assert set(full) == set(Policy.model_fields) - {"hash", "source"}


def test_the_policy_guide_explains_every_value_of_a_key() -> None:
    text = text_of(ROOT / "docs" / "policies.md")
    for name, field in Policy.model_fields.items():
        for value in get_args(field.annotation):
            if isinstance(value, str):
                assert f"`{value}`" in text, (name, value)


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_curl_bodies_are_valid_json(path: Path) -> None:
    for body in re.findall(r"-d '([^']*)'", text_of(path)):
        assert isinstance(json.loads(body), dict)


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_lethe_commands_parse(path: Path) -> None:
    parser = build_parser()
    for line in command_lines(path):
        match = re.match(r"(?:[A-Z_]+=\S+ )*(lethe (?!<).*)", line)
        if match is None or path in HISTORICAL:
            continue
        words = shlex.split(match[1])[1:]
        try:
            parser.parse_args(words)
        except SystemExit as error:
            assert error.code == 0 and "--help" in words, line


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path not in HISTORICAL], ids=relative)
def test_make_targets_and_modules_in_commands_exist(path: Path) -> None:
    targets = set(re.findall(r"(?m)^(\w+):", text_of(ROOT / "Makefile")))
    for line in command_lines(path):
        if match := re.match(r"make (\w+)", line):
            assert match[1] in targets, line
        for module in re.findall(r"python -m ((?:benchmarks|tests|lethe)[\w.]*)", line):
            assert importlib.util.find_spec(module) is not None, line
        for name in re.findall(r"\btests/[\w./]+", line):
            assert (ROOT / name).exists(), line


def test_options_named_in_the_text_exist() -> None:
    known = set(options(build_parser()))
    for name in ("evaluation", "quickstart"):
        for option in re.findall(r"`(?:lethe \w+ )?(--[a-z-]+)", prose_of(ROOT / "docs" / f"{name}.md")):
            assert option in known | {"--enable-prompt-embeds", "--logits-processors"}, option


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """All options of a parser and its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options(command)
