"""The corruption options of a policy, and the error of a corruption.

This module imports nothing heavy, so that policies load, and errors are handled, where nothing is corrupted.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Functions that add or set noise.
NEEDS_SIGMA = frozenset({"noise", "set-noise"})
# Multiples of the distance to the decoy, at most. Chosen: beyond twice, a row is further from every real token than
# useful noise puts it.
MAX_STRENGTH = 2.0

# Instead of a number: use the one in the artifact, which was tuned against the served model.
Tuned = Literal["tuned"]


class CorruptionError(ValueError):
    """This request can't be rewritten exactly; the policy's `on_failure` decides what happens instead."""


def is_resolved(value: float | Tuned) -> TypeGuard[float]:
    """Whether a value is a number, not "tuned"."""
    return value != "tuned"


class CorruptSpec(BaseModel):
    """One policy's corruption. Unknown keys, and keys that the chosen function ignores, are errors.

    function: `decoy` uses rows of other tokens of the same kind (corruption/embeddings/decoy.py); the others are
        ECO's (arXiv:2406.07933, corruption/embeddings/noise.py).
    tokens: `evidence`: the tokens of the words that made the classifier flag the text. `identifying`: these, and
        every word of more than one token. With either, all content tokens when there is no evidence. `content`:
        every token of the text. `all-but-last`: the paper's choice, as far as only content can be replaced: every
        content token except the last token of the prompt. That differs from `content` only for completions and
        continued messages; otherwise the chat template's tokens come last.
    select, dims: which coordinates; `dims` is a number or "all".
    sigma, sigma_unit: standard deviation, in multiples of the table's row RMS ("rms") or in embedding units
        ("absolute", as in the paper).
    strength: decoy only: row + strength · (decoy − row), so 0 keeps the row and 1 replaces it.

    sigma, dims and strength may be "tuned"; the numbers must be filled in before the spec is applied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: Literal["decoy", "noise", "set-noise", "zero", "flip"] = Field(
        default="decoy",
        description="`decoy` replaces the embeddings of the chosen words by those of other words of the same kind. "
        "The rest are ECO's: `noise` adds noise, `set-noise` replaces by noise, `zero` sets to zero, `flip` inverts "
        "the sign.",
    )
    tokens: Literal["evidence", "identifying", "content", "all-but-last"] = Field(
        default="evidence",
        description="Which tokens change. `evidence`: those of the words that made the classifier flag the text. "
        "`identifying`: these, and all words rare enough to have no token of their own. `content`: the whole text. "
        "`all-but-last`: all but the prompt's last token (the paper's choice).",
    )
    strength: Annotated[float, Field(gt=0.0, le=MAX_STRENGTH)] | Tuned = Field(
        default=1.0,
        description="`decoy` only. Position between the word (0) and its replacement (1): above 0, up to "
        f"{MAX_STRENGTH:g}, or `tuned`.",
    )
    select: Literal["first", "random", "top"] = Field(
        default="first",
        description="Not for `decoy`. Which coordinates of an embedding row change: the first ones, random ones, or "
        "those with the largest absolute value.",
    )
    dims: Annotated[int, Field(strict=True, ge=1)] | Literal["all"] | Tuned = Field(
        default="all",
        description="Not for `decoy`. Number of coordinates that change: a count, `all` or `tuned`.",
    )
    sigma: Annotated[float, Field(ge=0.0)] | Tuned | None = Field(
        default=None,
        description="Standard deviation of the noise, 0 or more, or `tuned`. Required by `noise` and `set-noise`.",
    )
    sigma_unit: Literal["rms", "absolute"] = Field(
        default="rms",
        description="Unit of `sigma`: multiples of the embedding table's row RMS, or embedding units (as in the "
        "paper).",
    )

    @property
    def uses_evidence(self) -> bool:
        """Whether it matters which words made the classifier flag the text."""
        return self.tokens in ("evidence", "identifying")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.function in NEEDS_SIGMA:
            if self.sigma is None:
                raise ValueError(f"function {self.function!r} needs a key 'sigma'")
            if is_resolved(self.sigma) and not math.isfinite(self.sigma):
                raise ValueError(f"sigma {self.sigma} is not finite")
        ignored = set()
        if self.function not in NEEDS_SIGMA:
            ignored |= {"sigma", "sigma_unit"}
        ignored |= {"select", "dims"} if self.function == "decoy" else {"strength"}
        for key in sorted(ignored):
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise ValueError(f"key {key!r} ({value!r}) has no meaning for function {self.function!r}")
        return self
