"""The texts in chat messages: which parts of a message carry text, and vLLM's marker for embeddings.

These definitions are shared with `server/requests/`, which judges the same texts. This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from lethe.corruption.spec import CorruptionError

# Where a text is: (message index, part index), or (message index, None) where the content is one string. In a batch,
# messages are counted through all conversations.
PartLocation = tuple[int, int | None]

# vLLM renders a `prompt_embeds` part as this text, and answers 400 to text that contains it.
PROMPT_EMBEDS_MARKER: Final = "<prompt_embeds>"
# Type of a text part → the key of its text.
TEXT_PARTS: Final[dict[str, str]] = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
# vLLM drops the first line of a system message that starts with this, so that a client's changing header doesn't
# prevent prefix caching.
BILLING_HEADER: Final = "x-anthropic-billing-header"


def part_text(part: object) -> str | None:
    """Return the text of one content part; None for images, audio and everything else without text."""
    if isinstance(part, dict) and isinstance(part.get("type"), str):
        text = part.get(TEXT_PARTS.get(part["type"], ""))
        return text if isinstance(text, str) else None
    return None


def replaceable_texts(messages: Sequence[Any]) -> dict[PartLocation, str]:
    """Return every text that embeddings can replace. Raises CorruptionError for a message that is not an object."""
    texts: dict[PartLocation, str] = {}
    for m, message in enumerate(messages):
        if not isinstance(message, dict):
            raise CorruptionError(f"messages[{m}] is not an object")
        content = message.get("content")
        if isinstance(content, str):
            texts[m, None] = content
        elif isinstance(content, list):
            texts |= {(m, p): text for p, part in enumerate(content) if (text := part_text(part)) is not None}
    return texts
