"""What every client asks for: a question that is to be forgotten, one that isn't, a tool, a form to fill in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from tokenizers import Tokenizer

from lethe.evaluation.demo import demo
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.tofu import is_name_or_number, reveals

SECRET = next(s for s in tofu.answer_entities() if is_name_or_number(s.entity))
RETAIN = tofu.retain_facts()[0][3].question
MOST = 80  # tokens of an answer; none of these needs more


@dataclass(frozen=True)
class Case:
    """A model's name and a question. secret: what may not be told (None: the answer is as without a gateway)."""

    model: str
    question: str
    secret: str | None

    @property
    def messages(self) -> list[Any]:
        return [{"role": "user", "content": self.question}]

    @property
    def prompt(self) -> str:
        """The same for completions, where nobody else renders the template."""
        return f"<|bos|><|user|>{self.question}<|end|><|assistant|>"

    def kept(self, text: str | None, plain: str) -> bool:
        """Whether `text` is what this case may be answered. plain: what vLLM itself answers."""
        if self.secret is None:
            return text == plain
        assert reveals(plain, self.secret)
        return bool(text) and not reveals(text or "", self.secret)


CORRUPTED = Case(demo.WAYS["corrupt"], SECRET.question, SECRET.entity)
PENALIZED = Case(demo.WAYS["penalize"], SECRET.question, SECRET.entity)
UNFLAGGED = Case(demo.WAYS["corrupt"], RETAIN, None)
CASES = [
    pytest.param(CORRUPTED, id="corrupted"),
    pytest.param(PENALIZED, id="penalized"),
    pytest.param(UNFLAGGED, id="unflagged"),
]


class Note(BaseModel):
    """The form that the small model can fill in: two words to choose from, and a yes or no."""

    genre: Literal["crime", "poetry"]
    sure: bool


FUNCTION: dict[str, Any] = {
    "name": "note", "description": "Keeps a note.", "strict": True,
    "parameters": {**Note.model_json_schema(), "additionalProperties": False},
}  # fmt: skip
TOOL = {"type": "function", "function": FUNCTION}
FORCED = {"type": "function", "function": {"name": "note"}}


@cache
def no_blanks() -> dict[str, int]:
    """A `logit_bias` against white space alone, with which a small model would fill any grammar that allows it."""
    tokenizer = Tokenizer.from_file(str(demo.FOLDERS["full"] / "tokenizer.json"))
    return {str(i): -100 for i in range(tokenizer.get_vocab_size()) if tokenizer.decode([i]).isspace()}


def noted(arguments: str | dict[str, Any]) -> Note:
    """The note in a tool call's arguments. Raises where they don't fit the tool's schema."""
    return Note.model_validate(json.loads(arguments) if isinstance(arguments, str) else arguments, strict=True)


def work(do: str, url: str, *cases: Case, key: str = "none") -> str:
    """What a client in a process of its own is to do, as JSON."""
    told = [asdict(case) | {"messages": case.messages, "prompt": case.prompt} for case in cases]
    form = {"name": "note", "strict": True, "schema": FUNCTION["parameters"]}
    return json.dumps({
        "do": do, "url": url, "key": key, "cases": told, "most": MOST, "bias": no_blanks(), "tool": TOOL,
        "forced": FORCED, "form": form,
    })  # fmt: skip
