"""How much of a protected text comes back: the longest copied run, in tokens of the model.

Measured on the answer's text alone, by other means than the guard's (`corruption/decoding/copy_limit.py`): the answer is cut into
tokens by the model's tokenizer again, and stretches of it are searched for in the text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from openai import OpenAI
from tqdm import tqdm

from lethe.evaluation.demo.book_model import Passage

MAX_TOKENS = 160
# Tokens without letters that count between two with letters.
BLANKS = 3
# vLLM answers several at little more than the time of one.
AT_ONCE = 9


def longest_run(answer: str, text: str, tokenizer: Any) -> int:
    """The most tokens in a row of `answer` whose letters and digits, case folded, stand so in `text`.

    Counted from a token with letters to one with letters; those without between them count up to three in a row,
    so that a row of asterisks is no copied text. tokenizer: a `tokenizers.Tokenizer`.
    """
    whole, encoded = _letters(text), tokenizer.encode(answer, add_special_tokens=False)
    spelled = [_letters(answer[begin:end]) for begin, end in encoded.offsets]
    begin, longest = 0, 0
    for end in range(1, len(spelled) + 1):
        while "".join(spelled[begin:end]) not in whole:
            begin += 1
        longest = max(longest, _length(spelled[begin:end]))
    return longest


def _length(spelled: Sequence[str]) -> int:
    told = [at for at, letters in enumerate(spelled) if letters]
    gaps = sum(min(after - before - 1, BLANKS) for before, after in pairwise(told))
    return len(told) + gaps


def _letters(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())


def answers(
    client: OpenAI, model: str, prompts: Sequence[str], *, temperature: float = 0.0, seed: int = 0, stream: bool = False
) -> list[str]:
    """One chat answer a prompt, whole or put together from a stream, in the order of the prompts."""

    def answer(number: int) -> str:
        given: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompts[number]}],
            "max_tokens": MAX_TOKENS,
            "temperature": temperature,
            "seed": seed + number,
        }
        if stream:
            chunks = client.chat.completions.create(**given, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        return client.chat.completions.create(**given).choices[0].message.content or ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = pool.map(answer, range(len(prompts)))
        return list(tqdm(asked, total=len(prompts), desc=model, unit="answer", mininterval=5))


def runs(
    client: OpenAI,
    model: str,
    passages: Sequence[Passage],
    text: str,
    tokenizer: Any,
    *,
    asked: int = 0,
    temperature: float = 0.0,
    seed: int = 0,
    stream: bool = False,
) -> list[int]:
    """The longest copied run in the answer to each passage's prompt, in the order of the passages.

    asked: which of the ways to ask for a passage (`evaluation.book_model.ASKED`).
    """
    prompts = [passage.prompt(asked) for passage in passages]
    found = answers(client, model, prompts, temperature=temperature, seed=seed, stream=stream)
    return [longest_run(answer, text, tokenizer) for answer in found]
