"""Rules of the repository: tests mirror modules, the mechanism names no topic, packaging is complete."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "classifier", "corruption")

# Modules without a test file of their own name, and where they are tested instead.
TESTED_ELSEWHERE = {
    "classifier/training/ship_background": "test_background checks that what it ships is complete",
    "server/cli/explain": "through cli/judge",
    "server/guard/copy_limits": "through guard/guard",
    "server/guard/corrupt": "through guard/guard",
    "server/guard/decision": "through guard/guard",
    "server/guard/parsed_request": "through guard/guard",
    "server/guard/route": "through guard/guard",
    "server/guard/forget_answers": "through guard/guard",
    "server/http/worker_thread": "through http/gateway",
    "server/http/exchange": "through http/gateway",
    "server/http/body_reader": "through http/gateway",
    "server/http/relay": "through http/gateway",
    "server/http/original_request": "through http/gateway",
    "server/http/model_list": "through http/gateway",
    "server/http/upstream_request": "through http/gateway",
    "server/output/dialect": "through output/filter",
    "server/output/completions": "through output/filter",
    "server/output/responses": "through output/filter",
    "server/output/messages": "through output/filter",
    "server/output/text_filter": "through output/filter",
    "server/cli/__main__": "calls cli/main",
    "server/http/application": "routes of the public port, through app",
    "server/process/worker_main": "a worker process, through process/supervisor",
    "server/requests/field_types": "types of fields, through requests/validation",
    "server/requests/request_text": "texts of a request, through requests/extract",
    "server/requests/routes": "a table, through app",
    "classifier/encoder/folders": "paths of encoders, through encoder/export",
    "classifier/encoder/load": "loads a prepared encoder, through encoder/export",
    "classifier/training/rows": "pieces of fitting, through fit",
    "classifier/training/features": "pieces of fitting, through fit",
    "classifier/training/calibration": "pieces of fitting, through fit and prefilter",
    "classifier/changed_items": "scores of added and removed items, through training/incremental",
    "classifier/scorer": "scores windows, through judge",
    "classifier/fusion": "the fused score, through fit and classifier",
    "classifier/training/prompt_wrappers": "sentences around rows, through fit",
    "classifier/training/logistic_regression": "the linear models, through fit and classifier",
    "classifier/index/nearest_items": "the nearest items, through classifier",
    "classifier/training/paraphrase": "the variants of a question, through fit",
    "classifier/text/vocabulary": "content words, through fit",
}

# Topics live in data: the benchmark the demo forgets, and whoever stands in it.
TOPICS = re.compile(r"\b(tofu|muse|wmdp|harry potter|rowling)\b", re.IGNORECASE)


def modules(package: str) -> list[str]:
    """Paths of the package's modules below the repository, without the suffix: `server/http/gateway`."""
    paths = (path for path in (ROOT / package).rglob("*.py") if path.stem != "__init__")
    return sorted(str(path.relative_to(ROOT).with_suffix("")) for path in paths)


def mirrored(package: str) -> list[str]:
    """Paths that test files stand for: tests/server/http/test_gateway_keys.py stands for `server/http/gateway_keys`."""
    paths = (path.relative_to(ROOT / "tests") for path in (ROOT / "tests" / package).rglob("test_*.py"))
    return sorted(str(path.with_name(path.stem.removeprefix("test_"))) for path in paths)


def sources() -> Iterator[Path]:
    return (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_test_file_mirrors_a_module(package: str) -> None:
    known = modules(package)
    # A module's tests may be in several files: test_routes.py, test_routes_limits.py.
    mirrors = {
        name
        for name in mirrored(package)
        for module in known
        if module.startswith(name) or name.startswith(f"{module}_")
    }
    assert mirrors == set(mirrored(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_tests_or_a_reason(package: str) -> None:
    there = mirrored(package)
    without = {module for module in modules(package) if not any(map(module.startswith, there))}
    assert without == {name for name in TESTED_ELSEWHERE if name.startswith(package + "/")}


def authors() -> list[str]:
    """The names of the demo's invented authors, as far as its questions give them in full."""
    folder = ROOT / "evaluation" / "data" / "tofu-entities"
    rows = json.loads(next(folder.glob("*.json")).read_text(encoding="utf-8"))
    found = {
        name for row in rows for name in re.findall(r"[A-Z]\w+(?: [A-Z]\w+)+", json.dumps(row, ensure_ascii=False))
    }
    return sorted(name for name in found if len(name) > 8)


def test_mechanism_knows_no_topic() -> None:
    names = authors()
    assert len(names) > 50
    for path in sources():
        text = path.read_text(encoding="utf-8")
        found = [*TOPICS.findall(text), *(name for name in names if name in text)]
        assert found == [], f"{path.relative_to(ROOT)} names {found}"


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_vllm_is_imported_in_the_plugin_only() -> None:
    found = [str(path.relative_to(ROOT)) for path in sources() if "vllm" in imported(path)]
    assert found == ["corruption/vllm_plugin.py"]


def test_only_the_encoder_package_imports_onnx_runtime() -> None:
    # Its __init__ switches off that library's telemetry, which is too late after the import.
    paths = [path for folder in (*PACKAGES, "evaluation", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    found = {path.parent.relative_to(ROOT).as_posix() for path in paths if "onnxruntime" in imported(path)}
    assert found == {"classifier/encoder"}


def test_pyproject_lists_every_package() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = (path.parent for package in (*PACKAGES, "evaluation") for path in (ROOT / package).rglob("__init__.py"))
    assert sorted(listed) == sorted(f"lethe.{folder.relative_to(ROOT)}".replace("/", ".") for folder in folders)
