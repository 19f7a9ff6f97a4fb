"""Verbatim indexes: which documents are protected, how an index is saved, and which indexes vLLM has loaded."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lethe.classifier.artifact import ForgetItem
from lethe.corruption.decoding import suffix_index as indexes
from lethe.corruption.decoding.spec import XARGS_KEY, decode_penalty
from lethe.server.policy.schema import PolicyError
from lethe.server.policy_store.load import find_indexes
from lethe.server.upstream.client import Upstream
from lethe.server.upstream.verbatim_index import (
    index_name,
    loaded_indexes,
    protected_documents,
    save_with_index,
    write_index,
)
from tests.server.fakes import FakeUpstream, policy, upstream
from tests.server.guard.test_guard import artifact

FACT = ForgetItem("Who?", "Ozren Dalmatin.", "")
PAGES = (ForgetItem("", "", "It was a bright"), ForgetItem("", "", " cold day in April."))


def with_items(*items: ForgetItem) -> Any:
    return dataclasses.replace(artifact(), items=items)


def test_documents_are_protected_and_facts_are_not() -> None:
    assert protected_documents(with_items(FACT, *PAGES, ForgetItem("", "", " — "))) == [page.text for page in PAGES]
    assert index_name(with_items(FACT)) is None


def test_the_written_index_has_the_name_that_requests_use(tmp_path: Path) -> None:
    with_documents = with_items(FACT, *PAGES)
    path = write_index(with_documents, tmp_path)
    assert path is not None and indexes.load_index(path).name == index_name(with_documents)
    assert write_index(with_items(FACT), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_policies_that_limit_copying_need_an_index() -> None:
    artifacts = {"a": with_items(*PAGES), "b": with_items(FACT)}
    name = index_name(artifacts["a"])
    for limiting in (
        policy(action="penalize"),
        policy(action="corrupt"),
        policy(action="refuse", penalize={"always": True}),
    ):
        assert find_indexes([limiting], artifacts) == {"a": name}
    for other in (
        policy(action="refuse"),
        policy(action="penalize", penalize={"verbatim": False}),
        policy(action="corrupt", on_unsupported="refuse"),
        policy(action="penalize", artifact="b"),
    ):
        assert find_indexes([other], artifacts) == {}
    with pytest.raises(PolicyError, match="penalize.always = true: artifact 'b' has no documents"):
        find_indexes([policy(artifact="b", penalize={"always": True})], artifacts)


def server_with(*names: str, checks: bool = True) -> Any:
    """A vLLM that has loaded these indexes; checks: whether the plugin runs and checks names."""

    async def answer(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "m"}]})
        accepted = decode_penalty(json.loads(fake.bodies[-1])["vllm_xargs"][XARGS_KEY]).verbatim
        return web.json_response({}, status=200 if not checks or set(accepted) <= set(names) else 400)

    return answer


async def loaded_of(handler: Any, *names: str) -> frozenset[str]:
    async with upstream(handler) as fake:
        fake.answers_probes = False
        connection = Upstream(fake.url, connect_timeout_s=1, read_timeout_s=1)
        try:
            return await loaded_indexes(connection, "m", names)
        finally:
            await connection.close()


async def test_indexes_that_vllm_accepts_are_loaded() -> None:
    one, other = "1" * 32, "2" * 32
    assert await loaded_of(server_with(one), one, other) == {one}
    assert await loaded_of(server_with(one)) == frozenset()


async def test_a_vllm_that_accepts_any_index_has_none() -> None:
    assert await loaded_of(server_with(checks=False), "1" * 32) == frozenset()


def saved_state(folder: Path) -> tuple[int, str]:
    """The number of items of the artifact in `folder`, and the name of its index."""
    items = (folder / "items.jsonl").read_text().splitlines()
    return len(items), indexes.load_index(folder / indexes.INDEX_FILE).name


@pytest.mark.parametrize(
    "step", ["lethe.server.upstream.verbatim_index.write_index", "lethe.server.upstream.verbatim_index.move_into_place"]
)
@pytest.mark.parametrize("before", [True, False])
def test_a_crash_while_saving_leaves_the_old_artifact_intact(tmp_path: Path, step: str, before: bool) -> None:
    """The process dies between writing the artifact and its index: the folder never has one without the other."""
    folder = tmp_path / "a"
    old, new = with_items(FACT, PAGES[0]), with_items(FACT, *PAGES)
    if before:
        save_with_index(old, folder)
    child = os.fork()
    if not child:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step, lambda *_: os._exit(9))
            save_with_index(new, folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert folder.exists() == before
    if before:
        assert saved_state(folder) == (len(old.items), index_name(old))
    # The staging folder that the crash left behind doesn't hinder the next save.
    save_with_index(new, folder)
    assert saved_state(folder) == (len(new.items), index_name(new))
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["a"]
