"""Which texts of a request stand directly before the answer. Pure.

An answer may continue a text: an assistant's message that the client began, a completion prompt, or any message where
a chat template puts nothing between it and the answer. Which text a template shows last is not known here, so that
several are possible.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from lethe.server.requests.fields import TABLES, Endpoint
from lethe.server.requests.request_text import RequestText

# The message that a text belongs to: its field, and its indexes in it.
_MESSAGE = re.compile(r"\w+(?:\[\d+\])*")


def possible_prompts(endpoint: Endpoint, texts: Sequence[RequestText]) -> Iterator[list[str]]:
    """Yield the messages of each possible prompt, in order: the last one may stand directly before the answer.

    texts: all texts of the request, in the order of `extract_texts`: first the conversation, in the order in which the
    chat template shows it; then the other fields, in the body's order; then what patterns and grammars spell. Each
    completion prompt and each conversation of a batch is a prompt of its own. Tools and other fields are not part of
    it. The parts of a message are joined by nothing in one prompt, by a line break in another.
    """
    if not texts:
        return
    walked = [text for text in texts if _message(text).split("[")[0] in TABLES[endpoint].walked]
    if endpoint == "completions":
        yield from ([text.text] for text in walked)
        return
    for _, group in groupby(walked, key=lambda text: text.conversation):
        messages = [[*parts] for _, parts in groupby(group, key=_message)]
        for joiner in ("", "\n") if any(len(parts) > 1 for parts in messages) else ("",):
            earlier = [joiner.join(part.text for part in parts) for parts in messages[:-1]]
            last = [part.text for part in messages[-1]]
            for end in _possible_ends(messages[-1]):
                yield [*earlier, joiner.join(last[: end + 1])]


def _message(text: RequestText) -> str:
    match = _MESSAGE.match(text.place)
    return match[0] if match else ""


def _possible_ends(message: Sequence[RequestText]) -> list[int]:
    """The indexes of the texts of the last message that may be its last.

    Of the message's content parts these are the first and the last one: vLLM may show the first one only. Any other
    text of the message (a name, its reasoning, a tool call) may follow them.
    """
    parts = [index for index, text in enumerate(message) if text.part_location is not None]
    others = [index for index, text in enumerate(message) if text.part_location is None]
    return sorted({*parts[:1], *parts[-1:], *others})
