"""The windows of a text that hold names of an artifact's subjects, with their evidence. Knows no encoder."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from lethe.classifier.names.evidence import NameEvidence, name_evidence
from lethe.classifier.names.matcher import NameHit, NameMatcher
from lethe.classifier.names.subject import Subject
from lethe.classifier.names.tokens import name_tokens
from lethe.classifier.text.segments import TextSegments

# Windows of a text that are looked at for one artifact because of names: those with the most evidence. Chosen, not
# measured; bounds the work for a text that is full of names.
MAX_NAMED_WINDOWS = 8

# The view with corrected spelling (`text/views.py`).
REPAIRED = "repaired"
# Weight at most of a single word that is a name only once its spelling is corrected: "Lena" is no misspelt "Lene".
# Chosen: needs a little else.
MAX_REPAIRED_WEIGHT = 0.6

# Window number → the evidence of each subject that it names.
NamedWindows = dict[int, list[NameEvidence]]


def named_windows(
    segments: TextSegments, matcher: NameMatcher, subjects: Mapping[str, Sequence[Subject]]
) -> dict[str, NamedWindows]:
    """Artifact name → its windows with names; without artifacts that no window names."""
    # Nearly all texts hold no name, and are read once.
    if not matcher or not matcher.hits(name_tokens(" ".join(segments.units))):
        return {}
    tokens_of_units = [name_tokens(unit) for unit in segments.units]
    starts = [0, *accumulate(map(len, tokens_of_units))]
    tokens = [token for unit in tokens_of_units for token in unit]
    hits = matcher.hits(tokens)
    found: defaultdict[str, NamedWindows] = defaultdict(dict)
    repaired = _repaired_windows(segments)
    for window in segments.outer.nonzero()[0].tolist():
        begin, end = starts[segments.first[window]], starts[segments.last[window]]
        inside: defaultdict[tuple[str, int], list[NameHit]] = defaultdict(list)
        for hit in hits[bisect_left(hits, begin, key=_first) :]:
            if hit.first >= end:
                break
            if hit.last <= end:
                inside[hit.artifact, hit.subject].append(_doubtful(hit) if window in repaired else hit)
        for (artifact, number), those in inside.items():
            evidence = name_evidence(subjects[artifact][number], number, those, tokens[begin:end])
            # Where no meaning could make the names enough, the window needs no encoder.
            if evidence.minimum_cosine <= 1:
                found[artifact].setdefault(window, []).append(evidence)
    return {artifact: _strongest(windows) for artifact, windows in found.items()}


def _repaired_windows(segments: TextSegments) -> set[int]:
    """The windows that only views with corrected spelling have: a name there may be another one, misread."""
    as_written = {place.window for place in segments.places if REPAIRED not in segments.view_name(place).split("+")}
    return {place.window for place in segments.places} - as_written


def _doubtful(hit: NameHit) -> NameHit:
    if hit.last - hit.first > 1:
        return hit
    return replace(hit, name=replace(hit.name, weight=min(hit.name.weight, MAX_REPAIRED_WEIGHT)))


def _first(hit: NameHit) -> int:
    return hit.first


def _strongest(windows: NamedWindows) -> NamedWindows:
    """The MAX_NAMED_WINDOWS windows that need the least meaning beside their names."""
    order = sorted(windows, key=lambda window: (min(e.minimum_cosine for e in windows[window]), window))
    return {window: windows[window] for window in sorted(order[:MAX_NAMED_WINDOWS])}
