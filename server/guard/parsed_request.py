"""A request as the guard reads it: its body, and the texts of it that are judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lethe.server.requests.conversation_windows import JoinedText, joined_texts
from lethe.server.requests.fields import Endpoint
from lethe.server.requests.request_text import RequestText

# User messages of at most this many characters count as the user's question; longer ones may hold retrieved documents.
# Chosen: longer than a question of a few sentences.
QUESTION_CHARS = 300


@dataclass(frozen=True)
class ParsedRequest:
    """A request body with the texts in it that can reach the model.

    pieces: the texts, each with its place in the body, in the order in which the chat template shows them.
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

    def user_question(self) -> str:
        """The user's own questions, joined by line breaks.

        Only words in here may be repeated in the answer although they belong to a forbidden phrase. Words of
        documents, tool results and earlier answers may not.
        """
        user_texts = (piece.text for piece in self.pieces if piece.role == "user" and piece.message)
        return "\n".join(text for text in user_texts if len(text) <= QUESTION_CHARS)
