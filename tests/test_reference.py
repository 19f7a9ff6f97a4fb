"""The generated pages in docs/reference/ are current, and everything in them is described."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from docs import generate_reference as reference
from lethe.server.policy.files import read_policies, read_policy
from lethe.server.policy.schema import Policy
from lethe.server.requests.routes import ROUTES
from lethe.server.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", reference.PAGES)
def test_page_is_current(name: str) -> None:
    text = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert text == reference.render(name), "run `make reference`"


def test_the_folder_holds_generated_pages_only() -> None:
    assert {path.name for path in reference.FOLDER.iterdir()} == set(reference.PAGES)


def rows(name: str) -> dict[str, list[str]]:
    """First cell → cells, of every table row of a page whose first cell is code."""
    lines = (line for line in reference.render(name).splitlines() if line.startswith("| `"))
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]
    return {row[0].strip("`"): row for row in cells}


@pytest.mark.parametrize("name", reference.PAGES)
def test_every_row_has_a_description(name: str) -> None:
    table = rows(name)
    assert table or name == "errors.md"
    assert [key for key, row in table.items() if row[-1] in ("", "None")] == []


def test_every_setting_is_listed_with_its_default() -> None:
    table = rows("settings.md")
    assert list(table) == [PREFIX + name.upper() for name in Settings.model_fields]
    assert table["LETHE_PORT"][1] == "`8080`" and table["LETHE_PORT"][2] == "1 to 65,535"
    assert table["LETHE_UPSTREAM_KIND"][2] == "`vllm`, `openai`"


def test_every_policy_key_is_listed() -> None:
    table = rows("policy.md")
    assert set(Policy.model_fields) - {"hash", "source"} <= set(table)
    assert {"threshold.miss_rate", "corrupt.sigma", "penalize.soft", "watch.when", "route.model"} <= set(table)
    assert table["name"][1] == "required" and table["mode"][2] == "`enforce`, `shadow`, `off`"
    assert table["penalize.soft"][1:3] == ["`4.0`", "0 to 100, `tuned`"]


def test_every_metric_says_what_it_means() -> None:
    table = rows("metrics.md")
    assert table["lethe_requests_total"][1:3] == ["counter", "`endpoint`, `status`"]


def test_every_error_code_has_a_meaning() -> None:
    assert set(reference.error_statuses()) | {"method_not_allowed"} == set(reference.ERROR_CODES)


def test_every_route_is_listed() -> None:
    assert [name for name in rows("endpoints.md") if "/" in name] == [f"{method} {path}" for path, method, _ in ROUTES]


def examples() -> list[str]:
    text = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


def test_the_example_policies_are_valid(tmp_path: Path) -> None:
    assert len(examples()) >= 2
    for number, block in enumerate(examples()):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        read_policy(path)


def test_one_example_policy_has_every_key() -> None:
    keys = [set(yaml.safe_load(block)) for block in examples()]
    assert set(Policy.model_fields) - {"hash", "source"} in keys


def test_shipped_policies_are_valid() -> None:
    folders = {path.parent for path in (ROOT / "policies").rglob("*.yaml")}
    assert folders and all(read_policies(folder) for folder in folders)
