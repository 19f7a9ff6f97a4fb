"""A request as the guard reads it: its body, and the texts of it that are judged.

Terms: a *piece* is one text of the request (`RequestText`). Its *place* is its path in the body. Its *part location* is
the message part that holds it, if that can be given as embeddings. *Texts* are the strings that are judged: first one
for each piece, then the joined texts. *Sources* are the indexes of the pieces that a text is made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lethe.corruption.phrases.prompt_end import prompt_ends
from lethe.server.requests.fields import Endpoint
from lethe.server.requests.joined_texts import JoinedText, joined_texts
from lethe.server.requests.last_texts import possible_prompts
from lethe.server.requests.request_text import RequestText
from lethe.server.requests.user_question import user_question


@dataclass(frozen=True)
class ParsedRequest:
    """A request body with the texts in it that can reach the model.

    body: with numbers and booleans as vLLM reads them (`with_plain_values`), however the client spelled them.

    pieces: the texts, in the order of `extract_texts`: first the conversation, in the order in which the chat template
    shows it; then the other fields, in the body's order; then what patterns and grammars spell.
    """

    endpoint: Endpoint
    body: dict[str, Any]
    pieces: list[RequestText]

    @property
    def model(self) -> Any:
        """The value of the body's `model` field; a client may send anything."""
        return self.body.get("model")

    @cached_property
    def joined_texts(self) -> tuple[JoinedText, ...]:
        """Joined texts of the conversation. Computed on first use: requests without a policy never need them."""
        return joined_texts(self.pieces)

    @property
    def texts(self) -> list[str]:
        """What the classifier judges: the text of each piece, then the joined texts of the conversation."""
        return [*(piece.text for piece in self.pieces), *(joined.text for joined in self.joined_texts)]

    def sources(self, index: int) -> frozenset[int]:
        """The pieces that the text with this index holds something of, as indexes of `pieces`."""
        joined_index = index - len(self.pieces)
        return frozenset([index]) if joined_index < 0 else self.joined_texts[joined_index].sources

    def place(self, index: int) -> str:
        """Where in the body the text with this index stands, for example `messages[0].content`."""
        return self.pieces[index].place if index < len(self.pieces) else "conversation"

    def prompt_ends(self, longest: int) -> frozenset[str]:
        """The possible ends of the prompt, folded; a phrase of up to `longest` characters may have begun in each."""
        prompts = possible_prompts(self.endpoint, self.pieces)
        return frozenset().union(*(prompt_ends(texts, longest) for texts in prompts))

    def user_question(self) -> str:
        """The user's own words, which the answer may repeat although they belong to a forbidden phrase.

        Words of documents, tool results and earlier answers may not be repeated.
        """
        return user_question(self.endpoint, self.pieces)
