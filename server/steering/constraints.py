"""Flag a request whose constraints on the answer steer it to a phrase that must not be said.

A regular expression such as `Hs[a-z]+ [A-Z][a-z]+`, a grammar, a schema or a bias of tokens leads the model to a name
that the prompt doesn't ask for. Such a constraint is *selective* for a phrase: it can produce the phrase, but hardly
any other text of as many words. One that any text satisfies (`.*`, `[A-Z][a-z]+`, the types of a schema) isn't.
Where such a request is penalised, the step `penalize` takes its constraints away or weakens them
(`server/guard/extra_output.py`); the other actions leave them. What is selective is decided
in `server/steering/selectivity.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from lethe.classifier.artifact import Artifact
from lethe.classifier.judge import MAX_FLAGGED_WINDOWS, Score
from lethe.classifier.work_limit import check_work
from lethe.server.requests.output_constraints import OutputConstraint, output_constraints
from lethe.server.steering.grammar_automaton import grammar_automaton
from lethe.server.steering.pattern_automaton import regex_automaton
from lethe.server.steering.secret_names import LazySecretNames
from lethe.server.steering.selectivity import preferred_names, selective_names, spelled_titles

# Preferred tokens past which a preference is not selective. Chosen: with more it leaves a whole vocabulary.
MAX_PREFERRED_TOKENS: Final = 2048
# Results for constraints that are kept. Chosen: a client sends one schema again and again; one takes some kilobytes.
MAX_CACHED_CONSTRAINTS: Final = 1024
# Forget items that are reported for one name, nearest first; as many as a score keeps of a window.
MAX_ITEMS_PER_NAME: Final = 8

DecodeIds = Callable[[list[int]], str]


class ConstraintCheck:
    """Finds the names that the constraints of requests steer to. Safe to share between threads.

    decode: token ids → text; without it preferred tokens can't be read.
    """

    def __init__(self, artifacts: Mapping[str, Artifact], names: LazySecretNames, decode: DecodeIds | None) -> None:
        self._artifacts = artifacts
        self._names = names
        self._decode = decode
        self._found: dict[tuple[str, OutputConstraint], tuple[str, ...]] = {}

    def is_known_to_be_harmless(self, body: Mapping[str, Any], artifacts: Iterable[str]) -> bool:
        """Whether all constraints of the request were compared with these artifacts before, and steer to no name."""
        constraints = list(output_constraints(body))
        return not constraints or all(
            self._found.get((artifact, constraint)) == ()
            for artifact in artifacts
            if artifact in self._artifacts
            for constraint in constraints
        )

    def with_steered(
        self, body: Mapping[str, Any], places: Sequence[str], scores: dict[str, Score], artifacts: Iterable[str]
    ) -> dict[str, Score]:
        """The scores, those of artifacts to whose names a constraint steers raised to 1.

        places: of the request's pieces, which are the first of the judged texts. artifacts: by name.

        Raises WorkExceeded where a limit is in force.
        """
        constraints = list(dict.fromkeys(output_constraints(body)))
        if not constraints:
            return scores
        steered = dict(scores)
        for artifact in artifacts:
            if artifact not in self._artifacts or artifact not in scores:
                continue
            for constraint in constraints:
                if names := self._steers_to(artifact, constraint):
                    items = [self._names[artifact].names[name] for name in names]
                    steered[artifact] = _flagged(steered[artifact], places, constraint.field, items)
        return steered

    def _steers_to(self, artifact: str, constraint: OutputConstraint) -> tuple[str, ...]:
        """The names for which the constraint is selective."""
        found = self._found.get((artifact, constraint))
        if found is None:
            check_work()
            names = self._names[artifact]
            match constraint.kind:
                case "text":
                    found = tuple(spelled_titles(names, constraint.text))
                case "tokens":
                    found = tuple(preferred_names(names, self._token_texts(constraint.tokens)))
                case "regex":
                    found = tuple(selective_names(regex_automaton(constraint.text), names))
                case "grammar":
                    found = tuple(selective_names(grammar_automaton(constraint.text), names))
            if len(self._found) >= MAX_CACHED_CONSTRAINTS:
                self._found.clear()
            self._found[artifact, constraint] = found
        return found

    def _token_texts(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token; none where there are too many, or no tokenizer."""
        if self._decode is None or len(tokens) > MAX_PREFERRED_TOKENS:
            return []
        texts = []
        for token in dict.fromkeys(tokens):
            try:
                texts.append(self._decode([token]))
            except (ValueError, OverflowError):
                continue  # vLLM rejects it
        return texts


def _flagged(score: Score, places: Sequence[str], field: str, items: Sequence[tuple[int, ...]]) -> Score:
    """The score of a request that a constraint in `field` flags, with the items that it steers to.

    The items of the constraint's names come first, then those of the flagged windows. MAX_FLAGGED_WINDOWS entries mean
    "too many to guard against" (`server/guard/forget_answers.py`): the constraint alone must not say so, and where the
    windows say so, they still do.
    """
    index = next((at for at, place in enumerate(places) if _is_in(field, place)), 0)
    text_scores = [*score.text_scores]
    if index < len(text_scores):
        text_scores[index] = 1.0
    most = MAX_FLAGGED_WINDOWS if len(score.window_items) >= MAX_FLAGGED_WINDOWS else MAX_FLAGGED_WINDOWS - 1
    nearest = [numbers[:MAX_ITEMS_PER_NAME] for numbers in dict.fromkeys(items)]
    return replace(
        score,
        score=1.0,
        text=index,
        view="constraint",
        window=(0, 0),
        decided_by="lexical",
        text_scores=tuple(text_scores),
        window_items=tuple([*nearest, *score.window_items][:most]),
    )


def _is_in(field: str, place: str) -> bool:
    return re.split(r"[.\[]", place, maxsplit=1)[0] == field
