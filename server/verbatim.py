"""Protected texts: the documents of an artifact, their index for vLLM, and whether vLLM has it.

The index is too long to travel with a request. It lies in the artifact's folder; vLLM's side reads a copy of
that folder (LETHE_VERBATIM, `corruption/verbatim.py`), and a request names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifier.artifact import Artifact
from corruption import verbatim
from corruption.penalties import ARGUMENT, Penalty, to_argument
from corruption.runs import DEFAULT_LIMIT

if TYPE_CHECKING:
    from server.upstream import Upstream

# No text has this name: an engine that takes it checks nothing.
NOBODY = "0" * verbatim.NAME_LENGTH


def documents(artifact: Artifact) -> list[str]:
    """The texts of an artifact that are to be kept from being copied: its documents, not its facts."""
    return [item.text for item in artifact.items if verbatim.letters(item.text)]


def index_name(artifact: Artifact) -> str | None:
    """The name of the index of an artifact's documents; None when it has none."""
    texts = documents(artifact)
    return verbatim.name(texts) if texts else None


def write_index(artifact: Artifact, folder: Path) -> Path | None:
    """Write the index of an artifact's documents into its folder, or take away an old one when it has none."""
    path, texts = folder / verbatim.FILE, documents(artifact)
    if not texts:
        path.unlink(missing_ok=True)
        return None
    verbatim.save(texts, path)
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
    argument = to_argument(Penalty(verbatim={name: DEFAULT_LIMIT}))
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        "vllm_xargs": {ARGUMENT: argument},
    }
    status, _ = await upstream.call("POST", "/v1/chat/completions", body, timeout_s=60)
    return status == 200
