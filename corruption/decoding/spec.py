"""The penalty on one answer, and its encoding for vLLM.

`Penalty` is what the gateway decides. `encode_penalty` and `decode_penalty` carry it to vLLM as one JSON string in
`vllm_xargs[XARGS_KEY]`: an object of `v` (ENCODING_VERSION) and the fields of `Penalty` under their names.
`corruption/decoding/token_masks.py` turns it into token ids. Penalties on logits follow GUARD (arXiv:2505.13312).
Protected documents are too long to send, so a penalty names their verbatim indexes
(`corruption/decoding/copy_limit.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lethe.corruption.decoding.copy_limit import MAX_COPY_LIMIT
from lethe.corruption.decoding.suffix_index import NAME_LENGTH
from lethe.corruption.phrases.normalize import fold

# The key in `vllm_xargs`. The gateway refuses requests in which a client sets it.
XARGS_KEY = "lethe"
# Version of the encoding. Gateway and plugin must have the same one.
ENCODING_VERSION = 3

# One engine serves all clients, so the limits below keep the preparation of one penalty in the low milliseconds
# (`benchmarks/penalty_step.py` prints the time). They are choices.
# Characters of the encoded penalty.
MAX_ENCODED_CHARACTERS = 131_072
# Number of forbidden phrases.
MAX_PHRASES = 1024
# Characters of one phrase or soft word.
MAX_PHRASE_CHARACTERS = 256
# Characters of all phrases together.
MAX_PHRASE_TOTAL = 32_768
# Number of words with a soft penalty.
MAX_SOFT_WORDS = 256
# Characters of all soft words together.
MAX_SOFT_TOTAL = 8_192
# Number of beginnings of phrases that a prompt ends with. Ordinary prompts end with none or one.
MAX_BEGUN = 256
# Characters of all beginnings together.
MAX_BEGUN_TOTAL = 8_192
# Logits to subtract. 100 is the range of OpenAI's `logit_bias`, and already makes a token impossible in practice.
MAX_WEIGHT = 100.0
# Number of protected documents' indexes in one penalty.
MAX_INDEXES = 64

_INDEX_NAME = re.compile(f"[0-9a-f]{{{NAME_LENGTH}}}")

OnFault = Literal["stop", "pass"]


@dataclass(frozen=True)
class Penalty:
    """Forbidden phrases, words to make less likely, copy limits, and what a fault in the engine leads to.

    phrases: forbidden texts; case, spaces and punctuation make no difference. soft: word → weight, the logits to
    subtract, 0 < weight <= MAX_WEIGHT. verbatim: name of a protected document's index → the maximum number of
    tokens that may be copied from it in a row. on_fault: "stop" ends the answer, "pass" lets it continue unguarded;
    the gateway always sends "stop".
    begun: folded beginnings of phrases that the prompt ends with; the answer must not complete them.
    Raises ValueError when a limit of this module is exceeded or a phrase has no letter or digit.
    """

    phrases: tuple[str, ...] = ()
    soft: Mapping[str, float] = field(default_factory=dict)
    verbatim: Mapping[str, int] = field(default_factory=dict)
    on_fault: OnFault = "stop"
    begun: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_texts("phrases", self.phrases, MAX_PHRASES, MAX_PHRASE_TOTAL)
        _check_texts("soft words", tuple(self.soft), MAX_SOFT_WORDS, MAX_SOFT_TOTAL)
        _check_texts("begun phrases", self.begun, MAX_BEGUN, MAX_BEGUN_TOTAL)
        for weight in self.soft.values():
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (is_number and 0 < weight <= MAX_WEIGHT):
                raise ValueError(f"a soft weight is not a number in (0, {MAX_WEIGHT:g}]")
        if len(self.verbatim) > MAX_INDEXES:
            raise ValueError(f"{len(self.verbatim)} protected documents, more than {MAX_INDEXES}")
        for name, limit in self.verbatim.items():
            if not (isinstance(name, str) and _INDEX_NAME.fullmatch(name)):
                raise ValueError("a protected document's name is not the name of a verbatim index")
            if type(limit) is not int or not 1 <= limit <= MAX_COPY_LIMIT:
                raise ValueError(f"a copy limit is not a whole number from 1 to {MAX_COPY_LIMIT}")
        if self.on_fault not in get_args(OnFault):
            raise ValueError(f"on_fault is not one of {', '.join(get_args(OnFault))}")


def _check_texts(what: str, texts: tuple[str, ...], max_count: int, max_total: int) -> None:
    """Raise ValueError for too many or too long texts. Messages never quote a phrase: they reach logs and clients."""
    if len(texts) > max_count:
        raise ValueError(f"{len(texts)} {what}, more than {max_count}")
    total = 0
    for text in texts:
        if not isinstance(text, str) or len(text) > MAX_PHRASE_CHARACTERS:
            raise ValueError(f"{what} hold an entry that is not a text of up to {MAX_PHRASE_CHARACTERS} characters")
        folded = fold(text)
        total += len(folded)
        if not folded.strip():
            raise ValueError(f"{what} hold a text without letters and digits")
    if total > max_total:
        raise ValueError(f"{what} have {total} characters together, more than {max_total}")


def encode_penalty(penalty: Penalty) -> str:
    """Return the penalty as JSON text; `decode_penalty` reads back an equal one."""
    body = {
        "v": ENCODING_VERSION,
        "phrases": list(penalty.phrases),
        "soft": dict(penalty.soft),
        "verbatim": dict(penalty.verbatim),
        "on_fault": penalty.on_fault,
        "begun": list(penalty.begun),
    }
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def decode_penalty(value: object) -> Penalty:
    """Return the penalty in a text of `encode_penalty`. Raises ValueError for everything else."""
    if not isinstance(value, str):
        raise ValueError(f"{XARGS_KEY}: not a text")
    if len(value) > MAX_ENCODED_CHARACTERS:
        raise ValueError(f"{XARGS_KEY}: {len(value)} characters, more than {MAX_ENCODED_CHARACTERS}")
    try:
        value.encode()  # vLLM can't send lone surrogates to its engine
        body = json.loads(value, object_pairs_hook=_object_with_unique_keys)
    except RecursionError as error:
        raise ValueError(f"{XARGS_KEY}: nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{XARGS_KEY}: not a JSON object with unique keys") from error
    if not isinstance(body, dict) or set(body) != {"v", "phrases", "soft", "verbatim", "on_fault", "begun"}:
        raise ValueError(f"{XARGS_KEY}: not an object of v, phrases, soft, verbatim, on_fault and begun")
    if type(body["v"]) is not int or body["v"] != ENCODING_VERSION:
        raise ValueError(f"{XARGS_KEY}: not version {ENCODING_VERSION}")
    if not isinstance(body["phrases"], list) or not isinstance(body["begun"], list):
        raise ValueError(f"{XARGS_KEY}: phrases or begun is not a list")
    if not isinstance(body["soft"], dict) or not isinstance(body["verbatim"], dict):
        raise ValueError(f"{XARGS_KEY}: soft or verbatim is not an object")
    if not isinstance(body["on_fault"], str):
        raise ValueError(f"{XARGS_KEY}: on_fault is not a text")
    try:
        return Penalty(
            tuple(body["phrases"]),
            body["soft"],
            body["verbatim"],
            body["on_fault"],  # type: ignore[arg-type]
            tuple(body["begun"]),
        )
    except ValueError as error:
        raise ValueError(f"{XARGS_KEY}: {error}") from error


def _object_with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("duplicate key")
    return unique
