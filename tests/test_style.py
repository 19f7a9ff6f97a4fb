"""The house rules that a program can check: names, comments on constants, plain words, no import circles."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MECHANISM = ("server", "classifier", "corruption")
PRODUCT = (*MECHANISM, "evaluation")
MAX_TEST_NAME = 70

# Words of a private vocabulary that this project once used, each with what to write instead.
OLD_WORDS = {
    r"judged lately|was judged lately": "recently judged, cached",
    r"\bnats\b": "log-odds",
    r"\btelling words?\b": "discriminative word",
    r"\bno number speaks|what is no number\b": "NaN counts as a match",
    r"\bstands? twice\b": "duplicate",
    r"\bha(s|ve) no end\b": "exceeds N bytes",
    r"\bgives? (it |them |him |her )?away\b": "reveals",
    r"\bstay in force\b": "keeping the previous version",
    r"\bnot there yet\b": "still being built",
    r"\bfigures of the night\b": "benchmark figures",
    r"\breckon\w*\b": "compute",
    r"\bso many \w+ (and \w+ )?are\b": "batch size",
    r"\bcould not be told\b": "cannot be mapped",
    r"\btaken up the policies\b": "reloaded policies",
}


def python_files(*folders: str) -> list[Path]:
    return sorted(
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if "node_modules" not in str(path)
    )


def prose_files() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "docker").rglob("*.yml")])


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def module_paths() -> dict[str, Path]:
    """Module name → file, for every module of the product."""
    names = {}
    for path in python_files(*PRODUCT):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(("lethe", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return names


def imported(path: Path) -> Iterator[str]:
    """The product's modules that a file imports, wherever in it, imports for types alone left out."""
    modules = module_paths()
    for_types = {
        id(inner)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(parsed(path)):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            candidates = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in candidates)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.append(sorted(component))

    sys.setrecursionlimit(5000)
    for name in graph:
        if name not in index:
            visit(name)
    return found


def test_no_modules_import_each_other() -> None:
    modules = module_paths()
    graph = {name: {other for other in imported(path) if other in modules} - {name} for name, path in modules.items()}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert circles(graph) == []


def test_every_import_of_the_product_is_absolute() -> None:
    for path in python_files(*PRODUCT, "benchmarks", "tests"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom):
                first = (node.module or "").partition(".")[0]
                assert node.level == 0 and first not in PRODUCT, f"{path.relative_to(ROOT)}:{node.lineno}"


def is_numeric(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.BinOp(left=left, right=right):
            return is_numeric(left) and is_numeric(right)
        case ast.UnaryOp(operand=operand):
            return is_numeric(operand)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return bool(items) and all(map(is_numeric, items))
    return False


def uncommented_constants(path: Path) -> Iterator[str]:
    """Numeric module constants with no comment on their line or right above, alone or with others in one block."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in parsed(path).body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if not (isinstance(target, ast.Name) and re.fullmatch(r"_?[A-Z][A-Z0-9_]*", target.id)):
            continue
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        if node.value is None or not is_numeric(node.value):
            continue
        above = lines[node.lineno - 2] if node.lineno > 1 else ""
        if not above.startswith("#") and "#" not in lines[(node.end_lineno or node.lineno) - 1]:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {target.id}"


def test_every_numeric_constant_says_what_it_is() -> None:
    assert [where for path in python_files(*MECHANISM) for where in uncommented_constants(path)] == []


def choices_without_reason(text: str) -> list[int]:
    """The numbers of the comment lines that end in a bare "Chosen.", without a reason or "not measured"."""
    pattern = re.compile(r"#.*\bChosen\.$")
    return [number for number, line in enumerate(text.splitlines(), 1) if pattern.search(line.rstrip())]


def test_every_chosen_constant_gives_its_reason() -> None:
    assert choices_without_reason("# A limit. Chosen.\n# A limit. Chosen: bounds memory.\n# Chosen, not measured.") == [
        1
    ]
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in python_files(*PRODUCT)
        for number in choices_without_reason(path.read_text(encoding="utf-8"))
    ]
    assert bare == []


def test_test_names_are_short_sentences() -> None:
    names = (
        (path, node)
        for path in python_files("tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )
    assert [f"{p.relative_to(ROOT)}: {n.name}" for p, n in names if len(n.name) > MAX_TEST_NAME] == []


def test_public_classes_have_names_of_their_own() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in python_files(*PRODUCT):
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("pattern", OLD_WORDS, ids=OLD_WORDS.values())
def test_old_words_are_gone(pattern: str) -> None:
    files = [*python_files(*PRODUCT, "benchmarks", "tests", "docker"), *prose_files()]
    expression = re.compile(pattern, re.IGNORECASE)
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if expression.search(line)
    ]
    assert hits == []


def test_every_package_and_module_says_what_it_is() -> None:
    missing = [str(path.relative_to(ROOT)) for path in python_files(*PRODUCT) if not ast.get_docstring(parsed(path))]
    assert missing == []


def test_no_folder_holds_too_many_modules() -> None:
    counts = defaultdict(int)
    for path in python_files(*PRODUCT):
        counts[str(path.parent.relative_to(ROOT))] += path.name != "__init__.py"
    assert {folder: count for folder, count in counts.items() if count > 16} == {}
