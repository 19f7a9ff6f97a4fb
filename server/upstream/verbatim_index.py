"""Protected texts: the documents of an artifact, their index for vLLM, and whether vLLM has it.

The index is too long to travel with a request. It lies in the artifact's folder; vLLM's side reads a copy of
that folder (LETHE_VERBATIM, `corruption/decoding/suffix_index.py`), and a request names it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lethe.classifier import artifact_io
from lethe.classifier.artifact import Artifact
from lethe.corruption.decoding import suffix_index
from lethe.corruption.decoding.copy_limit import DEFAULT_COPY_LIMIT
from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, encode_penalty

if TYPE_CHECKING:
    from lethe.server.upstream.client import Upstream

# No text has this name: an engine that takes it checks nothing.
NOBODY = "0" * suffix_index.NAME_LENGTH


def documents(artifact: Artifact) -> list[str]:
    """The texts of an artifact that are to be kept from being copied: its documents, not its facts."""
    return [item.text for item in artifact.items if suffix_index.comparable_letters(item.text)]


def index_name(artifact: Artifact) -> str | None:
    """The name of the index of an artifact's documents; None when it has none."""
    texts = documents(artifact)
    return suffix_index.content_name(texts) if texts else None


def save(artifact: Artifact, folder: Path) -> Path | None:
    """Write the artifact's folder with the index of its documents, if it has any: all of it, or nothing.

    Returns where the index is. Raises ValueError when something that isn't an artifact stands there.
    """
    if folder.exists() and not (folder / "manifest.json").is_file():
        raise ValueError(f"{folder}: exists and is not an artifact")
    with beside(folder) as made:
        artifact_io.save_artifact(artifact, made)
        index = write_index(artifact, made)
        put_in_place(made, folder)
    return folder / index.name if index else None


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A name beside `folder` for what is to take its place; whatever is there in the end is taken away."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def put_in_place(made: Path, folder: Path) -> None:
    """Let `made` stand where `folder` does, in one step; what stood there then stands at `made`."""
    if folder.exists():
        artifact_io.swap_folders(made, folder)
    else:
        os.rename(made, folder)


def write_index(artifact: Artifact, folder: Path) -> Path | None:
    """Write the index of an artifact's documents into its folder, or take away an old one when it has none."""
    path, texts = folder / suffix_index.INDEX_FILE, documents(artifact)
    if not texts:
        path.unlink(missing_ok=True)
        return None
    suffix_index.save_index(texts, path)
    return path


async def known(upstream: Upstream, model: str, names: Iterable[str]) -> frozenset[str]:
    """Those of the indexes that vLLM has. None of them if it takes a name that is nobody's: no plugin is at work.

    Raises GuardError when vLLM can't be reached.
    """
    wanted = sorted(names)
    if not wanted or await _takes(upstream, model, NOBODY):
        return frozenset()
    return frozenset([name for name in wanted if await _takes(upstream, model, name)])


async def _takes(upstream: Upstream, model: str, name: str) -> bool:
    argument = encode_penalty(Penalty(verbatim={name: DEFAULT_COPY_LIMIT}))
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        "vllm_xargs": {XARGS_KEY: argument},
    }
    status, _ = await upstream.call("POST", "/v1/chat/completions", body, timeout_s=60)
    return status == 200
